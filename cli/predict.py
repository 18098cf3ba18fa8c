"""`stqp predict`."""

from pathlib import Path

import click
from stqp_cli.common import (
    PATH,
    backend_option,
    json_option,
    names_of,
    progress_bar,
    report,
    set_up_logging,
    verbose_option,
)

from stqp.errors import InputError
from stqp.record import RunRecord

EPILOG = """\b
Examples:
  stqp predict runs/first slide-project
  stqp predict runs/first slide.svs --project predicted
  stqp predict runs/first slides/ --project predicted --device cuda --batch-size 16
  stqp predict runs/first slide-project --held-out
  stqp predict hovernet_fast-pannuke slide.svs --project predicted
  stqp predict official.tar slide.svs --project predicted --classes Epithelial,Inflammatory,Spindle,Other

A MODEL is a run's folder, a file of weights (TIAToolbox's or the official repository's HoVer-Net), or a name
that TIAToolbox has, whose weights are fetched if they are not in its folder yet.

A TARGET is a slide, a folder of slides, or a QuPath project. Detections of the same run are replaced, and
everything else in a project stays. Where one target fails, the others are done, and the exit code is 3.
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=PATH)
@click.argument("targets", nargs=-1, required=True, type=PATH, metavar="TARGET...")
@click.option("--classes", metavar="A,B,...", callback=names_of,
              help="Names of the classes 1, 2, ..., for weights that come without.")  # fmt: skip
@click.option("--project", type=PATH, help="Project for slides that are in none; made, or added to.")
@click.option("--entry", "entries", multiple=True, metavar="NAME",
              help="Only this image of the projects. Repeatable.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, metavar="[auto|cuda|mps|cpu]",
              help="auto picks CUDA, then MPS, then CPU.")  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(1), metavar="N", help="Windows at a time. Default 8 on a GPU, else 2."
)
@click.option("--window", type=click.IntRange(64), metavar="PX",
              help="Side of the network's window; larger ones waste less. Default 512 for fast and lite.")  # fmt: skip
@click.option("--mpp", type=click.FloatRange(0, min_open=True), metavar="UM",
              help="µm per px of the slides, in place of what they say.")  # fmt: skip
@click.option("--tissue/--no-tissue", default=True, show_default=True, help="Skip glass.")
@click.option("--held-out", is_flag=True, help="Look only where the run held out.")
@click.option("--geojson", is_flag=True, help="Write the detections as GeoJSON too, in the project's stqp folder.")
@click.option("--maps", type=PATH, metavar="DIR", help="Write an instance map of each image, for stqp evaluate.")
@backend_option
@json_option
@verbose_option
def command(
    model: Path,
    targets: tuple[Path, ...],
    classes: list[str] | None,
    project: Path | None,
    entries: tuple[str, ...],
    device: str,
    batch_size: int | None,
    window: int | None,
    mpp: float | None,
    tissue: bool,
    held_out: bool,
    geojson: bool,
    maps: Path | None,
    backend: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Find and type nuclei on slides with the network of MODEL, into QuPath projects."""
    set_up_logging(verbose)
    from stqp.devices import pick_device
    from stqp.inference.model import load_predictor
    from stqp.inference.run import predict_targets
    from stqp.qupath.backends import check_backend

    check_backend(backend)
    device = pick_device(device)
    record = RunRecord("predict", {
        "model": model, "targets": [*targets], "classes": classes, "project": project, "entry": [*entries],
        "device": device, "batch_size": batch_size, "window": window, "mpp": mpp, "tissue": tissue,
        "held_out": held_out, "geojson": geojson, "maps": maps, "backend": backend,
    })  # fmt: skip
    predictor = load_predictor(model, device, window, classes)
    record, failed = predict_targets(
        predictor,
        targets,
        project=project,
        entries=entries,
        held_out=model if held_out else None,
        mpp=mpp,
        batch_size=batch_size or (2 if device == "cpu" else 8),
        tissue=tissue,
        geojson=geojson,
        maps=maps,
        backend=backend,
        bar=lambda name: progress_bar(name, "step"),
        record=record,
    )
    projects = sorted({image["project"] for image in record.results["images"]})
    report(record, as_json, *(f"written to {path}" for path in projects))
    if failed:
        raise InputError(f"{len(failed)} of the targets failed: " + "; ".join(failed))
