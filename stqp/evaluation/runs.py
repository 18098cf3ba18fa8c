"""Pixels of polygons as horizontal runs, each pixel once: what drawing them gives, without drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_POLYGONS = 40_000  # about so many are in memory as runs at a time


@dataclass(frozen=True)
class Runs:
    """Runs of pixels in the order of rows, then columns; no pixel is in two of them.

    Attributes
    ----------
    owner : int64 (runs,)
        Which of the `chosen` polygons.
    start, stop : int64 (runs,)
        ``row * width + column`` of the first pixel, and behind the last one.
    chosen : int64
        Positions of the polygons.
    """

    owner: Ints
    start: Ints
    stop: Ints
    chosen: Ints

    def sums(self, left: int, top: int, width: int) -> tuple[Ints, Floats]:
        """Pixels of each chosen polygon, and the sums of their centres (polygons, 2)."""
        n = len(self.chosen)
        length = (self.stop - self.start).astype(np.float64)
        row, first = np.divmod(self.start, width)
        x = (first + left) + length / 2
        area = np.bincount(self.owner, length, n)
        centre = np.c_[np.bincount(self.owner, x * length, n), np.bincount(self.owner, (row + (top + 0.5)) * length, n)]
        return np.rint(area).astype(np.int64), centre


def bands(sets: Sequence[Polygons]) -> Iterator[tuple[list[Runs], int, int, int]]:
    """Go through sets of polygons from top to bottom: the runs of each in a band of rows.

    Yields
    ------
    runs : list of Runs
        One for each set.
    left, top, width
        Column and row of the place 0, and the places of a row.
    """
    bounds = [np.nan_to_num(s.bounds(), nan=np.inf) for s in sets]
    filled = [np.isfinite(b).all(axis=1) for b in bounds]
    number = sum(int(f.sum()) for f in filled)
    if not number:
        return
    corners = np.concatenate([b[f] for b, f in zip(bounds, filled, strict=True)])
    left, right = int(np.floor(corners[:, 0].min())) - 1, int(np.ceil(corners[:, 2].max())) + 1
    width = right - left
    # as many polygons begin in each band, however crowded the slide is in places
    tops = np.sort(np.floor(corners[:, 1]).astype(np.int64))
    cuts = np.unique(tops[:: _POLYGONS * len(sets)])
    ends = np.r_[cuts[1:], int(np.ceil(corners[:, 3].max())) + 1]
    orders = [np.argsort(b[:, 1], kind="stable") for b in bounds]
    tallest = [float((b[f, 3] - b[f, 1]).max(initial=0)) for b, f in zip(bounds, filled, strict=True)]
    for top, bottom in zip(cuts.tolist(), ends.tolist(), strict=True):
        runs = []
        for polygons, box, order, tall in zip(sets, bounds, orders, tallest, strict=True):
            near = _starting(box, order, top - tall - 1, bottom)
            near = np.sort(near[box[near, 3] > top])  # a later polygon covers an earlier one
            runs.append(_runs(polygons.take(near), near, left, top, bottom, width))
        yield runs, left, top, width


def _starting(box: Floats, order: Ints, low: float, high: float) -> Ints:
    """Positions, in `order` of their tops, of the polygons whose tops lie in low..high."""
    first, last = np.searchsorted(box[:, 1], [low, high], sorter=order)
    return order[first:last]


def _runs(polygons: Polygons, chosen: Ints, left: int, top: int, bottom: int, width: int) -> Runs:
    owner, row, start, stop = polygons.spans()
    inside = (row >= top) & (row < bottom)
    base = (row[inside] - top) * width - left
    owner, start, stop = owner[inside], base + start[inside], base + stop[inside]
    order = np.argsort(start, kind="stable")
    return Runs(*_disjoint(owner[order], start[order], stop[order]), chosen)


def _disjoint(owner: Ints, start: Ints, stop: Ints) -> tuple[Ints, Ints, Ints]:
    """Let later polygons cover earlier ones where runs, which are in order, overlap."""
    if not len(owner):
        return owner, start, stop
    reach = np.maximum.accumulate(stop)
    fresh = np.r_[True, start[1:] >= reach[:-1]]  # begins a cluster of runs that overlap
    if fresh.all():
        return owner, start, stop
    cluster = np.cumsum(fresh) - 1
    crowded = np.bincount(cluster)[cluster] > 1
    lengths = (stop - start)[crowded]
    pixel = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    pixel += np.repeat(start[crowded], lengths)
    of_pixel = np.repeat(owner[crowded], lengths)
    order = np.lexsort((of_pixel, pixel))
    pixel, of_pixel = pixel[order], of_pixel[order]
    last = np.r_[pixel[1:] != pixel[:-1], True]
    pixel, of_pixel = pixel[last], of_pixel[last]
    begins = np.r_[True, (np.diff(pixel) != 1) | (np.diff(of_pixel) != 0)]
    ends = np.r_[begins[1:], True]
    owner = np.r_[owner[~crowded], of_pixel[begins]]
    start = np.r_[start[~crowded], pixel[begins]]
    stop = np.r_[stop[~crowded], pixel[ends] + 1]
    order = np.argsort(start, kind="stable")
    return owner[order], start[order], stop[order]


def shared_pixels(a: Runs, b: Runs) -> tuple[Ints, Ints, Ints]:
    """Positions of the polygons of each overlapping pair, and the pixels that they share in these rows."""
    first = np.searchsorted(b.stop, a.start, side="right")
    last = np.searchsorted(b.start, a.stop, side="left")
    counts = np.maximum(last - first, 0)
    i = np.repeat(np.arange(len(counts)), counts)
    j = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    shared = np.minimum(a.stop[i], b.stop[j]) - np.maximum(a.start[i], b.start[j])
    key = a.owner[i] * len(b.chosen) + b.owner[j]
    order = np.argsort(key, kind="stable")
    key, shared = key[order], shared[order]
    starts = np.flatnonzero(np.r_[True, np.diff(key) != 0]) if len(key) else np.empty(0, np.int64)
    total = np.add.reduceat(shared, starts) if len(starts) else np.empty(0, np.int64)
    return a.chosen[key[starts] // len(b.chosen)], b.chosen[key[starts] % len(b.chosen)], total
