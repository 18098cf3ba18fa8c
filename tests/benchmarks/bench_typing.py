"""Typing beside the paper's method: quality as ratios, and time and memory at 100,000 cells.

python tests/benchmarks/bench_typing.py [--cells 100000] [--seeds 20] [--data FOLDER]

With a folder of data: slides made up on its panels of 10x, by expression that the method does not assume, with the
paper's method and PanglaoDB beside it.
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
from celltyping.panels import panel_slide, scores
from celltyping.slides import TYPES, macro_f1, slide
from support import real_folder

from stqp.celltyping.confidence import reliability_of
from stqp.celltyping.markers import MarkerTable
from stqp.celltyping.methods import type_cells

SCANPY = ("normalising", "principal components", "neighbours", "Leiden", "testing genes")


def timed(made, method="stqp", **options):
    """Typing, CPU seconds (it runs on one thread), and these by step."""
    marks = [(time.process_time(), "reading")]
    typed = type_cells(made, method, progress=lambda d, n, name: marks.append((time.process_time(), name)), **options)
    marks.append((time.process_time(), "end"))
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


def panels(folder, seeds):
    """Macro-F1, typed share and what Unknown means on slides of real panels, ours beside the paper's."""
    table = MarkerTable.read(folder / "markers" / "panglaodb_markers.tsv")
    for path in sorted((folder / "panels").glob("*.csv")):
        if path.stem == "hPrime5K":
            continue
        found = {"stqp": [], "paper": []}
        for seed in range(seeds):
            made = panel_slide(path, seed)
            for method in found:
                typed = type_cells(made, method, table if method == "paper" else None, seed=seed)
                result = scores(made.obs["truth"], typed.classes, made.obs["doublet"])
                of = typed.classes != "Unknown"
                classes = np.where(typed.classes == "Neoplastic", "Epithelial", typed.classes)
                right = (classes == made.obs["truth"].to_numpy(object))[of].astype(float)
                found[method].append({**result, "calibration_error": reliability_of(typed.confidence[of], right)[1]})
        ours, theirs = (pd.DataFrame(found[m]) for m in ("stqp", "paper"))
        mean, paper = ours.mean(), theirs.mean()
        print(
            f"{path.stem}, {seeds} slides: macro-F1 {mean['macro_f1']:.3f} (least {ours['macro_f1'].min():.3f}), "
            f"{mean['macro_f1'] / paper['macro_f1']:.2f} times the paper's {paper['macro_f1']:.3f} "
            f"(least {theirs['macro_f1'].min():.3f}); {mean['typed']:.1%} typed, {mean['right']:.1%} of them right "
            f"(the paper {paper['right']:.1%}); {mean['unknown_precision']:.0%} of the Unknown are without a class or "
            f"doublets; calibration error {mean['calibration_error']:.3f}"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--data", type=Path, default=real_folder())
    options = parser.parse_args()
    if options.data is not None:
        panels(options.data, options.seeds)
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
        f"{made.n_obs:,} cells x {made.n_vars} genes, {len(typed.clusters)} clusters: {seconds:.0f} s of one CPU, "
        f"{own:.1%} outside scanpy's steps, "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9:.2f} GB"
    )
    print("  " + ", ".join(f"{name} {value:.1f} s" for name, value in steps.items()))


if __name__ == "__main__":
    main()
