"""Many polygons in three arrays: transform, measure, rasterise, without an object for each nucleus.

Pixel convention, everywhere in stqp and in QuPath: pixel ``(column i, row j)`` covers the square
``[i, i + 1) x [j, j + 1)``; its centre is ``(i + 0.5, j + 0.5)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_BLOCK = 1_000_000  # vertices that are measured at a time: the temporary arrays of a million nuclei fill a machine


@dataclass(frozen=True)
class Polygons:
    """``n`` polygons, each of zero or more rings, in a ragged layout.

    A point is inside a polygon when it is inside an odd number of its rings, so holes and several parts
    need nothing more. Rings are open: the first vertex is not repeated. Outer rings and holes have
    opposite orientations (`from_shapely` sees to it), so that areas add up.

    Attributes
    ----------
    coords : float64 (vertices, 2)
        x, y.
    ring_offsets : int64 (rings + 1,)
        Ring ``r`` is ``coords[ring_offsets[r]:ring_offsets[r + 1]]``.
    geom_offsets : int64 (n + 1,)
        Polygon ``i`` has the rings ``geom_offsets[i]:geom_offsets[i + 1]``.
    """

    coords: Floats
    ring_offsets: Ints
    geom_offsets: Ints

    @classmethod
    def empty(cls, n: int = 0) -> Polygons:
        """Make ``n`` polygons without rings."""
        return cls(np.empty((0, 2)), np.zeros(1, np.int64), np.zeros(n + 1, np.int64))

    @classmethod
    def from_rings(cls, coords: ArrayLike, ring_offsets: ArrayLike) -> Polygons:
        """Make polygons of one ring each; a repeated last vertex is dropped."""
        xy = np.ascontiguousarray(coords, dtype=np.float64).reshape(-1, 2)
        offsets = np.asarray(ring_offsets, dtype=np.int64)
        first, last = offsets[:-1], offsets[1:] - 1
        long = last > first
        closed = np.zeros(len(first), bool)
        same = xy[first[long]] == xy[last[long]]
        closed[long] = same[:, 0] & same[:, 1]
        if closed.any():
            keep = np.ones(len(xy), bool)
            keep[last[closed]] = False
            xy = xy[keep]
            offsets = _offsets(np.diff(offsets) - closed)
        return cls(xy, offsets, np.arange(len(offsets), dtype=np.int64))

    @classmethod
    def from_shapely(cls, geometries: Sequence[Any] | NDArray[np.object_]) -> Polygons:
        """Make polygons from shapely Polygons and MultiPolygons (others and None become empty)."""
        import shapely

        geoms = np.asarray(geometries, dtype=object)
        kinds = shapely.get_type_id(geoms)
        usable = geoms.copy()
        usable[~np.isin(kinds, (3, 6))] = None
        parts, owner = shapely.get_parts(usable, return_index=True)
        parts = shapely.orient_polygons(parts) if len(parts) else parts
        rings, part_of_ring = shapely.get_rings(parts, return_index=True)
        xy, ring_of_vertex = shapely.get_coordinates(rings, return_index=True)
        counts = np.bincount(ring_of_vertex, minlength=len(rings)).astype(np.int64)
        ring_owner = owner[part_of_ring] if len(rings) else np.empty(0, np.int64)
        ragged = cls.from_rings(xy, _offsets(counts))
        per_geom = np.bincount(ring_owner, minlength=len(geoms)).astype(np.int64)
        return cls(ragged.coords, ragged.ring_offsets, _offsets(per_geom))

    def __len__(self) -> int:
        """Count the polygons."""
        return len(self.geom_offsets) - 1

    @property
    def ring_owner(self) -> Ints:
        """Polygon of each ring."""
        return np.repeat(np.arange(len(self)), np.diff(self.geom_offsets))

    @property
    def vertex_owner(self) -> Ints:
        """Polygon of each vertex."""
        return np.repeat(self.ring_owner, np.diff(self.ring_offsets))

    @property
    def is_simple(self) -> bool:
        """Whether every polygon is exactly one ring."""
        return bool((np.diff(self.geom_offsets) == 1).all())

    def take(self, index: ArrayLike) -> Polygons:
        """Polygons at the given positions (integers, or a boolean mask), in that order."""
        chosen = np.asarray(index)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        elif not chosen.size:
            chosen = np.empty(0, np.int64)  # an empty list has no integers in it
        rings = _expand(self.geom_offsets, chosen)
        vertices = _expand(self.ring_offsets, rings)
        return Polygons(
            self.coords[vertices],
            _offsets(np.diff(self.ring_offsets)[rings]),
            _offsets(np.diff(self.geom_offsets)[chosen]),
        )

    @staticmethod
    def concatenate(parts: Iterable[Polygons]) -> Polygons:
        """Put several sets of polygons behind each other."""
        items = [*parts]
        if not items:
            return Polygons.empty()
        return Polygons(
            np.concatenate([p.coords for p in items]),
            _offsets(np.concatenate([np.diff(p.ring_offsets) for p in items])),
            _offsets(np.concatenate([np.diff(p.geom_offsets) for p in items])),
        )

    def transform(self, matrix: ArrayLike) -> Polygons:
        """Apply a 3x3 affine matrix to the column vectors (x, y, 1)."""
        m = np.asarray(matrix, dtype=np.float64)
        x, y = self.coords[:, 0], self.coords[:, 1]
        coords = np.empty_like(self.coords)
        for axis in (0, 1):  # several times as fast as a product of matrices that are two numbers wide
            np.multiply(x, m[axis, 0], out=coords[:, axis])
            coords[:, axis] += y * m[axis, 1]
            coords[:, axis] += m[axis, 2]
        return Polygons(coords, self.ring_offsets, self.geom_offsets)

    def scale(self, factor: float) -> Polygons:
        """Multiply all coordinates by `factor`."""
        return Polygons(self.coords * factor, self.ring_offsets, self.geom_offsets)

    def shift(self, dx: float, dy: float) -> Polygons:
        """Move all polygons."""
        return Polygons(self.coords + np.array([dx, dy]), self.ring_offsets, self.geom_offsets)

    def blocks(self, vertices: int = _BLOCK) -> Iterator[tuple[slice, Polygons]]:
        """Go through the polygons in runs of about so many vertices: where each run is, and its polygons."""
        starts = self.ring_offsets[self.geom_offsets]  # of the vertices of each polygon
        first = 0
        while first < len(self):
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + vertices, side="right")) - 1)
            rings = self.geom_offsets[first : last + 1]
            offsets = self.ring_offsets[rings[0] : rings[-1] + 1]
            block = Polygons(self.coords[offsets[0] : offsets[-1]], offsets - offsets[0], rings - rings[0])
            yield slice(first, last), block
            first = last

    def _measure(self, of: Callable[[Polygons], Floats], axes: tuple[int, ...] = ()) -> Floats:
        """Measure each polygon, (n, *axes), a block at a time."""
        result = np.empty((len(self), *axes))
        for chosen, block in self.blocks():
            result[chosen] = of(block)
        return result

    def following(self) -> Ints:
        """Index of the vertex that follows each vertex on its ring."""
        following = np.arange(1, len(self.coords) + 1)
        nonempty = np.diff(self.ring_offsets) > 0
        following[self.ring_offsets[1:][nonempty] - 1] = self.ring_offsets[:-1][nonempty]
        return following

    def after(self, values: Floats) -> Floats:
        """Value at the vertex that follows each vertex on its ring."""
        result = np.empty_like(values)
        result[:-1] = values[1:]
        nonempty = np.diff(self.ring_offsets) > 0
        result[self.ring_offsets[1:][nonempty] - 1] = values[self.ring_offsets[:-1][nonempty]]
        return result

    def sums(self, values: Floats) -> Floats:
        """Sum of the values at the vertices of each polygon, 0 where it is empty."""
        starts = self.ring_offsets[self.geom_offsets]
        filled = starts[1:] > starts[:-1]
        result = np.zeros(len(self))
        if filled.any():
            result[filled] = np.add.reduceat(values, starts[:-1][filled])
        return result

    def _local(self) -> tuple[Floats, Floats, Floats]:
        """First vertex of each polygon, NaN where it is empty; x and y of all vertices relative to it."""
        # relative: at 100,000 px the products would otherwise lose their digits
        starts = self.ring_offsets[self.geom_offsets]
        filled = starts[1:] > starts[:-1]
        origin = np.full((len(self), 2), np.nan)
        origin[filled] = self.coords[starts[:-1][filled]]
        x, y = (self.coords[:, axis] - np.repeat(origin[:, axis], np.diff(starts)) for axis in (0, 1))
        return origin, x, y

    def signed_area(self) -> Floats:
        """Area of each polygon, (n,); below 0 where its outer rings go round from y to x."""
        return self._measure(Polygons._signed_area)

    def _signed_area(self) -> Floats:
        _, x, y = self._local()
        return self.sums(x * self.after(y) - self.after(x) * y) / 2

    def area(self) -> Floats:
        """Area of each polygon, (n,), in squared coordinate units."""
        return np.abs(self.signed_area())

    def perimeter(self) -> Floats:
        """Length of all rings of each polygon, (n,)."""
        return self._measure(Polygons._perimeter)

    def _perimeter(self) -> Floats:
        dx, dy = (self.after(values) - values for values in (self.coords[:, 0], self.coords[:, 1]))
        return self.sums(np.hypot(dx, dy))

    def centroid(self) -> Floats:
        """Centre of mass of each polygon, (n, 2); the mean vertex where the area is 0, NaN where empty."""
        return self._measure(Polygons._centroid, (2,))

    def _centroid(self) -> Floats:
        origin, x, y = self._local()
        after_x, after_y = self.after(x), self.after(y)
        cross = x * after_y - after_x * y
        total, counts = self.sums(cross), np.diff(self.ring_offsets[self.geom_offsets])
        with np.errstate(divide="ignore", invalid="ignore"):
            for axis, (values, after) in enumerate(((x, after_x), (y, after_y))):
                moment = self.sums((values + after) * cross) / (3 * total)
                origin[:, axis] += np.where(total != 0, moment, self.sums(values) / counts)
        return origin

    def bounds(self) -> Floats:
        """Bounding boxes, (n, 4): x0, y0, x1, y1; NaN where empty."""
        owner = self.vertex_owner
        result = np.full((len(self), 4), np.nan)
        if len(owner):
            starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
            result[owner[starts], :2] = np.minimum.reduceat(self.coords, starts)
            result[owner[starts], 2:] = np.maximum.reduceat(self.coords, starts)
        return result

    def to_shapely(self) -> NDArray[np.object_]:
        """Shapely geometries, (n,); an empty polygon where there is no ring of three vertices."""
        import shapely

        lengths = np.diff(self.ring_offsets)
        long = np.repeat(lengths >= 3, lengths)
        usable = np.flatnonzero(lengths >= 3)
        renumber = np.repeat(np.arange(len(usable)), lengths[usable])
        rings = np.empty(0, object)
        if len(usable):
            rings = np.asarray(shapely.polygons(shapely.linearrings(self.coords[long], indices=renumber)), dtype=object)
        result = np.full(len(self), shapely.Polygon(), dtype=object)
        owner = self.ring_owner[usable]
        single = np.bincount(owner, minlength=len(self))[owner] == 1 if len(owner) else np.empty(0, bool)
        result[owner[single]] = rings[single]
        for index in np.unique(owner[~single]):
            result[index] = shapely.symmetric_difference_all(rings[owner == index])
        return result

    def spans(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Horizontal runs of the pixels whose centres are inside, by polygon, then row, then column.

        Returns
        -------
        owner, row, start, stop : int64
            Pixels ``start <= column < stop`` of ``row`` belong to polygon ``owner``.
        """
        a = self.coords
        b = a[self.following()]
        owner = self.vertex_owner
        upward = a[:, 1] <= b[:, 1]
        top, bottom = np.where(upward[:, None], a, b), np.where(upward[:, None], b, a)
        first = np.ceil(top[:, 1] - 0.5).astype(np.int64)
        stop = np.ceil(bottom[:, 1] - 0.5).astype(np.int64)
        counts = np.maximum(stop - first, 0)
        edge = np.repeat(np.arange(len(a)), counts)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        slope = (bottom[edge, 0] - top[edge, 0]) / (bottom[edge, 1] - top[edge, 1])
        crossing = top[edge, 0] + (row + 0.5 - top[edge, 1]) * slope
        order = _by_line(owner[edge], row, crossing)
        edge, row, crossing = edge[order], row[order], crossing[order]
        # a closed ring crosses each line of pixel centres an even number of times
        column = np.ceil(crossing - 0.5).astype(np.int64)
        start, end = column[0::2], column[1::2]
        keep = end > start
        return owner[edge[0::2]][keep], row[0::2][keep], start[keep], end[keep]

    def rasterize(
        self, shape: tuple[int, int], values: ArrayLike | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Draw the polygons into an image; a later one covers an earlier one.

        Parameters
        ----------
        shape
            Height and width in px.
        values : (n,)
            What to draw for each polygon; 1..n when None.
        out : (height, width)
            Drawn into when given; otherwise a new int32 image of zeros.
        """
        image = np.zeros(shape, np.int32) if out is None else out
        values = np.arange(1, len(self) + 1) if values is None else np.asarray(values)
        owner, row, start, stop = self.spans()
        start, stop = np.maximum(start, 0), np.minimum(stop, shape[1])
        keep = (row >= 0) & (row < shape[0]) & (stop > start)
        owner, row, start, stop = owner[keep], row[keep], start[keep], stop[keep]
        lengths = stop - start
        index = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        flat = np.repeat(row * shape[1] + start, lengths) + index
        image.reshape(-1)[flat] = np.repeat(values[owner], lengths)
        return image


def _by_line(owner: Ints, row: Ints, crossing: Floats) -> Ints:
    """Order by owner, row, crossing; owners are in order, and nearly all lines are crossed twice."""
    if not len(row):
        return np.empty(0, np.int64)
    line = owner * (int(row.max()) - int(row.min()) + 1) + (row - row.min())
    # rows go up and down along a ring, so that the sort finds long runs
    order = np.argsort(line, kind="stable")
    line, crossing = line[order], crossing[order]
    starts = np.flatnonzero(np.r_[True, line[1:] != line[:-1]])
    counts = np.diff(np.r_[starts, len(line)])
    first = starts[counts == 2]
    swapped = first[crossing[first] > crossing[first + 1]]
    order[swapped], order[swapped + 1] = order[swapped + 1], order[swapped].copy()
    rest = np.flatnonzero(np.repeat(counts != 2, counts))
    order[rest] = order[rest][np.lexsort((crossing[rest], line[rest]))]
    return order


def _offsets(counts: ArrayLike) -> Ints:
    """Cumulative counts with a leading 0."""
    return np.concatenate(([0], np.cumsum(np.asarray(counts, dtype=np.int64)))).astype(np.int64)


def _expand(offsets: Ints, chosen: NDArray[Any]) -> Ints:
    """Positions of all elements of the chosen ragged rows, in order."""
    starts, counts = offsets[:-1][chosen], np.diff(offsets)[chosen]
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
