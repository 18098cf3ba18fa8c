"""Start of the command line beside the import of the packages behind it; ``python bench_start.py``."""

import subprocess
import sys
import time


def fastest(*arguments, repeats=5):
    seconds = []
    for _ in range(repeats):
        started = time.monotonic()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.monotonic() - started)
    return min(seconds)


def main():
    help_seconds = fastest("-m", "stqp_cli.main", "--help")
    print(f"stqp --help: {help_seconds:.3f} s (limit 0.4 s)")
    for module in ("torch", "scanpy", "tiatoolbox"):
        seconds = fastest("-c", f"import {module}", repeats=2)
        print(f"import {module}: {seconds:.2f} s, {seconds / help_seconds:.0f} times as long")


if __name__ == "__main__":
    main()
