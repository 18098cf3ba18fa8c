"""Records of many objects: the bytes that objects of one layout share, columns in them, and stretches between."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.codec.ragged import Bytes, Ints, copy_rows, cumulative, scatter
from stqp.qupath.java.nodes import STRING, encode

_STRING = bytes([STRING])
_ID_LENGTH = 36


class Part:
    """Rings in flat x and y."""

    def __init__(self, x: Bytes, y: Bytes, starts: Ints, counts: Ints):
        self.x, self.y, self.starts, self.counts = x, y, starts, counts

    def take(self, where: Ints) -> Part:
        """Some of them."""
        return Part(self.x, self.y, self.starts[where], self.counts[where])


class Rings(Part):
    """The single rings of some polygons, in the precision of the file."""

    def __init__(self, polygons: Polygons, index: Ints):
        rings = polygons.geom_offsets[index]
        starts = polygons.ring_offsets[rings]
        counts = polygons.ring_offsets[rings + 1] - starts
        first, stop = int(starts.min()), int((starts + counts).max())
        if stop - first > 4 * int(counts.sum()) + 65536:
            part = polygons.take(index)
            coords, starts = part.coords, part.ring_offsets[:-1]
        else:
            coords, starts = polygons.coords[first:stop], starts - first
        x, y = (coords[:, axis].astype(">f4").view(np.uint8) for axis in (0, 1))
        super().__init__(x, y, starts, counts)


class Layout:
    """What objects of one layout look like: segments of bytes with columns in them, each with a tail.

    Parameters
    ----------
    where
        Places of the objects among those that are packed.
    """

    def __init__(self, where: Ints):
        self.where = where
        self.handles = 0
        self.segments: list[tuple[bytearray, list[tuple[int, Bytes]], Any]] = []
        self._begin()

    def _begin(self) -> None:
        self._template = bytearray()
        self._slots: list[tuple[int, Bytes]] = []

    def same(self, data: bytes) -> None:
        """Append the same bytes to every object."""
        self._template += data

    def slot(self, values: NDArray[Any]) -> None:
        """Append one row of bytes to each object."""
        rows = np.ascontiguousarray(values).view(np.uint8).reshape(len(self.where), -1)
        self._slots.append((len(self._template), rows))
        self._template += bytes(rows.shape[1])

    def tail(self, flat: Bytes, starts: Ints, counts: Ints, unit: int) -> None:
        """Append stretches of various lengths, which begin and count in units."""
        self.segments.append((self._template, self._slots, (flat, starts, counts, unit)))
        self._begin()

    def texts(self, texts: list[str]) -> None:
        """Append a string to each object, which takes a handle."""
        self.handles += 1
        whole = "".join(texts)
        if whole.isascii() and "\x00" not in whole:
            lengths = np.fromiter(map(len, texts), np.int64, len(texts))
            raw = whole.encode()
        else:
            encoded = [encode(t) for t in texts]
            lengths = np.fromiter(map(len, encoded), np.int64, len(texts))
            raw = b"".join(encoded)
        flat = np.frombuffer(raw, np.uint8)
        if (lengths == _ID_LENGTH).all():
            self.same(_STRING + struct.pack(">H", _ID_LENGTH))
            self.slot(flat.reshape(-1, _ID_LENGTH))
            return
        self.same(_STRING)
        self.slot(lengths.astype(">u2"))
        self.tail(flat, cumulative(lengths)[:-1], lengths, 1)

    def finish(self) -> Ints:
        """Bytes of each object."""
        self.segments.append((self._template, self._slots, None))
        lengths = np.full(len(self.where), sum(len(template) for template, _, _ in self.segments), np.int64)
        for _, _, tail in self.segments:
            if tail is not None:
                lengths += tail[2] * tail[3]
        return lengths

    def fill(self, out: Bytes, places: Ints) -> None:
        """Write the objects to their places."""
        for template, slots, tail in self.segments:
            rows = np.empty((len(places), len(template)), np.uint8)
            rows[:] = np.frombuffer(template, np.uint8)
            for offset, values in slots:
                rows[:, offset : offset + values.shape[1]] = values
            scatter(out, places, rows)
            places = places + len(template)
            if tail is not None:
                flat, starts, counts, unit = tail
                copy_rows(out, places, flat, starts * unit, counts * unit)
                places = places + counts * unit


class Packed:
    """Objects whose bytes are known but for their places.

    Attributes
    ----------
    lengths, handles : int64 (n,)
        Bytes and handles of each.
    """

    def __init__(self, n: int):
        self.lengths, self.handles = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._layouts: list[Layout] = []

    def add(self, layout: Layout) -> None:
        """Add objects of one layout."""
        self.lengths[layout.where] = layout.finish()
        self.handles[layout.where] = layout.handles
        self._layouts.append(layout)

    def fill(self, out: Bytes, places: Ints) -> None:
        """Write the objects to their places."""
        for layout in self._layouts:
            layout.fill(out, places[layout.where])
