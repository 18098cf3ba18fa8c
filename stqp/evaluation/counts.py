"""What scores are made of: counts that add up over images and blocks, and the scores that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BINS = 15
"""Bins of the confidence in calibration (Guo et al. 2017, ICML)."""


@dataclass(frozen=True)
class Counts:
    """What the scores are made of; counts of several images add up to pooled ones.

    Every array may have leading axes before the shape below, so that many images, blocks or resamples are
    scored at once. Arrays over classes have ``k + 1`` places, 0 is Unknown. Segmentation and detection count
    every nucleus; typing leaves out the nuclei whose truth is Unknown, and what was paired with them.

    Attributes
    ----------
    pixels : float64 (3,)
        Shared, true and predicted foreground.
    aji, aji_plus : float64 (2,)
        Aggregated intersection and union.
    quality : float64 (4,)
        TP, FP, FN and the sum of IoU over pairs with IoU > 0.5; nuclei without an area do not count.
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
    calibration : float64 (BINS, 3)
        Paired nuclei of known truth by the probability of their predicted class: number, sum of the
        probabilities, number that are right.
    centre : float64 (2,)
        Pairs of centres, and the sum of their distances in µm.
    boundary : float64 (3,)
        Measured pairs with IoU > 0.5, and the sums of their mean boundary distance and Hausdorff-95 in µm.
    area_mm2 : float64 (1,)
        Area that was scored; NaN where it is not known.
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
    calibration: Floats
    centre: Floats
    boundary: Floats
    area_mm2: Floats

    def map(self, function: Callable[[Floats], Floats]) -> Counts:
        """Apply a function to every array."""
        return Counts(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def __add__(self, other: Counts) -> Counts:
        """Pool two images."""
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __getitem__(self, index: Any) -> Counts:
        """Counts at positions of the first axis."""
        return self.map(lambda a: a[index])

    @staticmethod
    def stack(parts: Sequence[Counts]) -> Counts:
        """Put counts along a new first axis."""
        return Counts(**{f.name: np.stack([getattr(p, f.name) for p in parts]) for f in fields(Counts)})

    @staticmethod
    def concatenate(parts: Sequence[Counts]) -> Counts:
        """Join stacks along their first axis."""
        return Counts(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Counts)})

    def pool(self) -> Counts:
        """Add up the first axis."""
        return self.map(lambda a: a.sum(axis=0))

    def weighted(self, weights: Floats) -> Counts:
        """Add up the first axis with weights, float64 (r, n): counts with a first axis of ``r``."""
        return self.map(lambda a: np.tensordot(weights, a, 1))

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.n_true.shape[-1] - 1

    def class_measures(self) -> dict[str, Floats]:
        """Scores of each class by name, float64 (..., k); NaN where undefined.

        ``f_c`` is the formula of the HoVer-Net paper (eq. 6), with true negatives and all unpaired nuclei;
        ``f_c_code`` is what its published code computes, with the unpaired nuclei of the class alone and without
        true negatives. ``type_f1``, ``precision`` and ``recall`` are over the paired nuclei of known truth.
        """
        known = self.confusion[..., 1:, :]
        tp = np.diagonal(self.confusion, axis1=-2, axis2=-1)[..., 1:]
        fp = known.sum(axis=-2)[..., 1:] - tp
        fn = known.sum(axis=-1) - tp
        tn = known.sum(axis=(-2, -1))[..., None] - tp - fp - fn
        unpaired_pred = self.unpaired_pred.sum(axis=-1)[..., None]
        unpaired_true = self.unpaired_true[..., 1:].sum(axis=-1)[..., None]
        n_true, n_pred = self.n_true[..., 1:], self.n_pred[..., 1:]
        wrong = 2 * fp + 2 * fn
        f_c = ratio(2 * (tp + tn), 2 * (tp + tn) + wrong + unpaired_pred + unpaired_true)
        own = self.unpaired_pred[..., 1:] + self.unpaired_true[..., 1:]
        return {
            "f_c": np.where(n_true + n_pred == 0, np.nan, f_c),
            "f_c_code": ratio(2 * tp, 2 * tp + wrong + own),
            "type_f1": ratio(2 * tp, 2 * tp + fp + fn),
            "precision": ratio(tp, tp + fp),
            "recall": ratio(tp, tp + fn),
            "pq": panoptic(self.class_quality[..., 1:, :])[2],
            "density_true": ratio(n_true, self.area_mm2),
            "density_pred": ratio(n_pred, self.area_mm2),
        }

    def measures(self) -> dict[str, Floats]:
        """Scores that are one number, by name, float64 (...); NaN where undefined."""
        of_class = self.class_measures()
        tp_d, fp_d, fn_d = np.moveaxis(self.detection, -1, 0)
        shared, true, pred = np.moveaxis(self.pixels, -1, 0)
        dq, sq, pq = panoptic(self.quality)
        known = self.confusion[..., 1:, :]
        support, total = known.sum(axis=-1), known.sum(axis=(-2, -1))
        right = np.trace(self.confusion[..., 1:, 1:], axis1=-2, axis2=-1)
        present = self.n_true[..., 1:] > 0
        return {
            "dice": ratio(2 * shared, true + pred),
            "aji": ratio(self.aji[..., 0], self.aji[..., 1]),
            "aji_plus": ratio(self.aji_plus[..., 0], self.aji_plus[..., 1]),
            "dq": dq,
            "sq": sq,
            "pq": pq,
            "bpq": pq,
            "mpq": _mean_where(of_class["pq"], present),
            "precision_d": ratio(tp_d, tp_d + fp_d),
            "recall_d": ratio(tp_d, tp_d + fn_d),
            "f_d": ratio(2 * tp_d, 2 * tp_d + fp_d + fn_d),
            "f_c_mean": _mean_where(of_class["f_c"], present),
            "f_c_code_mean": _mean_where(of_class["f_c_code"], present),
            "type_f1_macro": _mean_where(of_class["type_f1"], support > 0),
            "type_f1_weighted": ratio((np.nan_to_num(of_class["type_f1"]) * support).sum(axis=-1), total),
            "type_accuracy": ratio(right, total),
            "type_balanced_accuracy": _mean_where(of_class["recall"], support > 0),
            "type_mcc": _mcc(known, support, right, total),
            "ece": _ece(self.calibration),
            "centre_error_um": ratio(self.centre[..., 1], self.centre[..., 0]),
            "boundary_error_um": ratio(self.boundary[..., 1], self.boundary[..., 0]),
            "hausdorff95_um": ratio(self.boundary[..., 2], self.boundary[..., 0]),
        }

    def scores(self, classes: Sequence[str]) -> dict[str, Any]:
        """Scores of counts without leading axes, by name; those of single classes in ``per_class``.

        Returns
        -------
        dict
            As `measures`, the numbers of nuclei, ``area_mm2``, and ``per_class``: by class name as
            `class_measures`, with ``n_true``, ``n_pred`` and ``n_paired``.
        """
        result: dict[str, Any] = {name: float(value) for name, value in self.measures().items()}
        of_class = self.class_measures()
        result["n_true"], result["n_pred"] = int(self.n_true.sum()), int(self.n_pred.sum())
        result["n_paired"] = int(self.detection[0])
        result["n_true_unknown"], result["n_pred_unknown"] = int(self.n_true[0]), int(self.n_pred[0])
        result["area_mm2"] = float(self.area_mm2[0])
        result["per_class"] = {
            name: {
                **{key: float(values[i]) for key, values in of_class.items()},
                "n_true": int(self.n_true[i + 1]),
                "n_pred": int(self.n_pred[i + 1]),
                "n_paired": int(self.confusion[i + 1].sum()),
            }
            for i, name in enumerate(classes)
        }
        return result


def mean(values: Sequence[float]) -> float:
    """Mean of the defined values; NaN when there is none."""
    defined = [v for v in values if not math.isnan(v)]
    return float(sum(defined) / len(defined)) if defined else math.nan


def ratio(part: Floats, whole: Floats) -> Floats:
    """Quotient, NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


def panoptic(quality: Floats) -> tuple[Floats, Floats, Floats]:
    """DQ, SQ and PQ of counts (..., 4); all NaN without any nucleus, all 0 without a pair (Kirillov et al. 2019)."""
    tp, fp, fn, total = np.moveaxis(quality, -1, 0)
    dq = ratio(tp, tp + fp / 2 + fn / 2)
    sq = np.where(np.isnan(dq), np.nan, np.nan_to_num(ratio(total, tp)))
    return dq, sq, dq * sq


def _mean_where(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """Mean over the last axis of the chosen values that are defined."""
    chosen = chosen & ~np.isnan(values)
    return ratio(np.where(chosen, values, 0).sum(axis=-1), chosen.sum(axis=-1))


def _mcc(known: Floats, support: Floats, right: Floats, total: Floats) -> Floats:
    """Matthews' correlation of several classes (Gorodkin 2004); Unknown is a class that can be predicted."""
    predicted = known.sum(axis=-2)
    covariance = right * total - (support * predicted[..., 1:]).sum(axis=-1)
    spread = (total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (support**2).sum(axis=-1))
    return ratio(covariance, np.sqrt(np.maximum(spread, 0)))


def _ece(calibration: Floats) -> Floats:
    """Expected calibration error: mean gap of probability and accuracy over bins, weighted by their nuclei."""
    number, confidence, right = np.moveaxis(calibration, -1, 0)
    return ratio(np.abs(confidence - right).sum(axis=-1), number.sum(axis=-1))
