"""`stqp predict`."""

import functools
from pathlib import Path
from typing import Any

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

from stqp.errors import InputError, UsageError
from stqp.record import RunRecord

EPILOG = """\b
Examples:
  stqp predict runs/first slide-project
  stqp predict runs/first slide-project --where organ=colon --table --overlay 1
  stqp predict runs/first 'slides/*.svs' --project predicted --cell-expansion 5
  stqp predict runs/first slides/ --out results --table --annotation-store
  stqp predict runs/first --manifest cohort.csv --out results --table --scheduler local --workers 2
  stqp predict runs/first slide-project --held-out
  stqp predict hovernet_fast-pannuke slide.svs --project predicted
  stqp predict official.tar slide.svs --project predicted --classes Epithelial,Inflammatory,Spindle,Other

A MODEL is a run's folder, a file of weights (TIAToolbox's or the official repository's HoVer-Net), or a name
that TIAToolbox has, whose weights are fetched if they are not in its folder yet.

A TARGET is a slide, a folder of slides, a glob, or a QuPath project. Detections of the same model are replaced,
and everything else in a project stays. Where one target fails, the others are done, and the exit code is 3.
stqp status shows how far a run is.
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=PATH)
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--classes", metavar="A,B,...", callback=names_of,
              help="Names of the classes 1, 2, ..., for weights that come without.")  # fmt: skip
@click.option("--manifest", type=PATH, metavar="FILE",
              help="csv or toml of slides: slide, project, entry, name, mpp; others are metadata.")  # fmt: skip
@click.option("--project", type=PATH, help="Project for slides that are in none; made, or added to.")
@click.option("--recursive", is_flag=True, help="Look into folders of folders too.")
@click.option("--entry", "entries", multiple=True, metavar="NAME",
              help="Only this image of the projects, by name (* and ? allowed) or id. Repeatable.")  # fmt: skip
@click.option("--where", multiple=True, metavar="KEY=VALUE",
              help="Only images of the projects with this in their metadata. Repeatable.")  # fmt: skip
@click.option("--tag", "tags", multiple=True, help="Only images of the projects with this tag. Repeatable.")
@click.option("--device", default="auto", show_default=True, metavar="[auto|cuda|mps|cpu]",
              help="auto picks CUDA (all GPUs), then MPS, then CPU; cuda:0,cuda:2 are two GPUs.")  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(1), metavar="N", help="Windows at a time; by default what the device takes."
)
@click.option("--window", type=click.IntRange(64), metavar="PX",
              help="Side of the network's windows; by default what computes least, up to 1024.")  # fmt: skip
@click.option("--mpp", type=click.FloatRange(0, min_open=True), metavar="UM",
              help="µm per px of the slides, in place of what they say.")  # fmt: skip
@click.option("--tissue/--no-tissue", default=True, show_default=True, help="Skip glass.")
@click.option("--within", metavar="NAME",
              help="Look only in the annotations of this class or name, of images of projects.")  # fmt: skip
@click.option("--held-out", is_flag=True, help="Look only where the run held out.")
@click.option("--engine", type=click.Choice(["stqp", "tiatoolbox"]), default="stqp", show_default=True,
              help="tiatoolbox runs the same network in TIAToolbox's engine, for comparison.")  # fmt: skip
@click.option("--cell-expansion", type=click.FloatRange(0, min_open=True), metavar="UM",
              help="Write cells: nuclei that grow so far, until they meet a neighbour.")  # fmt: skip
@click.option("--stain/--no-stain", default=True, show_default=True, help="Measure the haematoxylin of each nucleus.")
@click.option("--out", type=PATH, metavar="DIR",
              help="Folder for files; else they go to the image's folder in the project's stqp folder.")  # fmt: skip
@click.option("--table", is_flag=True, help="Write a parquet table, a row a nucleus.")
@click.option("--geojson", is_flag=True, help="Write GeoJSON that QuPath imports.")
@click.option("--annotation-store", is_flag=True, help="Write TIAToolbox's AnnotationStore (.db), for its viewer.")
@click.option("--overlay", type=click.FloatRange(0, min_open=True), metavar="UM",
              help="Write a transparent OME-TIFF in the colours of the classes, of so many µm per px.")  # fmt: skip
@click.option("--maps", type=PATH, metavar="DIR", help="Write an instance map of each image, for stqp evaluate.")
@click.option("--scheduler", metavar="[local|slurm|ADDRESS]",
              help="Predict slides at the same time: here, on SLURM, or on a running Dask scheduler.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), metavar="N",
              help="Slides at a time. Default: one a GPU, or one for four processors.")  # fmt: skip
@click.option("--slurm", multiple=True, metavar="KEY=VALUE",
              help="Argument of dask_jobqueue.SLURMCluster, as in queue=gpu. Repeatable.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Leave out slides that were done with the same model and options.")
@click.option("--fresh", is_flag=True, help="Do not go on with a slide where an earlier run was interrupted.")
@backend_option
@json_option
@verbose_option
def command(
    model: Path,
    targets: tuple[str, ...],
    classes: list[str] | None,
    manifest: Path | None,
    project: Path | None,
    recursive: bool,
    entries: tuple[str, ...],
    where: tuple[str, ...],
    tags: tuple[str, ...],
    device: str,
    batch_size: int | None,
    window: int | None,
    mpp: float | None,
    tissue: bool,
    within: str | None,
    held_out: bool,
    engine: str,
    cell_expansion: float | None,
    stain: bool,
    out: Path | None,
    table: bool,
    geojson: bool,
    annotation_store: bool,
    overlay: float | None,
    maps: Path | None,
    scheduler: str | None,
    workers: int | None,
    slurm: tuple[str, ...],
    resume: bool,
    fresh: bool,
    backend: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Find and type nuclei on slides with the network of MODEL, into QuPath projects and files."""
    asked: dict[str, Any] = {**locals()}
    set_up_logging(verbose)
    from stqp.devices import pick_devices
    from stqp.inference.one import Settings
    from stqp.inference.run import predict_targets
    from stqp.inference.scheduling import Scheduler
    from stqp.inference.targets import Selection
    from stqp.qupath.backends import check_backend

    check_backend(backend)
    if scheduler is None and (workers or slurm):
        raise UsageError("--workers and --slurm need --scheduler")
    where_to = None if scheduler is None else Scheduler(scheduler, workers, _options(slurm))
    if where_to is None:  # workers elsewhere have devices of their own
        device = ",".join(pick_devices(device))
    record, failed = predict_targets(
        functools.partial(_load, model, device, window, classes),
        targets,
        Settings(
            mpp=mpp,
            batch_size=batch_size,
            tissue=tissue,
            within=within,
            fresh=fresh,
            engine=engine,
            cell_expansion=cell_expansion,
            stain=stain,
            geojson=geojson,
            table=table,
            annotation_store=annotation_store,
            overlay=overlay,
            out=out,
            maps=maps,
            backend=backend,
        ),
        manifest=manifest,
        project=project,
        selection=Selection.parse(entries, where, tags),
        recursive=recursive,
        held_out=model if held_out else None,
        resume=resume,
        scheduler=where_to,
        bar=lambda name: progress_bar(name, "step"),
        record=RunRecord("predict", {**asked, "device": device}),
    )
    places = {image["project"] or out for image in record.results["images"]} | ({out} if out else set())
    report(record, as_json, *(f"written to {path}" for path in sorted(map(str, places))))
    if failed:
        raise InputError(f"{len(failed)} of the targets failed: " + "; ".join(failed))


def _load(model: Path, device: str, window: int | None, classes: list[str] | None) -> list[Any]:
    """Load the network, once for each device; a worker does it too."""
    from stqp.devices import pick_devices
    from stqp.inference.model import load_predictor

    return [load_predictor(model, name, window, classes) for name in pick_devices(device)]


def _options(texts: tuple[str, ...]) -> dict[str, str | int]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (_, sign, _) in zip(texts, pairs, strict=True) if not sign]:
        raise UsageError(f"expected KEY=VALUE with --slurm, found {wrong[0]!r}")
    return {key.strip(): int(value) if value.strip().isdigit() else value.strip() for key, _, value in pairs}
