"""`stqp train`."""

import sys
from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, json_option, progress_bar, report, set_up_logging, verbose_option

EPILOG = """\b
Examples:
  stqp train slide --out runs/first
  stqp train projects/* --out runs/lite --arch lite --max-time 60
  stqp train slide --out runs/first --resume

The run folder gets model.pth (a plain state_dict that TIAToolbox's HoVerNet loads), manifest.json,
metrics.csv and record.json. Ctrl-C keeps what was learnt: go on with --resume.
"""


@click.command(epilog=EPILOG)
@click.argument("projects", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder of the run, made here.")
@click.option(
    "--arch", type=click.Choice(["fast", "original", "lite"]), default="fast", show_default=True,
    help="TIAToolbox's HoVerNet (fast, original; for a GPU), or lite, its narrow relative, for a CPU.",
)  # fmt: skip
@click.option(
    "--entry",
    "entries",
    multiple=True,
    metavar="NAME",
    help="Use only these images of the projects. Repeatable.",
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="NAME",
    help="Learn these classes, in this order; other nuclei count as Unknown. Repeatable. Default: all.",
)
@click.option(
    "--objects", type=click.Choice(["auto", "annotations", "detections", "cells"]), default="auto", show_default=True,
    help="Which objects are the nuclei; auto takes annotations, else cells, else detections.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), help="Passes over the patches. Default 50 when no limit is given.")
@click.option("--max-steps", type=click.IntRange(1), help="Optimiser steps.")
@click.option("--max-time", type=click.FloatRange(0, min_open=True), metavar="MINUTES", help="Minutes of training.")
@click.option(
    "--block",
    type=click.FloatRange(32),
    default=256.0,
    show_default=True,
    metavar="UM",
    help="Side of a spatial block of the split, in µm.",
)
@click.option(
    "--validation",
    type=click.FloatRange(0, 0.9),
    default=0.2,
    show_default=True,
    help="Fraction of the blocks that is held out.",
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Crops a step.")
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    help="Highest learning rate. Default: 0.002 for lite, 0.0001 else.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, split and augmentation.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "mps", "cpu"]),
    default="auto",
    show_default=True,
    help="auto picks CUDA, then MPS, then CPU.",
)
@click.option("--workers", type=click.IntRange(0), help="Processes that prepare crops. Default: by the machine.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@json_option
@verbose_option
def command(as_json: bool, verbose: bool, projects: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Train a HoVer-Net from the typed nuclei of QuPath PROJECTS.

    Nuclei are read from the projects as they stand, so a correction made in QuPath counts. Patches are
    cut at 0.25 µm per pixel, split by spatial blocks, and kept in the run's folder. Unknown nuclei train
    segmentation, not typing.
    """
    set_up_logging(verbose)
    from tqdm import tqdm

    from stqp.training.run import CHECKPOINT, train

    bars: list[Any] = []

    def progress(fraction: float, numbers: dict[str, float]) -> None:
        if not bars:  # the bar's clock starts with the first step, not with the patches
            layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
            style = {"file": sys.stderr, "disable": None, "leave": False, "bar_format": layout}
            bars.append(tqdm(total=1.0, initial=fraction, desc="Training", **style))
        shown = {k: f"{v:.3g}" for k, v in numbers.items() if k in ("loss", "pq", "f_d")}
        bars[0].set_postfix(step=int(numbers["step"]), **shown, refresh=False)
        bars[0].update(fraction - bars[0].n)

    try:
        with progress_bar("Cutting patches", "block") as cut_progress:
            record = train([*projects], out, progress=progress, cut_progress=cut_progress, **options)
    except KeyboardInterrupt:
        if (out / CHECKPOINT).is_file():
            click.echo("\nStopped; what was learnt is kept. Go on with the same command and --resume.", err=True)
        raise
    finally:
        for bar in bars:
            bar.close()
    report(record, as_json, f"run: {out}", f"Next: stqp predict {out} SLIDE_OR_PROJECT")
