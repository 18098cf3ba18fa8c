"""Rows of bytes at any places of a buffer, read and written with one copy of memory for each row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


def windows(buffer: NDArray[Any], width: int, step: int = 1) -> NDArray[np.void]:
    """All stretches of `width` bytes that begin at multiples of `step` bytes, without a copy."""
    count = (buffer.nbytes - width) // step + 1
    return np.ndarray((max(count, 0),), f"V{width}", buffer, strides=(step,))


def gather(data: Bytes, places: Ints, width: int) -> Bytes:
    """Copy `width` bytes from each place, (n, width)."""
    if not width or not len(places):
        return np.empty((len(places), width), np.uint8)
    return windows(data, width)[places].view(np.uint8).reshape(len(places), width)


def scatter(out: Bytes, places: Ints, rows: Bytes) -> None:
    """Copy each row of bytes (contiguous) to its place."""
    if rows.size:
        width = rows.shape[1]
        windows(out, width)[places] = rows.reshape(-1).view(f"V{width}")


def numbers(data: Bytes, places: Ints, code: str) -> NDArray[Any]:
    """Numbers that begin at these bytes, in the type of the file."""
    dtype = np.dtype(code)
    return gather(data, places, dtype.itemsize).reshape(-1).view(dtype)


def put_numbers(out: Bytes, places: Ints, values: Any, code: str) -> None:
    """Write numbers at these bytes."""
    dtype = np.dtype(code)
    row = np.empty((len(places),), dtype)
    row[:] = values
    scatter(out, places, row.view(np.uint8).reshape(-1, dtype.itemsize))


def by_length(lengths: Ints) -> Iterator[tuple[int, Any]]:
    """Each length above 0, and which rows have it."""
    if not len(lengths):
        return
    low, high = int(lengths.min()), int(lengths.max())
    if low == high:
        if low:
            yield low, slice(None)
        return
    keys = lengths - low
    order = np.argsort(keys.astype(np.uint16) if high - low < 65536 else keys, kind="stable")
    ordered = keys[order]
    edges = np.flatnonzero(np.diff(ordered)) + 1
    for first, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(order)], strict=True):
        length = low + int(ordered[first])
        if length:
            yield length, order[first:stop]


def copy_rows(
    out: NDArray[Any], places: Ints, data: NDArray[Any], starts: Ints, lengths: Ints, unit: int = 1, steps: int = 0
) -> None:
    """Copy rows of various lengths from places of one contiguous buffer to places of another.

    Parameters
    ----------
    out, data
        Any contiguous arrays.
    places, starts, lengths : (n,)
        In units; those of `data` in `steps` bytes where given.
    unit
        Bytes.
    """
    for length, where in by_length(lengths):
        width = unit * length
        windows(out, width, unit)[places[where]] = windows(data, width, steps or unit)[starts[where]]


def cumulative(counts: NDArray[Any]) -> Ints:
    """Cumulative counts with a leading 0."""
    result = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result
