"""Size and price of the networks, `lite` beside TIAToolbox's `fast`; ``python bench_networks.py``."""

import argparse
import time

import torch

from stqp.training.network import ARCHITECTURES, build_network, cost


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds = {}
    for name in ("lite", "fast"):
        size = ARCHITECTURES[name].input_size
        network = build_network(name, ["a", "b", "c", "d", "e"]).eval()
        parameters, gflop = cost(network, size)
        batch = torch.rand(1, 3, size, size) * 255
        with torch.inference_mode():
            network(batch)
            started = time.perf_counter()
            network(batch)
            seconds[name] = time.perf_counter() - started
        limits = " (limits 3 M and 8 GFLOP)" if name == "lite" else ""
        price = f"{parameters / 1e6:.2f} M parameters, {gflop:.1f} GFLOP{limits}"
        print(f"{name}: {price}, {seconds[name]:.3f} s a {size} px patch")
    print(f"fast / lite: {seconds['fast'] / seconds['lite']:.0f} times the time")


if __name__ == "__main__":
    main()
