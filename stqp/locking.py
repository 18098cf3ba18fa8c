"""One stqp at a time writes a folder: a lock file that names its holder."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from stqp import files
from stqp.errors import EnvironmentProblem

logger = logging.getLogger(__name__)
T = TypeVar("T")
LOCK_NAME = ".stqp.lock"
_held: set[Path] = set()
_guard = threading.RLock()


class FolderBusy(EnvironmentProblem):
    """Another process, or another part of this one, writes a folder."""


class FolderLock:
    """Holds the lock of a folder.

    Parameters
    ----------
    folder
        Exists.
    creating
        Whether what the folder is for does not exist yet: what is found beside a stale lock of this sort was
        left by a run that was killed.
    what
        What the folder is, for messages.

    Raises
    ------
    FolderBusy
        When another process, or this one, writes there.

    Attributes
    ----------
    took_over : bool
        Whether the lock of a process that is gone was there.
    """

    def __init__(self, folder: Path, creating: bool, what: str = "project"):
        self._path = (folder / LOCK_NAME).resolve()
        content = {"pid": os.getpid(), "host": platform.node(), "began": _began(os.getpid()), "creating": creating}
        self.took_over = False
        # a lock of this process that is not in _held is taken for one that an earlier process of its number left
        with _guard, files.disk_errors(self._path):
            for _ in range(3):
                if _put(self._path, json.dumps(content)):
                    break
                holder = read_lock(folder)
                if holder is not None and not is_stale(holder, self._path):
                    raise FolderBusy(
                        f"the {what} {folder} is being written by process {holder.get('pid')} on "
                        f"{holder.get('host')}; wait for it, or delete {LOCK_NAME} if it is gone"
                    )
                if holder is not None:
                    self.took_over = _set_aside(self._path, holder) or self.took_over
            else:
                raise FolderBusy(f"the {what} {folder} is being opened by another process; try again")
            _held.add(self._path)
        for left in self._path.parent.glob(f"{LOCK_NAME}.*"):
            left.unlink(missing_ok=True)

    def release(self) -> None:
        """Let others in."""
        with _guard:
            if self._path in _held:
                _held.discard(self._path)
                self._path.unlink(missing_ok=True)


def when_free(take: Callable[[], T], patience: float = math.inf, poll: float = 0.2) -> T:
    """Take what another process may hold, as soon as it does not.

    Parameters
    ----------
    take
        Takes it; raises `FolderBusy` while it is held.
    patience, poll
        Seconds to wait in all, and between two tries.

    Raises
    ------
    FolderBusy
        When it takes longer.
    """
    until, told = time.monotonic() + patience, False
    while True:
        try:
            return take()
        except FolderBusy as error:
            if time.monotonic() > until:
                raise
            if not told:
                logger.debug("waiting: %s", error)
                told = True
            time.sleep(poll)


@contextlib.contextmanager
def turn(folder: Path, what: str = "project", poll: float = 1.0) -> Iterator[None]:
    """Hold the lock of a folder, which is made here, as soon as nobody else does.

    Parameters
    ----------
    folder
        Whose lock.
    what
        What the folder is, for messages.
    poll
        Seconds between two looks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = when_free(lambda: FolderLock(folder, creating=False, what=what), poll=poll)
    try:
        yield
    finally:
        lock.release()


def _put(path: Path, content: str) -> bool:
    """Make a lock, with its content from its first moment where the file system has links; False if there is one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with temporary.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:  # no links here, or another process cleared the temporary file away
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            raise
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(content)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _set_aside(path: Path, stale: dict[str, Any]) -> bool:
    """Take a stale lock away, unless another process was faster and its own is there now."""
    aside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}-stale")
    try:
        path.replace(aside)
    except FileNotFoundError:
        return False
    same = _read(aside) == stale
    if not same:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return same


def read_lock(folder: Path) -> dict[str, Any] | None:
    """Content of a lock; None when there is none, ``{}`` when it is empty or broken."""
    return _read(folder / LOCK_NAME)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_stale(lock: dict[str, Any], path: Path) -> bool:
    """Whether the holder is gone; another machine's is taken to be alive."""
    if "pid" not in lock:
        # its writer may be about to fill it; one that stays empty was left by a crash
        try:
            return path.stat().st_size > 0 or _age(path) > 10
        except FileNotFoundError:
            return True
    if lock.get("host") != platform.node():
        return False
    pid = int(lock["pid"])
    if pid == os.getpid():
        return path.resolve() not in _held
    began = _began(pid)
    return began is None or (lock.get("began") not in (None, "?", began) and began != "?")


def is_running(pid: int) -> bool:
    """Whether there is a process of that number on this machine."""
    return _began(pid) is not None


def _age(path: Path) -> float:
    import time

    return time.time() - path.stat().st_mtime


def _began(pid: int) -> str | None:
    """Start of a process, "?" when it runs but does not say, None when it does not run."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else fields[19]  # a zombie has ended
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    if os.name == "nt":  # os.kill would end the process there
        import ctypes

        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
        handle = kernel.OpenProcess(0x100000, False, pid)
        if handle:
            kernel.CloseHandle(handle)
        return "?" if handle else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "?"
