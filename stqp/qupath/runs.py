"""Reading and carrying many objects of a .qpdata stream at once.

Nearly all objects of a large file are leaves of the same few layouts: a polygon, some texts, some numbers.
Such neighbours are recognised together, with one step of array arithmetic for each part of the layout, and
stay as bytes; whatever deviates is read as nodes.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.decode import Rows, numbers_at
from stqp.qupath.grammar import Match, TextColumn, match
from stqp.qupath.javanodes import BASE_HANDLE, OBJECT, REFERENCE, ClassDesc, Instance, StreamError, decode
from stqp.qupath.javareader import Reader
from stqp.qupath.layout import ID_KEY, KINDS
from stqp.qupath.objects import Mask, ObjectKind, PathObjects, RoiKind, random_ids

Ints = NDArray[np.int64]
_WINDOW, _WINDOW_MAX, _WORTH = 64, 16384, 4
_PADDING = 256


class RunReader(Reader):
    """A reader that keeps runs of leaf objects as `Run`."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self._padded: NDArray[np.uint8] | None = None
        self._leaves: dict[int, ObjectKind | None] = {}
        self._candidates: Ints = np.empty(0, np.int64)
        self._window, self._penalty, self._skip = _WINDOW, 1, 0
        self.runs: list[Run] = []

    @property
    def padded(self) -> NDArray[np.uint8]:
        """The bytes, and some zeros so that a look ahead needs no check."""
        if self._padded is None:
            self._padded = np.zeros(len(self.data) + _PADDING, np.uint8)
            self._padded[: len(self.data)] = np.frombuffer(self.data, np.uint8)
        return self._padded

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
        first = int(np.searchsorted(self._candidates, pos))
        starts = self._candidates[first : first + self._window]
        found = match(self.padded, starts, self.kind_handles(), self.handles())
        n = found.leading(starts)
        if n < _WORTH:
            self._skip, self._penalty = self._penalty, min(2 * self._penalty, 256)
            self._window = _WINDOW
            return False
        self._window = min(4 * self._window, _WINDOW_MAX) if n == len(starts) else max(_WINDOW, min(n, self._window))
        self._penalty = 1
        bases = self.next_handle + np.cumsum(found.new[:n]) - found.new[:n]
        run = Run(self, starts[:n].copy(), found.stops[:n].copy(), bases, int(bases[-1] + found.new[n - 1]))
        self.runs.append(run)
        self.pos, self.next_handle = int(run.stops[-1]), run.end_handle
        contents.append(run)
        return True

    def handles(self) -> dict[str, int]:
        """Handles of all classes, by name."""
        return {name: desc.handle for name, desc in self.classes.items()}

    def kind_handles(self) -> dict[int, ObjectKind]:
        """Kinds of leaf objects by the handle of their class."""
        return {handle: kind for handle, kind in self._leaves.items() if kind is not None}

    def _learn(self, handle: int) -> None:
        desc = self.table.get(handle)
        kind = KINDS.get(desc.name) if isinstance(desc, ClassDesc) else None
        self._leaves[handle] = None if kind == ObjectKind.TMA_CORE else kind
        if self._leaves[handle] is not None:
            head = bytes((OBJECT, REFERENCE)) + struct.pack(">I", BASE_HANDLE + handle)
            places = [m.start() for m in re.compile(re.escape(head)).finditer(self.data, self.pos)]
            self._candidates = np.union1d(self._candidates, np.array(places, np.int64))


class Run:
    """Neighbouring leaf objects, still as bytes."""

    def __init__(self, reader: RunReader, starts: Ints, stops: Ints, bases: Ints, end_handle: int):
        self._reader = reader
        self.starts, self.stops, self.bases, self.end_handle = starts, stops, bases, end_handle
        self._kept: Mask = np.ones(len(starts), bool)

    def __len__(self) -> int:
        """Count the objects that are kept."""
        return int(self._kept.sum())

    def keep(self, mask: Mask) -> None:
        """Take out all but the objects of a mask."""
        self._kept = self._kept & mask

    def dropped_handles(self) -> list[int]:
        """Handles of the objects that were taken out."""
        handles: list[int] = self.bases[~self._kept].tolist()
        return handles

    def _match(self) -> Match:
        return match(self._reader.padded, self.starts, self._reader.kind_handles(), self._reader.handles())

    def objects(self, shared: Rows) -> PathObjects:
        """Columns of the objects; parents are -1."""
        found, reader, n = self._match(), self._reader, len(self.starts)
        ids, metadata = self._metadata(found)
        polygons = Polygons.from_rings(*self._rings(found))
        nuclei = None
        if found.nucleus is not None and found.nucleus.count.any():
            place = found.nucleus
            flat, _ = _ragged(place.x, 4 * place.count)
            x = reader.padded[flat].view(">f4")
            y = reader.padded[_ragged(place.y, 4 * place.count)[0]].view(">f4")
            has = place.count > 0
            rings = Polygons.from_rings(np.column_stack([x, y]), _cumulative(place.count[has]))
            nuclei = Polygons(rings.coords, rings.ring_offsets, _cumulative(has))
        result = PathObjects.build(
            polygons,
            kind=found.kind,
            classes=self._by_handle(found.class_handle, shared.path_class),
            ids=ids,
            names=self._texts(found.name),
            probability=numbers_at(reader.padded, found.probability, ">f8"),
            locked=self._by_handle(found.locked_handle, lambda node: bool(node.get("value"))).astype(bool),
            nuclei=nuclei,
            metadata=metadata,
            measurements=self._measurements(found, shared),
        )
        result.roi_kind = np.where(found.is_rectangle, int(RoiKind.RECTANGLE), int(RoiKind.POLYGON)).astype(np.uint8)
        plane = reader.padded[found.plane[:, :, None] + np.arange(4)].view(">i4").astype(np.int32)
        result.plane = plane.reshape(n, 3)
        return result

    def _rings(self, found: Match) -> tuple[NDArray[np.float64], Ints]:
        padded, rectangle, place = self._reader.padded, found.is_rectangle, found.outline
        counts = np.where(rectangle, 4, place.count)
        offsets = _cumulative(counts)
        coords = np.empty((int(offsets[-1]), 2))
        of_rectangle = np.repeat(rectangle, counts)
        for axis, start in enumerate((place.x, place.y)):
            flat, _ = _ragged(start[~rectangle], 4 * place.count[~rectangle])
            coords[~of_rectangle, axis] = padded[flat].view(">f4")
        if rectangle.any():
            x, x2, y, y2 = (numbers_at(padded, found.box[rectangle] + 8 * k, ">f8") for k in range(4))
            x, x2, y, y2 = np.minimum(x, x2), np.maximum(x, x2), np.minimum(y, y2), np.maximum(y, y2)
            corners = np.stack([np.column_stack([x, x2, x2, x]), np.column_stack([y, y, y2, y2])], axis=2)
            coords[of_rectangle] = corners.reshape(-1, 2)
        return coords, offsets

    def _metadata(self, found: Match) -> tuple[Any, dict[str, Any]]:
        n = len(self.starts)
        ids: NDArray[np.object_] = np.full(n, None, object)
        columns: dict[str, NDArray[np.object_]] = {}
        for handles, values in zip(found.keys, found.values, strict=True):
            texts = self._texts(values)
            for handle in np.unique(handles[handles >= 0]).tolist():
                key = str(self._reader.lookup(handle))
                column = ids if key == ID_KEY else columns.setdefault(key, np.full(n, None, object))
                here = handles == handle
                column[here] = texts[here]
        missing = np.array([i is None for i in ids])
        if missing.any():
            ids[missing] = random_ids(int(missing.sum()))
        return ids, {k: v for k, v in columns.items() if any(t is not None for t in v)}

    def _measurements(self, found: Match, shared: Rows) -> dict[str, NDArray[np.float64]]:
        n, padded = len(self.starts), self._reader.padded
        result: dict[str, NDArray[np.float64]] = {}
        for handles, places in found.measurements:
            for handle in np.unique(handles[handles >= 0]).tolist():
                here = handles == handle
                column = result.setdefault(str(self._reader.lookup(handle)), np.full(n, np.nan))
                column[here] = numbers_at(padded, places[here], ">f8")
        for code, width in ((">f4", 4), (">f8", 8)):
            numeric = (found.names_handle >= 0) & (found.value_width == width)
            for handle in np.unique(found.names_handle[numeric]).tolist():
                here = numeric & (found.names_handle == handle)
                for k, name in enumerate(shared.measurement_names(self._reader.lookup(handle))):
                    full = here & (k < found.value_count)
                    column = result.setdefault(name, np.full(n, np.nan))
                    column[full] = numbers_at(padded, found.value_place[full] + width * k, code)
        return result

    def _by_handle(self, handles: Ints, decode_node: Any) -> NDArray[np.object_]:
        result: NDArray[np.object_] = np.full(len(handles), None, object)
        for handle in np.unique(handles[handles >= 0]).tolist():
            value = decode_node(self._reader.lookup(handle))
            result[handles == handle] = value
        return result

    def _texts(self, column: TextColumn) -> NDArray[np.object_]:
        result = self._by_handle(column.handle, str)
        inline = column.length >= 0
        if not inline.any():
            return result
        start, length = column.start[inline], column.length[inline]
        data = self._reader.data
        if (length == 36).all():
            raw = self._reader.padded[start[:, None] + np.arange(36)]
            if raw.max() < 128 and raw.min() > 0:
                result[inline] = raw.view("S36").reshape(-1).astype("U36").astype(object)
                return result
        pairs = zip(start.tolist(), (start + length).tolist(), strict=True)
        result[inline] = [decode(data[a:b]) for a, b in pairs]
        return result

    def write(self, writer: Any) -> None:
        """Write the kept objects: bytes, with new handles; nodes where something must be defined first.

        Parameters
        ----------
        writer
            A `CarryingWriter`.
        """
        kept = np.flatnonzero(self._kept)
        if not len(kept):
            return
        found = self._match()
        owner, place = found.references(self._kept)
        raw = self._reader.padded[place[:, None] + np.arange(4)].view(">u4").reshape(-1)
        target = raw.astype(np.int64) - BASE_HANDLE
        inside = (target >= self.bases[0]) & (target < self.end_handle)
        holder = np.searchsorted(self.bases, target, "right") - 1
        settled = inside & self._kept[np.clip(holder, 0, None)] & (holder <= owner)
        open_refs = np.flatnonzero(~settled & (writer.moved[target] < 0))
        singles = np.zeros(len(self.starts), bool)
        singles[owner[open_refs[np.unique(target[open_refs], return_index=True)[1]]]] = True
        edges = np.flatnonzero(np.diff(singles[kept].astype(np.int8))) + 1
        for piece in np.split(kept, edges):
            if singles[piece[0]]:
                for index in piece.tolist():
                    writer.contents([self._reader.unpack(self, index)])
                continue
            first, last = np.searchsorted(owner, [piece[0], piece[-1] + 1])
            chosen = slice(int(first), int(last))
            self._write_bytes(writer, piece, found.new, owner[chosen], place[chosen], target[chosen])
        writer.flush()

    def _write_bytes(self, writer: Any, piece: Ints, new: Ints, owner: Ints, place: Ints, target: Ints) -> None:
        counts = new[piece]
        old, _ = _ragged(self.bases[piece], counts)
        writer.moved[old] = writer.next_handle + np.arange(len(old))
        writer.next_handle += len(old)
        lengths = self.stops[piece] - self.starts[piece]
        if piece[-1] - piece[0] + 1 == len(piece):
            out = self._reader.padded[self.starts[piece[0]] : self.stops[piece[-1]]].copy()
        else:
            out = self._reader.padded[_ragged(self.starts[piece], lengths)[0]]
        shift = np.zeros(len(self.starts), np.int64)
        shift[piece] = np.cumsum(lengths) - lengths - self.starts[piece]
        handles = writer.moved[target]
        if (handles < 0).any():
            raise StreamError("a run of objects refers to something that was not written")
        out[(place + shift[owner])[:, None] + np.arange(4)] = (
            (BASE_HANDLE + handles).astype(">u4").view(np.uint8).reshape(-1, 4)
        )
        writer.out += out.tobytes()


def _cumulative(counts: NDArray[Any]) -> Ints:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _ragged(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Positions of all elements of ragged rows, and where each row begins among them."""
    ends = np.cumsum(lengths)
    begin = ends - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - begin, lengths), begin
