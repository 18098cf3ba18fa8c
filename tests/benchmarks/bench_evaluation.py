"""A million true against a million predicted nuclei: table, matching and all scores; beside TIAToolbox's pairing.

    python tests/benchmarks/bench_evaluation.py [--nuclei 1000000] [--peer 8000]

TIAToolbox's `pair_coordinates` fills a matrix of all distances (8 TB for a million on either side), so it is timed
on what it can do, and ours on the same points. Each step prints wall and CPU time; memory is the process's peak.
"""

import argparse
import sys
import time

import numpy as np

from stqp.evaluation import boundary, overlap, scores
from stqp.evaluation.matching import pair_centres
from stqp.polygons import Polygons

MPP, PITCH = 0.25, 40.0  # 10 µm from nucleus to nucleus, as in dense tissue
VERTICES = 24


def nuclei(centres: np.ndarray, rng: np.random.Generator) -> Polygons:
    """Ellipses of 5 to 8 µm."""
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    radius = rng.uniform(10, 16, (len(centres), 1)) * (1 + 0.15 * np.sin(2 * angle + 6 * rng.random((len(centres), 1))))
    xy = np.stack([centres[:, :1] + radius * np.cos(angle), centres[:, 1:] + radius * np.sin(angle)], axis=-1)
    return Polygons.from_rings(xy.reshape(-1, 2), np.arange(len(centres) + 1) * VERTICES)


def slide(n: int, rng: np.random.Generator) -> tuple[Polygons, Polygons, np.ndarray, np.ndarray]:
    """True nuclei on a jittered grid; predicted ones near 95 % of them, 5 % elsewhere."""
    side = int(np.ceil(np.sqrt(n)))
    place = np.arange(n)
    centres = np.c_[place % side, place // side] * PITCH + PITCH / 2 + rng.uniform(-6, 6, (n, 2))
    found = centres + rng.normal(0, 3, (n, 2))
    lost = rng.random(n) < 0.05
    found[lost] = rng.uniform(0, side * PITCH, (int(lost.sum()), 2))
    types = rng.integers(1, 6, n)
    other = np.where(rng.random(n) < 0.8, types, rng.integers(1, 6, n))
    return nuclei(centres, rng), nuclei(found, rng), types, other


class Clock:
    """Wall and CPU seconds of each step."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._last = time.perf_counter(), time.process_time()

    def step(self, name: str) -> None:
        """Print and add the time since the last step."""
        now = time.perf_counter(), time.process_time()
        wall, cpu = now[0] - self._last[0], now[1] - self._last[1]
        self.wall, self.cpu, self._last = self.wall + wall, self.cpu + cpu, now
        print(f"  {name:<44}{wall:>8.1f} s wall{cpu:>8.1f} s CPU")

    def skip(self) -> None:
        """Leave out the time since the last step."""
        self._last = time.perf_counter(), time.process_time()


def peak_gb() -> float:
    """Largest memory of the process so far."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def ours(n: int) -> None:
    """All scores of n true against n predicted nuclei."""
    print(f"{n:,} true against {n:,} predicted nuclei")
    true, pred, true_types, pred_types = slide(n, np.random.default_rng(0))
    clock = Clock()
    table = overlap.from_polygons(true, pred, true_types, pred_types)
    clock.step("table of areas, centres and overlaps")
    found = scores.match(table, MPP)
    clock.step("pairs of centres and of outlines")
    counts = scores.count_match(found, 5)
    clock.step("counts of all scores")
    print(f"  {'together':<44}{clock.wall:>8.1f} s wall{clock.cpu:>8.1f} s CPU   {peak_gb():.2f} GB at most")
    clock.skip()
    found = boundary.of_polygons(found, true, pred)
    clock.step("distances of boundaries (a sample of blocks)")
    shown = ("dice", "aji", "pq", "f_d", "type_f1_macro")
    print(f"  peak memory {peak_gb():.2f} GB; {', '.join(f'{k} {float(counts.measures()[k]):.3f}' for k in shown)}")


def peer(n: int) -> None:
    """Pairing of centres alone, beside TIAToolbox."""
    from tiatoolbox.utils.metrics import pair_coordinates

    rng = np.random.default_rng(1)
    true = rng.random((n, 2)) * np.sqrt(n) * 10
    pred = true + rng.normal(0, 1, (n, 2))
    times = {}
    for name, call in (("ours", lambda: pair_centres(true, pred, 3.0)),
                       ("TIAToolbox", lambda: pair_coordinates(true, pred, 3.0))):  # fmt: skip
        call() if name == "ours" else None  # imports
        start = time.process_time()
        result = call()
        times[name] = time.process_time() - start
        pairs = len(result[0])
        print(f"  {name:<12}{times[name]:>9.3f} s CPU, {pairs:,} pairs of {n:,} and {n:,} centres")
    print(f"  ours takes 1/{times['TIAToolbox'] / times['ours']:.0f} of its time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    parser.add_argument("--peer", type=int, default=8_000)
    arguments = parser.parse_args()
    ours(arguments.nuclei)
    print("pairing of centres")
    peer(arguments.peer)
