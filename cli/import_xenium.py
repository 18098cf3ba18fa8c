"""`stqp import-xenium`."""

import json
from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, backend_option, json_option, report, set_up_logging, step_bar, verbose_option
from stqp_cli.typing_options import typing_options

from stqp.files import without_nan
from stqp.record import RunRecord

EPILOG = """\b
Examples:
  stqp import-xenium outs --he he_image.ome.tif --alignment he_imagealignment.csv --project slide \\
      --labels labels.csv --class-map class_map.csv
  stqp import-xenium outs --he he.ome.tif --alignment identity --project slide \\
      --labels outs/analysis/clustering/gene_expression_graphclust/clusters.csv
  stqp import-xenium outs --he he.ome.tif --alignment keypoints.csv --project slide \\
      --labels typed.h5ad --label-key cell_type --as detections
  stqp import-xenium outs --he he.ome.tif --alignment identity --project slide --type stqp --taxonomy immune.toml
  stqp import-xenium --manifest cohort.csv --project cohort --nuclei-source masks

The alignment is what Xenium Explorer exports: a 3x3 csv that maps H&E pixels to morphology pixels,
keypoints, or a zip of both; or six numbers "a,b,c,d,e,f" with x' = a x + b y + c and y' = d x + e y + f, as
text, .json or .npy. How well the nuclei lie on the stain is measured and reported.
Labels are cell_id,label (csv, tsv, parquet), 10x's clusters.csv as it is, or an .h5ad.
Without a class map, labels that are Neoplastic, Inflammatory, Connective, Dead or Epithelial become
these classes and others stay as they are; with one, labels that it lacks become Unknown.

Run it again to replace what it wrote: other objects of the project stay, and so do nuclei that somebody
corrected or deleted in QuPath since.
"""


@click.command(epilog=EPILOG)
@click.argument("outs", type=PATH, required=False)
@click.option(
    "--manifest",
    type=PATH,
    metavar="FILE",
    help="Import many runs: csv or toml with outs, he, alignment and any other option, a run a row.",
)
@click.option("--he", type=PATH, metavar="IMAGE", help="The H&E of the same section.")
@click.option("--alignment", metavar="FILE|identity", help="Of the H&E to the morphology image.")
@click.option(
    "--alignment-direction",
    type=click.Choice(["he-to-morphology", "morphology-to-he", "auto"]),
    default="he-to-morphology",
    show_default=True,
    help="What the matrix maps. Xenium Explorer's maps H&E pixels; auto asks the slide.",
)
@click.option(
    "--keypoint-fit",
    type=click.Choice(["affine", "similarity"]),
    default="affine",
    show_default=True,
    help="What is fitted to keypoints; a similarity turns, scales, moves and mirrors only.",
)
@click.option(
    "--refine",
    type=click.Choice(["off", "shift", "affine", "smooth"]),
    default="off",
    show_default=True,
    help="Move the nuclei to where the haematoxylin is, if that is clear and better.",
)
@click.option(
    "--refine-limit", type=float, default=15.0, show_default=True, metavar="UM", help="No nucleus is moved farther."
)
@click.option(
    "--no-qc", "qc", flag_value=False, default=True, help="Do not hold the nuclei against the stain of the slide."
)
@click.option("--project", required=True, type=PATH, metavar="DIR", help="QuPath project; made where there is none.")
@click.option("--labels", type=PATH, metavar="FILE", help="Labels of the cells. Without, every nucleus is Unknown.")
@click.option("--label-key", metavar="KEY", help="Column of the labels; for .h5ad of obs.")
@click.option(
    "--class-map",
    type=PATH,
    metavar="FILE",
    help="csv label,class: of labels, or of a reference.",
)
@click.option(
    "--type",
    "cell_types",
    type=click.Choice(["stqp", "paper", "reference"]),
    help="Type the cells by their counts, as stqp label does, in place of labels.",
)
@typing_options
@click.option("--name", help="Name of the sample. Default: the region's own.")
@click.option(
    "--as",
    "as_kind",
    type=click.Choice(["annotations", "detections", "cells"]),
    default="annotations",
    show_default=True,
    help="What the nuclei are in QuPath: annotations to correct, or detections or cells for speed.",
)
@click.option("--mpp", type=float, metavar="UM", help="µm per pixel of the H&E, in place of what the file says.")
@click.option(
    "--nuclei-source",
    type=click.Choice(["polygons", "masks"]),
    default="polygons",
    show_default=True,
    help="The run's outlines, simplified for display, or the masks of its segmentation, pixel by pixel.",
)
@click.option(
    "--region",
    metavar="FILE|annotation:NAME",
    help="Import a part: Explorer's selection csv, GeoJSON on the H&E, or an annotation drawn in QuPath.",
)
@click.option("--min-transcripts", type=int, metavar="N", help="Nuclei of cells with fewer become Unknown.")
@click.option(
    "--max-control-fraction", type=float, metavar="F", help="Nuclei of cells with more controls become Unknown."
)
@click.option("--min-area", type=float, metavar="UM2", help="Leave out smaller nuclei, in µm².")
@click.option("--max-area", type=float, metavar="UM2", help="Leave out larger nuclei, in µm².")
@click.option(
    "--max-overlap",
    type=float,
    default=0.5,
    show_default=True,
    metavar="F",
    help="Of two nuclei that share more of the smaller's area, the one with more transcripts stays.",
)
@click.option("--min-stain", type=float, metavar="C", help="Leave out nuclei with less contrast of haematoxylin.")
@click.option("--tissue-only", is_flag=True, help="Leave out nuclei that lie on the glass.")
@click.option(
    "--discard-corrections",
    "keep_corrections",
    flag_value=False,
    default=True,
    help="Overwrite what somebody corrected since the last import, and bring back what they deleted.",
)
@backend_option
@json_option
@verbose_option
def command(
    as_json: bool, verbose: bool, outs: Path | None, manifest: Path | None, project: Path, **options: Any
) -> None:
    """Turn the Xenium run in OUTS and its H&E into a QuPath project of typed nuclei.

    OUTS is the run's output folder, the one that holds experiment.xenium. Each nucleus becomes an object
    on the H&E with its class, the id of its cell and the number of its transcripts; counts by cell and
    gene are kept in the project's folder stqp/ as AnnData.
    """
    set_up_logging(verbose)
    if manifest is not None:
        _import_many(manifest, outs, project, options, as_json)
        return
    for value, name in ((outs, "OUTS"), (options["he"], "--he"), (options["alignment"], "--alignment")):
        if value is None:
            raise click.UsageError(f"missing {name}; give OUTS, --he and --alignment, or a --manifest of runs")
    assert outs is not None
    from stqp.importing.xenium import import_xenium

    with step_bar("Importing") as progress:
        record = import_xenium(outs, project=project, progress=progress, **options)
    report(record, as_json, *_classes(record), f"project: {record.results['project']}")


def _import_many(manifest: Path, outs: Path | None, project: Path, options: dict[str, Any], as_json: bool) -> None:
    from stqp.errors import StqpError
    from stqp.importing.manifest import import_manifest

    source = click.get_current_context().get_parameter_source
    given = {k: v for k, v in options.items() if source(k) is not click.core.ParameterSource.DEFAULT}
    if outs is not None or {"he", "name"} & given.keys():
        raise click.UsageError("a --manifest names the runs; leave out OUTS, --he and --name")

    def done(number: int, of: int, outcome: RunRecord | StqpError) -> None:
        if as_json:
            return
        if isinstance(outcome, StqpError):
            click.echo(f"\n{number} of {of} failed: {outcome}", err=True)
        else:
            click.echo(f"\n{number} of {of}: {outcome.results['sample']}")
            report(outcome, False, *_classes(outcome))

    with step_bar("Importing") as progress:
        records, failed = import_manifest(manifest, project, given, done, progress)
    if as_json:
        content = {
            "runs": [record.to_dict() for record in records],
            "failed": [{"outs": name, "error": str(error)} for name, error in failed],
        }
        click.echo(json.dumps(without_nan(content), indent=2, ensure_ascii=False))
    if failed:
        names = "; ".join(f"{name}: {error}" for name, error in failed)
        raise type(failed[0][1])(f"{len(failed)} of {len(failed) + len(records)} runs were not imported ({names})")


def _classes(record: RunRecord) -> list[str]:
    classes = record.results["classes"]
    width = max(map(len, classes), default=0)
    return [
        *(f"note: {note}" for note in record.results.get("notes", [])),
        "classes of the nuclei written:",
        *(f"  {name:<{width}} {number:>9,}" for name, number in classes.items()),
    ]
