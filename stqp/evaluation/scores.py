"""Scores of nuclei: Dice, AJI, panoptic quality, detection and typing.

Definitions follow HoVer-Net (Graham et al. 2019) and panoptic quality (Kirillov et al. 2019). An
undefined score (nothing to score) is NaN, is left out of means, and is null in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.errors import InputError
from stqp.evaluation import matching
from stqp.evaluation.overlap import Overlap, from_maps

MATCH_RADIUS_UM = 3.0  # 12 px at 0.25 µm/px
MATCH_IOU = 0.5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """What the scores are made of; counts of several images add up to pooled ones.

    Arrays over classes have ``k + 1`` places, 0 is Unknown. Segmentation and detection count every
    nucleus; typing leaves out the nuclei whose truth is Unknown, and what was paired with them.

    Attributes
    ----------
    pixels : float64 (3,)
        Shared, true and predicted foreground.
    aji, aji_plus : float64 (2,)
        Aggregated intersection and union.
    quality : float64 (4,)
        TP, FP, FN and the sum of IoU over pairs with IoU > 0.5.
    detection : float64 (3,)
        TP, FP, FN of the pairs of centres.
    class_quality : float64 (k + 1, 4)
        As `quality`, of the nuclei of each class alone.
    confusion : float64 (k + 1, k + 1)
        Pairs of centres: true class (row), predicted class (column).
    unpaired_true, unpaired_pred : float64 (k + 1,)
        Nuclei without a partner, by class.
    n_true, n_pred : float64 (k + 1,)
        All nuclei, by class.
    """

    pixels: Floats
    aji: Floats
    aji_plus: Floats
    quality: Floats
    detection: Floats
    class_quality: Floats
    confusion: Floats
    unpaired_true: Floats
    unpaired_pred: Floats
    n_true: Floats
    n_pred: Floats

    def __add__(self, other: Counts) -> Counts:
        """Pool two images."""
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def scores(self, classes: Sequence[str]) -> dict[str, Any]:
        """Scores by name; those of single classes in a dictionary by class name.

        Returns
        -------
        dict
            ``dice``, ``aji``, ``aji_plus``, ``dq``, ``sq``, ``pq`` (classes ignored: bPQ), ``precision_d``,
            ``recall_d``, ``f_d``; ``f_c_mean``, ``f_c_code_mean``, ``type_f1_macro``, ``type_accuracy``,
            ``mpq`` (means over the classes present in the truth); ``per_class`` with ``f_c``, ``f_c_code``,
            ``type_f1``, ``precision``, ``recall``, ``pq``, ``n_true``, ``n_pred``, ``n_paired`` of each.

        Notes
        -----
        ``f_c`` is the formula of the paper, with true negatives and all unpaired nuclei; ``f_c_code`` is
        what HoVer-Net's published code computes, with the unpaired nuclei of the class alone and without
        true negatives. ``type_f1`` is the plain F1 over the paired nuclei.
        """
        tp_d, fp_d, fn_d = self.detection
        shared, true, pred = self.pixels
        result: dict[str, Any] = {
            "dice": _ratio(2 * shared, true + pred),
            "aji": _ratio(*self.aji),
            "aji_plus": _ratio(*self.aji_plus),
            **dict(zip(("dq", "sq", "pq"), _panoptic(self.quality), strict=True)),
            "precision_d": _ratio(tp_d, tp_d + fp_d),
            "recall_d": _ratio(tp_d, tp_d + fn_d),
            "f_d": _ratio(2 * tp_d, 2 * tp_d + fp_d + fn_d),
        }
        per_class: dict[str, dict[str, float]] = {}
        known = self.confusion[1:]
        for c, name in enumerate(classes, start=1):
            tp = self.confusion[c, c]
            fp, fn = known[:, c].sum() - tp, self.confusion[c].sum() - tp
            tn = known.sum() - tp - fp - fn
            unpaired_pred, unpaired_true = self.unpaired_pred.sum(), self.unpaired_true[1:].sum()
            absent = self.n_true[c] + self.n_pred[c] == 0
            wrong = 2 * fp + 2 * fn
            per_class[name] = {
                "f_c": math.nan
                if absent
                else _ratio(2 * (tp + tn), 2 * (tp + tn) + wrong + unpaired_pred + unpaired_true),
                "f_c_code": _ratio(2 * tp, 2 * tp + wrong + self.unpaired_pred[c] + self.unpaired_true[c]),
                "type_f1": _ratio(2 * tp, 2 * tp + fp + fn),
                "precision": _ratio(tp, tp + fp),
                "recall": _ratio(tp, tp + fn),
                "pq": _panoptic(self.class_quality[c])[2],
                "n_true": int(self.n_true[c]),
                "n_pred": int(self.n_pred[c]),
                "n_paired": int(self.confusion[c].sum()),
            }
        present = [name for c, name in enumerate(classes, start=1) if self.n_true[c]]
        paired = [name for name in present if per_class[name]["n_paired"]]
        result["f_c_mean"] = mean([per_class[n]["f_c"] for n in present])
        result["f_c_code_mean"] = mean([per_class[n]["f_c_code"] for n in present])
        result["type_f1_macro"] = mean([per_class[n]["type_f1"] for n in paired])
        result["type_accuracy"] = _ratio(np.trace(self.confusion[1:, 1:]), known.sum())
        result["mpq"] = mean([per_class[n]["pq"] for n in present])
        result["n_true"], result["n_pred"] = int(self.n_true.sum()), int(self.n_pred.sum())
        result["n_paired"] = int(tp_d)
        result["n_true_unknown"], result["n_pred_unknown"] = int(self.n_true[0]), int(self.n_pred[0])
        result["per_class"] = per_class
        return result


def count(overlap: Overlap, mpp: float, n_classes: int) -> Counts:
    """Count one image.

    Parameters
    ----------
    overlap
        The table of the image's nuclei; types outside of 1..n_classes count as Unknown.
    mpp
        µm per px of the table's centres.
    n_classes
        Number of classes.
    """
    n, m = len(overlap.true_area), len(overlap.pred_area)
    true_types, pred_types = _clean(overlap.true_types, n_classes), _clean(overlap.pred_types, n_classes)
    i, j, shared, iou = overlap.true_index, overlap.pred_index, overlap.shared, overlap.iou
    good = iou > MATCH_IOU
    a, b = matching.pair_centres(overlap.true_xy * mpp, overlap.pred_xy * mpp, MATCH_RADIUS_UM)
    k = n_classes + 1
    confusion = np.bincount(true_types[a] * k + pred_types[b], minlength=k * k).reshape(k, k).astype(np.float64)
    left, right = np.delete(true_types, a), np.delete(pred_types, b)
    class_quality = np.zeros((k, 4))
    # a prediction on a nucleus of unknown class can be neither right nor wrong for any class
    judged = np.ones(m, bool)
    judged[j[good & (true_types[i] == 0)]] = False
    for c in range(1, k):
        both = good & (true_types[i] == c) & (pred_types[j] == c)
        tp = both.sum()
        predicted = ((pred_types == c) & judged).sum()
        class_quality[c] = tp, predicted - tp, (true_types == c).sum() - tp, iou[both].sum()
    return Counts(
        pixels=np.array([shared.sum(), overlap.true_area.sum(), overlap.pred_area.sum()], np.float64),
        aji=_aji(overlap),
        aji_plus=_aggregate(overlap, matching.best_assignment(i, j, -iou)),
        quality=np.array([good.sum(), m - good.sum(), n - good.sum(), iou[good].sum()], np.float64),
        detection=np.array([len(a), m - len(b), n - len(a)], np.float64),
        class_quality=class_quality,
        confusion=confusion,
        unpaired_true=np.bincount(left, minlength=k).astype(np.float64),
        unpaired_pred=np.bincount(right, minlength=k).astype(np.float64),
        n_true=np.bincount(true_types, minlength=k).astype(np.float64),
        n_pred=np.bincount(pred_types, minlength=k).astype(np.float64),
    )


def score_maps(
    true_inst: NDArray[np.integer],
    true_types: ArrayLike | None,
    pred_inst: NDArray[np.integer],
    pred_types: ArrayLike | None,
    mpp: float,
    classes: Sequence[str] | int,
) -> dict[str, Any]:
    """Score one predicted instance map against the truth.

    Parameters
    ----------
    true_inst, pred_inst : integer (height, width)
        0 is background; ids need not be consecutive.
    true_types, pred_types : (n,), (m,)
        Class id of each nucleus in ascending order of instance ids, 0 for Unknown; None when unknown.
    mpp
        µm per px.
    classes
        Class names for the ids 1, 2, ..., or their number.

    Returns
    -------
    dict
        As `Counts.scores`, and ``confusion`` (k + 1, k + 1) with Unknown at 0.
    """
    names = [str(c) for c in range(1, classes + 1)] if isinstance(classes, int) else [*classes]
    counts = count(from_maps(true_inst, pred_inst, true_types, pred_types), mpp, len(names))
    return {**counts.scores(names), "confusion": counts.confusion.astype(int)}


def summarise(
    images: Mapping[str, Counts], classes: Sequence[str], bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Scores of several images: of each, their mean, and pooled.

    Parameters
    ----------
    images
        Counts by image name.
    classes
        Class names.
    bootstrap
        Resamples of the images for 95 % intervals; intervals need at least two images.
    seed
        Of the resampling.

    Returns
    -------
    dict
        ``mean`` (mean over images, without undefined scores), ``pooled`` (from the summed counts; its
        ``mpq`` is mPQ+), ``interval`` (of the mean and of the pooled scores), ``confusion`` (pooled),
        ``per_image``.
    """
    if not images:
        raise InputError("expected at least one image to score, found none")
    counts = [*images.values()]
    each = {name: c.scores(classes) for name, c in images.items()}
    pooled = counts[0]
    for c in counts[1:]:
        pooled = pooled + c
    result: dict[str, Any] = {
        "images": len(counts),
        "classes": [*classes],
        "mean": mean_scores([*each.values()]),
        "pooled": pooled.scores(classes),
        "confusion": {
            "labels": ["Unknown", *classes],
            "rows_true_columns_predicted": pooled.confusion.astype(int).tolist(),
        },
        "unpaired_true": pooled.unpaired_true.astype(int).tolist(),
        "unpaired_pred": pooled.unpaired_pred.astype(int).tolist(),
        "interval": {},
        "per_image": each,
    }
    if len(counts) > 1 and bootstrap:
        result["interval"] = _intervals(counts, [*each.values()], classes, bootstrap, seed)
    return result


def mean_scores(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of each score over images, without the undefined ones; numbers of nuclei are summed."""
    result: dict[str, Any] = {}
    for key in each[0]:
        values = [e[key] for e in each]
        if isinstance(values[0], Mapping):
            result[key] = (
                {name: mean_scores([v[name] for v in values]) for name in values[0]} if key == "per_class" else {}
            )
        else:
            result[key] = sum(values) if key.startswith("n_") else mean(values)
    return result


def mean(values: Sequence[float]) -> float:
    """Mean of the defined values; NaN when there is none."""
    defined = [v for v in values if not math.isnan(v)]
    return float(sum(defined) / len(defined)) if defined else math.nan


def _intervals(
    counts: Sequence[Counts],
    each: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, dict[str, list[float]]]:
    rng = np.random.default_rng(seed)
    keys = [k for k, v in each[0].items() if isinstance(v, float)]
    table = np.array([[e[k] for k in keys] for e in each], np.float64)
    stacked = {f.name: np.stack([getattr(c, f.name) for c in counts]) for f in fields(Counts)}
    means, pools = [], []
    for _ in range(resamples):
        chosen = rng.integers(0, len(counts), len(counts))
        means.append([mean([*column]) for column in table[chosen].T])
        weight = np.bincount(chosen, minlength=len(counts)).astype(np.float64)
        drawn = Counts(**{name: np.tensordot(weight, values, 1) for name, values in stacked.items()})
        scores = drawn.scores(classes)
        pools.append([scores[k] for k in keys])
    result: dict[str, dict[str, list[float]]] = {}
    for name, sample in (("mean", np.array(means)), ("pooled", np.array(pools))):
        result[name] = {}
        for index, key in enumerate(keys):
            defined = sample[~np.isnan(sample[:, index]), index]
            if len(defined):
                result[name][key] = [float(v) for v in np.percentile(defined, (2.5, 97.5))]
    return result


def _clean(types: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    return np.where((types >= 1) & (types <= n_classes), types, 0)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _panoptic(quality: Floats) -> tuple[float, float, float]:
    """DQ, SQ and PQ; all NaN without any nucleus, all 0 without a pair."""
    tp, fp, fn, total = quality
    if tp + fp + fn == 0:
        return math.nan, math.nan, math.nan
    dq, sq = tp / (tp + fp / 2 + fn / 2), total / tp if tp else 0.0
    return float(dq), float(sq), float(dq * sq)


def _aji(overlap: Overlap) -> Floats:
    """AJI of Kumar et al. 2017: each true nucleus takes its best prediction, which may be taken twice."""
    taken = np.zeros(len(overlap.shared), bool)
    if len(taken):
        order = np.lexsort((-overlap.iou, overlap.true_index))
        first = np.r_[True, np.diff(overlap.true_index[order]) != 0]
        taken[order[first]] = True
    return _aggregate(overlap, taken)


def _aggregate(overlap: Overlap, taken: NDArray[np.bool_]) -> Floats:
    """Summed intersection, and summed union with the area of what was not taken."""
    i, j, shared = overlap.true_index[taken], overlap.pred_index[taken], overlap.shared[taken]
    union = (overlap.true_area[i] + overlap.pred_area[j] - shared).sum()
    union += np.delete(overlap.true_area, i).sum() + np.delete(overlap.pred_area, np.unique(j)).sum()
    return np.array([shared.sum(), union], np.float64)
