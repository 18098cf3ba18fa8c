"""`stqp evaluate`."""

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click
from stqp_cli.common import FILE, FOLDER, PATH, progress_bar, set_up_logging, type_names, verbose_option

from stqp.errors import UsageError
from stqp.record import RunRecord

_KINDS = click.Choice(["auto", "annotations", "detections", "cells"])
EPILOG = """\b
Examples:
  stqp evaluate --true truth/ --pred maps/ --html report.html
  stqp evaluate --true slide-project --pred slide-project --held-out runs/first
  stqp evaluate --true truth-project::slide.svs --pred other-project::slide.svs
  stqp evaluate --true CoNSeP/Test --pred new=maps-a --pred old=maps-b --csv scores.csv
  stqp evaluate --true tiles/ --pred maps/ --type 1=Inflammatory --type 2=Epithelial
  stqp evaluate --true PanNuke/fold3 --pred maps/ --by organ --baselines

A and B are QuPath projects, folders of instance maps (npz, npy, mat, png, tif; CoNSeP's and Kumar's Labels,
PanNuke's masks.npy), or tables of nuclei (GeoJSON, parquet, csv). In a project the truth is the annotations, and
the prediction is what stqp predict wrote. Scores are given as the mean over images and pooled over all nuclei.
Several --pred are compared with the first one, on the same images. docs/evaluation.md defines every score.
"""


@click.command(epilog=EPILOG)
@click.option("--true", "true", required=True, metavar="A", help="Project, PROJECT::IMAGE, folder of maps, or table.")
@click.option("--pred", "pred", required=True, multiple=True, metavar="B",
              help="As --true, or NAME=B; may be given several times, the first is compared with.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(allow_dash=True), metavar="FILE",
              help="Write the scores as JSON; - for stdout.")  # fmt: skip
@click.option("--csv", "csv_file", type=PATH, metavar="FILE", help="Write the scores as rows for a spreadsheet.")
@click.option("--html", "html_file", type=PATH, metavar="FILE", help="Write a report with pictures, one file.")
@click.option("--held-out", type=PATH, metavar="RUN",
              help="Score only what this training run held out.")  # fmt: skip
@click.option("--mpp", type=click.FloatRange(0, min_open=True), metavar="UM",
              help="µm per px of maps and tables (default 0.25), or of images that do not say.")  # fmt: skip
@click.option(
    "--true-kind", type=_KINDS, default="auto", show_default=True, help="Objects of a project that are the truth."
)
@click.option("--true-class", metavar="CLASS",
              help="Only objects of this class, or derived from it (CLASS: x), are the truth.")  # fmt: skip
@click.option(
    "--pred-kind", type=_KINDS, default="auto", show_default=True, help="Objects of a project that are predicted."
)
@click.option("--model", metavar="NAME", help="Run whose predictions count, where a project has those of several.")
@click.option("--class-map", type=FILE, metavar="CSV", help="Classes to score in place of those of either side.")
@click.option("--type", "types", multiple=True, metavar="NUMBER=CLASS",
              help="Class of a number in maps that name none. Repeatable.")  # fmt: skip
@click.option("--metadata", type=FILE, metavar="CSV", help="Column image, and others such as organ.")
@click.option("--by", "group_by", default="organ", show_default=True, metavar="KEY",
              help="Metadata (of entries or of --metadata) that group images.")  # fmt: skip
@click.option("--images", type=FOLDER, metavar="FOLDER", help="H&E of maps and tables, for the report.")
@click.option("--allow-missing", is_flag=True, help="An image that B lacks has no predicted nuclei.")
@click.option("--baselines", is_flag=True,
              help="Score beside it: majority class, shuffled labels, watershed, PanNuke network.")  # fmt: skip
@click.option("--blocks", "block_um", type=click.FloatRange(20), metavar="UM",
              help="Resample spatial blocks of this side in place of images.")  # fmt: skip
@click.option("--interval", type=click.Choice(["bca", "percentile"]), default="bca", show_default=True,
              help="Kind of the 95 % intervals.")  # fmt: skip
@click.option("--bootstrap", type=click.IntRange(0), default=1000, show_default=True,
              help="Resamples for 95 % intervals; 0 for none.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of resamples and permutations.")
@click.option("--fields", type=click.IntRange(0), default=12, show_default=True, help="Fields drawn in the report.")
@verbose_option
def command(
    true: str,
    pred: tuple[str, ...],
    json_file: str | None,
    csv_file: Path | None,
    html_file: Path | None,
    held_out: Path | None,
    mpp: float | None,
    true_kind: str,
    true_class: str | None,
    pred_kind: str,
    model: str | None,
    class_map: Path | None,
    types: tuple[str, ...],
    metadata: Path | None,
    group_by: str,
    images: Path | None,
    allow_missing: bool,
    baselines: bool,
    block_um: float | None,
    interval: str,
    bootstrap: int,
    seed: int,
    fields: int,
    verbose: bool,
) -> None:
    """Score predicted nuclei against the truth."""
    set_up_logging(verbose)
    from stqp.evaluation import baselines as simple
    from stqp.evaluation.evaluate import evaluate
    from stqp.evaluation.options import Options, Source, open_source
    from stqp.evaluation.output import lines, write_csv
    from stqp.evaluation.summary import summary
    from stqp.files import without_nan, write_json
    from stqp.taxonomy import read_class_map

    record = RunRecord("evaluate", {
        "true": true, "pred": pred, "held_out": held_out, "mpp": mpp, "true_kind": true_kind,
        "true_class": true_class, "pred_kind": pred_kind, "model": model, "class_map": class_map,
        "types": types, "metadata": metadata, "by": group_by, "images": images, "allow_missing": allow_missing,
        "baselines": baselines, "blocks": block_um, "interval": interval, "bootstrap": bootstrap, "seed": seed,
    })  # fmt: skip
    options = Options(
        mpp=mpp, held_out=held_out, class_map=None if class_map is None else read_class_map(class_map),
        type_names=type_names(types) or None, metadata=metadata, group_by=group_by, allow_missing=allow_missing,
        block_um=block_um, interval=interval, bootstrap=bootstrap, seed=seed, images=images,
    )  # fmt: skip
    with ExitStack() as stack:

        def opened(text: str, **project: Any) -> Source:
            return stack.enter_context(closing(open_source(text, images, mpp=mpp, **project)))

        truth = opened(true, kind=true_kind, of_class=true_class)
        beside = truth if hasattr(truth, "target") else None
        found: dict[str, Source] = {}
        for name, text in _named(pred).items():
            found[name] = opened(text, kind=pred_kind, predicted=True, model=model, other=beside)
        if baselines:
            found[simple.WATERSHED] = simple.watershed_source(truth, mpp)
            network, why = simple.network_source(truth, mpp=mpp)
            if network is None:
                record.warn(why)
            else:
                found[simple.NETWORK] = network
        with progress_bar("scoring", "image") as progress:
            evaluation = evaluate(truth, found, options, progress)
        if baselines:
            evaluation.baselines = [name for name in (simple.WATERSHED, simple.NETWORK) if name in found]
            simple.add_typing_baselines(evaluation)
        result = summary(evaluation)
        for reason, number in result["skipped"].items():
            record.skip(reason, number)
        if csv_file:
            write_csv(csv_file, result)
        if html_file:
            from stqp.report.evaluation import write_report

            with progress_bar("drawing", "field") as progress:
                write_report(html_file, evaluation, result, fields, progress)
    plain = without_nan({**result, "record": record.to_dict()})
    if json_file == "-":
        click.echo(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False))
        return
    if json_file:
        write_json(Path(json_file), plain)
    closing_lines = [f"report: {html_file}"] if html_file else []
    click.echo("\n".join([*lines(result), *record.summary().splitlines(), *closing_lines]))


def _named(texts: tuple[str, ...]) -> dict[str, str]:
    """Predictions by name: that of ``NAME=B``, else the last part of the path."""
    result: dict[str, str] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not sign or Path(text.partition("::")[0]).exists():
            name, path = Path(text.partition("::")[0]).name or text, text
        if name in result:
            raise UsageError(f"two predictions are called {name}; name them: --pred first=A --pred second=B")
        result[name] = path
    return result
