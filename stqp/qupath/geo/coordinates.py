"""The coordinates of GeoJSON, taken out of its text and read many at once."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons

Ints = NDArray[np.int64]

MARK = "\0"  # the key of a placeholder: the number of the geometry in the store
_MARK_TEXT = b'"\\u0000":'
_COORDINATES = re.compile(rb'"coordinates"\s*:\s*(\[[\[\]0-9eE+\-., \t\r\n]*\])')
_IS_NUMERIC = bytes(b in b"0123456789+-.eE" for b in range(256))
_OTHERS = b"[], \t\r\n"
_BAD = -1
_PIECE = 1 << 20


class Parts(NamedTuple):
    """Runs of positions of several objects.

    Attributes
    ----------
    runs : Polygons
        Runs of vertices of each object; of rings, the repeated last vertex is gone.
    outer : bool (runs,)
        Runs that begin a polygon; the others in it are its holes.
    """

    runs: Polygons
    outer: NDArray[np.bool_]


class CoordinateStore:
    """Coordinates of geometries, numbered as they came, in a few arrays."""

    def __init__(self) -> None:
        self.count = 0
        self._xy = np.empty((1 << 16, 2))
        self._used = 0
        self._levels: list[NDArray[np.int8]] = []
        self._positions: list[Ints] = []
        self._depths: list[NDArray[np.int8]] = []
        self._texts: dict[int, bytes] = {}

    def take_from(self, text: bytes) -> bytes:
        """Read the coordinates in a piece of JSON, and put numbers in their places.

        A key within a text value has a backslash before its quotes, so that it is never taken for one.
        """
        pieces: list[bytes] = []
        texts: list[bytes] = []
        end = 0
        for found in _COORDINATES.finditer(text):
            inside = found[1]
            if inside.count(b"[") != inside.count(b"]"):
                continue  # something else is among the numbers: json says what
            pieces += [text[end : found.start()], _MARK_TEXT, b"%d" % (self.count + len(texts))]
            texts.append(inside)
            end = found.end()
        self._texts = {**dict(list(self._texts.items())[-1:]), **dict(enumerate(texts, self.count))}
        self._read(texts)
        return b"".join([*pieces, text[end:]])

    def add(self, value: Any) -> int:
        """Read coordinates that json has read; the number of the geometry."""
        self._read([json.dumps(value).encode()])
        return self.count - 1

    def restored(self, value: Any) -> Any:
        """Put back coordinates that were taken out of a property that is none of QuPath's."""
        if isinstance(value, dict):
            return {
                ("coordinates" if k == MARK else k): (
                    json.loads(self._texts.get(v, b"null")) if k == MARK else self.restored(v)
                )
                for k, v in value.items()
            }
        return [self.restored(v) for v in value] if isinstance(value, list) else value

    def _read(self, texts: list[bytes]) -> None:
        if not texts:
            return
        try:
            xy, levels, positions, depths = _parsed(b"".join(texts), len(texts))
        except ValueError:
            if len(texts) > 1:  # find the one that is broken
                self._read(texts[: len(texts) // 2])
                self._read(texts[len(texts) // 2 :])
                return
            xy, levels = np.empty((0, 2)), np.empty(0, np.int8)
            positions, depths = np.zeros(1, np.int64), np.full(1, _BAD, np.int8)
        self.count += len(texts)
        stop = self._used + len(xy)
        if stop > len(self._xy):  # grows in place, where blocks would have to be joined in the end
            self._xy.resize((stop + stop // 2, 2), refcheck=False)
        self._xy[self._used : stop] = xy
        self._used = stop
        self._levels.append(levels)
        self._positions.append(positions)
        self._depths.append(depths)

    def finish(self) -> Coordinates:
        """All that was read; the store is then empty."""
        xy, self._xy = self._xy, np.empty((0, 2))
        xy.resize((self._used, 2), refcheck=False)
        levels = np.concatenate(self._levels) if self._levels else np.empty(0, np.int8)
        positions = np.concatenate(self._positions) if self._positions else np.empty(0, np.int64)
        depths = np.concatenate(self._depths) if self._depths else np.empty(0, np.int8)
        return Coordinates(xy, levels, np.concatenate(([0], np.cumsum(positions))), depths)


class Coordinates(NamedTuple):
    """The coordinates of ``m`` geometries.

    Attributes
    ----------
    xy : float64 (positions, 2)
    levels : int8 (positions,)
        Brackets that open before a position beside its own: 0 within a run, 1 for a new run, 2 for a new polygon.
    offsets : int64 (m + 1,)
    depths : int8 (m,)
        Brackets around a position, 0 for an empty geometry, -1 where they differ or are no numbers.
    """

    xy: NDArray[np.float64]
    levels: NDArray[np.int8]
    offsets: Ints
    depths: NDArray[np.int8]

    def parts(self, geometries: Ints, owner: Ints, n: int, rings: bool) -> Parts:
        """Runs of geometries that belong to `n` owners; those of one owner behind each other.

        Geometries that stand side by side are changed in place: this can be asked for each but once.
        """
        order = np.argsort(owner, kind="stable")
        geometries, owner = geometries[order], owner[order]
        lengths = np.diff(self.offsets)[geometries]
        places = np.cumsum(lengths) - lengths
        index: Any = slice(0, 0)
        if len(geometries) and (np.diff(geometries) == 1).all():  # all side by side: no copy
            index = slice(self.offsets[geometries[0]], self.offsets[geometries[-1] + 1])
        elif len(geometries):
            index = np.repeat(self.offsets[geometries] - places, lengths) + np.arange(lengths.sum())
        xy, levels = self.xy[index], self.levels[index].copy()
        levels[places[lengths > 0]] = 2
        starts = np.flatnonzero(levels > 0)
        offsets = np.append(starts, len(xy)).astype(np.int64)
        if rings:
            xy, offsets = _opened(xy, offsets)
        counts = np.bincount(np.repeat(owner, lengths)[starts], minlength=n)
        geom_offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        return Parts(Polygons(xy, offsets, geom_offsets), levels[starts] > 1)


def _opened(xy: NDArray[np.float64], offsets: Ints) -> tuple[NDArray[np.float64], Ints]:
    """Take the repeated last vertices out of rings, in place: the coordinates are most of what a file is."""
    first, last = offsets[:-1], offsets[1:] - 1
    closed = (last > first) & (xy[first] == xy[last]).all(axis=1)
    keep = np.ones(len(xy), bool)
    keep[last[closed]] = False
    place = 0
    for start in range(0, len(xy), _PIECE):
        kept = xy[start : start + _PIECE][keep[start : start + _PIECE]]
        xy[place : place + len(kept)] = kept
        place += len(kept)
    return xy[:place], np.concatenate(([0], np.cumsum(np.diff(offsets) - closed))).astype(np.int64)


def _parsed(text: bytes, number: int) -> tuple[NDArray[np.float64], NDArray[np.int8], Ints, NDArray[np.int8]]:
    """Positions, levels, positions of each geometry and their depth, of arrays of numbers behind each other.

    Raises
    ------
    ValueError
        When they are not what coordinates are.
    """
    import pyarrow as pa

    data = np.frombuffer(text, np.uint8)
    # bytes.translate is ten times as fast as a table in numpy
    numeric = np.concatenate(([False], np.frombuffer(text.translate(_IS_NUMERIC), bool), [False]))
    edges = np.flatnonzero(numeric[1:] != numeric[:-1])
    begins, stops = edges[0::2], edges[1::2]
    offsets = pa.py_buffer(np.concatenate(([0], np.cumsum(stops - begins))).astype(np.int64))
    strings = pa.LargeStringArray.from_buffers(len(begins), offsets, pa.py_buffer(text.translate(None, _OTHERS)))
    values = strings.cast(pa.float64()).to_numpy(zero_copy_only=False)  # ArrowInvalid is a ValueError
    brackets = np.flatnonzero((data == ord("[")) | (data == ord("]")))
    opens = data[brackets] == ord("[")
    depth = np.cumsum(np.where(opens, 1, -1))
    if depth.min() < 0 or depth[-1] != 0 or np.count_nonzero(depth == 0) != number:
        raise ValueError("brackets")
    inner = np.flatnonzero(opens[:-1] & ~opens[1:])  # lists without lists within
    first, dimensions = _members(begins, brackets[inner], brackets[inner + 1])
    commas = np.count_nonzero(data == ord(","))
    if dimensions.sum() != len(values) or commas != len(values) - number + np.count_nonzero(dimensions == 0):
        raise ValueError("numbers")
    geometry = np.cumsum(depth == 0)[inner]  # those that are closed before
    used = dimensions > 0
    if (dimensions[used] < 2).any():
        raise ValueError("dimensions")
    before = np.concatenate(([-2], inner[:-1]))
    before_depth = np.concatenate(([0], depth[inner[:-1]] - 1))
    levels = (inner - before - 2 + depth[inner] - 1 - before_depth) // 2
    # an empty list beside positions begins what they then do not
    levels = np.maximum.reduceat(levels, _run_starts(used)) if not used.all() and used.any() else levels[used]
    inner, first, geometry = inner[used], first[used], geometry[used]
    at = np.minimum(depth[inner], 100)
    positions = np.bincount(geometry, minlength=number).astype(np.int64)
    depths = np.zeros(number, np.int64)
    depths[geometry] = at
    depths[geometry[depths[geometry] != at]] = _BAD
    xy = np.column_stack([values[first], values[first + 1]]) if len(first) else np.empty((0, 2))
    return xy, np.minimum(levels, 3).astype(np.int8), positions, depths.astype(np.int8)


def _members(begins: Ints, opened: Ints, closed: Ints) -> tuple[Ints, Ints]:
    """First number in each list and how many are there, by their places in the text."""
    pairs = 2 * np.arange(len(opened))
    if len(begins) == 2 * len(opened) and (begins[0::2] > opened).all() and (begins[1::2] < closed).all():
        return pairs, np.full(len(opened), 2)
    first = np.searchsorted(begins, opened)
    return first, np.searchsorted(begins, closed) - first


def _run_starts(used: NDArray[np.bool_]) -> Ints:
    """Start of each stretch that ends with a used element; the last stretch takes what follows."""
    ends = np.flatnonzero(used)
    return np.concatenate(([0], ends[:-1] + 1)).astype(np.int64)
