"""From nodes to the bytes of a Java object stream."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stqp.qupath.java.nodes import (
    ARRAY,
    BASE_HANDLE,
    BLOCK,
    BLOCK_LONG,
    CLASS,
    CLASS_DESC,
    END_BLOCK,
    ENUM,
    LONG_STRING,
    MAGIC,
    NULL,
    NULL_TAG,
    OBJECT,
    PROXY_DESC,
    REFERENCE,
    RESET,
    SIZES,
    STRING,
    Array,
    Block,
    ClassDesc,
    ClassNode,
    EnumNode,
    Instance,
    Node,
    ProxyDesc,
    Reset,
    StreamError,
    Text,
    encode,
)

_REFERENCE = struct.Struct(">BI")


class Writer:
    """Writes nodes to a stream, with handles of its own.

    Parameters
    ----------
    sink
        Takes the bytes, in pieces.
    refuse
        Is asked before an object is written; may raise.
    """

    def __init__(self, sink: Callable[[Any], Any], refuse: Callable[[Node], None] | None = None):
        self._sink = sink
        self._refuse = refuse
        self.out = bytearray()
        self.handles: dict[Any, int] = {}
        self.next_handle = 0

    def write(self, items: Iterable[Any]) -> None:
        """Write a whole stream."""
        self.out += MAGIC
        self.contents(items)
        self.flush(0)

    def flush(self, above: int = 1 << 22) -> None:
        """Hand over what is written, when it is more than `above` bytes."""
        if len(self.out) > above:
            self._sink(bytes(self.out))
            self.out.clear()

    def raw(self, data: Any) -> None:
        """Hand over bytes that come after all that is written, which are not copied."""
        self.flush(0)
        self._sink(memoryview(data))

    def apart(self, node: Node) -> bytes:
        """Bytes of a node, with the next handles, which are not handed over."""
        pieces: list[bytes] = []
        out, sink = self.out, self._sink
        self.out, self._sink = bytearray(), pieces.append
        try:
            self.contents([node])
            return b"".join(pieces) + bytes(self.out)
        finally:
            self.out, self._sink = out, sink

    def placed(self, node: Node) -> int:
        """Handle of a node that is already written, or -1."""
        return self.handles.get(node, -1)

    def reference(self, node: Node) -> bytes:
        """Bytes that refer to a node that is already written."""
        handle = self.placed(node)
        if handle < 0:
            raise StreamError("a node is referred to before it is written")
        return _REFERENCE.pack(REFERENCE, BASE_HANDLE + handle)

    def number(self, node: Node) -> None:
        """Give a node the next handle."""
        self.handles[node] = self.next_handle
        self.next_handle += 1

    def reset(self) -> None:
        """Forget all handles."""
        self.handles.clear()
        self.next_handle = 0

    def contents(self, items: Iterable[Any]) -> None:
        """Write items; externalizable objects within each other take no recursion."""
        stack: list[Iterator[Any]] = [iter(items)]
        while stack:
            for item in stack[-1]:
                if isinstance(item, Instance) and item.desc.external and self.placed(item) < 0:
                    self._begin_object(item)
                    stack.append(iter(item.data))
                    break
                self.item(item)
            else:
                stack.pop()
                if stack:
                    self.out.append(END_BLOCK)
            self.flush()

    def item(self, node: Any) -> None:
        """Write one item."""
        out = self.out
        if isinstance(node, Node) and (handle := self.placed(node)) >= 0:
            out += _REFERENCE.pack(REFERENCE, BASE_HANDLE + handle)
        elif node is NULL or node is None:
            out.append(NULL_TAG)
        elif isinstance(node, Text):
            self.number(node)
            if node.long:
                out += struct.pack(">BQ", LONG_STRING, len(node.raw)) + node.raw
            else:
                out += struct.pack(">BH", STRING, len(node.raw)) + node.raw
        elif isinstance(node, Instance):
            if node.desc.external:
                self.contents([node])
                return
            self._begin_object(node)
            for primitives, others, extra in node.data:
                out += primitives
                for other in others:
                    self.item(other)
                if extra is not None:
                    self.contents(extra)
                    out.append(END_BLOCK)
        elif isinstance(node, Array):
            out.append(ARRAY)
            self.item(node.desc)
            self.number(node)
            if isinstance(node.data, list):
                out += struct.pack(">i", len(node.data))
                for value in node.data:
                    self.item(value)
            else:
                out += struct.pack(">i", len(node.data) // SIZES[node.desc.name[1]]) + node.data
        elif isinstance(node, Block):
            size = len(node.data)
            out += struct.pack(">Bi", BLOCK_LONG, size) if node.long else bytes((BLOCK, size))
            out += node.data
        elif isinstance(node, (ClassDesc, ProxyDesc)):
            self._desc(node)
        elif isinstance(node, EnumNode):
            out.append(ENUM)
            self.item(node.desc)
            self.number(node)
            self.item(node.constant)
        elif isinstance(node, ClassNode):
            out.append(CLASS)
            self.item(node.desc)
            self.number(node)
        elif isinstance(node, Reset):
            out.append(RESET)
            self.reset()
        else:
            node.write(self)

    def _begin_object(self, node: Instance) -> None:
        if self._refuse is not None:
            self._refuse(node)
        self.out.append(OBJECT)
        self.item(node.desc)
        self.number(node)

    def _desc(self, desc: ClassDesc | ProxyDesc) -> None:
        out = self.out
        if isinstance(desc, ProxyDesc):
            out.append(PROXY_DESC)
            self.number(desc)
            out += struct.pack(">i", len(desc.names))
            for raw in desc.names:
                out += struct.pack(">H", len(raw)) + raw
        else:
            name = encode(desc.name)
            out += struct.pack(">BH", CLASS_DESC, len(name)) + name + desc.uid
            self.number(desc)
            out += struct.pack(">BH", desc.flags, len(desc.fields))
            for code, field, signature in desc.fields:
                raw = encode(field)
                out += code.encode() + struct.pack(">H", len(raw)) + raw
                if signature is not None:
                    self.item(signature)
        self.contents(desc.annotations)
        out.append(END_BLOCK)
        self.item(desc.parent)
