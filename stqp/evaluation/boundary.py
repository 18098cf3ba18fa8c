"""How far the outlines of matched nuclei lie apart, for all pairs at once.

The boundary of a nucleus is its pixels that have a neighbour, along an edge, which is not the nucleus; distances
are between the centres of boundary pixels. Of a pair, with ``d`` the distance of each boundary pixel of either
nucleus to the nearest one of the other:

- mean and median symmetric boundary distance: of ``d`` over the pixels of both;
- Hausdorff-95: the larger of the two 95th percentiles of ``d``, one for each direction.

(Maier-Hein et al. 2024, Nature Methods 21:195; MONAI computes the same.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stqp.evaluation.overlap import consecutive
from stqp.evaluation.scores import Match
from stqp.polygons import Polygons

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Labels = NDArray[np.integer]
_BLOCK = 1024
_DISTANCES = 4_000_000  # that are in memory at a time
MOST_PAIRS = 100_000
"""Pairs of one image that are measured, in whole blocks all over it; more change no digit that is shown."""


def of_maps(found: Match, true_inst: Labels, pred_inst: Labels) -> Match:
    """Measure the boundaries of the matched nuclei of two instance maps.

    Parameters
    ----------
    found
        From `stqp.evaluation.scores.match`, on the table of these maps.
    true_inst, pred_inst : integer (height, width)
        The maps.

    Returns
    -------
    Match
        With ``boundary``, NaN for pairs that were not measured.
    """
    labels = [consecutive(np.asarray(inst)) for inst in (true_inst, pred_inst)]
    table = found.overlap
    # positions in the maps, which may hold nuclei that the table left out
    places = [
        np.searchsorted(ids, kept) for (_, ids), kept in zip(labels, (table.true_ids, table.pred_ids), strict=True)
    ]
    i, j = places[0][table.true_index[found.good]], places[1][table.pred_index[found.good]]
    boxes = [_boxes(inst, len(ids)) for inst, ids in labels]
    padded = [np.pad(inst, 1) for inst, _ in labels]

    def read(x0: int, y0: int, x1: int, y1: int) -> tuple[Labels, Labels]:
        height, width = padded[0].shape
        return tuple(  # type: ignore[return-value]
            _window(p, x0 + 1, y0 + 1, x1 + 1, y1 + 1, height, width) for p in padded
        )

    return replace(found, boundary=_measure(i, j, boxes[0], boxes[1], read) * found.mpp)


def of_polygons(found: Match, true: Polygons, pred: Polygons, scale: float = 1.0) -> Match:
    """Measure the boundaries of the matched nuclei of two sets of polygons, drawn as in `from_polygons`.

    Parameters
    ----------
    found
        From `stqp.evaluation.scores.match`, on the table of these polygons.
    true, pred
        The polygons.
    scale
        Pixels to draw for each pixel of the image, as for the table.

    Returns
    -------
    Match
        With ``boundary``, NaN for pairs that were not measured.
    """
    table = found.overlap
    sets = [true.scale(scale), pred.scale(scale)]
    bounds = [np.nan_to_num(s.bounds(), nan=np.inf) for s in sets]
    i, j = table.true_ids[table.true_index[found.good]] - 1, table.pred_ids[table.pred_index[found.good]] - 1
    boxes = [np.where(np.isfinite(b), np.c_[np.floor(b[:, :2]), np.ceil(b[:, 2:])], 0).astype(np.int64) for b in bounds]
    order = [np.argsort(b[:, 1], kind="stable") for b in bounds]
    tallest = [float((b[:, 3] - b[:, 1])[np.isfinite(b[:, 1])].max(initial=0)) for b in bounds]

    def read(x0: int, y0: int, x1: int, y1: int) -> tuple[Labels, Labels]:
        maps = []
        for polygons, box, by_top, tall in zip(sets, bounds, order, tallest, strict=True):
            tops = box[by_top, 1]
            near = by_top[np.searchsorted(tops, y0 - tall - 1) : np.searchsorted(tops, y1)]
            near = near[(box[near, 3] > y0) & (box[near, 0] < x1) & (box[near, 2] > x0)]
            near.sort()  # a later nucleus covers an earlier one
            maps.append(polygons.take(near).shift(-x0, -y0).rasterize((y1 - y0, x1 - x0), near + 1))
        return maps[0], maps[1]

    return replace(found, boundary=_measure(i, j, boxes[0], boxes[1], read) * found.mpp / scale)


def _measure(
    i: Ints, j: Ints, true_boxes: Ints, pred_boxes: Ints, read: Callable[[int, int, int, int], tuple[Labels, Labels]]
) -> Floats:
    """Mean, median and Hausdorff-95 in px of each pair of positions; block by block, so that memory is bounded."""
    result = np.full((len(i), 3), np.nan)
    if not len(i):
        return result
    boxes = np.c_[np.minimum(true_boxes[i, :2], pred_boxes[j, :2]), np.maximum(true_boxes[i, 2:], pred_boxes[j, 2:])]
    block = boxes[:, :2] // _BLOCK
    order = np.lexsort((block[:, 0], block[:, 1]))
    starts = np.flatnonzero(np.r_[True, (np.diff(block[order], axis=0) != 0).any(axis=1)])
    blocks = np.split(order, starts[1:])
    step = max(1, -(-len(i) // MOST_PAIRS))
    for chosen in blocks[::step]:
        x0, y0 = boxes[chosen, :2].min(axis=0) - 1
        x1, y1 = boxes[chosen, 2:].max(axis=0) + 1
        maps = read(int(x0), int(y0), int(x1), int(y1))
        rings = [_boundary(labels, which[chosen] + 1) for labels, which in zip(maps, (i, j), strict=True)]
        result[chosen] = _distances(rings[0], rings[1])
    return result


def _boundary(labels: Labels, wanted: Ints) -> tuple[NDArray[np.float32], Ints]:
    """Boundary pixels of the wanted labels, (pixels, 2), one label after the other, and where each begins."""
    inner = labels[1:-1, 1:-1]
    edge = inner != labels[:-2, 1:-1]
    for other in (labels[2:, 1:-1], labels[1:-1, :-2], labels[1:-1, 2:]):
        edge |= inner != other
    rows, columns = np.nonzero(edge & (inner > 0))
    values = inner[rows, columns]
    order = np.argsort(wanted)  # each is wanted once: no nucleus is in two pairs
    place = np.minimum(np.searchsorted(wanted, values, sorter=order), len(wanted) - 1)
    owner = np.where(wanted[order[place]] == values, order[place], -1)
    kept = np.flatnonzero(owner >= 0)
    kept = kept[np.argsort(owner[kept], kind="stable")]
    counts = np.bincount(owner[kept], minlength=len(wanted))
    return np.c_[columns[kept], rows[kept]].astype(np.float32), np.concatenate(([0], np.cumsum(counts)))


def _distances(a: tuple[NDArray[np.float32], Ints], b: tuple[NDArray[np.float32], Ints]) -> Floats:
    """Distances of pairs of boundaries; pairs of about one size are padded and compared together."""
    sizes = np.diff(a[1]), np.diff(b[1])
    result = np.full((len(sizes[0]), 3), np.nan)
    longest = np.maximum(*sizes)
    order = np.argsort(longest, kind="stable")
    order = order[np.minimum(*sizes)[order] > 0]
    while len(order):
        # the longest first: a batch is as wide as its first pair
        width = int(longest[order[-1]])
        number = max(1, min(len(order), _DISTANCES // (width * width)))
        near = order[-number:]
        near = near[longest[near] >= width * 0.8]  # padding costs no more than half
        result[near] = _batch(a, b, near)
        order = order[: len(order) - len(near)]
    return result


def _batch(a: tuple[NDArray[np.float32], Ints], b: tuple[NDArray[np.float32], Ints], pairs: Ints) -> Floats:
    padded, there = [], []
    for points, starts in (a, b):
        sizes = starts[pairs + 1] - starts[pairs]
        index = np.arange(sizes.max())
        inside = index[None] < sizes[:, None]
        # padding repeats the last point, which changes no minimum
        padded.append(points[starts[pairs][:, None] + np.minimum(index[None], sizes[:, None] - 1)])
        there.append(inside)
    squared = padded[0][:, :, None, 0] - padded[1][:, None, :, 0]
    squared *= squared
    other = padded[0][:, :, None, 1] - padded[1][:, None, :, 1]
    other *= other
    squared += other
    directed = [np.sqrt(squared.min(axis=axis).astype(np.float64)) for axis in (2, 1)]
    for values, inside in zip(directed, there, strict=True):
        values[~inside] = np.nan
    both = np.concatenate(directed, axis=1)
    worst = np.maximum(
        *(_quantile(values, inside.sum(axis=1), 0.95) for values, inside in zip(directed, there, strict=True))
    )
    number = sum(inside.sum(axis=1) for inside in there)
    return np.c_[np.nansum(both, axis=1) / number, _quantile(both, number, 0.5), worst]


def _quantile(values: Floats, sizes: Ints, q: float) -> Floats:
    """Quantile of the first values of each row as `numpy.quantile` gives it; NaN sorts behind."""
    ranked = np.sort(values, axis=1)
    place = q * (sizes - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, sizes - 1)
    rows = np.arange(len(values))
    return ranked[rows, low] + (ranked[rows, high] - ranked[rows, low]) * (place - low)


def _boxes(labels: Labels, n: int) -> Ints:
    """Boxes x0, y0, x1, y1 of the labels 1..n, (n, 4)."""
    from scipy.ndimage import find_objects

    found = find_objects(labels, n)
    return np.array([(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in found], np.int64).reshape(-1, 4)


def _window(padded: Labels, x0: int, y0: int, x1: int, y1: int, height: int, width: int) -> Labels:
    """Part of a padded map; boxes end within its margin of one pixel."""
    return padded[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
