"""Objects of QuPath's own classes from columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.codec.build import factorize, is_ellipse, is_rectangle, wkb
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind
from stqp.qupath.paquo.jvm import Columns, start
from stqp.qupath.paquo.read import CLASS, LIST, OBJECT, PACKAGE, PLANE, ROI, has_public_metadata

_FACTORY = PACKAGE + "objects.PathObjects"
_ROIS = PACKAGE + "roi.ROIs"
_CREATE = {ObjectKind.ANNOTATION: "Annotation", ObjectKind.DETECTION: "Detection", ObjectKind.TILE: "Tile"}
_INTEGER = "java.lang.Integer"


def make(columns: Columns, objects: PathObjects) -> Any:
    """Make QuPath's objects of columns.

    Parameters
    ----------
    columns
        Of the JVM.
    objects
        What `stqp.qupath.codec.build.check` lets pass; no TMA cores.

    Returns
    -------
    Java array (n,)
        The objects; those with a parent among them are its children already.
    """
    from paquo.jpype_backend import jpype

    n = len(objects)
    rois = _Rois(columns, objects.plane).make(objects.polygons, objects.lines, objects.roi_kind)
    class_codes, names = factorize(objects.classes.tolist())
    path_class = jpype.JClass(CLASS)
    table = jpype.JArray(path_class)([None if name is None else path_class.fromString(name) for name in names])
    classes = columns.take(table, class_codes)
    made = jpype.JArray(jpype.JClass(OBJECT))(n)
    for kind in set(objects.kind.tolist()):
        index = np.flatnonzero(objects.kind == kind)
        chosen, own = columns.take(rois, index), columns.take(classes, index)
        if kind == ObjectKind.CELL:
            create = columns.method(_FACTORY, "createCellObject", ROI, ROI, CLASS, LIST)
            fresh = columns.build(columns.bind(create, 3, None), chosen, _nuclei(columns, objects, index), own)
        else:
            create = columns.method(_FACTORY, f"create{_CREATE[ObjectKind(kind)]}Object", ROI, CLASS, LIST)
            fresh = columns.build(columns.bind(create, 2, None), chosen, own)
        columns.put(made, index, fresh)
    _set_attributes(columns, made, objects, classes)
    _set_metadata(columns, made, objects)
    _set_measurements(columns, made, objects)
    for owner, index in _families(objects.parent):
        made[owner].addChildObjects(columns.list_of(columns.take(made, index)))
    return made


def _families(parent: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Positions of the children of each parent."""
    children = np.flatnonzero(parent >= 0)
    children = children[np.argsort(parent[children], kind="stable")]
    for family in np.split(children, np.flatnonzero(np.diff(parent[children])) + 1):
        if len(family):
            yield int(parent[family[0]]), family


def _nuclei(columns: Columns, objects: PathObjects, index: NDArray[np.int64]) -> Any:
    from paquo.jpype_backend import jpype

    nuclei = Polygons.empty(len(index)) if objects.nuclei is None else objects.nuclei.take(index)
    there = np.flatnonzero(np.diff(nuclei.geom_offsets) > 0)
    made = jpype.JArray(jpype.JClass(ROI))(len(index))
    kinds = np.full(len(there), int(RoiKind.POLYGON), np.uint8)
    columns.put(made, there, _Rois(columns, objects.plane[index[there]]).make(nuclei.take(there), None, kinds))
    return made


class _Rois:
    """Makes regions on some planes (n, 3)."""

    def __init__(self, columns: Columns, plane: NDArray[np.int32]):
        from paquo.jpype_backend import jpype

        codes, rows = factorize(map(tuple, plane.tolist()))
        planes = jpype.JClass(PLANE)
        self._columns = columns
        self._planes = columns.take(jpype.JArray(planes)([planes.getPlaneWithChannel(*row) for row in rows]), codes)

    def make(self, polygons: Polygons, lines: Polygons | None, roi_kind: NDArray[np.uint8]) -> Any:
        """Make them; a rectangle or ellipse that is none any more becomes a polygon."""
        from paquo.jpype_backend import jpype

        columns = self._columns
        kind = _kinds_to_write(polygons, lines, roi_kind)
        made = jpype.JArray(jpype.JClass(ROI))(len(kind))
        for roi in set(kind.tolist()):
            index = np.flatnonzero(kind == roi)
            planes = columns.take(self._planes, index)
            if roi == RoiKind.GEOMETRY:
                fresh = self._geometries(polygons, lines, index)
            elif roi in (RoiKind.RECTANGLE, RoiKind.ELLIPSE, RoiKind.LINE):
                runs = (polygons if roi != RoiKind.LINE or lines is None else lines).take(index)
                create = columns.method(_ROIS, f"create{RoiKind(roi).name.title()}ROI", *["double"] * 4, PLANE)
                numbers = [columns.numbers(column) for column in _ends(runs, RoiKind(roi)).T]
                fresh = columns.build(create, *numbers, planes)
            else:
                runs = (polygons if roi == RoiKind.POLYGON or lines is None else lines).take(index)
                create = columns.method(_ROIS, f"create{RoiKind(roi).name.title()}ROI", "double[]", "double[]", PLANE)
                fresh = columns.build(create, *self._vertices(runs), planes)
            columns.put(made, index, fresh)
        return made

    def _vertices(self, runs: Polygons) -> list[Any]:
        columns = self._columns
        begin, end = (columns.numbers(ends, "int") for ends in (runs.ring_offsets[:-1], runs.ring_offsets[1:]))
        cut = columns.method("java.util.Arrays", "copyOfRange", "double[]", "int", "int")
        return [columns.build(columns.bind(cut, 0, columns.numbers(runs.coords[:, k])), begin, end) for k in (0, 1)]

    def _geometries(self, polygons: Polygons, lines: Polygons | None, index: NDArray[np.int64]) -> Any:
        from paquo.jpype_backend import jpype

        java = start()
        reader = java.WKBReader(java.GeometryTools.getDefaultFactory())
        # QuPath's own way from a geometry drops lines beside areas, and rounds
        create = self._columns.constructor(java.GeometryROI, "org.locationtech.jts.geom.Geometry", PLANE)
        shapes = [
            reader.read(jpype.JArray(jpype.JByte)(np.frombuffer(wkb(polygons, lines, i), np.int8)))
            for i in index.tolist()
        ]
        geometries = jpype.JArray(jpype.JClass("org.locationtech.jts.geom.Geometry"))(shapes)
        return self._columns.build(create, geometries, self._columns.take(self._planes, index))


def _ends(runs: Polygons, kind: RoiKind) -> NDArray[np.float64]:
    """Corner, width and height of each run of vertices; of lines both ends."""
    if kind == RoiKind.LINE:
        return runs.coords.reshape(-1, 4)
    begin = runs.ring_offsets[:-1]
    low, high = np.minimum.reduceat(runs.coords, begin), np.maximum.reduceat(runs.coords, begin)
    return np.column_stack([low, high - low])


def _kinds_to_write(polygons: Polygons, lines: Polygons | None, roi_kind: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What each shape is written as, by its rings and lines rather than by what it once was."""
    rings = np.diff(polygons.geom_offsets)
    kind = np.where(rings == 1, int(RoiKind.POLYGON), int(RoiKind.GEOMETRY)).astype(np.uint8)
    for wanted, fits in ((RoiKind.RECTANGLE, is_rectangle), (RoiKind.ELLIPSE, is_ellipse)):
        for i in np.flatnonzero((roi_kind == wanted) & (rings == 1)).tolist():
            first = polygons.geom_offsets[i]
            if fits(polygons.coords[slice(*polygons.ring_offsets[first : first + 2])]):
                kind[i] = wanted
    if lines is not None:
        runs = np.diff(lines.geom_offsets)
        vertices = np.diff(lines.ring_offsets[lines.geom_offsets])
        single = (rings == 0) & (runs == 1)
        kind[single & (roi_kind == RoiKind.POINTS)] = RoiKind.POINTS
        kind[single & np.isin(roi_kind, (RoiKind.LINE, RoiKind.POLYLINE))] = RoiKind.POLYLINE
        kind[single & (roi_kind == RoiKind.LINE) & (vertices == 2)] = RoiKind.LINE
        kind[(runs > 0) & ~np.isin(kind, (RoiKind.POINTS, RoiKind.POLYLINE, RoiKind.LINE))] = RoiKind.GEOMETRY
    return kind


def _set_attributes(columns: Columns, made: Any, objects: PathObjects, classes: Any) -> None:
    uuids = columns.build(
        columns.method("java.util.UUID", "fromString", "java.lang.String"), columns.strings(objects.ids.tolist())
    )
    columns.each(columns.method(OBJECT, "setID", "java.util.UUID"), made, uuids)
    certain = np.flatnonzero(~np.isnan(objects.probability))
    columns.each(
        columns.method(OBJECT, "setPathClass", CLASS, "double"),
        columns.take(made, certain),
        columns.take(classes, certain),
        columns.numbers(objects.probability[certain]),
    )
    named = np.flatnonzero([name is not None for name in objects.names.tolist()])
    columns.each(
        columns.method(OBJECT, "setName", "java.lang.String"),
        columns.take(made, named),
        columns.strings(objects.names[named].tolist()),
    )
    locked = columns.take(made, np.flatnonzero(objects.locked))
    columns.each(columns.bind(columns.method(OBJECT, "setLocked", "boolean"), 1, True), locked)
    colored = np.flatnonzero(objects.colors >= 0)
    signed = objects.colors[colored].astype(np.uint32).view(np.int32)
    boxed = columns.build(columns.method(_INTEGER, "valueOf", "int"), columns.numbers(signed, "int"))
    columns.each(columns.method(OBJECT, "setColor", _INTEGER), columns.take(made, colored), boxed)


def _set_metadata(columns: Columns, made: Any, objects: PathObjects) -> None:
    for key, column in objects.metadata.items():
        index = np.flatnonzero([text is not None for text in column.tolist()])
        chosen, texts = columns.take(made, index), columns.strings(column[index].tolist())
        if has_public_metadata():
            put = columns.method("java.util.Map", "put", "java.lang.Object", "java.lang.Object")
            maps = columns.objects(chosen, columns.method(OBJECT, "getMetadata"))
        else:
            put, maps = columns.method(OBJECT, "storeMetadataValue", "java.lang.String", "java.lang.String"), chosen
        columns.each(columns.bind(put, 1, columns.string(key)), maps, texts)


def _set_measurements(columns: Columns, made: Any, objects: PathObjects) -> None:
    some = np.zeros(len(objects), bool)
    for values in objects.measurements.values():
        some |= ~np.isnan(values)
    if not some.any():
        return
    place = np.cumsum(some) - 1
    lists = columns.objects(columns.take(made, np.flatnonzero(some)), columns.method(OBJECT, "getMeasurementList"))
    put = columns.method(LIST, "put", "java.lang.String", "double")
    for name, values in objects.measurements.items():
        index = np.flatnonzero(~np.isnan(values))
        own = columns.take(lists, place[index])
        columns.each(columns.bind(put, 1, columns.string(name)), own, columns.numbers(values[index]))
    columns.each(columns.method(LIST, "close"), lists)
