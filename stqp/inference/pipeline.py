"""Reading, the network, post-processing and writing at the same time, all that waits being bounded.

One thread, the caller's, decides; it alone knows what is finished and writes the journal. Threads read, run
the devices, keep maps and post-process: what is heavy in that (OpenCV, scipy, scikit-image, numpy on large
arrays, torch) leaves Python's lock to the others, so that processes, whose start alone takes seconds, gain
nothing. The result hangs on none of the timing: batches are fixed in `windows.Plan`, the bounds are made of
fixed windows, and nuclei are put in the order of their places.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.inference import postprocess, tiles
from stqp.inference.batches import predict_in_parts
from stqp.inference.clumps import Tiling
from stqp.inference.ledger import Ledger, Written
from stqp.inference.model import Maps, Predictor
from stqp.inference.stitching import Task
from stqp.inference.store import Cell, MapStore
from stqp.inference.tiles import Found, Seen
from stqp.inference.windows import Grid, Plan, slide_bounds
from stqp.slides import Slide

READERS = 3
_AHEAD = 3  # batches for each device that are on their way from the slide to the store
_BACKLOG = 4  # tiles for each worker that may wait before reading does
_LARGEST = 36_000_000  # px that are post-processed at a time, unless one clump alone has more

Progress = Callable[[int, int], None]


def worker_count() -> int:
    """Threads that post-process: the cores this process may use, eight at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, 8))


class Pipeline:
    """One slide on its way; use `run` once.

    Parameters
    ----------
    slide, grid, plan
        What is read, and in which order.
    predictors
        Replicas of the network, one a device.
    store, ledger
        Where maps are kept, and what is done.
    tiling
        As `tiles.find_nuclei`.
    workers
        Threads that post-process.
    progress
        Called with the windows and tiles done and their number.
    """

    def __init__(
        self,
        slide: Slide,
        grid: Grid,
        plan: Plan,
        predictors: Sequence[Predictor],
        store: MapStore,
        ledger: Ledger,
        tiling: Tiling,
        workers: int | None = None,
        progress: Progress | None = None,
    ):
        self._slide, self._grid, self._plan = slide, grid, plan
        self._predictors, self._store, self._ledger, self._tiling = predictors, store, ledger, tiling
        self._workers = workers or worker_count()
        self._progress = progress
        self._to_read = iter(sorted(ledger.missing))
        self._in_flight = 0  # batches between reading and keeping
        self._sizes: dict[Task | int, int] = {}  # px of what is post-processed now
        self._asked_for_bounds = self._sample_failed = False
        self._events: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        self._to_device: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def run(self) -> None:
        """Predict and post-process until the ledger has everything.

        Raises
        ------
        InputError
            When the slide breaks off.
        EnvironmentProblem
            When the disk is full, or the device too small for a single window.
        """
        handlers: dict[str, Callable[[Any, Any], None]] = {
            "read": self._on_read, "maps": self._on_maps, "kept": self._on_kept,
            "bounds": self._on_bounds, "tile": self._on_tile, "task": self._on_task,
        }  # fmt: skip
        with _one_thread_each(), self._threads():
            while not self._ledger.finished:
                self._submit()
                try:
                    kind, key, value = self._events.get(timeout=0.5)
                except queue.Empty:  # a wait without end would not see Ctrl-C on Windows
                    continue
                if kind == "error":
                    raise value
                handlers[kind](key, value)
                if self._progress:
                    self._progress(self._ledger.steps, self._ledger.all_steps)

    # what is asked for

    def _submit(self) -> None:
        """Start what there is room for."""
        ledger = self._ledger
        waits = ledger.bounds_known and len(ledger.ready) > _BACKLOG * self._workers
        while not waits and self._in_flight <= _AHEAD * len(self._predictors):
            index = next(self._to_read, None)
            if index is None:
                break
            self._in_flight += 1
            self._do(self._reading, "read", index, self._read, index)
        while ledger.ready and len(self._sizes) <= self._workers:
            size = ledger.ready[0][2]
            if self._sizes and sum(self._sizes.values()) + size > _LARGEST:
                break
            item = ledger.pop()
            self._sizes[item] = size
            if isinstance(item, Task):
                self._do(self._working, "task", item, tiles.process_task, self._store, item, ledger.bounds)
            else:
                self._do(
                    self._working, "tile", item, tiles.process_tile, self._store, self._tiling, item, ledger.bounds
                )
        self._ask_for_bounds()

    def _do(self, pool: ThreadPoolExecutor, kind: str, key: Any, function: Callable[..., Any], *args: Any) -> None:
        """Have a thread do something and tell."""

        def work() -> None:
            try:
                value = function(*args)
            except BaseException as error:
                self._events.put(("error", key, error))
            else:
                self._events.put((kind, key, value))

        pool.submit(work)

    def _read(self, index: int) -> NDArray[np.uint8]:
        return np.stack([self._grid.read(self._slide, cell) for cell in self._plan.groups[index]])

    def _keep_maps(self, cells: list[tuple[int, Cell]], maps: Maps) -> list[Written]:
        return [(*cell, *self._store.write(cell, *(maps[k][i] for k in ("np", "hv", "tp")))) for i, cell in cells]

    def _ask_for_bounds(self) -> None:
        """Have the bounds made, once the sample is there, or, where it said too little, everything."""
        if self._ledger.bounds_known or self._asked_for_bounds:
            return
        complete = not self._ledger.missing
        if complete or (self._ledger.sampled and not self._sample_failed):
            self._asked_for_bounds = True
            self._do(self._working, "bounds", complete, slide_bounds, self._store, self._plan.regions, complete)

    # what happened

    def _on_read(self, index: int, images: NDArray[np.uint8]) -> None:
        self._to_device.put((index, images))

    def _on_maps(self, index: int, maps: Maps) -> None:
        self._ledger.counts.predicted += len(self._plan.groups[index])
        self._do(self._keeping, "kept", index, self._keep_maps, self._ledger.lacking(index), maps)

    def _on_kept(self, index: int, written: list[Written]) -> None:
        self._in_flight -= 1
        self._ledger.add_windows(index, written)

    def _on_bounds(self, complete: bool, bounds: postprocess.Bounds | None) -> None:
        self._asked_for_bounds = False
        if bounds is None and not complete:
            self._sample_failed = True
        else:
            self._ledger.add_bounds(bounds)

    def _on_tile(self, number: int, seen: Seen) -> None:
        del self._sizes[number]
        self._ledger.add_tile(number, seen)

    def _on_task(self, task: Task, found: Found) -> None:
        del self._sizes[task]
        self._ledger.add_task(task, found)

    # threads

    @contextmanager
    def _threads(self) -> Iterator[None]:
        self._reading = ThreadPoolExecutor(READERS, "stqp-read")
        self._working = ThreadPoolExecutor(self._workers, "stqp-post")
        self._keeping = ThreadPoolExecutor(1 + len(self._predictors), "stqp-keep")
        devices = [
            threading.Thread(target=self._run_device, args=(p,), name="stqp-device", daemon=True)
            for p in self._predictors
        ]
        try:
            for thread in devices:
                thread.start()
            yield
        finally:
            self._stopped.set()
            for _ in devices:
                self._to_device.put(None)
            for pool in (self._reading, self._keeping, self._working):
                pool.shutdown(wait=True, cancel_futures=True)
            for thread in devices:
                thread.join(2)  # a batch that a CPU is at may take a minute; nobody wants it any more

    def _run_device(self, predictor: Predictor) -> None:
        """Predict batches until there are no more; halve them where they are too large for the device."""
        largest = 1 << 30
        while (item := self._to_device.get()) is not None and not self._stopped.is_set():
            index, images = item
            try:
                maps, largest = predict_in_parts(predictor, images, largest)
            except BaseException as error:
                self._events.put(("error", index, error))
            else:
                self._events.put(("maps", index, maps))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep OpenCV from starting threads of its own in each of ours."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
