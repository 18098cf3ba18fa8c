"""The report of a training run: one HTML file, made from what lies in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stqp.errors import InputError
from stqp.patches.store import SIDES, VALIDATION, PatchFile
from stqp.record import RunRecord
from stqp.report import evaluation_figures, page, training_figures
from stqp.report.held_out import HeldOut, Progress, judge_held_out
from stqp.report.page import Html
from stqp.taxonomy import RGB, UNKNOWN, UNKNOWN_COLOR, color_of
from stqp.training.manifest import read_manifest

REPORT, RECORD, METRICS = "report.html", "record.json", "metrics.csv"
FEW = 10
"""Fewer blocks or images than these give intervals that are no more than a hint."""
_EDGE: RGB = (60, 110, 170)
_ROWS = {
    "dice": "Dice", "aji": "AJI", "pq": "PQ", "f_d": "F_d", "mpq": "mPQ", "f_c_mean": "mean F_c",
    "type_f1_macro": "macro type-F1", "type_accuracy": "type accuracy",
}  # fmt: skip
_PER_CLASS = {"f_c": "F_c", "type_f1": "type-F1", "precision": "precision", "recall": "recall", "pq": "PQ"}
_UNITS = {
    "blocks": "spatial blocks of the slides, since neighbouring patches are alike",
    "images": "images",
    "patches": "patches; neighbouring patches are alike, so the intervals are too narrow",
}


def report_run(
    run: Path,
    out: Path | None = None,
    patches: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> RunRecord:
    """Write the report of a training run.

    Parameters
    ----------
    run
        Folder of a finished run: ``manifest.json``, ``model.pth``, ``metrics.csv``, ``record.json``, and the file
        of patches, without which the report has no pictures and no scores of its own.
    out
        The HTML file; ``report.html`` in the run's folder when None.
    patches
        At most so many held-out patches; what the device does in some 20 seconds when None.
    device
        As `stqp.devices.pick_device`.
    progress
        Called with (patches done, patches in all).

    Returns
    -------
    RunRecord
        ``results`` has ``report``, ``side``, ``patches`` and ``scores``.

    Raises
    ------
    InputError
        When the folder is no finished run.
    EnvironmentProblem
        When the device is not there, or the disk is full.
    """
    from stqp.devices import pick_device

    record = RunRecord("model report", {"run": run, "out": out, "patches": patches, "device": device})
    manifest = read_manifest(run)
    said = _read_record(run / RECORD)
    device = pick_device(device)
    colors = _colors(manifest)
    file = run / manifest.get("data", {}).get("file", "patches.h5")
    held = None
    try:
        learnt_from = PatchFile(file)
    except InputError as error:
        record.warn(f"{error}; the report has no pictures")
    else:
        try:
            held = judge_held_out(run, learnt_from, colors, device, patches, progress)
        finally:
            learnt_from.close()
    target = out or run / REPORT
    page.write_page(target, *_parts(run, manifest, said, held, colors))
    record.results["report"] = str(target)
    if held is not None:
        pooled = {k: v for k, v in held.result["pooled"].items() if k in _ROWS}
        record.results.update(side=held.side, patches=len(held.rows), scores=pooled)
        record.count("held-out patches", f"{len(held.rows)} of {held.available}, of {held.side}")
        for key, value in pooled.items():
            if value == value:
                record.count(f"{held.side} {key}", round(float(value), 4))
    return record


def _parts(
    run: Path, manifest: Mapping[str, Any], said: Mapping[str, Any], held: HeldOut | None, colors: Mapping[str, RGB]
) -> list[str]:
    name = str(manifest.get("name") or run.name)
    return [
        f"Training of {name}",
        page.verdict(_sentence(manifest, held), _EDGE),
        page.facts(_facts(manifest)),
        page.section("Course", *_course(run, manifest)),
        page.section("On what was held out", *_scores(held, manifest)),
        page.section("Classes", *_classes(held)),
        page.section("Best, median and worst patches", *_patches(held, colors)),
        page.section("What was learnt from", *_data(manifest, said, colors)),
        page.section("How the nuclei got their classes", *_labels(manifest)),
        page.section("Settings", *_settings(manifest)),
    ]


def _sentence(manifest: Mapping[str, Any], held: HeldOut | None) -> str:
    data, training = manifest.get("data", {}), manifest.get("training", {})
    number = data.get("patches_by_side", {}).get("training")
    text = f"{manifest['architecture']} learnt {len(manifest['classes'])} classes"
    text += f" from {number:,} patches" if number else ""
    text += f" in {training['minutes']:.3g} minutes" if "minutes" in training else ""
    if held is None:
        return f"{text}; nothing that was held out could be scored."
    pooled = held.result["pooled"]
    if not pooled["n_pred"]:
        return f"{text}. On held-out patches ({held.side}) it finds none of the {pooled['n_true']:,} nuclei."
    found = f"it finds {pooled['recall_d']:.0%} of the nuclei, and " if pooled["n_true"] else ""
    text += f". On held-out patches ({held.side}) {found}{pooled['precision_d']:.0%} of what it finds is a nucleus"
    if pooled["type_accuracy"] == pooled["type_accuracy"]:
        text += f"; {pooled['type_accuracy']:.0%} of the nuclei found get the right class"
    return f"{text} (PQ {_number(pooled['pq'])}, F_d {_number(pooled['f_d'])})."


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    training, weights = manifest.get("training", {}), manifest.get("weights", {})
    rows: dict[str, Any] = {}
    if "parameters" in weights:
        rows["Network"] = (
            f"{manifest['architecture']}, {weights['parameters'] / 1e6:.2f} million parameters, "
            f"{weights.get('gflop', 0):.1f} GFLOP a window"
        )
    initial = training.get("initial") or {}
    rows["Began with"] = initial.get("summary", "nothing") if isinstance(initial, Mapping) else str(initial)
    if "steps" in training:
        rows["Steps"] = (
            f"{training['steps']:,} of {training.get('batch_size', '?')} crops, {training['epochs']:g} epochs"
        )
    if training.get("selected_by") not in (None, "last"):
        rows["Kept"] = f"the weights of step {training['selected_step']:,}, by validation {training['selected_by']}"
    elif training.get("selected_by"):
        rows["Kept"] = "the weights of the end"
    if training.get("stopped_early"):
        rows["Ended"] = "early, since the score rose no more"
    if "device" in training:
        processes = training.get("processes", 1)
        rows["Device"] = training["device"] + (f", {processes} processes" if processes > 1 else "")
    rows["Resolution"] = f"{manifest['mpp']:g} µm per px"
    return rows


def _course(run: Path, manifest: Mapping[str, Any]) -> list[str]:
    from stqp.training.metrics import read_metrics

    rows = training_figures.number_rows(read_metrics(run / METRICS))
    if not rows:
        return [page.paragraph(f"The run has no {METRICS}.", note=True)]
    training = manifest.get("training", {})
    by = training.get("selected_by")
    chosen = training.get("selected_step") if by not in (None, "last") else None
    words = "Losses are means over the steps since the row before."
    words += " Red, dashed: the step whose weights were kept." if chosen is not None else ""
    words += " Dotted: a new phase." if len({row.get("phase", 0) for row in rows}) > 1 else ""
    drawn = training_figures.course(rows, chosen, by)
    return [page.figure(drawn, "losses, scores and learning rate over the steps"), page.paragraph(words, note=True)]


def _scores(held: HeldOut | None, manifest: Mapping[str, Any]) -> list[str]:
    if held is None:
        return []
    pooled, spans = held.result["pooled"], held.result.get("interval", {}).get("pooled", {})
    rows = []
    for key, label in _ROWS.items():
        if pooled[key] == pooled[key]:
            span = spans.get(key)
            rows.append([label, pooled[key], "–" if span is None else f"{span[0]:.3f} to {span[1]:.3f}"])
    looked = f"{len(held.rows):,} of the {held.available:,} patches of the {held.side} side"
    by = manifest.get("training", {}).get("selected_by")
    flatters = held.side == SIDES[VALIDATION] and by not in (None, "last")
    chosen = "The weights were chosen on this side, so the scores flatter. " if flatters else ""
    found = held.result.get("interval", {})
    if found:
        words = f"Intervals: bootstrap, {found['resamples']:,} resamples of {found['units']} {_UNITS[held.unit]}."
        words += " So few say little: take the intervals as a hint." if found["units"] < FEW else ""
    else:
        words = "There are too few parts that are independent of each other for intervals."
    return [
        page.table(["score, pooled", "", "95 % interval"], rows),
        page.figure(training_figures.distribution(held.panoptic, "PQ of a patch"), "PQ of the patches"),
        page.paragraph(f"Of {looked}, within the network's margin. {chosen}{words}", note=True),
    ]


def _classes(held: HeldOut | None) -> list[str]:
    if held is None or not held.result["classes"]:
        return []
    spans = held.result.get("interval", {}).get("pooled_per_class", {})
    rows = []
    for name in held.result["classes"]:
        one = held.result["pooled"]["per_class"][name]
        row: list[Any] = [name, one["n_true"], one["n_pred"]]
        for key in _PER_CLASS:
            span = spans.get(name, {}).get(key)
            text = _number(one[key])
            row.append(text if span is None else f"{text} ({span[0]:.2f}–{span[1]:.2f})")
        rows.append(row)
    unknown = held.result["pooled"]["n_true_unknown"]
    note = f"{unknown:,} nuclei of unknown class count for detection and outlines, not for typing. " if unknown else ""
    return [
        page.figure(evaluation_figures.class_bars(held.result), "scores of each class with intervals"),
        page.table(["class", "true", "predicted", *_PER_CLASS.values()], rows),
        page.figure(evaluation_figures.confusion(held.result), "confusion matrix with missed and spurious nuclei"),
        page.paragraph(
            f"{note}Rows are the truth, that is, the labels that were held out. Colours show the share of each row; "
            "numbers are nuclei. Missed: no predicted centre within 3 µm; spurious: predicted where there is none.",
            note=True,
        ),
    ]


def _patches(held: HeldOut | None, colors: Mapping[str, RGB]) -> list[str]:
    if held is None:
        return []
    parts: list[str] = [page.legend({**colors, UNKNOWN: UNKNOWN_COLOR})]
    for kind, found in held.shown.items():
        for row, words, image in found:
            drawn = page.picture(image, f"{kind} patch: H&E, truth, prediction")
            parts.append(page.captioned(drawn, f"{kind}, patch {row}: {words}"))
    if len(parts) == 1:
        return [page.paragraph("The held-out patches have no nuclei.", note=True)]
    parts.append(
        page.paragraph(
            "From left to right: the H&E, the truth, the prediction. By PQ. What is pale was not scored.", note=True
        )
    )
    return parts


def _data(manifest: Mapping[str, Any], said: Mapping[str, Any], colors: Mapping[str, RGB]) -> list[str]:
    data = manifest.get("data", {})
    nuclei, sides = data.get("nuclei", {}), data.get("patches_by_side", {})
    parts: list[str] = []
    shown = [side for side in SIDES if sides.get(side)]
    if nuclei and shown:
        rows: list[list[Any]] = [["patches", *(sides[side] for side in shown)]]
        for name in nuclei[shown[0]]:
            label = page.swatch(name, colors.get(name, UNKNOWN_COLOR))
            rows.append([label, *(nuclei[side].get(name, 0) for side in shown)])
        parts.append(page.table(["nuclei", *shown], rows))
        parts.append(page.paragraph("A nucleus that two patches share counts in both.", note=True))
    reasons = _reasons(data.get("labels"))
    if reasons:
        parts.append(page.table(["class", "what became of its nuclei", "nuclei"], reasons))
    skipped = said.get("skipped", {})
    if skipped:
        parts.append(page.table(["left out", "number"], [[reason, number] for reason, number in skipped.items()]))
    parts += [page.paragraph(f"Warning: {text}") for text in said.get("warnings", [])]
    options = data.get("options", {})
    if options.get("split"):
        parts.append(page.paragraph(_split(options), note=True))
    if data.get("sources"):
        rows = [[s.get("entry", ""), s.get("project", "–"), s.get("mpp")] for s in data["sources"]]
        parts.append(page.table(["image", "project", "µm per px"], rows))
    return parts


def _reasons(labels: Any) -> list[list[Any]]:
    """Nuclei of each class by what became of them, as rows."""
    if not isinstance(labels, Mapping):
        return []
    return [
        [name, reason, number]
        for name, reasons in labels.items()
        if isinstance(reasons, Mapping)
        for reason, number in reasons.items()
        if isinstance(number, int)
    ]


def _split(options: Mapping[str, Any]) -> str:
    text = f"Split by {options['split']}"
    if options["split"] == "block":
        text += f" of {options.get('block', 0):g} µm, with a band of {options.get('guard', 0):g} µm between the sides"
    held = [f"{name}={value:g}" for name in ("validation", "test") if (value := options.get(name))]
    held += [
        f"{name.replace('_', '-')} {', '.join(options[name])}"
        for name in ("holdout", "validate_on")
        if options.get(name)
    ]
    return f"{text}; {', '.join(held) or 'nothing held out'}; seed {options.get('seed', 0)}."


def _labels(manifest: Mapping[str, Any]) -> list[str]:
    rows = []
    for one in manifest.get("labels", []):
        changes = "; ".join(f"{k}: {v:,}" for k, v in (one.get("changes") or {}).items())
        writers = "; ".join(f"{k}: {v:,}" for k, v in (one.get("nuclei") or {}).items())
        rows.append([one.get("entry", ""), one["summary"], writers or "–", changes or "–"])
    return [page.table(["image", "labels", "nuclei by who wrote them", "classes changed by a person"], rows)]


def _settings(manifest: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    settings = manifest.get("training", {}).get("settings", {})
    rows = []
    for section, options in settings.items():
        if isinstance(options, Mapping):
            rows += [[f"{section}.{key}", _setting(value)] for key, value in options.items()]
        else:
            rows.append([section, _setting(options)])
    if rows:
        body = page.table(["setting", "value"], rows)
        parts.append(Html(f"<details><summary>All settings</summary>{body}</details>"))
    parts.append(page.facts(manifest.get("versions", {})))
    return parts


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, bool)) else str(value)


def _colors(manifest: Mapping[str, Any]) -> dict[str, RGB]:
    said = manifest.get("colors", {})
    result: dict[str, RGB] = {}
    for name in manifest["classes"]:
        color = said.get(name)
        result[name] = (int(color[0]), int(color[1]), int(color[2])) if color else color_of(name)
    return result


def _read_record(path: Path) -> dict[str, Any]:
    """What a run said of itself; nothing where it is lost."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else "–"
