"""Genes of tumours and of dividing cells, each with its source and the licence of that."""

from stqp.celltyping.fine_types import data_rows
from stqp.celltyping.gene_names import HUMAN, MOUSE, to_mouse
from stqp.errors import UsageError

TUMOUR, PROLIFERATION = "tumour", "proliferation"


def tumour_genes(species: str = HUMAN, lineage: bool = False) -> list[str]:
    """Genes whose raised expression speaks for a tumour.

    Parameters
    ----------
    species
        ``human`` or ``mouse``.
    lineage
        Whether to add genes that normal cells of some lineage express, too (ESR1, EGFR, KIT, TP63, ...): on a
        panel they tell the lineage rather than the tumour, and are left out by default.

    Raises
    ------
    UsageError
        For any other species.

    Notes
    -----
    Sources: `data/tumour_genes.tsv` says where each gene is from, with the licence. Census lists that are not
    open are not used.
    """
    return _genes(TUMOUR, species, lineage)


def proliferation_genes(species: str = HUMAN) -> list[str]:
    """Genes of the S and G2/M phases (Whitfield 2002, Tirosh 2016); see `tumour_genes`."""
    return _genes(PROLIFERATION, species, lineage=True)


def _genes(kind: str, species: str, lineage: bool) -> list[str]:
    if species not in (HUMAN, MOUSE):
        raise UsageError(f"the species of the gene set is {species!r}; expected human or mouse")
    rows = [r for r in data_rows("tumour_genes.tsv") if r["set"] == kind and (lineage or r["lineage"] != "yes")]
    names = [r["gene"] for r in rows]
    if species == MOUSE:
        names = [m for name in names for m in to_mouse(name)]
    return list(dict.fromkeys(names))
