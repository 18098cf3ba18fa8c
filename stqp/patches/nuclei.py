"""Which objects of a project's image are nuclei, and of which class."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.project import ProjectEntry
from stqp.taxonomy import UNKNOWN

LARGEST_UM2 = 2000.0
"""An annotation above this area is a region that somebody drew, not a nucleus (a megakaryocyte's is below)."""
INCLUDING, IGNORED = ("Train", "Region"), "Ignore"
"""Classes of annotations that bound what is used, and that mask what is not, in any case of letters."""


@dataclass
class Nuclei:
    """The nuclei of one image.

    Attributes
    ----------
    polygons : Polygons
        In full-resolution pixels.
    classes : object (n,)
        Class names; `UNKNOWN` where the class is not known.
    skipped : dict
        How many objects were no nuclei, by reason.
    index : int64 (n,)
        Positions among the objects of the image.
    coverage : Polygons or None
        The area to learn from and to score on: what the ST run covered, within what a person marked as Train or
        Region, without what is marked Ignore; None when nothing limits it.
    """

    polygons: Polygons
    classes: NDArray[np.object_]
    skipped: dict[str, int] = field(default_factory=dict)
    index: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    coverage: Polygons | None = None


def read_nuclei(
    entry: ProjectEntry, objects: PathObjects, mpp: float, kind: str = "auto", predictions: bool = False
) -> Nuclei:
    """Read the nuclei of a project's image, as they stand after a person's corrections.

    Parameters
    ----------
    entry
        The image in the project.
    objects
        Its objects.
    mpp
        Its µm per pixel at full resolution.
    kind
        ``annotations``, ``detections``, ``cells``, or ``auto``: the first of annotations, cells and
        detections that holds any nucleus; detections that stqp predicted do not count.
    predictions
        Count them all the same.
    """
    nuclei = select_nuclei(objects, mpp, kind, predictions)
    sample = entry.stqp_folder / "sample.json"
    if sample.is_file():
        try:
            rings = json.loads(sample.read_text(encoding="utf-8"))["coverage"]
        except (ValueError, KeyError) as error:
            raise InputError(f"{sample} has no readable coverage ({error}); import the sample again") from error
        offsets = np.cumsum([0, *map(len, rings)])
        coords = np.concatenate([np.asarray(r, dtype=float) for r in rings]) if rings else np.empty((0, 2))
        nuclei.coverage = Polygons.from_rings(coords, offsets)
    nuclei.coverage = _marked(objects, nuclei.coverage, entry.size)
    return nuclei


def marks(objects: PathObjects) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Annotations that bound what is used, and those that mask what is not; bool (n,) each."""
    areas = (objects.kind == ObjectKind.ANNOTATION) & (np.diff(objects.polygons.geom_offsets) > 0)
    names = np.array([(c or "").lower() for c in objects.classes.tolist()], object)
    return areas & np.isin(names, [n.lower() for n in INCLUDING]), areas & (names == IGNORED.lower())


def _marked(objects: PathObjects, coverage: Polygons | None, size: tuple[int, int] | None) -> Polygons | None:
    """Coverage within the regions that a person drew, as one geometry."""
    import shapely

    included, ignored = marks(objects)
    if not (included.any() or ignored.any()):
        return coverage
    if coverage is not None:
        area = _union(coverage)
    elif size is not None:
        area = shapely.box(0, 0, *size)
    else:
        area = shapely.box(*shapely.total_bounds(objects.polygons.to_shapely()))
    if included.any():
        area = shapely.intersection(area, _union(objects.polygons.take(included)))
    if ignored.any():
        area = shapely.difference(area, _union(objects.polygons.take(ignored)))
    parts = [part for part in shapely.get_parts(area) if part.geom_type == "Polygon" and part.area > 0]
    return Polygons.from_shapely([shapely.MultiPolygon(parts)])


def _union(polygons: Polygons) -> Any:
    import shapely

    return shapely.union_all(shapely.make_valid(polygons.to_shapely()))


def select_nuclei(objects: PathObjects, mpp: float, kind: str = "auto", predictions: bool = False) -> Nuclei:
    """Choose the nuclei among the objects of an image; see `read_nuclei`."""
    masks = _masks(objects, predictions)
    if kind != "auto":
        return _select(objects, mpp, masks[kind], kind == "cells")
    result = Nuclei(Polygons.empty(), np.empty(0, object))
    for name in ("annotations", "cells", "detections"):
        found = _select(objects, mpp, masks[name], name == "cells")
        if len(found.polygons):
            return found
        for reason, number in found.skipped.items():
            result.skipped[reason] = result.skipped.get(reason, 0) + number
    return result


def _masks(objects: PathObjects, predictions: bool) -> dict[str, NDArray[np.bool_]]:
    source = objects.metadata.get("stqp.source")
    predicted = np.zeros(len(objects), bool)
    if source is not None and not predictions:
        predicted = np.array([s is not None and s.startswith("predict:") for s in source], bool)
    return {
        "annotations": objects.kind == ObjectKind.ANNOTATION,
        "detections": (objects.kind == ObjectKind.DETECTION) & ~predicted,
        "cells": (objects.kind == ObjectKind.CELL) & ~predicted,
    }


def _select(objects: PathObjects, mpp: float, mask: NDArray[np.bool_], cells: bool) -> Nuclei:
    chosen = objects.take(mask)
    polygons = chosen.polygons
    if cells and chosen.nuclei is not None:
        polygons = chosen.nuclei  # the cell's own outline is not what HoVer-Net learns
    source = chosen.metadata.get("stqp.source", np.full(len(chosen), None, object))
    classes = np.array([UNKNOWN if c is None else c for c in chosen.classes], object)
    area = polygons.area() * mpp**2
    included, ignored = marks(chosen)
    reasons = {
        "annotations of the class Train, Region or Ignore": included | ignored,
        "objects without an outline": area <= 0,
        f"regions larger than {LARGEST_UM2:g} µm²": area > LARGEST_UM2,
        "objects of an ignored class (its name ends with *)": np.array([str(c).endswith("*") for c in classes], bool),
        "annotations without a class that stqp did not write": (
            (chosen.kind == ObjectKind.ANNOTATION)
            & np.array([c is None for c in chosen.classes], bool)
            & np.array([s is None for s in source], bool)
        ),
    }
    keep = np.ones(len(chosen), bool)
    skipped: dict[str, int] = {}
    for reason, bad in reasons.items():
        if number := int((keep & bad).sum()):
            skipped[reason] = number
        keep &= ~bad
    return Nuclei(polygons.take(keep), classes[keep], skipped, np.flatnonzero(mask)[keep])
