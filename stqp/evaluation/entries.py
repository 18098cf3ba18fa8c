"""Predicted nuclei against the truth, both in QuPath projects."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError
from stqp.evaluation import overlap
from stqp.evaluation.evaluate import MPP, score_tables
from stqp.inference.held_out import held_out_boxes
from stqp.inference.writing import SOURCE
from stqp.patches.nuclei import Nuclei, read_nuclei
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.project import ProjectEntry, QuPathProject
from stqp.taxonomy import UNKNOWN

logger = logging.getLogger(__name__)
KINDS = ("auto", "annotations", "detections", "cells")
SEPARATOR = "::"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Target:
    """A project, or one of its images.

    Attributes
    ----------
    project : Path
    entry : str or None
        Name or id of the image; all images when None.
    """

    project: Path
    entry: str | None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``PROJECT`` or ``PROJECT::ENTRY``."""
        path, _, entry = text.partition(SEPARATOR)
        return cls(Path(path), entry or None)


def is_project_text(text: str) -> bool:
    """Whether a text names a project (or an image of one) rather than a folder of maps."""
    path = Path(text.partition(SEPARATOR)[0])
    return SEPARATOR in text or path.suffix == ".qpproj" or (path.is_dir() and any(path.glob("*.qpproj")))


def evaluate_entries(
    true: str,
    pred: str,
    *,
    true_kind: str = "auto",
    pred_kind: str = "auto",
    model: str | None = None,
    held_out: Path | None = None,
    mpp: float | None = None,
    bootstrap: int = 1000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the predicted nuclei of QuPath projects.

    Nuclei are drawn at the image's pixels (finer where those are coarser than 0.25 µm), a later one over an
    earlier one. Where the truth comes from an ST run, only what the run covered is scored.

    Parameters
    ----------
    true, pred
        ``PROJECT`` or ``PROJECT::ENTRY``; may be the same. Images are matched by name, or, when both name one
        image, with each other.
    true_kind, pred_kind
        ``annotations``, ``detections``, ``cells``, or ``auto``: for the truth the first of annotations, cells
        and detections that no network wrote; for the prediction what a network wrote, else detections, cells
        and annotations.
    model
        Name of the run whose predictions count, where an image has those of several.
    held_out
        A training run: only nuclei whose centres lie in its held-out boxes count, and, unless `model` is
        given, only its own predictions.
    mpp
        µm per px, for images that do not say.
    bootstrap
        Resamples for the intervals.
    progress
        Called with the images done and their number.

    Returns
    -------
    dict
        As `scores.summarise`, with ``mpp`` by image, and ``skipped``.

    Raises
    ------
    InputError
        When an image, its nuclei or its µm per px are missing.
    """
    targets = Target.parse(true), Target.parse(pred)
    held = None if held_out is None else held_out_boxes(held_out)
    skipped: dict[str, int] = {}
    tables: dict[str, tuple[overlap.Overlap, list[str], list[str]]] = {}
    resolutions: dict[str, float] = {}
    with QuPathProject.open(targets[0].project, "r") as first, QuPathProject.open(targets[1].project, "r") as second:
        pairs = _pair(first, second, targets, None if held is None else set(held))
        for done, (a, b) in enumerate(pairs):
            step = a.mpp or b.mpp or mpp
            if not step:
                raise InputError(f"the image {a.name} does not say its µm per pixel; give it with --mpp")
            truth = read_nuclei(a, a.read_objects(), step, true_kind)
            for reason, number in truth.skipped.items():
                skipped[reason] = skipped.get(reason, 0) + number
            if not len(truth.polygons):
                skipped["images without true nuclei"] = skipped.get("images without true nuclei", 0) + 1
                continue
            found = _predicted(b, step, pred_kind, model, same=a.name == b.name and targets[0] == targets[1])
            scale = max(1.0, step / MPP)
            table = overlap.from_polygons(
                truth.polygons, found.polygons, np.zeros(len(truth.polygons)), np.zeros(len(found.polygons)), scale
            )
            if truth.coverage is not None:
                outside = ~_covered(table.pred_xy, truth.coverage)
                number = int(outside.sum())
                if number:
                    reason = "predicted nuclei outside of what the ST run covered, or of the regions drawn"
                    skipped[reason] = skipped.get(reason, 0) + number
                inside = _covered(table.true_xy, truth.coverage)
                if number := int((~inside).sum()):
                    reason = "true nuclei outside of the regions drawn"
                    skipped[reason] = skipped.get(reason, 0) + number
                table = table.select(inside, ~outside)
            if held is not None:
                table = table.within(held[a.name])
            # ids are positions + 1 of the polygons that keep a pixel
            true_names = truth.classes[table.true_ids - 1].tolist()
            tables[a.name] = (table, true_names, found.classes[table.pred_ids - 1].tolist())
            resolutions[a.name] = step
            if progress:
                progress(done + 1, len(pairs))
    if not tables:
        raise InputError(f"no image of {targets[0].project} has true nuclei to score against; see --true-kind")
    return {**score_tables(tables, resolutions, bootstrap), "skipped": skipped}


def _pair(
    first: QuPathProject, second: QuPathProject, targets: tuple[Target, Target], held: set[str] | None
) -> list[tuple[ProjectEntry, ProjectEntry]]:
    a = [first.entry(targets[0].entry)] if targets[0].entry else [*first.entries]
    b = [second.entry(targets[1].entry)] if targets[1].entry else [*second.entries]
    if held is not None:
        a = [entry for entry in a if entry.name in held]
        if not a:
            raise InputError(f"no image of {targets[0].project} was held out; those are {', '.join(sorted(held))}")
    if targets[0].entry and targets[1].entry:
        return [(a[0], b[0])]
    by_name = {entry.name: entry for entry in b}
    missing = [entry.name for entry in a if entry.name not in by_name]
    if missing:
        raise InputError(f"{targets[1].project} lacks the image {', '.join(missing[:10])} of {targets[0].project}")
    return [(entry, by_name[entry.name]) for entry in a]


def _predicted(entry: ProjectEntry, mpp: float, kind: str, model: str | None, same: bool) -> Nuclei:
    objects = entry.read_objects()
    source = objects.metadata.get("stqp.source", np.full(len(objects), None, object))
    models = sorted({s.removeprefix(SOURCE) for s in source.tolist() if s and s.startswith(SOURCE)})
    if model is not None and model not in models:
        raise InputError(
            f"the image {entry.name} has no nuclei predicted by {model!r}, but by {', '.join(models) or 'none'}"
        )
    if len(models) > 1 and model is None and kind in ("auto", "detections"):
        raise UsageError(f"the image {entry.name} has nuclei predicted by {', '.join(models)}; choose one with --model")
    if models and kind in ("auto", "detections"):
        mine = source == SOURCE + (model or models[0])
        return _nuclei(objects.take(mine & np.isin(objects.kind, (ObjectKind.DETECTION, ObjectKind.CELL))))
    if kind != "auto":
        return read_nuclei(entry, objects, mpp, kind)
    orders = ("detections", "cells") if same else ("detections", "cells", "annotations")
    for name in orders:
        found = read_nuclei(entry, objects, mpp, name)
        if len(found.polygons):
            return found
    logger.warning("the image %s has no predicted nuclei; all its true nuclei count as missed", entry.name)
    return Nuclei(Polygons.empty(), np.empty(0, object))


def _nuclei(objects: PathObjects) -> Nuclei:
    return Nuclei(objects.polygons, np.array([UNKNOWN if c is None else c for c in objects.classes], object))


def _covered(xy: NDArray[np.float64], coverage: Polygons) -> NDArray[np.bool_]:
    import shapely

    area = shapely.union_all(coverage.to_shapely())
    shapely.prepare(area)
    return np.asarray(shapely.contains_xy(area, xy[:, 0], xy[:, 1]), bool)
