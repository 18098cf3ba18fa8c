"""The tables of a Xenium output folder: cells, and the outlines of nuclei and cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.sources.rings import mend, split_closed_rings
from stqp.sources.tables import columns_of, floats, position_in_group, read_columns, run_starts, texts
from stqp.sources.xenium_versions import (
    CELL_AREA,
    CELL_ID,
    CENTROID,
    LABEL_ID,
    NUCLEUS_COUNT,
    TRANSCRIPT_COUNTS,
    VERTEX,
)

Objects = NDArray[np.object_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_WHOLE = "copy the whole output folder of the run, and check that the copy is complete"


@dataclass(frozen=True)
class XeniumCells:
    """The cells table; positions in the run's µm.

    Attributes
    ----------
    ids : object (c,)
    center : float64 (c, 2)
    area, transcripts, nucleus_count : float64 (c,)
        NaN where the table has none.
    """

    ids: Objects
    center: Floats
    area: Floats
    transcripts: Floats
    nucleus_count: Floats


@dataclass(frozen=True)
class Outlines:
    """Outlines of nuclei or cells in the run's µm.

    Attributes
    ----------
    polygons : Polygons
        One ring each.
    cell : int64 (n,)
        Row of the cells table.
    label_id : int64 (n,)
        The run's own number of the outline, -1 where the version has none.
    position : int64 (n,)
        Among the outlines of the same cell, in the order of the file.
    skipped : dict
        Reason to number.
    noted : dict
        What was done to outlines that are there, to number.
    """

    polygons: Polygons
    cell: Ints
    label_id: Ints
    position: Ints
    skipped: dict[str, int]
    noted: dict[str, int] = field(default_factory=dict)
    mended: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))


def read_cells(path: Path, version: str) -> XeniumCells:
    """Read the cells table.

    Raises
    ------
    InputError
        When it is broken, lacks a column, or names a cell twice or not at all.
    """
    import pyarrow.compute as pc

    present = columns_of(path)
    optional = [name for name in (CELL_AREA, TRANSCRIPT_COUNTS, NUCLEUS_COUNT) if name in present]
    table = read_numbers(path, [CELL_ID, *CENTROID, *optional], version)
    ids = texts(table[CELL_ID])
    if pc.any(pc.equal(ids, "")).as_py():
        raise InputError(f"{path} has cells without an id; {_WHOLE}")
    if pc.count_distinct(ids).as_py() != len(ids):
        raise InputError(f"{path} names a cell more than once; expected one row a cell")
    center = np.column_stack([floats(table[name]) for name in CENTROID])
    center[~np.isfinite(center).all(axis=1)] = np.nan
    values = {name: floats(table[name]) for name in optional}
    nothing = np.full(len(ids), np.nan)
    return XeniumCells(
        ids.to_numpy(zero_copy_only=False),
        center,
        *(values.get(name, nothing) for name in (CELL_AREA, TRANSCRIPT_COUNTS, NUCLEUS_COUNT)),
    )


def table_ids(path: Path, version: str) -> Objects:
    """Ids that a table names, each once, in the order of their first rows."""
    import pyarrow.compute as pc

    return np.asarray(pc.unique(texts(read_numbers(path, [CELL_ID], version)[CELL_ID])).to_pylist(), dtype=object)


def read_outlines(path: Path, cell_ids: Objects, what: str, version: str) -> Outlines:
    """Read outlines.

    Parameters
    ----------
    path
        The table of their vertices.
    cell_ids
        Ids of the cells; rows of them are what `Outlines.cell` counts.
    what
        What is outlined, for the reasons.
    version
        For messages.

    Raises
    ------
    InputError
        When the table is broken, lacks a column, or is of other cells.
    """
    import pyarrow as pa

    numbered = LABEL_ID in columns_of(path)
    table = read_numbers(path, [CELL_ID, *VERTEX, *([LABEL_ID] if numbered else [])], version)
    ids = _whole(table[CELL_ID])
    number = np.asarray(table[LABEL_ID].to_numpy()).astype(np.int64) if numbered else None
    xy = np.empty((table.num_rows, 2))
    for axis, name in enumerate(VERTEX):
        xy[:, axis] = table[name].to_numpy()
    del table
    first = _starts(ids, number)
    if _apart(ids, number, first):
        order = _together(ids, number)
        ids, xy = ids.take(pa.array(order)), xy[order]
        number = None if number is None else number[order]
        first = _starts(ids, number)
    first = split_closed_rings(xy, first)
    label = np.full(len(first), -1, np.int64) if number is None else number[first]
    names = texts(ids.take(pa.array(first)))
    del ids, number
    rows = rows_of(names, cell_ids)
    if len(rows) and (rows < 0).all():
        raise InputError(
            f"none of the {what} of {path} belongs to a cell of the run (first cells: {names[0].as_py()!r} and "
            f"{cell_ids[:1].tolist()}); the tables are of different runs"
        )
    return outlines(xy, np.r_[first, len(xy)].astype(np.int64), rows, label, what)


def rows_of(names: Any, cell_ids: Objects) -> Ints:
    """Row among the cells of each name (pyarrow text), -1 where none has it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(names, value_set=pa.array(cell_ids, pa.string()))
    return np.asarray(found.fill_null(-1)).astype(np.int64)


def outlines(xy: Floats, offsets: Ints, row: Ints, label: Ints, what: str) -> Outlines:
    """Outlines of rings, the hopeless ones left out and the ones that cross themselves mended.

    Parameters
    ----------
    xy : (vertices, 2)
    offsets : (n + 1,)
        Of the rings.
    row, label : (n,)
        Cell and number of each.
    what
        For the reasons.
    """
    finite = np.ones(len(row), bool)
    if len(xy) and not np.isfinite(xy.sum()):  # one look at all is much quicker than one at each
        finite = np.logical_and.reduceat(np.isfinite(xy).all(axis=1), offsets[:-1])
        xy = np.nan_to_num(xy, posinf=0, neginf=0)
    polygons = Polygons.from_rings(xy, offsets)
    del xy
    proper = finite & (np.diff(polygons.ring_offsets) >= 3)
    polygons, mended = mend(polygons, proper)
    solid = proper & (polygons.area() > 0)
    mended &= solid
    known = solid & (row >= 0)
    twice = np.zeros(len(row), bool)
    twice[known] = _repeated(polygons, np.flatnonzero(known), row)
    skipped = {
        f"{what} with fewer than three vertices, or one that is no number": int((~proper).sum()),
        f"{what} without area": int((proper & ~solid).sum()),
        f"{what} of a cell that the cells table lacks": int((solid & ~known).sum()),
        f"{what} that are in the table twice": int(twice.sum()),
    }
    keep = known & ~twice
    noted = {f"{what} whose outline crossed itself (mended, the largest part kept)": int((mended & keep).sum())}
    return Outlines(
        polygons if keep.all() else polygons.take(keep),
        row[keep],
        label[keep],
        position_in_group(row[keep]),
        {k: v for k, v in skipped.items() if v},
        {k: v for k, v in noted.items() if v},
        mended[keep],
    )


def _repeated(polygons: Polygons, index: Ints, row: Ints) -> NDArray[np.bool_]:
    """Which of the polygons at `index` are, vertex by vertex, an earlier one of the same cell."""
    result = np.zeros(len(index), bool)
    order = np.argsort(row[index], kind="stable")
    sorted_rows = row[index][order]
    shared = np.zeros(len(index), bool)
    if len(index) > 1:
        same = sorted_rows[1:] == sorted_rows[:-1]
        shared[order[1:][same]] = shared[order[:-1][same]] = True
    seen: set[tuple[int, bytes]] = set()
    for place in np.flatnonzero(shared):  # cells of several outlines only
        polygon = index[place]
        start, stop = polygons.ring_offsets[polygons.geom_offsets[[polygon, polygon + 1]]]
        key = (int(row[polygon]), polygons.coords[start:stop].tobytes())
        result[place] = key in seen
        seen.add(key)
    return result


def read_numbers(path: Path, columns: list[str], version: str) -> Any:
    """Read columns that, but for the ids, must hold numbers.

    Raises
    ------
    InputError
        When one is missing or holds something else, or the table is empty.
    """
    import pyarrow as pa

    present = columns_of(path)
    lacking = [name for name in columns if name not in present]
    if lacking:
        raise InputError(
            f"expected the columns {', '.join(columns)} in {path}, found {', '.join(present)}; "
            f"stqp cannot read this table of a run of version {version}"
        )
    table = read_columns(path, columns, as_text=[CELL_ID])
    if not table.num_rows:
        raise InputError(f"{path} has no rows; {_WHOLE}")
    for name in columns:
        kind = table.schema.field(name).type
        if name != CELL_ID and not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise InputError(f"expected numbers in the column {name} of {path}, found {kind}; {_WHOLE}")
    return table


def _whole(column: Any) -> Any:
    """A column as one array, also where its text is longer than 31 bits can count."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(column.type)
    if wide is not None and column.nbytes >= 2**31:
        column = column.cast(wide)
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


def _starts(ids: Any, number: Ints | None) -> Ints:
    """Where the outlines start: another cell, or another number of the outline."""
    import pyarrow.compute as pc

    change = np.ones(len(ids), bool)
    change[1:] = np.asarray(pc.fill_null(pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)), True))
    if number is not None:
        change[1:] |= number[1:] != number[:-1]
    return np.flatnonzero(change).astype(np.int64)


def _codes(ids: Any) -> Ints:
    return np.asarray(ids.dictionary_encode(null_encoding="encode").indices).astype(np.int64)


def _apart(ids: Any, number: Ints | None, first: Ints) -> bool:
    """Whether the rows of one outline are in several places."""
    import pyarrow as pa

    keys = _codes(ids.take(pa.array(first)))
    pairs = np.column_stack([keys, np.zeros(len(first), np.int64) if number is None else number[first]])
    order = np.lexsort(pairs.T)
    return bool((np.diff(pairs[order], axis=0) == 0).all(axis=1).any())


def _together(ids: Any, number: Ints | None) -> Ints:
    """Order in which the rows of each outline follow each other, outlines by their first rows."""
    codes = _codes(ids)
    if number is None:
        return np.argsort(codes, kind="stable")
    order = np.lexsort((number, codes))
    sorted_codes, sorted_number = codes[order], number[order]
    start = run_starts(np.cumsum(np.r_[0, np.diff(sorted_codes) != 0] | np.r_[0, np.diff(sorted_number) != 0]))
    length = np.diff(np.r_[start, len(order)])
    lead = np.repeat(order[start], length)  # lexsort is stable: the first row of the outline
    return order[np.argsort(lead, kind="stable")]
