"""Batches of patches cut by several processes into files of their own, so that a killed cut goes on where it was."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from stqp import files
from stqp.errors import InputError
from stqp.locking import LOCK_NAME, FolderLock
from stqp.patches.drawing import Batch, Shape, draw_batch
from stqp.patches.store import PatchFile

logger = logging.getLogger(__name__)
PLAN = "plan.json"
_MOST_WORKERS = 16
_WORTH = 1024  # patches from which a second process, which takes a CPU second to start, is worth it


def parts_folder(out: Path) -> Path:
    """Where the finished batches of a file of patches are kept until it is whole."""
    return out.with_name(f".{out.name}.parts")


@contextlib.contextmanager
def keeping_parts(out: Path, fingerprint: str) -> Iterator[Path]:
    """Give the folder of the batches; it goes when the block ends well, or when there is none in it.

    Batches of the same fingerprint, left by a cut that was stopped, are there still.

    Raises
    ------
    EnvironmentProblem
        When another process cuts to the same file.
    """
    folder = parts_folder(out)
    with files.disk_errors(folder):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
    lock = FolderLock(folder, creating=True, what="folder of unfinished patches")
    done = False
    try:
        if _plan(folder) != fingerprint:
            for path in folder.iterdir():
                if path.name != LOCK_NAME:
                    path.unlink()
            files.write_json(folder / PLAN, {"fingerprint": fingerprint})
        for path in folder.iterdir():
            if files.is_temporary(path):
                path.unlink()
        yield folder
        done = True
    finally:
        lock.release()
        if done or not any(folder.glob("*.h5")):
            shutil.rmtree(folder, ignore_errors=True)


def _plan(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / PLAN).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def part_path(folder: Path, number: int) -> Path:
    """File of a batch."""
    return folder / f"{number:06d}.h5"


def is_done(path: Path) -> bool:
    """Whether the file of a batch is there, and whole."""
    if not path.is_file():
        return False
    try:
        PatchFile(path)
    except InputError:
        return False
    return True


def default_workers(patches: int) -> int:
    """Processes that are worth it for so many patches."""
    if patches < _WORTH:
        return 1
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(here or 1, _MOST_WORKERS, patches // (_WORTH // 2)))


def draw_batches(
    folder: Path,
    numbers: Sequence[int],
    make: Callable[[int], Batch],
    shape: Shape,
    workers: int,
    done: Callable[[int], None],
) -> None:
    """Draw batches, each into its part.

    Parameters
    ----------
    folder
        Of the parts.
    numbers
        Batches to draw.
    make
        Gives a batch by its number; asked for only when a worker is free, so that few are in memory.
    shape
        Of the patches.
    workers
        Processes; with 1 this one works alone.
    done
        Called with the number of each batch that is finished.
    """
    rest = list(numbers)
    if workers > 1 and len(rest) > 1:
        try:
            _in_processes(folder, rest, make, shape, min(workers, len(rest)), done)
        except BrokenProcessPool:
            logger.warning("a process that cut patches died (out of memory?); this one goes on alone")
    for number in rest:
        draw_batch(make(number), shape, part_path(folder, number))
        done(number)


def _in_processes(
    folder: Path,
    rest: list[int],
    make: Callable[[int], Batch],
    shape: Shape,
    workers: int,
    done: Callable[[int], None],
) -> None:
    """Draw batches in other processes; what is finished leaves `rest`."""
    from loky import ProcessPoolExecutor

    # spawned, not forked: the image readers have threads and locks of their own; by loky, whose processes do not run
    # the program that started them once more, which the standard library's do where it lacks a guard
    pool = ProcessPoolExecutor(workers, initializer=_ignore_interrupts)
    running: dict[Future[int], int] = {}
    waiting = iter(tuple(rest))
    try:
        for number in waiting:
            running[pool.submit(draw_batch, make(number), shape, part_path(folder, number))] = number
            if len(running) < 2 * workers:
                continue
            _collect(running, rest, done)
        while running:
            _collect(running, rest, done)
    finally:
        for future in running:
            future.cancel()
        pool.shutdown(wait=True)


def _collect(running: dict[Future[int], int], rest: list[int], done: Callable[[int], None]) -> None:
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        number = running.pop(future)
        future.result()
        rest.remove(number)
        done(number)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that started this one: it waits for the batch at hand, which is kept."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
