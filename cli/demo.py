"""`stqp demo`."""

import sys
from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, set_up_logging, verbose_option

EPILOG = """\b
Examples:
  stqp demo
  stqp demo /tmp/stqp --minutes 5

The folder gets the sample, a QuPath project, a run, and overlay.png. It takes about 4 minutes on 2 CPU cores.
"""


@click.command(epilog=EPILOG)
@click.argument("folder", type=PATH, default=Path("stqp-demo"), metavar="[DIR]")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=3.0, show_default=True, help="Of training.")
@click.option("--size", type=click.IntRange(768), default=2048, show_default=True, help="Side of the H&E in px.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample and the training.")
@click.option("--device", type=click.Choice(["auto", "cuda", "mps", "cpu"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print times and scores as JSON on stdout.")
@verbose_option
def command(
    folder: Path, minutes: float, size: int, seed: int, device: str, as_json: bool, verbose: bool
) -> None:  # fmt: skip
    """Make a small synthetic sample in DIR (stqp-demo) and run the whole chain on it.

    A Xenium run over an H&E-like image becomes a QuPath project of typed nuclei; a small HoVer-Net learns
    from it; its detections on the slide are scored in the blocks that it did not see.
    """
    set_up_logging(verbose)
    import json

    from tqdm import tqdm

    from stqp.demo import run_demo
    from stqp.evaluation.output import lines
    from stqp.files import without_nan

    bars: dict[str, Any] = {}

    def progress(step: str, fraction: float) -> None:
        if step not in bars:
            layout = "  {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
            bars[step] = tqdm(total=1.0, file=sys.stderr, disable=None, leave=False, bar_format=layout)
        bars[step].update(fraction - bars[step].n)
        if fraction >= 1:
            bars[step].close()

    try:
        demo = run_demo(folder, seed, minutes, size, device, progress)
    finally:
        for bar in bars.values():
            bar.close()
    if as_json:
        click.echo(json.dumps(without_nan({"seconds": demo.seconds, "scores": demo.scores}), indent=2))
        return
    click.echo("\nDetections in the blocks that training did not see, against the nuclei of the ST run:\n")
    click.echo("\n".join(lines(demo.scores)))
    click.echo(f"\n{sum(demo.seconds.values()):.0f} seconds; look at {demo.picture}")
    click.echo(f"Open in QuPath:  QuPath -p {demo.project.resolve() / 'project.qpproj'}")
