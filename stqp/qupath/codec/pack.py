"""Writing many new objects at once: the bytes that objects of one layout share, with their columns put in."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import is_not
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.qupath.codec.build import Plan
from stqp.qupath.codec.layout import DEFAULT_LIST, FLOAT_LIST, ID_KEY, KIND_CLASSES, MEASUREMENT, METADATA, POLYGON
from stqp.qupath.codec.ragged import Ints, cumulative
from stqp.qupath.codec.records import Layout, Packed, Part, Rings
from stqp.qupath.java.nodes import ARRAY, BLOCK, END_BLOCK, NULL_TAG, OBJECT, REFERENCE
from stqp.qupath.objects import Mask, ObjectKind, RoiKind

_NULL, _OBJECT, _ARRAY, _END, _REFERENCE = (bytes([tag]) for tag in (NULL_TAG, OBJECT, ARRAY, END_BLOCK, REFERENCE))


class Fresh:
    """New objects without children, as an item in their parent's contents."""

    def __init__(self, plan: Plan, indices: Ints):
        self.plan = plan
        self.indices = indices

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.indices)

    def write(self, writer: Any) -> None:
        """Write them."""
        from stqp.qupath.codec.carry import write_objects

        write_objects(writer, None, None, self.plan, self.indices, self._singly())

    def _singly(self) -> Mask:
        return unpackable(self.plan, self.indices)


def unpackable(plan: Plan, index: Ints) -> Mask:
    """Objects that are written one by one: those with a shape or colour that only few have."""
    o = plan.objects
    offsets = o.polygons.geom_offsets
    result: Mask = (o.roi_kind[index] == RoiKind.RECTANGLE) | (o.roi_kind[index] == RoiKind.ELLIPSE)
    result |= (offsets[index + 1] - offsets[index] != 1) | (o.colors[index] >= 0)
    result |= o.kind[index] == ObjectKind.TMA_CORE
    if o.lines is not None:
        result |= o.lines.geom_offsets[index + 1] > o.lines.geom_offsets[index]
    if o.nuclei is not None:
        offsets = o.nuclei.geom_offsets
        result |= plan.has_nucleus[index] & (offsets[index + 1] - offsets[index] != 1)
    return result


class Packer:
    """Writes objects of a plan to one stream.

    Parameters
    ----------
    plan
        What is to be written.
    reference
        Bytes that refer to a node that is already written.
    """

    def __init__(self, plan: Plan, reference: Callable[[Any], bytes]):
        self.plan, self.reference = plan, reference
        self._present = {key: np.array([t is not None for t in texts]) for key, (_, texts) in plan.shared.items()}
        self._seen: dict[Any, Mask] = {}
        self._handles: dict[Any, NDArray[np.uint32]] = {}

    def definers(self, index: Ints, packed: Mask) -> Mask:
        """First users of something that others refer to; they are to be written as nodes, and count as written."""
        plan, o = self.plan, self.plan.objects
        chosen = np.flatnonzero(packed)
        result = np.zeros(len(index), bool)
        i = index[chosen]
        kinds = o.kind[i].astype(np.int64)
        columns: list[tuple[Any, Ints, int]] = [
            ("kind", kinds, len(ObjectKind)),
            ("locked", o.locked[i].astype(np.int64), 2),
            ("class", plan.class_codes[i], len(plan.class_texts)),
            ("nucleus", plan.has_nucleus[i].astype(np.int64), 2),
            ("pattern", plan.pattern_codes[i] * 2 + (kinds == ObjectKind.ANNOTATION), 2 * len(plan.patterns)),
        ]
        columns += [(("shared", key), codes[i], len(texts)) for key, (codes, texts) in plan.shared.items()]
        columns += [(("own", key), _present(column[i]).astype(np.int64), 2) for key, column in plan.own.items()]
        for name, codes, number in columns:
            seen = self._seen.setdefault(name, np.zeros(number, bool))
            unseen = np.flatnonzero(~seen[codes])
            if len(unseen):
                new, first = np.unique(codes[unseen], return_index=True)
                result[chosen[unseen[first]]] = True
                seen[new] = True
        return result

    def pack(self, index: Ints) -> Packed:
        """Work out the layout of objects; all that they refer to is already written."""
        plan, o = self.plan, self.plan.objects
        kinds = o.kind[index]
        key = (kinds == ObjectKind.CELL) * np.int64(1) + 2 * plan.has_nucleus[index]
        key += 4 * (kinds == ObjectKind.ANNOTATION)
        digits = [_present(o.names[index]), plan.class_codes[index] != _position(plan.class_texts, None)]
        digits += [self._present[name][codes[index]] for name, (codes, _) in plan.shared.items()]
        digits += [_present(column[index]) for column in plan.own.values()]
        digits.append(plan.pattern_codes[index])
        for digit in digits:
            radix = int(digit.max(initial=0)) + 1
            if radix > 1:
                key = key * radix + digit
                if int(key.max()) > 1 << 40:
                    key = np.unique(key, return_inverse=True)[1].astype(np.int64)
        result = Packed(len(index))
        outlines = Rings(o.polygons, index)
        nucleus = plan.has_nucleus[index]
        nuclei = None
        if o.nuclei is not None and nucleus.any():
            place = cumulative(nucleus)[:-1]
            nuclei = Rings(o.nuclei, index[nucleus])
        if int(key.min()) == int(key.max()):
            groups = [np.arange(len(index))]
        else:
            order = np.argsort(key, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
        for where in groups:
            layout = Layout(where)
            ring = None
            if nuclei is not None and nucleus[where[0]]:
                ring = nuclei.take(place[where])
            self._describe(layout, index[where], outlines.take(where), ring)
            result.add(layout)
        return result

    def _describe(self, layout: Layout, i: Ints, outline: Part, nucleus: Part | None) -> None:
        """Say what objects of one layout look like."""
        plan, o, v, ref = self.plan, self.plan.objects, self.plan.vocabulary, self.reference
        first = int(i[0])
        layout.same(_OBJECT + _REFERENCE)
        kind_nodes = [lambda k=k: v.desc(KIND_CLASSES[ObjectKind(k)]) for k in range(len(ObjectKind))]
        layout.slot(self._table("kind", kind_nodes, o.kind[i]))
        if o.names[first] is None:
            layout.same(_NULL)
        else:
            layout.texts(o.names[i].tolist())
        layout.same(_NULL + _OBJECT + ref(v.desc(METADATA)) + ref(v.one))
        self._metadata(layout, i)
        self._measurements(layout, i)
        layout.same(bytes((BLOCK, 4, 0, 0, 0, 0)) + _REFERENCE)
        locked_nodes = [lambda b=b: v.boolean(b) for b in (False, True)]
        layout.slot(self._table("locked", locked_nodes, o.locked[i].astype(np.int64)))
        if o.classes[first] is None:
            layout.same(_NULL)
        else:
            layout.same(_REFERENCE)
            class_nodes = [lambda t=t: v.path_class(t, o.class_colors) for t in plan.class_texts]
            layout.slot(self._table("class", class_nodes, plan.class_codes[i]))
        self._roi(layout, i, outline)
        layout.same(bytes((BLOCK, 8)))
        layout.slot(o.probability[i].astype(">f8"))
        if o.kind[first] == ObjectKind.CELL:
            if nucleus is None:
                layout.same(_NULL)
            else:
                self._roi(layout, i, nucleus)
        layout.same(_END)
        # the object, its metadata, keys and values; the rest was counted where it was written
        layout.handles += 4

    def _table(self, name: Any, nodes: Sequence[Callable[[], Any]], codes: NDArray[Any]) -> NDArray[Any]:
        """Handles of the nodes that the codes mean."""
        table = self._handles.setdefault(name, np.zeros(len(nodes), np.uint32))
        used = np.bincount(codes, minlength=len(nodes)) > 0
        for code in np.flatnonzero(used & (table == 0)).tolist():
            table[code] = struct.unpack(">xI", self.reference(nodes[code]()))[0]
        return table.astype(">u4")[codes]

    def _metadata(self, layout: Layout, i: Ints) -> None:
        plan, v, ref = self.plan, self.plan.vocabulary, self.reference
        first = int(i[0])
        shared = {key: part for key, part in plan.shared.items() if part[1][part[0][first]] is not None}
        own = {key: column for key, column in plan.own.items() if column[first] is not None}
        head = _ARRAY + ref(v.desc("[Ljava.lang.Object;")) + struct.pack(">i", len(shared) + len(own) + 1)
        layout.same(head + b"".join(ref(v.text(key)) for key in (*shared, *own, ID_KEY)) + head)
        for key, (codes, texts) in shared.items():
            layout.same(_REFERENCE)
            text_nodes = [lambda t=t: v.text(t) for t in texts]
            layout.slot(self._table(("shared", key), text_nodes, codes[i]))
        for column in own.values():
            layout.texts(column[i].tolist())
        layout.texts(plan.objects.ids[i].tolist())
        layout.same(_END)

    def _measurements(self, layout: Layout, i: Ints) -> None:
        plan, o, v, ref = self.plan, self.plan.objects, self.plan.vocabulary, self.reference
        chosen = [plan.measurement_names[k] for k in plan.patterns[plan.pattern_codes[i[0]]]]
        columns = [o.measurements[name] for name in chosen]
        size = struct.pack(">i", len(chosen))
        if not chosen:
            layout.same(_NULL)
        elif o.kind[i[0]] == ObjectKind.ANNOTATION:
            layout.same(_OBJECT + ref(v.desc(DEFAULT_LIST)) + _OBJECT + ref(v.desc("java.util.ArrayList")))
            layout.same(size + bytes((BLOCK, 4)) + size)
            head = _OBJECT + ref(v.desc(MEASUREMENT))
            for name, column in zip(chosen, columns, strict=True):
                layout.same(head)
                layout.slot(column[i].astype(">f8"))
                layout.same(ref(v.text(name)))
            layout.same(_END)
            layout.handles += 2 + len(chosen)
        else:
            index_map, names = v.names(tuple(chosen))
            layout.same(_OBJECT + ref(v.desc(FLOAT_LIST)) + b"\x01" + ref(index_map) + ref(names))
            layout.same(_ARRAY + ref(v.desc("[F")) + size)
            for column in columns:
                layout.slot(column[i].astype(">f4"))
            layout.handles += 2

    def _roi(self, layout: Layout, i: Ints, ring: Part) -> None:
        v, ref = self.plan.vocabulary, self.reference
        floats = _ARRAY + ref(v.desc("[F"))
        layout.same(_OBJECT + ref(v.desc(POLYGON)))
        layout.slot(self.plan.objects.plane[i][:, (0, 2, 1)].astype(">i4"))
        layout.same(_NULL + _NULL)
        for flat in (ring.x, ring.y):
            layout.same(floats)
            layout.slot(ring.counts.astype(">i4"))
            layout.tail(flat, ring.starts, ring.counts, 4)
        layout.handles += 3


def _present(column: NDArray[np.object_]) -> Mask:
    """Where there is a text."""
    return np.fromiter(map(is_not, column.tolist(), repeat(None)), bool, len(column))


def _position(texts: Sequence[str | None], text: str | None) -> int:
    return texts.index(text) if text in texts else -1
