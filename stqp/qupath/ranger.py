"""Cells and nuclei as polygons that Xenium Ranger's ``import-segmentation`` takes.

It reads a FeatureCollection of polygons. ``--cells`` takes the ``geometry`` of a feature, ``--nuclei`` its
``nucleusGeometry`` or, without one, its ``geometry``, so one file serves both; features whose ``objectType`` is
not ``cell`` are ignored (10x Genomics, Xenium Ranger, segmentation inputs). Coordinates are given in µm of the
Xenium frame (``--units=microns``): then no ``--coordinate-transform`` is needed, and it does not matter which
units that one wants.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.qupath.geojson import write_geojson
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind

_DECIMALS = 3  # a nanometre


class RangerFile(NamedTuple):
    """What was written for Xenium Ranger.

    Attributes
    ----------
    path
        The file.
    written
        Cells in it.
    simplified
        Of these, outlines or nuclei that had holes or several parts; the largest part stays, without its holes.
    mended
        Of these, whose outline or nucleus crossed itself.
    left_out
        Objects without an area.
    arguments
        What ``xeniumranger import-segmentation`` is to be given, beside ``--id`` and ``--xenium-bundle``.
    """

    path: Path
    written: int
    simplified: int
    mended: int
    left_out: int
    arguments: tuple[str, ...]


def write_xenium_ranger(path: Path, objects: PathObjects, to_um: ArrayLike) -> RangerFile:
    """Write cells or nuclei for ``xeniumranger import-segmentation``.

    Parameters
    ----------
    path
        Ends in ``.geojson`` or ``.json``; replaced atomically.
    objects
        Cells, or nuclei as detections or annotations, of one section; all are written, in their order, with their
        ids. TMA cores and tiles are no cells.
    to_um : (3, 3)
        From the pixels of the objects to µm of the Xenium frame, for column vectors (x, y, 1): for an H&E with
        the alignment matrix ``M`` of Xenium Explorer, ``diag(p, p, 1) @ M`` with ``p`` µm per pixel of the
        morphology image (the inverse of `stqp.alignment.Alignment.um_to_he`).

    Returns
    -------
    RangerFile
        Numbers, and the arguments for the command. Where any object is a cell with a nucleus, the file is
        given as both nuclei and cells; where none is, as nuclei, which Xenium Ranger then expands.

    Raises
    ------
    UsageError
        When the matrix is not affine, or the objects are of kinds that are no cells.
    """
    matrix = np.asarray(to_um, np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.array_equal(matrix[2], [0, 0, 1]):
        raise UsageError("the way to µm is an affine 3x3 matrix with 0, 0, 1 in its last row")
    if abs(np.linalg.det(matrix)) < 1e-12:
        raise UsageError("the matrix to µm has no inverse")
    if np.isin(objects.kind, (ObjectKind.TILE, ObjectKind.TMA_CORE)).any():
        raise UsageError("tiles and TMA cores are no cells; choose cells, detections or annotations")
    if path.suffix.lower() == ".gz":
        raise UsageError("Xenium Ranger reads plain .geojson only, not .gz")
    n = len(objects)
    cells, simplified = _largest(objects.polygons.transform(matrix))
    nuclei = None
    if objects.nuclei is not None:
        nuclei, touched = _largest(objects.nuclei.transform(matrix))
        simplified |= touched
    plain = PathObjects.build(cells, kind=ObjectKind.CELL, ids=objects.ids, nuclei=nuclei)
    plain = replace(plain, roi_kind=np.full(n, RoiKind.POLYGON, np.uint8))
    mended = _mended(plain)
    result = write_geojson(path, plain, decimals=_DECIMALS)
    both = nuclei is not None and bool(np.diff(nuclei.geom_offsets).any())
    arguments = [f"--nuclei={path}", *([f"--cells={path}"] if both else []), "--units=microns"]
    return RangerFile(path, result.written, int(simplified.sum()), mended, result.left_out, tuple(arguments))


def _mended(objects: PathObjects) -> int:
    """Put the largest valid part in place of outlines and nuclei that cross themselves; how many objects it changed."""
    changed = np.zeros(len(objects), bool)
    for name in ("polygons", "nuclei"):
        polygons = getattr(objects, name)
        if polygons is not None:
            polygons, touched = _valid(polygons)
            setattr(objects, name, polygons)
            changed |= touched
    return int(changed.sum())


def _valid(polygons: Polygons) -> tuple[Polygons, NDArray[np.bool_]]:
    import shapely

    from stqp.qupath.geo.shapes import areas_only

    rounded = Polygons(np.round(polygons.coords, _DECIMALS), polygons.ring_offsets, polygons.geom_offsets)
    shapes = rounded.to_shapely()
    bad = np.flatnonzero(~shapely.is_valid(shapes))
    if not len(bad):
        return rounded, np.zeros(len(polygons), bool)
    for i in bad.tolist():
        shape = areas_only(shapely.set_precision(areas_only(shapely.make_valid(shapes[i])), 10.0**-_DECIMALS))
        shapes[i] = shape
    repaired, _ = _largest(Polygons.from_shapely(shapes[bad]))
    place = np.arange(len(polygons))
    place[bad] = len(polygons) + np.arange(len(bad))
    changed = np.zeros(len(polygons), bool)
    changed[bad] = np.diff(repaired.geom_offsets) > 0
    return Polygons.concatenate([rounded, repaired]).take(place), changed


def _largest(polygons: Polygons) -> tuple[Polygons, NDArray[np.bool_]]:
    """Keep the largest ring of each polygon, which is no hole; and tell which had more."""
    rings = np.diff(polygons.geom_offsets)
    several = rings > 1
    if not several.any():
        return polygons, several
    alone = Polygons(polygons.coords, polygons.ring_offsets, np.arange(len(polygons.ring_offsets)))
    order = np.lexsort((-alone.area(), polygons.ring_owner))
    chosen = order[polygons.geom_offsets[:-1][rings > 0]]
    kept = alone.take(chosen)
    offsets = np.concatenate(([0], np.cumsum(rings > 0))).astype(np.int64)
    return Polygons(kept.coords, kept.ring_offsets, offsets), several
