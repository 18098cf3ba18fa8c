"""`stqp evaluate`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, progress_bar, set_up_logging, verbose_option

from stqp.errors import InputError, UsageError
from stqp.record import RunRecord

_KINDS = click.Choice(["auto", "annotations", "detections", "cells"])
_ROWS = (
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
    ("type_accuracy", "type accuracy, paired nuclei"),
)
EPILOG = """\b
Examples:
  stqp evaluate --true truth/ --pred maps/ --json scores.json
  stqp evaluate --true slide-project --pred slide-project --held-out runs/first
  stqp evaluate --true truth-project::slide.svs --pred other-project::slide.svs

A folder of maps holds a .npy (instances) or .npz (inst, ids, types, classes) for each image. In a project the
truth is the annotations, and the prediction is what stqp predict wrote. Scores are given as the mean over
images and pooled over all nuclei.
"""


@click.command(epilog=EPILOG)
@click.option("--true", "true", required=True, metavar="A", help="Folder of maps, PROJECT, or PROJECT::IMAGE.")
@click.option("--pred", "pred", required=True, metavar="B", help="Folder of maps, PROJECT, or PROJECT::IMAGE.")
@click.option("--json", "json_file", type=click.Path(allow_dash=True), metavar="FILE",
              help="Write the scores as JSON; - for stdout.")  # fmt: skip
@click.option("--held-out", type=PATH, metavar="RUN",
              help="Score only what this training run held out.")  # fmt: skip
@click.option("--mpp", type=click.FloatRange(0, min_open=True), metavar="UM",
              help="µm per px of maps (default 0.25), or of images that do not say.")  # fmt: skip
@click.option(
    "--true-kind", type=_KINDS, default="auto", show_default=True, help="Objects of a project that are the truth."
)
@click.option(
    "--pred-kind", type=_KINDS, default="auto", show_default=True, help="Objects of a project that are predicted."
)
@click.option("--model", metavar="NAME", help="Run whose predictions count, where a project has those of several.")
@click.option("--bootstrap", type=click.IntRange(0), default=1000, show_default=True,
              help="Resamples of the images for 95 % intervals; 0 for none.")  # fmt: skip
@verbose_option
def command(
    true: str,
    pred: str,
    json_file: str | None,
    held_out: Path | None,
    mpp: float | None,
    true_kind: str,
    pred_kind: str,
    model: str | None,
    bootstrap: int,
    verbose: bool,
) -> None:
    """Score predicted nuclei against the truth.

    A and B are both folders of instance maps with the same file names, or both QuPath projects.
    """
    set_up_logging(verbose)
    from stqp.evaluation.entries import evaluate_entries, is_project_text
    from stqp.evaluation.evaluate import MPP, evaluate_maps

    for option, text in (("--true", true), ("--pred", pred)):
        path = Path(text.partition("::")[0])
        if not path.exists():
            raise InputError(f"{option} names {path}, which does not exist")
    projects = is_project_text(true), is_project_text(pred)
    if projects[0] != projects[1]:
        raise UsageError(
            "--true and --pred must both be folders of maps, or both QuPath projects; one of each was given"
        )
    record = RunRecord("evaluate", {
        "true": true, "pred": pred, "held_out": held_out, "mpp": mpp, "true_kind": true_kind,
        "pred_kind": pred_kind, "model": model, "bootstrap": bootstrap,
    })  # fmt: skip
    with progress_bar("scoring", "image") as progress:
        if projects[0]:
            result = evaluate_entries(
                true, pred, true_kind=true_kind, pred_kind=pred_kind, model=model, held_out=held_out, mpp=mpp,
                bootstrap=bootstrap, progress=progress,
            )  # fmt: skip
        else:
            result = evaluate_maps(
                Path(true), Path(pred), mpp or MPP, held_out=held_out, bootstrap=bootstrap, progress=progress
            )
    for reason, number in result.pop("skipped", {}).items():
        record.skip(reason, number)
    plain = _without_nan(result)
    if json_file:
        text = json.dumps({**plain, "record": record.to_dict()}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if json_file == "-":
            click.echo(text, nl=False)
            return
        from stqp import files

        files.write_bytes(Path(json_file), text.encode())
    click.echo("\n".join([*table(result), *record.summary().splitlines()]))


def table(result: Mapping[str, Any]) -> list[str]:
    """Lines of the scores for a person."""
    mean, pooled, interval = result["mean"], result["pooled"], result["interval"]
    images = result["images"]
    lines = [
        f"{images} image{'s' if images > 1 else ''}, {pooled['n_true']:,} true and {pooled['n_pred']:,} predicted "
        f"nuclei ({pooled['n_paired']:,} paired within 3 µm)",
        "",
        f"{'score':<30}{'mean over images':>18}{'pooled':>10}" + ("   95 % interval of pooled" if interval else ""),
    ]
    for key, label in _ROWS:
        line = f"{label:<30}{_number(mean[key]):>18}{_number(pooled[key]):>10}"
        if interval and key in interval["pooled"]:
            low, high = interval["pooled"][key]
            line += f"   {low:.3f} to {high:.3f}"
        lines.append(line)
    names = result["classes"]
    if not names:
        return [*lines, "", "no classes: nuclei were not typed"]
    width = max(len(n) for n in [*names, "Unknown"]) + 2
    lines += ["", "per class, pooled:"]
    head = ("true", "predicted", "F_c", "type-F1", "precision", "recall", "PQ")
    lines.append(" " * width + "".join(f"{h:>11}" for h in head))
    for name in names:
        c = pooled["per_class"][name]
        scores = [_number(c[key]) for key in ("f_c", "type_f1", "precision", "recall", "pq")]
        cells = [f"{c['n_true']:,}", f"{c['n_pred']:,}", *scores]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    if pooled["n_true_unknown"]:
        lines.append(
            f"{'Unknown':<{width}}{pooled['n_true_unknown']:>11,}{pooled['n_pred_unknown']:>11,}   (not typed)"
        )
    lines += ["", "confusion of paired nuclei (rows true, columns predicted), and nuclei without a partner:"]
    labels = result["confusion"]["labels"]
    column = max(width, 11)
    lines.append(" " * width + "".join(f"{label:>{column}}" for label in [*labels, "missed"]))
    for index, row in enumerate(result["confusion"]["rows_true_columns_predicted"]):
        cells = [*row, result["unpaired_true"][index]]
        lines.append(f"{labels[index]:<{width}}" + "".join(f"{v:>{column},}" for v in cells))
    lines.append(f"{'extra':<{width}}" + "".join(f"{v:>{column},}" for v in result["unpaired_pred"]))
    return lines


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _without_nan(value: Any) -> Any:
    """Undefined scores as null: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
