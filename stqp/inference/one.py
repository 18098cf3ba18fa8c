"""One slide: predicted, measured, and written to wherever it is wanted."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stqp.errors import InputError
from stqp.inference.annotation_store import write_annotation_store
from stqp.inference.cells import expand
from stqp.inference.class_overlay import write_overlay
from stqp.inference.detections import Detections
from stqp.inference.engine import predict_slide
from stqp.inference.maps import map_stem, write_map
from stqp.inference.model import Predictor
from stqp.inference.stain import with_haematoxylin
from stqp.inference.table import write_table
from stqp.inference.targets import Job
from stqp.inference.where import Where
from stqp.inference.writing import source_of, to_objects, write_detections
from stqp.locking import when_free
from stqp.polygons import Polygons
from stqp.qupath.backends import DEFAULT_BACKEND, open_project
from stqp.qupath.geojson import write_geojson
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord
from stqp.slides import Slide, open_slide
from stqp.taxonomy import RGB, color_of

logger = logging.getLogger(__name__)
ENGINES = ("stqp", "tiatoolbox")
_LARGEST_MAP = 2**31  # px; an instance map in full resolution is held in memory
_PATIENCE = 600.0  # s that a project may be written by others

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How slides are predicted, and what is written of each.

    Attributes
    ----------
    mpp : float or None
        µm per px, in place of what slides and projects say.
    batch_size : int or None
        Windows at a time; chosen for the device when None.
    tissue : bool
        Skip what has no tissue.
    within : str or None
        Look only in the annotations of this class or name, of images of projects; without regard to tissue.
    workers : int or None
        Threads that post-process; as many as there are cores, up to eight, when None.
    fresh : bool
        Do not go on where an earlier run ended.
    engine : {"stqp", "tiatoolbox"}
    cell_expansion : float or None
        Write cells: µm that a nucleus grows, until it meets another.
    stain : bool
        Measure the haematoxylin of each nucleus.
    geojson, table, annotation_store : bool
        Write these files.
    overlay : float or None
        Write an overlay of so many µm per px.
    out : Path or None
        Folder of the files; for images of projects their folders in the project when None.
    maps : Path or None
        Folder for instance maps in full resolution.
    backend : {"native", "paquo"}
        What writes the projects, see `stqp.qupath.backends`.
    """

    mpp: float | None = None
    batch_size: int | None = None
    tissue: bool = True
    within: str | None = None
    workers: int | None = None
    fresh: bool = False
    engine: str = "stqp"
    cell_expansion: float | None = None
    stain: bool = True
    geojson: bool = False
    table: bool = False
    annotation_store: bool = False
    overlay: float | None = None
    out: Path | None = None
    maps: Path | None = None
    backend: str = DEFAULT_BACKEND

    @property
    def writes_files(self) -> bool:
        """Whether files are written beside the detections in a project."""
        return self.geojson or self.table or self.annotation_store or self.overlay is not None or self.maps is not None

    def fingerprint(self, model: str, job: Job) -> str:
        """Text that is another one where the result could be."""
        asked = {**asdict(self), "batch_size": None, "backend": None, "workers": None, "fresh": None}
        asked["model"] = model
        asked |= {"project": job.project, "entry": job.entry, "mpp": job.mpp, "boxes": job.boxes}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]


def predict_one(
    job: Job, predictors: Sequence[Predictor], settings: Settings, progress: Progress | None = None
) -> dict[str, Any]:
    """Predict a slide and write what was found.

    Parameters
    ----------
    job
        The slide.
    predictors
        The network, once for each device.
    settings
        How, and what to write.
    progress
        Called with the steps done and their number.

    Returns
    -------
    dict
        In JSON's types: image, slide, project, nuclei, classes, counts, files, warnings, seconds.

    Raises
    ------
    InputError
        When the slide is missing, broken, or not what the project says.
    EnvironmentProblem
        When the disk is full, or another process does not let go of the project.
    """
    if job.slide is None or (job.entry is not None and not job.slide.exists()):
        raise InputError(
            f"the project {job.project} names an image file that is not there"
            f"{'' if job.slide is None else f' ({job.slide})'}; stqp project relink finds images that moved"
        )
    predictor, began = predictors[0], time.time()
    where = Where(settings.tissue and settings.within is None, job.boxes, _drawn(job, settings.within))
    one = RunRecord("predict", {
        "image": job.name, "model": predictor.name, "window": predictor.input_size, "boxes": job.boxes,
        **asdict(settings),
    })  # fmt: skip
    one.add_input(job.slide)
    with open_slide(job.slide, mpp=settings.mpp or job.mpp) as slide:
        if job.size is not None and job.size != (slide.width, slide.height):
            raise InputError(
                f"the project says that {job.name} has {job.size[0]} x {job.size[1]} px, but {job.slide} has "
                f"{slide.width} x {slide.height}"
            )
        found = _found(job, slide, predictors, where, settings, progress)
        if settings.stain and len(found):
            found, stains = with_haematoxylin(found, slide)
            one.results["stains"] = asdict(stains)
        if settings.cell_expansion:
            grown = expand(
                found.polygons, settings.cell_expansion / found.mpp, found.pixel, (slide.width, slide.height)
            )
            found = replace(found, cells=grown)
        counts = {**found.counts}
        colors = colors_of(predictor)
        if job.project is not None:
            objects, folder, written = _into_project(job, slide, found, where, predictor.name, colors, settings, one)
            counts |= written
            stem = f"predict-{map_stem(predictor.name)}"
        else:
            objects, folder, stem = to_objects(found, job.name, predictor.name, colors), job.home, job.stem
        if settings.out is not None:
            folder, stem = settings.out, job.stem
        files = _write_files(folder, stem, job, found, objects, (slide.width, slide.height), predictor, settings)
        for name, number in counts.items():
            one.count(name, number)
        classes = class_counts(found)
        one.results.update(source=source_of(predictor.name), classes=classes, mpp=found.mpp, files=files)
        one.write(folder / f"{stem}.json")
        shutil.rmtree(job.unfinished, ignore_errors=True)  # not before all is written
    return {
        "image": job.name,
        "slide": str(job.slide),
        "project": None if job.project is None else str(job.project),
        "nuclei": len(found),
        "classes": classes,
        "counts": counts,
        "files": files,
        "warnings": one.warnings,
        "seconds": round(time.time() - began, 2),
    }


def _drawn(job: Job, within: str | None) -> Polygons | None:
    """Annotations in which nuclei are looked for."""
    if within is None:
        return None
    if job.project is None or job.entry is None:
        raise InputError(f"nuclei are to be looked for in annotations ({within}), but the slide is in no project")
    with open_project(job.project, "r") as project:
        objects = project.entry(job.entry).read_objects()
    names = [
        within in (name, None if kind is None else kind.removesuffix("*"), kind)
        for name, kind in zip(objects.names.tolist(), objects.classes.tolist(), strict=True)
    ]
    drawn = np.array(names, bool) & (objects.kind == ObjectKind.ANNOTATION)
    drawn &= np.diff(objects.polygons.geom_offsets) > 0
    if not drawn.any():
        raise InputError(f"the image has no annotation of the class or name {within!r} with an area")
    return objects.polygons.take(drawn)


def _found(
    job: Job,
    slide: Slide,
    predictors: Sequence[Predictor],
    where: Where,
    settings: Settings,
    progress: Progress | None,
) -> Detections:
    if settings.engine == "tiatoolbox":
        from stqp.inference.tiatoolbox_engine import predict_with_tiatoolbox

        found = predict_with_tiatoolbox(slide, predictors[0], batch_size=settings.batch_size or 4, tissue=where.tissue)
        return found if where.everywhere else found.take(where.holds(found.polygons.centroid()))
    return predict_slide(
        slide,
        predictors,
        batch_size=settings.batch_size,
        tissue=where.tissue,
        boxes=where.boxes,
        within=where.within,
        folder=job.unfinished,
        fresh=settings.fresh,
        keep=True,
        workers=settings.workers,
        progress=progress,
    )


def colors_of(predictor: Predictor) -> dict[str, RGB]:
    """Colours of a model's classes: its own where it has any, else the taxonomy's."""
    own: Mapping[str, Any] = getattr(predictor, "colors", None) or {}
    return {name: tuple(own.get(name, color_of(name))) for name in predictor.classes}


def class_counts(found: Detections) -> dict[str, int]:
    """Nuclei of each class that has any, Unknown for those without."""
    number = np.bincount(found.class_ids, minlength=len(found.classes) + 1)
    return {name: int(n) for name, n in zip(["Unknown", *found.classes], number, strict=True) if n}


def open_when_free(path: Path, mode: str, backend: str) -> QuPathProject:
    """Open a project as soon as nobody else writes it.

    Raises
    ------
    FolderBusy
        When it takes longer than ten minutes.
    """
    return when_free(lambda: open_project(path, mode, backend), _PATIENCE)


def _into_project(
    job: Job,
    slide: Slide,
    found: Detections,
    where: Where,
    run_name: str,
    colors: Mapping[str, RGB],
    settings: Settings,
    one: RunRecord,
) -> tuple[PathObjects, Path, dict[str, int]]:
    assert job.project is not None
    # open for the writing only: the project is free, for QuPath and others, while the network works
    with open_when_free(job.project, "r+", settings.backend) as project:
        present = project.classes
        if job.entry is None:
            entry = project.add_image(
                slide, None if job.slide is None or job.name == job.slide.name else job.name, job.metadata
            )
        else:
            entry = project.entry(job.entry)
        project.add_classes(colors)
        objects, counts = write_detections(entry, found, run_name, None if where.everywhere else where, colors)
        strange = [name for name in found.classes if name not in present]
        if present and strange:
            one.warn(
                f"the model's classes {', '.join(strange)} are none of the project's ({', '.join(present)}); "
                f"they were added to {job.project}"
            )
        return objects, entry.stqp_folder, counts


def _write_files(
    folder: Path,
    stem: str,
    job: Job,
    found: Detections,
    objects: PathObjects,
    size: tuple[int, int],
    predictor: Predictor,
    settings: Settings,
) -> dict[str, str]:
    colors = colors_of(predictor)
    write: dict[str, tuple[Path, Callable[[Path], Any]]] = {}
    if settings.geojson:
        write["geojson"] = folder / f"{stem}.geojson", functools.partial(write_geojson, objects=objects)
    if settings.table:
        write["table"] = (
            folder / f"{stem}.parquet",
            lambda path: write_table(path, found, objects.ids, job.name, predictor.name, colors),
        )
    if settings.annotation_store:
        write["annotation store"] = folder / f"{stem}.db", lambda path: write_annotation_store(path, found, objects.ids)
    if settings.overlay is not None:
        mpp = settings.overlay
        write["overlay"] = (
            folder / f"{stem}.overlay.ome.tif",
            lambda path: write_overlay(path, found, size, colors, mpp),
        )
    if settings.maps is not None:
        write["map"] = settings.maps / f"{job.stem}.npz", lambda path: _write_map(path, found, size)
    for path, writer in write.values():
        writer(path)
    return {name: str(path) for name, (path, _) in write.items()}


def _write_map(path: Path, found: Detections, size: tuple[int, int]) -> None:
    if size[0] * size[1] > _LARGEST_MAP:
        raise InputError(
            f"an instance map of {size[0]} x {size[1]} px is too large; evaluate the project instead of maps"
        )
    ids = found.class_ids
    probability = np.take_along_axis(found.class_prob, ids[:, None], 1)[:, 0]
    write_map(path, found.instance_map(*size), ids, found.classes, probability, found.mpp)
