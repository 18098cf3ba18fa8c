"""`stqp label`."""

from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, json_option, report, set_up_logging, step_bar, verbose_option
from stqp_cli.typing_options import typing_options

EPILOG = """\b
Examples:
  stqp label slide
  stqp label slide --markers panel.csv --resolution 3
  stqp label slide --method paper --markers panglaodb_markers.tsv
  stqp label slide --neoplastic-clusters 3,7
  stqp label slide --tumour-region Tumour --normal-region Normal
  stqp label slide --taxonomy immune.toml
  stqp label slide --method reference --reference atlas.h5ad --reference-key cell_type
  stqp label slide --method labels --labels mine.csv --class-map class_map.csv

The method stqp (default) clusters the cells, sorts each once more by its own counts and those of its neighbours,
and names a cluster by the markers that set it apart: one vote a gene and class, measured against what the panel
offers. What is close, sparse or contradictory is Unknown. The method paper repeats arXiv 2604.23481 with its constants.

A cluster of epithelium is Neoplastic by its tumour genes and its proliferation, against what is named as normal or else
against the least raised epithelium; a pathologist's clusters and regions decide in place of that evidence.

Nuclei that somebody corrected or accepted stay. typing.html, typing.json and clusters.csv beside the project
(stqp/IMAGE) say how each cluster was named and why. The measurement "Label confidence" of each nucleus is from 0 to 1.
"""


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """Cluster numbers from text."""
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",") if part.strip()]
    except ValueError as error:
        raise click.BadParameter(f"expected numbers of clusters such as 3,7, found {value!r}") from error


@click.command(epilog=EPILOG)
@click.argument("project", type=PATH)
@click.option("--entry", metavar="NAME", help="Name or id of the image. Default: all that have counts.")
@click.option(
    "--method",
    type=click.Choice(["stqp", "paper", "reference", "labels"]),
    default="stqp",
    show_default=True,
    help="How the cells are typed.",
)
@typing_options
@click.option("--h5ad", type=PATH, metavar="FILE", help="Counts in place of those beside the project.")
@click.option("--labels", type=PATH, metavar="FILE", help="For --method labels: cell_id,label.")
@click.option("--label-key", metavar="KEY", help="Column of the labels.")
@click.option("--class-map", type=PATH, metavar="FILE", help="csv label,class, for labels and reference.")
@click.option(
    "--neoplastic-clusters",
    callback=_numbers,
    metavar="3,7",
    help="Clusters that are the tumour; evidence is recorded.",
)
@click.option("--tumour-region", metavar="NAME", help="Annotations whose cells of its origin are the tumour.")
@click.option(
    "--normal-clusters",
    callback=_numbers,
    metavar="0,2",
    help="Clusters that are normal; a tumour is held against them.",
)
@click.option("--normal-region", metavar="NAME", help="Annotations of normal tissue; evidence is held against it.")
@json_option
@verbose_option
def command(as_json: bool, verbose: bool, project: Path, **options: Any) -> None:
    """Type the cells of PROJECT by their counts and write the classes to its nuclei."""
    set_up_logging(verbose)
    from stqp.importing.labelling import label_project

    with step_bar("Typing") as progress:
        record = label_project(project, progress=progress, **options)
    lines = [f"note: {note}" for note in record.results["notes"]]
    for image, samples in record.results["images"].items():
        for found in samples.values():
            lines.append(f"{image}: {found['clusters']} clusters; cells and nuclei by class")
            names = list(dict.fromkeys([*found["cells"], *found["nuclei"]]))
            width = max(map(len, names), default=0)
            lines += [f"  {n:<{width}} {found['cells'].get(n, 0):>9,} {found['nuclei'].get(n, 0):>9,}" for n in names]
            lines.append(f"report: {found['report']}")
    report(record, as_json, *lines)
