"""The layout of a leaf object in a .qpdata stream, matched at many places of the file in step."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.qupath.javanodes import ARRAY, BASE_HANDLE, BLOCK, END_BLOCK, NULL_TAG, OBJECT, REFERENCE, STRING
from stqp.qupath.layout import (
    ARRAY_LIST,
    DEFAULT_LIST,
    FLOAT_LIST,
    MEASUREMENT,
    METADATA,
    POLYGON,
    RECTANGLE,
    STATS,
)
from stqp.qupath.objects import Mask, ObjectKind

Ints = NDArray[np.int64]
_OBJECT_ARRAY = "[Ljava.lang.Object;"
_DOUBLE_LIST = FLOAT_LIST.replace("FloatList", "DoubleList")
_STATS_BYTES = 60
_MOST_KEYS, _MOST_MEASUREMENTS = 64, 512


@dataclass
class TextColumn:
    """A text of each object: its place and length, or the handle it refers to; -1 where not so."""

    start: Ints
    length: Ints
    handle: Ints


@dataclass
class RingColumn:
    """A ring of each object: vertices, and where their x and y begin."""

    count: Ints
    x: Ints
    y: Ints


class _Cursor:
    """Positions in the file, one for each object, that advance together."""

    def __init__(self, data: NDArray[np.uint8], starts: Ints, handles: Mapping[str, int]):
        self.data = data
        self.pos = starts.astype(np.int64)
        self.ok = np.ones(len(starts), bool)
        self.new = np.zeros(len(starts), np.int64)
        self.references: list[tuple[Ints, Mask]] = []
        self._handles = handles
        self._limit = len(data) - 128

    def advance(self, lengths: Ints | int, where: Mask) -> None:
        """Go on; beyond the end of the file nothing matches."""
        self.pos = self.pos + np.where(where, lengths, 0)
        late = (self.pos > self._limit + 1) | (self.pos < 0)
        if late.any():
            self.ok &= ~late
            self.pos[late] = self._limit

    def number(self, ahead: int = 0) -> Ints:
        """32-bit number, unsigned."""
        d, p = self.data, self.pos + ahead
        high = d[p].astype(np.int64) << 24 | d[p + 1].astype(np.int64) << 16
        return high | d[p + 2].astype(np.int64) << 8 | d[p + 3]

    def tag(self) -> NDArray[np.uint8]:
        return self.data[self.pos]

    def expect(self, literal: bytes, where: Mask) -> None:
        """Go past these bytes."""
        got = self.data[self.pos[:, None] + np.arange(len(literal))]
        self.ok &= (got == np.frombuffer(literal, np.uint8)).all(axis=1) | ~where
        self.advance(len(literal), where)

    def reference(self, where: Mask) -> Ints:
        """Go past a reference; -1 where there is none."""
        self.ok &= (self.tag() == REFERENCE) | ~where
        handle = np.where(where, self.number(1) - BASE_HANDLE, -1)
        self.ok &= (handle >= 0) | ~where
        self.references.append((self.pos + 1, where))
        self.advance(5, where)
        return handle

    def is_class(self, tag: int, name: str) -> Mask:
        """Whether something of a class begins here."""
        handle = self._handles.get(name, -1)
        here = (self.tag() == tag) & (self.data[self.pos + 1] == REFERENCE)
        return here & (self.number(2) == BASE_HANDLE + handle) & (handle >= 0)

    def begin(self, tag: int, name: str, where: Mask) -> None:
        """Go past the head of an object or array of a class."""
        self.ok &= self.is_class(tag, name) | ~where
        self.references.append((self.pos + 2, where))
        self.advance(6, where)
        self.new += where

    def count(self, most: int, where: Mask) -> Ints:
        """Go past the length of an array; 0 elsewhere."""
        count = np.where(where, self.number(), 0)
        self.ok &= count <= most
        self.advance(4, where)
        return np.where(self.ok, count, 0)

    def text(self, where: Mask) -> TextColumn:
        """Go past a text, a reference to one, or null."""
        tag = self.tag()
        inline, other = where & (tag == STRING), where & (tag == REFERENCE)
        null = where & (tag == NULL_TAG)
        self.ok &= inline | other | null | ~where
        length = self.data[self.pos + 1].astype(np.int64) << 8 | self.data[self.pos + 2]
        start, length = np.where(inline, self.pos + 3, -1), np.where(inline, length, -1)
        handle = self.reference(other)
        self.advance(3 + length, inline)
        self.advance(1, null)
        self.new += inline
        return TextColumn(start, length, handle)

    def ring(self, where: Mask, plane: list[Ints]) -> RingColumn:
        """Go past a polygon."""
        self.begin(OBJECT, POLYGON, where)
        plane.append(self.pos)
        self.advance(12, where)
        self.expect(bytes([NULL_TAG]), where)
        stats = where & self.is_class(OBJECT, STATS)
        self.begin(OBJECT, STATS, stats)
        self.advance(_STATS_BYTES, stats)
        self.expect(bytes([NULL_TAG]), where & ~stats)
        self.begin(ARRAY, "[F", where)
        n = self.count(1 << 24, where)
        x = self.pos
        self.advance(4 * n, where)
        self.begin(ARRAY, "[F", where)
        self.ok &= self.count(1 << 24, where) == n
        y = self.pos
        self.advance(4 * n, where)
        return RingColumn(n, x, y)


@dataclass
class Match:
    """What was found at each place; only objects that are `ok` mean something.

    Attributes
    ----------
    stops, new : int64 (n,)
        Where each object ends, and how many handles it takes.
    """

    ok: Mask
    stops: Ints
    new: Ints
    kind: NDArray[np.uint8]
    name: TextColumn
    keys: list[Ints]
    values: list[TextColumn]
    measurements: list[tuple[Ints, Ints]]
    names_handle: Ints
    value_width: Ints
    value_count: Ints
    value_place: Ints
    locked_handle: Ints
    class_handle: Ints
    outline: RingColumn
    is_rectangle: Mask
    box: Ints
    plane: Ints
    probability: Ints
    nucleus: RingColumn | None
    _references: list[tuple[Ints, Mask]]

    def leading(self, starts: Ints) -> int:
        """How many objects from the first on follow each other without a gap."""
        bad = np.flatnonzero(~self.ok)
        n = int(bad[0]) if len(bad) else len(self.ok)
        gaps = np.flatnonzero(self.stops[: max(n - 1, 0)] != starts[1:n])
        return int(gaps[0]) + 1 if len(gaps) else n

    def references(self, chosen: Mask) -> tuple[Ints, Ints]:
        """Object and place of all references of the chosen objects, by object."""
        owners, places = [], []
        for place, where in self._references:
            index = np.flatnonzero(where & chosen)
            owners.append(index)
            places.append(place[index])
        owner, place = np.concatenate(owners), np.concatenate(places)
        order = np.lexsort((place, owner))
        return owner[order], place[order]


def match(data: NDArray[np.uint8], starts: Ints, kinds: Mapping[int, ObjectKind], handles: Mapping[str, int]) -> Match:
    """Match objects without children whose outline is a polygon or a rectangle.

    Parameters
    ----------
    data
        The file, and at least 128 bytes more.
    starts : (n,)
        Where objects may begin.
    kinds
        By the handle of the class.
    handles
        Of the classes in the file.
    """
    c = _Cursor(data, starts, handles)
    n = len(starts)
    every = np.ones(n, bool)
    class_of = c.number(2) - BASE_HANDLE
    kind = np.full(n, 255, np.uint8)
    for handle, value in kinds.items():
        kind[class_of == handle] = value
    c.ok &= kind != 255
    c.references.append((c.pos + 2, every))
    c.advance(6, every)
    c.new += 1
    name = c.text(every)
    c.expect(bytes([NULL_TAG]), every)  # a colour of its own is rare
    c.begin(OBJECT, METADATA, every)
    c.reference(every)
    c.begin(ARRAY, _OBJECT_ARRAY, every)
    n_keys = c.count(_MOST_KEYS, every)
    steps = [n_keys > k for k in range(int(n_keys[c.ok].max(initial=0)))]
    keys = [c.reference(where) for where in steps]
    c.begin(ARRAY, _OBJECT_ARRAY, every)
    c.ok &= c.count(_MOST_KEYS, every) == n_keys
    values = [c.text(where) for where in steps]
    c.expect(bytes([END_BLOCK]), every)

    c.ok &= (null := c.tag() == NULL_TAG) | (tagged := c.tag() == OBJECT)
    c.advance(1, null)
    singly = tagged & c.is_class(OBJECT, DEFAULT_LIST)
    c.begin(OBJECT, DEFAULT_LIST, singly)
    c.begin(OBJECT, ARRAY_LIST, singly)
    size = c.count(_MOST_MEASUREMENTS, singly)
    c.expect(bytes((BLOCK, 4)), singly)
    c.advance(4, singly)
    measurements = []
    for k in range(int(size[c.ok].max(initial=0))):
        where = singly & (size > k)
        c.begin(OBJECT, MEASUREMENT, where)
        place = c.pos
        c.advance(8, where)
        measurements.append((c.reference(where), place))
    c.expect(bytes([END_BLOCK]), singly)
    width = np.zeros(n, np.int64)
    for list_name, bytes_each in ((FLOAT_LIST, 4), (_DOUBLE_LIST, 8)):
        here = tagged & ~singly & (width == 0) & c.is_class(OBJECT, list_name)
        width[here] = bytes_each
        c.begin(OBJECT, list_name, here)
    numeric = tagged & ~singly
    c.ok &= ~numeric | (width > 0)
    c.expect(b"\x01", numeric)  # an open list has names of its own
    c.reference(numeric)
    names_handle = c.reference(numeric)
    c.begin(ARRAY, "[F", width == 4)
    c.begin(ARRAY, "[D", width == 8)
    value_count = c.count(1 << 20, numeric)
    value_place = c.pos
    c.advance(value_count * width, numeric)

    c.expect(struct.pack(">BBi", BLOCK, 4, 0), every)  # no children
    locked = c.reference(every)
    classified = c.text(every)
    c.ok &= classified.length < 0
    is_rectangle = c.is_class(OBJECT, RECTANGLE)
    planes: list[Ints] = []
    box_start = c.pos + 6
    c.begin(OBJECT, RECTANGLE, is_rectangle)
    c.advance(44, is_rectangle)
    c.expect(bytes([NULL_TAG]), is_rectangle)
    outline = c.ring(~is_rectangle, planes)
    offsets = np.where(is_rectangle[:, None], [0, 40, 4], [0, 8, 4])
    plane = np.where(is_rectangle, box_start, planes[0])[:, None] + offsets
    c.expect(bytes((BLOCK, 8)), every)
    probability = c.pos
    c.advance(8, every)
    nucleus = None
    cell = kind == ObjectKind.CELL
    if cell.any():
        empty = cell & (c.tag() == NULL_TAG)
        c.advance(1, empty)
        nucleus = c.ring(cell & ~empty, [])
    c.expect(bytes([END_BLOCK]), every)
    return Match(
        ok=c.ok,
        stops=c.pos,
        new=c.new,
        kind=kind,
        name=name,
        keys=keys,
        values=values,
        measurements=measurements,
        names_handle=names_handle,
        value_width=width,
        value_count=value_count,
        value_place=value_place,
        locked_handle=locked,
        class_handle=classified.handle,
        outline=outline,
        is_rectangle=is_rectangle,
        box=box_start + 8,
        plane=plane,
        probability=probability,
        nucleus=nucleus,
        _references=c.references,
    )
