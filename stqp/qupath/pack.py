"""Writing many new objects at once: bytes of columns, interleaved."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.build import Plan
from stqp.qupath.javanodes import ARRAY, BLOCK, END_BLOCK, NULL_TAG, OBJECT, encode
from stqp.qupath.javawriter import Writer
from stqp.qupath.layout import DEFAULT_LIST, FLOAT_LIST, ID_KEY, KIND_CLASSES, MEASUREMENT, METADATA, POLYGON
from stqp.qupath.objects import ObjectKind, RoiKind

Bytes = NDArray[np.uint8]
Lengths = NDArray[np.int64]
_CHUNK = 8192
_NULL, _OBJECT, _ARRAY, _END = (bytes([tag]) for tag in (NULL_TAG, OBJECT, ARRAY, END_BLOCK))


class Columns:
    """Bytes of ``n`` records, built column by column.

    Parameters
    ----------
    n
        Number of records.
    """

    def __init__(self, n: int):
        self.n = n
        self._parts: list[tuple[Bytes, Lengths | int]] = []
        self._constant = b""
        self.handles = np.zeros(n, np.int64)

    def same(self, data: bytes) -> None:
        """Append the same bytes to every record."""
        self._constant += data

    def rows(self, rows: NDArray[Any], where: NDArray[np.bool_] | None = None) -> None:
        """Append one row of bytes to each record, or to those of a mask."""
        self._settle()
        raw = np.ascontiguousarray(rows)
        width = raw.dtype.itemsize * (raw.shape[1] if raw.ndim == 2 else 1)
        flat = raw.reshape(-1).view(np.uint8)
        self._parts.append((flat, width if where is None else where * np.int64(width)))

    def ragged(self, flat: Bytes, lengths: Lengths) -> None:
        """Append bytes of various lengths."""
        self._settle()
        self._parts.append((flat, lengths))

    def choice(self, options: Sequence[bytes], codes: NDArray[Any]) -> None:
        """Append to each record one of a few byte strings."""
        lengths = np.array([len(o) for o in options], np.int64)
        padded = np.zeros((len(options), max(int(lengths.max()), 1)), np.uint8)
        for row, option in zip(padded, options, strict=True):
            row[: len(option)] = np.frombuffer(option, np.uint8)
        filled = np.arange(padded.shape[1]) < lengths[:, None]
        self.ragged(padded[codes][filled[codes]], lengths[codes])

    def texts(self, texts: Sequence[str | None], absent: bytes) -> None:
        """Append a string to each record, which takes a handle; `absent` for None."""
        encoded = [absent if t is None else b"t" + struct.pack(">H", len(raw := encode(t))) + raw for t in texts]
        self.ragged(np.frombuffer(b"".join(encoded), np.uint8), np.array([len(e) for e in encoded], np.int64))
        self.handles += np.array([t is not None for t in texts])

    def _settle(self) -> None:
        if self._constant:
            constant, self._constant = self._constant, b""
            row = np.frombuffer(constant, np.uint8)
            self._parts.append((np.tile(row, self.n), len(row)))

    def join(self) -> bytes:
        """Bytes of all records."""
        self._settle()
        lengths = np.zeros(self.n, np.int64)
        for _, part_lengths in self._parts:
            lengths += part_lengths
        place = np.cumsum(lengths) - lengths
        out = np.empty(int(lengths.sum()), np.uint8)
        for flat, part_lengths in self._parts:
            if isinstance(part_lengths, int):
                out[place[:, None] + np.arange(part_lengths)] = flat.reshape(self.n, part_lengths)
            else:
                shift = place - (np.cumsum(part_lengths) - part_lengths)
                out[np.repeat(shift, part_lengths) + np.arange(len(flat))] = flat
            place = place + part_lengths
        return out.tobytes()


class Fresh:
    """New objects without children, as an item in their parent's contents."""

    def __init__(self, plan: Plan, indices: NDArray[np.int64]):
        self.plan = plan
        self.indices = indices

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.indices)

    def write(self, writer: Writer) -> None:
        """Write them: one by one what defines something that others refer to, the rest in columns."""
        singly = self._singly()
        edges = np.flatnonzero(np.diff(singly.astype(np.int8))) + 1
        for piece in np.split(self.indices, edges) if len(self) else []:
            if singly[np.searchsorted(self.indices, piece[0])]:
                writer.contents(self.plan.node(int(i), [], 0) for i in piece)
            else:
                for start in range(0, len(piece), _CHUNK):
                    self._pack(writer, piece[start : start + _CHUNK])
                    writer.flush()

    def _singly(self) -> NDArray[np.bool_]:
        plan, o, i = self.plan, self.plan.objects, self.indices
        singly = (o.roi_kind[i] == RoiKind.RECTANGLE) | (o.roi_kind[i] == RoiKind.ELLIPSE)
        singly |= (np.diff(o.polygons.geom_offsets)[i] != 1) | (o.colors[i] >= 0)
        if o.nuclei is not None:
            singly |= plan.has_nucleus[i] & (np.diff(o.nuclei.geom_offsets)[i] != 1)
        kinds = o.kind[i].astype(np.int64)
        columns = [kinds, o.locked[i], plan.class_codes[i], plan.has_nucleus[i]]
        columns += [codes[i] for codes, _ in plan.shared.values()]
        columns += [np.array([t is None for t in column[i]]) for column in plan.own.values()]
        columns.append(plan.pattern_codes[i] * 2 + (kinds == ObjectKind.ANNOTATION))
        rest = np.flatnonzero(~singly)
        for column in columns:
            singly[rest[np.unique(column[rest], return_index=True)[1]]] = True
        return singly

    def _pack(self, writer: Writer, i: NDArray[np.int64]) -> None:
        plan, o, v = self.plan, self.plan.objects, self.plan.vocabulary
        ref = writer.reference
        columns = Columns(len(i))
        columns.same(_OBJECT)
        kinds, used = o.kind[i], sorted({int(k) for k in o.kind[i]})
        options = [ref(v.desc(KIND_CLASSES[ObjectKind(k)])) if k in used else b"" for k in range(max(used) + 1)]
        columns.choice(options, kinds)
        columns.texts(o.names[i].tolist(), _NULL)
        columns.same(_NULL + _OBJECT + ref(v.desc(METADATA)) + ref(v.one))
        self._metadata(columns, ref, i)
        columns.same(_END)
        self._measurements(columns, ref, i)
        columns.same(bytes((BLOCK, 4, 0, 0, 0, 0)))
        locked = o.locked[i].astype(np.int64)
        options = [ref(v.boolean(b)) if (locked == b).any() else b"" for b in (False, True)]
        columns.choice(options, locked)
        options = []
        for code, text in enumerate(plan.class_texts):
            if text is None:
                options.append(_NULL)
            else:
                present = (plan.class_codes[i] == code).any()
                options.append(ref(v.path_class(text, o.class_colors)) if present else b"")
        columns.choice(options, plan.class_codes[i])
        everywhere = np.ones(len(i), bool)
        self._roi(columns, ref, o.polygons, i, everywhere)
        columns.same(bytes((BLOCK, 8)))
        columns.rows(o.probability[i].astype(">f8"))
        nucleus = plan.has_nucleus[i]
        if o.nuclei is not None and nucleus.any():
            self._roi(columns, ref, o.nuclei, i, nucleus)
        columns.choice([b"", _NULL], ((kinds == ObjectKind.CELL) & ~nucleus).astype(np.int64))
        columns.same(_END)
        # the object, its metadata, keys and values; the rest was counted where it was written
        columns.handles += 4
        writer.out += columns.join()
        writer.next_handle += int(columns.handles.sum())

    def _metadata(self, columns: Columns, ref: Any, i: NDArray[np.int64]) -> None:
        plan, v = self.plan, self.plan.vocabulary
        n = len(i)
        present: list[NDArray[np.bool_]] = []
        for codes, texts in plan.shared.values():
            missing = np.array([t is None for t in texts])
            present.append(~missing[codes[i]])
        present += [np.array([t is not None for t in column[i]]) for column in plan.own.values()]
        keys = [*plan.shared, *plan.own]
        count = np.sum(present, axis=0, dtype=np.int64) + 1 if present else np.ones(n, np.int64)
        head = _ARRAY + ref(v.desc("[Ljava.lang.Object;"))
        columns.same(head)
        columns.rows(count.astype(">i4"))
        for key, here in zip(keys, present, strict=True):
            columns.choice([b"", ref(v.text(key)) if here.any() else b""], here.astype(np.int64))
        columns.same(ref(v.text(ID_KEY)) + head)
        columns.rows(count.astype(">i4"))
        for codes, texts in plan.shared.values():
            here_codes = set(np.unique(codes[i]).tolist())
            options = [ref(v.text(t)) if t is not None and c in here_codes else b"" for c, t in enumerate(texts)]
            columns.choice(options, codes[i])
        for column in plan.own.values():
            columns.texts(column[i].tolist(), b"")
        columns.texts(plan.objects.ids[i].tolist(), b"")

    def _measurements(self, columns: Columns, ref: Any, i: NDArray[np.int64]) -> None:
        plan, o, v = self.plan, self.plan.objects, self.plan.vocabulary
        codes = plan.pattern_codes[i]
        annotation = o.kind[i] == ObjectKind.ANNOTATION
        for code in np.unique(codes).tolist():
            chosen = [plan.measurement_names[k] for k in plan.patterns[code]]
            for as_list in (True, False):
                where = (codes == code) & (annotation == as_list)
                if not where.any():
                    continue
                if not chosen:
                    columns.choice([b"", _NULL], where.astype(np.int64))
                    continue
                values = np.column_stack([o.measurements[name][i[where]] for name in chosen])
                if as_list:
                    size = struct.pack(">i", len(chosen))
                    head = _OBJECT + ref(v.desc(DEFAULT_LIST)) + _OBJECT + ref(v.desc("java.util.ArrayList"))
                    pieces: list[Any] = [head + size + bytes((BLOCK, 4)) + size]
                    for k, name in enumerate(chosen):
                        pieces += [_OBJECT + ref(v.desc(MEASUREMENT)), values[:, k].astype(">f8"), ref(v.text(name))]
                    pieces.append(_END)
                    columns.handles += where * (2 + len(chosen))
                else:
                    index_map, names = v.names(tuple(chosen))
                    head = _OBJECT + ref(v.desc(FLOAT_LIST)) + b"\x01" + ref(index_map) + ref(names)
                    head += _ARRAY + ref(v.desc("[F")) + struct.pack(">i", len(chosen))
                    pieces = [head, values.astype(">f4")]
                    columns.handles += where * 2
                columns.rows(_record(pieces, len(values)), where)

    def _roi(
        self, columns: Columns, ref: Any, polygons: Polygons, i: NDArray[np.int64], where: NDArray[np.bool_]
    ) -> None:
        plan, v = self.plan, self.plan.vocabulary
        chosen = i[where]
        counts = np.zeros(len(i), np.int64)
        part = polygons.take(chosen)
        counts[where] = np.diff(part.ring_offsets)
        floats = ref(v.desc("[F"))
        c, z, t = plan.objects.plane[chosen].T
        size = counts[where].astype(">i4")
        place = np.column_stack([c, t, z]).astype(">i4")
        head = [_OBJECT + ref(v.desc(POLYGON)), place, _NULL + _NULL + _ARRAY + floats, size]
        columns.rows(_record(head, len(chosen)), where)
        columns.ragged(np.ascontiguousarray(part.coords[:, 0].astype(">f4")).view(np.uint8), counts * 4)
        columns.rows(_record([_ARRAY + floats, size], len(chosen)), where)
        columns.ragged(np.ascontiguousarray(part.coords[:, 1].astype(">f4")).view(np.uint8), counts * 4)
        columns.handles += where * 3


def _record(pieces: Sequence[Any], n: int) -> Bytes:
    """Rows of bytes from constants and arrays of big-endian numbers."""
    parts = []
    for piece in pieces:
        if isinstance(piece, bytes):
            parts.append(np.tile(np.frombuffer(piece, np.uint8), (n, 1)))
        else:
            parts.append(np.ascontiguousarray(piece).reshape(n, -1).view(np.uint8))
    return np.hstack(parts)
