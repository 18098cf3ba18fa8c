"""Write AnnData to disk such that a full disk is an error and not the end of the process."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from stqp import files


class CarefulFile(io.RawIOBase):
    """A file that takes every write, and remembers the first that failed.

    HDF5 cannot close a file that it cannot flush: after a failed write it keeps broken objects, and the
    process crashes when they go. So it is told that all is well, and `check` tells us.
    """

    def __init__(self, path: Path):
        self._file = path.open("w+b", buffering=0)
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or pretend to."""
        size = memoryview(data).nbytes
        try:
            done = 0
            while self._error is None and done < size:
                done += self._file.write(memoryview(data).cast("B")[done:]) or 0
        except OSError as error:
            self._error = error
        return size

    def readinto(self, buffer: Any) -> int:
        """Read; HDF5 asks for whole blocks, so what is missing is zeros."""
        view = memoryview(buffer).cast("B")
        found = self._file.readinto(view) or 0
        view[found:] = bytes(len(view) - found)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Position."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or pretend to."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def flush(self) -> None:
        """Nothing is buffered here."""

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close."""
        self._file.close()
        super().close()

    def check(self) -> None:
        """Raise the first error of a write."""
        if self._error is not None:
            raise self._error


def write_anndata(path: Path, data: Any) -> None:
    """Write an AnnData as h5ad.

    Raises
    ------
    EnvironmentProblem
        When the disk is full.
    """
    import h5py
    from anndata.io import write_elem

    with files.disk_errors(path), CarefulFile(path) as raw:
        try:
            with h5py.File(raw, "w") as file:
                write_elem(file, "/", data)
        finally:
            raw.check()  # what HDF5 says after a failed write comes of that
