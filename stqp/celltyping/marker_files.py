"""Marker tables of other sources: PanglaoDB, CellMarker, panels of 10x, and a user's own csv."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from stqp.celltyping.fine_types import NONE, SHARED, class_of_fine_type
from stqp.celltyping.gene_names import HUMAN, MOUSE, to_mouse
from stqp.celltyping.markers import MarkerRow
from stqp.errors import InputError
from stqp.taxonomy import UNKNOWN, VISUAL_CLASSES

Table = list[dict[str, str]]
# columns by their names without case, blanks and underscores
GENE = ("gene", "symbol", "genesymbol", "genename", "marker", "name")
CLASS = ("class", "visualclass")
TYPE = ("finetype", "celltype", "celltypes", "annotation", "cellname")
PANGLAO = ("officialgenesymbol", "celltype", "species")
CELLMARKER_1 = ("cellname", "genesymbol", "speciestype")
CELLMARKER = ("cellname", "symbol", "marker", "species")
_MISSING = frozenset({"", "na", "nan", "none", "-"})
_NAMES = {name.casefold(): name for name in (*(c.name for c in VISUAL_CLASSES), SHARED, NONE, UNKNOWN)}


def read_marker_rows(path: Path, species: str = HUMAN) -> tuple[list[MarkerRow], list[str]]:
    """Read a marker table; its layout is recognised by its columns.

    Parameters
    ----------
    path
        A csv, tsv, txt or (of CellMarker) xlsx:

        - PanglaoDB: ``species``, ``official gene symbol``, ``cell type``.
        - CellMarker 2.0 and 3.0: ``species``, ``cell_name``, ``marker``, ``Symbol``; 1.0: ``speciesType``,
          ``cellName``, ``geneSymbol`` (lists).
        - a panel of 10x: ``gene``, and ``Annotation``, ``Cell types`` or ``cell_type`` (lists split by ``;``).
        - a user's own, this package's layout among them: ``gene``, ``class`` and / or a fine type; with
          ``species`` and ``against`` if wished.
    species
        Whose rows of a table of both are taken; ``human``, or ``mouse``.

    Returns
    -------
    rows, notes
        The notes say in sentences what was left out and which types have no class.

    Raises
    ------
    InputError
        When the file cannot be read, or its columns are none of these.
    """
    columns, table = _read(path)
    if all(c in columns for c in PANGLAO):
        rows, left_out = _panglao(table, species)
    elif all(c in columns for c in CELLMARKER_1):
        rows, left_out = _cellmarker(table, species, "speciestype", _first_lists)
    elif all(c in columns for c in CELLMARKER):
        rows, left_out = _cellmarker(table, species, "species", lambda r: [r["symbol"]])
    else:
        rows, left_out = _plain(path, columns, table, species)
    notes = [f"{left_out} of {len(table)} rows of {path} are not of {species} or name no gene"] if left_out else []
    strange = Counter(r.fine for r in rows if r.visual == UNKNOWN and r.fine)
    if strange:
        some = ", ".join(name for name, _ in strange.most_common(5))
        notes.append(f"{len(strange)} fine types of {path} have no visual class and do not vote: {some}")
    return rows, notes


def _squeeze(column: str) -> str:
    return re.sub(r"[\s_]+", "", column.strip().casefold())


def _read(path: Path) -> tuple[list[str], Table]:
    try:
        if path.suffix.lower() == ".xlsx":
            from stqp.celltyping.xlsx import read_first_sheet

            lines = read_first_sheet(path)
        else:
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            first = next((line for line in text.splitlines() if line and not line.startswith("#")), "")
            delimiter = max("\t,;", key=first.count)
            kept = (line for line in text.splitlines() if line and not line.startswith("#"))
            if delimiter == "\t":  # a quote in a tab separated table is a character of a title
                lines = [
                    [v.strip('"') for v in line] for line in csv.reader(kept, csv.excel_tab, quoting=csv.QUOTE_NONE)
                ]
            else:
                lines = list(csv.reader(kept, delimiter=delimiter))
    except (OSError, csv.Error) as error:
        raise InputError(f"the marker table {path} cannot be read: {error}") from error
    if len(lines) < 2:
        raise InputError(f"the marker table {path} is empty; expected a header and a row for each marker")
    columns = [_squeeze(c) for c in lines[0]]
    return columns, [dict(zip(columns, (v.strip() for v in line), strict=False)) for line in lines[1:]]


def _missing(value: str | None) -> bool:
    return value is None or value.casefold() in _MISSING


def _of_species(value: str, species: str) -> bool:
    words = set(re.split(r"[^a-z]+", value.casefold()))
    return bool(words & ({"hs", "human", "homo"} if species == HUMAN else {"mm", "mouse", "mus"}))


def _row(gene: str, fine: str, source: str, visual: str | None = None, against: tuple[str, ...] = ()) -> MarkerRow:
    return MarkerRow(gene, fine, visual or class_of_fine_type(fine) or UNKNOWN, against, source)


def _panglao(table: Table, species: str) -> tuple[list[MarkerRow], int]:
    kept = [r for r in table if _of_species(r["species"], species) and not _missing(r["officialgenesymbol"])]
    rows = []
    for r in kept:  # PanglaoDB writes every symbol as a human one
        names = to_mouse(r["officialgenesymbol"]) if species == MOUSE else (r["officialgenesymbol"],)
        rows += [_row(n, r["celltype"], "PanglaoDB") for n in names]
    return rows, len(table) - len(kept)


def _first_lists(row: dict[str, str]) -> list[str]:
    """Symbols of CellMarker 1.0: ``A, B, [C, D], NA``; brackets hold the parts of one protein."""
    return [s.strip(" []") for s in row["genesymbol"].split(",")]


def _cellmarker(
    table: Table, species: str, column: str, symbols: Callable[[dict[str, str]], list[str]]
) -> tuple[list[MarkerRow], int]:
    rows, left_out = [], 0
    for r in table:
        names = [s for s in symbols(r) if not _missing(s)]
        if not names or _missing(r.get("cellname")) or not _of_species(r.get(column, ""), species):
            left_out += 1
            continue
        rows += [_row(n, r["cellname"], "CellMarker") for n in names]
    return rows, left_out


def _plain(path: Path, columns: list[str], table: Table, species: str) -> tuple[list[MarkerRow], int]:
    gene, visual, fine = (next((c for c in names if c in columns), None) for names in (GENE, CLASS, TYPE))
    if gene is None or (visual is None and fine is None):
        raise InputError(
            f"the marker table {path} has the columns {', '.join(columns[:8])}; expected gene, with class or cell type"
        )
    rows: list[MarkerRow] = []
    left_out = 0
    for r in table:
        if _missing(r.get(gene)) or ("species" in columns and not _species_fits(r.get("species", ""), species)):
            left_out += 1
            continue
        against = tuple(_NAMES.get(a.casefold(), a) for a in re.split(r"[;\s]+", r.get("against", "")) if a)
        rows += _speakers(r[gene], r.get(visual or ""), r.get(fine or "") or "", against)
    return rows, left_out


def _species_fits(value: str, species: str) -> bool:
    return _missing(value) or _of_species(value, species)


def _speakers(gene: str, visual: str | None, fine: str, against: tuple[str, ...]) -> Iterator[MarkerRow]:
    if not _missing(visual):
        yield _row(gene, fine or str(visual), "user", _NAMES.get(str(visual).casefold(), str(visual)), against)
        return
    for name in filter(None, (f.strip() for f in fine.split(";"))):
        yield _row(gene, name, "table", _NAMES.get(name.casefold()), against)
