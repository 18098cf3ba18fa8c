"""What scores are made of: counts that add up over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def mean(values: Sequence[float]) -> float:
    """Mean of the defined values; NaN when there is none."""
    defined = [v for v in values if not math.isnan(v)]
    return float(sum(defined) / len(defined)) if defined else math.nan


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _panoptic(quality: Floats) -> tuple[float, float, float]:
    """DQ, SQ and PQ; all NaN without any nucleus, all 0 without a pair."""
    tp, fp, fn, total = quality
    if tp + fp + fn == 0:
        return math.nan, math.nan, math.nan
    dq, sq = tp / (tp + fp / 2 + fn / 2), total / tp if tp else 0.0
    return float(dq), float(sq), float(dq * sq)
