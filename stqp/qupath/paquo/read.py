"""Columns from the objects of QuPath's own classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.codec.decode import ellipse, wkb_parts
from stqp.qupath.codec.layout import unpacked
from stqp.qupath.objects import ObjectKind, Objects, PathObjects, RoiKind
from stqp.qupath.paquo.jvm import Columns, start

PACKAGE = "qupath.lib."
_KINDS = {
    "PathAnnotationObject": ObjectKind.ANNOTATION,
    "PathDetectionObject": ObjectKind.DETECTION,
    "PathCellObject": ObjectKind.CELL,
    "PathTileObject": ObjectKind.TILE,
    "TMACoreObject": ObjectKind.TMA_CORE,
}
_ROIS = {
    "PolygonROI": RoiKind.POLYGON,
    "RectangleROI": RoiKind.RECTANGLE,
    "EllipseROI": RoiKind.ELLIPSE,
    "GeometryROI": RoiKind.GEOMETRY,
    "LineROI": RoiKind.LINE,
    "PolylineROI": RoiKind.POLYLINE,
    "PointsROI": RoiKind.POINTS,
}
OBJECT = PACKAGE + "objects.PathObject"
ROI = PACKAGE + "roi.interfaces.ROI"
CLASS = PACKAGE + "objects.classes.PathClass"
PLANE = PACKAGE + "regions.ImagePlane"
LIST = PACKAGE + "measurements.MeasurementList"


def tree(columns: Columns, hierarchy: Any) -> tuple[Any, NDArray[np.int64]]:
    """Find all objects of a hierarchy.

    Returns
    -------
    objects : Java array (n,)
        Parents before their children, each followed by its own.
    parent : int64 (n,)
        Position of the parent, -1 for the root.
    """
    from paquo.jpype_backend import jpype

    count = columns.method(OBJECT, "nChildObjects")
    everything = jpype.JClass("java.util.ArrayList")()
    parents: list[NDArray[np.int64]] = []

    def add(node: Any, parent: int) -> None:
        children = node.getChildObjectsAsArray()
        row, begin = columns.list_of(children), 0
        for owner in np.flatnonzero(columns.ints(children, count)).tolist():
            everything.addAll(row.subList(begin, owner + 1))
            parents.append(np.full(owner + 1 - begin, parent, np.int64))
            begin = owner + 1
            add(children[owner], len(everything) - 1)
        everything.addAll(row.subList(begin, len(children)))
        parents.append(np.full(len(children) - begin, parent, np.int64))

    add(hierarchy.getRootObject(), -1)
    return everything.toArray(jpype.JArray(jpype.JClass(OBJECT))(0)), np.concatenate(parents)


def read(columns: Columns, objects: Any, parent: NDArray[np.int64]) -> PathObjects:
    """Make columns of QuPath's objects.

    Parameters
    ----------
    columns
        Of the JVM.
    objects : Java array (n,)
    parent : int64 (n,)
    """
    n = len(objects)
    if not n:
        return PathObjects.empty()
    get_class = columns.method("java.lang.Object", "getClass")
    simple = columns.then(get_class, columns.method("java.lang.Class", "getSimpleName"))
    kind = np.array([_KINDS[str(name)] for name in columns.texts(objects, simple)], np.uint8)
    rois = columns.objects(objects, columns.method(OBJECT, "getROI"))
    shapes = _read_rois(columns, rois)
    nuclei, missing = None, None
    cells = np.flatnonzero(kind == ObjectKind.CELL)
    if len(cells):
        get_nucleus = columns.method(PACKAGE + "objects.PathCellObject", "getNucleusROI")
        found = _read_rois(columns, columns.objects(columns.take(objects, cells), get_nucleus))
        if len(found.polygons.coords):
            nuclei = _spread(found.polygons, cells, n)
    cores = np.flatnonzero(kind == ObjectKind.TMA_CORE)
    if len(cores):
        is_missing = columns.method(PACKAGE + "objects.TMACoreObject", "isMissing")
        flags = columns.ints(columns.take(objects, cores), is_missing) > 0
        if flags.any():
            missing = np.zeros(n, bool)
            missing[cores] = flags
    path_classes = columns.objects(objects, columns.method(OBJECT, "getPathClass"))
    classes = columns.texts(path_classes)
    first = {text: i for i, text in reversed([*enumerate(classes)]) if text is not None}
    colors = {text: path_classes[i].getColor() for text, i in sorted(first.items(), key=lambda pair: pair[1])}
    own = columns.texts(objects, columns.method(OBJECT, "getColor"))
    return PathObjects.build(
        shapes.polygons,
        kind=kind,
        classes=_texts(classes),
        ids=_texts(columns.texts(objects, columns.method(OBJECT, "getID"))),
        names=_texts(columns.texts(objects, columns.method(OBJECT, "getName"))),
        probability=columns.doubles(objects, columns.method(OBJECT, "getClassProbability")),
        locked=columns.ints(objects, columns.method(OBJECT, "isLocked")) > 0,
        parent=parent,
        nuclei=nuclei,
        lines=shapes.lines if len(shapes.lines.coords) else None,
        roi_kind=shapes.kind,
        plane=shapes.plane,
        colors=np.array([-1 if c is None else int(c) & 0xFFFFFFFF for c in own], np.int64),
        missing=missing,
        metadata=_read_metadata(columns, objects),
        measurements=_read_measurements(columns, objects),
        class_colors={text: unpacked(int(color)) for text, color in colors.items() if color is not None},
    )


class Shapes(NamedTuple):
    """Regions as columns."""

    kind: NDArray[np.uint8]
    polygons: Polygons
    lines: Polygons
    plane: NDArray[np.int32]


def _read_rois(columns: Columns, rois: Any) -> Shapes:
    n = len(rois)
    kind = np.full(n, int(RoiKind.NONE), np.uint8)
    plane = np.tile(np.array([-1, 0, 0], np.int32), (n, 1))
    polygons, lines = Polygons.empty(n), Polygons.empty(n)
    there = np.flatnonzero(columns.ints(rois, columns.is_there))
    if not len(there):
        return Shapes(kind, polygons, lines, plane)
    present = columns.take(rois, there)
    get_class = columns.method("java.lang.Object", "getClass")
    names = columns.texts(present, columns.then(get_class, columns.method("java.lang.Class", "getSimpleName")))
    kind[there] = [_ROIS[str(name)] for name in names]
    for axis, letter in enumerate("CZT"):
        plane[there, axis] = columns.ints(present, columns.method(ROI, f"get{letter}"))
    outlines: list[tuple[NDArray[np.int64], Polygons]] = []
    runs: list[tuple[NDArray[np.int64], Polygons]] = []
    for roi_kind in set(kind[there].tolist()):
        index = np.flatnonzero(kind == roi_kind)
        chosen = columns.take(rois, index)
        if roi_kind in (RoiKind.POLYGON, RoiKind.POLYLINE, RoiKind.POINTS):
            found = _vertices(columns, chosen)
            (outlines if roi_kind == RoiKind.POLYGON else runs).append((index, found))
        elif roi_kind in (RoiKind.RECTANGLE, RoiKind.ELLIPSE):
            outlines.append((index, _boxes(columns, chosen, RoiKind(roi_kind))))
        elif roi_kind == RoiKind.LINE:
            get = [columns.method(PACKAGE + "roi.LineROI", f"get{end}") for end in ("X1", "Y1", "X2", "Y2")]
            ends = np.column_stack([columns.doubles(chosen, handle) for handle in get]).reshape(-1, 2)
            runs.append((index, Polygons.from_rings(ends, np.arange(len(index) + 1) * 2)))
        else:
            areas, others = _geometries(columns, chosen)
            outlines.append((index, areas))
            runs.append((index, others))
    return Shapes(kind, _merge(outlines, n), _merge(runs, n), plane)


def _vertices(columns: Columns, rois: Any) -> Polygons:
    points = columns.objects(rois, columns.method(ROI, "getAllPoints"))
    counts = columns.ints(points, columns.method("java.util.Collection", "size"))
    flat = columns.flat(points)
    point = PACKAGE + "geom.Point2"
    coords = np.column_stack([columns.doubles(flat, columns.method(point, f"get{axis}")) for axis in "XY"])
    return Polygons.from_rings(coords, np.concatenate(([0], np.cumsum(counts))))


def _boxes(columns: Columns, rois: Any, kind: RoiKind) -> Polygons:
    parts = [columns.doubles(rois, columns.method(ROI, f"getBounds{p}")) for p in ("X", "Y", "Width", "Height")]
    x, y, width, height = parts
    if kind == RoiKind.RECTANGLE:
        corners = np.stack([x, y, x + width, y, x + width, y + height, x, y + height], axis=1)
        return Polygons.from_rings(corners.reshape(-1, 2), np.arange(len(x) + 1) * 4)
    rings = [ellipse(*box) for box in np.column_stack([x, y, x + width, y + height]).tolist()]
    return Polygons.from_rings(np.concatenate(rings), np.arange(len(rings) + 1) * len(rings[0]))


def _geometries(columns: Columns, rois: Any) -> tuple[Polygons, Polygons]:
    writer = start().WKBWriter(2)
    write = columns.method("org.locationtech.jts.io.WKBWriter", "write", "org.locationtech.jts.geom.Geometry")
    wkb = columns.objects(rois, columns.then(columns.method(ROI, "getGeometry"), write.bindTo(writer)))
    found = [wkb_parts(bytes(np.array(data, dtype=np.int8).tobytes())) for data in wkb]
    return _ragged([rings for rings, _ in found]), _ragged([lines for _, lines in found])


def _ragged(items: Sequence[Sequence[NDArray[np.float64]]]) -> Polygons:
    """Runs of vertices of each object in one."""
    runs = [run for item in items for run in item]
    return Polygons(
        np.concatenate(runs).reshape(-1, 2) if runs else np.empty((0, 2)),
        np.concatenate(([0], np.cumsum([len(run) for run in runs]))).astype(np.int64),
        np.concatenate(([0], np.cumsum([len(item) for item in items]))).astype(np.int64),
    )


def _merge(parts: list[tuple[NDArray[np.int64], Polygons]], n: int) -> Polygons:
    """Polygons of some of ``n`` objects each, in the order of the objects; those of none have no rings."""
    whole = Polygons.concatenate([Polygons.empty(1), *(polygons for _, polygons in parts)])
    place = np.zeros(n, np.int64)
    begin = 1
    for index, polygons in parts:
        place[index] = begin + np.arange(len(polygons))
        begin += len(polygons)
    return whole.take(place)


def _spread(polygons: Polygons, index: NDArray[np.int64], n: int) -> Polygons:
    return _merge([(index, polygons)], n)


def _texts(values: list[str | None]) -> Objects:
    result = np.empty(len(values), object)
    result[:] = values
    return result


def has_public_metadata() -> bool:
    """Whether all objects show their metadata, as from 0.6; in 0.5 only annotations do."""
    return bool(start().compatibility.supports_addobjects)


def _read_metadata(columns: Columns, objects: Any) -> dict[str, Objects]:
    getter = "getMetadata" if has_public_metadata() else "getUnmodifiableMetadataMap"
    maps = columns.objects(objects, columns.method(OBJECT, getter))
    keys = columns.distinct(columns.objects(maps, columns.method("java.util.Map", "keySet")))
    get = columns.method("java.util.Map", "get", "java.lang.Object")
    return {key: _texts(columns.texts(maps, columns.bind(get, 1, columns.string(key)))) for key in keys}


def _read_measurements(columns: Columns, objects: Any) -> dict[str, NDArray[np.float64]]:
    has = columns.ints(objects, columns.method(OBJECT, "hasMeasurements")) > 0
    index = np.flatnonzero(has)
    result: dict[str, NDArray[np.float64]] = {}
    if not len(index):
        return result
    lists = columns.objects(columns.take(objects, index), columns.method(OBJECT, "getMeasurementList"))
    get = columns.method(LIST, "get", "java.lang.String")
    for name in columns.distinct(columns.objects(lists, columns.method(LIST, "getMeasurementNames"))):
        values = result[name] = np.full(len(objects), np.nan)
        values[index] = columns.doubles(lists, columns.bind(get, 1, columns.string(name)))
    return result
