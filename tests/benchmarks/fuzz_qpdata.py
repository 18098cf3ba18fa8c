"""Read damaged copies of .qpdata files, and say how many were read and refused: fuzz_qpdata.py FOLDER [--number N].

Each must be read or refused with an `InputError` that names it, within 20 s and a gigabyte. One that is not is
kept as ``crash-<seed>`` in the folder of ``--keep``, and ends the run.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from qupath.fuzzing import attempt, damaged


def main() -> None:
    """Damage the files in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="searched for data.qpdata")
    parser.add_argument("--number", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--largest", type=int, default=200_000, help="files above so many bytes are left out")
    parser.add_argument("--keep", type=Path, default=Path())
    arguments = parser.parse_args()
    found = sorted(p for p in arguments.folder.rglob("data.qpdata") if p.stat().st_size <= arguments.largest)
    streams = [path.read_bytes() for path in found]
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if hasattr(resource, "RLIMIT_AS"):
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + (1 << 30), virtual + (1 << 30)))
    counts = [0, 0]
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.first, arguments.first + arguments.number):
            rng = np.random.default_rng(seed)
            data = damaged(streams[int(rng.integers(len(streams)))], rng)
            began = time.perf_counter()
            try:
                counts[attempt(Path(folder) / "data.qpdata", data, change=seed % 4 == 0)] += 1
            except BaseException:
                (arguments.keep / f"crash-{seed}").write_bytes(data)
                print(f"seed {seed} went wrong")
                raise
            slowest = max(slowest, time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{sum(counts):,} damaged copies of {len(streams)} files: {counts[1]:,} read, {counts[0]:,} refused")
    print(f"slowest {slowest:.2f} s, memory grew by {(peak - used) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
