"""The matrix of counts in any of its three forms, to the same arrays."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.sources.xenium_ids import decode_ids
from stqp.sources.xenium_masks import BROKEN, open_zarr, reason
from stqp.sources.xenium_versions import (
    AGGREGATE,
    CONTROLS,
    GENE,
    MATRIX,
    MATRIX_H5,
    MATRIX_ZARR,
    PROTEIN,
    PROTEIN_SCALE,
    feature_type,
)

Objects = NDArray[np.object_]
Ints = NDArray[np.int64]
_WHOLE = "copy the whole output folder of the run, and check that the copy is complete"


@dataclass(frozen=True)
class XeniumCounts:
    """Counts in the order of the cells that were asked for.

    Attributes
    ----------
    matrix
        scipy CSR (cells, genes) of int32, genes only, column numbers ascending in each row.
    genes, gene_ids : object (genes,)
    controls : int64 (cells,)
        All controls together.
    control_kinds : dict of int64 (cells,)
        The same by type of control.
    proteins : float32 (cells, proteins)
        Intensities, the scale of the file undone.
    protein_names : object (proteins,)
    skipped : dict
        Reason to number.
    notes : list
        What a person should know, a sentence each.
    """

    matrix: Any
    genes: Objects
    gene_ids: Objects
    controls: Ints
    control_kinds: dict[str, Ints]
    proteins: NDArray[np.float32]
    protein_names: Objects
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RawMatrix:
    """A matrix as its file has it, cells by features."""

    barcodes: Any  # pyarrow Array of text
    kinds: Objects
    names: Objects
    ids: Objects
    counts: Any
    protein_scale: float | None


def find_matrix(folder: Path) -> Path | None:
    """The matrix of an output folder: the h5, else the folder of mtx, else the zarr; None where there is none."""
    for name, there in ((MATRIX_H5, Path.is_file), (MATRIX, Path.is_dir), (MATRIX_ZARR, Path.is_file)):
        if there(folder / name):
            return folder / name
    return None


def read_matrix(path: Path) -> RawMatrix:
    """Read a matrix.

    Raises
    ------
    InputError
        When it is broken, is none of 10x's, or names a cell twice.
    """
    import pyarrow.compute as pc

    read: Callable[[Path], tuple[Any, ...]]
    read = _read_mtx if path.is_dir() else _read_h5 if path.suffix == ".h5" else _read_zarr
    try:
        barcodes, kinds, names, ids, counts, scale = read(path)
        counts.check_format(full_check=True)
    except BROKEN as error:
        raise InputError(f"{path} is not a whole 10x matrix ({reason(error)}); {_WHOLE}") from error
    if (len(barcodes), len(names)) != counts.shape or len(kinds) != len(names) or len(ids) != len(names):
        raise InputError(
            f"{path} has {len(barcodes)} barcodes and {len(names)} features for a matrix of "
            f"{counts.shape[0]} cells and {counts.shape[1]} features; {_WHOLE}"
        )
    if pc.count_distinct(barcodes).as_py() != len(barcodes):
        raise InputError(f"{path} names a cell more than once; expected one barcode a cell")
    counts.sort_indices()
    canonical = np.array([feature_type(str(kind)) for kind in kinds], object)
    return RawMatrix(barcodes, canonical, np.asarray(names, object), np.asarray(ids, object), counts, scale)


def join_counts(raw: RawMatrix, cell_ids: Objects, path: Path, cells: Path | str) -> XeniumCounts:
    """Put the counts in the order of the cells, genes, proteins and controls apart.

    Parameters
    ----------
    raw
        The matrix.
    cell_ids
        Ids in the order that is wanted.
    path, cells
        Files of the matrix and the ids, for messages.

    Raises
    ------
    InputError
        When the matrix has none of the cells, no genes, or values that are no counts.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from scipy import sparse

    genes = np.flatnonzero(raw.kinds == GENE)
    if not len(genes):
        raise InputError(f"expected features of type {GENE!r} in {path}, found {sorted(set(raw.kinds.tolist()))}")
    row = pc.index_in(pa.array(cell_ids, pa.string()), value_set=raw.barcodes)
    index = np.asarray(row.fill_null(-1)).astype(np.int64)
    missing = index < 0
    if len(index) and missing.all():
        raise InputError(
            f"none of the {len(index)} cells of {cells} is in {path} "
            f"(first cells: {cell_ids[0]!r} and {raw.barcodes[:1].to_pylist()}); they are of different runs"
        )
    notes = []
    same = np.array_equal(index, np.arange(raw.counts.shape[0]))
    if not same and np.array_equal(np.sort(index), np.arange(raw.counts.shape[0])):
        notes.append(f"the cells of {path.name} are in another order than those of the cells table; joined by id")
    counts = raw.counts
    if missing.any():
        counts = sparse.vstack([counts, sparse.csr_matrix((1, counts.shape[1]), dtype=counts.dtype)], format="csr")
    if not same:
        counts = counts[index]
    unknown = sorted(set(raw.kinds.tolist()) - {GENE, PROTEIN, AGGREGATE, *CONTROLS})
    if unknown:
        notes.append(f"{path.name} has features of the types {', '.join(unknown)}, unknown to stqp and left out")
    kinds = {}
    for kind in CONTROLS:
        if (raw.kinds == kind).any():
            kinds[kind] = np.asarray(counts[:, np.flatnonzero(raw.kinds == kind)].sum(axis=1)).ravel().astype(np.int64)
    proteins = np.flatnonzero(raw.kinds == PROTEIN)
    if len(proteins) and raw.protein_scale is None:
        notes.append(f"{path.name} has proteins and no {PROTEIN_SCALE}; their values are left as they are")
    intensity = np.asarray(counts[:, proteins].toarray(), np.float32) / np.float32(raw.protein_scale or 1)
    skipped = {
        "cells without counts in the matrix": int(missing.sum()),
        "cells of the matrix that the cells table lacks": len(raw.barcodes) - int((~missing).sum()),
    }
    if len(genes) != counts.shape[1]:
        counts = counts[:, genes]
    return XeniumCounts(
        _as_counts(counts, path),
        raw.names[genes],
        raw.ids[genes],
        np.sum([*kinds.values()], axis=0, dtype=np.int64) if kinds else np.zeros(len(index), np.int64),
        kinds,
        intensity,
        raw.names[proteins],
        {k: v for k, v in skipped.items() if v},
        notes,
    )


def _as_counts(matrix: Any, path: Path) -> Any:
    """Values as int32; a matrix of numbers that no counting gives is another file."""
    values = matrix.data
    whole = np.issubdtype(values.dtype, np.integer) or bool((np.isfinite(values) & (values == np.rint(values))).all())
    if not whole or (len(values) and (values.min() < 0 or values.max() > np.iinfo(np.int32).max)):
        raise InputError(f"expected counts, whole numbers from 0 on, in {path}, found others; {_WHOLE}")
    return matrix.astype(np.int32, copy=False)


def _read_h5(path: Path) -> tuple[Any, ...]:
    import h5py
    import pyarrow as pa

    with h5py.File(path, "r") as file:
        group = file["matrix"]
        barcodes = pa.array(group["barcodes"][:], pa.binary()).cast(pa.string())
        features = group["features"]
        kinds, names, ids = (features[key][:].astype(str) for key in ("feature_type", "name", "id"))
        shape = tuple(int(v) for v in group["shape"][:])
        scale = file.attrs.get(PROTEIN_SCALE, group.attrs.get(PROTEIN_SCALE))
        arrays = group["data"][:], _small(group["indices"][:]), _small(group["indptr"][:])
    # features by cells, by column: the same arrays are cells by features, by row
    return barcodes, kinds, names, ids, _csr(arrays, (shape[1], shape[0])), _scale(scale)


def _read_mtx(folder: Path) -> tuple[Any, ...]:
    import pyarrow as pa
    from scipy.io import mmread

    def find(name: str) -> Path:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
        raise OSError(f"{name}.gz is missing")

    def lines(name: str) -> list[list[str]]:
        path = find(name)
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
        return [line.split("\t") for line in text.splitlines()]

    features = lines("features.tsv")
    if any(len(row) < 3 for row in features):
        raise ValueError("features.tsv has rows without id, name and type")
    barcodes = pa.array([row[0] for row in lines("barcodes.tsv")], pa.string())
    matrix = mmread(find("matrix.mtx")).T.tocsr()
    return barcodes, [f[2] for f in features], [f[1] for f in features], [f[0] for f in features], matrix, None


def _read_zarr(path: Path) -> tuple[Any, ...]:
    with open_zarr(path) as root:
        group = root["cell_features"]
        attributes = dict(group.attrs)
        names, ids, kinds = (attributes[key] for key in ("feature_keys", "feature_ids", "feature_types"))
        barcodes = decode_ids(group["cell_id"][:])
        arrays = group["data"][:], _small(group["indices"][:]), _small(group["indptr"][:])
        scale = attributes.get(PROTEIN_SCALE, dict(root.attrs).get(PROTEIN_SCALE))
    # features by cells, by row
    matrix = _csr(arrays, (len(names), len(barcodes)))
    matrix.check_format(full_check=True)
    return barcodes, kinds, names, ids, matrix.T.tocsr(), _scale(scale)


def _csr(arrays: tuple[Any, Any, Any], shape: tuple[int, int]) -> Any:
    from scipy import sparse

    return sparse.csr_matrix(arrays, shape=shape)


def _small(numbers: NDArray[Any]) -> NDArray[Any]:
    """Indices in 4 bytes where they fit."""
    if len(numbers) and numbers.min() >= 0 and numbers.max() < 2**31:
        return numbers.astype(np.int32, copy=False)
    return numbers.astype(np.int64)


def _scale(value: Any) -> float | None:
    if value is None:
        return None
    scale = float(np.asarray(value).ravel()[0])
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError(f"{PROTEIN_SCALE} is {scale:g}")
    return scale
