"""Reading many objects of a .qpdata stream at once.

Nearly all objects of a large file are leaves of the same few layouts: a polygon, some texts, some numbers.
Such neighbours are recognised together and stay as bytes; whatever deviates is read as nodes.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stqp.qupath.codec.grammar import Learner
from stqp.qupath.codec.layout import KINDS
from stqp.qupath.codec.ragged import Ints, numbers
from stqp.qupath.java.nodes import BASE_HANDLE, OBJECT, REFERENCE, ClassDesc, Instance, StreamError
from stqp.qupath.java.reader import Reader
from stqp.qupath.objects import Mask, ObjectKind

if TYPE_CHECKING:
    from stqp.qupath.codec.build import Plan

_WINDOW, _WINDOW_MAX, _WORTH = 64, 16384, 4
_SCAN = 1 << 18
KEPT, DROPPED = -1, -2


class RunReader(Reader):
    """A reader that keeps runs of leaf objects as `Run`."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self.bytes = np.frombuffer(data, np.uint8)
        self._learner = Learner(data)
        self.shapes = self._learner.shapes
        self.runs: list[Run] = []
        self._leaves: dict[int, ObjectKind | None] = {}
        self._ahead = np.empty(0, np.int64)
        self._scanned = 0
        self._window, self._penalty, self._skip = _WINDOW, 1, 0

    def lookup(self, handle: int) -> Any:
        """Node of a handle; an object within a run becomes nodes for that."""
        node = self.table.get(handle)
        if node is None:
            at = bisect_right(self.runs, handle, key=lambda run: int(run.bases[0])) - 1
            if at >= 0 and handle < self.runs[at].end_handle:
                run = self.runs[at]
                self.unpack(run, int(np.searchsorted(run.bases, handle, "right")) - 1)
            node = super().lookup(handle)
        return node

    def unpack(self, run: Run, index: int) -> Instance:
        """Nodes of one object of a run."""
        base = int(run.bases[index])
        if base not in self.table:
            kept = self.pos, self.next_handle
            self.pos, self.next_handle = int(run.starts[index]), base
            self.content()
            self.pos, self.next_handle = kept
        node: Instance = self.table[base]
        return node

    def take_run(self, contents: list[Any]) -> bool:
        """Read a run of objects that begins here, if one does."""
        data, pos = self.data, self.pos
        if data[pos + 1] != REFERENCE or self.first_handle:
            return False
        handle = struct.unpack_from(">I", data, pos + 2)[0] - BASE_HANDLE
        if handle not in self._leaves:
            self._learn(handle)
        if self._leaves[handle] is None:
            return False
        if self._skip:
            self._skip -= 1
            return False
        starts = self._candidates(pos, self._window)
        if not len(starts) or starts[0] != pos:
            return False
        kinds = {h: kind for h, kind in self._leaves.items() if kind is not None}
        handles = {name: desc.handle for name, desc in self.classes.items()}
        codes, stops, latest = self._learner.match(starts, kinds, handles, self.next_handle)
        new = np.array([shape.new for shape in self.shapes], np.int64)[codes]
        bases = self.next_handle + np.cumsum(new) - new
        ahead = np.flatnonzero(latest >= bases)
        n = int(ahead[0]) if len(ahead) else len(codes)  # what refers to what comes later is damaged
        if n < _WORTH:
            self._skip, self._penalty = self._penalty, min(2 * self._penalty, 256)
            self._window = _WINDOW
            return False
        self._window = min(4 * self._window, _WINDOW_MAX) if n == len(starts) else max(_WINDOW, min(n, self._window))
        self._penalty = 1
        run = Run(self, starts[:n].copy(), codes[:n], int(stops[n - 1]), bases[:n], int(bases[n - 1] + new[n - 1]))
        self.runs.append(run)
        self.pos, self.next_handle = run.stop, run.end_handle
        contents.append(run)
        return True

    def _candidates(self, pos: int, number: int) -> Ints:
        """Where leaf objects may begin, from here on: so many, or as many as there are."""
        self._ahead = self._ahead[np.searchsorted(self._ahead, pos) :]
        self._scanned = max(self._scanned, pos)
        pieces, found = [self._ahead], len(self._ahead)
        while found < number and self._scanned < len(self.bytes) - 5:
            # in pieces that stay in the processor's cache
            piece = self.bytes[self._scanned : self._scanned + _SCAN + 5]
            heads = piece[:-5] == OBJECT
            heads &= piece[1:-4] == REFERENCE
            places = np.flatnonzero(heads)
            handles = numbers(piece, places + 2, ">u4").astype(np.int64) - BASE_HANDLE
            known = np.zeros(len(places), bool)
            for handle, kind in self._leaves.items():
                if kind is not None:
                    known |= handles == handle
            pieces.append(places[known] + self._scanned)
            found += len(pieces[-1])
            self._scanned += len(piece) - 5
        self._ahead = np.concatenate(pieces)
        return self._ahead[:number]

    def _learn(self, handle: int) -> None:
        desc = self.table.get(handle)
        kind = KINDS.get(desc.name) if isinstance(desc, ClassDesc) else None
        self._leaves[handle] = None if kind == ObjectKind.TMA_CORE else kind
        if self._leaves[handle] is not None:
            self._ahead, self._scanned = np.empty(0, np.int64), 0


class Run:
    """Neighbouring leaf objects, still as bytes.

    Attributes
    ----------
    starts, bases : int64 (n,)
        First byte and first handle of each.
    codes : int16 (n,)
        Among the reader's shapes.
    stop, end_handle : int
        Where the last one ends.
    source : int64 (n,)
        `KEPT`, `DROPPED`, or which new object of `plan` takes the place.
    """

    def __init__(
        self, reader: RunReader, starts: Ints, codes: NDArray[np.int16], stop: int, bases: Ints, end_handle: int
    ):
        self.reader = reader
        self.starts, self.codes, self.stop = starts, codes, stop
        self.bases, self.end_handle = bases, end_handle
        self.source = np.full(len(starts), KEPT, np.int64)
        self.plan: Plan | None = None

    def __len__(self) -> int:
        """Count the objects that will be written."""
        return int((self.source != DROPPED).sum())

    def keep(self, mask: Mask) -> None:
        """Take out all but the objects of a mask."""
        alive = np.flatnonzero(self.source != DROPPED)
        self.source[alive[~mask]] = DROPPED

    def replace(self, plan: Plan, chosen: Ints) -> None:
        """Put new objects in the place of some, as numbers of the plan's objects; -1 where one stays."""
        if self.plan not in (None, plan):
            raise StreamError("its objects are replaced once before it is saved")
        alive = np.flatnonzero(self.source != DROPPED)
        self.plan = plan
        self.source[alive[chosen >= 0]] = chosen[chosen >= 0]

    def gone(self) -> Ints:
        """Handles of the objects that were taken out or replaced."""
        return self.bases[self.source != KEPT]

    def ends(self) -> Ints:
        """Where each object ends."""
        return np.append(self.starts[1:], self.stop)

    def write(self, writer: Any) -> None:
        """Write what is kept, as bytes with new handles, and what takes the place of the rest.

        Parameters
        ----------
        writer
            A `CarryingWriter`.
        """
        from stqp.qupath.codec.carry import write_objects

        alive = np.flatnonzero(self.source != DROPPED)
        source = self.source[alive]
        write_objects(writer, self, np.where(source == KEPT, alive, -1), self.plan, source)
