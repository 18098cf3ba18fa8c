"""Names of genes: symbols old and new, of human and of mouse, and Ensembl's ids."""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stqp.celltyping.fine_types import data_rows
from stqp.errors import InputError

if TYPE_CHECKING:
    from stqp.celltyping.markers import MarkerTable

HUMAN, MOUSE, UNSURE = "human", "mouse", "unsure"
_ENSEMBL = re.compile(r"(?:ENS|ens)(MUS|mus)?[Gg](\d{11})(?:\.\d+)?$")
_GENOME = re.compile(r"^(?:GRCh\d\d|GRCm\d\d|hg\d\d|mm\d\d)_+", re.IGNORECASE)
_HUMAN_CASE = re.compile(r"(?:C\d+orf\d+|[A-Z][A-Z0-9.@-]*)$")
_MOUSE_CASE = re.compile(r"[A-Z][A-Za-z0-9.-]*[a-z][A-Za-z0-9.-]*$")


@functools.cache
def _aliases() -> dict[str, str]:
    return {row["old"]: row["symbol"] for row in data_rows("aliases.tsv")}


@functools.cache
def _orthologs() -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Exceptions to the rule of the case: human to its mouse genes, and mouse to human."""
    forward: dict[str, list[str]] = {}
    back: dict[str, str] = {}
    for row in data_rows("orthologs.tsv"):
        mice = row["mouse"].split()
        forward[row["human"]] = mice
        for mouse in mice:
            back.setdefault(mouse, row["human"])
    return {human: tuple(mice) for human, mice in forward.items()}, back


@functools.cache
def _ensembl() -> dict[str, str]:
    result = {}
    for row in data_rows("ensembl_ids.tsv"):
        for column in (HUMAN, MOUSE):
            for pair in filter(None, row[column].split(" ")):
                identifier, _, symbol = pair.partition("=")
                result[identifier] = symbol or row["symbol"]
    return result


def case_of(symbol: str) -> str:
    """Species whose way of writing symbols this is: ``human`` (CD3E, C1orf54), ``mouse`` (Cd3e) or ``unsure``."""
    if _HUMAN_CASE.match(symbol):
        return HUMAN
    return MOUSE if _MOUSE_CASE.match(symbol) else UNSURE


def species_of(symbols: Iterable[str]) -> str:
    """Species of a list of symbols: what nine tenths of them are written as, else ``unsure``."""
    counts = Counter(case_of(s) for s in symbols)
    sure = counts[HUMAN] + counts[MOUSE]
    for species in (HUMAN, MOUSE):
        if sure and counts[species] >= 0.9 * sure:
            return species
    return UNSURE


def to_mouse(symbol: str) -> tuple[str, ...]:
    """Mouse orthologues of a human symbol: by the case, or the listed exceptions; none where no gene stands for it."""
    symbol = current_symbol(symbol)
    exceptions = _orthologs()[0]
    return exceptions[symbol] if symbol in exceptions else (symbol[:1].upper() + symbol[1:].lower(),)


def to_human(symbol: str) -> str:
    """Human orthologue of a mouse symbol: by the case, or the listed exceptions."""
    exceptions = _orthologs()[1]
    return exceptions.get(symbol) or current_symbol(symbol.upper())


@functools.lru_cache(maxsize=1 << 17)
def current_symbol(symbol: str) -> str:
    """Today's symbol of a gene: a withdrawn one (KARS, FAM46C) is replaced, any other is returned."""
    aliases = _aliases()
    if symbol in aliases:
        return aliases[symbol]
    if case_of(symbol) == MOUSE:
        newer = aliases.get(symbol.upper())
        if newer is not None:
            return newer[:1] + newer[1:].lower()
    return symbol


def ensembl_id(name: str) -> tuple[str, str] | None:
    """Species and id without version of an Ensembl gene id of human or mouse, else None."""
    match = _ENSEMBL.match(name.strip())
    if match is None:
        return None
    return (MOUSE, f"ENSMUSG{match[2]}") if match[1] else (HUMAN, f"ENSG{match[2]}")


def symbol_of(name: str) -> str:
    """Symbol of a marker that is named by its Ensembl id; any other name is returned as it is."""
    identifier = ensembl_id(name)
    return name if identifier is None else _ensembl().get(identifier[1], name)


@dataclass(frozen=True)
class GeneReport:
    """What `harmonise` found and did.

    `duplicates` are names that stand more than once after it; their counts should be added up.
    """

    total: int
    found: int
    species: str
    table_species: str
    ensembl: int = 0
    unknown_ensembl: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    converted: int = 0
    duplicates: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """One sentence for each thing that a reader should know."""
        said = [f"{self.found} of {self.total} genes are in the marker table"]
        if self.ensembl:
            said.append(
                f"{self.ensembl} genes are named by Ensembl ids; {self.ensembl - self.unknown_ensembl} are markers and "
                "were given their symbols"
            )
        if self.converted:
            said.append(f"{self.converted} {self.species} genes speak through their {self.table_species} orthologues")
        if self.renamed:
            some = ", ".join(f"{old} is {new}" for old, new in list(self.renamed.items())[:3])
            said.append(f"{len(self.renamed)} genes go by another symbol in the table ({some})")
        if self.duplicates:
            said.append(
                f"{len(self.duplicates)} genes are named more than once ({', '.join(self.duplicates[:3])}); "
                "their counts are to be added up"
            )
        return said

    def to_json(self) -> dict[str, object]:
        """Plain values for a record."""
        return {
            "genes": self.total,
            "markers": self.found,
            "species": self.species,
            "ensembl_ids": self.ensembl,
            "orthologues": self.converted,
            "renamed": self.renamed,
            "duplicates": list(self.duplicates),
        }


def harmonise(genes: Sequence[str], table: "MarkerTable") -> tuple[list[str], GeneReport]:
    """Write genes as a marker table writes them.

    Parameters
    ----------
    genes
        Names of genes: symbols of human or mouse, old ones among them, Ensembl ids with or without a
        version, with or without a genome's prefix (``GRCh38_``).
    table
        The markers.

    Returns
    -------
    names : list of str
        As many as `genes`: the table's spelling where it knows the gene, else the gene as given.
    report
        What was recognised and mended.

    Raises
    ------
    InputError
        When the table knows none of the genes.
    """
    known = table.known
    names, renamed = [], {}
    unknown_ensembl = converted = found = 0
    symbols, ids = [], []
    for gene in genes:
        name = _GENOME.sub("", str(gene).strip())
        identifier = ensembl_id(name)
        symbol = symbol_of(name)
        if identifier is not None:
            ids.append(identifier)
            unknown_ensembl += symbol == name
        symbols.append(symbol)
    species = Counter(s for s, _ in ids).most_common(1)[0][0] if 2 * len(ids) > len(genes) else species_of(symbols)
    for gene, name in zip(genes, symbols, strict=True):
        written = known.get(name) or known.get(current_symbol(name))
        if written is not None and written != name:
            renamed[str(gene)] = written
        if written is None and species != table.species:
            written = _orthologue(name, species, known)
            converted += written is not None
        found += written is not None
        names.append(written or name)
    duplicates = tuple(name for name, times in Counter(names).items() if times > 1)
    report = GeneReport(
        len(names), found, species, table.species, len(ids), unknown_ensembl, renamed, converted, duplicates
    )
    if not found:
        raise InputError(_stranger(genes, report, table))
    return names, report


def known_genes(genes: Sequence[str], table: "MarkerTable") -> int:
    """How many of some genes `harmonise` would find in the table."""
    try:
        return harmonise(genes, table)[1].found
    except InputError:
        return 0


def _orthologue(name: str, species: str, known: dict[str, str]) -> str | None:
    if species == MOUSE:
        return known.get(to_human(name))
    return next((known[m] for m in to_mouse(name) if m in known), None)


def _stranger(genes: Sequence[str], report: GeneReport, table: "MarkerTable") -> str:
    some = ", ".join(str(g) for g in list(genes)[:3])
    start = f"none of the {len(genes)} genes ({some}, ...) is in the marker table {table.name}"
    if not len(genes):
        return f"there are no genes to compare with the marker table {table.name}; is the list empty?"
    if report.unknown_ensembl:
        return f"{start}; they are Ensembl ids that it cannot translate: name the genes by their symbols"
    written = ", ".join(table.genes[:3])
    return f"{start}, which names genes like {written}: are these symbols of genes of {table.species}?"
