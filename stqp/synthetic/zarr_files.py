"""The zipped zarr files of a made-up bundle: masks and polygons, and the matrix by feature."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.polygons import Polygons
from stqp.sources.xenium_versions import BY_MASK_VALUE, BY_POLYGON_SET, PROTEIN_SCALE, Layout
from stqp.synthetic.counts import Counts

Ints = NDArray[np.int64]


@contextlib.contextmanager
def _writing(path: Path, attributes: dict[str, Any]) -> Iterator[Any]:
    """Root group of a new zipped zarr file, format 2, as the instrument writes it."""
    import zarr

    with files.replacing(path) as temporary:
        temporary.unlink()
        store = zarr.storage.ZipStore(temporary, mode="w")
        try:
            yield zarr.create_group(store=store, zarr_format=2, attributes=attributes)
        finally:
            store.close()


def id_numbers(numbers: NDArray[np.uint32], text: bool) -> NDArray[np.uint32]:
    """Ids as zarr files have them: prefix and suffix, or the integers of the first versions."""
    return np.column_stack([numbers, np.ones_like(numbers)]) if text else numbers


def write_cells(
    path: Path,
    layout: Layout,
    ids: NDArray[np.uint32],
    nuclei: Polygons,
    cells: Polygons,
    of_nucleus: Ints,
    size: tuple[int, int],
    pixel_size: float,
) -> NDArray[np.int32]:
    """Write ``cells.zarr.zip``.

    Parameters
    ----------
    path
        The file.
    layout
        Of the version.
    ids
        As of `id_numbers`.
    nuclei, cells : Polygons
        In the run's µm.
    of_nucleus : int64 (n,)
        Row of the cell of each nucleus.
    size
        Width and height of the masks in px.
    pixel_size
        µm per pixel.

    Returns
    -------
    int32 (height, width)
        The mask of the nuclei; numbers from 1 in their order.
    """
    shape = (size[1], size[0])
    masks = [polygons.scale(1 / pixel_size).rasterize(shape) for polygons in (nuclei, cells)]
    owners = [of_nucleus, np.arange(len(cells))]
    count = np.bincount(of_nucleus, minlength=len(cells)).astype(np.float64)
    nucleus_area = np.bincount(of_nucleus, nuclei.area(), len(cells))
    centers = [cells.centroid(), np.full((len(cells), 2), np.nan)]
    centers[1][of_nucleus] = nuclei.centroid()
    columns = {
        "cell_centroid_x": centers[0][:, 0],
        "cell_centroid_y": centers[0][:, 1],
        "cell_area": cells.area(),
        "nucleus_centroid_x": centers[1][:, 0],
        "nucleus_centroid_y": centers[1][:, 1],
        "nucleus_area": nucleus_area,
        "z_level": np.full(len(cells), 3.0),
    }
    if layout.masks == BY_POLYGON_SET:
        columns["nucleus_count"] = count
    attributes = {
        "major_version": int(layout.first[0]) + 3,
        "minor_version": 0,
        "name": "CellSegmentationDataset",
        "number_cells": len(cells),
        "polygon_set_names": ["nucleus", "cell"],
        "spatial_units": "microns",
        "segmentation_methods": ["Segmented by nucleus expansion"],
    }
    with _writing(path, attributes) as root:
        _array(root, "cell_id", ids)
        _array(root, "cell_summary", np.column_stack([*columns.values()]), attributes={"column_names": [*columns]})
        group = root.create_group("masks")
        for i, mask in enumerate(masks):
            _array(group, str(i), mask.astype(np.uint32), chunks=(512, 512))
        scale = 1 / pixel_size
        _array(group, "homogeneous_transform", np.diag([scale, scale, 1, 1]).astype(np.float32))
        vertices = [_padded(polygons) for polygons in (nuclei, cells)]
        if layout.masks == BY_POLYGON_SET:
            sets = root.create_group("polygon_sets")
            for i, ((xy, number), owner) in enumerate(zip(vertices, owners, strict=True)):
                one = sets.create_group(str(i))
                _array(one, "cell_index", owner.astype(np.uint32))
                _array(one, "method", np.zeros(len(owner), np.uint32))
                _array(one, "num_vertices", number)
                _array(one, "vertices", xy)
        else:
            width = max(xy.shape[1] for xy, _ in vertices)
            whole = [np.pad(xy, ((0, 0), (0, width - xy.shape[1]))) for xy, _ in vertices]
            _array(root, "polygon_vertices", np.stack(whole))
            _array(root, "polygon_num_vertices", np.stack([number for _, number in vertices]))
            if layout.masks == BY_MASK_VALUE:
                _array(root, "seg_mask_value", np.arange(1, len(cells) + 1, dtype=np.uint32))
    return masks[0]


def write_features(path: Path, ids: NDArray[np.uint32], counts: Counts) -> None:
    """Write ``cell_feature_matrix.zarr.zip``, by feature, with the sum of all as one more feature."""
    from scipy import sparse

    total = np.asarray(counts.matrix.sum(axis=1))
    matrix = sparse.vstack([counts.matrix.T, sparse.csr_matrix(total.T)], format="csr")
    short = {"Gene Expression": "gene", "Protein Expression": "protein"}
    kinds = [short.get(kind, kind.lower().replace(" ", "_")) for kind in counts.feature_types]
    attributes: dict[str, Any] = {
        "major_version": 3,
        "minor_version": 0,
        "number_cells": len(ids),
        "number_features": matrix.shape[0],
        "feature_keys": [*counts.names, "Total transcripts"],
        "feature_ids": [*counts.ids, "Total transcripts"],
        "feature_types": [*kinds, "aggregate_gene"],
    }
    if counts.protein_scale is not None:
        attributes[PROTEIN_SCALE] = counts.protein_scale
    with _writing(path, {}) as root:
        group = root.create_group("cell_features", attributes=attributes)
        _array(group, "cell_id", ids)
        for name in ("data", "indices", "indptr"):
            _array(group, name, getattr(matrix, name).astype(np.uint32))


def _array(
    group: Any,
    name: str,
    values: NDArray[Any],
    chunks: tuple[int, ...] | None = None,
    attributes: dict[str, Any] | None = None,
) -> None:
    if chunks is not None:
        chunks = tuple(max(1, min(c, n)) for c, n in zip(chunks, values.shape, strict=True))
    else:
        chunks = tuple(max(1, n) for n in values.shape)
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, attributes=attributes)
    array[...] = values


def _padded(polygons: Polygons) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vertices of closed rings, a row each, filled with zeros; and their numbers."""
    number = np.diff(polygons.ring_offsets) + 1
    result = np.zeros((len(polygons), int(number.max(initial=1)), 2), np.float32)
    owner = polygons.vertex_owner
    result[owner, np.arange(len(owner)) - polygons.ring_offsets[owner]] = polygons.coords
    result[np.arange(len(number)), number - 1] = polygons.coords[polygons.ring_offsets[:-1]]
    return result.reshape(len(polygons), -1), number.astype(np.int32)
