"""`stqp audit`: whether labels and splits can be trusted."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, json_option, progress_bar, report, set_up_logging, verbose_option

from stqp.errors import UsageError
from stqp.record import RunRecord


@click.group(
    epilog="\b\nExamples:\n  stqp audit leaks runs/first\n  stqp audit leaks runs/first test-project\n"
    "  stqp audit drops runs/first\n  stqp audit masks slide-project --model first --csv fields.csv\n"
)
def command() -> None:
    """Check labels and splits before numbers are believed."""


@command.command(
    "leaks", epilog="\b\nExamples:\n  stqp audit leaks runs/first\n  stqp audit leaks runs/first new-slides"
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="[B]", required=False)
@json_option
@verbose_option
def leaks(first: str, second: str | None, as_json: bool, verbose: bool) -> None:
    """Look for slides, patients, tissue and pixels that are on both sides.

    A and B are training runs, files of patches, projects (PROJECT::IMAGE for one image) or folders of images. Of
    A alone, what it trains on is held against its own validation and test side; of two, all of A against all of B.
    Exit code 3 when tissue, pixels or a patient are on both sides.
    """
    set_up_logging(verbose)
    from stqp.evaluation.leaks import SLIDE, find_leaks, read_material

    record = RunRecord("audit leaks", {"first": first, "second": second})
    if second is None and "::" not in first and not _has_sides(first):
        raise UsageError(f"{first} has no two sides; name a second run, file of patches, project or folder")
    with progress_bar("reading", "picture") as progress:
        a = read_material(first, ("training",) if second is None else _ALL, progress)
    with progress_bar("reading", "picture") as progress:
        b = read_material(second or first, ("validation", "test") if second is None else _ALL, progress)
    found = find_leaks(a, b)
    record.count(f"images of {'the training side' if second is None else first}", len(a.parts))
    record.count(f"images of {'the held-out sides' if second is None else second}", len(b.parts))
    record.results["leaks"] = [vars(leak) for leak in found]
    kinds: dict[str, int] = {}
    for leak in found:
        kinds[leak.kind] = kinds.get(leak.kind, 0) + 1
    for kind, number in kinds.items():
        record.count(f"on both sides: {kind}", number)
    lines = [f"{leak.kind}: {leak.first} and {leak.second} ({leak.detail})" for leak in found[:_MOST]]
    if len(found) > _MOST:
        lines.append(f"and {len(found) - _MOST} more; --json lists them")
    bad = [leak for leak in found if leak.kind != SLIDE]
    if not found:
        lines.append("nothing is on both sides")
    elif not bad:
        lines.append("only slides are shared: scores hold for these slides, not for new ones")
    report(record, as_json, *lines)
    if bad:
        click.get_current_context().exit(3)


_ALL = ("training", "validation", "test")
_MOST = 20


def _has_sides(text: str) -> bool:
    path = Path(text)
    return path.suffix.lower() in (".h5", ".hdf5") or (path / "patches.h5").is_file()


@command.command(
    "drops", epilog="\b\nExamples:\n  stqp audit drops runs/first\n  stqp audit drops runs/first/patches.h5"
)
@click.argument("run", type=PATH, metavar="RUN")
@json_option
@verbose_option
def drops(run: Path, as_json: bool, verbose: bool) -> None:
    """Show how many nuclei of each class every filter dropped.

    RUN is a training run or a file of patches.
    """
    set_up_logging(verbose)
    from stqp.evaluation.drops import read_drops

    record = RunRecord("audit drops", {"run": run})
    found = read_drops(run)
    rows = found.rows()
    record.results["drops"] = rows
    _warn_of_censored(record, rows)
    report(record, as_json, *_drop_lines(rows))


def _warn_of_censored(record: RunRecord, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["censored"] and row["reason"] != "all reasons":
            record.warn(
                f"{row['class']} loses {row['rate']:.1%} of its nuclei {row['reason']}, the other classes "
                f"{row['others']:.1%}: what the network learns of it is not what the tissue holds"
            )


def _drop_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    width = max((len(row["class"]) for row in rows), default=0) + 2
    for reason in dict.fromkeys(row["reason"] for row in rows):
        lines += ["", f"dropped, {reason}:"]
        for row in (r for r in rows if r["reason"] == reason):
            low, high = row["interval"]
            mark = "  <- more than other classes" if row["censored"] else ""
            lines.append(
                f"  {row['class']:<{width}}{row['dropped']:>9,} of {row['nuclei']:>9,}{row['rate']:>8.1%} "
                f"({low:.1%} to {high:.1%}){mark}"
            )
    return lines


@command.command(
    "masks", epilog="\b\nExamples:\n  stqp audit masks slide-project --model first --csv fields.csv --below 0.4"
)
@click.argument("project", metavar="PROJECT")
@click.option("--model", metavar="NAME", help="Run whose detections are compared, where there are several.")
@click.option("--pred", metavar="B", help="Nuclei of the network elsewhere: project, maps or table.")
@click.option("--field", "field_um", type=click.FloatRange(10), default=64.0, show_default=True,
              help="Side of a field in µm.")  # fmt: skip
@click.option("--score", type=click.Choice(["dice", "jaccard", "pq"]), default="dice", show_default=True,
              help="What a field is judged by.")  # fmt: skip
@click.option("--below", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="Fields with less would be dropped.")  # fmt: skip
@click.option("--csv", "csv_file", type=PATH, metavar="FILE", help="Write the fields, the worst first.")
@click.option("--geojson", type=PATH, metavar="FOLDER",
              help="Write the fields that would be dropped as Ignore annotations, a file an image.")  # fmt: skip
@click.option(
    "--mpp", type=click.FloatRange(0, min_open=True), metavar="UM", help="µm per px of images that do not say."
)
@json_option
@verbose_option
def masks(
    project: str,
    model: str | None,
    pred: str | None,
    field_um: float,
    score: str,
    below: float,
    csv_file: Path | None,
    geojson: Path | None,
    mpp: float | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Hold the masks of an ST run against those of a network, field by field.

    PROJECT has the ST run's nuclei as annotations and what stqp predict found as detections (or --pred names it).
    Where the two disagree, the alignment, the section or the network is wrong. With --geojson, the fields below the
    limit can be put into the project (stqp project import), and training leaves them out.
    """
    set_up_logging(verbose)
    import numpy as np

    from stqp.evaluation.evaluate import evaluate
    from stqp.evaluation.mask_audit import field_table
    from stqp.evaluation.options import Options, open_source

    record = RunRecord("audit masks", {
        "project": project, "model": model, "pred": pred, "field": field_um, "score": score, "below": below,
        "mpp": mpp,
    })  # fmt: skip
    truth = open_source(project, mpp=mpp)
    beside = truth if hasattr(truth, "target") else None
    found = open_source(pred or project, predicted=True, model=model, other=beside, mpp=mpp)
    try:
        with progress_bar("comparing", "image") as progress:
            evaluation = evaluate(truth, {"network": found}, Options(mpp=mpp, boundaries=False), progress)
    finally:
        truth.close()
        found.close()
    table = field_table(evaluation, "network", field_um)
    bad = table.below(score, below)
    rows = table.drops(score, below).rows()
    for reason, number in evaluation.skipped.items():
        record.skip(reason, number)
    record.count("fields", len(table.image))
    for name, values in table.scores.items():
        middle = np.nanquantile(values, [0.05, 0.5, 0.95]) if np.isfinite(values).any() else [float("nan")] * 3
        record.count(f"{name}, median over fields (5 % to 95 %)", "{1:.3f} ({0:.3f} to {2:.3f})".format(*middle))
    record.count(f"fields with a {score} below {below:g}", f"{int(bad.sum()):,} ({bad.mean() if len(bad) else 0:.1%})")
    record.results["drops"] = rows
    _warn_of_censored(record, rows)
    if csv_file:
        _write_rows(csv_file, table.rows())
    if geojson:
        from stqp.inference.maps import map_stem
        from stqp.qupath.geojson import write_geojson

        for image in evaluation.images:
            write_geojson(geojson / f"{map_stem(image.name)}.geojson", table.as_objects(image.name, score, below))
    report(record, as_json, *_drop_lines([r for r in rows if r["reason"] != "all reasons"]))


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    from stqp import files
    from stqp.files import without_nan

    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, fieldnames=[*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(json.loads(json.dumps(without_nan(rows))))
    files.write_bytes(path, buffer.getvalue().encode())
