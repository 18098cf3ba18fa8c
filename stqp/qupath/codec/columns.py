"""From runs of objects and single ones to the columns of all, filled in place and block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.codec.decode import Rows
from stqp.qupath.codec.layout import ID_KEY
from stqp.qupath.codec.ragged import Bytes, Ints, by_length, copy_rows, cumulative, numbers, windows
from stqp.qupath.codec.runs import Run, RunReader
from stqp.qupath.codec.shapes import Ring, Shape, Slot, TextSlot, column
from stqp.qupath.java.nodes import BASE_HANDLE, decode
from stqp.qupath.objects import Objects, PathObjects, RoiKind, random_ids

_BLOCK = 1 << 14


class Group:
    """Objects of one shape: where their parts are in the file.

    Parameters
    ----------
    shape
        Theirs.
    starts : (n,)
        First bytes.
    rows : (n,)
        Their places among all objects.
    whole
        Whether the segments are needed, not only the places after them.
    """

    def __init__(self, reader: RunReader, shape: Shape, starts: Ints, rows: Ints, whole: bool):
        self.reader, self.data, self.shape, self.rows = reader, reader.bytes, shape, rows
        self.segments: list[Bytes] = []
        if whole:
            self.places, self.counts, self.segments = shape.rows(self.data, starts)
        else:
            self.places, self.counts = shape.positions(self.data, starts)

    def numbers(self, slot: Slot, code: str, ahead: int = 0) -> NDArray[Any]:
        """Numbers at a slot."""
        return column(self.segments[slot.segment], slot.offset + ahead, code)

    def after(self, segment: int) -> Ints:
        """Where the stretch after a segment begins."""
        return self.places[segment] + len(self.shape.segments[segment].template)

    def by_handle(self, slot: Slot, decode_node: Callable[[Any], Any]) -> Objects:
        """Values of the nodes that a slot refers to."""
        handles, codes = np.unique(self.numbers(slot, ">u4"), return_inverse=True)
        values = np.empty(len(handles), object)
        values[:] = [decode_node(self.reader.lookup(int(h) - BASE_HANDLE)) for h in handles]
        return values[codes]

    def texts(self, text: TextSlot) -> Any:
        """Texts, or None when there are none."""
        if text.slot is None:
            return None
        if text.reference:
            return self.by_handle(text.slot, str)
        n = len(self.rows)
        if text.length >= 0:
            offset = text.slot.offset
            edges = list(range(0, text.length * n + 1, text.length))
            raw = self.segments[text.slot.segment][:, offset : offset + text.length].tobytes()
        else:
            starts, lengths = self.after(text.slot.segment), self.counts[text.slot.segment]
            offsets = cumulative(lengths)
            flat = np.empty(int(offsets[-1]), np.uint8)
            copy_rows(flat, offsets[:-1], self.data, starts, lengths)
            edges, raw = offsets.tolist(), flat.tobytes()
        result = np.empty(n, object)
        if raw.isascii():
            whole = raw.decode()
            result[:] = [whole[a:b] for a, b in pairwise(edges)]
        else:
            result[:] = [decode(raw[a:b]) for a, b in pairwise(edges)]
        return result

    def vertices(self, ring: Ring | None) -> Ints:
        """Vertices of each polygon, without a repeated last one."""
        if ring is None:
            return np.zeros(len(self.rows), np.int64)
        counts = self.counts[ring.x]
        long = np.flatnonzero(counts > 1)
        closed = np.ones(len(long), bool)
        for segment in (ring.x, ring.y):
            first = self.after(segment)[long]
            closed &= numbers(self.data, first, ">f4") == numbers(self.data, first + 4 * (counts[long] - 1), ">f4")
        if not closed.any():
            return counts
        counts = counts.copy()
        counts[long[closed]] -= 1
        return counts

    def coordinates(self, ring: Ring, out: NDArray[np.float64], offsets: Ints, counts: Ints) -> None:
        """Write x and y of each polygon from its place among all vertices on."""
        starts = [self.after(segment) for segment in (ring.x, ring.y)]
        for n, where in by_length(counts):
            raw = [windows(self.data, 4 * n)[first[where]].view(">f4").reshape(-1, n) for first in starts]
            vertices = np.empty((len(raw[0]), n, 2))
            with np.errstate(invalid="ignore"):  # not every NaN of a damaged file is a quiet one
                vertices[:, :, 0], vertices[:, :, 1] = raw
            windows(out, 16 * n, 16)[offsets[where]] = vertices.reshape(-1).view(f"V{16 * n}")


class _Rings:
    """Polygons of all objects, whose numbers of rings and vertices are found before their places."""

    def __init__(self, n: int):
        self.rings = np.zeros(n, np.int64)
        self.vertices = np.zeros(n, np.int64)

    def settle(self) -> None:
        """Lay out what was counted."""
        self.geom_offsets, self.offsets = cumulative(self.rings), cumulative(self.vertices)
        self.coords = np.empty((int(self.offsets[-1]), 2))
        single = self.rings == 1
        self.ring_sizes = np.zeros(int(self.geom_offsets[-1]), np.int64)
        self.ring_sizes[self.geom_offsets[:-1][single]] = self.vertices[single]

    def put(self, rows: Ints, polygons: Polygons) -> None:
        """Copy polygons to the places of their objects."""
        starts = polygons.ring_offsets[polygons.geom_offsets]
        sizes = np.ascontiguousarray(np.diff(polygons.ring_offsets))
        rings = np.diff(polygons.geom_offsets)
        copy_rows(self.ring_sizes, self.geom_offsets[rows], sizes, polygons.geom_offsets[:-1], rings, 8)
        coords = np.ascontiguousarray(polygons.coords)
        copy_rows(self.coords, self.offsets[rows], coords, starts[:-1], np.diff(starts), 16)

    def count(self, rows: Ints, polygons: Polygons) -> None:
        """Count the rings and vertices of polygons."""
        self.rings[rows] = np.diff(polygons.geom_offsets)
        self.vertices[rows] = np.diff(polygons.ring_offsets[polygons.geom_offsets])

    def polygons(self) -> Polygons:
        """All of them."""
        return Polygons(self.coords, cumulative(self.ring_sizes), self.geom_offsets)


class Assembly:
    """All objects of a file: those in runs, and single ones.

    Parameters
    ----------
    runs : list of (Run, position, parent)
        Positions of the first object of each run and of the parent.
    singles
        The others, and what is known of classes.
    places : (len(singles),)
        Their positions.
    """

    def __init__(self, runs: list[tuple[Run, int, int]], singles: Rows, places: list[int]):
        self.singles, self.places = singles, np.array(places, np.int64)
        self.n = len(places) + sum(len(run.starts) for run, _, _ in runs)
        self.reader = runs[0][0].reader if runs else None
        self.starts = np.concatenate([np.empty(0, np.int64), *(run.starts for run, _, _ in runs)])
        self.codes = np.concatenate([np.empty(0, np.int16), *(run.codes for run, _, _ in runs)])
        rows = [np.arange(at, at + len(run.starts)) for run, at, _ in runs]
        self.rows = np.concatenate([np.empty(0, np.int64), *rows])
        self.parent = np.full(self.n, -1, np.int64)
        for run, at, parent in runs:
            self.parent[at : at + len(run.starts)] = parent

    def groups(self, whole: bool) -> Iterator[Group]:
        """Objects in runs, by block and shape, with their segments or without."""
        reader = self.reader
        for first in range(0, len(self.starts), _BLOCK):
            block = slice(first, first + _BLOCK)
            codes = self.codes[block]
            for code in np.flatnonzero(np.bincount(codes)).tolist():
                where = np.flatnonzero(codes == code)
                assert reader is not None
                starts, rows = self.starts[block][where], self.rows[block][where]
                yield Group(reader, reader.shapes[code], starts, rows, whole)

    def ids(self) -> Objects:
        """Ids of all objects, None where one has none."""
        ids: Objects = np.full(self.n, None, object)
        ids[self.places] = self.singles.finish().ids
        for group in self.groups(True):
            self._ids(group, ids)
        return ids

    def objects(self) -> PathObjects:
        """Make the columns."""
        n, singles, places = self.n, self.singles.finish(), self.places
        outlines, nuclei, sizes = _Rings(n), _Rings(n), []
        for group in self.groups(False):
            ring, rows = group.shape.outline, group.rows
            counts = group.vertices(ring) if ring is not None else np.full(len(rows), 4)
            inner = group.vertices(group.shape.nucleus)
            outlines.rings[rows], outlines.vertices[rows] = 1, counts
            if group.shape.nucleus is not None:
                nuclei.rings[rows], nuclei.vertices[rows] = inner > 0, inner
            sizes.append((counts, inner))
        outlines.count(places, singles.polygons)
        if singles.nuclei is not None:
            nuclei.count(places, singles.nuclei)
        outlines.settle()
        nuclei.settle()
        outlines.put(places, singles.polygons)
        if singles.nuclei is not None:
            nuclei.put(places, singles.nuclei)
        lines = None
        if singles.lines is not None:
            all_lines = _Rings(n)
            all_lines.count(places, singles.lines)
            all_lines.settle()
            all_lines.put(places, singles.lines)
            lines = all_lines.polygons()

        def full(values: NDArray[Any] | None, fill: Any, dtype: Any, width: tuple[int, ...] = ()) -> NDArray[Any]:
            column = np.full((n, *width), fill, dtype)
            if values is not None:
                column[places] = values
            return column

        self.parent[places] = singles.parent
        result = PathObjects(
            kind=full(singles.kind, 0, np.uint8),
            polygons=Polygons.empty(n),
            ids=full(singles.ids, None, object),
            names=full(singles.names, None, object),
            classes=full(singles.classes, None, object),
            probability=full(singles.probability, np.nan, np.float64),
            locked=full(singles.locked, False, bool),
            parent=self.parent,
            roi_kind=full(singles.roi_kind, int(RoiKind.POLYGON), np.uint8),
            plane=full(singles.plane, 0, np.int32, (3,)),
            colors=full(singles.colors, -1, np.int64),
            lines=lines,
            missing=None if singles.missing is None else full(singles.missing, False, bool),
            metadata={key: full(texts, None, object) for key, texts in singles.metadata.items()},
            measurements={name: full(values, np.nan, np.float64) for name, values in singles.measurements.items()},
        )
        lost = False
        for group, (counts, inner) in zip(self.groups(True), sizes, strict=True):
            self._fill(group, result)
            lost |= not self._ids(group, result.ids)
            rows = group.rows
            if group.shape.outline is not None:
                group.coordinates(group.shape.outline, outlines.coords, outlines.offsets[rows], counts)
            elif group.shape.box is not None:
                box = [group.numbers(group.shape.box, ">f8", 8 + 8 * k).astype(np.float64) for k in range(4)]
                corners = _corners(*box)
                windows(outlines.coords, 64, 16)[outlines.offsets[rows]] = corners.reshape(-1).view("V64")
            if group.shape.nucleus is not None:
                group.coordinates(group.shape.nucleus, nuclei.coords, nuclei.offsets[rows], inner)
        result.polygons = outlines.polygons()
        result.nuclei = nuclei.polygons() if singles.nuclei is not None or nuclei.rings.any() else None
        if lost:
            missing = np.flatnonzero([i is None for i in result.ids.tolist()])
            result.ids[missing] = random_ids(len(missing))
        result.class_colors = dict(self.singles.colors)
        return result

    def _ids(self, group: Group, ids: Objects) -> bool:
        """Fill in the ids of objects; whether they have any."""
        found = False
        for handle, text in group.shape.values:
            if str(group.reader.lookup(handle)) == ID_KEY and text.slot is not None:
                ids[group.rows] = group.texts(text)
                found = True
        return found

    def _fill(self, group: Group, result: PathObjects) -> None:
        shape, rows, shared, n = group.shape, group.rows, self.singles, self.n
        result.kind[rows] = shape.kind
        if shape.name.slot is not None:
            result.names[rows] = group.texts(shape.name)
        if shape.path_class is not None:
            result.classes[rows] = group.by_handle(shape.path_class, shared.path_class)
        result.locked[rows] = group.by_handle(shape.locked, lambda node: bool(node.get("value"))).astype(bool)
        result.probability[rows] = group.numbers(shape.probability, ">f8")
        if shape.box is not None:
            result.roi_kind[rows] = RoiKind.RECTANGLE
        plane = shape.box if shape.outline is None else shape.outline.plane
        if plane is not None:
            for k, ahead in enumerate((0, 8 if shape.box is None else 40, 4)):
                result.plane[rows, k] = group.numbers(plane, ">i4", ahead)
        for handle, text in shape.values:
            key = str(group.reader.lookup(handle))
            if key != ID_KEY and text.slot is not None:
                if key not in result.metadata:
                    self._check(result)
                    result.metadata[key] = np.full(n, None, object)
                result.metadata[key][rows] = group.texts(text)
        values: list[tuple[str, NDArray[Any]]] = []
        if shape.names >= 0:
            names = shared.measurement_names(group.reader.lookup(shape.names))
            code = ">f4" if shape.width == 4 else ">f8"
            for k, name in enumerate(names[: shape.count]):
                values.append((name, group.numbers(shape.numbers, code, shape.width * k)))
        for handle, slot in shape.measurements:
            values.append((str(group.reader.lookup(handle)), group.numbers(slot, ">f8")))
        for name, numeric in values:
            if name not in result.measurements:
                self._check(result)
                result.measurements[name] = np.full(n, np.nan)
            result.measurements[name][rows] = numeric

    def _check(self, result: PathObjects) -> None:
        """Refuse one column more when they would be too many for the file."""
        self.singles.budget.columns(self.n, 1 + len(result.metadata) + len(result.measurements))


def _corners(x: Any, x2: Any, y: Any, y2: Any) -> NDArray[np.float64]:
    x, x2, y, y2 = np.minimum(x, x2), np.maximum(x, x2), np.minimum(y, y2), np.maximum(y, y2)
    return np.ascontiguousarray(np.stack([np.column_stack([x, x2, x2, x]), np.column_stack([y, y, y2, y2])], axis=2))
