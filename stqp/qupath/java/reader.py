"""From the bytes of a Java object stream to nodes."""

from __future__ import annotations

import struct
from typing import Any

from stqp.qupath.java.nodes import (
    ARRAY,
    BASE_HANDLE,
    BLOCK,
    BLOCK_DATA,
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
    WRITE_METHOD,
    Array,
    Block,
    ClassDesc,
    ClassNode,
    EnumNode,
    Instance,
    ProxyDesc,
    Reset,
    StreamError,
    Text,
    decode,
)

_DEEPEST = 64
_u16 = struct.Struct(">H").unpack_from
_i32 = struct.Struct(">i").unpack_from
_u32 = struct.Struct(">I").unpack_from


class Reader:
    """Reads a stream into nodes.

    Parameters
    ----------
    data
        The whole stream.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.pos = 0
        self.table: dict[int, Any] = {}
        self.next_handle = 0
        self.first_handle = 0  # above 0 after a reset
        self.classes: dict[str, ClassDesc] = {}

    def read(self) -> list[Any]:
        """Read everything at the top level of the stream.

        Raises
        ------
        StreamError
            When the bytes end early or are no such stream.
        """
        if self.data[:4] != MAGIC:
            raise StreamError("it does not begin as a Java object stream does")
        self.pos = 4
        result: list[Any] = []
        try:
            while self.pos < len(self.data):
                result.append(self.content())
        except (IndexError, struct.error) as error:
            raise StreamError(f"it ends within an object, after {len(self.data)} bytes") from error
        except RecursionError as error:
            raise StreamError("its objects are nested too deeply") from error
        if self.pos != len(self.data):
            raise StreamError(f"it ends within an object, after {len(self.data)} bytes")
        return result

    def lookup(self, handle: int) -> Any:
        """Node of a handle."""
        try:
            return self.table[handle]
        except KeyError:
            raise StreamError(f"byte {self.pos} refers to an object that is not there") from None

    def content(self) -> Any:
        """Read one item."""
        data, pos = self.data, self.pos
        tag = data[pos]
        if tag == REFERENCE:
            self.pos = pos + 5
            return self.lookup(_u32(data, pos + 1)[0] - BASE_HANDLE + self.first_handle)
        if tag == STRING:
            stop = pos + 3 + _u16(data, pos + 1)[0]
            self.pos = stop
            return self._number(Text(data[pos + 3 : stop], False))
        if tag == NULL_TAG:
            self.pos = pos + 1
            return NULL
        if tag == OBJECT:
            node = self._begin_object()
            if node.desc.external:
                self._fill_external(node)
            return node
        if tag == ARRAY:
            return self._array()
        if tag == BLOCK:
            stop = pos + 2 + data[pos + 1]
            self.pos = stop
            return Block(data[pos + 2 : stop])
        if tag == BLOCK_LONG:
            stop = pos + 5 + self._count(pos + 1)
            self.pos = stop
            return Block(data[pos + 5 : stop], True)
        if tag == LONG_STRING:
            stop = pos + 9 + struct.unpack_from(">Q", data, pos + 1)[0]
            self.pos = stop
            return self._number(Text(data[pos + 9 : stop], True))
        if tag == ENUM:
            self.pos += 1
            node_enum = self._number(EnumNode(self._desc(), NULL))
            node_enum.constant = self.content()
            return node_enum
        if tag in (CLASS_DESC, PROXY_DESC):
            return self._desc()
        if tag == CLASS:
            self.pos += 1
            return self._number(ClassNode(self._desc()))
        if tag == RESET:
            self.pos += 1
            self.first_handle = self.next_handle
            return Reset()
        raise StreamError(f"byte {pos} is {tag:#04x}, which begins nothing known")

    def _number(self, node: Any) -> Any:
        node.handle = self.next_handle
        self.table[self.next_handle] = node
        self.next_handle += 1
        return node

    def _count(self, pos: int) -> int:
        count: int = _i32(self.data, pos)[0]
        if count < 0:
            raise StreamError(f"byte {pos} holds a negative length")
        return count

    def _utf(self) -> bytes:
        start = self.pos + 2
        self.pos = start + _u16(self.data, self.pos)[0]
        return self.data[start : self.pos]

    def _desc(self) -> Any:
        """Read a class description, a reference to one, or null (None)."""
        tag = self.data[self.pos]
        if tag == NULL_TAG:
            self.pos += 1
            return None
        if tag == REFERENCE:
            node = self.content()
            if not isinstance(node, (ClassDesc, ProxyDesc)):
                raise StreamError(f"byte {self.pos} refers to something that is no class")
            return node
        if tag == PROXY_DESC:
            self.pos += 1
            proxy = self._number(ProxyDesc([]))
            self.pos += 4
            proxy.names = [self._utf() for _ in range(self._count(self.pos - 4))]
            proxy.annotations = self._until_end()
            proxy.parent = self._desc()
            proxy.depth = 1
            return proxy
        if tag != CLASS_DESC:
            raise StreamError(f"byte {self.pos} is {tag:#04x}, where a class should be")
        self.pos += 1
        name = decode(self._utf())
        desc = ClassDesc(name, self.data[self.pos : self.pos + 8], 0, [], None)
        self.pos += 8
        self._number(desc)
        desc.flags = self.data[self.pos]
        n_fields = _u16(self.data, self.pos + 1)[0]
        self.pos += 3
        for _ in range(n_fields):
            code = chr(self.data[self.pos])
            self.pos += 1
            field = decode(self._utf())
            if code not in SIZES and code not in "[L":
                raise StreamError(f"byte {self.pos} gives {name} a field of the unknown type {code!r}")
            desc.fields.append((code, field, self.content() if code in "[L" else None))
        desc.annotations = self._until_end()
        parent = self._desc()
        desc.prepare()
        # one that is not read to its end, and so has no depth, descends from this one
        if parent is not None and not 0 < parent.depth < _DEEPEST:
            raise StreamError(f"byte {self.pos} makes {name} descend from itself, or from too many others")
        desc.depth = 1 if parent is None else parent.depth + 1
        desc.parent = parent
        self.classes.setdefault(name, desc)
        return desc

    def _until_end(self) -> list[Any]:
        result: list[Any] = []
        while self.data[self.pos] != END_BLOCK:
            result.append(self.content())
        self.pos += 1
        return result

    def _begin_object(self) -> Instance:
        """Read an object; of an externalizable one only the head."""
        self.pos += 1
        desc = self._desc()
        if not isinstance(desc, ClassDesc):
            raise StreamError(f"byte {self.pos} has an object without a plain class")
        node: Instance = self._number(Instance(desc, []))
        if desc.external:
            if not desc.flags & BLOCK_DATA:
                raise StreamError(f"{desc.name} is written in the protocol of Java 1.1")
            return node
        for part in desc.chain():
            start = self.pos
            self.pos += part.primitive_size
            others = [self.content() for code, _, _ in part.fields if code not in SIZES]
            extra = self._until_end() if part.flags & WRITE_METHOD else None
            primitives = self.data[start : start + part.primitive_size]
            node.data.append((primitives, others, extra))
        return node

    def _fill_external(self, node: Instance) -> None:
        """Read what an externalizable object wrote; such objects nest deeply, hence no recursion."""
        stack = [node]
        data = self.data
        while stack:
            contents = stack[-1].data
            tag = data[self.pos]
            if tag == END_BLOCK:
                self.pos += 1
                stack.pop()
            elif tag != OBJECT:
                contents.append(self.content())
            elif not self.take_run(contents):
                child = self._begin_object()
                contents.append(child)
                if child.desc.external:
                    stack.append(child)

    def take_run(self, contents: list[Any]) -> bool:
        """Read several objects at once, if a child class knows how; `contents` is their parent's."""
        return False

    def _array(self) -> Array:
        self.pos += 1
        desc = self._desc()
        if not isinstance(desc, ClassDesc) or len(desc.name) < 2:
            raise StreamError(f"byte {self.pos} has an array without a class")
        node: Array = self._number(Array(desc, b""))
        count = self._count(self.pos)
        self.pos += 4
        size = SIZES.get(desc.name[1])
        if size is None:
            node.data = [self.content() for _ in range(count)]
        else:
            start = self.pos
            self.pos += count * size
            node.data = data = self.data[start : self.pos]
            if len(data) != count * size:
                raise IndexError
        return node
