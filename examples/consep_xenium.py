"""The whole chain on real tissue: a Xenium run over CoNSeP's H&E (takes as long as you let it train, and 3 minutes).

    python examples/consep_xenium.py DATA/consep_xenium --out consep-run --minutes 60

The folder holds a Xenium 2.0 bundle (``outs``), an H&E of 27 tiles of 1000 x 1000 px as one pyramid (``he``) and
the truth (``truth/nuclei.parquet``: cell_id and class of each nucleus; ``truth/he_instances.npz``). The true
classes serve as labels; `lite` learns on the tiles, of which five are held out, and is scored on those. Tile
borders are 1000 px apart, and so are those of the split: no pixel of a held-out tile was learnt from.
"""

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd


def stqp(*arguments: object) -> None:
    """Run one command as a user would, and stop where it fails."""
    command = [sys.executable, "-m", "stqp_cli.main", *map(str, arguments)]
    print("\n$ stqp", *arguments[:1], *map(str, arguments[1:]), flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    print(f"({time.monotonic() - started:.1f} s)", flush=True)


def check_import(project: Path, truth: pd.DataFrame, instances: np.ndarray) -> None:
    """Compare the project with the truth: every nucleus, its class, its outline."""
    from stqp.qupath.project import QuPathProject

    with QuPathProject.open(project, "r") as opened:
        nuclei = opened.entries[0].read_objects()
    given = dict(zip(truth["cell_id"], truth["class"], strict=True))
    right = sum(given[n] == c for n, c in zip(nuclei.names, nuclei.classes, strict=True))
    sizes = np.bincount(instances.ravel())
    overlaps = []
    owner, row, start, stop = nuclei.polygons.spans()
    order = np.searchsorted(owner, np.arange(len(nuclei) + 1))
    for i in range(len(nuclei)):
        spans = range(order[i], order[i + 1])
        pixels = np.concatenate([instances[row[k], max(start[k], 0) : stop[k]] for k in spans]) if spans else []
        counts = np.bincount(pixels, minlength=len(sizes)) if len(pixels) else np.zeros(len(sizes), int)
        label = int(counts[1:].argmax()) + 1
        overlaps.append(counts[label] / (len(pixels) + sizes[label] - counts[label]))
    print(f"nuclei in the project: {len(nuclei):,} of {len(truth):,}; class equal to the label: {right:,}")
    print(f"median IoU with the true instances: {np.median(overlaps):.3f}")


def main() -> None:
    """Import, check, train, predict, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with outs, he and truth")
    parser.add_argument("--out", type=Path, default=Path("consep-run"))
    parser.add_argument("--minutes", type=float, default=60.0, help="of training")
    arguments = parser.parse_args()
    data, out = arguments.data, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    truth = pd.read_parquet(data / "truth" / "nuclei.parquet")
    with (out / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cell_id", "label"])
        writer.writerows(truth[["cell_id", "class"]].drop_duplicates().itertuples(index=False))
    project, run = out / "project", out / "run"
    stqp(
        "import-xenium", data / "outs", "--he", data / "he" / "region_he_image.ome.tif", "--project", project,
        "--alignment", data / "he" / "region_he_imagealignment.csv", "--labels", out / "labels.csv",
    )  # fmt: skip
    check_import(project, truth, np.load(data / "truth" / "he_instances.npz")["inst"])
    # 250 µm are the 1000 px of a tile; 0.18 of the 27 tiles that hold nuclei are 5
    resume = ["--resume"] if (run / "train.toml").exists() else []
    stqp(
        "train", project, "--out", run, "--arch", "lite", "--max-time", arguments.minutes, "--block", 250,
        "--validation", 0.18, "--guard", 0, *resume,
    )  # fmt: skip
    stqp("predict", run, project, "--held-out")
    stqp("evaluate", "--true", project, "--pred", project, "--held-out", run, "--json", out / "scores.json")


if __name__ == "__main__":
    main()
