"""From the nodes of a .qpdata stream to columns, one object after the other."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.javanodes import NULL, Array, Block, Instance, StreamError
from stqp.qupath.layout import ID_KEY, KINDS, METADATA, Q, unpacked
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind, random_ids
from stqp.taxonomy import RGB

ELLIPSE_VERTICES = 128
_angles = np.arange(ELLIPSE_VERTICES) * (2 * np.pi / ELLIPSE_VERTICES)
# exact zeros and ones, so that the bounds of the polygon are those of the ellipse
UNIT_CIRCLE = np.round(np.column_stack([np.cos(_angles), np.sin(_angles)]), 15)
_ROI = Q + "roi."
_PROXY = "ROI$SerializationProxy"


class Parts:
    """Where the parts of an object's node are.

    Attributes
    ----------
    start, stop : int
        Its children are ``node.data[start:stop]``.
    count : int
        Position of the block that ends with the number of children.
    """

    __slots__ = ("count", "extras", "start", "stop", "uuid")

    def __init__(self, node: Instance):
        data = node.data
        kind = KINDS.get(node.desc.name)
        tail = 0 if kind is None else 5 if kind == ObjectKind.CELL else 4
        try:
            third = data[2].desc.name if isinstance(data[2], Instance) else None
            self.uuid = data[2] if third == "java.util.UUID" else None
            if self.uuid is None:
                # up to 0.3 an object without metadata has no place for it, not even null
                self.count = 4 if third == METADATA else 3
                self.extras = data[2 : self.count]
            else:
                number = struct.unpack_from(">i", data[3].data)[0]
                self.extras = data[4 : 4 + number]
                self.count = 4 + number if number else 3
            self.start, self.stop = self.count + 1, len(data) - tail
            block = data[self.count]
        except (AttributeError, IndexError, struct.error):
            raise StreamError(f"an object of {node.desc.name} has an unknown layout") from None
        if not isinstance(block, Block) or len(block.data) < 4 or self.stop < self.start:
            raise StreamError(f"an object of {node.desc.name} has an unknown layout")


def java_list(node: Any) -> list[Any]:
    """Elements of any of Java's lists.

    Raises
    ------
    StreamError
        When the list is of a class that is not known.
    """
    if isinstance(node, Array) and isinstance(node.data, list):
        return node.data
    if node is NULL:
        return []
    if isinstance(node, Instance):
        if node.desc.name in ("java.util.ArrayList", "java.util.CollSer", "java.util.LinkedList"):
            items: list[Any] = node.data[-1][2]
            return items[1:] if items and isinstance(items[0], Block) else items
        for field in ("list", "c", "a"):
            inner = node.get(field)
            if inner is not None:
                return java_list(inner)
    raise StreamError(f"a list is of the unknown class {getattr(getattr(node, 'desc', None), 'name', node)}")


def class_text(node: Any) -> tuple[str, RGB | None]:
    """Full text of a QuPath class, parents first, and its colour."""
    names: list[str] = []
    color = node.get("colorRGB")
    rgb = unpacked(color.get("value")) if isinstance(color, Instance) else None
    while isinstance(node, Instance) and len(names) < 100:
        names.append(str(node.get("name")))
        node = node.get("parentClass")
    return ": ".join(reversed(names)), rgb


def numbers(array: Any) -> NDArray[np.float64]:
    """Values of a Java array of floats or doubles."""
    return np.frombuffer(array.data, ">f4" if array.desc.name == "[F" else ">f8").astype(np.float64)


def numbers_at(data: NDArray[np.uint8], places: NDArray[np.int64], code: str) -> NDArray[np.float64]:
    """Numbers that begin at these bytes."""
    raw = data[places[:, None] + np.arange(np.dtype(code).itemsize)]
    return raw.view(code).reshape(-1).astype(np.float64)


def _rectangle(x: float, y: float, x2: float, y2: float) -> NDArray[np.float64]:
    return np.array([[x, y], [x2, y], [x2, y2], [x, y2]])


def ellipse(x: float, y: float, x2: float, y2: float) -> NDArray[np.float64]:
    """Vertices on the ellipse within a box; the bounds are exact."""
    centre, radius = np.array([x + x2, y + y2]) / 2, np.array([x2 - x, y2 - y]) / 2
    return centre + UNIT_CIRCLE * radius


def roi(node: Any) -> tuple[RoiKind, list[NDArray[np.float64]], tuple[int, int, int]]:
    """Kind, rings and plane (c, z, t) of a region.

    Raises
    ------
    StreamError
        When it is of a class that is not known.
    """
    if node is NULL or node is None:
        return RoiKind.NONE, [], (-1, 0, 0)
    name = node.desc.name.removeprefix(_ROI)
    c, z, t = (0 if (value := node.get(axis)) is None else int(value) for axis in "czt")
    plane = (c, z, t)
    if name == "PolygonROI$SerializationProxy":
        ring = np.column_stack([numbers(node.get("x")), numbers(node.get("y"))])
        return RoiKind.POLYGON, [_open(ring)], plane
    if name in ("RectangleROI$SerializationProxy", "EllipseROI$SerializationProxy"):
        box = [float(node.get(key)) for key in ("x", "y", "x2", "y2")]
        box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
        if name[0] == "R":
            return RoiKind.RECTANGLE, [_rectangle(*box)], plane
        return RoiKind.ELLIPSE, [ellipse(*box)], plane
    simple = {"LineROI": RoiKind.LINE, "PolylineROI": RoiKind.POLYLINE, "PointsROI": RoiKind.POINTS}
    if name.endswith(_PROXY) and name.split("$")[0] in simple:
        return simple[name.split("$")[0]], [], plane
    if name == "GeometryROI$WKBSerializationProxy":
        import shapely

        try:
            geometry = shapely.from_wkb(node.get("wkb").data)
        except shapely.errors.ShapelyError as error:
            raise StreamError(f"a geometry is broken ({error})") from error
        rings = _rings(Polygons.from_shapely([geometry]))
        return RoiKind.GEOMETRY, rings, plane
    if name == "GeometryROI$SerializationProxy":
        inner = next((o for _, others, _ in node.data for o in others if isinstance(o, Instance)), NULL)
        return RoiKind.GEOMETRY, _jts(inner), plane
    if name == "AreaROI$SerializationProxy":
        xs, ys = node.get("x").data, node.get("y").data
        rings = [_open(np.column_stack([numbers(x), numbers(y)])) for x, y in zip(xs, ys, strict=True)]
        return RoiKind.GEOMETRY, rings, plane
    raise StreamError(f"a region is of the unknown class {node.desc.name}")


def _open(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _rings(polygons: Polygons) -> list[NDArray[np.float64]]:
    bounds = polygons.ring_offsets
    return [polygons.coords[a:b] for a, b in itertools.pairwise(bounds)]


def _jts(node: Any) -> list[NDArray[np.float64]]:
    """Rings of a serialised JTS geometry, as QuPath up to 0.2 wrote it."""
    name = node.desc.name.rsplit(".", 1)[-1] if isinstance(node, Instance) else ""
    if name == "Polygon":
        holes = node.get("holes")
        return _jts(node.get("shell")) + [r for hole in java_list(holes) for r in _jts(hole)]
    if name.startswith("Multi") or name == "GeometryCollection":
        return [ring for part in java_list(node.get("geometries")) for ring in _jts(part)]
    if name == "LinearRing":
        points = node.get("points")
        coordinates = points.get("coordinates")
        if coordinates is not None:
            ring = np.array([[c.get("x"), c.get("y")] for c in java_list(coordinates)], dtype=np.float64)
        else:
            ring = numbers(points.get("coords")).reshape(-1, points.get("dimension"))[:, :2]
        return [_open(ring.reshape(-1, 2))] if len(ring) else []
    return []


class Rows:
    """Collects objects one by one; `finish` makes columns of them."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.rings: list[list[NDArray[np.float64]]] = []
        self.nuclei: list[list[NDArray[np.float64]]] = []
        self.metadata: dict[str, dict[int, str]] = {}
        self.measurements: dict[str, dict[int, float]] = {}
        self.colors: dict[str, RGB] = {}
        self._classes: dict[Any, str] = {}
        self._names: dict[Any, list[str]] = {}

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.rows)

    def fresh(self) -> Rows:
        """Make an empty collector that knows the classes and names this one has met."""
        other = Rows()
        other.colors, other._classes, other._names = self.colors, self._classes, self._names
        return other

    def add(self, node: Instance, parts: Parts, parent: int) -> None:
        """Read one object.

        Raises
        ------
        StreamError
            When some part of it is not known.
        """
        data, index = node.data, len(self.rows)
        kind = KINDS[node.desc.name]
        identity = None
        for extra in parts.extras:
            if extra is NULL:
                continue
            if extra.desc.name == METADATA:
                for key_node, value_node in zip(extra.data[1].data, extra.data[2].data, strict=True):
                    key, value = str(key_node), None if value_node is NULL else str(value_node)
                    if key == ID_KEY:
                        identity = value
                    elif value is not None:
                        self.metadata.setdefault(key, {})[index] = value
            else:
                self._measure(extra, index)
        if parts.uuid is not None:
            high, low = parts.uuid.get("mostSigBits"), parts.uuid.get("leastSigBits")
            digits = struct.pack(">qq", high, low).hex()
            identity = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
        try:
            locked, path_class, region, last = data[parts.stop : parts.stop + 4]
            probability = struct.unpack_from(">d", last.data)[0]
            roi_kind, rings, plane = roi(region)
            nucleus = roi(data[parts.stop + 4])[1] if kind == ObjectKind.CELL else []
        except (ValueError, AttributeError, TypeError, struct.error) as error:
            raise StreamError(f"an object of {node.desc.name} has an unknown layout ({error})") from error
        is_locked = locked is not NULL and bool(locked.get("value"))
        name = None if data[0] is NULL else str(data[0])
        self.rings.append(rings)
        self.nuclei.append(nucleus)
        path_text = self.path_class(path_class)
        self.rows.append((kind, identity, name, path_text, probability, is_locked, parent, roi_kind, plane))

    def path_class(self, node: Any) -> str | None:
        """Full text of a class node; its colour is remembered."""
        if node is NULL:
            return None
        if node not in self._classes:
            text, color = class_text(node)
            self._classes[node] = text
            if color is not None:
                self.colors.setdefault(text, color)
        return self._classes[node]

    def measurement_names(self, node: Any) -> list[str]:
        """Text of a list of names, which many objects may share."""
        if node not in self._names:
            self._names[node] = [str(item) for item in java_list(node)]
        return self._names[node]

    def _measure(self, node: Instance, index: int) -> None:
        names = node.get("names")
        if names is not None:
            pairs = zip(self.measurement_names(names), numbers(node.get("values")).tolist(), strict=False)
        else:
            items = java_list(node.get("list"))
            pairs = zip([str(i.get("name")) for i in items], [float(i.get("value")) for i in items], strict=True)
        for name, value in pairs:
            self.measurements.setdefault(name, {})[index] = value

    def finish(self) -> PathObjects:
        """Columns of all that was added; parents are as given."""
        n = len(self.rows)
        columns = list(zip(*self.rows, strict=True)) if n else [()] * 9
        kind, ids, names, classes, probability, locked, parent, roi_kind, plane = columns
        objects = PathObjects.build(
            _ragged(self.rings),
            kind=np.array(kind, np.uint8),
            classes=classes,
            ids=[fresh if i is None else i for i, fresh in zip(ids, random_ids(n), strict=True)],
            names=names,
            probability=probability,
            locked=np.array(locked, bool),
            parent=parent,
            nuclei=_ragged(self.nuclei) if any(self.nuclei) else None,
            class_colors=self.colors,
        )
        objects.roi_kind = np.array(roi_kind, np.uint8)
        objects.plane = np.array(plane, np.int32).reshape(-1, 3)
        for key, texts in self.metadata.items():
            column = objects.metadata[key] = np.full(n, None, object)
            column[list(texts)] = list(texts.values())
        for key, values in self.measurements.items():
            numeric = objects.measurements[key] = np.full(n, np.nan)
            numeric[list(values)] = list(values.values())
        return objects


def _ragged(items: list[list[NDArray[np.float64]]]) -> Polygons:
    rings = [ring for item in items for ring in item]
    return Polygons(
        np.concatenate(rings).reshape(-1, 2) if rings else np.empty((0, 2)),
        np.concatenate(([0], np.cumsum([len(r) for r in rings]))).astype(np.int64),
        np.concatenate(([0], np.cumsum([len(i) for i in items]))).astype(np.int64),
    )
