"""`stqp predict` as a function: slides, folders of slides and projects in, detections in projects out."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stqp.errors import InputError, UsageError
from stqp.inference.detections import Detections
from stqp.inference.engine import predict_slide, slide_mpp
from stqp.inference.held_out import held_out_boxes
from stqp.inference.maps import map_stem, write_map
from stqp.inference.model import Predictor
from stqp.inference.writing import source_of, write_detections
from stqp.qupath.backends import DEFAULT_BACKEND, check_backend, open_project
from stqp.qupath.geojson import write_geojson
from stqp.qupath.project import PROJECT_NAME
from stqp.record import RunRecord
from stqp.slides import Slide, is_slide, open_slide

logger = logging.getLogger(__name__)
_LARGEST_MAP = 2**31  # px; an instance map in full resolution is held in memory

Progress = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Job:
    """One slide to predict, and the project image that its nuclei go to.

    Attributes
    ----------
    name : str
    slide : Path or None
        None when the project's image file is not found.
    project : Path
    entry : int or None
        Id of the image in the project; None for a slide that is to be added.
    mpp : float or None
        µm per px that the project says.
    size : (int, int) or None
        Width and height that the project says.
    boxes : list or None
        Where to look; everywhere when None.
    """

    name: str
    slide: Path | None
    project: Path
    entry: int | None
    mpp: float | None = None
    size: tuple[int, int] | None = None
    boxes: list[list[float]] | None = None


def predict_targets(
    predictor: Predictor,
    targets: Sequence[Path],
    *,
    project: Path | None = None,
    entries: Sequence[str] = (),
    held_out: Path | None = None,
    mpp: float | None = None,
    batch_size: int = 4,
    tissue: bool = True,
    geojson: bool = False,
    maps: Path | None = None,
    backend: str = DEFAULT_BACKEND,
    bar: Bar | None = None,
    record: RunRecord | None = None,
) -> tuple[RunRecord, list[str]]:
    """Predict slides into QuPath projects; one that fails does not stop the others.

    Parameters
    ----------
    predictor
        The network.
    targets
        Slides, folders of slides, and projects.
    project
        Project for the slides; made when it does not exist. Targets that are projects get their own.
    entries
        Names or ids of the images of projects to predict; all when empty.
    held_out
        A training run: look only where it held out, with a margin around.
    mpp
        µm per px, in place of what slides and projects say.
    batch_size
        Windows at a time.
    tissue
        Skip what has no tissue.
    geojson
        Write the detections as GeoJSON too, beside the record.
    maps
        Folder for instance maps in full resolution.
    backend : {"native", "paquo"}
        What writes the projects, see `stqp.qupath.backends`.
    bar
        Makes a progress callback for a named slide.
    record
        Added to when given.

    Returns
    -------
    record : RunRecord
        ``results["images"]`` tells of each image.
    failed : list of str
        What went wrong, one sentence for each failed target.

    Raises
    ------
    InputError
        When there is nothing to predict.
    EnvironmentProblem
        When the machine lacks something; the slides done before stay written.
    """
    check_backend(backend)
    record = record or RunRecord("predict", {"targets": [*targets]})
    failed: list[str] = []
    jobs = plan(targets, project, entries, failed)
    if held_out is not None:
        jobs = _held_out(jobs, held_out, record)
    results: list[dict[str, Any]] = []
    total = 0
    stems: set[str] = set()
    for job in jobs:
        try:
            stem = _unique(map_stem(job.name), stems)
            with bar(job.name) if bar else nullcontext() as progress:
                one = _predict(
                    job, predictor, mpp=mpp, batch_size=batch_size, tissue=tissue, geojson=geojson,
                    map_file=maps / f"{stem}.npz" if maps else None, backend=backend, progress=progress,
                )  # fmt: skip
        except (InputError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            failed.append(f"{job.name}: {error}")
            logger.error("%s", failed[-1])
            continue
        results.append(one)
        total += one["nuclei"]
        logger.info("%s: %d nuclei", job.name, one["nuclei"])
    record.count("images predicted", len(results))
    record.count("nuclei", total)
    classes: dict[str, int] = {}
    for one in results:
        for name, number in one["classes"].items():
            classes[name] = classes.get(name, 0) + number
        record.skip("windows without tissue", one["counts"]["windows without tissue"])
    for name, number in classes.items():
        record.count(f"nuclei {name}", number)
    record.skip("targets that failed", len(failed))
    record.results["images"] = results
    record.results["failed"] = failed
    return record, failed


def plan(targets: Sequence[Path], project: Path | None, entries: Sequence[str], failed: list[str]) -> list[Job]:
    """Make the list of slides to predict; what cannot be opened is added to `failed`.

    Raises
    ------
    UsageError
        When a slide has no project to go to.
    InputError
        When a chosen image is in no project, or there is nothing to predict.
    """
    jobs: list[Job] = []
    wanted, met = {str(e) for e in entries}, set()
    for target in targets:
        try:
            if target.suffix == ".qpproj" or (target / PROJECT_NAME).is_file():
                folder = target.parent if target.suffix == ".qpproj" else target
                with open_project(target, "r") as opened:
                    for entry in opened.entries:
                        if wanted and not wanted & {entry.name, str(entry.id)}:
                            continue
                        met |= wanted & {entry.name, str(entry.id)}
                        jobs.append(Job(entry.name, entry.image_path, folder, entry.id, entry.mpp, entry.size))
                continue
            slides = _slides(target)
        except InputError as error:
            failed.append(f"{target}: {error}")
            logger.error("%s", failed[-1])
            continue
        if project is None:
            raise UsageError(f"{target} is no QuPath project; say with --project where its nuclei are to go")
        jobs += [Job(path.name, path, project, None) for path in slides]
    if wanted - met:
        there = ", ".join(sorted({job.name for job in jobs if job.entry is not None})) or "none of them"
        raise InputError(f"no project has the image {', '.join(sorted(wanted - met))}; found {there}")
    distinct = {(job.slide.resolve() if job.slide else job.name, job.project, job.entry): job for job in jobs}
    if not distinct and not failed:
        raise InputError(f"there is nothing to predict in {', '.join(map(str, targets))}")
    return [*distinct.values()]


def _slides(target: Path) -> list[Path]:
    if target.is_dir():
        slides = sorted(p for p in target.iterdir() if p.is_file() and is_slide(p) and not p.name.startswith("."))
        if not slides:
            raise InputError("expected a QuPath project or a folder with slides, found neither")
        return slides
    if not target.exists():
        raise InputError("expected a slide, a folder of slides or a QuPath project, found nothing there")
    return [target]


def _held_out(jobs: Sequence[Job], run: Path, record: RunRecord) -> list[Job]:
    boxes = held_out_boxes(run)
    kept = [replace(job, boxes=boxes[job.name]) for job in jobs if job.name in boxes]
    record.skip("images that the run did not hold out", len(jobs) - len(kept))
    if not kept and jobs:
        raise InputError(f"none of the images was held out by {run}; it held out {', '.join(sorted(boxes))}")
    return kept


def _predict(
    job: Job,
    predictor: Predictor,
    *,
    mpp: float | None,
    batch_size: int,
    tissue: bool,
    geojson: bool,
    map_file: Path | None,
    backend: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Predict one slide and write what was found."""
    if job.slide is None or (job.entry is not None and not job.slide.is_file()):
        raise InputError(f"the project {job.project} names an image file that is not there; set it right in QuPath")
    one = RunRecord("predict", {
        "image": job.name, "run": predictor.name, "window": predictor.input_size, "mpp": mpp,
        "tissue": tissue, "boxes": job.boxes,
    })  # fmt: skip
    one.add_input(job.slide)
    with open_slide(job.slide, mpp=mpp or job.mpp) as slide:
        if job.size is not None and job.size != (slide.width, slide.height):
            raise InputError(
                f"the project says that {job.name} has {job.size[0]} x {job.size[1]} px, but {job.slide} has "
                f"{slide.width} x {slide.height}"
            )
        slide_mpp(slide)
        found = predict_slide(
            slide, predictor, batch_size=batch_size, tissue=tissue, boxes=job.boxes, progress=progress
        )
        counts = _write(job, slide, found, predictor.name, one, geojson, backend)
        if map_file is not None:
            _write_map(map_file, found, slide)
    return {
        "image": job.name,
        "slide": str(job.slide),
        "project": str(job.project),
        "nuclei": len(found),
        "classes": _class_counts(found),
        "counts": {**found.counts, **counts},
        "map": str(map_file) if map_file else None,
    }


def _write(
    job: Job, slide: Slide, found: Detections, run_name: str, one: RunRecord, geojson: bool, backend: str
) -> dict[str, int]:
    # open for the writing only: the project is free, for QuPath and others, while the network works
    with open_project(job.project, "a" if job.entry is None else "r+", backend) as project:
        entry = project.add_image(slide) if job.entry is None else project.entry(job.entry)
        objects, counts = write_detections(entry, found, run_name, job.boxes)
        folder = entry.stqp_folder
        beside = f"predict-{map_stem(run_name)}"
        for name, number in {**found.counts, **counts}.items():
            one.count(name, number)
        one.results.update({"source": source_of(run_name), "classes": _class_counts(found), "mpp": found.mpp})
        if geojson:
            write_geojson(folder / f"{beside}.geojson", objects)
        one.write(folder / f"{beside}.json")
    return counts


def _write_map(path: Path, found: Detections, slide: Slide) -> None:
    if slide.width * slide.height > _LARGEST_MAP:
        raise InputError(
            f"an instance map of {slide.width} x {slide.height} px is too large; evaluate the project instead of maps"
        )
    write_map(path, found.instance_map(slide.width, slide.height), found.class_ids, found.classes)


def _class_counts(found: Detections) -> dict[str, int]:
    number = np.bincount(found.class_ids, minlength=len(found.classes) + 1)
    return {name: int(n) for name, n in zip(["Unknown", *found.classes], number, strict=True) if n}


def _unique(stem: str, taken: set[str]) -> str:
    name, number = stem, 2
    while name.lower() in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name.lower())
    return name
