"""`stqp model`: what a network is, networks for other programs, and the report of a training run."""

from pathlib import Path

import click
from stqp_cli.common import PATH, json_option, names_of, report, set_up_logging, verbose_option

_MODEL = (
    "A MODEL is a run's folder, a file of weights (TIAToolbox's or the official repository's HoVer-Net), or a name "
    "that TIAToolbox has, such as hovernet_fast-pannuke."
)

classes_option = click.option(
    "--classes", metavar="A,B,...", callback=names_of, help="Names of the classes 1, 2, ..., for weights without names."
)


@click.group(
    epilog="\b\nExamples:\n  stqp model info runs/first\n  stqp model export runs/first --to onnx --out exported\n"
    "  stqp model report runs/first\n",
)
def command() -> None:
    """Tell what a network is, and write it for other programs."""


@command.command(
    "info",
    epilog="\b\nExamples:\n  stqp model info runs/first\n  stqp model info hovernet_fast-pannuke.pth --json\n\n"
    + _MODEL,
)
@click.argument("model", type=PATH)
@classes_option
@json_option
@verbose_option
def info_command(model: Path, classes: list[str] | None, as_json: bool, verbose: bool) -> None:
    """Tell what MODEL is, what it learnt from, how good it is, and what it takes to run it."""
    set_up_logging(verbose)
    from stqp.inference.model_info import model_info

    report(model_info(model, classes), as_json)


@command.command(
    "export",
    epilog="\b\nExamples:\n  stqp model export runs/first --to tiatoolbox --out first-tiatoolbox\n"
    "  stqp model export runs/first --to onnx --out first-onnx\n"
    "  stqp model export official.tar --to torchscript --out scripted --classes Epithelial,Inflammatory\n\n"
    "tiatoolbox writes model.pth, ioconfig.yaml and run_tiatoolbox.py, which run without stqp. TorchScript and "
    "ONNX take RGB images, float NCHW 0-255, and give the logits np and hv and, of a network that types, tp; "
    "batches of any size, and, but for original, windows whose sides are multiples of 16 px from 256 px. What is "
    "written is run and held against the network. " + _MODEL,
)
@click.argument("model", type=PATH)
@click.option("--to", required=True, type=click.Choice(["tiatoolbox", "torchscript", "onnx"]), help="Who shall run it.")
@click.option("--out", required=True, type=PATH, help="Folder to write.")
@classes_option
@click.option("--force", is_flag=True, help="Write into a folder that holds files, over those of the same names.")
@json_option
@verbose_option
def export_command(
    model: Path, to: str, out: Path, classes: list[str] | None, force: bool, as_json: bool, verbose: bool
) -> None:
    """Write MODEL for another program, and check that it gives the same there."""
    set_up_logging(verbose)
    from stqp.inference.export import export_model

    report(export_model(model, to, out, classes, force), as_json, f"written to {out}")


@command.command(
    "report",
    epilog="\b\nExamples:\n  stqp model report runs/first\n  stqp model report runs/first --out a.html --patches 40",
)
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, help="The HTML file. Default: report.html in the run's folder.")
@click.option(
    "--patches", type=click.IntRange(1), metavar="N", help="At most so many held-out patches. Default: by the machine."
)
@click.option(
    "--device", default="auto", show_default=True, metavar="[auto|cuda|mps|cpu]", help="Where the network runs."
)
@json_option
@verbose_option
def report_command(run: Path, out: Path | None, patches: int | None, device: str, as_json: bool, verbose: bool) -> None:
    """Write the report of a training RUN: its course, its scores, and patches beside their truth."""
    set_up_logging(verbose)
    from stqp_cli.common import progress_bar

    from stqp.report.training import report_run

    with progress_bar("Held-out patches", "patch") as progress:
        record = report_run(run, out, patches, device, progress)
    report(record, as_json, f"written to {record.results['report']}")
