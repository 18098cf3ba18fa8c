"""`stqp compare`."""

from pathlib import Path

import click
from stqp_cli.common import PATH, json_option, report, set_up_logging, verbose_option

EPILOG = """\b
Examples:
  stqp compare slide-project slide-project --model-a first --model-b second --out compared
  stqp compare slide-project::slide.svs other-project::slide.svs --out compared
  stqp compare results/slide.parquet tiatoolbox/slide.parquet --slide slide.svs --out compared
  stqp compare a.geojson b.geojson --out compared

A and B are an image of a project, a parquet table, GeoJSON, or an instance map (.npz, .npy), of one slide.
"""


@click.command(epilog=EPILOG)
@click.argument("a")
@click.argument("b")
@click.option("--out", type=PATH, required=True, metavar="DIR",
              help="Folder for a map (png), a page (html), the nuclei that differ (csv), counts (json).")  # fmt: skip
@click.option("--model-a", metavar="NAME", help="Model whose nuclei A is, where an image has those of several.")
@click.option("--model-b", metavar="NAME", help="Model whose nuclei B is.")
@click.option("--slide", type=PATH, help="The slide, for pictures; of a project it is known.")
@click.option("--mpp", type=click.FloatRange(0, min_open=True), metavar="UM",
              help="µm per px, for predictions that do not say.")  # fmt: skip
@json_option
@verbose_option
def command(
    a: str,
    b: str,
    out: Path,
    model_a: str | None,
    model_b: str | None,
    slide: Path | None,
    mpp: float | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Show where two predictions of a slide differ: counts, matches, class changes, a map."""
    set_up_logging(verbose)
    from stqp.report.comparison import compare_predictions

    record = compare_predictions(a, b, out, models=(model_a, model_b), mpp=mpp, slide=slide)
    report(record, as_json, f"see {record.results['files']['html']}")
