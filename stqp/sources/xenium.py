"""Read a Xenium output folder. Everything that differs from version to version is known here alone."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.sources.tables import columns_of, floats, position_in_group, read_columns, run_starts, texts

logger = logging.getLogger(__name__)

EXPERIMENT = "experiment.xenium"
CELLS = "cells"
NUCLEUS_BOUNDARIES = "nucleus_boundaries"
CELL_BOUNDARIES = "cell_boundaries"
MATRIX = "cell_feature_matrix.h5"
TABLE_SUFFIXES = (".parquet", ".csv.gz", ".csv")
CELL_ID, LABEL_ID = "cell_id", "label_id"
VERTEX = ("vertex_x", "vertex_y")
CENTROID = ("x_centroid", "y_centroid")
CELL_AREA = "cell_area"
GENE = "Gene Expression"
# proteins are intensities, not counts, and no control either
PROTEIN = "Protein Expression"
_WHOLE = "copy the whole output folder of the run, and check that the copy is complete"

Objects = NDArray[np.object_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class XeniumCells:
    """The cells table; positions in the run's µm."""

    ids: Objects
    center: NDArray[np.float64]
    area: NDArray[np.float64]


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
    """

    polygons: Polygons
    cell: Ints
    label_id: Ints
    position: Ints
    skipped: dict[str, int]


@dataclass(frozen=True)
class XeniumCounts:
    """Counts in the order of the cells table.

    Attributes
    ----------
    matrix
        scipy CSR (cells, genes) of int32, genes only.
    genes, gene_ids : object (genes,)
    controls : int64 (cells,)
        Negative controls, unassigned and deprecated codewords together.
    skipped : dict
        Reason to number.
    """

    matrix: Any
    genes: Objects
    gene_ids: Objects
    controls: Ints
    skipped: dict[str, int] = field(default_factory=dict)


class XeniumBundle:
    """A Xenium output folder; callers ask it questions and never compare versions.

    Attributes
    ----------
    path : Path
    experiment : dict
        Content of ``experiment.xenium``.
    version : str
        Of the analysis that made the tables, ``xenium-2.0.0.10``.
    pixel_size : float
        µm per pixel of the morphology image.
    """

    def __init__(self, path: Path, experiment: dict[str, Any]):
        self.path = path
        self.experiment = experiment
        ranger = experiment.get("xenium_ranger")
        override = ranger.get("version") if isinstance(ranger, dict) else None
        self.version = str(override or experiment.get("analysis_sw_version") or "unknown")
        self.pixel_size = _pixel_size(path / EXPERIMENT, experiment)
        self.files_read: list[Path] = [path / EXPERIMENT]

    @classmethod
    def open(cls, outs: str | Path) -> XeniumBundle:
        """Open an output folder.

        Raises
        ------
        InputError
            When it is no folder, or a file that every version has is missing or broken.
        """
        path = Path(outs)
        if not path.is_dir():
            raise InputError(
                f"the Xenium output folder {path} does not exist"
                if not path.exists()
                else f"{path} is a file; give the Xenium output folder that holds {EXPERIMENT}"
            )
        file = path / EXPERIMENT
        if not file.is_file():
            inner = path / "outs" / EXPERIMENT
            hint = f"; did you mean {inner.parent}?" if inner.is_file() else f"; {_WHOLE}"
            raise InputError(f"expected {EXPERIMENT} in {path}, found none{hint}")
        try:
            experiment = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} is not the JSON that a Xenium run writes ({error}); {_WHOLE}") from error
        if not isinstance(experiment, dict):
            raise InputError(f"expected a JSON object in {file}, found {type(experiment).__name__}; {_WHOLE}")
        bundle = cls(path, experiment)
        for stem in (CELLS, NUCLEUS_BOUNDARIES):
            bundle._table_path(stem)
        if not (path / MATRIX).is_file():
            raise InputError(f"expected {MATRIX} in {path}, found none; {_WHOLE}")
        return bundle

    @property
    def version_numbers(self) -> tuple[int, ...]:
        """Version as numbers, empty when it has none."""
        match = re.search(r"\d+(\.\d+)*", self.version)
        return tuple(int(part) for part in match.group().split(".")) if match else ()

    @property
    def sample_id(self) -> str:
        """A name of the region that stays the same from one reading to the next."""
        if self.path.resolve().name.startswith("output-"):  # instrument, slide, region and time
            return slug(self.path.resolve().name.removeprefix("output-"))
        parts = [self.experiment.get(key) for key in ("slide_id", "run_name", "region_name")]
        named = [str(part) for part in parts if part and part != "N/A"]
        return slug("-".join(named) or self.path.resolve().name)

    @property
    def name(self) -> str:
        """What people call the region."""
        return str(self.experiment.get("region_name") or self.path.resolve().name)

    def has_label_ids(self, stem: str = NUCLEUS_BOUNDARIES) -> bool:
        """Whether outlines are numbered, so that a cell can have several nuclei."""
        return LABEL_ID in self._columns(stem)

    def read_cells(self) -> XeniumCells:
        """Read the cells table.

        Raises
        ------
        InputError
            When it is broken, lacks a column, or names a cell twice.
        """
        import pyarrow.compute as pc

        path = self._table_path(CELLS)
        optional = [CELL_AREA] if CELL_AREA in self._columns(CELLS) else []
        table = self._read(CELLS, [CELL_ID, *CENTROID, *optional])
        ids = texts(table[CELL_ID])
        if pc.count_distinct(ids).as_py() != len(ids):
            raise InputError(f"{path} names a cell more than once; expected one row a cell")
        center = np.column_stack([floats(table[name]) for name in CENTROID])
        area = floats(table[CELL_AREA]) if optional else np.full(len(ids), np.nan)
        return XeniumCells(ids.to_numpy(zero_copy_only=False), center, area)

    def read_nuclei(self, cell_ids: Objects) -> Outlines:
        """Read the outlines of the nuclei; a cell may have none, one or more."""
        return self._outlines(NUCLEUS_BOUNDARIES, cell_ids, "nuclei")

    def read_cell_outlines(self, cell_ids: Objects) -> Outlines | None:
        """Read the outlines of the cells, None where the folder has none."""
        if self._find(CELL_BOUNDARIES) is None:
            return None
        return self._outlines(CELL_BOUNDARIES, cell_ids, "cell outlines")

    def _outlines(self, stem: str, cell_ids: Objects, what: str) -> Outlines:
        import pyarrow as pa
        import pyarrow.compute as pc

        numbered = self.has_label_ids(stem)
        table = self._read(stem, [CELL_ID, *VERTEX, *([LABEL_ID] if numbered else [])])
        xy = np.column_stack([floats(table[name]) for name in VERTEX])
        ids = table[CELL_ID].combine_chunks()
        group = np.asarray(ids.dictionary_encode().indices).astype(np.int64)
        number = np.full(len(group), -1, np.int64)
        if numbered:
            number = np.asarray(table[LABEL_ID].to_numpy()).astype(np.int64)
            group = group * (int(number.max()) + 1) + number
        first = run_starts(group)
        if len(first) != len(np.unique(group)):  # rows of one outline are apart
            order = np.argsort(group, kind="stable")
            group, number, xy, ids = group[order], number[order], xy[order], ids.take(pa.array(order))
            first = run_starts(group)
        if not numbered:
            first = _split_closed_rings(xy, first)
        offsets = np.r_[first, len(xy)].astype(np.int64)
        cell = pc.index_in(texts(ids.take(pa.array(first))), value_set=pa.array(cell_ids, pa.string()))
        row = np.asarray(cell.fill_null(-1)).astype(np.int64)
        finite = np.ones(len(first), bool)
        if len(first):
            finite = np.logical_and.reduceat(np.isfinite(xy).all(axis=1), first)
        polygons = Polygons.from_rings(np.nan_to_num(xy), offsets)
        proper = finite & (np.diff(polygons.ring_offsets) >= 3)
        solid = proper & (polygons.area() > 0)
        known = solid & (row >= 0)
        skipped = {
            f"{what} with fewer than three vertices, or one that is no number": int((~proper).sum()),
            f"{what} without area": int((proper & ~solid).sum()),
            f"{what} of a cell that the cells table lacks": int((solid & ~known).sum()),
        }
        keep = np.flatnonzero(known)
        return Outlines(
            polygons.take(keep),
            row[keep],
            number[first][keep],
            position_in_group(row[keep]),
            {k: v for k, v in skipped.items() if v},
        )

    def read_counts(self, cell_ids: Objects) -> XeniumCounts:
        """Read the counts of genes, joined to the cells by id.

        Raises
        ------
        InputError
            When the h5 is broken, is none of 10x's, or has none of the cells.
        """
        import h5py
        import pyarrow as pa
        import pyarrow.compute as pc
        from scipy import sparse

        path = self.path / MATRIX
        self.files_read.append(path)
        try:
            with h5py.File(path, "r") as file:
                group = file["matrix"]
                barcodes, features = group["barcodes"][:].astype(str), group["features"]
                kinds, names, ids = (features[key][:].astype(str) for key in ("feature_type", "name", "id"))
                shape = tuple(int(v) for v in group["shape"][:])
                arrays = group["data"][:], group["indices"][:], group["indptr"][:]
            # features by cells, by column: the same arrays are cells by features, by row
            matrix = sparse.csr_matrix(arrays, shape=(shape[1], shape[0]))
            matrix.check_format(full_check=True)
        except (OSError, KeyError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise InputError(f"{path} is not a whole 10x matrix ({error}); {_WHOLE}") from error
        if (len(barcodes), len(names)) != matrix.shape or len(kinds) != len(names):
            raise InputError(
                f"{path} has {len(barcodes)} barcodes and {len(names)} features for a matrix of "
                f"{matrix.shape[0]} cells and {matrix.shape[1]} features; {_WHOLE}"
            )
        row = pc.index_in(pa.array(cell_ids, pa.string()), value_set=pa.array(barcodes.astype(object), pa.string()))
        index = np.asarray(row.fill_null(-1)).astype(np.int64)
        if len(index) and (index < 0).all():
            raise InputError(
                f"none of the {len(index)} cells of {self._table_path(CELLS)} is in {path} "
                f"(first cells: {cell_ids[0]!r} and {barcodes[:1].tolist()}); they are of different runs"
            )
        if not np.array_equal(index, np.arange(len(index))):
            logger.info("the cells of %s are in another order than those of the cells table; joined by id", path.name)
        missing = index < 0
        genes = np.flatnonzero(kinds == GENE)
        if not len(genes):
            raise InputError(f"expected features of type {GENE!r} in {path}, found {sorted(set(kinds.tolist()))}")
        controls = np.asarray(matrix[:, np.flatnonzero((kinds != GENE) & (kinds != PROTEIN))].sum(axis=1)).ravel()
        if missing.any():
            matrix = sparse.vstack([matrix, sparse.csr_matrix((1, matrix.shape[1]), dtype=matrix.dtype)], format="csr")
            controls = np.r_[controls, 0]
        if missing.any() or not np.array_equal(index, np.arange(matrix.shape[0])):
            matrix, controls = matrix[index], controls[index]
        skipped = {
            "cells without counts in the matrix": int(missing.sum()),
            "cells of the matrix that the cells table lacks": len(barcodes) - int((~missing).sum()),
        }
        return XeniumCounts(
            matrix[:, genes].astype(np.int32),
            names[genes].astype(object),
            ids[genes].astype(object),
            controls.astype(np.int64),
            {k: v for k, v in skipped.items() if v},
        )

    def _find(self, stem: str) -> Path | None:
        return next((p for suffix in TABLE_SUFFIXES if (p := self.path / (stem + suffix)).is_file()), None)

    def _table_path(self, stem: str) -> Path:
        found = self._find(stem)
        if found is None:
            expected = " or ".join(stem + suffix for suffix in TABLE_SUFFIXES[:2])
            raise InputError(f"expected {expected} in {self.path}, found none; {_WHOLE}")
        return found

    def _columns(self, stem: str) -> list[str]:
        return columns_of(self._table_path(stem))

    def _read(self, stem: str, columns: list[str]) -> Any:
        import pyarrow as pa

        path = self._table_path(stem)
        present = self._columns(stem)
        lacking = [name for name in columns if name not in present]
        if lacking:
            raise InputError(
                f"expected the columns {', '.join(columns)} in {path}, found {', '.join(present)}; "
                f"stqp cannot read this table of a run of version {self.version}"
            )
        table = read_columns(path, columns)
        self.files_read.append(path)
        if not table.num_rows:
            raise InputError(f"{path} has no rows; {_WHOLE}")
        for name in columns:
            kind = table.schema.field(name).type
            if name != CELL_ID and not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                raise InputError(f"expected numbers in the column {name} of {path}, found {kind}; {_WHOLE}")
        return table


def _pixel_size(file: Path, experiment: dict[str, Any]) -> float:
    """µm per pixel, which every later step hangs on."""
    value = experiment.get("pixel_size")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 100:
        raise InputError(f"expected pixel_size in µm (0.2125 for most runs) in {file}, found {value!r}; {_WHOLE}")
    return float(value)


def slug(text: str) -> str:
    """Text as it can stand in an id or a file name."""
    return re.sub(r"[^0-9A-Za-z._-]+", "_", text).strip("_.-") or "sample"


def _split_closed_rings(xy: NDArray[np.float64], first: Ints) -> Ints:
    """Starts of rings, where one run of vertices holds several rings behind each other.

    Early builds of 2.0 do not number the nuclei of a cell; each ring ends where its first vertex returns.
    """
    stop = np.r_[first[1:], len(xy)]
    owner = np.repeat(np.arange(len(first)), stop - first)
    returns = (xy == xy[first[owner]]).all(axis=1)
    returns[first] = False
    returns[stop - 1] = False
    extra: list[int] = []
    for run in np.unique(owner[returns]):
        start, end = int(first[run]), int(stop[run])
        while end - start > 3:
            again = np.flatnonzero((xy[start + 1 : end] == xy[start]).all(axis=1))
            if not len(again) or start + again[0] + 2 >= end:
                break
            start += int(again[0]) + 2
            extra.append(start)
    return np.sort(np.r_[first, np.array(extra, np.int64)])
