"""From columns to the nodes of a .qpdata stream, one object after the other."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.qupath.codec.decode import ELLIPSE_VERTICES, ellipse
from stqp.qupath.codec.layout import (
    DEFAULT_LIST,
    ELLIPSE,
    FLOAT_LIST,
    ID_KEY,
    KIND_CLASSES,
    LINE,
    MEASUREMENT,
    POINTS,
    POLYGON,
    POLYLINE,
    RECTANGLE,
    WKB,
    Vocabulary,
)
from stqp.qupath.java.nodes import NULL, Array, Block, Instance, Text, encode
from stqp.qupath.objects import ObjectKind, Objects, PathObjects, RoiKind

_SHARED_AT_MOST = 256
_PATTERNS_AT_MOST = 32


def factorize(values: Iterable[Any]) -> tuple[NDArray[np.int64], list[Any]]:
    """Codes and distinct values, in order of first use."""
    items = values if isinstance(values, list) else list(values)
    distinct = list(dict.fromkeys(items))
    return _codes(items, distinct), distinct


def _codes(items: list[Any], distinct: list[Any]) -> NDArray[np.int64]:
    position = {value: code for code, value in enumerate(distinct)}
    return np.fromiter(map(position.__getitem__, items), np.int64, len(items))


def factorize_rows(rows: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes of equal rows of bytes, in order of first use, and where each is first."""
    _, first, codes = np.unique(rows.view(f"V{rows.shape[1]}").reshape(-1), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[codes], np.sort(first)


class Plan:
    """What is decided about new objects before any is written.

    Attributes
    ----------
    class_codes, class_texts
        QuPath class of each object.
    shared : dict of (codes, texts)
        Metadata with few values, which objects refer to; None is absent.
    pattern_codes, patterns
        Which measurements each object has.
    has_nucleus : bool (n,)

    Raises
    ------
    UsageError
        When an object cannot be written so that QuPath reads it.
    """

    def __init__(self, objects: PathObjects, vocabulary: Vocabulary):
        objects.check()
        check(objects)
        self.objects = objects
        self.vocabulary = vocabulary
        n = len(objects)
        self.class_codes, self.class_texts = factorize(objects.classes.tolist())
        self.shared: dict[str, tuple[NDArray[np.int64], list[str | None]]] = {}
        self.own: dict[str, Objects] = {}
        for key, column in objects.metadata.items():
            items = column.tolist()
            texts = list(dict.fromkeys(items))
            if len(texts) <= _SHARED_AT_MOST and len(texts) < max(n // 2, 2):
                self.shared[key] = (_codes(items, texts), texts)
            else:
                self.own[key] = column
        self.measurement_names = list(objects.measurements)
        present = np.zeros((n, len(self.measurement_names)), bool)
        for k, values in enumerate(objects.measurements.values()):
            present[:, k] = ~np.isnan(values)
        if present.all():
            self.pattern_codes, rows = np.zeros(n, np.int64), [present[0].tobytes()] if n else []
        else:
            packed = np.packbits(present, axis=1)
            self.pattern_codes, first = factorize_rows(packed)
            rows = [present[i].tobytes() for i in first]
        self.patterns = [np.flatnonzero(np.frombuffer(row, bool)) for row in rows]
        if len(rows) > _PATTERNS_AT_MOST:
            # each list of names costs bytes; with this many, an object may have a NaN for what it lacks
            self.pattern_codes, kinds = factorize(objects.kind.tolist())
            groups = [self.pattern_codes == code for code in range(len(kinds))]
            self.patterns = [np.flatnonzero(present[group].any(axis=0)) for group in groups]
        empty = np.zeros(n, bool)
        self.has_nucleus = empty if objects.nuclei is None else np.diff(objects.nuclei.geom_offsets) > 0
        self.has_nucleus = self.has_nucleus & (objects.kind == ObjectKind.CELL)

    def node(self, index: int, children: list[Any], n_children: int) -> Instance:
        """Make the node of one object."""
        o, v = self.objects, self.vocabulary
        kind = ObjectKind(int(o.kind[index]))
        pairs: list[tuple[str, Any]] = []
        for key, (codes, texts) in self.shared.items():
            text = texts[codes[index]]
            if text is not None:
                pairs.append((key, v.text(text)))
        for key, column in self.own.items():
            if column[index] is not None:
                pairs.append((key, Text(encode(column[index]))))
        pairs.append((ID_KEY, Text(encode(o.ids[index]))))
        path_class = o.classes[index]
        contents = [
            NULL if o.names[index] is None else Text(encode(o.names[index])),
            NULL if o.colors[index] < 0 else v.integer(int(o.colors[index]) - ((int(o.colors[index]) >> 31) << 32)),
            v.metadata(pairs),
            self._measurements(index, kind),
            Block(struct.pack(">i", n_children)),
            *children,
            v.boolean(bool(o.locked[index])),
            NULL if path_class is None else v.path_class(path_class, o.class_colors),
            self._roi(index),
        ]
        last = struct.pack(">d", o.probability[index])
        if kind == ObjectKind.TMA_CORE:
            last += bytes([o.missing is not None and bool(o.missing[index])])
        contents.append(Block(last))
        if kind == ObjectKind.CELL:
            nucleus: Any = NULL
            if self.has_nucleus[index] and o.nuclei is not None:
                nucleus = roi_node(v, o.nuclei, index, RoiKind.POLYGON, o.plane[index].tolist())
            contents.append(nucleus)
        return Instance(v.desc(KIND_CLASSES[kind]), contents)

    def _roi(self, index: int) -> Instance:
        o, kind, plane = self.objects, RoiKind(int(self.objects.roi_kind[index])), self.objects.plane[index].tolist()
        if o.lines is not None and o.lines.geom_offsets[index] < o.lines.geom_offsets[index + 1]:
            return line_node(self.vocabulary, o.polygons, o.lines, index, kind, plane)
        return roi_node(self.vocabulary, o.polygons, index, kind, plane)

    def _measurements(self, index: int, kind: ObjectKind) -> Any:
        v = self.vocabulary
        chosen = [self.measurement_names[i] for i in self.patterns[self.pattern_codes[index]]]
        if not chosen:
            return NULL
        values = [float(self.objects.measurements[name][index]) for name in chosen]
        if kind == ObjectKind.ANNOTATION:
            items: list[Any] = [
                v.serial(MEASUREMENT, struct.pack(">d", value), [v.text(name)])
                for name, value in zip(chosen, values, strict=True)
            ]
            return v.serial(DEFAULT_LIST, b"", [v.array_list(items)])
        index_map, names = v.names(tuple(chosen))
        array = Array(v.desc("[F"), np.array(values, ">f4").tobytes())
        return Instance(v.desc(FLOAT_LIST), [(b"\x01", [index_map, names], None), (b"", [array], None)])


def roi_node(v: Vocabulary, polygons: Polygons, index: int, kind: RoiKind, plane: list[int]) -> Instance:
    """Make the node of a region; a rectangle or ellipse that is none any more becomes a polygon."""
    c, z, t = plane
    first, stop = polygons.geom_offsets[index : index + 2]
    place = struct.pack(">iii", c, t, z)
    if stop - first == 1:
        ring = polygons.coords[slice(*polygons.ring_offsets[first : first + 2])]
        box = [*ring.min(axis=0), *ring.max(axis=0)]
        if (kind == RoiKind.RECTANGLE and is_rectangle(ring)) or (kind == RoiKind.ELLIPSE and is_ellipse(ring)):
            name = RECTANGLE if kind == RoiKind.RECTANGLE else ELLIPSE
            primitives = struct.pack(">iiddddi", c, t, box[0], box[2], box[1], box[3], z)
            return v.serial(name, primitives, [NULL])
        x, y = (Array(v.desc("[F"), ring[:, axis].astype(">f4").tobytes()) for axis in (0, 1))
        return v.serial(POLYGON, place, [NULL, NULL, x, y])
    return v.serial(WKB, place, [NULL, Array(v.desc("[B"), wkb(polygons, None, index))])


def line_node(
    v: Vocabulary, polygons: Polygons, lines: Polygons, index: int, kind: RoiKind, plane: list[int]
) -> Instance:
    """Make the node of a line, polyline or points, or of a geometry that has lines or points in it."""
    c, z, t = plane
    place = struct.pack(">iii", c, t, z)
    first, stop = lines.geom_offsets[index : index + 2]
    runs = [lines.coords[slice(*lines.ring_offsets[r : r + 2])] for r in range(first, stop)]
    areas = polygons.take([index])
    if len(runs) == 1 and not len(areas.coords):
        if kind == RoiKind.LINE and len(runs[0]) == 2:
            (x, y), (x2, y2) = runs[0].tolist()
            return v.serial(LINE, struct.pack(">iiddddi", c, t, x, x2, y, y2, z), [NULL])
        if kind in (RoiKind.POINTS, RoiKind.LINE, RoiKind.POLYLINE):
            arrays = [Array(v.desc("[F"), runs[0][:, axis].astype(">f4").tobytes()) for axis in (0, 1)]
            if kind == RoiKind.POINTS:
                return v.serial(POINTS, place, [NULL, *arrays])
            return v.serial(POLYLINE, place, arrays)
    return v.serial(WKB, place, [NULL, Array(v.desc("[B"), wkb(polygons, lines, index))])


def wkb(polygons: Polygons, lines: Polygons | None, index: int) -> bytes:
    """Rings and lines of an object as well-known binary, big-endian."""
    import shapely

    areas = polygons.take([index])
    runs: list[NDArray[np.float64]] = []
    if lines is not None:
        first, stop = lines.geom_offsets[index : index + 2]
        runs = [lines.coords[slice(*lines.ring_offsets[r : r + 2])] for r in range(first, stop)]
    if not runs:
        # in normal form, so that writing what was read gives the same bytes
        whole: Any = shapely.normalize(areas.to_shapely()[0])
        return bytes(shapely.to_wkb(whole, byte_order=0))
    parts: list[Any] = [shapely.Point(run[0]) if len(run) == 1 else shapely.LineString(run) for run in runs]
    if len(areas.coords):
        parts += shapely.get_parts(areas.to_shapely()).tolist()
    kinds = {part.geom_type for part in parts}
    if kinds == {"LineString"}:
        whole = shapely.MultiLineString(parts)
    elif kinds == {"Point"}:
        whole = shapely.MultiPoint(parts)
    else:
        whole = shapely.GeometryCollection(parts)
    return bytes(shapely.to_wkb(whole, byte_order=0))


def is_rectangle(ring: NDArray[np.float64]) -> bool:
    """Whether four vertices are the corners of an upright rectangle, in order."""
    if len(ring) != 4:
        return False
    step = np.diff(ring, axis=0)
    corners = bool(np.isin(ring, [ring.min(axis=0), ring.max(axis=0)]).all())
    return corners and bool(((step == 0).sum(axis=1) == 1).all()) and bool((step[0] == -step[2]).all())


def is_ellipse(ring: NDArray[np.float64]) -> bool:
    """Whether the vertices are those that stqp reads for an upright ellipse."""
    if len(ring) != ELLIPSE_VERTICES:
        return False
    x0, y0 = ring.min(axis=0)
    x1, y1 = ring.max(axis=0)
    return bool(np.abs(ring - ellipse(x0, y0, x1, y1)).max() < 1e-9 * max(1.0, np.abs(ring).max()))


def check(objects: PathObjects) -> None:
    """Refuse what QuPath would not read.

    Raises
    ------
    UsageError
        When an object cannot be written so that QuPath reads it.
    """
    for name in {c for c in objects.classes.tolist() if c is not None}:
        parts = name.split(": ")
        if any(not p.strip() or p != p.strip() or ":" in p or "\n" in p for p in parts):
            raise UsageError(f"{name!r} cannot be a QuPath class: expected names joined by ': '")
    for what, polygons in (("outline", objects.polygons), ("nucleus", objects.nuclei)):
        if polygons is None:
            continue
        rings = np.diff(polygons.geom_offsets)
        bare = rings == 0 if objects.lines is None else (rings == 0) & (np.diff(objects.lines.geom_offsets) == 0)
        if what == "outline" and bare.any():
            raise UsageError(f"{int(bare.sum())} of {len(objects)} objects have no outline to write")
        short = int((np.diff(polygons.ring_offsets) < 3).sum())
        if short:
            raise UsageError(f"{short} rings have fewer than 3 vertices; expected polygons")
        with np.errstate(over="ignore", invalid="ignore"):
            total = polygons.coords.sum()  # finite when all are, and takes no memory
        if not np.isfinite(total) and not np.isfinite(polygons.coords).all():
            raise UsageError("some coordinates are not finite numbers")
    lines = objects.lines
    if lines is not None and not (np.isfinite(lines.coords).all() and (np.diff(lines.ring_offsets) > 0).all()):
        raise UsageError("some lines have no vertices, or coordinates that are not finite numbers")
    if (objects.parent >= np.arange(len(objects))).any() or (objects.parent < -1).any():
        raise UsageError("parents must come before their children")
    if len(set(objects.ids.tolist())) != len(objects):
        raise UsageError("some object ids occur twice; expected a UUID for each")
    for what, column in [*objects.metadata.items(), ("name", objects.names), ("id", objects.ids)]:
        texts = list(filter(None, column.tolist()))
        if max(map(len, texts), default=0) <= 10_000:
            continue  # a character takes up to 6 bytes
        longest = max(len(encode(t)) for t in texts if len(t) > 10_000)
        if longest > 0xFFFF:
            raise UsageError(f"a text of {what!r} has {longest} bytes; at most 65535 can be written")
    if ID_KEY in objects.metadata:
        raise UsageError(f"{ID_KEY!r} is not a metadata key to set; use ids")
