"""Files that are either whole or absent, and the errors of a full or read-only disk."""

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stqp.errors import EnvironmentProblem

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EFBIG: "the file is too large for this disk",
    errno.EIO: "the disk or the network drive failed",
}
_TEMPORARY = ".part"


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into `EnvironmentProblem`."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise EnvironmentProblem(f"cannot write {path}: {_DISK_ERRORS[error.errno]}") from error
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place when the block ends without an error.

    A reader sees the old file or the new one, never a part, also after a power cut; on an error the old file
    stays.

    Raises
    ------
    EnvironmentProblem
        When the disk is full, or the place cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            sync_file(temporary)
            temporary.chmod(_mode(path))
            move(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """Permissions for a file that takes a place; mkstemp makes files private, a project is shared."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def sync_file(path: Path) -> None:
    """Have the disk, not only the operating system, hold a file."""
    with path.open("r+b") as file:  # Windows refuses to sync a file that is open for reading
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder, where the system can be asked to."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:  # some network drives cannot; the names then come when they come
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise


def move(source: Path, target: Path) -> None:
    """Rename a file over another; on Windows, wait for one who has it open for a moment."""
    for pause in (0.02, 0.05, 0.1, 0.3, 0.5):
        try:
            source.replace(target)
            return
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(pause)
    source.replace(target)


def copy(source: Path, target: Path) -> None:
    """Copy a file, with its times, atomically."""
    with replacing(target) as temporary:
        shutil.copy2(source, temporary)


def is_temporary(path: Path) -> bool:
    """Whether a file is one of `replacing`, left by a process that was killed."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON to `path` atomically; numbers that JSON lacks become null."""
    text = json.dumps(without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return value
