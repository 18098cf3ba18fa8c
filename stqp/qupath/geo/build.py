"""From what GeoJSON says of features to the columns of objects."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.codec.decode import ELLIPSE_VERTICES, UNIT_CIRCLE
from stqp.qupath.geo.coordinates import Coordinates, CoordinateStore, Parts
from stqp.qupath.geo.stream import Broken
from stqp.qupath.objects import Objects, PathObjects, RoiKind, random_ids
from stqp.taxonomy import RGB

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
# depths of their coordinates: brackets around a position
_DEPTHS = {"Point": 1, "MultiPoint": 2, "LineString": 2, "MultiLineString": 3, "Polygon": 3, "MultiPolygon": 4}
GEOMETRIES = {name: code for code, name in enumerate(_DEPTHS)}
_POINTS = (GEOMETRIES["Point"], GEOMETRIES["MultiPoint"])
_LINES = (GEOMETRIES["LineString"], GEOMETRIES["MultiLineString"])
_AREAS = (GEOMETRIES["Polygon"], GEOMETRIES["MultiPolygon"])
_REMEMBERED = 1000
_ROOM = 4096
_NONE = array("q", [-1]) * _ROOM
_PLANES = array("i", [-1, 0, 0]) * _ROOM
_NAN = array("d", [np.nan]) * _ROOM


class Features:
    """Columns that grow by one feature at a time.

    Attributes
    ----------
    outlines, nuclei : (owner, geometry type, number in the store)
        Geometries, in order.
    """

    def __init__(self) -> None:
        self.outlines: tuple[array[int], array[int], array[int]] = array("q"), array("b"), array("q")
        self.nuclei: tuple[array[int], array[int], array[int]] = array("q"), array("b"), array("q")
        self.kind, self.locked, self.missing, self.ellipse = bytearray(), bytearray(), bytearray(), bytearray()
        self.parent, self.colors = array("q"), array("q")
        self.plane = array("i")
        self.probability = array("d")
        self.ids: list[str | None] = []
        self.names: list[str | None] = []
        self.classes: list[str | None] = []
        self._count = 0
        self.class_colors: dict[str, RGB] = {}
        self._same: dict[str, str] = {}  # most texts are the same in many objects: one string for all
        # features with the same names share one list of values
        self._measured: dict[tuple[str, ...], tuple[array[int], array[float]]] = {}
        self._noted: dict[tuple[str, ...], tuple[array[int], list[str]]] = {}

    def __len__(self) -> int:
        """Count the features."""
        return self._count

    def append(self, parent: int) -> int:
        """Add a feature of which nothing is known; its position."""
        i = self._count
        if i == len(self.kind):
            self._grow()
        self.parent[i] = parent
        self._count = i + 1
        return i

    def _grow(self) -> None:
        """Make room for many: one call for each column and feature would take as long as reading it."""
        for flags in (self.kind, self.locked, self.missing, self.ellipse):
            flags.extend(bytes(_ROOM))
        for numbers in (self.parent, self.colors):
            numbers.extend(_NONE)
        self.plane.extend(_PLANES)
        self.probability.extend(_NAN)
        for texts in (self.ids, self.names, self.classes):
            texts.extend([None] * _ROOM)

    def trim(self) -> None:
        """Give back the room that is not used."""
        n = self._count
        columns: tuple[Any, ...] = (self.kind, self.locked, self.missing, self.ellipse, self.parent, self.colors)
        for column in (*columns, self.probability, self.ids, self.names, self.classes):
            del column[n:]
        del self.plane[3 * n :]

    def measure(self, i: int, values: Mapping[str, float]) -> None:
        """Add measurements of a feature; TypeError when one is no number."""
        row = array("d", values.values())
        rows, numbers = self._measured.setdefault(tuple(values), (array("q"), array("d")))
        numbers.extend(row)
        rows.append(i)

    def note(self, i: int, texts: Mapping[str, str]) -> None:
        """Add metadata of a feature."""
        rows, values = self._noted.setdefault(tuple(texts), (array("q"), []))
        values.extend([self._same.get(v, v) for v in texts.values()])
        if len(self._same) < _REMEMBERED:
            self._same.update(zip(values[-len(texts) :], values[-len(texts) :], strict=True))
        rows.append(i)

    def measurements(self) -> dict[str, NDArray[np.float64]]:
        """Columns of measurements."""
        result: dict[str, NDArray[np.float64]] = {}
        for names, (rows, numbers) in self._measured.items():
            table = np.frombuffer(numbers).reshape(len(rows), len(names)) if names else np.empty((len(rows), 0))
            for column, name in enumerate(names):
                result.setdefault(name, np.full(len(self), np.nan))[np.array(rows)] = table[:, column]
        return result

    def metadata(self) -> dict[str, Objects]:
        """Columns of metadata."""
        result: dict[str, Objects] = {}
        for keys, (rows, values) in self._noted.items():
            for column, key in enumerate(keys):
                texts = np.empty(len(rows), object)
                texts[:] = values[column :: len(keys)]
                result.setdefault(key, np.full(len(self), None, object))[np.array(rows)] = texts
        return result


def built(features: Features, store: CoordinateStore, split: bool) -> PathObjects:
    """Make objects of features; the store is then empty.

    Raises
    ------
    Broken
        When coordinates are not those of their type.
    """
    n = len(features)
    features.trim()
    coordinates = store.finish()
    areas, lines, points = _shapes(features.outlines, coordinates, n)
    nuclei, _, _ = _shapes(features.nuclei, coordinates, n)
    del coordinates
    polygons = _oriented(areas)
    rings, runs = np.diff(polygons.geom_offsets), np.diff(lines.geom_offsets)
    # QuPath makes points of them only where there is nothing else
    only_points = (np.diff(points.geom_offsets) > 0) & (rings == 0) & (runs == 0)
    roi_kind = _roi_kinds(polygons, lines, only_points)
    _upright(polygons, roi_kind)
    polygons = _ellipses(polygons, roi_kind, np.frombuffer(features.ellipse, bool))
    missing = np.frombuffer(features.missing, bool)
    objects = PathObjects.build(
        polygons,
        kind=np.frombuffer(features.kind, np.uint8),
        ids=_filled(features.ids),
        names=features.names,
        classes=features.classes,
        probability=np.array(features.probability),
        locked=np.frombuffer(features.locked, bool),
        parent=np.array(features.parent, np.int64),
        roi_kind=roi_kind,
        plane=np.array(features.plane, np.int32).reshape(-1, 3),
        colors=np.array(features.colors, np.int64),
        nuclei=_oriented(nuclei) if len(features.nuclei[0]) else None,
        lines=_merged(lines, points, only_points),
        missing=missing if missing.any() else None,
        measurements=features.measurements(),
        class_colors=features.class_colors,
    )
    objects.metadata = features.metadata()
    return _split(objects, areas.outer) if split else objects


def _shapes(
    geometries: tuple[array[int], array[int], array[int]], coordinates: Coordinates, n: int
) -> tuple[Parts, Polygons, Polygons]:
    """Areas, lines and points of each object."""
    owner, kind, number = (np.array(column, np.int64) for column in geometries)
    depths = coordinates.depths[number]
    wrong = (depths != 0) & (depths != np.array(list(_DEPTHS.values()))[kind])
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        name = list(_DEPTHS)[kind[first]]
        raise Broken(f"has a {name} with coordinates that are not those of one", f"feature {owner[first] + 1}")
    chosen = [np.isin(kind, kinds) for kinds in (_AREAS, _LINES, _POINTS)]
    areas, lines, points = (coordinates.parts(number[c], owner[c], n, rings=not i) for i, c in enumerate(chosen))
    return areas, lines.runs, points.runs


def _oriented(areas: Parts) -> Polygons:
    """Turn holes against their outer rings, where an object has several rings, in place."""
    polygons, outer = areas
    several = np.flatnonzero(np.repeat(np.diff(polygons.geom_offsets) > 1, np.diff(polygons.geom_offsets)))
    if not len(several):
        return polygons
    coords = polygons.coords
    for ring in several.tolist():
        xy = coords[polygons.ring_offsets[ring] : polygons.ring_offsets[ring + 1]]
        local = xy - xy[:1]
        after = np.roll(local, -1, axis=0)
        area = float((local[:, 0] * after[:, 1] - after[:, 0] * local[:, 1]).sum())
        if (area > 0) != bool(outer[ring]):
            xy[:] = xy[::-1].copy()
    return polygons


def _roi_kinds(polygons: Polygons, lines: Polygons, only_points: Mask) -> NDArray[np.uint8]:
    rings, runs = np.diff(polygons.geom_offsets), np.diff(lines.geom_offsets)
    vertices = np.diff(lines.ring_offsets[lines.geom_offsets])
    result = np.full(len(polygons), RoiKind.GEOMETRY, np.uint8)
    result[(rings == 1) & (runs == 0)] = RoiKind.POLYGON
    result[(rings == 0) & (runs == 1)] = RoiKind.POLYLINE
    result[(rings == 0) & (runs == 1) & (vertices == 2)] = RoiKind.LINE
    result[(rings == 0) & (runs == 0)] = RoiKind.NONE
    result[only_points] = RoiKind.POINTS
    return result


def _upright(polygons: Polygons, roi_kind: NDArray[np.uint8]) -> None:
    """Mark the rectangles, and have their vertices go the usual way, in place."""
    single = np.flatnonzero(roi_kind == RoiKind.POLYGON)
    first = polygons.ring_offsets[polygons.geom_offsets[single]]
    lengths = polygons.ring_offsets[polygons.geom_offsets[single] + 1] - first
    index = first[lengths == 4][:, None] + np.arange(4)
    corners = polygons.coords[index]
    steps = np.roll(corners, -1, axis=1) - corners
    straight = ((steps == 0).sum(axis=2) == 1).all(axis=1) & (steps[:, 0] == -steps[:, 2]).all(axis=1)
    roi_kind[single[lengths == 4][straight]] = RoiKind.RECTANGLE
    low, high = corners[straight].min(axis=1), corners[straight].max(axis=1)
    coords = polygons.coords
    coords[index[straight], 0] = np.column_stack([low[:, 0], high[:, 0], high[:, 0], low[:, 0]])
    coords[index[straight], 1] = np.column_stack([low[:, 1], low[:, 1], high[:, 1], high[:, 1]])


def _ellipses(polygons: Polygons, roi_kind: NDArray[np.uint8], marked: Mask) -> Polygons:
    """Put the ellipse within its bounds in place of each outline that stands for one."""
    chosen = np.flatnonzero(marked & (np.diff(polygons.geom_offsets) == 1))
    if not len(chosen):
        return polygons
    roi_kind[chosen] = RoiKind.ELLIPSE
    bounds = polygons.take(chosen).bounds()
    centre, radius = (bounds[:, :2] + bounds[:, 2:]) / 2, (bounds[:, 2:] - bounds[:, :2]) / 2
    vertices = centre[:, None] + UNIT_CIRCLE * radius[:, None]
    drawn = Polygons.from_rings(vertices, np.arange(0, len(chosen) * ELLIPSE_VERTICES + 1, ELLIPSE_VERTICES))
    place = np.arange(len(polygons))
    place[chosen] = len(polygons) + np.arange(len(chosen))
    return Polygons.concatenate([polygons, drawn]).take(place)


def _merged(lines: Polygons, points: Polygons, only_points: Mask) -> Polygons | None:
    """Lines, and points as one run for each object."""
    if not len(lines.coords) and not only_points.any():
        return None
    points = points.take(np.flatnonzero(only_points))
    offsets = points.ring_offsets[points.geom_offsets]
    runs = Polygons(points.coords, offsets, np.arange(len(offsets), dtype=np.int64))
    place = np.arange(len(lines))
    place[only_points] = len(lines) + np.arange(len(runs))
    return Polygons.concatenate([lines, runs]).take(place)


def _filled(ids: list[str | None]) -> list[str]:
    absent = [i for i, text in enumerate(ids) if text is None]
    for i, fresh in zip(absent, random_ids(len(absent)).tolist(), strict=True):
        ids[i] = fresh
    return ids  # type: ignore[return-value]


def _split(objects: PathObjects, outer: Mask) -> PathObjects:
    """Make an object of each part of a shape of several parts."""
    parts = np.bincount(objects.polygons.ring_owner[outer], minlength=len(objects))
    several = (parts > 1) & (objects.roi_kind == RoiKind.GEOMETRY)
    if objects.lines is not None:
        several &= np.diff(objects.lines.geom_offsets) == 0
    if not several.any():
        return objects
    copies = np.where(several, parts, 1)
    origin = np.repeat(np.arange(len(objects)), copies)
    # without the outlines, of which each copy would get all
    result = replace(objects, polygons=Polygons.empty(len(objects))).take(origin)
    starts = np.cumsum(copies) - copies
    result.parent = np.where(objects.parent >= 0, starts[objects.parent], -1)[origin]
    again = np.ones(len(origin), bool)
    again[starts] = False
    result.ids[again] = random_ids(int(again.sum()))
    owner = objects.polygons.ring_owner
    # rings of a shape that is split go to the part that began last, others to their object
    own = np.where(several, parts, 0)
    part = np.cumsum(outer & several[owner]) - 1 - (np.cumsum(own) - own)[owner]
    target = starts[owner] + np.where(several[owner], part, 0)
    counts = np.bincount(target, minlength=len(origin))
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    result.polygons = Polygons(objects.polygons.coords, objects.polygons.ring_offsets, offsets)
    result.roi_kind[np.flatnonzero(several[origin] & (counts == 1))] = RoiKind.POLYGON
    _upright(result.polygons, result.roi_kind)
    return result
