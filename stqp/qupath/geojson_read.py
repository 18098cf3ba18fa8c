"""Objects from GeoJSON, as QuPath's own reader understands it, in memory that the result sets."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stqp.errors import InputError
from stqp.qupath.geo.build import GEOMETRIES, Features, built
from stqp.qupath.geo.coordinates import MARK, CoordinateStore
from stqp.qupath.geo.stream import Broken, Event, FeatureStream, blocks
from stqp.qupath.geojson import PROBABILITY, TYPES
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.taxonomy import RGB

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_KINDS = {
    **{name: kind for kind, name in TYPES.items()},
    "tma_core": ObjectKind.TMA_CORE,  # 0.3
    # up to 0.2 the id of a feature was the type of its object
    "PathAnnotationObject": ObjectKind.ANNOTATION,
    "PathDetectionObject": ObjectKind.DETECTION,
    "PathCellObject": ObjectKind.CELL,
    "PathTileObject": ObjectKind.TILE,
    "TMACoreObject": ObjectKind.TMA_CORE,
    "PathRootObject": ObjectKind.ANNOTATION,
    "unknown": ObjectKind.ANNOTATION,
    "root": ObjectKind.ANNOTATION,
}
_DEEPEST = 1000
_INTEGERS = 2**31


def read_geojson(path: Path, *, split: bool = False) -> PathObjects:
    """Read objects from GeoJSON.

    Understood are a FeatureCollection, a list of features, one feature or geometry, and documents behind each
    other (newline-delimited GeoJSON); plain, with a byte order mark, ``.gz`` or ``.zip`` (by content); of QuPath
    0.2 to 0.7 and of others. Axis-aligned rectangles are rectangles, as in QuPath. Properties that are
    none of QuPath's become metadata (text); so does an id that is no UUID, under ``id``. Measurements that are no
    numbers are left out.

    Parameters
    ----------
    path
        The file.
    split
        Whether each part of a multi-part shape becomes an object of its own, as for tools that write one
        MultiPolygon for each class. The first part keeps the id.

    Returns
    -------
    PathObjects
        In the order of the file, parents before their children.

    Raises
    ------
    InputError
        When the file cannot be read or is no GeoJSON; it names the feature.
    """
    store = CoordinateStore()
    collector = _Collector(store)
    stack: list[int] = []
    try:
        for event, item in FeatureStream(blocks(path), store).events():
            if event is Event.CLOSED:
                item.get("properties", {}).pop("", None)
                collector.fill(stack.pop(), item)
                continue
            parent = stack[-1] if stack else -1
            if event is Event.OPENED:
                del item["properties"][""]
                stack.append(collector.feature(item, parent))
                if len(stack) > _DEEPEST:
                    raise Broken(f"has children more than {_DEEPEST} deep")
            else:
                collector.add(item, parent)
        return built(collector.features, store, split)
    except RecursionError:
        raise InputError(f"{path} is nested too deep (after feature {len(collector.features)})") from None
    except Broken as error:
        where = error.args[1] if len(error.args) > 1 else f"after feature {len(collector.features)}"
        raise InputError(f"{path} {error.args[0]} ({where})") from error


class _Collector:
    """Puts what features say into columns."""

    def __init__(self, store: CoordinateStore):
        self.features = Features()
        self._store = store
        self._classes: dict[str, str] = {}
        self._known: dict[str, Callable[[int, Any], None]] = {
            "name": self._name,
            "color": self._color,
            "classification": self._classification,
            "isLocked": self._locked,
            "isMissing": self._missing,
            "measurements": self._measurements,
            "metadata": self._metadata,
            PROBABILITY: self._probability,
        }

    def add(self, item: Any, parent: int) -> None:
        """Take a feature, or whatever holds features."""
        if isinstance(item, list):
            for member in item:
                self.add(member, parent)
            return
        if not isinstance(item, dict):
            raise self._broken(f"has {json.dumps(item)[:40]} where a feature belongs", len(self.features))
        kind = item.get("type")
        if kind == "FeatureCollection":
            self.add(item.get("features") or [], parent)
        elif kind in GEOMETRIES or kind == "GeometryCollection":
            self.feature({"geometry": item}, parent)
        elif kind == "Feature" or "geometry" in item:
            self.feature(item, parent)
        else:
            raise self._broken(f"has an object of the type {kind!r} where a feature belongs", len(self.features))

    def feature(self, item: dict[str, Any], parent: int) -> int:
        """Take a feature with the children that are in it; its position."""
        index = self.features.append(parent)
        self.fill(index, item)
        return index

    def fill(self, i: int, item: dict[str, Any]) -> None:
        """Take what (a part of) a feature says."""
        if (geometry := item.get("geometry")) is not None:
            self._shape(i, geometry, self.features.outlines)
        if (nucleus := item.get("nucleusGeometry")) is not None:
            self._shape(i, nucleus, self.features.nuclei)
        identity = item.get("id")
        legacy = None
        if identity is not None:
            if isinstance(identity, str) and _UUID.fullmatch(identity):
                self.features.ids[i] = identity
            elif identity in _KINDS:
                legacy = identity
            else:
                self.features.note(i, {"id": _text(identity)})
        properties = item.get("properties")
        if properties is None:
            properties = {}
        elif not isinstance(properties, dict):
            raise self._broken("has properties that are no object", i)
        self._properties(i, properties, legacy)

    def _properties(self, i: int, properties: dict[str, Any], legacy: str | None) -> None:
        kind = legacy
        used = None
        for key in ("objectType", "object_type", "type"):
            if key in properties:
                # others have types of their own: neoplastic, 3
                if isinstance(value := properties[key], str) and (value in _KINDS or key != "type"):
                    kind, used = value, key
                break
        if kind is not None:
            self.features.kind[i] = _KINDS.get(kind, ObjectKind.ANNOTATION)
        others: dict[str, str] = {}
        children = "childObjects" if "childObjects" in properties else "children"
        for key, value in properties.items():
            if key == used or value is None:
                continue
            known = self._known.get(key)
            if known is not None:
                known(i, value)
            elif key == children and isinstance(value, list) and all(isinstance(c, dict) for c in value):
                for child in value:
                    self.add(child, i)
            else:
                ((key, value),) = self._store.restored({key: value}).items()
                others[key] = _text(value)
        if others:
            self.features.note(i, others)

    def _shape(self, i: int, geometry: Any, into: tuple[array[int], array[int], array[int]]) -> None:
        if not isinstance(geometry, dict):
            raise self._broken("has a geometry that is no object", i)
        if not geometry:
            return  # QuPath's way to write that an object has no shape
        kind = geometry.get("type")
        code = GEOMETRIES.get(kind) if isinstance(kind, str) else None
        if code is None:
            members = geometry.get("geometries")
            if kind != "GeometryCollection" or not isinstance(members, list):
                raise self._broken(f"has a geometry of the type {kind!r}", i)
            for member in members:
                self._shape(i, member, into)
        else:
            number = geometry.get(MARK)
            if number is None:
                if not isinstance(geometry.get("coordinates"), list):
                    raise self._broken("has a geometry without coordinates", i)
                number = self._store.add(geometry["coordinates"])
            for column, value in zip(into, (i, code, number), strict=True):
                column.append(value)
        if geometry.get("isEllipse") and into is self.features.outlines:
            self.features.ellipse[i] = 1
        if (plane := geometry.get("plane")) is not None:
            try:
                self.features.plane[3 * i : 3 * i + 3] = array("i", [int(plane.get(a, d)) for a, d in _PLANE])
            except (AttributeError, TypeError, ValueError, OverflowError):
                raise self._broken(f"has the plane {json.dumps(plane)[:60]}", i) from None

    def _name(self, i: int, value: Any) -> None:
        self.features.names[i] = _text(value)

    def _color(self, i: int, value: Any) -> None:
        if isinstance(value, int) and -_INTEGERS <= value < 2 * _INTEGERS:
            self.features.colors[i] = value & 0xFFFFFFFF
        elif (rgb := _rgb(value)) is not None:
            self.features.colors[i] = 0xFF << 24 | rgb[0] << 16 | rgb[1] << 8 | rgb[2]

    def _classification(self, i: int, value: Any) -> None:
        if isinstance(value, str):
            self.features.classes[i] = self._classes.setdefault(value, value) or None
            return
        if not isinstance(value, dict):
            raise self._broken(f"has the classification {json.dumps(value)[:60]}", i)
        name, color = value.get("name"), value.get("color", value.get("colorRGB"))
        if isinstance(value.get("names"), list) and name is None:
            name = ": ".join(map(str, value["names"]))
        parent, depth = value.get("parentClass"), 0
        while isinstance(parent, dict) and depth < 100:  # up to 0.3
            name, parent, depth = f"{parent.get('name')}: {name}", parent.get("parentClass"), depth + 1
        if not name:
            return
        name = self._classes.setdefault(str(name), str(name))
        self.features.classes[i] = name
        if name not in self.features.class_colors and (rgb := _rgb(color)) is not None:
            self.features.class_colors[name] = rgb

    def _locked(self, i: int, value: Any) -> None:
        self.features.locked[i] = value is True or value == "true"

    def _missing(self, i: int, value: Any) -> None:
        self.features.missing[i] = value is True or value == "true"

    def _probability(self, i: int, value: Any) -> None:
        if isinstance(value, (int, float)):
            self.features.probability[i] = value

    def _measurements(self, i: int, value: Any) -> None:
        if isinstance(value, list):  # up to 0.3
            value = {str(m.get("name")): m.get("value") for m in value if isinstance(m, dict)}
        elif not isinstance(value, dict):
            return
        try:
            self.features.measure(i, value)
        except (TypeError, OverflowError):  # text: "NaN", or another's notes
            self.features.measure(i, {k: n for k, v in value.items() if (n := _number(v)) is not None})

    def _metadata(self, i: int, value: Any) -> None:
        if isinstance(value, dict):
            texts = {k: v for k, v in value.items() if v is not None}
            for key, other in texts.items():
                if not isinstance(other, str):
                    texts[key] = _text(self._store.restored(other))
            self.features.note(i, texts)
        else:
            self.features.note(i, {"metadata": _text(value)})

    def _broken(self, message: str, i: int) -> Broken:
        return Broken(message, f"feature {i + 1}")


_PLANE = (("c", -1), ("z", 0), ("t", 0))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _rgb(value: Any) -> RGB | None:
    """Colour of three or four numbers, or of one, as Java has it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value >> 16 & 255, value >> 8 & 255, value & 255
    if isinstance(value, list) and len(value) in (3, 4) and all(isinstance(v, (int, float)) for v in value):
        r, g, b = (int(min(max(v, 0), 255)) for v in value[:3])
        return r, g, b
    return None
