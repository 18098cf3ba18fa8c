"""Marker tables: which genes speak for which visual class, through which fine types."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.fine_types import NONE, SHARED, data_rows, type_key
from stqp.celltyping.gene_names import HUMAN, MOUSE, current_symbol, species_of, symbol_of, to_mouse
from stqp.errors import InputError, UsageError
from stqp.taxonomy import UNKNOWN, ordered

if TYPE_CHECKING:
    from stqp.celltyping.taxonomies import Taxonomy

AUTO = "auto"
SILENT = frozenset({SHARED, NONE, UNKNOWN})  # a row of these is known and has no vote


@dataclass(frozen=True)
class MarkerRow:
    """A gene as a marker of a fine type; `visual` is its class, or one of `SILENT`.

    `lineage` is what a silent row stands for all the same: a cell type or class that has no class here.
    """

    gene: str
    fine: str
    visual: str
    against: tuple[str, ...] = ()
    source: str = ""
    lineage: str = ""


@dataclass(frozen=True)
class MarkerTable:
    """Genes, the fine types that they mark, and the visual classes of those.

    Attributes
    ----------
    name
        What the table is, for records and errors.
    species
        ``human``, ``mouse`` or ``auto`` (both, or unsure).
    rows
        One for each gene, fine type and class.
    notes
        Sentences about rows that were left out, and about fine types without a class.
    """

    name: str
    species: str
    rows: tuple[MarkerRow, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def shipped(cls, species: str = AUTO) -> "MarkerTable":
        """The table that comes with the package.

        Parameters
        ----------
        species
            ``human``, ``mouse``, or ``auto``: both, whose symbols differ by their case.

        Raises
        ------
        UsageError
            For any other species.
        """
        if species not in (HUMAN, MOUSE, AUTO):
            raise UsageError(f"the species of the marker table is {species!r}; expected human, mouse or auto")
        rows = []
        for row in data_rows("markers.tsv"):
            against = tuple(row["against"].split())
            genes: list[str] = []
            if HUMAN in row["species"] and species != MOUSE:
                genes.append(row["gene"])
            if MOUSE in row["species"] and species != HUMAN:
                genes += to_mouse(row["gene"]) if HUMAN in row["species"] else [row["gene"]]
            rows += [MarkerRow(g, row["fine_type"], row["class"], against, row["source"]) for g in genes]
        return cls.from_rows(f"of stqp ({species})", species, rows)

    @classmethod
    def read(cls, path: Path | str, species: str = HUMAN) -> "MarkerTable":
        """Read a table of another source; see `stqp.celltyping.marker_files.read_marker_rows`.

        Raises
        ------
        InputError
            When the file is none of the layouts known, or holds no marker.
        """
        from stqp.celltyping.marker_files import read_marker_rows

        rows, notes = read_marker_rows(Path(path), species)
        rows = [replace(r, gene=symbol_of(r.gene)) for r in rows]
        found = species_of(r.gene for r in rows)
        return cls.from_rows(str(path), found if found in (HUMAN, MOUSE) else AUTO, rows, notes)

    @classmethod
    def from_rows(cls, name: str, species: str, rows: Iterable[MarkerRow], notes: Iterable[str] = ()) -> "MarkerTable":
        """A table of rows; repeated ones are kept once.

        Raises
        ------
        InputError
            When no row speaks for a class.
        """
        once: dict[tuple[str, str, str], MarkerRow] = {}
        for row in rows:
            if row.visual in (NONE, UNKNOWN) and not row.lineage:
                row = replace(row, lineage=row.fine)
            key = (current_symbol(row.gene), type_key(row.fine), row.visual)
            before = once.get(key)
            if before is not None and row.against != before.against:
                row = replace(before, against=tuple(dict.fromkeys((*before.against, *row.against))))
            once[key] = row if before is None or row.against != before.against else before
        table = cls(name, species, tuple(once.values()), tuple(notes))
        if not table.classes:
            raise InputError(f"the marker table {name} has no gene that speaks for a class")
        return table

    def with_taxonomy(self, taxonomy: "Taxonomy") -> "MarkerTable":
        """The same markers, speaking for the classes of `taxonomy`.

        A fine type that the taxonomy names speaks for that class; any other for the class of its visual
        class's name, if there is one; else it is silent, and its markers tell clusters that are of none of these
        classes. Markers that the taxonomy lists itself are added, and
        fine types that no row has are noted.
        """
        kept = set(taxonomy.classes)
        rows = []
        for r in self.rows:
            visual = taxonomy.class_of(r.fine, r.visual)
            outside = r.visual if visual == UNKNOWN and r.visual not in SILENT else r.lineage
            against = tuple(a for a in r.against if a in kept)
            rows.append(replace(r, visual=visual, against=against, lineage=outside if visual in SILENT else ""))
        for name, genes in taxonomy.markers.items():
            rows += [MarkerRow(g, name, name, (), "taxonomy") for g in genes]
        here = {type_key(t) for t in self.types}
        strange = [t for types in taxonomy.types.values() for t in types if type_key(t) not in here]
        notes = [
            f"the marker table {self.name} has no fine type {t!r} of the taxonomy {taxonomy.name}" for t in strange
        ]
        return self.from_rows(f"{self.name} in {taxonomy.name}", self.species, rows, (*self.notes, *notes))

    @functools.cached_property
    def types(self) -> dict[str, str]:
        """Fine types, and the class (or the silent word) of each."""
        return {r.fine: r.visual for r in self.rows}

    @functools.cached_property
    def known(self) -> dict[str, str]:
        """Today's symbol, and the table's own, to the table's spelling of every gene, silent ones among them."""
        result: dict[str, str] = {}
        for row in self.rows:
            result.setdefault(current_symbol(row.gene), row.gene)
        result.update({row.gene: result[current_symbol(row.gene)] for row in self.rows})
        return result

    @functools.cached_property
    def genes(self) -> list[str]:
        """Genes with a vote, in the table's order."""
        return list(dict.fromkeys(self.known[r.gene] for r in self.rows if r.visual not in SILENT))

    @functools.cached_property
    def silent_genes(self) -> list[str]:
        """Genes that are listed without a vote: shared by classes, or of a lineage without a visual class."""
        voting = set(self.genes)
        return [g for g in dict.fromkeys(self.known.values()) if g not in voting]

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Classes that have markers, in the taxonomy's order."""
        return tuple(ordered(r.visual for r in self.rows if r.visual not in SILENT))

    @functools.cached_property
    def lineages(self) -> tuple[str, ...]:
        """Lineages without a class that have markers: erythroid cells, neurons, what a taxonomy leaves out."""
        return tuple(sorted({r.lineage for r in self.rows if r.visual in SILENT and r.lineage}))

    def speaks_for_lineages(self, genes: Sequence[str]) -> NDArray[np.bool_]:
        """For which lineages without a class each gene speaks: bool (genes, lineages)."""
        return self._take(self._outside, genes)

    def votes(self, genes: Sequence[str]) -> NDArray[np.bool_]:
        """For which classes each gene speaks: one vote a class, however many fine types it marks.

        Returns
        -------
        bool (genes, classes)
        """
        return self.counts_by_fine_type(genes) > 0

    def counts_by_fine_type(self, genes: Sequence[str]) -> NDArray[np.int_]:
        """How many fine types of each class each gene marks: int (genes, classes)."""
        return self._take(self._counts, genes)

    def against(self, genes: Sequence[str]) -> NDArray[np.bool_]:
        """Which classes each gene speaks against: bool (genes, classes)."""
        return self._take(self._excluded, genes)

    def offers(self, genes: Sequence[str]) -> NDArray[np.int_]:
        """How many different markers of each class a panel of `genes` holds: int (classes,)."""
        return self.votes(list(dict.fromkeys(current_symbol(g) for g in genes))).sum(axis=0)

    def fine_types(self, gene: str) -> list[str]:
        """Fine types that `gene` marks, silent ones among them."""
        name = current_symbol(gene)
        return list(dict.fromkeys(r.fine for r in self._rows_of.get(name, ())))

    def fine_types_of(self, gene: str, visual: str) -> list[str]:
        """Fine types of the class `visual` that `gene` marks."""
        name = current_symbol(gene)
        return list(dict.fromkeys(r.fine for r in self._rows_of.get(name, ()) if r.visual == visual))

    @functools.cached_property
    def _rows_of(self) -> dict[str, list[MarkerRow]]:
        result: dict[str, list[MarkerRow]] = {}
        for row in self.rows:
            result.setdefault(current_symbol(row.gene), []).append(row)
        return result

    @functools.cached_property
    def _place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self._rows_of)}

    @functools.cached_property
    def _counts(self) -> NDArray[np.int_]:
        column = {name: j for j, name in enumerate(self.classes)}
        result = np.zeros((len(self._place) + 1, len(column)), int)
        for name, rows in self._rows_of.items():
            for row in rows:
                if row.visual in column:
                    result[self._place[name], column[row.visual]] += 1
        return result

    @functools.cached_property
    def _excluded(self) -> NDArray[np.bool_]:
        column = {name: j for j, name in enumerate(self.classes)}
        result = np.zeros((len(self._place) + 1, len(column)), bool)
        for name, rows in self._rows_of.items():
            for against in (a for row in rows for a in row.against if a in column):
                result[self._place[name], column[against]] = True
        return result

    @functools.cached_property
    def _outside(self) -> NDArray[np.bool_]:
        column = {name: j for j, name in enumerate(self.lineages)}
        result = np.zeros((len(self._place) + 1, len(column)), bool)
        for name, rows in self._rows_of.items():
            for row in rows:
                if row.visual in SILENT and row.lineage:
                    result[self._place[name], column[row.lineage]] = True
        return result

    def _take(self, matrix: NDArray, genes: Sequence[str]) -> NDArray:
        place = self._place  # its last row is that of a gene that the table lacks
        return matrix[[place.get(current_symbol(str(g)), len(place)) for g in genes]]
