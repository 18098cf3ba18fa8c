"""Scores of nuclei: Dice, AJI, panoptic quality, detection and typing.

Definitions follow HoVer-Net (Graham et al. 2019), panoptic quality (Kirillov et al. 2019) and AJI (Kumar et
al. 2017). An undefined score (nothing to score) is NaN, is left out of means, and is null in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.errors import InputError
from stqp.evaluation import matching
from stqp.evaluation.counts import BINS, Counts, Floats, mean
from stqp.evaluation.overlap import Overlap, from_maps

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

MATCH_RADIUS_UM = 3.0  # 12 px at 0.25 µm/px
MATCH_IOU = 0.5


@dataclass(frozen=True)
class Match:
    """Which true and which predicted nuclei of a table belong together.

    Attributes
    ----------
    overlap : Overlap
        The table.
    mpp : float
        µm per px of its centres.
    true, pred : int64 (pairs,)
        Pairs of centres, one-to-one within 3 µm.
    distance : float64 (pairs,)
        Of their centres in µm.
    good : bool (overlapping pairs,)
        Of the table's overlapping pairs those with IoU > 0.5; no nucleus is in two of them.
    boundary : float64 (good pairs, 3) or None
        Mean and median boundary distance and Hausdorff-95 in µm; see `stqp.evaluation.boundary`.
    """

    overlap: Overlap
    mpp: float
    true: Ints
    pred: Ints
    distance: Floats
    good: Mask
    boundary: Floats | None = None

    def states(self) -> tuple[Mask, Mask]:
        """Whether each true and each predicted nucleus has a partner by its centre, (n,) and (m,)."""
        n, m = len(self.overlap.true_area), len(self.overlap.pred_area)
        return np.bincount(self.true, minlength=n) > 0, np.bincount(self.pred, minlength=m) > 0


def match(overlap: Overlap, mpp: float) -> Match:
    """Match the nuclei of an image: by centres (detection, typing), and by IoU (segmentation).

    Parameters
    ----------
    overlap
        The table of the image's nuclei.
    mpp
        µm per px of the table's centres.
    """
    a, b = matching.pair_centres(overlap.true_xy * mpp, overlap.pred_xy * mpp, MATCH_RADIUS_UM)
    distance = np.hypot(*((overlap.true_xy[a] - overlap.pred_xy[b]) * mpp).T)
    return Match(overlap, mpp, a, b, distance, overlap.iou > MATCH_IOU)


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
    return count_match(match(overlap, mpp), n_classes)


def count_match(
    found: Match,
    n_classes: int,
    group: tuple[Ints, Ints, int] | None = None,
    area_mm2: ArrayLike = np.nan,
    typed: Mask | None = None,
) -> Counts:
    """Count one image, or parts of it that add up to it.

    Parameters
    ----------
    found
        The matched nuclei.
    n_classes
        Number of classes; types outside of 1..n_classes count as Unknown.
    group
        Part of each true and of each predicted nucleus, and the number of parts; a pair belongs to the part
        of its true nucleus. The counts then have the parts as their first axis.
    area_mm2
        Area of the image, or of each part.
    typed : bool (n,)
        True nuclei that count for typing; all when None. For a comparison on the same nuclei.
    """
    table, k = found.overlap, n_classes + 1
    n, m = len(table.true_area), len(table.pred_area)
    g_true, g_pred, parts = group or (np.zeros(n, np.int64), np.zeros(m, np.int64), 1)
    true_types, pred_types = _clean(table.true_types, n_classes), _clean(table.pred_types, n_classes)
    a, b, shared, iou, good = table.true_index, table.pred_index, table.shared, table.iou, found.good
    i, j, tp_iou = a[good], b[good], iou[good]
    used_true, used_pred = _mask(i, n), _mask(j, m)
    missed = ~used_true & (table.true_area > 0)
    spurious = ~used_pred & (table.pred_area > 0)

    def add(where: Ints, weight: Floats | None = None, size: int | None = None) -> Floats:
        result = np.bincount(where, weight, parts * (size or 1)).astype(np.float64)
        return result if size is None else result.reshape(parts, size)

    def columns(*values: Floats) -> Floats:
        return np.stack(values, axis=-1)

    # a prediction on a nucleus of unknown class can be neither right nor wrong for any class
    same = (true_types[i] == pred_types[j]) & (true_types[i] > 0)
    right_true, right_pred = _mask(i[same], n), _mask(j[same], m)
    judged = ~_mask(j[true_types[i] == 0], m) & (table.pred_area > 0)
    rest_true = (table.true_area > 0) & ~right_true
    class_quality = columns(
        add(g_true[i[same]] * k + true_types[i[same]], size=k),
        add((g_pred * k + pred_types)[judged & ~right_pred], size=k),
        add((g_true * k + true_types)[rest_true], size=k),
        add(g_true[i[same]] * k + true_types[i[same]], tp_iou[same], k),
    )
    class_quality[:, 0] = 0

    p, q = found.true, found.pred
    free_true, free_pred = ~_mask(p, n), ~_mask(q, m)
    scored = slice(None) if typed is None else typed[p]
    pairs = (g_true[p] * k + true_types[p]) * k + pred_types[q]
    boundary = np.zeros((0, 3)) if found.boundary is None else found.boundary
    measured = np.flatnonzero(~np.isnan(boundary[:, 0])) if len(boundary) else np.empty(0, np.int64)
    g_measured = g_true[i[measured]]
    result = Counts(
        pixels=columns(
            add(g_true[a], shared.astype(np.float64)),
            add(g_true, table.true_area.astype(np.float64)),
            add(g_pred, table.pred_area.astype(np.float64)),
        ),
        aji=_aggregate(table, _best_of_each(table), g_true, g_pred, parts),
        aji_plus=_aggregate(table, matching.best_assignment(a, b, -iou), g_true, g_pred, parts),
        quality=columns(add(g_true[i]), add(g_pred[spurious]), add(g_true[missed]), add(g_true[i], tp_iou)),
        detection=columns(add(g_true[p]), add(g_pred[free_pred]), add(g_true[free_true])),
        class_quality=class_quality,
        confusion=add(pairs[scored], size=k * k).reshape(parts, k, k),
        unpaired_true=add((g_true * k + true_types)[free_true], size=k),
        unpaired_pred=add((g_pred * k + pred_types)[free_pred], size=k),
        n_true=add(g_true * k + true_types, size=k),
        n_pred=add(g_pred * k + pred_types, size=k),
        calibration=_calibration(found, true_types, pred_types, g_true, parts, typed),
        centre=columns(add(g_true[p]), add(g_true[p], found.distance)),
        boundary=columns(
            add(g_measured), add(g_measured, boundary[measured, 0]), add(g_measured, boundary[measured, 2])
        ),
        area_mm2=np.broadcast_to(np.asarray(area_mm2, np.float64), (parts,)).reshape(parts, 1),
    )
    return result if group is not None else result[0]


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
        ``mean`` (mean over images, without undefined scores), ``pooled`` (from the summed counts, with
        ``mpq_plus``), ``interval`` (of both; see `stqp.evaluation.uncertainty`), ``confusion`` (pooled),
        ``per_image``.
    """
    from stqp.evaluation.uncertainty import Sample, intervals

    if not images:
        raise InputError("expected at least one image to score, found none")
    stacked = Counts.stack([*images.values()])
    result = describe(images, classes)
    if len(images) > 1 and bootstrap:
        result["interval"] = intervals(Sample.of_images(stacked), classes, bootstrap, seed)
    return result


def describe(images: Mapping[str, Counts], classes: Sequence[str]) -> dict[str, Any]:
    """What `summarise` gives, without intervals."""
    each = {name: c.scores(classes) for name, c in images.items()}
    pooled = Counts.stack([*images.values()]).pool()
    scores = pooled.scores(classes)
    scores["mpq_plus"] = scores["mpq"]  # CoNIC's name: counts of all images first, then the mean over classes
    return {
        "images": len(images),
        "classes": [*classes],
        "mean": mean_scores([*each.values()]),
        "pooled": scores,
        "confusion": {
            "labels": ["Unknown", *classes],
            "rows_true_columns_predicted": pooled.confusion.astype(int).tolist(),
        },
        "unpaired_true": pooled.unpaired_true.astype(int).tolist(),
        "unpaired_pred": pooled.unpaired_pred.astype(int).tolist(),
        "interval": {},
        "per_image": each,
    }


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
            result[key] = sum(values) if key.startswith("n_") or key == "area_mm2" else mean(values)
    return result


def _clean(types: Ints, n_classes: int) -> Ints:
    return np.where((types >= 1) & (types <= n_classes), types, 0)


def _mask(index: Ints, size: int) -> Mask:
    result = np.zeros(size, bool)
    result[index] = True
    return result


def _calibration(
    found: Match, true_types: Ints, pred_types: Ints, g_true: Ints, parts: int, typed: Mask | None
) -> Floats:
    """Reliability of the probabilities of the predicted classes, over paired nuclei of known truth."""
    probability = found.overlap.pred_probability
    if probability is None:
        return np.zeros((parts, BINS, 3))
    p, q = found.true, found.pred
    chosen = (true_types[p] > 0) & (pred_types[q] > 0) & ~np.isnan(probability[q])
    if typed is not None:
        chosen &= typed[p]
    p, q = p[chosen], q[chosen]
    confidence, right = probability[q], (true_types[p] == pred_types[q]).astype(np.float64)
    # bins are closed below and open above, the last one is closed
    where = g_true[p] * BINS + np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    sums = [np.bincount(where, weight, parts * BINS) for weight in (None, confidence, right)]
    return np.stack(sums, axis=-1).reshape(parts, BINS, 3).astype(np.float64)


def _best_of_each(overlap: Overlap) -> Mask:
    """AJI of Kumar et al. 2017: each true nucleus takes its best prediction, which may be taken twice."""
    taken = np.zeros(len(overlap.shared), bool)
    if len(taken):
        order = np.lexsort((-overlap.iou, overlap.true_index))
        first = np.r_[True, np.diff(overlap.true_index[order]) != 0]
        taken[order[first]] = True
    return taken


def _aggregate(overlap: Overlap, taken: Mask, g_true: Ints, g_pred: Ints, parts: int) -> Floats:
    """Summed intersection, and summed union with the area of what was not taken; (parts, 2)."""
    i, j, shared = overlap.true_index[taken], overlap.pred_index[taken], overlap.shared[taken]

    def add(where: Ints, area: Ints) -> Floats:
        return np.bincount(where, area.astype(np.float64), parts).astype(np.float64)

    union = add(g_true[i], overlap.true_area[i] + overlap.pred_area[j] - shared)
    union += add(g_true, np.where(_mask(i, len(g_true)), 0, overlap.true_area))
    union += add(g_pred, np.where(_mask(j, len(g_pred)), 0, overlap.pred_area))
    return np.stack([add(g_true[i], shared), union], axis=-1)
