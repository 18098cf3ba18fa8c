"""What is finished of a slide, record after record in a file, so that a run that was killed goes on.

A record is its kind, its length, a checksum and its content. A record that was torn by a kill or a power cut,
and what follows it, is cut off when the file is opened again. Nothing hangs on the order in which the disk
takes the journal and the maps: what the journal says of the maps holds a checksum of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.locking import FolderLock

MAGIC = b"stqp journal 1\n"
_HEAD = struct.Struct("<4sQI")
_SYNC_SECONDS = 5.0  # what a power cut may take
_LARGEST = 1 << 34

HEADER, BOUNDS, WINDOWS, TILE, TASK = b"head", b"bnds", b"wind", b"tile", b"task"


class Journal:
    """A folder with the journal and the maps of one slide; a context that keeps them after an error.

    Parameters
    ----------
    folder
        Made when it is not there. None for a temporary one, which does not outlive the context.
    fingerprint
        What must be the same to go on: the model, the slide, the options, the code.
    fresh
        Whether to start anew in any case.
    keep
        Leave a lasting folder also at an end without an error.

    Attributes
    ----------
    records : list of (bytes, int, int)
        Kind, position and length of the content of each record that was found.
    differs : list of str
        Names in the fingerprint that are not those of the journal that was found, which was therefore thrown away.
    """

    def __init__(self, folder: Path | None, fingerprint: Mapping[str, Any], fresh: bool = False, keep: bool = False):
        self.lasting, self._keep = folder is not None, keep
        self.folder = folder or Path(tempfile.mkdtemp(prefix="stqp-"))
        self.records: list[tuple[bytes, int, int]] = []
        self.differs: list[str] = []
        self._synced = time.monotonic()
        self._syncing: threading.Thread | None = None
        self._lock: FolderLock | None = None
        wanted = json.loads(json.dumps(dict(fingerprint)))
        with files.disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.lasting:
                self._lock = FolderLock(self.folder, creating=False, what="unfinished prediction")
            try:
                self._file = self._open(wanted, fresh)
            except BaseException:
                if self._lock is not None:
                    self._lock.release()
                raise

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self.folder / "journal.bin"

    @property
    def maps(self) -> Path:
        """File for the maps."""
        return self.folder / "maps.bin"

    def __enter__(self) -> Journal:
        """Open as a context."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close; of a lasting journal, leave the files when there was an error."""
        if self._syncing is not None:
            self._syncing.join()
        self._file.close()
        if self._lock is not None:
            self._lock.release()
        if (kind is None and not self._keep) or not self.lasting:
            shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, kind: bytes, content: bytes | bytearray) -> tuple[int, int]:
        """Add a record; give the position and length of its content.

        Raises
        ------
        EnvironmentProblem
            When the disk is full.
        """
        head = _HEAD.pack(kind, len(content), zlib.crc32(content, zlib.crc32(kind)))
        with files.disk_errors(self.path):
            position = self._file.seek(0, os.SEEK_END)
            # straight to the operating system, which outlives a killed process
            view = memoryview(head + content)
            while view:
                view = view[self._file.write(view) :]
        if self.lasting and time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()
        return position + _HEAD.size, len(content)

    def read(self, position: int, length: int) -> bytes:
        """Read the content of a record."""
        self._file.seek(position)
        content = bytearray(length)
        view = memoryview(content)
        while view:
            got = self._file.readinto(view)
            if not got:
                break
            view = view[got:]
        return bytes(content)

    def _sync(self) -> None:
        """Have the disk hold the records, without waiting for it."""
        if self._syncing is not None and self._syncing.is_alive():
            return
        self._synced = time.monotonic()
        self._syncing = threading.Thread(target=_fsync, args=(self._file.fileno(),), name="stqp-sync", daemon=True)
        self._syncing.start()

    def _open(self, wanted: dict[str, Any], fresh: bool) -> Any:
        if not fresh and self.path.is_file():
            file = self.path.open("r+b", buffering=0)
            found = _scan(file, self.records)
            if found is not None and (found == wanted):
                return file
            self.differs = sorted(k for k in {*wanted, *(found or {})} if (found or {}).get(k) != wanted.get(k))
            file.close()
        self.records.clear()
        self.maps.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        file = self.path.open("x+b", buffering=0)
        file.write(MAGIC)
        self._file = file
        self.append(HEADER, json.dumps(wanted).encode())
        return file


def _scan(file: Any, records: list[tuple[bytes, int, int]]) -> dict[str, Any] | None:
    """List the whole records of a journal, cut off what is torn, and give the fingerprint."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        return None
    position, fingerprint = len(MAGIC), None
    while position + _HEAD.size <= size:
        file.seek(position)
        kind, length, checksum = _HEAD.unpack(file.read(_HEAD.size))
        start = position + _HEAD.size
        if length > _LARGEST or start + length > size:
            break
        content = file.read(length)
        if len(content) != length or zlib.crc32(content, zlib.crc32(kind)) != checksum:
            break
        if kind == HEADER:
            fingerprint = json.loads(content)
        else:
            records.append((kind, start, length))
        position = start + length
    file.truncate(position)
    return fingerprint


def _fsync(handle: int) -> None:
    # a disk that refuses costs a power cut's safety, not the run; its next write says what is wrong
    with contextlib.suppress(OSError):
        os.fsync(handle)


def pack(meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Numbers and arrays as bytes."""
    described = {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}
    head = json.dumps({"meta": dict(meta), "arrays": described}).encode()
    head += b" " * (-len(head) % 8)
    parts = [struct.pack("<Q", len(head)), head]
    for array in arrays.values():
        raw = np.ascontiguousarray(array).tobytes()
        parts += [raw, b"\0" * (-len(raw) % 8)]
    return b"".join(parts)


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Reverse `pack`; the arrays are views of the content."""
    (length,) = struct.unpack_from("<Q", content)
    head = json.loads(content[8 : 8 + length])
    position, arrays = 8 + length, {}
    for name, (dtype, *shape) in head["arrays"].items():
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(content, dtype, count, position).reshape(shape)
        position += -(-arrays[name].nbytes // 8) * 8
    return head["meta"], arrays
