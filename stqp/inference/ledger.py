"""What is done of a slide and what may be done next; held by one thread, and told again by the journal."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stqp.inference import journal as journals
from stqp.inference import postprocess, tiles
from stqp.inference.clumps import Border, Part, Tiling
from stqp.inference.journal import Journal, pack, unpack
from stqp.inference.records import parts_of, tile_record
from stqp.inference.stitching import Task
from stqp.inference.store import Cell, MapStore, Region, cells_of
from stqp.inference.tiles import Found, Seen
from stqp.inference.windows import Plan, needs

Written = tuple[int, int, int, int]  # row and column of a window, place and checksum of its maps


@dataclass
class Counts:
    """What a run did, and what it found done."""

    predicted: int = 0
    resumed_windows: int = 0
    resumed_tiles: int = 0
    cut: int = 0


class Ledger:
    """Keeps account of windows, tiles and clumps; writes the journal, and drops maps that nobody needs again.

    Parameters
    ----------
    plan
        Of the windows.
    store, journal
        Where maps and nuclei are kept.
    tiling, max_clump
        As `tiles.find_nuclei`.

    Attributes
    ----------
    bounds : tuple or None
        Of post-processing; None when not yet known, or when there are no nuclei.
    bounds_known : bool
    missing : set of int
        Batches that are to be predicted.
    ready : list
        A heap of ``(..., pixels, tile or task)`` to post-process.
    results : list of (int, int)
        Places of nuclei in the journal.
    steps, all_steps : int
        Windows and tiles that are done, and all.
    """

    def __init__(self, plan: Plan, store: MapStore, journal: Journal, tiling: Tiling, max_clump: int = tiles.MAX_CLUMP):
        self._plan, self._store, self._journal, self._tiling = plan, store, journal, tiling
        self._stitcher = tiles.make_stitcher(tiling, max_clump)
        cells = [cell for group in plan.groups for cell in group]
        self._waiting, self._readers, self._filled = needs(tiling, cells, store.side)
        self._kept: set[Cell] = set()  # windows whose maps are, or were, in the store
        self._done: set[int] = set()  # tiles
        self._closed: set[int] = set()
        self._tasks: dict[str, Task] = {}  # that are not finished
        self._held: dict[str, set[Cell]] = {}  # what tasks of an earlier run wait for
        self._finished: set[str] = set()  # tasks of an earlier run
        self._sequence = itertools.count()
        self._tile_pixels = (tiling.tile + 2 * tiling.margin) ** 2
        self.bounds: postprocess.Bounds | None = None
        self.bounds_known = False
        self.ready: list[tuple[int, int, int, Task | int]] = []  # clumps first, then tiles in their order
        self.results: list[tuple[int, int]] = []
        self.counts = Counts()
        self.steps, self.all_steps = 0, len(cells) + len(self._filled)
        self._take_up()
        self.missing = {i for i, group in enumerate(plan.groups) if not self._kept.issuperset(group)}

    @property
    def finished(self) -> bool:
        """Whether all is done."""
        return not self.missing and not self._tasks and len(self._done) == len(self._filled)

    @property
    def sampled(self) -> bool:
        """Whether the windows of the sample are there."""
        return all(index >= self._plan.sampled for index in self.missing)

    def lacking(self, index: int) -> list[tuple[int, Cell]]:
        """Windows of a batch whose maps are to be kept, with their numbers in the batch."""
        return [(i, cell) for i, cell in enumerate(self._plan.groups[index]) if cell not in self._kept]

    def pop(self) -> Task | int:
        """Take what is to be post-processed next."""
        return heapq.heappop(self.ready)[-1]

    def add_windows(self, index: int, written: Sequence[Written]) -> None:
        """Note that the maps of a batch are there."""
        self._journal.append(journals.WINDOWS, pack({}, {"windows": np.array(written, np.int64).reshape(-1, 4)}))
        self.missing.discard(index)
        for row, column, *_ in written:
            self._keep((row, column))

    def add_bounds(self, bounds: postprocess.Bounds | None) -> None:
        """Note the bounds, None when there are no nuclei, and queue the tiles that waited for them."""
        self._journal.append(journals.BOUNDS, pack({"bounds": bounds}, {}))
        self._set_bounds(bounds)
        for number in sorted(self._filled - self._done):
            if bounds is None:
                self._finish_tile(number, (), None)
            elif not self._waiting[number]:
                self._queue_tile(number)

    def add_tile(self, number: int, seen: Seen) -> None:
        """Note what a tile gave."""
        self.results.append(self._journal.append(journals.TILE, pack(*tile_record(number, seen))))
        self._finish_tile(number, seen.parts, seen.border)

    def add_task(self, task: Task, found: Found) -> None:
        """Note what a clump gave."""
        cut = task.core is not None
        self.counts.cut += cut
        self.results.append(self._journal.append(journals.TASK, pack({"key": task.key, "cut": cut}, vars(found))))
        self._finish_task(task)

    def _take_up(self) -> None:
        """Go through the journal, so that nothing that is finished is done again."""
        chunks: dict[int, tuple[Cell, int]] = {}  # by place in the file, where a later one covers an earlier one
        tiles_done: list[tuple[int, list[Part], Border | None]] = []
        for kind, position, length in self._journal.records:
            meta, arrays = unpack(self._journal.read(position, length))
            if kind == journals.WINDOWS:
                for row, column, slot, checksum in arrays["windows"].tolist():
                    chunks[slot] = (row, column), checksum
            elif kind == journals.BOUNDS:
                self._set_bounds(meta["bounds"])
            else:
                self.results.append((position, length))
                if kind == journals.TILE:
                    tiles_done.append((meta["tile"], *parts_of(meta, arrays)))
                else:
                    self._finished.add(meta["key"])
                    self.counts.cut += meta["cut"]
        rows, columns = self._tiling.shape
        for number in {*range(rows * columns)} - self._filled:
            self._stitcher.add(number, (), None)
        unfinished: list[Task] = []
        for number, parts, border in tiles_done:
            unfinished += self._finish_tile(number, parts, border, queue=False)
        needed = {cell for cell, readers in self._readers.items() if readers}
        self._kept = {*self._readers} - needed
        self.steps += len(self._kept)
        left = {cell: (slot, checksum) for slot, (cell, checksum) in chunks.items() if cell in needed}
        for cell in self._store.adopt(left):
            self._keep(cell)
        for task in unfinished:
            self._hold(task)
        self.counts.resumed_windows, self.counts.resumed_tiles = len(self._kept), len(tiles_done)

    def _set_bounds(self, bounds: Sequence[float] | None) -> None:
        self.bounds_known = True
        self.bounds = None if bounds is None else (bounds[0], bounds[1], bounds[2], bounds[3])

    def _keep(self, cell: Cell) -> None:
        """Note that a window's maps are there."""
        self._kept.add(cell)
        self.steps += 1
        side, margin = self._store.side, self._tiling.margin
        x, y = cell[1] * side, cell[0] * side
        for number in self._tiling.numbers((x - margin, y - margin, x + side + margin, y + side + margin)):
            self._waiting[number] -= 1
            if not self._waiting[number] and number in self._filled and number not in self._done and self.bounds:
                self._queue_tile(number)
        for key in [key for key, cells in self._held.items() if cell in cells]:
            self._held[key].discard(cell)
            if not self._held[key]:
                del self._held[key]
                self._queue_task(self._tasks[key])

    def _hold(self, task: Task) -> None:
        """Have a task of an earlier run wait for the maps that are gone, or queue it."""
        windows = [self._tiling.window(number) for number in self._stitcher.tiles_of(task)]
        cells = {cell for window in windows for cell in cells_of(window, self._store.side)}
        lacking = {cell for cell in cells if cell in self._readers and cell not in self._kept}
        if lacking:
            self._held[task.key] = lacking
        else:
            self._queue_task(task)

    def _queue_tile(self, number: int) -> None:
        heapq.heappush(self.ready, (1, number, self._tile_pixels, number))

    def _queue_task(self, task: Task) -> None:
        heapq.heappush(self.ready, (0, next(self._sequence), area(task.region), task))

    def _finish_tile(self, number: int, parts: Sequence[Part], border: Border | None, queue: bool = True) -> list[Task]:
        """Note a tile; queue the clumps that it completes, or only give them."""
        self._done.add(number)
        self.steps += 1
        tasks = []
        for task in self._stitcher.add(number, parts, border):
            if task.key in self._finished:
                self._finish_task(task)
                continue
            self._tasks[task.key] = task
            tasks.append(task)
            if queue:
                self._queue_task(task)
        self._close([number])
        return tasks

    def _finish_task(self, task: Task) -> None:
        self._tasks.pop(task.key, None)
        of = self._stitcher.tiles_of(task)
        self._stitcher.done(task)
        self._close(of)

    def _close(self, numbers: Iterable[int]) -> None:
        """Drop maps that nobody will read again."""
        for number in numbers:
            if number in self._closed or number not in self._filled or not self._stitcher.is_closed(number):
                continue
            self._closed.add(number)
            for cell in cells_of(self._tiling.window(number), self._store.side):
                if cell in self._readers:
                    self._readers[cell] -= 1
                    if not self._readers[cell]:
                        self._store.drop(cell)


def area(region: Region) -> int:
    """Pixels of a region."""
    return (region[2] - region[0]) * (region[3] - region[1])
