"""From the nodes of a .qpdata stream to columns, one object after the other."""

from __future__ import annotations

import itertools
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.codec.layout import ID_KEY, KINDS, METADATA, Q, unpacked
from stqp.qupath.java.nodes import NULL, Array, Block, Instance, StreamError
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind, random_ids
from stqp.taxonomy import RGB

ELLIPSE_VERTICES = 128
_angles = np.arange(ELLIPSE_VERTICES) * (2 * np.pi / ELLIPSE_VERTICES)
# exact zeros and ones, so that the bounds of the polygon are those of the ellipse
UNIT_CIRCLE = np.round(np.column_stack([np.cos(_angles), np.sin(_angles)]), 15)
_ROI = Q + "roi."
_BOXES = tuple(f"{kind}ROI$SerializationProxy" for kind in ("Rectangle", "Ellipse", "Line"))


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


class Roi(NamedTuple):
    """A region: its kind, rings, lines (or points), and plane (c, z, t)."""

    kind: RoiKind
    rings: list[NDArray[np.float64]]
    lines: list[NDArray[np.float64]]
    plane: tuple[int, int, int]


def roi(node: Any) -> Roi:
    """Read a region.

    Raises
    ------
    StreamError
        When it is of a class that is not known.
    """
    if node is NULL or node is None:
        return Roi(RoiKind.NONE, [], [], (-1, 0, 0))
    name = node.desc.name.removeprefix(_ROI)
    c, z, t = (0 if (value := node.get(axis)) is None else int(value) for axis in "czt")
    plane = (c, z, t)
    if name in ("PolygonROI$SerializationProxy", "PolylineROI$SerializationProxy", "PointsROI$SerializationProxy"):
        vertices = np.column_stack([numbers(node.get("x")), numbers(node.get("y"))])
        if name[:5] == "Polyg":
            return Roi(RoiKind.POLYGON, [_open(vertices)], [], plane)
        return Roi(RoiKind.POLYLINE if name[:5] == "Polyl" else RoiKind.POINTS, [], [vertices], plane)
    if name in _BOXES:
        x, y, x2, y2 = (float(node.get(key)) for key in ("x", "y", "x2", "y2"))
        if name[0] == "L":
            return Roi(RoiKind.LINE, [], [np.array([[x, y], [x2, y2]])], plane)
        box = min(x, x2), min(y, y2), max(x, x2), max(y, y2)
        if name[0] == "R":
            return Roi(RoiKind.RECTANGLE, [_rectangle(*box)], [], plane)
        return Roi(RoiKind.ELLIPSE, [ellipse(*box)], [], plane)
    if name == "GeometryROI$WKBSerializationProxy":
        return Roi(RoiKind.GEOMETRY, *wkb_parts(node.get("wkb").data), plane)
    if name == "GeometryROI$SerializationProxy":
        inner = next((o for _, others, _ in node.data for o in others if isinstance(o, Instance)), NULL)
        return Roi(RoiKind.GEOMETRY, *_jts(inner), plane)
    if name == "AreaROI$SerializationProxy":
        xs, ys = node.get("x").data, node.get("y").data
        rings = [_open(np.column_stack([numbers(x), numbers(y)])) for x, y in zip(xs, ys, strict=True)]
        return Roi(RoiKind.GEOMETRY, rings, [], plane)
    raise StreamError(f"a region is of the unknown class {node.desc.name}")


def wkb_parts(data: bytes) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Rings and lines of a geometry in well-known binary.

    Raises
    ------
    StreamError
        When it is broken.
    """
    import shapely

    try:
        parts = shapely.get_parts(shapely.from_wkb(data))
        parts = np.concatenate([shapely.get_parts(part) for part in parts]) if len(parts) else parts
        areas = np.isin(shapely.get_type_id(parts), (3, 6))
        rings = _rings(Polygons.from_shapely([_joined(parts[areas])])) if areas.any() else []
        return rings, [shapely.get_coordinates(part) for part in parts[~areas]]
    except shapely.errors.ShapelyError as error:
        raise StreamError(f"a geometry is broken ({error})") from error


def _joined(parts: NDArray[np.object_]) -> Any:
    import shapely

    return shapely.multipolygons(np.concatenate([shapely.get_parts(part) for part in parts]))


def _open(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _rings(polygons: Polygons) -> list[NDArray[np.float64]]:
    bounds = polygons.ring_offsets
    return [polygons.coords[a:b] for a, b in itertools.pairwise(bounds)]


def _jts(node: Any) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Rings and lines of a serialised JTS geometry, as QuPath up to 0.2 wrote it."""
    name = node.desc.name.rsplit(".", 1)[-1] if isinstance(node, Instance) else ""
    members: list[Any] = []
    if name == "Polygon":
        members = [node.get("shell"), *java_list(node.get("holes"))]
    elif name.startswith("Multi") or name == "GeometryCollection":
        members = java_list(node.get("geometries"))
    elif name in ("LinearRing", "LineString"):
        points = node.get("points")
        coordinates = points.get("coordinates")
        if coordinates is not None:
            vertices = np.array([[c.get("x"), c.get("y")] for c in java_list(coordinates)], dtype=np.float64)
        else:
            vertices = numbers(points.get("coords")).reshape(-1, points.get("dimension"))[:, :2]
        vertices = vertices.reshape(-1, 2)
        if not len(vertices):
            return [], []
        return ([_open(vertices)], []) if name == "LinearRing" else ([], [vertices])
    rings: list[NDArray[np.float64]] = []
    lines: list[NDArray[np.float64]] = []
    for member in members:
        more = _jts(member)
        rings += more[0]
        lines += more[1]
    return rings, lines


class Budget:
    """How much memory the objects of a file may take, so that a small hostile one does not fill the machine.

    What objects share is in the file once, and in each object's columns: a shape, a list of names.

    Parameters
    ----------
    size
        Of the file, in bytes.
    """

    def __init__(self, size: int):
        # a vertex takes 8 bytes, and may be shared by a few objects; that of an ellipse takes one
        self._vertices_left = max(1 << 20, 2 * size)
        self._most_values = max(1 << 26, 4 * size)

    def vertices(self, number: int) -> None:
        """Count vertices.

        Raises
        ------
        StreamError
            When they are more than an honest file of the size has.
        """
        self._vertices_left -= number
        if self._vertices_left < 0:
            raise StreamError("its shapes have more vertices than a file of its size can hold")

    def columns(self, objects: int, columns: int) -> None:
        """Check the size of a table, as `vertices`."""
        if objects * columns > self._most_values:
            raise StreamError(f"its {objects} objects have {columns} different measurements and keys; is it damaged?")


class Rows:
    """Collects objects one by one; `finish` makes columns of them."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.rows: list[tuple[Any, ...]] = []
        self.rings: list[list[NDArray[np.float64]]] = []
        self.nuclei: list[list[NDArray[np.float64]]] = []
        self.lines: list[list[NDArray[np.float64]]] = []
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
        other = Rows(self.budget)
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
            shape = roi(region)
            nucleus = roi(data[parts.stop + 4]).rings if kind == ObjectKind.CELL else []
            is_missing = kind == ObjectKind.TMA_CORE and last.data[8:] == b"\x01"
            color = -1 if data[1] is NULL else int(data[1].get("value")) & 0xFFFFFFFF
        except (ValueError, AttributeError, TypeError, struct.error) as error:
            raise StreamError(f"an object of {node.desc.name} has an unknown layout ({error})") from error
        is_locked = locked is not NULL and bool(locked.get("value"))
        name = None if data[0] is NULL else str(data[0])
        self.budget.vertices(sum(len(part) for part in (*shape.rings, *shape.lines, *nucleus)))
        self.rings.append(shape.rings)
        self.lines.append(shape.lines)
        self.nuclei.append(nucleus)
        text = self.path_class(path_class)
        row = kind, identity, name, text, probability, is_locked, parent, shape.kind, shape.plane, color, is_missing
        self.rows.append(row)

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
        self.budget.columns(n, len(self.metadata) + len(self.measurements))
        columns = list(zip(*self.rows, strict=True)) if n else [()] * 11
        kind, ids, names, classes, probability, locked, parent, roi_kind, plane, colors, missing = columns
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
            lines=_ragged(self.lines) if any(self.lines) else None,
            roi_kind=np.array(roi_kind, np.uint8),
            plane=np.array(plane, np.int32).reshape(-1, 3),
            colors=np.array(colors, np.int64),
            missing=missing if any(missing) else None,
            class_colors=self.colors,
        )
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
