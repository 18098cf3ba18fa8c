"""Two predictions of one image: which nuclei are in both, in which class, and which are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stqp.evaluation.matching import best_assignment, pair_centres
from stqp.evaluation.overlap import from_polygons
from stqp.evaluation.predictions import Prediction
from stqp.taxonomy import UNKNOWN, ordered

if TYPE_CHECKING:
    import pandas as pd

Ints = NDArray[np.int64]
RADIUS_UM = 3.0
IOU = 0.5
ONLY_A, ONLY_B, CLASS, OUTLINE = "only in A", "only in B", "another class", "another outline"
KINDS = (ONLY_A, ONLY_B, CLASS, OUTLINE)


@dataclass(frozen=True)
class Comparison:
    """What two predictions share.

    Attributes
    ----------
    a, b : Prediction
    mpp : float
        µm per px.
    pair_a, pair_b : int64 (pairs,)
        Nuclei of each that are one: by overlap, or where that is too small by their centres.
    iou : float64 (pairs,)
        Intersection over union.
    distance : float64 (pairs,)
        Between their centres, in µm.
    by_overlap, by_centre : int
        Pairs of an IoU above `IOU`; pairs of centres within `RADIUS_UM`, each rule alone.
    """

    a: Prediction
    b: Prediction
    mpp: float
    pair_a: Ints
    pair_b: Ints
    iou: NDArray[np.float64]
    distance: NDArray[np.float64]
    by_overlap: int
    by_centre: int

    @property
    def classes(self) -> list[str]:
        """Names of all classes, `UNKNOWN` last where there is any."""
        names = {*self.a.classes.tolist(), *self.b.classes.tolist()}
        return ordered(names) + [UNKNOWN] * (UNKNOWN in names)

    def confusion(self) -> Ints:
        """Pairs by class in A (row) and in B (column), then a column of nuclei in A alone and a row of those in B."""
        place = {name: i for i, name in enumerate(self.classes)}
        k = len(place)
        rows, columns = np.full(len(self.a), k), np.full(len(self.b), k)
        type_a, type_b = (np.array([place[c] for c in p.classes.tolist()], np.int64) for p in (self.a, self.b))
        table = np.zeros((k + 1, k + 1), np.int64)
        np.add.at(table, (type_a[self.pair_a], type_b[self.pair_b]), 1)
        rows[self.pair_a] = columns[self.pair_b] = -1
        table[:k, k] = np.bincount(type_a[rows == k], minlength=k)
        table[k, :k] = np.bincount(type_b[columns == k], minlength=k)
        return table

    def differences(self) -> pd.DataFrame:
        """Nuclei that differ, a row each, by place: ``what`` (one of `KINDS`), centre, classes, ids, IoU, distance."""
        import pandas as pd

        alone_a = np.setdiff1d(np.arange(len(self.a)), self.pair_a)
        alone_b = np.setdiff1d(np.arange(len(self.b)), self.pair_b)
        other = self.a.classes[self.pair_a] != self.b.classes[self.pair_b]
        loose = ~other & (self.iou <= IOU)
        shown = np.flatnonzero(other | loose)
        centre = np.concatenate(
            [self.a.polygons.take(alone_a).centroid(), self.b.polygons.take(alone_b).centroid(),
             self.a.polygons.take(self.pair_a[shown]).centroid()]
        )  # fmt: skip
        none_a, none_b = np.full(len(alone_a), None, object), np.full(len(alone_b), None, object)
        unknown = np.full(len(alone_a) + len(alone_b), np.nan)
        frame = pd.DataFrame({
            "what": np.concatenate([
                np.full(len(alone_a), ONLY_A, object), np.full(len(alone_b), ONLY_B, object),
                np.where(other[shown], CLASS, OUTLINE).astype(object),
            ]),
            "x_px": centre[:, 0], "y_px": centre[:, 1],
            "x_um": centre[:, 0] * self.mpp, "y_um": centre[:, 1] * self.mpp,
            "class_a": np.concatenate([self.a.classes[alone_a], none_b, self.a.classes[self.pair_a[shown]]]),
            "class_b": np.concatenate([none_a, self.b.classes[alone_b], self.b.classes[self.pair_b[shown]]]),
            "id_a": np.concatenate([self.a.ids[alone_a], none_b, self.a.ids[self.pair_a[shown]]]),
            "id_b": np.concatenate([none_a, self.b.ids[alone_b], self.b.ids[self.pair_b[shown]]]),
            "iou": np.concatenate([unknown, self.iou[shown]]),
            "distance_um": np.concatenate([unknown, self.distance[shown]]),
        })  # fmt: skip
        return frame.sort_values(["y_px", "x_px"], kind="stable", ignore_index=True)

    def summary(self) -> dict[str, Any]:
        """Counts and shares, in JSON's types."""
        paired = len(self.pair_a)
        same_class = int((self.a.classes[self.pair_a] == self.b.classes[self.pair_b]).sum())
        both = len(self.a) + len(self.b)
        return {
            "a": self.a.label,
            "b": self.b.label,
            "mpp": self.mpp,
            "nuclei_a": len(self.a),
            "nuclei_b": len(self.b),
            "matched": paired,
            "matched_by_overlap": self.by_overlap,
            "matched_by_centre": self.by_centre,
            "only_a": len(self.a) - paired,
            "only_b": len(self.b) - paired,
            "class_changes": paired - same_class,
            "agreement": 2 * paired / both if both else None,
            "same_class": same_class / paired if paired else None,
            "mean_iou": float(self.iou[self.iou > IOU].mean()) if (self.iou > IOU).any() else None,
            "classes": self.classes,
            "confusion_rows_a_columns_b": self.confusion().tolist(),
        }


def compare(a: Prediction, b: Prediction, mpp: float) -> Comparison:
    """Match the nuclei of two predictions one to one.

    A nucleus of A and one of B are the same where their IoU is above `IOU`; of those left over, where their centres
    are within `RADIUS_UM` of each other.

    Parameters
    ----------
    a, b
        The predictions.
    mpp
        µm per px.
    """
    types = np.zeros(len(a), np.int64), np.zeros(len(b), np.int64)
    table = from_polygons(a.polygons, b.polygons, *types, scale=max(1.0, mpp / 0.25))
    strong = np.flatnonzero(table.iou > IOU)
    i, j = table.true_index[strong], table.pred_index[strong]
    chosen = best_assignment(i, j, -table.iou[strong])
    # ids are positions + 1 of the polygons that keep a pixel
    pair_a, pair_b = table.true_ids[i[chosen]] - 1, table.pred_ids[j[chosen]] - 1
    iou = table.iou[strong][chosen]
    centre_a, centre_b = a.polygons.centroid(), b.polygons.centroid()
    radius = RADIUS_UM / mpp
    by_centre = len(pair_centres(centre_a, centre_b, radius)[0])
    left_a = np.setdiff1d(np.arange(len(a)), pair_a)
    left_b = np.setdiff1d(np.arange(len(b)), pair_b)
    more_a, more_b = pair_centres(centre_a[left_a], centre_b[left_b], radius)
    more_a, more_b = left_a[more_a], left_b[more_b]
    all_a, all_b = np.concatenate([pair_a, more_a]), np.concatenate([pair_b, more_b])
    all_iou = np.concatenate([iou, _ious(table, more_a, more_b)])
    order = np.argsort(all_a)
    all_a, all_b, all_iou = all_a[order], all_b[order], all_iou[order]
    distance = np.hypot(*(centre_a[all_a] - centre_b[all_b]).T) * mpp
    return Comparison(a, b, mpp, all_a, all_b, all_iou, distance, len(pair_a), by_centre)


def _ious(table: Any, of_a: Ints, of_b: Ints) -> NDArray[np.float64]:
    """IoU of given pairs, 0 where they share no pixel."""
    if not len(of_a):
        return np.empty(0)
    import pandas as pd

    pairs = pd.MultiIndex.from_arrays([table.true_ids[table.true_index] - 1, table.pred_ids[table.pred_index] - 1])
    place = pairs.get_indexer(pd.MultiIndex.from_arrays([of_a, of_b]))
    return np.where(place >= 0, np.append(table.iou, 0.0)[place], 0.0)
