"""What two sets of nuclei share: areas, centres and the sparse table of their overlaps.

All scores are made from this table, so it does not matter whether the nuclei came as instance maps or as
polygons.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.errors import InputError
from stqp.evaluation import runs
from stqp.inference.detections import in_boxes
from stqp.polygons import Polygons

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_PIXELS = 4_000_000  # of a map that are compared at a time


@dataclass(frozen=True)
class Overlap:
    """Two sets of nuclei, ``n`` true and ``m`` predicted, and the pixels that they share.

    Attributes
    ----------
    true_ids, pred_ids : int64 (n,), (m,)
        Ids of the nuclei that have at least one pixel, ascending.
    true_area, pred_area : int64
        Pixels of each nucleus.
    true_xy, pred_xy : float64 (n, 2), (m, 2)
        Centres of mass in px.
    true_index, pred_index, shared : int64 (pairs,)
        Positions of the nuclei of each overlapping pair, and the pixels that they share.
    true_types, pred_types : int64
        Class ids; 0 is Unknown.
    pred_probability : float64 (m,) or None
        Probability of the predicted class, NaN where there is none.
    """

    true_ids: Ints
    pred_ids: Ints
    true_area: Ints
    pred_area: Ints
    true_xy: Floats
    pred_xy: Floats
    true_index: Ints
    pred_index: Ints
    shared: Ints
    true_types: Ints
    pred_types: Ints
    pred_probability: Floats | None = None

    @property
    def iou(self) -> Floats:
        """Intersection over union of each overlapping pair."""
        union = self.true_area[self.true_index] + self.pred_area[self.pred_index] - self.shared
        return self.shared / union

    def select(self, true_mask: NDArray[np.bool_], pred_mask: NDArray[np.bool_]) -> Overlap:
        """Keep some of the true and some of the predicted nuclei."""
        kept = true_mask[self.true_index] & pred_mask[self.pred_index]
        return replace(
            self,
            true_ids=self.true_ids[true_mask],
            pred_ids=self.pred_ids[pred_mask],
            true_area=self.true_area[true_mask],
            pred_area=self.pred_area[pred_mask],
            true_xy=self.true_xy[true_mask],
            pred_xy=self.pred_xy[pred_mask],
            true_index=(np.cumsum(true_mask) - 1)[self.true_index[kept]],
            pred_index=(np.cumsum(pred_mask) - 1)[self.pred_index[kept]],
            shared=self.shared[kept],
            true_types=self.true_types[true_mask],
            pred_types=self.pred_types[pred_mask],
            pred_probability=None if self.pred_probability is None else self.pred_probability[pred_mask],
        )

    def within(self, boxes: ArrayLike) -> Overlap:
        """Keep the nuclei, whole, whose centres lie in one of the boxes ``(x0, y0, x1, y1)`` in px."""
        return self.select(in_boxes(self.true_xy, boxes), in_boxes(self.pred_xy, boxes))


def from_maps(
    true_inst: NDArray[np.integer],
    pred_inst: NDArray[np.integer],
    true_types: ArrayLike | None = None,
    pred_types: ArrayLike | None = None,
    true_ids: ArrayLike | None = None,
    pred_ids: ArrayLike | None = None,
) -> Overlap:
    """Table of two instance maps.

    Parameters
    ----------
    true_inst, pred_inst : integer (height, width)
        0 is background; ids need not be consecutive.
    true_types, pred_types : (n,), (m,)
        Class id of each nucleus; all Unknown when None.
    true_ids, pred_ids
        The ids that the types belong to; the map's ids in ascending order when None. Ids that the map
        lacks are dropped.

    Raises
    ------
    InputError
        When the maps differ in size, or the types do not fit the ids.
    """
    true_inst, pred_inst = np.asarray(true_inst), np.asarray(pred_inst)
    if true_inst.shape != pred_inst.shape or true_inst.ndim != 2:
        raise InputError(
            f"expected two instance maps of one size, found {true_inst.shape} (true) and {pred_inst.shape} (predicted)"
        )
    a, a_ids = consecutive(true_inst)
    b, b_ids = consecutive(pred_inst)
    collect = _Collector(len(a_ids), len(b_ids))
    rows = max(1, _PIXELS // max(a.shape[1], 1))
    for top in range(0, a.shape[0], rows):
        collect.add(a[top : top + rows], b[top : top + rows], 0, top)
    return collect.table(
        a_ids,
        b_ids,
        types_of(true_types, true_ids, a_ids, "true"),
        types_of(pred_types, pred_ids, b_ids, "predicted"),
    )


def from_polygons(
    true: Polygons,
    pred: Polygons,
    true_types: ArrayLike,
    pred_types: ArrayLike,
    scale: float = 1.0,
) -> Overlap:
    """Table of two sets of polygons, in time and memory that grow with their number.

    The result equals that of drawing each set into one instance map (a later nucleus covers an earlier
    one) and comparing the maps, but only runs of pixels are made, never a map. Nuclei that keep no pixel are
    dropped. Ids are positions + 1.

    Parameters
    ----------
    true, pred
        Polygons in px of one image.
    true_types, pred_types
        Class id of each polygon.
    scale
        Pixels to draw for each pixel of the image; centres and boxes stay in the image's px.
    """
    collect = _Collector(len(true), len(pred))
    for band, left, top, width in runs.bands([true.scale(scale), pred.scale(scale)]):
        for which, here in enumerate(band):
            area, sums = here.sums(left, top, width)
            collect.area[which][here.chosen + 1] += area
            collect.sums[which][here.chosen + 1] += sums
        collect.pairs.append(runs.shared_pixels(*band))
    table = collect.table(
        np.arange(1, len(true) + 1),
        np.arange(1, len(pred) + 1),
        np.asarray(true_types, dtype=np.int64),
        np.asarray(pred_types, dtype=np.int64),
    )
    table = table.select(table.true_area > 0, table.pred_area > 0)
    return replace(table, true_xy=table.true_xy / scale, pred_xy=table.pred_xy / scale)


def from_points(true_xy: Floats, pred_xy: Floats, true_types: ArrayLike, pred_types: ArrayLike) -> Overlap:
    """Table of two sets of centres without outlines: detection and typing can be scored, segmentation cannot.

    Parameters
    ----------
    true_xy, pred_xy : float64 (n, 2), (m, 2)
        In px of one image. Ids are positions + 1.
    true_types, pred_types
        Class id of each.
    """
    none = np.empty(0, np.int64)
    return Overlap(
        true_ids=np.arange(1, len(true_xy) + 1),
        pred_ids=np.arange(1, len(pred_xy) + 1),
        true_area=np.zeros(len(true_xy), np.int64),
        pred_area=np.zeros(len(pred_xy), np.int64),
        true_xy=np.asarray(true_xy, np.float64).reshape(-1, 2),
        pred_xy=np.asarray(pred_xy, np.float64).reshape(-1, 2),
        true_index=none,
        pred_index=none,
        shared=none,
        true_types=np.asarray(true_types, np.int64),
        pred_types=np.asarray(pred_types, np.int64),
    )


class _Collector:
    """Adds up blocks of two consecutive label maps."""

    def __init__(self, n: int, m: int):
        self.n, self.m = n, m
        self.area = [np.zeros(n + 1, np.int64), np.zeros(m + 1, np.int64)]
        self.sums = [np.zeros((n + 1, 2)), np.zeros((m + 1, 2))]
        self.pairs: list[tuple[Ints, Ints, Ints]] = []

    def add(self, a: NDArray[np.integer], b: NDArray[np.integer], x: int, y: int) -> None:
        for which, labels in enumerate((a, b)):
            rows, columns = np.nonzero(labels)
            values = labels[rows, columns]
            size = len(self.area[which])
            self.area[which] += np.bincount(values, minlength=size)
            self.sums[which][:, 0] += np.bincount(values, columns + (x + 0.5), size)
            self.sums[which][:, 1] += np.bincount(values, rows + (y + 0.5), size)
        both = (a > 0) & (b > 0)
        if both.any():
            self.pairs.append(
                _count_pairs(a[both] - 1, b[both] - 1, np.ones(int(both.sum()), np.int64), self.n, self.m)
            )

    def table(self, true_ids: Ints, pred_ids: Ints, true_types: Ints, pred_types: Ints) -> Overlap:
        parts = (
            [np.concatenate(p) for p in zip(*self.pairs, strict=True)] if self.pairs else [np.empty(0, np.int64)] * 3
        )
        true_index, pred_index, shared = _count_pairs(parts[0], parts[1], parts[2], self.n, self.m)
        with np.errstate(invalid="ignore", divide="ignore"):
            centres = [s[1:] / area[1:, None] for s, area in zip(self.sums, self.area, strict=True)]
        return Overlap(
            true_ids=np.asarray(true_ids, np.int64),
            pred_ids=np.asarray(pred_ids, np.int64),
            true_area=self.area[0][1:],
            pred_area=self.area[1][1:],
            true_xy=centres[0],
            pred_xy=centres[1],
            true_index=true_index,
            pred_index=pred_index,
            shared=shared,
            true_types=true_types,
            pred_types=pred_types,
        )


def _count_pairs(
    i: NDArray[np.integer], j: NDArray[np.integer], weight: Ints, n: int, m: int
) -> tuple[Ints, Ints, Ints]:
    """Sum the weights of equal pairs, linear in their number; ordered by i, then j."""
    from scipy.sparse import coo_matrix

    if not len(i):
        empty = np.empty(0, np.int64)
        return empty, empty, empty
    table = coo_matrix((weight, (i, j)), shape=(n, m)).tocsr()
    table.sort_indices()
    rows = np.repeat(np.arange(n), np.diff(table.indptr))
    return rows.astype(np.int64), table.indices.astype(np.int64), table.data.astype(np.int64)


def consecutive(labels: NDArray[np.integer]) -> tuple[NDArray[np.integer], Ints]:
    """Renumber labels to 1..n in ascending order, and the ids they had."""
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0:
        raise InputError(f"expected instance ids of 0 (background) and above, found {low} in an instance map")
    if high <= 4 * labels.size + 1024:
        ids = np.flatnonzero(np.bincount(labels.ravel(), minlength=1))
        ids = ids[ids > 0]
        lookup = np.zeros(high + 1, np.int64)
        lookup[ids] = np.arange(1, len(ids) + 1)
        return lookup[labels], ids.astype(np.int64)
    ids, inverse = np.unique(labels, return_inverse=True)
    shift = 0 if ids[0] == 0 else 1
    return inverse.reshape(labels.shape) + shift, ids[ids > 0].astype(np.int64)


def types_of(types: ArrayLike | None, ids: ArrayLike | None, present: Ints, which: str) -> Ints:
    """Type of each nucleus of a map.

    Parameters
    ----------
    types
        None for none: all are 0.
    ids
        What the types belong to, the present ones in ascending order when None.
    present
        Ids in the map.
    which
        Of which nuclei, for messages.

    Raises
    ------
    InputError
        When the types do not fit the ids.
    """
    if types is None:
        return np.zeros(len(present), np.int64)
    types = np.asarray(types).reshape(-1).astype(np.int64)
    given = present if ids is None else np.asarray(ids).reshape(-1).astype(np.int64)
    if len(given) != len(types):
        raise InputError(f"expected a type for each of the {len(given)} {which} nuclei, found {len(types)} types")
    order = np.argsort(given, kind="stable")
    position = np.searchsorted(given[order], present)
    if (position >= len(given)).any() or (given[order][position] != present).any():
        missing = np.setdiff1d(present, given)
        raise InputError(f"{len(missing)} {which} nuclei of the map have no type; the first is id {missing[0]}")
    return types[order][position]
