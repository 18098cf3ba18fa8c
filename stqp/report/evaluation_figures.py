"""Figures of the report of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stqp.evaluation.output import LABELS
from stqp.taxonomy import color_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BARS = (("f_c", "F_c"), ("type_f1", "type-F1"), ("pq", "PQ"))
_SHADES = (1.0, 0.65, 0.35)
_COMPARED = ("dice", "aji", "pq", "mpq", "f_d", "f_c_mean", "type_f1_macro", "type_accuracy", "type_mcc")


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = drawn.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def class_bars(result: Mapping[str, Any]) -> Figure:
    """F_c, type-F1 and PQ of each class, with their intervals."""
    names = result["classes"]
    drawn, axes = _figure(max(5.0, 1.4 * len(names) + 1.5), 3.2)
    spans = result["interval"].get("pooled_per_class", {})
    for i, name in enumerate(names):
        scores = result["pooled"]["per_class"][name]
        for j, (key, label) in enumerate(_BARS):
            value = scores[key]
            if math.isnan(value):
                continue
            place = i + (j - 1) * 0.26
            color = (*(np.array(color_of(name)) / 255), _SHADES[j])
            axes.bar(place, value, 0.24, color=color)
            axes.text(place, -0.02, label, ha="center", va="top", fontsize=7)
            if span := spans.get(name, {}).get(key):
                axes.plot([place, place], span, color="#222", lw=1.2)
    axes.set(xticks=range(len(names)), ylim=(0, 1.02), ylabel="score, pooled")
    axes.tick_params(axis="x", length=0, pad=13)
    axes.set_xticklabels([f"{n}\n{result['pooled']['per_class'][n]['n_true']:,} true" for n in names])
    return drawn


def confusion(result: Mapping[str, Any]) -> Figure:
    """Confusion matrix of the nuclei, with missed (a column) and spurious ones (a row)."""
    labels = result["confusion"]["labels"]
    counts = np.array(result["confusion"]["rows_true_columns_predicted"], float)
    counts = np.c_[counts, result["unpaired_true"]]
    counts = np.r_[counts, [[*result["unpaired_pred"], np.nan]]]
    rows = [i for i in range(len(labels) + 1) if i > 0 or np.nansum(counts[0]) > 0]
    columns = [i for i in range(len(labels) + 1) if i > 0 or np.nansum(counts[:, 0]) > 0]
    counts = counts[np.ix_(rows, columns)]
    share = counts / np.maximum(np.nansum(counts, axis=1, keepdims=True), 1)
    drawn, axes = _figure(1.1 * len(columns) + 2.2, 0.62 * len(rows) + 1.1)
    axes.imshow(share, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (i, j), value in np.ndenumerate(counts):
        if not np.isnan(value):
            color = "white" if share[i, j] > 0.55 else "#222"
            axes.text(j, i, f"{int(value):,}\n{share[i, j]:.0%}", ha="center", va="center", fontsize=8, color=color)
    named = [*labels, "missed"], [*labels, "spurious"]
    axes.set_xticks(range(len(columns)), [named[0][i] for i in columns], rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), [named[1][i] for i in rows])
    axes.set(xlabel="predicted", ylabel="true")
    return drawn


def reliability(every: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Share of right classes against the probability; the bars below are the nuclei of the first prediction."""
    drawn, axes = _figure(5.2, 4.2)
    axes.plot([0, 1], [0, 1], color="#999", lw=1, ls="--")
    for number, (name, one) in enumerate(every.items()):
        n, x, y = (np.array(one[k], float) for k in ("n", "probability", "accuracy"))
        used = n > 0
        if number == 0:
            edges = np.array(one["edges"])
            axes.bar(edges[:-1], 0.25 * n / n.max(), np.diff(edges), align="edge", color="#ddd", zorder=0)
        spread = np.sqrt(np.maximum(y * (1 - y), 0) / np.maximum(n, 1))
        axes.errorbar(x[used], y[used], 1.96 * spread[used], marker="o", ms=4, lw=1.2, capsize=2, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the predicted class", ylabel="share that is right")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return drawn


def bland_altman(result: Mapping[str, Any], kind: str) -> Figure:
    """Predicted minus true against their mean, one point for each image, one panel for each class."""
    from matplotlib.figure import Figure

    found = result["agreement"][kind]
    names = [*found]
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    drawn = Figure(figsize=(2.7 * columns + 0.4, 2.5 * rows + 0.3), layout="constrained")
    for number, name in enumerate(names):
        axes = drawn.add_subplot(rows, columns, number + 1)
        axes.spines[["top", "right"]].set_visible(False)
        color = np.array(color_of(name if name in result["classes"] else None)) / 255
        points = []
        for image in result["per_image"].values():
            source = image["per_class"][name] if name in result["classes"] else image
            pair = np.array([source["n_true"], source["n_pred"]], float)
            points.append(pair / image["area_mm2"] if kind == "density" else pair)
        true, pred = np.array(points).T
        axes.scatter((true + pred) / 2, pred - true, s=14, color=color)
        axes.axhline(0, color="#999", lw=0.8)
        axes.axhline(found[name]["bias"], color=color, lw=1.2)
        for limit in ("low", "high"):
            axes.axhline(found[name][limit], color=color, lw=1, ls=":")
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    unit = "nuclei per mm²" if kind == "density" else "nuclei"
    drawn.supxlabel(f"mean of true and predicted {unit}", fontsize=9)
    drawn.supylabel("predicted minus true", fontsize=9)
    return drawn


def differences(comparison: Mapping[str, Any]) -> Figure:
    """Differences of two predictions with their intervals."""
    pooled = comparison["pooled"]
    keys = [k for k in _COMPARED if not math.isnan(pooled[k]["difference"])]
    drawn, axes = _figure(6.4, 0.32 * len(keys) + 0.9)
    for row, key in enumerate(reversed(keys)):
        found = pooled[key]
        if found["interval"] is not None:
            axes.plot(found["interval"], [row, row], color="#346", lw=2)
        axes.plot(found["difference"], row, "o", color="#346", ms=5)
    axes.axvline(0, color="#999", lw=1)
    axes.set_yticks(range(len(keys)), [LABELS[k] for k in reversed(keys)], fontsize=8)
    axes.set_xlabel(f"{comparison['second']} minus {comparison['first']}", fontsize=9)
    return drawn
