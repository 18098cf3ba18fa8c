"""The tables of a study: Markdown for documents, CSV for programs, HTML for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stqp import files
from stqp.experiments.manifest import Study
from stqp.experiments.scoring import Difference, Row, Scores

TITLES = {
    "dice": "Dice", "aji": "AJI", "aji_plus": "AJI+", "dq": "DQ", "sq": "SQ", "pq": "PQ", "mpq": "mPQ+", "f_d": "F_d",
    "precision_d": "detection precision", "recall_d": "detection recall", "f_c_mean": "mean F_c",
    "type_f1_macro": "macro type-F1", "type_f1_weighted": "weighted type-F1", "type_accuracy": "type accuracy",
    "type_balanced_accuracy": "balanced accuracy", "type_mcc": "MCC",
}  # fmt: skip
MARKDOWN, CSV, HTML = "table.md", "table.csv", "table.html"


def write_tables(out: Path, study: Study, scores: Scores) -> None:
    """Write ``table.md``, ``table.csv`` and ``table.html``, each whole or not at all."""
    files.write_bytes(out / MARKDOWN, markdown(study, scores).encode("utf-8"))
    files.write_bytes(out / CSV, csv_text(scores).encode("utf-8"))
    _write_html(out / HTML, study, scores)


def markdown(study: Study, scores: Scores) -> str:
    """The tables as Markdown."""
    lines = [f"# {study.name}", ""]
    if study.question:
        lines += [study.question, ""]
    for test in study.tests:
        lines += [f"## {_head(study, test)}", "", *_sentences(study, scores, test), ""]
        lines += _pipe(["learnt from", "network", *(TITLES[s] for s in study.scores)],
                       [[_arm(r), r.network or "–", *(_value(r, s) for s in study.scores)]
                        for r in scores.rows if r.test == test])  # fmt: skip
        typed = _class_rows(scores, test)
        if typed:
            lines += ["", *_pipe(_CLASS_HEAD, typed)]
        found = [d for d in scores.differences if d.test == test]
        if found:
            lines += ["", *_pipe(["difference", "network", *(TITLES[s] for s in study.scores)],
                                 [[_pair(d), d.network, *(_difference(d, s) for s in study.scores)]
                                  for d in found])]  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def csv_text(scores: Scores) -> str:
    """Scores and differences, one row each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["test", "learnt_from", "against", "network", "score", "value", "low", "high", "p", "seeds", "spread"]
    )
    for row in scores.rows:
        for name, s in row.scores.items():
            low, high = s["interval"] or ("", "")
            writer.writerow(
                [row.test, row.variant, "", row.network, name, s["value"], low, high, "", row.seeds,
                 "" if s["spread"] is None else s["spread"]]
            )  # fmt: skip
    for d in scores.differences:
        for name, s in d.scores.items():
            low, high = s["interval"] or ("", "")
            writer.writerow(
                [d.test, d.second, d.first, d.network, name, s["difference"], low, high, s["p"], "", ""]
            )  # fmt: skip
    return text.getvalue()


def _write_html(path: Path, study: Study, scores: Scores) -> None:
    from stqp.report.page import paragraph, section, table, write_page

    parts: list[str] = [paragraph(study.question)] if study.question else []
    for test in study.tests:
        rows = [r for r in scores.rows if r.test == test]
        found = [d for d in scores.differences if d.test == test]
        head = [TITLES[s] for s in study.scores]
        parts.append(
            section(
                _head(study, test),
                *(paragraph(s, note=True) for s in _sentences(study, scores, test)),
                _bars(study, rows),
                table(
                    ["learnt from", "network", *head],
                    [[_arm(r), r.network or "–", *(_value(r, s) for s in study.scores)] for r in rows],
                ),
                table(_CLASS_HEAD, _class_rows(scores, test)),
                table(
                    ["difference", "network", *head],
                    [[_pair(d), d.network, *(_difference(d, s) for s in study.scores)] for d in found],
                ),
            )
        )
    write_page(path, study.name, *parts)


def _bars(study: Study, rows: Sequence[Row]) -> str:
    """Points with intervals, a panel a score."""
    from matplotlib.figure import Figure

    from stqp.report.page import figure

    names = [f"{_arm(r)}{f' ({r.network})' if r.network else ''}" for r in rows]
    drawn = Figure(figsize=(2.2 * len(study.scores) + 2.4, 0.32 * len(rows) + 0.9), layout="constrained")
    axes = drawn.subplots(1, len(study.scores), sharey=True, squeeze=False)[0]
    places = list(range(len(rows)))[::-1]
    for axis, name in zip(axes, study.scores, strict=True):
        for place, row in zip(places, rows, strict=True):
            s = row.scores[name]
            color = "#28508c" if row.network else "#888888"
            if s["interval"]:
                axis.plot(s["interval"], [place, place], color=color, linewidth=2, solid_capstyle="butt")
            axis.plot([s["value"]], [place], "o", color=color, markersize=5)
            axis.plot(s["seeds"], [place] * len(s["seeds"]), "|", color=color, markersize=9)
        axis.set_title(TITLES[name], fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(places, names)
    return figure(drawn, "Scores with 95 % intervals; ticks are single trainings")


def _head(study: Study, test: str) -> str:
    organ = study.data[study.tests[test].data].organ
    return f"Tested on {test}{f' ({organ})' if organ else ''}"


def _sentences(study: Study, scores: Scores, test: str) -> list[str]:
    one = study.tests[test]
    numbers = sorted({row.seeds for row in scores.rows if row.test == test and row.network}) or [0]
    number = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    trainings = "one training" if number == "1" else f"{number} trainings"
    result = [
        f"Scores are pooled over nuclei, and over {trainings} a row; intervals are 95 % (BCa) over "
        f"{scores.units.get(test, 'nothing')}. ± is the standard deviation over trainings."
    ]
    if one.held_out:
        result.append("Only what was held out of every training is scored.")
    if scores.missing:
        result.append(f"{len(scores.missing)} trainings are not done.")
    return result


_CLASS_HEAD = ["learnt from", "network", "class", "true nuclei", "F_c", "type-F1", "precision", "recall"]


def _class_rows(scores: Scores, test: str) -> list[list[str]]:
    rows = []
    for row in scores.rows:
        if row.test == test and row.network and len(row.per_class) > 1:
            for name, values in row.per_class.items():
                numbers = [_number(values[k]) for k in ("f_c", "type_f1", "precision", "recall")]
                rows.append([row.variant, row.network, name, f"{values['n_true'] / row.seeds:,.0f}", *numbers])
    return rows


def _arm(row: Row) -> str:
    return row.variant if row.network else f"(none: {row.variant})"


def _pair(d: Difference) -> str:
    return f"{d.second} − {d.first}"


def _value(row: Row, name: str) -> str:
    s: Mapping[str, Any] = row.scores[name]
    text = _number(s["value"])
    if s["interval"] and s["value"] == s["value"]:
        text += f" [{s['interval'][0]:.3f}, {s['interval'][1]:.3f}]"
    return text + (f" ± {s['spread']:.3f}" if s["spread"] is not None and s["spread"] == s["spread"] else "")


def _difference(d: Difference, name: str) -> str:
    s: Mapping[str, Any] = d.scores[name]
    if s["difference"] != s["difference"]:
        return "–"
    text = f"{s['difference']:+.3f}"
    if s["interval"]:
        text += f" [{s['interval'][0]:+.3f}, {s['interval'][1]:+.3f}]"
    if s["p"] != s["p"]:
        return text
    return text + (", p < 0.001" if s["p"] < 0.001 else f", p = {s['p']:.3f}")


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"


def _pipe(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "| " + " | ".join(head) + " |"
    return [line, "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
