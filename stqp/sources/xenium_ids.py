"""Ids of cells as text: as the tables have them, and from the numbers of the zarr files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def decode_ids(numbers: NDArray[Any]) -> Any:
    """Text of the ids in a zarr file, as a pyarrow Array.

    Parameters
    ----------
    numbers : (n,) or (n, 1)
        Integer ids of the first versions; or (n, 2): 32 bits that are written as eight letters, 0 to 15 as
        a to p, and the number of the segmentation behind a hyphen.

    Raises
    ------
    ValueError
        When the array has another shape, or numbers that do not fit.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = np.asarray(numbers)
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    if not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"expected whole numbers as ids, found {numbers.dtype}")
    if numbers.ndim == 1:
        return pa.array(numbers).cast(pa.string())
    if numbers.ndim != 2 or numbers.shape[1] != 2 or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < 2**32):
        raise ValueError(f"expected ids as pairs of 32 bits, found an array of shape {numbers.shape}")
    nibbles = (numbers[:, :1].astype(np.uint32) >> np.arange(28, -1, -4, dtype=np.uint32)) & 15
    letters = np.ascontiguousarray(nibbles.astype(np.uint8) + np.uint8(ord("a")))
    prefix = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), len(letters), [None, pa.py_buffer(letters)])
    suffix = pa.array(np.ascontiguousarray(numbers[:, 1])).cast(pa.string())
    return pc.binary_join_element_wise(prefix.cast(pa.binary()).cast(pa.string()), suffix, "-")
