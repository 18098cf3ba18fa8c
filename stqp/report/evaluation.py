"""The report of an evaluation: one HTML file that a pathologist reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.evaluation.baselines import open_pixels
from stqp.evaluation.evaluate import Evaluation
from stqp.evaluation.fields import CLASS, FOUND, MISSED, PREDICTED, SHAPE, SPURIOUS, Field, states, worst_fields
from stqp.evaluation.nuclei import Side
from stqp.evaluation.output import METHODS, ROWS, SHORT
from stqp.evaluation.scores import Match
from stqp.evaluation.summary import power_sentence
from stqp.polygons import Polygons
from stqp.report import evaluation_figures as figures
from stqp.report.overlay import overlay
from stqp.report.page import (
    Html,
    captioned,
    facts,
    figure,
    grid,
    legend,
    paragraph,
    picture,
    section,
    table,
    write_page,
)
from stqp.slides import RGBImage, Slide
from stqp.taxonomy import RGB

COLORS: dict[str, RGB] = {
    FOUND: (0, 150, 60),
    SHAPE: (0, 190, 200),
    CLASS: (255, 130, 0),
    MISSED: (220, 0, 0),
    SPURIOUS: (255, 225, 0),
    PREDICTED: (255, 255, 255),
}
_PICTURE = 640  # px
_SWAP = Html(
    "<style>.swap{position:relative;line-height:0}.swap img{width:100%}"
    ".swap img+img{position:absolute;left:0;top:0}.swap:hover img+img{opacity:0}</style>"
)
Progress = Callable[[int, int], None]


def write_report(
    path: Path, evaluation: Evaluation, result: Mapping[str, Any], fields: int = 12, progress: Progress | None = None
) -> None:
    """Write the report of an evaluation.

    Parameters
    ----------
    path
        The HTML file.
    evaluation
        The matched nuclei; its sources are read again for the pictures.
    result
        Its summary.
    fields
        Fields of the first prediction to draw, worst first.
    progress
        Called with the fields drawn and their number.
    """
    first = evaluation.predictions[0]
    write_page(
        path,
        f"{first} against the truth",
        *_head(evaluation, result),
        section("Where it is worst", *_fields(evaluation, first, fields, progress)),
        section("Scores", _scores(result), *_notes(result)),
        section("Beside other predictions", *_beside(result)),
        section("Predictions compared", *_compared(result)),
        section("Groups of images", _groups(result)),
        section("Classes", *_classes(result)),
        section("Counts and densities", *_agreement(evaluation, result)),
        section("Probabilities", *_calibration(result)),
        section("Images", _images(result)),
    )


def _head(evaluation: Evaluation, result: Mapping[str, Any]) -> list[Html]:
    pooled, images = result["pooled"], result["images"]
    f_d = _with_interval(result, "pooled", "f_d")
    words = [
        f"{pooled['n_true']:,} true and {pooled['n_pred']:,} predicted nuclei in {images} image{'s'[: images > 1]}: "
        f"{pooled['recall_d']:.0%} of the true ones were found, {pooled['precision_d']:.0%} of the predicted ones are "
        f"true (F_d {f_d})."
    ]
    if not np.isnan(pooled["pq"]):
        words.append(f"Panoptic quality is {_with_interval(result, 'pooled', 'pq')}.")
    if not np.isnan(pooled["type_accuracy"]):
        words.append(
            f"Of the nuclei found, {pooled['type_accuracy']:.0%} have the right class "
            f"(macro type-F1 {_with_interval(result, 'pooled', 'type_f1_macro')})."
        )
    rows = {"Truth": evaluation.true.name, **{f"Prediction {n}": s.name for n, s in evaluation.pred.items()}}
    if not np.isnan(result["area_mm2"]):
        rows["Area scored"] = f"{result['area_mm2']:.3g} mm²"
    if result["skipped"]:
        rows["Not scored"] = "; ".join(f"{n:,} {reason}" for reason, n in result["skipped"].items())
    return [paragraph(" ".join(words)), facts(rows)]


def _with_interval(result: Mapping[str, Any], kind: str, score: str) -> str:
    span = result["interval"].get(kind, {}).get(score)
    value = f"{result[kind][score]:.3f}"
    return value if span is None else f"{value}, 95 % interval {span[0]:.3f} to {span[1]:.3f}"


def _fields(evaluation: Evaluation, prediction: str, most: int, progress: Progress | None) -> list[Html]:
    chosen = worst_fields(evaluation, prediction, most)
    if not chosen:
        return []
    drawn: dict[int, tuple[Html, str]] = {}
    by_image: dict[str, list[int]] = {}
    for position, field in enumerate(chosen):
        by_image.setdefault(field.image.name, []).append(position)
    done = 0
    for name, positions in by_image.items():
        partner = evaluation.pairs[prediction].get(name)
        truth = evaluation.true.read(name)
        found = evaluation.pred[prediction].read(partner) if partner else None
        outlines = _outlines(chosen[positions[0]].image.matches[prediction], truth, found)
        try:
            slide = open_pixels(truth)
        except InputError:
            slide = _Blank()
        with slide:
            for position in positions:
                drawn[position] = _field(chosen[position], slide, truth.size, *outlines)
                done += 1
                if progress:
                    progress(done, len(chosen))
    pictures = [captioned(parts[0], parts[1]) for _, parts in sorted(drawn.items())]
    note = paragraph(
        "Fields of 125 µm with the lowest panoptic quality first, at most a third of them of one image. Point at a "
        "picture to see the H&E without outlines. Green, turquoise and orange are the outlines of the truth; white "
        "is what was predicted for them. A nucleus is found when a predicted one has its centre within 3 µm; its "
        "outline is off when the two share half of their area or less.",
        note=True,
    )
    return [_SWAP, legend({**COLORS, PREDICTED: (190, 190, 190)}), grid(pictures), note]


def _outlines(matched: Match, truth: Side, found: Side | None) -> tuple[Polygons, NDArray[np.object_]]:
    """Outlines of the nuclei that count and what became of each; the truth lies above."""
    of_true, of_pred = states(matched)
    shapes: list[Polygons] = []
    names: list[NDArray[np.object_]] = []
    for side, ids, state in ((found, matched.overlap.pred_ids, of_pred), (truth, matched.overlap.true_ids, of_true)):
        if side is None:
            continue
        outlines, owner = side.outlines()
        by_nucleus, counts = np.full(len(side), MISSED, object), np.zeros(len(side), bool)
        by_nucleus[ids - 1], counts[ids - 1] = state, True
        kept = np.flatnonzero(counts[owner])
        shapes.append(outlines.take(kept))
        names.append(by_nucleus[owner[kept]])
    return Polygons.concatenate(shapes), np.concatenate(names)


def _field(
    field: Field,
    slide: Slide,
    size: tuple[int, int] | None,
    polygons: Polygons,
    names: NDArray[np.object_],
) -> tuple[Html, str]:
    x0, y0, x1, y1 = field.box
    if size is not None:
        x1, y1 = min(x1, size[0]), min(y1, size[1])
    box = (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))
    step = max(box[2] - box[0], box[3] - box[1]) / _PICTURE
    plain = overlay(slide, Polygons.empty(), [], box, step)
    lined = overlay(slide, polygons, names, box, step, 2.0, COLORS)
    s = field.scores
    words = [f"{field.image.name}, x {x0:.0f}, y {y0:.0f} px: {s['true']:.0f} true, {s['missed']:.0f} missed, "]
    words.append(f"{s['spurious']:.0f} spurious")
    words += [f", {label} {s[key]:.2f}" for key, label in (("pq", "PQ"), ("f_d", "F_d")) if not np.isnan(s[key])]
    if not np.isnan(s["type_accuracy"]):
        words.append(f", {s['type_accuracy']:.0%} of the found ones of the right class")
    below, above = picture(plain, "a field of the H&E"), picture(lined, "the same with outlines")
    return (Html(f'<div class="swap">{below}{above}</div>'), "".join(words))


class _Blank(Slide):
    """Grey, where there is no H&E."""

    def __init__(self) -> None:
        self.level_sizes, self.downsamples, self.mpp = [(1 << 30, 1 << 30)], [1.0], None
        self.width = self.height = 1 << 30

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> RGBImage:
        return np.full((height, width, 3), 235, np.uint8)


def _all(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {result["prediction"]: result, **result["others"]}


def _scores(result: Mapping[str, Any]) -> Html:
    rows = []
    for key, label in ROWS:
        if np.isnan(result["pooled"][key]):
            continue
        spans = [result["interval"].get(kind, {}).get(key) for kind in ("mean", "pooled")]
        words = ["–" if s is None else f"{s[0]:.3f} to {s[1]:.3f}" for s in spans]
        rows.append([label, result["mean"][key], words[0], result["pooled"][key], words[1]])
    return table(["score", "mean over images", "95 % interval", "pooled", "95 % interval"], rows)


def _beside(result: Mapping[str, Any]) -> list[Html]:
    """Pooled scores of all predictions, models and baselines."""
    every = _all(result)
    if len(every) < 2:
        return []
    keys = [k for k in SHORT if any(not np.isnan(one["pooled"][k]) for one in every.values())]
    rows = [[name, one["pooled"]["n_pred"], *(one["pooled"][k] for k in keys)] for name, one in every.items()]
    names = {c["second"] for c in result["comparisons"] if c["baseline"]}
    note = f"{', '.join(sorted(names))}: baselines that need no training on these data." if names else ""
    return [table(["pooled", "predicted nuclei", *(SHORT[k] for k in keys)], rows), paragraph(note, note=True)]


def _notes(result: Mapping[str, Any]) -> list[Html]:
    parts: list[Html] = []
    if span := result["interval"]:
        words = (
            f"{METHODS[span['method']]} bootstrap, {span['resamples']:,} resamples of {span['units']} {span['over']}"
        )
        parts.append(paragraph(f"Intervals: {words}.", note=True))
    rows = [
        [SHORT[score], found["detectable"], *(found["needed"][d] for d in found["needed"])]
        for score, found in result["power"].items()
    ]
    if rows:
        found = next(iter(result["power"].values()))
        parts.append(paragraph(power_sentence(SHORT[next(iter(result["power"]))], found)))
        header = ["score", "difference that can be seen", *(f"images for {d}" for d in found["needed"])]
        parts.append(table(header, rows))
    return parts


def _compared(result: Mapping[str, Any]) -> list[Html]:
    parts: list[Html] = []
    shown = [c for c in result["comparisons"] if not c["baseline"]]
    for one in shown:
        rows = []
        for key, label in ROWS:
            found = one["pooled"][key]
            if np.isnan(found["difference"]):
                continue
            span = found["interval"]
            words = "–" if span is None else f"{span[0]:+.3f} to {span[1]:+.3f}"
            rows.append([label, found["first"], found["second"], f"{found['difference']:+.3f}", words, found["p"]])
        header = ["pooled score", one["first"], one["second"], "difference", "95 % interval", "p"]
        parts += [Html(f"<h3>{one['second']} minus {one['first']}</h3>") if len(shown) > 1 else Html("")]
        parts += [figure(figures.differences(one), "differences with intervals"), table(header, rows)]
        test = "all exchanges" if one["test"] == "exact" else f"{one['permutations']:,} random exchanges"
        common = one["common"]["pooled"]["type_f1_macro"]
        note = (
            f"Paired over {one['units']} {one['over']}: bootstrap of the difference, and a permutation test of {test}."
        )
        if not np.isnan(common["difference"]):
            note += (
                f" On the {one['common']['nuclei']:,} nuclei that both found, macro type-F1 differs by "
                f"{common['difference']:+.3f} (p {common['p']:.3f})."
            )
        parts.append(paragraph(note, note=True))
        parts += [paragraph(power_sentence(SHORT[s], p), note=True) for s, p in one["power"].items() if s == "pq"]
    return parts


def _groups(result: Mapping[str, Any]) -> Html:
    keys = [
        k for k in ("dice", "aji", "pq", "mpq", "f_d", "f_c_mean", "type_f1_macro") if not np.isnan(result["pooled"][k])
    ]
    rows = [
        [name, group["images"], group["pooled"]["n_true"], *(group["pooled"][k] for k in keys)]
        for name, group in result["groups"].items()
    ]
    return table(["group", "images", "true nuclei", *(SHORT[k] for k in keys)], rows)


def _classes(result: Mapping[str, Any]) -> list[Html]:
    if not result["classes"]:
        return []
    header = ["class", "true", "predicted", "F_c", "type-F1", "precision", "recall", "PQ"]
    rows = []
    for name in result["classes"]:
        c = result["pooled"]["per_class"][name]
        rows.append([name, c["n_true"], c["n_pred"], *(c[k] for k in ("f_c", "type_f1", "precision", "recall", "pq"))])
    unknown = result["pooled"]["n_true_unknown"]
    note = f"{unknown:,} nuclei of unknown class count for detection and outlines, not for typing. " if unknown else ""
    return [
        figure(figures.class_bars(result), "scores of each class with intervals"),
        table(header, rows),
        figure(figures.confusion(result), "confusion matrix with missed and spurious nuclei"),
        paragraph(
            f"{note}Rows are the truth. Colours show the share of each row; numbers are nuclei. Missed: no predicted "
            "centre within 3 µm; spurious: predicted where there is none.",
            note=True,
        ),
    ]


def _agreement(evaluation: Evaluation, result: Mapping[str, Any]) -> list[Html]:
    found = result["agreement"]
    kind = "density" if found.get("density") else "count"
    if not found.get(kind):
        return []
    unit = "nuclei per mm²" if kind == "density" else "nuclei"
    digits = 0 if kind == "density" else 1
    rows = [[name, *(f"{f[k]:+.{digits}f}" for k in ("bias", "low", "high"))] for name, f in found[kind].items()]
    return [
        figure(figures.bland_altman(result, kind), "difference against mean of counts or densities"),
        table(["class", f"bias, {unit}", "lower limit", "upper limit"], rows),
        paragraph(
            f"Predicted minus true {unit} over {result['images']} images; about 95 % of images lie between the "
            "limits of agreement (bias ± 1.96 standard deviations, Bland and Altman).",
            note=True,
        ),
    ]


def _calibration(result: Mapping[str, Any]) -> list[Html]:
    every = {name: one["calibration"] for name, one in _all(result).items() if one["calibration"]}
    if not every:
        return []
    return [
        figure(figures.reliability(every), "share of right classes against the probability"),
        paragraph(
            "Nuclei found, by the probability of their predicted class. On the diagonal a probability means what it "
            "says; below it the network is too sure. "
            + "; ".join(f"{name}: calibration error {c['ece']:.3f}" for name, c in every.items())
            + ".",
            note=True,
        ),
    ]


def _images(result: Mapping[str, Any]) -> Html:
    keys = [k for k in ("dice", "aji", "pq", "f_d", "type_f1_macro") if not np.isnan(result["pooled"][k])]
    order = sorted(
        result["per_image"].items(), key=lambda item: np.nan_to_num(item[1][keys[-2 if len(keys) > 3 else 0]])
    )
    grouped = any(one["group"] for _, one in order)
    rows = [
        [name, *([one["group"]] if grouped else []), one["n_true"], one["n_pred"], *(one[k] for k in keys)]
        for name, one in order
    ]
    return table(["image", *(["group"] if grouped else []), "true", "predicted", *(SHORT[k] for k in keys)], rows)
