"""`stqp separability`."""

from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, json_option, report, set_up_logging, step_bar, verbose_option

EPILOG = """\b
Examples:
  stqp separability slide
  stqp separability slide --by fine
  stqp label slide --taxonomy slide/stqp/he_image.ome.tif/separability/proposed.toml
  stqp separability cohort --by fine --out told_apart
  stqp separability slide --embedding uni.parquet --features given
  stqp separability slide --predictions predicted --least-auc 0.85

The nuclei must be labelled: stqp import-xenium ... --type, or stqp label. For every pair of groups it is measured on
held-out blocks how well size, shape, stain, texture and neighbourhood tell them apart. What cannot be told
apart is merged, and proposed as a taxonomy. Predictions must come of models that have not seen the nuclei.

Written: separability.html, heat_map.png, examples.png, proposed.toml, class_map.csv, pairs.csv, separability.json.
"""


@click.command(epilog=EPILOG)
@click.argument("project", type=PATH)
@click.option("--entry", multiple=True, metavar="NAME", help="Image, by name or id; repeatable. Default: all.")
@click.option(
    "--by",
    metavar="GROUPS",
    help="cluster, fine, class, or a column of the cells' obs. Default: cluster; for several images fine.",
)
@click.option("--out", type=PATH, metavar="DIR", help="Default: stqp/IMAGE/separability in the project.")
@click.option(
    "--features",
    type=click.Choice(["simple", "given", "both"]),
    help="Features of the H&E, what is given, or both. Default: both where something is given.",
)
@click.option("--embedding", type=PATH, metavar="FILE", help="By nucleus or cell id: .parquet, .npz or .h5ad.")
@click.option("--embedding-key", metavar="KEY", help="Which obsm of the .h5ad, or array of the .npz.")
@click.option(
    "--predictions",
    type=PATH,
    metavar="FILE|PROJECT",
    help="Out-of-fold probabilities: .parquet by id, or a project that stqp predict wrote into.",
)
@click.option("--predictions-run", metavar="NAME", help="Of which training run.")
@click.option(
    "--least-auc", type=float, default=0.8, show_default=True, help="Below, two groups of a lineage are merged."
)
@click.option("--across-lineages", is_flag=True, help="Merge groups of different visual classes, too.")
@click.option("--block", type=float, default=256.0, show_default=True, metavar="UM", help="Side of a spatial block.")
@click.option("--guard", type=float, default=50.0, show_default=True, metavar="UM", help="Band around held-out blocks.")
@click.option("--min-nuclei", type=int, default=50, show_default=True, metavar="N", help="Of a group that is judged.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same result.")
@json_option
@verbose_option
def command(as_json: bool, verbose: bool, project: Path, **options: Any) -> None:
    """Measure which groups of PROJECT's nuclei the image can tell apart, and propose classes."""
    set_up_logging(verbose)
    from stqp.report.separability import separability

    with step_bar("Separability") as progress:
        record = separability(project, progress=progress, **options)
    results = record.results
    lines = [results["statement"], *(f"note: {note}" for note in results["notes"]), "proposed classes:"]
    width = max(len(c["name"]) for c in results["classes"])
    for c in results["classes"]:
        lines.append(f"  {c['name']:<{width}}  recall {c['recall']['value']:.0%}  {', '.join(c['groups'])}")
    lines += [f"report: {results['files']['report']}", f"taxonomy: {results['files']['taxonomy']}"]
    report(record, as_json, *lines)
