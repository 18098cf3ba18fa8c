"""Typing beside the paper's method: quality as ratios, and time and memory at 100,000 cells.

python tests/benchmarks/bench_typing.py [--cells 100000] [--data FOLDER]
"""

import argparse
import itertools
import resource
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parents[1]))
from celltyping.slides import TYPES, macro_f1, slide

from stqp.celltyping.methods import type_cells

SCANPY = ("normalising", "principal components", "neighbours", "Leiden", "testing genes")


def timed(made, method="stqp", **options):
    """Typing, seconds, and seconds by step."""
    marks = [(time.perf_counter(), "reading")]
    typed = type_cells(made, method, progress=lambda d, n, name: marks.append((time.perf_counter(), name)), **options)
    marks.append((time.perf_counter(), "end"))
    steps = {name: b - a for (a, name), (b, _) in itertools.pairwise(marks)}
    return typed, marks[-1][0] - marks[0][0], steps


def large(cells, genes=400):
    """A slide of many cells: the types of a small one, and genes that mark none up to the number asked for."""
    one = slide(0, per_type=-(-cells // len(TYPES)))[:cells]
    rng = np.random.default_rng(0)
    counts, more = one.X, genes - one.n_vars
    noise = sparse.random(counts.shape[0], more, 0.08, "csr", np.float32, rng)
    noise.data = np.ceil(noise.data * 2)
    names = [*one.var_names, *(f"NOISE{i}" for i in range(more))]
    made = anndata.AnnData(sparse.hstack([counts, noise]).tocsr().astype(np.float32), var=pd.DataFrame(index=names))
    made.obs_names = [f"c{i}" for i in range(made.n_obs)]
    made.obsm["spatial"] = one.obsm["spatial"]
    return made


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    for tumour in (True, False):
        wrong = {"stqp": 0, "paper": 0}
        scores = {"stqp": [], "paper": []}
        for seed in range(options.seeds):
            made = slide(seed, tumour)
            truth = made.obs["truth"].to_numpy(object)
            classes = ("Epithelial", "Inflammatory", "Connective", *(("Neoplastic",) if tumour else ()))
            for method in wrong:
                found = type_cells(made, method, seed=seed).classes
                scores[method].append(macro_f1(truth, found, classes))
                wrong[method] += bool(((found == "Neoplastic") & (truth != "Neoplastic")).mean() > 0.01)
        mean = {m: np.mean(s) for m, s in scores.items()}
        print(
            f"{'with' if tumour else 'without'} a tumour, {options.seeds} slides: macro-F1 {mean['stqp']:.3f}, "
            f"{mean['stqp'] / mean['paper']:.2f} times the paper's {mean['paper']:.3f}; slides with more than 1 % "
            f"wrongly Neoplastic: {wrong['stqp']}, the paper's {wrong['paper']}"
        )
    made = large(options.cells)
    typed, seconds, steps = timed(made)
    own = 1 - sum(v for k, v in steps.items() if k in SCANPY) / seconds
    scale = 1 if sys.platform == "darwin" else 1024
    print(
        f"{made.n_obs:,} cells x {made.n_vars} genes, {len(typed.clusters)} clusters: {seconds:.0f} s, "
        f"{own:.1%} outside scanpy's steps, "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9:.2f} GB"
    )
    print("  " + ", ".join(f"{name} {value:.1f} s" for name, value in steps.items()))


if __name__ == "__main__":
    main()
