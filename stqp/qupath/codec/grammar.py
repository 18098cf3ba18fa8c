"""Learning the layout of leaf objects of a .qpdata stream from one of them, and recognising their neighbours."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.qupath.codec.layout import (
    ARRAY_LIST,
    DEFAULT_LIST,
    FLOAT_LIST,
    MEASUREMENT,
    METADATA,
    POLYGON,
    RECTANGLE,
    STATS,
)
from stqp.qupath.codec.ragged import Ints
from stqp.qupath.codec.shapes import Ring, Segment, Shape, Slot, TextSlot
from stqp.qupath.java.nodes import ARRAY, BASE_HANDLE, BLOCK, END_BLOCK, NULL_TAG, OBJECT, REFERENCE, STRING
from stqp.qupath.objects import ObjectKind

_OBJECT_ARRAY = "[Ljava.lang.Object;"
_DOUBLE_LIST = FLOAT_LIST.replace("FloatList", "DoubleList")
_STATS_BYTES = 60
_MOST_KEYS, _MOST_MEASUREMENTS = 64, 512
_ID_LENGTH = 36
_MOST_SHAPES, _USUAL = 4096, 4


class _Other(Exception):
    """The object is of no layout that is matched."""


class Learner:
    """Knows the shapes of objects without children whose outline is a polygon or a rectangle.

    Parameters
    ----------
    data
        The file.

    Attributes
    ----------
    shapes : list of Shape
        Those met so far.
    """

    def __init__(self, data: bytes):
        self._data, self._bytes = data, np.frombuffer(data, np.uint8)
        self.shapes: list[Shape] = []
        self._codes: dict[Any, int] = {}
        self._usual: list[int] = []

    def match(
        self, starts: Ints, kinds: Mapping[int, ObjectKind], handles: Mapping[str, int], known: int
    ) -> tuple[NDArray[np.int16], Ints, Ints]:
        """Match objects that follow each other without a gap; new shapes are learned on the way.

        Parameters
        ----------
        starts : (n,)
            Where objects may begin.
        kinds
            By the handle of the class.
        handles
            Of the classes in the file, by name.
        known
            Handles from here on are not there yet.

        Returns
        -------
        codes : int16 (m,)
            Shapes of the first m objects, m <= n.
        stops, latest : int64 (m,)
            Where each ends, and the largest handle that it refers to of those that differ.
        """
        codes = np.full(len(starts), -1, np.int16)
        stops, latest = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
        rest, waiting = np.arange(len(starts)), [*self._usual]
        self._usual = []
        while len(rest):
            # the shapes of the neighbours before, then that of the first object that has none of these
            guessed = bool(waiting)
            code = waiting.pop(0) if guessed else self._code(int(starts[rest[0]]), kinds, handles, known)
            if code is None:
                break  # what comes after it is not asked for
            found, ends, last = self.shapes[code].match(self._bytes, starts[rest])
            if not guessed and (not len(found) or found[0]):
                break  # numbers of x and y differ
            if not len(found):
                continue
            if len(self._usual) < _USUAL:
                self._usual.append(code)
            chosen = rest[found]
            codes[chosen], stops[chosen], latest[chosen] = code, ends, last
            rest = np.delete(rest, found) if len(found) < len(rest) else rest[:0]
        n = int(rest[0]) if len(rest) else len(starts)
        gaps = np.flatnonzero(stops[: max(n - 1, 0)] != starts[1:n])
        n = int(gaps[0]) + 1 if len(gaps) else n
        return codes[:n], stops[:n], latest[:n]

    def _code(self, start: int, kinds: Mapping[int, ObjectKind], handles: Mapping[str, int], known: int) -> int | None:
        """Shape of the object that begins here; None when it is not of such a layout."""
        try:
            shape = _Parser(self._data, start, kinds, handles, known).parse()
        except (_Other, IndexError, struct.error):
            return None
        key = shape.key()
        if key not in self._codes:
            if len(self.shapes) >= _MOST_SHAPES:
                return None
            self._codes[key] = len(self.shapes)
            self.shapes.append(shape)
        return self._codes[key]


class _Parser:
    def __init__(
        self, data: bytes, start: int, kinds: Mapping[int, ObjectKind], handles: Mapping[str, int], known: int
    ):
        self.data, self.pos, self.first = data, start, start
        self.kinds, self.handles, self.known = kinds, handles, known
        self.holes: list[tuple[int, int]] = []
        self.shape = Shape(ObjectKind.DETECTION)

    def parse(self) -> Shape:
        shape = self.shape
        handle = struct.unpack_from(">I", self.data, self.pos + 2)[0] - BASE_HANDLE
        if handle not in self.kinds:
            raise _Other
        shape.kind = self.kinds[handle]
        self.literal(bytes((OBJECT,)))
        self.fixed()
        shape.new += 1
        shape.name = self.text()
        self.literal(bytes([NULL_TAG]))  # a colour of its own is rare
        self.metadata()
        self.measurements()
        self.literal(struct.pack(">BBi", BLOCK, 4, 0))  # no children
        shape.locked = self.reference()
        shape.path_class = None if self.null() else self.reference()
        if self.is_class(OBJECT, RECTANGLE):
            self.begin(OBJECT, RECTANGLE)
            shape.box = self.hole(44)
            self.literal(bytes([NULL_TAG]))
        else:
            shape.outline = self.ring()
        self.literal(bytes((BLOCK, 8)))
        shape.probability = self.hole(8)
        if shape.kind == ObjectKind.CELL and not self.null():
            shape.nucleus = self.ring()
        self.literal(bytes([END_BLOCK]))
        self.end_segment()
        return shape

    def metadata(self) -> None:
        self.begin(OBJECT, METADATA)
        self.fixed()
        self.begin(ARRAY, _OBJECT_ARRAY)
        n = self.count(_MOST_KEYS)
        keys = [self.fixed() for _ in range(n)]
        self.begin(ARRAY, _OBJECT_ARRAY)
        if self.count(_MOST_KEYS) != n:
            raise _Other
        self.shape.values = [(key, self.text()) for key in keys]
        self.literal(bytes([END_BLOCK]))

    def measurements(self) -> None:
        shape = self.shape
        if self.null():
            return
        if self.is_class(OBJECT, DEFAULT_LIST):
            self.begin(OBJECT, DEFAULT_LIST)
            self.begin(OBJECT, ARRAY_LIST)
            size = self.count(_MOST_MEASUREMENTS)
            self.literal(bytes((BLOCK, 4)))
            self.hole(4)
            for _ in range(size):
                self.begin(OBJECT, MEASUREMENT)
                place = self.hole(8)
                shape.measurements.append((self.fixed(), place))
            self.literal(bytes([END_BLOCK]))
            return
        shape.width = 4 if self.is_class(OBJECT, FLOAT_LIST) else 8
        self.begin(OBJECT, FLOAT_LIST if shape.width == 4 else _DOUBLE_LIST)
        self.literal(b"\x01")  # an open list has names of its own
        self.fixed()
        shape.names = self.fixed()
        self.begin(ARRAY, "[F" if shape.width == 4 else "[D")
        shape.count = self.count(8 * _MOST_MEASUREMENTS)
        shape.numbers = self.hole(shape.width * shape.count)

    def ring(self) -> Ring:
        self.begin(OBJECT, POLYGON)
        plane = self.hole(12)
        self.literal(bytes([NULL_TAG]))
        if not self.null():
            self.begin(OBJECT, STATS)
            self.hole(_STATS_BYTES)
        self.begin(ARRAY, "[F")
        x = self.jump(4, 4)
        self.begin(ARRAY, "[F")
        return Ring(x, self.jump(4, 4, equal=True), plane)

    def take(self, size: int) -> bytes:
        raw = self.data[self.pos : self.pos + size]
        if len(raw) != size:
            raise _Other
        self.pos += size
        return raw

    def literal(self, expected: bytes) -> None:
        if self.take(len(expected)) != expected:
            raise _Other

    def here(self) -> Slot:
        return Slot(len(self.shape.segments), self.pos - self.first)

    def hole(self, size: int) -> Slot:
        slot = self.here()
        self.holes.append((slot.offset, size))
        self.take(size)
        return slot

    def null(self) -> bool:
        """Go past null, if it is there."""
        found = self.data[self.pos] == NULL_TAG
        self.pos += found
        return found

    def handle(self) -> int:
        self.literal(bytes((REFERENCE,)))
        number: int = struct.unpack_from(">I", self.data, self.pos)[0] - BASE_HANDLE
        if not 0 <= number < self.known:
            raise _Other
        return number

    def fixed(self) -> int:
        """Go past a reference that all objects have."""
        number = self.handle()
        self.shape.fixed.append((self.here(), number))
        self.take(4)
        return number

    def reference(self) -> Slot:
        """Go past a reference that may differ."""
        self.handle()
        slot = self.hole(4)
        self.shape.open.append(slot)
        return slot

    def is_class(self, tag: int, name: str) -> bool:
        handle = self.handles.get(name, -1)
        expected = struct.pack(">BBI", tag, REFERENCE, BASE_HANDLE + max(handle, 0))
        return handle >= 0 and self.data[self.pos : self.pos + 6] == expected

    def begin(self, tag: int, name: str) -> None:
        """Go past the head of an object or array of a class."""
        if not self.is_class(tag, name):
            raise _Other
        self.take(1)
        self.fixed()
        self.shape.new += 1

    def count(self, most: int) -> int:
        """Go past a length that all objects have."""
        number: int = struct.unpack_from(">i", self.data, self.pos)[0]
        if not 0 <= number <= most:
            raise _Other
        self.take(4)
        return number

    def text(self) -> TextSlot:
        tag = self.data[self.pos]
        if tag == NULL_TAG:
            self.pos += 1
            return TextSlot(None)
        if tag == REFERENCE:
            return TextSlot(self.reference(), reference=True)
        self.literal(bytes((STRING,)))
        self.shape.new += 1
        length = struct.unpack_from(">H", self.data, self.pos)[0]
        if length != _ID_LENGTH:
            return TextSlot(Slot(self.jump(2, 1), 0))
        self.take(2)
        return TextSlot(self.hole(_ID_LENGTH), length=_ID_LENGTH)

    def jump(self, size: int, unit: int, equal: bool = False) -> int:
        """Go past a number and as many units of bytes; the segment that ends between them."""
        number: int = struct.unpack_from(">H" if size == 2 else ">i", self.data, self.pos)[0]
        if number < 0:
            raise _Other
        self.hole(size)
        segment = len(self.shape.segments)
        self.end_segment(unit, size, equal)
        self.take(number * unit)
        self.first = self.pos
        return segment

    def end_segment(self, unit: int = 0, size: int = 0, equal: bool = False) -> None:
        template = np.frombuffer(self.data[self.first : self.pos], np.uint8)
        self.shape.segments.append(Segment(template, self.holes, unit, size, equal))
        self.holes = []
