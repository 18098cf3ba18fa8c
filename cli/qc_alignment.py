"""`stqp qc-alignment`."""

from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, json_option, progress_bar, report, set_up_logging, verbose_option

EPILOG = """\b
Examples:
  stqp qc-alignment slide
  stqp qc-alignment slide --entry he_image.ome.tif --out reports
  stqp qc-alignment outs --he he_image.ome.tif --alignment he_imagealignment.csv --out reports
  stqp qc-alignment outs --he he.ome.tif --alignment keypoints.csv --refine smooth --out reports

Written for each image: a map as PNG, and one HTML file with the map, the measures and the fields to look at.
"""


@click.command(epilog=EPILOG)
@click.argument("target", type=PATH)
@click.option("--entry", multiple=True, metavar="NAME", help="Image of the project, by name or id; repeatable.")
@click.option("--he", type=PATH, metavar="IMAGE", help="The H&E, where TARGET is a Xenium run.")
@click.option("--alignment", metavar="FILE|identity", help="Its alignment, as for import-xenium.")
@click.option(
    "--alignment-direction",
    type=click.Choice(["he-to-morphology", "morphology-to-he", "auto"]),
    help="As for import-xenium.",
)
@click.option("--keypoint-fit", type=click.Choice(["affine", "similarity"]), help="As for import-xenium.")
@click.option(
    "--refine",
    type=click.Choice(["off", "shift", "affine", "smooth"]),
    help="Show what import-xenium would make of it with this refinement.",
)
@click.option("--refine-limit", type=float, metavar="UM", help="As for import-xenium.")
@click.option("--mpp", type=float, metavar="UM", help="µm per pixel of the H&E, in place of what the file says.")
@click.option(
    "--fields",
    type=click.IntRange(min=1),
    metavar="N",
    help="Look at N fields of 200 µm that lie evenly over the tissue. Default: all.",
)
@click.option(
    "--out", type=PATH, metavar="DIR", help="Folder of maps and reports. Default: stqp/alignment in the project."
)
@json_option
@verbose_option
def command(as_json: bool, verbose: bool, target: Path, **options: Any) -> None:
    """Measure how well nuclei lie on the haematoxylin of their slide.

    TARGET is a QuPath project with imported nuclei, or, before any import, a Xenium output folder; then give
    --he, --alignment and --out, too.
    """
    set_up_logging(verbose)
    from stqp.errors import UsageError
    from stqp.report.qc_alignment import qc_bundle, qc_project

    given = {name: value for name, value in options.items() if value is not None and value != ()}
    bundle_only = {"he", "alignment", "alignment_direction", "keypoint_fit", "refine", "refine_limit", "mpp"}
    if bundle_only & set(given):
        missing = [f"--{name}" for name in ("he", "alignment", "out") if name not in given]
        if missing:
            raise UsageError(f"before an import, --he, --alignment and --out are needed; give {' and '.join(missing)}")
        if "entry" in given:
            raise UsageError("--entry names an image of a project; a Xenium run has none")
        record = qc_bundle(target, **given)
    else:
        if (target / "experiment.xenium").is_file():
            raise UsageError(f"{target} is a Xenium run: give --he, --alignment and --out")
        with progress_bar("Measuring", "image") as progress:
            record = qc_project(target, progress=progress, **given)
    report(record, as_json, *(f"report: {image['report']}" for image in record.results["images"]))
