"""Scores as a table for people, as rows for a spreadsheet, and as JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stqp import files
from stqp.evaluation.summary import power_sentence

ROWS = (
    ("dice", "Dice of the foreground"),
    ("aji", "AJI"),
    ("aji_plus", "AJI+ (one-to-one)"),
    ("dq", "DQ"),
    ("sq", "SQ"),
    ("pq", "PQ (bPQ, classes ignored)"),
    ("mpq", "mPQ (pooled: mPQ+)"),
    ("precision_d", "detection precision"),
    ("recall_d", "detection recall"),
    ("f_d", "F_d (detection, 3 µm)"),
    ("f_c_mean", "mean F_c"),
    ("type_f1_macro", "macro type-F1, paired nuclei"),
    ("type_f1_weighted", "weighted type-F1, paired"),
    ("type_accuracy", "type accuracy, paired"),
    ("type_balanced_accuracy", "balanced type accuracy"),
    ("type_mcc", "Matthews correlation of types"),
    ("ece", "calibration error (ECE)"),
    ("centre_error_um", "distance of centres, µm"),
    ("boundary_error_um", "distance of boundaries, µm"),
    ("hausdorff95_um", "Hausdorff-95, µm"),
)
LABELS = dict(ROWS)
SHORT = {
    "dice": "Dice", "aji": "AJI", "pq": "PQ", "mpq": "mPQ", "f_d": "F_d", "f_c_mean": "F_c", "type_f1_macro": "type-F1",
    "type_accuracy": "type accuracy", "type_mcc": "MCC",
}  # fmt: skip
METHODS = {"bca": "BCa", "percentile": "percentile"}
COMPARED = ("dice", "aji", "pq", "mpq", "f_d", "f_c_mean", "type_f1_macro", "type_accuracy", "type_mcc")


def lines(result: Mapping[str, Any]) -> list[str]:
    """Lines of the scores for a person."""
    text = _one(result, result["prediction"] if result["others"] else "")
    for name, other in result["others"].items():
        text += ["", *_short(other, name)]
    for comparison in (c for c in result["comparisons"] if not c["baseline"]):
        text += ["", *_comparison(comparison)]
    return text


def _one(result: Mapping[str, Any], name: str) -> list[str]:
    mean, pooled, interval = result["mean"], result["pooled"], result["interval"]
    images = result["images"]
    head = f"{name}: " if name else ""
    text = [
        f"{head}{images} image{'s' if images > 1 else ''}, {pooled['n_true']:,} true and {pooled['n_pred']:,} "
        f"predicted nuclei ({pooled['n_paired']:,} paired within 3 µm)",
        "",
        f"{'score':<31}{'mean over images':>18}{'pooled':>10}" + ("   95 % interval of pooled" if interval else ""),
    ]
    for key, label in ROWS:
        if math.isnan(pooled[key]):
            continue
        line = f"{label:<31}{number(mean[key]):>18}{number(pooled[key]):>10}"
        if interval and key in interval["pooled"]:
            low, high = interval["pooled"][key]
            line += f"   {low:.3f} to {high:.3f}"
        text.append(line)
    if interval:
        text.append(f"(intervals: {METHODS[interval['method']]} bootstrap over {interval['units']} {interval['over']})")
    text += _groups(result)
    text += _classes(result)
    return text + [power_sentence(SHORT.get(s, s), p) for s, p in result["power"].items() if s in ("pq",)]


def _groups(result: Mapping[str, Any]) -> list[str]:
    if not result["groups"]:
        return []
    width = max(map(len, result["groups"])) + 2
    head = ("images", "true", "Dice", "AJI", "PQ", "F_d", "type-F1")
    text = ["", "per group, pooled:", " " * width + "".join(f"{h:>9}" for h in head)]
    for name, group in result["groups"].items():
        pooled = group["pooled"]
        cells = [f"{group['images']}", f"{pooled['n_true']:,}"]
        cells += [number(pooled[key]) for key in ("dice", "aji", "pq", "f_d", "type_f1_macro")]
        text.append(f"{name:<{width}}" + "".join(f"{c:>9}" for c in cells))
    return text


def _classes(result: Mapping[str, Any]) -> list[str]:
    pooled, names = result["pooled"], result["classes"]
    if not names:
        return ["", "no classes: nuclei were not typed"]
    width = max(len(n) for n in [*names, "Unknown"]) + 2
    head = ("true", "predicted", "F_c", "type-F1", "precision", "recall", "PQ")
    text = ["", "per class, pooled:", " " * width + "".join(f"{h:>11}" for h in head)]
    for name in names:
        c = pooled["per_class"][name]
        scores = [number(c[key]) for key in ("f_c", "type_f1", "precision", "recall", "pq")]
        cells = [f"{c['n_true']:,}", f"{c['n_pred']:,}", *scores]
        text.append(f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    if pooled["n_true_unknown"] or pooled["n_pred_unknown"]:
        text.append(f"{'Unknown':<{width}}{pooled['n_true_unknown']:>11,}{pooled['n_pred_unknown']:>11,}   (not typed)")
    text += ["", "confusion of paired nuclei (rows true, columns predicted), and nuclei without a partner:"]
    labels = result["confusion"]["labels"]
    column = max(width, 11)
    text.append(" " * width + "".join(f"{label:>{column}}" for label in [*labels, "missed"]))
    for index, row in enumerate(result["confusion"]["rows_true_columns_predicted"]):
        cells = [*row, result["unpaired_true"][index]]
        text.append(f"{labels[index]:<{width}}" + "".join(f"{v:>{column},}" for v in cells))
    return [*text, f"{'extra':<{width}}" + "".join(f"{v:>{column},}" for v in result["unpaired_pred"])]


def _short(result: Mapping[str, Any], name: str) -> list[str]:
    pooled = result["pooled"]
    scores = [f"{SHORT[k]} {number(pooled[k])}" for k in COMPARED if not math.isnan(pooled[k])]
    return [f"{name}: {pooled['n_pred']:,} predicted nuclei; pooled: {', '.join(scores)}"]


def _comparison(result: Mapping[str, Any]) -> list[str]:
    test = "all" if result["test"] == "exact" else "random"
    text = [
        f"{result['second']} minus {result['first']}, pooled "
        f"({result['units']} {result['over']}; {result['permutations']:,} {test} exchanges):",
        f"{'score':<31}{'difference':>12}{'95 % interval':>21}{'p':>9}",
    ]
    for key in COMPARED:
        found = result["pooled"][key]
        if math.isnan(found["difference"]):
            continue
        span = "-" if found["interval"] is None else "{:+.3f} to {:+.3f}".format(*found["interval"])
        text.append(f"{LABELS[key]:<31}{found['difference']:>+12.3f}{span:>21}{number(found['p'], 4):>9}")
    common = result["common"]["pooled"].get("type_f1_macro")
    if common and not math.isnan(common["difference"]):
        span = "-" if common["interval"] is None else "{:+.3f} to {:+.3f}".format(*common["interval"])
        text.append(
            f"on the {result['common']['nuclei']:,} nuclei that both found: macro type-F1 "
            f"{common['difference']:+.3f} ({span}, p {number(common['p'], 4)})"
        )
    return text + [power_sentence(SHORT.get(s, s), p) for s, p in result["power"].items() if s in ("pq",)]


def number(value: float, digits: int = 3) -> str:
    """A score in a table; a dash where it is undefined."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def write_csv(path: Path, result: Mapping[str, Any]) -> None:
    """Write all scores as rows: prediction, level, name, class, score, value, low, high.

    Levels are ``pooled``, ``mean`` (over images), ``group`` (pooled over its images) and ``image``.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["prediction", "level", "name", "class", "score", "value", "low", "high"])
    for name, one in ((result["prediction"], result), *result["others"].items()):
        for row in _rows(one):
            writer.writerow([name, *row])
    files.write_bytes(path, buffer.getvalue().encode())


def _rows(result: Mapping[str, Any]) -> Iterator[list[Any]]:
    for level in ("pooled", "mean"):
        yield from _scores(level, "", result[level], result["interval"])
    for name, group in result["groups"].items():
        yield from _scores("group", name, group["pooled"], group["interval"])
    for name, image in result["per_image"].items():
        yield from _scores("image", name, image, {})


def _scores(level: str, name: str, scores: Mapping[str, Any], interval: Mapping[str, Any]) -> Iterator[list[Any]]:
    kind = "mean" if level == "mean" else "pooled"
    plain, of_class = interval.get(kind, {}), interval.get(f"{kind}_per_class", {})
    for key, value in scores.items():
        if isinstance(value, (int, float)):
            yield [level, name, "", key, _cell(value), *map(_cell, plain.get(key, (math.nan, math.nan)))]
    for label, values in scores["per_class"].items():
        for key, value in values.items():
            span = of_class.get(label, {}).get(key, (math.nan, math.nan))
            yield [level, name, label, key, _cell(value), *map(_cell, span)]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}" if isinstance(value, float) else str(value)
