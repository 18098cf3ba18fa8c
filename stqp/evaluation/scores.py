"""Scores of nuclei: Dice, AJI, panoptic quality, detection and typing.

Definitions follow HoVer-Net (Graham et al. 2019) and panoptic quality (Kirillov et al. 2019). An
undefined score (nothing to score) is NaN, is left out of means, and is null in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.errors import InputError
from stqp.evaluation import matching
from stqp.evaluation.counts import Counts, Floats, mean
from stqp.evaluation.overlap import Overlap, from_maps

MATCH_RADIUS_UM = 3.0  # 12 px at 0.25 µm/px
MATCH_IOU = 0.5


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
