"""Writing objects of runs as bytes with new handles, and new objects between them, in blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.qupath.codec.build import Plan
from stqp.qupath.codec.pack import Packer, unpackable
from stqp.qupath.codec.ragged import Bytes, Ints, copy_rows, cumulative, numbers, put_numbers
from stqp.qupath.codec.runs import KEPT, Run
from stqp.qupath.java.nodes import BASE_HANDLE, Node, StreamError
from stqp.qupath.java.writer import Writer
from stqp.qupath.objects import Mask

_BLOCK = 1 << 13


class CarryingWriter(Writer):
    """A writer that also knows where the nodes of the stream that was read went.

    Parameters
    ----------
    sink, refuse
        As for `Writer`.
    old_handles
        Number of handles in the stream that was read.
    """

    def __init__(self, sink: Callable[[bytes], Any], refuse: Callable[[Node], None], old_handles: int):
        super().__init__(sink, refuse)
        self.moved = np.full(old_handles, -1, np.int32)
        self._runs: list[Run] = []
        self._first: list[int] = []
        self._placed: dict[int, NDArray[np.int32]] = {}
        self._packers: dict[int, Packer] = {}

    def placed(self, node: Node) -> int:
        """Handle of a node that is already written, or -1."""
        if node.handle < 0:
            return self.handles.get(node, -1)
        handle = int(self.moved[node.handle])
        if handle < 0 and (at := bisect_right(self._first, node.handle) - 1) >= 0:
            handle = int(self._in_run(self._runs[at], np.array([node.handle]))[0])
        return handle

    def where(self, old: Ints) -> Ints:
        """Handles of nodes by those that they had, -1 where one is not yet written."""
        if ((old < 0) | (old >= len(self.moved))).any():
            raise StreamError("a run of objects refers to something that is not there")
        result = self.moved[old].astype(np.int64)
        open_ = np.flatnonzero(result < 0)
        if len(open_) and self._runs:
            runs = np.searchsorted(self._first, old[open_], "right") - 1
            for at in np.unique(runs[runs >= 0]).tolist():
                chosen = open_[runs == at]
                result[chosen] = self._in_run(self._runs[at], old[chosen])
        return result

    def _in_run(self, run: Run, old: Ints) -> Ints:
        holder = np.searchsorted(run.bases, old, "right") - 1
        base = self._placed[id(run)][holder].astype(np.int64)
        return np.where((old < run.end_handle) & (base >= 0), base + old - run.bases[holder], -1)

    def place(self, run: Run, index: Ints, bases: Ints) -> None:
        """Note the first handles of objects of a run."""
        if id(run) not in self._placed:
            at = bisect_right(self._first, int(run.bases[0]))
            self._runs.insert(at, run)
            self._first.insert(at, int(run.bases[0]))
            self._placed[id(run)] = np.full(len(run.bases), -1, np.int32)
        self._placed[id(run)][index] = bases

    def number(self, node: Node) -> None:
        """Give a node the next handle."""
        if node.handle >= 0:
            self.moved[node.handle] = self.next_handle
            self.next_handle += 1
        else:
            super().number(node)

    def packer(self, plan: Plan) -> Packer:
        """Return what packs the objects of a plan for this stream."""
        return self._packers.setdefault(id(plan), Packer(plan, self.reference))


def write_objects(
    writer: CarryingWriter,
    run: Run | None,
    old: Ints | None,
    plan: Plan | None,
    new: Ints,
    singly: Mask | None = None,
) -> None:
    """Write objects of a run and of a plan, mixed.

    Parameters
    ----------
    run, old : (n,)
        Which object of the run each is, or -1; None where all are new.
    plan, new : (n,)
        Which object of the plan each is, or a negative number.
    singly : bool (n,)
        New objects to write as nodes; found out when None.
    """
    for first in range(0, len(new), _BLOCK):
        block = slice(first, first + _BLOCK)
        _Block(
            writer,
            run,
            np.full(len(new[block]), -1, np.int64) if old is None else old[block],
            plan,
            new[block],
            None if singly is None else singly[block],
        ).write()
        writer.flush()


class _Block:
    """Some objects in a row."""

    def __init__(
        self, writer: CarryingWriter, run: Run | None, old: Ints, plan: Plan | None, new: Ints, singly: Mask | None
    ):
        self.writer, self.run, self.old, self.plan, self.new = writer, run, old, plan, new
        self.singly = np.zeros(len(new), bool) if singly is None else singly
        self.definers = np.zeros(len(new), bool)
        kept, fresh = np.flatnonzero(old >= 0), np.flatnonzero(old < 0)
        if plan is not None and len(fresh):
            if singly is None:
                self.singly[fresh] = unpackable(plan, new[fresh])
            packed = ~self.singly[fresh]
            self.definers[fresh] = writer.packer(plan).definers(new[fresh], packed)
        if run is not None and len(kept):
            self.definers[kept[_definers(writer, run, old[kept])]] = True

    def write(self) -> None:
        """Write them: by itself what defines something that others refer to, the rest together."""
        first = 0
        for at in [*np.flatnonzero(self.definers).tolist(), len(self.new)]:
            if at > first:
                self._together(slice(first, at))
            if at < len(self.new):
                self.writer.contents([self._node(at)])
            first = at + 1

    def _node(self, at: int) -> Node:
        if self.old[at] >= 0:
            assert self.run is not None
            return self.run.reader.unpack(self.run, int(self.old[at]))
        assert self.plan is not None
        return self.plan.node(int(self.new[at]), [], 0)

    def _together(self, part: slice) -> None:
        writer, run, old, singly = self.writer, self.run, self.old[part], self.singly[part]
        kept = np.flatnonzero(old >= 0)
        fresh = np.flatnonzero((old < 0) & ~singly)
        alone = np.flatnonzero(singly)
        lengths, handles = np.zeros(len(old), np.int64), np.zeros(len(old), np.int64)
        packed = None
        if len(fresh):
            assert self.plan is not None
            packed = writer.packer(self.plan).pack(self.new[part][fresh])
            lengths[fresh], handles[fresh] = packed.lengths, packed.handles
        if run is not None and len(kept):
            index = old[kept]
            new = np.array([shape.new for shape in run.reader.shapes], np.int64)
            handles[kept] = new[run.codes[index]]
            lengths[kept] = (
                np.where(index + 1 < len(run.starts), run.starts[np.minimum(index + 1, len(run.starts) - 1)], run.stop)
                - run.starts[index]
            )
        nodes = self._alone(part.start + alone, alone, handles)
        lengths[alone] = [len(raw) for raw in nodes]
        bases, places = writer.next_handle + cumulative(handles), cumulative(lengths)
        out = np.empty(int(places[-1]), np.uint8)
        for raw, place in zip(nodes, places[alone].tolist(), strict=True):
            out[place : place + len(raw)] = np.frombuffer(raw, np.uint8)
        if packed is not None:
            packed.fill(out, places[fresh])
        if run is not None and len(kept):
            writer.place(run, old[kept], bases[kept])
            _carry(writer, run, old[kept], out, places[kept], lengths[kept])
        writer.next_handle = int(bases[-1])
        writer.raw(out)

    def _alone(self, places: Ints, alone: Ints, handles: Ints) -> list[bytes]:
        """Bytes of new objects that are written as nodes; their numbers of handles are filled in.

        What they refer to was written before all of these, or is within one of them: nothing that is packed
        defines anything for others.
        """
        writer = self.writer
        pieces: list[bytes] = []
        start = writer.next_handle
        extra = 0
        for at, k, base in zip(
            places.tolist(), alone.tolist(), (start + cumulative(handles)[alone]).tolist(), strict=True
        ):
            writer.next_handle = base + extra
            pieces.append(writer.apart(self._node(at)))
            handles[k] = writer.next_handle - base - extra
            extra += int(handles[k])
        writer.next_handle = start
        return pieces


def _definers(writer: CarryingWriter, run: Run, index: Ints) -> Ints:
    """Which of some objects, in order, are the first to refer to something that is not yet written."""
    data = run.reader.bytes
    targets: list[Ints] = []
    owners: list[Ints] = []
    for where, shape, places in _by_shape(run, index):
        fixed = np.array([handle for _, handle in shape.fixed], np.int64)
        open_fixed = fixed[writer.where(fixed) < 0]
        targets.append(open_fixed)
        owners.append(np.full(len(open_fixed), where[0]))
        for slot in shape.open:
            target = numbers(data, places[slot.segment] + slot.offset, ">u4").astype(np.int64) - BASE_HANDLE
            nowhere = np.flatnonzero(writer.where(target) < 0)
            targets.append(target[nowhere])
            owners.append(where[nowhere])
    target, owner = np.concatenate(targets), np.concatenate(owners)
    # what an earlier one of them has itself will be there
    holder = np.searchsorted(run.bases, target, "right") - 1
    inside = (holder >= 0) & (target < run.end_handle)
    holder = np.clip(holder, 0, None)
    settled = inside & (run.source[holder] == KEPT) & (holder <= index[owner])
    target, owner = target[~settled], owner[~settled]
    order = np.argsort(owner, kind="stable")
    return np.unique(owner[order[np.unique(target[order], return_index=True)[1]]])


def _by_shape(run: Run, index: Ints) -> Any:
    codes = run.codes[index]
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        where = np.flatnonzero(codes == code)
        shape = run.reader.shapes[code]
        yield where, shape, shape.positions(run.reader.bytes, run.starts[index[where]])[0]


def _carry(writer: CarryingWriter, run: Run, index: Ints, out: Bytes, places: Ints, lengths: Ints) -> None:
    """Copy the bytes of objects to their places, with the handles that all has now."""
    data, starts = run.reader.bytes, run.starts[index]
    whole = int(starts[-1] + lengths[-1] - starts[0])
    if whole == int(lengths.sum()) == len(out):
        out[:] = data[int(starts[0]) : int(starts[0]) + whole]
    else:
        copy_rows(out, places, data, starts, lengths)
    for where, shape, segments in _by_shape(run, index):
        shift = places[where] - starts[where]
        for slot, handle in shape.fixed:
            new = int(writer.where(np.array([handle]))[0])
            if new < 0:
                raise StreamError("a run of objects refers to something that was not written")
            if new != handle:
                at = segments[slot.segment] + shift + slot.offset
                put_numbers(out, at, BASE_HANDLE + new, ">u4")
        for slot in shape.open:
            old = segments[slot.segment] + slot.offset
            target = numbers(data, old, ">u4").astype(np.int64) - BASE_HANDLE
            moved = writer.where(target)
            if (moved < 0).any():
                raise StreamError("a run of objects refers to something that was not written")
            put_numbers(out, old + shift, BASE_HANDLE + moved, ">u4")
