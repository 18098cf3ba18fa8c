"""Figures of the report of a training run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float]]
_NOT_LOSSES = ("phase", "epoch", "step", "minutes", "lr", "loss")
_LABELS = {
    "np_ce": "np cross-entropy", "np_dice": "np dice", "hv_mse": "hv squared error", "hv_msge": "hv gradient error",
    "tp_ce": "tp cross-entropy", "tp_dice": "tp dice",
}  # fmt: skip
_SCORES = {
    "dice": "Dice", "aji": "AJI", "pq": "PQ", "f_d": "F_d", "f_c_mean": "mean F_c", "type_f1_macro": "macro type-F1",
    "mpq": "mPQ",
}  # fmt: skip
_HUES = {"np": "#1f6fb4", "hv": "#2f9e5b", "tp": "#d0551f"}


def course(rows: Rows, chosen: int | None = None, selected: str | None = None) -> Figure:
    """Losses, held-out scores and learning rate over the steps of a run.

    Parameters
    ----------
    rows
        Of ``metrics.csv``; a number that is not there is no key.
    chosen
        Step whose weights are kept.
    selected
        Score that chose it.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10.4, 6.4), layout="constrained")
    axes = drawn.subplots(2, 2, sharex=True)
    total, parts, scores, rate = axes.flat
    mark = "o" if len(rows) < 3 else None  # a line of one point cannot be seen
    total.plot(*_column(rows, "step", "loss"), color="#222", lw=1.4, marker=mark)
    total.set(title="total loss")
    names = [k for k in rows[0] if k not in _NOT_LOSSES and not k.startswith("validation_")] if rows else []
    for number, name in enumerate(names):
        x, y = _column(rows, "step", name)
        dashed = "--" if name.endswith(("_dice", "_msge")) else "-"
        color = _HUES.get(name[:2], f"C{number}")
        parts.plot(x, y, dashed, color=color, lw=1.2, marker=mark, label=_LABELS.get(name, name))
    parts.set(title="parts of the loss")
    found = sorted({k for row in rows for k in row if k.startswith("validation_")}, key=_order)
    for name in found:
        x, y = _column(rows, "step", name)
        score = name.removeprefix("validation_")
        wide = 2.4 if score == selected else 1.2
        scores.plot(x, y, lw=wide, marker=".", ms=4, label=_SCORES.get(score, score))
    scores.set(title="scores on the validation patches" if found else "no scores: nothing was held out", ylim=(0, 1))
    rate.plot(*_column(rows, "step", "lr"), color="#555", lw=1.4, marker=mark)
    rate.set(title="learning rate", ylim=(0, None))
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.title.set_fontsize(10)
        one.grid(alpha=0.25)
        for start in _phases(rows):
            one.axvline(start, color="#999", lw=0.8, ls=":")
        if chosen is not None:
            one.axvline(chosen, color="#c03", lw=0.9, ls="--")
    for one in (parts, scores):
        if one.get_lines() and one.get_legend_handles_labels()[1]:
            one.legend(frameon=False, fontsize=8, ncols=2)
    for one in (scores, rate):
        one.set_xlabel("optimiser steps")
    return drawn


def distribution(values: np.ndarray, label: str) -> Figure:
    """How a score spreads over patches."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = Figure(figsize=(5.2, 2.2), layout="constrained")
    axes = drawn.add_subplot()
    axes.hist(values[~np.isnan(values)], bins=np.linspace(0, 1, 21).tolist(), color="#7a93b8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=label, ylabel="patches", xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn


def _column(rows: Rows, *names: str) -> tuple[list[float], list[float]]:
    """Two columns of the rows that have both."""
    x, y = names
    both = [(row[x], row[y]) for row in rows if x in row and y in row]
    return [a for a, _ in both], [b for _, b in both]


def _phases(rows: Rows) -> list[float]:
    """Steps at which a phase after the first begins."""
    return [a["step"] for a, b in itertools.pairwise(rows) if a.get("phase", 0) != b.get("phase", 0)]


def _order(name: str) -> tuple[int, str]:
    known = [f"validation_{k}" for k in _SCORES]
    return known.index(name) if name in known else len(known), name


def number_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Rows of text as numbers, without what is none."""
    result = []
    for row in rows:
        numbers = {}
        for key, value in row.items():
            try:
                number = float(value)
            except (TypeError, ValueError):
                continue
            if np.isfinite(number):
                numbers[key] = number
        result.append(numbers)
    return [row for row in result if "step" in row]
