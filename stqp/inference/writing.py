"""Detections into a QuPath project, beside everything that is there already."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.inference.detections import Detections
from stqp.inference.where import Where
from stqp.qupath.entry import ProjectEntry
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import object_uuids, owned, settled, stamp
from stqp.taxonomy import RGB, color_of

SOURCE = "predict:"


def source_of(run_name: str) -> str:
    """What marks the detections of a training run in a project."""
    return SOURCE + run_name


def to_objects(found: Detections, image: str, run_name: str, colors: Mapping[str, RGB] | None = None) -> PathObjects:
    """Make QuPath detections, or cells where there are outlines of cells, with class, colour and measurements.

    Parameters
    ----------
    found
        The nuclei.
    image
        Name of the image; with the run's name and the nucleus's place it makes the same ids in every run.
    run_name
        Name of the training run.
    colors
        Of the classes, in place of the taxonomy's.
    """
    centre = np.round(found.polygons.centroid(), 3)
    objects = PathObjects.build(
        found.polygons if found.cells is None else found.cells,
        kind=ObjectKind.DETECTION if found.cells is None else ObjectKind.CELL,
        nuclei=None if found.cells is None else found.polygons,
        classes=found.class_names,
        ids=_unique_ids(f"{source_of(run_name)}:{image}", centre),
        probability=found.probability,
        measurements=found.measurements,
        class_colors={name: color_of(name) for name in found.classes} | dict(colors or {}),
    )
    return stamp(objects, source_of(run_name), str(uuid.uuid4()))


def write_detections(
    entry: ProjectEntry,
    found: Detections,
    run_name: str,
    where: Where | None = None,
    colors: Mapping[str, RGB] | None = None,
) -> tuple[PathObjects, dict[str, int]]:
    """Put detections into an image of a project in place of what the same run wrote there before.

    Annotations, the objects of others and of other runs stay. So do this run's detections that a person has
    corrected since; a new detection whose centre lies in such a one is left out.

    Parameters
    ----------
    entry
        The image, in a project open for writing.
    found
        The nuclei.
    run_name
        Name of the training run.
    where
        Where was looked; the run's earlier detections elsewhere stay. Everywhere when None.
    colors
        Of the classes; those that the project has already keep its colours.

    Returns
    -------
    objects : PathObjects
        All that was found, also what was left out.
    counts : dict
        Detections written and replaced, and corrected ones that stayed.
    """
    source = source_of(run_name)
    present = entry.read_objects()
    mine = owned(present, source)
    kept = mine & settled(present)
    if where is not None:
        kept |= mine & ~where.holds(present.polygons.centroid())
    drop = mine & ~kept
    objects = to_objects(found, entry.name, run_name, colors)
    fresh = ~_inside_any(found.polygons.centroid(), present.take(kept))
    fresh &= ~np.isin(objects.ids.astype(str), present.ids[~drop].astype(str))
    dropped_ids = set(present.ids[drop].tolist())
    entry.write_objects(
        objects.take(fresh), replace=lambda p: np.array([i in dropped_ids for i in p.ids.tolist()], bool)
    )
    return objects, {
        "nuclei written": int(fresh.sum()),
        "nuclei replaced": int(drop.sum()),
        "corrected nuclei kept": int((mine & settled(present)).sum()),
    }


def _unique_ids(sample: str, centre: NDArray[np.float64]) -> NDArray[np.object_]:
    """Ids from the places of the nuclei; a place that comes twice is numbered."""
    _, first, inverse = np.unique(centre, axis=0, return_index=True, return_inverse=True)
    again = (np.arange(len(centre)) != first[inverse.reshape(-1)]).astype(int)
    number = np.cumsum(again) * again
    return object_uuids(sample, [f"{x:.3f} {y:.3f}" for x, y in centre.tolist()], number)


def _inside_any(xy: NDArray[np.float64], objects: PathObjects) -> NDArray[np.bool_]:
    inside = np.zeros(len(xy), np.bool_)
    if len(objects) and len(xy):
        import shapely

        points_at: NDArray[Any] = np.asarray(shapely.points(xy), dtype=object)
        tree = shapely.STRtree(points_at)
        shapes = objects.polygons.to_shapely()
        _, points = tree.query(shapes, predicate="intersects")
        inside[points] = True
    return inside
