"""The network's maps of a whole slide in a temporary file; what was not predicted takes no space."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp import files

Region = tuple[int, int, int, int]


class MapStore:
    """Maps in square chunks, one for each window of the network; others read as background.

    Probabilities of nuclei and distances are kept as float16, class probabilities as uint8: ``6 + C``
    bytes a pixel. Reading is safe from several threads; use as a context, which removes the file.

    Parameters
    ----------
    width, height
        Of the whole map in px.
    side
        Of the chunks in px.
    n_types
        Channels of ``tp``, with background.
    folder
        For the temporary file; the system's when None.
    """

    def __init__(self, width: int, height: int, side: int, n_types: int, folder: Path | None = None):
        self.width, self.height, self.side, self.n_types = width, height, side, n_types
        self._offsets: dict[tuple[int, int], int] = {}
        self._end = 0
        self._lock = threading.Lock()
        with files.disk_errors(Path(folder or tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile(prefix="stqp-maps-", dir=folder, buffering=0)  # noqa: SIM115

    def __enter__(self) -> MapStore:
        """Open as a context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the file."""
        self._file.close()

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Rows and columns of the chunks that were written."""
        return sorted(self._offsets)

    def write(
        self, row: int, column: int, np_prob: NDArray[np.floating], hv: NDArray[np.floating], tp: NDArray[np.floating]
    ) -> None:
        """Keep the maps of chunk (row, column).

        Raises
        ------
        EnvironmentProblem
            When the disk is full.
        """
        content = b"".join(
            (
                np_prob.astype(np.float16).tobytes(),
                hv.astype(np.float16).tobytes(),
                np.rint(tp * 255).astype(np.uint8).tobytes(),
            )
        )
        with self._lock, files.disk_errors(Path(tempfile.gettempdir())):
            view = memoryview(content)
            position = self._end
            while view:
                written = os.pwrite(self._file.fileno(), view, position)
                view, position = view[written:], position + written
            self._offsets[row, column] = self._end
            self._end = position

    def read(self, region: Region) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """Read maps of a region ``(x0, y0, x1, y1)`` inside the map.

        Returns
        -------
        np_prob : float32 (height, width)
        hv : float32 (height, width, 2)
        tp : uint8 (height, width, C)
            Probability times 255.
        """
        x0, y0, x1, y1 = region
        np_prob = np.zeros((y1 - y0, x1 - x0), np.float32)
        hv = np.zeros((y1 - y0, x1 - x0, 2), np.float32)
        tp = np.zeros((y1 - y0, x1 - x0, self.n_types), np.uint8)
        pixels = self.side * self.side
        for row, column, target, source in self._chunks_of(region):
            raw = os.pread(self._file.fileno(), pixels * (6 + self.n_types), self._offsets[row, column])
            half = np.frombuffer(raw, np.float16, 3 * pixels)
            np_prob[target] = half[:pixels].reshape(self.side, self.side)[source]
            hv[target] = half[pixels:].reshape(self.side, self.side, 2)[source]
            tp[target] = np.frombuffer(raw, np.uint8, offset=6 * pixels).reshape(self.side, self.side, -1)[source]
        return np_prob, hv, tp

    def read_nuclei(self, region: Region) -> NDArray[np.float32]:
        """Read the probability of nucleus alone, float32 (height, width)."""
        x0, y0, x1, y1 = region
        np_prob = np.zeros((y1 - y0, x1 - x0), np.float32)
        for row, column, target, source in self._chunks_of(region):
            raw = os.pread(self._file.fileno(), 2 * self.side * self.side, self._offsets[row, column])
            np_prob[target] = np.frombuffer(raw, np.float16).reshape(self.side, self.side)[source]
        return np_prob

    def is_empty(self, region: Region) -> bool:
        """Whether nothing was predicted in the region."""
        return next(iter(self._chunks_of(region)), None) is None

    def _chunks_of(self, region: Region) -> list[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
        x0, y0, x1, y1 = region
        result = []
        for row in range(y0 // self.side, -(-y1 // self.side)):
            for column in range(x0 // self.side, -(-x1 // self.side)):
                if (row, column) not in self._offsets:
                    continue
                top, left = row * self.side, column * self.side
                a, b = max(y0, top), min(y1, top + self.side)
                c, d = max(x0, left), min(x1, left + self.side)
                target = (slice(a - y0, b - y0), slice(c - x0, d - x0))
                result.append((row, column, target, (slice(a - top, b - top), slice(c - left, d - left))))
        return result
