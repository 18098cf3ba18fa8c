"""Outlines of the nuclei of an instance map, along the edges of their pixels.

The area of an outline is the number of its pixels to the last digit, unlike that of a contour through
pixel centres (7 to 8 % low for nuclei at 0.25 µm/px).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons

Ints = NDArray[np.int64]

# an edge walks clockwise (on a screen) around its pixel, which lies to its right:
# 0 east along the top, 1 south along the right, 2 west along the bottom, 3 north along the left
_OUTSIDE = ((-1, 0), (0, 1), (1, 0), (0, -1))  # the neighbour (row, column) beyond the edge
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))  # the neighbour that the edge walks towards
_START = ((0, 0), (0, 1), (1, 1), (1, 0))  # corner (row, column) where the edge begins


def polygonise(labels: NDArray[np.integer]) -> tuple[Polygons, Ints]:
    """Outline the nuclei of an instance map.

    Each nucleus becomes one valid ring around the largest part of it that hangs together by pixel edges;
    parts that touch at a corner only are other parts. Holes are filled.

    Parameters
    ----------
    labels : integer (height, width)
        0 is background.

    Returns
    -------
    polygons : Polygons
        One ring each, in px; pixel ``(i, j)`` covers ``[i, i + 1) x [j, j + 1)``.
    ids : int64 (n,)
        Label of each polygon, ascending.
    """
    parts, label_of_part = _largest_parts(np.asarray(labels))
    if not len(label_of_part):
        return Polygons.empty(), np.empty(0, np.int64)
    grid = np.zeros((parts.shape[0] + 2, parts.shape[1] + 2), np.int32)
    grid[1:-1, 1:-1] = parts
    pixel, direction, following = _edges(grid)
    root, rank, length = _ring_order(following)
    # rings one after the other, each in the order of its walk
    roots = np.flatnonzero(root == np.arange(len(root)))
    starts = np.concatenate(([0], np.cumsum(length[roots])))
    start_of_root = np.zeros(len(root), np.int64)
    start_of_root[roots] = starts[:-1]
    order = np.empty(len(root), np.int64)
    order[start_of_root[root] + rank] = np.arange(len(root))
    before = np.empty(len(root), np.int64)
    before[following] = np.arange(len(root))
    turn = (direction != direction[before])[order]
    pixel, direction = pixel[order], direction[order]
    ring = np.repeat(np.arange(len(roots)), length[roots])[turn]
    offset = np.asarray(_START)[direction[turn]]
    width = grid.shape[1]
    y = pixel[turn] // width + offset[:, 0] - 1
    x = pixel[turn] % width + offset[:, 1] - 1
    counts = np.bincount(ring, minlength=len(roots))
    rings = Polygons.from_rings(np.column_stack((x, y)), np.concatenate(([0], np.cumsum(counts))))
    outer = np.flatnonzero(rings.signed_area() > 0)
    part = grid.reshape(-1)[pixel[starts[:-1]]][outer]
    by_part = np.argsort(part)
    return rings.take(outer[by_part]), label_of_part[part[by_part] - 1]


def polygonise_bands(
    read: Callable[[int, int], NDArray[np.integer]], height: int, rows: int, highest: int
) -> tuple[Polygons, Ints, Ints]:
    """Outline the nuclei of an instance map that is too large for the memory, band by band.

    Parameters
    ----------
    read
        Gives the rows from the first number to before the second.
    height
        Rows of the map.
    rows
        Rows of a band; read once each.
    highest
        The highest label that counts; higher ones are background.

    Returns
    -------
    polygons, ids
        As of `polygonise`; of a nucleus in parts the largest one.
    beyond : int64 (k,)
        Labels that were too high, ascending.
    """
    parts: list[Polygons] = []
    ids: list[Ints] = []
    beyond: list[Ints] = []
    rest = read(0, 0)
    for top in range(0, height, rows):
        band = np.asarray(read(top, min(top + rows, height)))
        if (high := band > highest).any():
            beyond.append(np.unique(band[high]).astype(np.int64))
            band = np.where(high, 0, band)
        grid = np.concatenate([rest, band]) if len(rest) else band
        first, whole, rest = top - len(rest), grid, grid[:0]
        if top + rows < height:
            continues = np.zeros(highest + 1, bool)  # into the next band
            continues[grid[-1]] = True
            continues[0] = False
            later = continues[grid]
            whole = np.where(later, 0, grid)
            reached = np.flatnonzero(later.any(axis=1))
            if len(reached):
                rest = np.where(later, grid, 0)[reached[0] :]
        found, labels = polygonise(whole)
        parts.append(found.shift(0, first))
        ids.append(labels)
    polygons = Polygons.concatenate(parts)
    label = np.concatenate([*ids, np.empty(0, np.int64)])
    order = np.lexsort((-polygons.area(), label))
    largest = order[np.r_[True, np.diff(label[order]) != 0]] if len(order) else order
    return polygons.take(largest), label[largest], np.unique(np.concatenate([*beyond, np.empty(0, np.int64)]))


def _largest_parts(labels: NDArray[np.integer]) -> tuple[NDArray[np.int32], Ints]:
    """Keep the largest part of each label, numbered 1..n in the order of the labels; and the labels."""
    from skimage.measure import label

    if not labels.any():
        return np.zeros(labels.shape, np.int32), np.empty(0, np.int64)
    parts, n = label(labels, background=0, connectivity=1, return_num=True)
    size = np.bincount(parts.ravel(), minlength=n + 1)[1:]
    label_of = np.zeros(n + 1, np.int64)
    label_of[parts.ravel()] = labels.ravel()
    order = np.lexsort((-size, label_of[1:]))
    first = order[np.r_[True, np.diff(label_of[1:][order]) != 0]]
    lookup = np.zeros(n + 1, np.int32)
    lookup[first + 1] = np.arange(1, len(first) + 1)
    return lookup[parts], label_of[first + 1]


def _edges(grid: NDArray[np.int32]) -> tuple[Ints, NDArray[np.int8], Ints]:
    """Directed edges between labels: their pixel (flat), direction, and the edge that follows each.

    Where two pixels of a nucleus touch at a corner only, the walk crosses to the other one: within a part
    that hangs together this closes the bay between them, so that no ring meets itself.
    """
    width = grid.shape[1]
    flat = grid.reshape(-1)
    inside = np.flatnonzero(flat)
    value = flat[inside]
    pixels = [inside[flat[inside + dy * width + dx] != value] for dy, dx in _OUTSIDE]
    first = np.concatenate(([0], np.cumsum([len(p) for p in pixels])))
    following = []
    for d, pixel in enumerate(pixels):
        value = flat[pixel]
        ahead = pixel + _AHEAD[d][0] * width + _AHEAD[d][1]
        across = ahead + _OUTSIDE[d][0] * width + _OUTSIDE[d][1]
        left, straight = flat[across] == value, flat[ahead] == value
        target = np.where(left, across, np.where(straight, ahead, pixel))
        turned = np.where(left, (d + 3) % 4, np.where(straight, d, (d + 1) % 4))
        index = np.empty(len(pixel), np.int64)
        for other in range(4):
            chosen = turned == other
            index[chosen] = first[other] + np.searchsorted(pixels[other], target[chosen])
        following.append(index)
    direction = np.repeat(np.arange(4, dtype=np.int8), np.diff(first))
    return np.concatenate(pixels), direction, np.concatenate(following)


def _ring_order(following: Ints) -> tuple[Ints, Ints, Ints]:
    """Lowest edge of each edge's ring, the steps from it to the edge, and the ring's length.

    Pointers jump twice as far each round, so that the rounds are as few as the logarithm of the longest ring.
    """
    n = len(following)
    root = np.arange(n)
    jump = following.copy()
    while True:
        lower = np.minimum(root, root[jump])
        if np.array_equal(lower, root):
            break
        root, jump = lower, jump[jump]
    ends = root == np.arange(n)
    jump = np.where(ends, np.arange(n), following)
    steps = (~ends).astype(np.int64)
    while True:
        further = steps[jump]
        if not further.any():
            break
        steps = steps + further
        jump = jump[jump]
    length = np.bincount(root, minlength=n)[root]
    return root, np.where(ends, 0, length - steps), length
