"""Rings that need care: several behind each other, and those that cross themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def split_closed_rings(xy: Floats, first: Ints) -> Ints:
    """Starts of rings, where one run of vertices holds several rings behind each other.

    Early builds of 2.0 do not number the nuclei of a cell; each ring ends where its first vertex returns.

    Parameters
    ----------
    xy : (vertices, 2)
    first : (runs,)
        Where each run starts.
    """
    stop = np.r_[first[1:], len(xy)]
    length = stop - first
    returns = np.ones(len(xy), bool)
    for axis in (0, 1):
        returns &= xy[:, axis] == np.repeat(xy[first, axis], length)
    returns[first] = False
    returns[stop - 1] = False
    extra: list[int] = []
    runs = np.searchsorted(first, np.flatnonzero(returns), side="right") - 1
    for run in np.unique(runs):
        start, end = int(first[run]), int(stop[run])
        while end - start > 3:
            again = np.flatnonzero((xy[start + 1 : end] == xy[start]).all(axis=1))
            if len(again) == end - start - 1:  # a point
                break
            again = again[again >= 2]  # a vertex that is there twice encloses nothing
            if not len(again) or start + again[0] + 2 >= end:
                break
            start += int(again[0]) + 2
            extra.append(start)
    return np.sort(np.r_[first, np.array(extra, np.int64)])


def mend(polygons: Polygons, among: Bools) -> tuple[Polygons, Bools]:
    """Replace outlines that cross themselves by the largest part of what they enclose.

    Parameters
    ----------
    polygons
        One ring each.
    among : bool (n,)
        Where to look.

    Returns
    -------
    polygons : Polygons
        In the same order; empty where an outline encloses nothing.
    mended : bool (n,)
    """
    import shapely

    doubtful = np.flatnonzero(among & ~star_shaped(polygons))
    mended = np.zeros(len(polygons), bool)
    if not len(doubtful):
        return polygons, mended
    shapes = polygons.take(doubtful).to_shapely()
    crossing = ~shapely.is_valid(shapes)
    mended[doubtful[crossing]] = True
    if not mended.any():
        return polygons, mended
    parts, owner = shapely.get_parts(
        shapely.make_valid(shapes[crossing], method="structure", keep_collapsed=False), return_index=True
    )
    area = shapely.area(parts)
    order = np.lexsort((-area, owner))
    largest = order[np.r_[True, np.diff(owner[order]) != 0]] if len(order) else order
    rings = np.full(int(crossing.sum()), shapely.Polygon(), object)
    flat = shapely.get_type_id(parts[largest]) == 3
    rings[owner[largest[flat]]] = shapely.polygons(shapely.get_exterior_ring(parts[largest[flat]]))
    both = Polygons.concatenate([polygons, Polygons.from_shapely(rings)])
    place = np.arange(len(polygons))
    place[mended] = len(polygons) + np.arange(len(rings))
    return both.take(place), mended


def star_shaped(polygons: Polygons) -> Bools:
    """Whether the whole outline is seen from the mean of its vertices; such an outline cannot cross itself.

    Nearly every nucleus is, so that the exact test is needed for few.
    """
    result = np.zeros(len(polygons), bool)
    for chosen, block in polygons.blocks():
        starts = block.ring_offsets[block.geom_offsets]
        count = np.diff(starts)
        x, y = (block.coords[:, axis] for axis in (0, 1))
        with np.errstate(invalid="ignore"):
            x, y = (values - np.repeat(block.sums(values) / count, count) for values in (x, y))
        after_x, after_y = block.after(x), block.after(y)
        cross = x * after_y - after_x * y
        left, right = (block.sums(wrong.astype(np.float64)) == 0 for wrong in (cross <= 0, cross >= 0))
        # with every step the same way round, the outline goes round as often as it passes the ray to the right
        rounds = block.sums(((y < 0) & (after_y >= 0)).astype(np.float64))
        result[chosen] = (left | right) & (rounds == 1)
    return result
