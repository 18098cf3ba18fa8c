"""The segmentation itself: the masks of ``cells.zarr.zip``, outlined around their pixels."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.polygonise import polygonise_bands
from stqp.polygons import Polygons
from stqp.sources.xenium_ids import decode_ids

Ints = NDArray[np.int64]
NUCLEI = 0  # number of the mask; 1 has the cells
BAND_PIXELS = 16_000_000
# what the readers of zarr, zip and h5 files raise when a file is not whole
BROKEN = (
    OSError, KeyError, ValueError, RuntimeError, AttributeError, IndexError, TypeError, EOFError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_WHOLE = "copy the whole output folder of the run, and check that the copy is complete"


@dataclass(frozen=True)
class MaskOutlines:
    """Outlines of a mask.

    Attributes
    ----------
    polygons : Polygons
        In the run's µm, one ring each.
    cell_ids
        pyarrow Array of text: cell of each outline.
    label : int64 (n,)
        Number in the mask; of 2.0 and later the ``label_id`` of the boundary tables.
    homeless : int
        Numbers of the mask that no cell has.
    """

    polygons: Polygons
    cell_ids: Any
    label: Ints
    homeless: int


def reason(error: BaseException) -> str:
    """First line of what a reader complains about."""
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


@contextlib.contextmanager
def open_zarr(path: Path) -> Iterator[Any]:
    """Root group of a zipped zarr file."""
    import zarr

    store = zarr.storage.ZipStore(path, mode="r")
    try:
        yield zarr.open_group(store=store, mode="r")
    finally:
        store.close()


def read_nucleus_masks(path: Path, pixel_size: float) -> MaskOutlines:
    """Outline the nuclei of ``cells.zarr.zip``.

    Parameters
    ----------
    path
        The file.
    pixel_size
        µm per pixel of the morphology image, in whose pixels the mask is.

    Raises
    ------
    InputError
        When the file is broken or has no masks.
    """
    try:
        with open_zarr(path) as root:
            ids = decode_ids(root["cell_id"][:])
            row_of_label = _rows(root, len(ids))
            mask = root[f"masks/{NUCLEI}"]
            if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
                raise ValueError(f"expected a mask of two axes and whole numbers, found {mask.ndim} of {mask.dtype}")
            height, width = mask.shape
            tall = max(1, int(mask.chunks[0]))
            rows = max(1, BAND_PIXELS // max(1, width) // tall) * tall
            polygons, label, beyond = polygonise_bands(
                lambda a, b: np.asarray(mask[a:b]), height, rows, len(row_of_label) - 1
            )
            to_um = _to_um(root, pixel_size)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path} is not a whole file of masks ({reason(error)}); {_WHOLE}") from error
    row = row_of_label[label]
    known = row >= 0
    import pyarrow as pa

    return MaskOutlines(
        polygons.take(known).transform(to_um),
        ids.take(pa.array(row[known])),
        label[known],
        len(beyond) + int((~known).sum()),
    )


def _rows(root: Any, cells: int) -> Ints:
    """Row of ``cell_id`` of each number in the mask, -1 where there is none."""
    if "polygon_sets" in root:
        owner = np.asarray(root[f"polygon_sets/{NUCLEI}/cell_index"][:]).astype(np.int64)
        rows = np.r_[-1, owner]
    elif "seg_mask_value" in root:
        value = np.asarray(root["seg_mask_value"][:]).astype(np.int64)
        if len(value) != cells or (len(value) and not 0 < value.min() <= value.max() < 2**31):
            raise ValueError(f"seg_mask_value has {len(value)} values for {cells} cells")
        rows = np.full(int(value.max(initial=0)) + 1, -1, np.int64)
        rows[value] = np.arange(cells)
    else:
        rows = np.r_[-1, np.arange(cells)]
    if rows.max(initial=-1) >= cells or rows.min() < -1:
        raise ValueError(f"the outlines belong to rows up to {rows.max()} of {cells} cells")
    return rows


def _to_um(root: Any, pixel_size: float) -> NDArray[np.float64]:
    """3x3 matrix from pixels of the mask to the run's µm."""
    plain = np.diag([pixel_size, pixel_size, 1.0])
    if "homogeneous_transform" not in root["masks"]:
        return plain
    given = np.asarray(root["masks/homogeneous_transform"][:], dtype=np.float64)
    if given.ndim != 2 or given.shape[0] != given.shape[1] or given.shape[0] not in (3, 4):
        return plain
    keep = [0, 1, given.shape[0] - 1]
    matrix = given[np.ix_(keep, keep)]
    scale = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    # it takes µm to pixels; written the other way round by some, and as the identity by others
    if abs(scale * pixel_size - 1) < 0.01:
        matrix = np.asarray(np.linalg.inv(matrix))
    elif abs(scale / pixel_size - 1) >= 0.01:
        return plain
    return plain if np.allclose(matrix, plain, rtol=1e-5, atol=1e-9) else matrix  # its 32 bits are too few
