"""What QuPath's classes look like in a .qpdata stream, and the parts that objects share."""

from __future__ import annotations

import struct
from typing import Any

from stqp.qupath.java.nodes import NULL, Array, Block, ClassDesc, Instance, StreamError, Text, encode
from stqp.qupath.objects import ObjectKind
from stqp.taxonomy import RGB, color_of

Q = "qupath.lib."
ROOT = Q + "objects.PathRootObject"
HIERARCHY = Q + "objects.hierarchy.PathObjectHierarchy"
METADATA = Q + "objects.MetadataMap"
TMA_GRID = Q + "objects.hierarchy.DefaultTMAGrid"
STAINS = Q + "color.ColorDeconvolutionStains"
WORKFLOW = Q + "plugins.workflow.Workflow"
SCRIPT_STEP = Q + "plugins.workflow.DefaultScriptableWorkflowStep"
IMAGE_TYPE = Q + "images.ImageData$ImageType"
PATH_CLASS = Q + "objects.classes.PathClass"
KIND_CLASSES = {
    ObjectKind.ANNOTATION: Q + "objects.PathAnnotationObject",
    ObjectKind.DETECTION: Q + "objects.PathDetectionObject",
    ObjectKind.CELL: Q + "objects.PathCellObject",
    ObjectKind.TILE: Q + "objects.PathTileObject",
    ObjectKind.TMA_CORE: Q + "objects.TMACoreObject",
}
KINDS = {name: kind for kind, name in KIND_CLASSES.items()}
POLYGON = Q + "roi.PolygonROI$SerializationProxy"
RECTANGLE = Q + "roi.RectangleROI$SerializationProxy"
ELLIPSE = Q + "roi.EllipseROI$SerializationProxy"
LINE = Q + "roi.LineROI$SerializationProxy"
POLYLINE = Q + "roi.PolylineROI$SerializationProxy"
POINTS = Q + "roi.PointsROI$SerializationProxy"
WKB = Q + "roi.GeometryROI$WKBSerializationProxy"
STATS = Q + "roi.ClosedShapeStatistics"
DEFAULT_LIST = Q + "measurements.DefaultMeasurementList"
MEASUREMENT = Q + "measurements.DoubleMeasurement"
NUMERIC_LIST = Q + "measurements.NumericMeasurementList$AbstractNumericMeasurementList"
FLOAT_LIST = Q + "measurements.NumericMeasurementList$FloatList"
ID_KEY = "Object ID"
ARRAY_LIST = "java.util.ArrayList"

_UNMODIFIABLE = "java.util.Collections$Unmodifiable"
_S, _SW, _E, _EN = 0x02, 0x03, 0x0C, 0x12
_TEXT = "Ljava/lang/String;"
_PLANE = "I c,I t,I z"
_BOX = f"I c,I t,D x,D x2,D y,D y2,I z,L name {_TEXT}"
_STATS_TYPE = "Lqupath/lib/roi/ClosedShapeStatistics;"
# name: serialVersionUID, flags, fields, parent
_KNOWN: dict[str, tuple[int, int, str, str | None]] = {
    "java.util.Locale": (
        9149081749638150636,
        _SW,
        f"I hashcode,L country {_TEXT},L extensions {_TEXT},L language {_TEXT},L script {_TEXT},L variant {_TEXT}",
        None,
    ),
    "java.lang.Enum": (0, _EN, "", None),
    IMAGE_TYPE: (0, _EN, "", "java.lang.Enum"),
    STAINS: (1, _E, "", None),
    WORKFLOW: (1, _E, "", None),
    SCRIPT_STEP: (1, _S, f"L map Ljava/util/Map;,L name {_TEXT},L script {_TEXT}", None),
    TMA_GRID: (1, _S, "I gridHeight,I gridWidth,L cores Ljava/util/List;", None),
    HIERARCHY: (
        1,
        _S,
        "L rootObject Lqupath/lib/objects/PathObject;,L tmaGrid Lqupath/lib/objects/hierarchy/TMAGrid;",
        None,
    ),
    Q + "objects.PathObject": (1, _E, "", None),
    Q + "objects.PathROIObject": (1, _E, "", Q + "objects.PathObject"),
    ROOT: (1, _E, "", Q + "objects.PathObject"),
    Q + "objects.PathAnnotationObject": (1, _E, "", Q + "objects.PathROIObject"),
    Q + "objects.PathDetectionObject": (1, _E, "", Q + "objects.PathROIObject"),
    Q + "objects.PathCellObject": (1, _E, "", Q + "objects.PathDetectionObject"),
    Q + "objects.PathTileObject": (1, _E, "", Q + "objects.PathDetectionObject"),
    Q + "objects.TMACoreObject": (1, _E, "", Q + "objects.PathROIObject"),
    METADATA: (1, _E, "", None),
    PATH_CLASS: (
        1,
        _S,
        f"L colorRGB Ljava/lang/Integer;,L name {_TEXT},L parentClass Lqupath/lib/objects/classes/PathClass;",
        None,
    ),
    POLYGON: (1, _S, f"{_PLANE},L name {_TEXT},L stats {_STATS_TYPE},[ x [F,[ y [F", None),
    RECTANGLE: (1, _S, _BOX, None),
    ELLIPSE: (1, _S, _BOX, None),
    LINE: (1, _S, _BOX, None),
    POLYLINE: (1, _S, f"{_PLANE},[ x [F,[ y [F", None),
    POINTS: (1, _S, f"{_PLANE},L name {_TEXT},[ x [F,[ y [F", None),
    WKB: (1, _S, f"{_PLANE},L stats Lqupath/lib/roi/GeometryROI$GeometryStats;,[ wkb [B", None),
    STATS: (
        1,
        _S,
        "D areaCached,F centroidXCached,F centroidYCached,D maxX,D maxY,D minX,D minY,I nVertices,D perimeterCached",
        None,
    ),
    DEFAULT_LIST: (1, _S, "L list Ljava/util/ArrayList;", None),
    MEASUREMENT: (1, _S, f"D value,L name {_TEXT}", None),
    NUMERIC_LIST: (1, _S, "Z isClosed,L map Ljava/util/Map;,L names Ljava/util/List;", None),
    FLOAT_LIST: (1, _S, "[ values [F", NUMERIC_LIST),
    ARRAY_LIST: (8683452581122892189, _SW, "I size", None),
    "java.util.HashMap": (362498820763181265, _SW, "F loadFactor,I threshold", None),
    _UNMODIFIABLE + "Collection": (1820017752578914078, _S, "L c Ljava/util/Collection;", None),
    _UNMODIFIABLE + "List": (
        -283967356065247728,
        _S,
        "L list Ljava/util/List;",
        _UNMODIFIABLE + "Collection",
    ),
    "java.lang.Number": (-8742448824652078965, _S, "", None),
    "java.lang.Integer": (1360826667806852920, _S, "I value", "java.lang.Number"),
    "java.lang.Double": (-9172774392245257468, _S, "D value", "java.lang.Number"),
    "java.lang.Boolean": (-3665804199014368530, _S, "Z value", None),
    "[Ljava.lang.Object;": (-8012369246846506644, _S, "", None),
    "[F": (836686056779680834, _S, "", None),
    "[B": (-5984413125824719648, _S, "", None),
}


class Vocabulary:
    """Nodes that many objects share: classes, keys, true and false, lists of measurement names.

    Parameters
    ----------
    existing
        Class descriptions of the stream that objects are added to.
    path_classes
        QuPath classes of that stream by their full text.
    """

    def __init__(self, existing: dict[str, ClassDesc] | None = None, path_classes: dict[str, Instance] | None = None):
        self._descs: dict[str, ClassDesc] = {}
        self._existing = existing or {}
        self._texts: dict[str, Text] = {}
        self._booleans: dict[bool, Instance] = {}
        self._path_classes = dict(path_classes or {})
        self._names: dict[tuple[str, ...], tuple[Instance, Instance]] = {}
        self.one = self.integer(1)

    def desc(self, name: str) -> ClassDesc:
        """Return the description of a class that `stqp` writes.

        Raises
        ------
        StreamError
            When the stream has this class with other fields.
        """
        if name in self._descs:
            return self._descs[name]
        uid, flags, text, parent = _KNOWN[name]
        parts = [part.split(" ") for part in text.split(",") if part]
        present = self._existing.get(name)
        if present is not None:
            expected = [(code, field) for code, field, *_ in parts]
            if expected != [(code, field) for code, field, _ in present.fields]:
                raise StreamError(f"its class {name} has other fields than those known")
            self._descs[name] = present
            return present
        fields = [(code, field, self.text(kind[0]) if kind else None) for code, field, *kind in parts]
        desc = ClassDesc(name, struct.pack(">q", uid), flags, fields, self.desc(parent) if parent else None)
        desc.prepare()
        self._descs[name] = desc
        return desc

    def text(self, text: str) -> Text:
        """Shared text."""
        if text not in self._texts:
            self._texts[text] = Text(encode(text))
        return self._texts[text]

    def serial(self, name: str, primitives: bytes, others: list[Any], extra: list[Any] | None = None) -> Instance:
        """Object of a class without a parent."""
        return Instance(self.desc(name), [(primitives, others, extra)])

    def integer(self, value: int) -> Instance:
        """`java.lang.Integer`."""
        data: list[Any] = [(b"", [], None), (struct.pack(">i", value), [], None)]
        return Instance(self.desc("java.lang.Integer"), data)

    def double(self, value: float) -> Instance:
        """`java.lang.Double`."""
        data: list[Any] = [(b"", [], None), (struct.pack(">d", value), [], None)]
        return Instance(self.desc("java.lang.Double"), data)

    def boolean(self, value: bool) -> Instance:
        """Shared `java.lang.Boolean`."""
        if value not in self._booleans:
            self._booleans[value] = self.serial("java.lang.Boolean", bytes([value]), [])
        return self._booleans[value]

    def array(self, data: list[Any]) -> Array:
        """Array of objects."""
        return Array(self.desc("[Ljava.lang.Object;"), data)

    def array_list(self, items: list[Any]) -> Instance:
        """`java.util.ArrayList`."""
        size = struct.pack(">i", len(items))
        return self.serial(ARRAY_LIST, size, [], [Block(size), *items])

    def hash_map(self, pairs: list[tuple[Any, Any]]) -> Instance:
        """`java.util.HashMap`."""
        capacity = 16
        while len(pairs) > capacity * 3 // 4:
            capacity *= 2
        head = Block(struct.pack(">ii", capacity, len(pairs)))
        flat = [item for pair in pairs for item in pair]
        sizes = struct.pack(">fi", 0.75, capacity * 3 // 4)
        return self.serial("java.util.HashMap", sizes, [], [head, *flat])

    def metadata(self, pairs: list[tuple[str, Any]]) -> Instance:
        """QuPath's map of text."""
        keys, values = [self.text(k) for k, _ in pairs], [v for _, v in pairs]
        return Instance(self.desc(METADATA), [self.one, self.array([*keys]), self.array(values)])

    def path_class(self, full: str, colors: dict[str, RGB]) -> Instance:
        """Shared class of a full text like ``Tumor: Positive``; not one of another colour than is asked for."""
        if full not in self._path_classes or _other_color(self._path_classes[full], colors.get(full)):
            *ancestors, name = full.split(": ")
            parent = self.path_class(": ".join(ancestors), colors) if ancestors else NULL
            color = self.integer(packed(colors.get(full) or color_of(full)))
            self._path_classes[full] = self.serial(PATH_CLASS, b"", [color, self.text(name), parent])
        return self._path_classes[full]

    def names(self, names: tuple[str, ...]) -> tuple[Instance, Instance]:
        """Shared map and list of measurement names, as a closed measurement list has them."""
        if names not in self._names:
            items = self.array_list([self.text(name) for name in names])
            twice = [(b"", [items], None), (b"", [items], None)]
            frozen = Instance(self.desc(_UNMODIFIABLE + "List"), twice)
            indices = self.hash_map([(self.text(name), self.integer(i)) for i, name in enumerate(names)])
            self._names[names] = (indices, frozen)
        return self._names[names]


def packed(rgb: RGB) -> int:
    """Colour as Java's signed ARGB."""
    return ((0xFF << 24) | (rgb[0] << 16) | (rgb[1] << 8) | rgb[2]) - (1 << 32)


def unpacked(argb: int) -> RGB:
    """Red, green, blue of Java's ARGB."""
    return (argb >> 16) & 255, (argb >> 8) & 255, argb & 255


def _other_color(path_class: Instance, wanted: RGB | None) -> bool:
    color = path_class.get("colorRGB")
    return wanted is not None and isinstance(color, Instance) and unpacked(color.get("value")) != tuple(wanted)
