"""The network's maps of a slide in one file: only what is still needed takes space."""

from __future__ import annotations

import threading
import zlib
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import EnvironmentProblem

Region = tuple[int, int, int, int]
Cell = tuple[int, int]

HV_UNIT = 1024
"""Distances are kept in this many parts of 1: Sobel's sums of such numbers are exact in float64."""
_HV_LARGEST = 2 * HV_UNIT


class MapStore:
    """Maps in square chunks, one for each window of the network; others read as background.

    The probability of nucleus is kept in 256ths (uint8), distances in 1024ths (int16), class probabilities in
    255ths (uint8): ``5 + C`` bytes a pixel. A chunk that is dropped leaves its place in the file to the next.
    Reading and writing are safe from several threads; use as a context, which closes the file and leaves it.

    Parameters
    ----------
    width, height
        Of the whole map in px.
    side
        Of the chunks in px.
    n_types
        Channels of ``tp``, with background.
    path
        The file; one that is there is gone on with, see `adopt`.
    mpp
        µm per px of the maps.
    """

    def __init__(self, width: int, height: int, side: int, n_types: int, path: Path, mpp: float = 0.25):
        self.width, self.height, self.side, self.n_types, self.path = width, height, side, n_types, path
        self.mpp = mpp
        self._slots: dict[Cell, int] = {}
        self._free: list[int] = []
        self._end = 0
        self._lock = threading.Lock()
        self._local = threading.local()
        self._files: list[FileIO] = []
        with files.disk_errors(path):
            path.touch()

    def __enter__(self) -> MapStore:
        """Open as a context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        with self._lock:
            for file in self._files:
                file.close()
            self._files.clear()
            self._local = threading.local()

    @property
    def chunk_bytes(self) -> int:
        """Of one chunk in the file."""
        return self.side * self.side * (5 + self.n_types)

    @property
    def chunks(self) -> list[Cell]:
        """Rows and columns of the chunks that are there."""
        return sorted(self._slots)

    @property
    def file_chunks(self) -> int:
        """Places in the file, of which some may be free."""
        return self._end

    def write(self, cell: Cell, np_prob: NDArray[Any], hv: NDArray[Any], tp: NDArray[Any]) -> tuple[int, int]:
        """Keep the maps of a chunk.

        Parameters
        ----------
        cell
            Row and column.
        np_prob, hv, tp
            Floats, (side, side), (side, side, 2) and (side, side, C).

        Returns
        -------
        slot, checksum : int
            For `adopt`.

        Raises
        ------
        EnvironmentProblem
            When the disk is full.
        """
        content = self._pack(np_prob, hv, tp).data
        checksum = zlib.crc32(content)
        with self._lock:
            slot = self._slots.pop(cell, -1)
            if slot < 0 and self._free:
                slot = self._free.pop()
            if slot < 0:
                slot, self._end = self._end, self._end + 1
        with files.disk_errors(self.path):
            file = self._file()
            file.seek(slot * self.chunk_bytes)
            view = content
            while view:
                view = view[file.write(view) :]
        with self._lock:
            self._slots[cell] = slot
        return slot, checksum

    def drop(self, cell: Cell) -> None:
        """Forget a chunk that nobody needs again; its place is given to the next."""
        with self._lock:
            slot = self._slots.pop(cell, None)
            if slot is not None:
                self._free.append(slot)

    def adopt(self, written: dict[Cell, tuple[int, int]]) -> list[Cell]:
        """Take up chunks that another process left in the file; give those whose content is what was written.

        Parameters
        ----------
        written
            Place and checksum of each, as `write` gave them.
        """
        good: list[Cell] = []
        buffer = bytearray(self.chunk_bytes)
        file = self._file()
        for cell, (slot, checksum) in written.items():
            file.seek(slot * self.chunk_bytes)
            if _fill(file, memoryview(buffer)) == len(buffer) and zlib.crc32(buffer) == checksum:
                good.append(cell)
                self._slots[cell] = slot
        self._end = max((slot + 1 for slot in self._slots.values()), default=0)
        self._free = sorted({*range(self._end)} - {*self._slots.values()}, reverse=True)
        return good

    def read(self, region: Region) -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.uint8]]:
        """Read maps of a region ``(x0, y0, x1, y1)`` inside the map.

        Returns
        -------
        np_prob : uint8 (height, width)
            Probability of nucleus times 256.
        hv : int16 (height, width, 2)
            Distances times `HV_UNIT`.
        tp : uint8 (height, width, C)
            Probability times 255.
        """
        shape = region[3] - region[1], region[2] - region[0]
        np_prob = np.zeros(shape, np.uint8)
        planes = np.zeros((2, *shape), np.int16)
        tp = np.zeros((*shape, self.n_types), np.uint8)
        pixels = self.side * self.side
        for slot, target, source in self._chunks_of(region):
            np_prob[target] = self._rows(slot, 0, source, np.uint8, 1)[..., 0]
            planes[0][target] = self._rows(slot, pixels, source, np.int16, 1)[..., 0]
            planes[1][target] = self._rows(slot, 3 * pixels, source, np.int16, 1)[..., 0]
            tp[target] = self._rows(slot, 5 * pixels, source, np.uint8, self.n_types)
        return np_prob, np.moveaxis(planes, 0, 2), tp

    def read_nuclei(self, region: Region) -> NDArray[np.uint8]:
        """Read the probability of nucleus alone, in 256ths, (height, width)."""
        np_prob = np.zeros((region[3] - region[1], region[2] - region[0]), np.uint8)
        for slot, target, source in self._chunks_of(region):
            np_prob[target] = self._rows(slot, 0, source, np.uint8, 1)[..., 0]
        return np_prob

    def _pack(self, np_prob: NDArray[Any], hv: NDArray[Any], tp: NDArray[Any]) -> NDArray[np.uint8]:
        """Content of a chunk, plane after plane."""
        pixels = self.side * self.side
        content = np.empty(self.chunk_bytes, np.uint8)
        # cut off, not rounded, so that half a probability stays the border it was
        content[:pixels] = np.minimum(np_prob.reshape(-1) * np.float32(256), 255)
        distances = content[pixels : 5 * pixels].view(np.int16).reshape(2, pixels)
        for axis in (0, 1):
            scaled = hv[..., axis].reshape(-1) * np.float32(HV_UNIT)
            distances[axis] = np.clip(np.rint(scaled, out=scaled), -_HV_LARGEST, _HV_LARGEST, out=scaled)
        scaled = tp.reshape(-1) * np.float32(255)
        scaled += np.float32(0.5)
        content[5 * pixels :] = scaled
        return content

    def _file(self) -> FileIO:
        """A handle of this thread alone: seeking and reading are two steps."""
        file: FileIO | None = getattr(self._local, "file", None)
        if file is None:
            self._local.file = file = self.path.open("r+b", buffering=0)
            with self._lock:
                self._files.append(file)
        return file

    def _rows(
        self, slot: int, start: int, source: tuple[slice, slice], dtype: type[np.generic], channels: int
    ) -> NDArray[Any]:
        """Read rows of a plane of a chunk that begins `start` bytes in."""
        rows, columns = source
        values = np.empty((rows.stop - rows.start, self.side, channels), dtype)
        file = self._file()
        file.seek(slot * self.chunk_bytes + start + rows.start * self.side * channels * values.itemsize)
        if _fill(file, values.reshape(-1).view(np.uint8).data) < values.nbytes:
            raise EnvironmentProblem(f"the file of maps {self.path} ends early; was it changed by another program?")
        return values[:, columns]

    def is_empty(self, region: Region) -> bool:
        """Whether nothing is there of the region."""
        return not self._chunks_of(region)

    def _chunks_of(self, region: Region) -> list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        x0, y0, x1, y1 = region
        result = []
        for cell in cells_of(region, self.side):
            slot = self._slots.get(cell)
            if slot is None:
                continue
            top, left = cell[0] * self.side, cell[1] * self.side
            a, b = max(y0, top), min(y1, top + self.side)
            c, d = max(x0, left), min(x1, left + self.side)
            target = (slice(a - y0, b - y0), slice(c - x0, d - x0))
            result.append((slot, target, (slice(a - top, b - top), slice(c - left, d - left))))
        return result


def cells_of(region: Region, side: int) -> list[Cell]:
    """Rows and columns of the chunks that a region touches."""
    x0, y0, x1, y1 = region
    rows, columns = range(y0 // side, -(-y1 // side)), range(x0 // side, -(-x1 // side))
    return [(row, column) for row in rows for column in columns]


def _fill(file: FileIO, view: memoryview) -> int:
    """Read until a buffer is full or the file ends; the bytes read."""
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            break
        done += got
    return done
