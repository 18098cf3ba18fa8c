"""Options that say how cells are typed; those of `stqp label` that an import can follow are options of every import."""

from collections.abc import Callable
from typing import Any

import click
from stqp_cli.common import PATH

_HOW = (
    click.option("--markers", type=PATH, metavar="FILE", help="Marker table: 10x panel, PanglaoDB, CellMarker or csv."),
    click.option("--taxonomy", type=PATH, metavar="FILE", help="Classes of your own, TOML; see docs/typing.md."),
    click.option("--resolution", type=click.FloatRange(0, min_open=True), help="Of Leiden. Default: 2; paper 4."),
    click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same types."),
    click.option(
        "--species",
        type=click.Choice(["auto", "human", "mouse"]),
        default="auto",
        show_default=True,
        help="Of the genes.",
    ),
    click.option("--reference", type=PATH, metavar="FILE", help="Labelled .h5ad, or a CellTypist model (.pkl)."),
    click.option("--reference-key", metavar="KEY", help="Column of the reference's types in obs."),
    click.option("--tumour-genes", type=PATH, metavar="FILE", help="Tumour genes of your own, one a line."),
    click.option(
        "--tumour-origin",
        type=click.Choice(["epithelial", "melanocytic", "stromal", "haematopoietic"]),
        default="epithelial",
        show_default=True,
        help="Cells that a tumour may come from.",
    ),
)


def typing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of typing that `stqp label` and every import share."""
    for option in reversed(_HOW):
        command = option(command)
    return command
