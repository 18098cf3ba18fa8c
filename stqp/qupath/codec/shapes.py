"""The layout that many leaf objects of a .qpdata stream share, and matching it at many places in step.

Objects of one `Shape` have the same parts: the same class, the same metadata keys, the same measurements. Only
numbers, texts and references differ, and how many vertices and letters there are. So a shape is a few segments
of fixed bytes with holes; after a segment may come a stretch whose length the segment ends with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stqp.qupath.codec.ragged import Bytes, Ints, gather
from stqp.qupath.java.nodes import BASE_HANDLE
from stqp.qupath.objects import ObjectKind


class Slot(NamedTuple):
    """A place in an object: a segment, and the bytes from its beginning."""

    segment: int
    offset: int


class TextSlot(NamedTuple):
    """A text: null, a reference, or letters, which begin at the slot; so many, or (-1) as many as its segment says."""

    slot: Slot | None
    reference: bool = False
    length: int = -1


_NOWHERE, _NO_TEXT = Slot(0, 0), TextSlot(None)


class Ring(NamedTuple):
    """A polygon: segments before x and y, and where its channel, t and z are."""

    x: int
    y: int
    plane: Slot


@dataclass
class Segment:
    """Bytes that are the same in each object, but for holes.

    Attributes
    ----------
    template : uint8 (width,)
    holes : list of (offset, width)
    unit, size : int
        The last `size` bytes are a number; so many times `unit` bytes follow. 0 where none follow.
    equal : bool
        Whether the number must be that of the segment before.
    """

    template: Bytes
    holes: list[tuple[int, int]]
    unit: int = 0
    size: int = 0
    equal: bool = False


@dataclass
class Shape:
    """What objects of one layout have in common.

    Attributes
    ----------
    new : int
        Handles that each takes.
    fixed : list of (Slot, handle)
        References to the same node in each of them.
    open : list of Slot
        References that differ.
    values : list of (handle, TextSlot)
        Metadata, by the handle of the key.
    measurements : list of (handle, Slot)
        Numbers, by the handle of the name.
    names, width, count, numbers
        Handle of a list of names, bytes of each number, how many, and where the first is.
    """

    kind: ObjectKind
    new: int = 0
    segments: list[Segment] = field(default_factory=list)
    fixed: list[tuple[Slot, int]] = field(default_factory=list)
    open: list[Slot] = field(default_factory=list)
    name: TextSlot = _NO_TEXT
    values: list[tuple[int, TextSlot]] = field(default_factory=list)
    measurements: list[tuple[int, Slot]] = field(default_factory=list)
    names: int = -1
    width: int = 0
    count: int = 0
    numbers: Slot = _NOWHERE
    locked: Slot = _NOWHERE
    path_class: Slot | None = None
    box: Slot | None = None
    outline: Ring | None = None
    probability: Slot = _NOWHERE
    nucleus: Ring | None = None

    def key(self) -> tuple[Any, ...]:
        """Make something that is equal for equal shapes."""
        parts: list[Any] = []
        for segment in self.segments:
            fixed = bytearray(segment.template)
            for offset, size in segment.holes:
                fixed[offset : offset + size] = bytes(size)
            parts += [bytes(fixed), tuple(segment.holes), segment.unit, segment.size, segment.equal]
        return tuple(parts)

    def match(self, data: Bytes, starts: Ints) -> tuple[Ints, Ints, Ints]:
        """Which objects have this shape, as positions among `starts`, where they end, and their latest handles.

        The last is the largest that one refers to of those that differ; what the rest refers to is known.
        """
        index, pos, before = np.arange(len(starts)), starts, starts
        latest = np.full(len(starts), -1, np.int64)
        for number, segment in enumerate(self.segments):
            template = segment.template
            width = len(template)
            good = pos <= len(data) - width
            if not good.all():
                index, pos, before, latest = index[good], pos[good], before[good], latest[good]
            if not len(index):
                break
            rows = gather(data, pos, width)
            counts = _counts(rows, segment.size)
            good = counts >= 0
            for slot in self.open:
                if slot.segment == number:
                    handle = column(rows, slot.offset, ">u4").astype(np.int64) - BASE_HANDLE
                    good &= handle >= 0
                    latest = np.maximum(latest, handle)
            for offset, size in segment.holes:
                rows[:, offset : offset + size] = template[offset : offset + size]
            good &= rows.reshape(-1).view(f"V{width}") == template.view(f"V{width}")
            if segment.equal:
                good &= counts == before
            if not good.all():
                index, pos, counts, latest = index[good], pos[good], counts[good], latest[good]
            before = counts
            pos = pos + width + counts * segment.unit
        good = pos <= len(data)
        return index[good], pos[good], latest[good]

    def positions(self, data: Bytes, starts: Ints) -> tuple[list[Ints], list[Ints]]:
        """Where the segments of matched objects begin, and the numbers that they end with."""
        pos, places, counts = starts, [], []
        for segment in self.segments:
            places.append(pos)
            width, size = len(segment.template), segment.size
            number = _counts(gather(data, pos + (width - size), size), size)
            counts.append(number)
            pos = pos + width + number * segment.unit
        return places, counts

    def rows(self, data: Bytes, starts: Ints) -> tuple[list[Ints], list[Ints], list[Bytes]]:
        """As `positions`, and the bytes of the segments, each (n, width)."""
        pos, places, counts, parts = starts, [], [], []
        for segment in self.segments:
            places.append(pos)
            width = len(segment.template)
            parts.append(gather(data, pos, width))
            counts.append(_counts(parts[-1], segment.size))
            pos = pos + width + counts[-1] * segment.unit
        return places, counts, parts


def column(rows: Bytes, offset: int, code: str) -> NDArray[Any]:
    """Numbers at the same place of each row."""
    dtype = np.dtype(code)
    return np.ascontiguousarray(rows[:, offset : offset + dtype.itemsize]).view(dtype).reshape(-1)


def _counts(rows: Bytes, size: int) -> Ints:
    """Numbers that rows end with."""
    if not size:
        return np.zeros(len(rows), np.int64)
    return column(rows, rows.shape[1] - size, ">u2" if size == 2 else ">i4").astype(np.int64)
