"""Java's object serialisation, protocol 2: bytes to a tree of nodes, and the tree to the same bytes.

A node that occurs twice in the stream is one Python object, so the writer numbers handles afresh and a
changed tree is again a valid stream. Written from the Java Object Serialization Specification, chapter 6.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

NULL_TAG, REFERENCE, CLASS_DESC, OBJECT, STRING, ARRAY, CLASS, BLOCK = range(0x70, 0x78)
END_BLOCK, RESET, BLOCK_LONG, EXCEPTION, LONG_STRING, PROXY_DESC, ENUM = range(0x78, 0x7F)
MAGIC = b"\xac\xed\x00\x05"
WRITE_METHOD, SERIALIZABLE, EXTERNALIZABLE, BLOCK_DATA, ENUM_FLAG = 1, 2, 4, 8, 16
BASE_HANDLE = 0x7E0000
_FORMATS = {"J": "q", "Z": "?", "B": "b", "C": "H", "I": "i", "S": "h", "F": "f", "D": "d"}
SIZES = {"B": 1, "C": 2, "D": 8, "F": 4, "I": 4, "J": 8, "S": 2, "Z": 1}

_u16 = struct.Struct(">H").unpack_from
_i32 = struct.Struct(">i").unpack_from
_REFERENCE = struct.Struct(">BI")
_unpack_reference = struct.Struct(">I").unpack_from


class StreamError(Exception):
    """The bytes are no such stream, or hold something that this module does not know."""


class Node:
    """Anything in the stream that has a handle; the handle is that of the stream it was read from, or -1."""

    __slots__ = ("handle",)

    def __init__(self) -> None:
        self.handle = -1


class Null:
    """Java's null."""

    __slots__ = ()


class Reset:
    """A point after which handles start anew."""

    __slots__ = ()


NULL = Null()


class Block:
    """Raw data between objects."""

    __slots__ = ("data", "long")

    def __init__(self, data: bytes, long: bool = False):
        self.data = data
        self.long = long


class Text(Node):
    """A string, in modified UTF-8."""

    __slots__ = ("long", "raw")

    def __init__(self, raw: bytes, long: bool | None = None):
        super().__init__()
        self.raw = raw
        self.long = len(raw) > 0xFFFF if long is None else long

    def __str__(self) -> str:
        """Its text."""
        return decode(self.raw)


class ClassDesc(Node):
    """The description of a class."""

    __slots__ = ("annotations", "fields", "flags", "name", "parent", "primitive_size", "uid")

    def __init__(
        self, name: str, uid: bytes, flags: int, fields: list[tuple[str, str, Any]], parent: ClassDesc | None
    ):
        super().__init__()
        self.name, self.uid, self.flags, self.parent = name, uid, flags, parent
        self.fields = fields
        self.annotations: list[Any] = []
        self.primitive_size = 0

    def prepare(self) -> None:
        """Work out the bytes of the primitive fields, which come first."""
        codes = [code for code, _, _ in self.fields]
        primitives = [code in SIZES for code in codes]
        if primitives != sorted(primitives, reverse=True):
            raise StreamError(f"the fields of {self.name} are not in Java's order")
        self.primitive_size = sum(SIZES.get(code, 0) for code in codes)

    @property
    def external(self) -> bool:
        """Whether its objects write themselves."""
        return bool(self.flags & EXTERNALIZABLE)

    def chain(self) -> list[ClassDesc]:
        """Return the class and its ancestors, the oldest first."""
        result: list[ClassDesc] = []
        desc: ClassDesc | None = self
        while desc is not None:
            result.append(desc)
            desc = desc.parent
        return result[::-1]


class ProxyDesc(Node):
    """The description of a proxy class."""

    __slots__ = ("annotations", "names", "parent")

    def __init__(self, names: list[bytes]):
        super().__init__()
        self.names = names
        self.annotations: list[Any] = []
        self.parent: ClassDesc | None = None


class ClassNode(Node):
    """A class as a value."""

    __slots__ = ("desc",)

    def __init__(self, desc: Any):
        super().__init__()
        self.desc = desc


class Instance(Node):
    """An object.

    `data` of an externalizable class is the list of what it wrote; otherwise it has for each class, the
    oldest first, the bytes of the primitive fields, the list of the others, and what the class wrote
    besides (None when it has no such method).
    """

    __slots__ = ("data", "desc")

    def __init__(self, desc: ClassDesc, data: list[Any]):
        super().__init__()
        self.desc = desc
        self.data = data

    def get(self, name: str) -> Any:
        """Value of a field: a number, a node, or `NULL`; None when there is no such field."""
        for (primitives, others, _), desc in zip(self.data, self.desc.chain(), strict=True):
            offset = index = 0
            for code, field, _ in desc.fields:
                if code in SIZES:
                    if field == name:
                        return struct.unpack_from(">" + _FORMATS[code], primitives, offset)[0]
                    offset += SIZES[code]
                else:
                    if field == name:
                        return others[index]
                    index += 1
        return None


class EnumNode(Node):
    """A constant of an enum."""

    __slots__ = ("constant", "desc")

    def __init__(self, desc: ClassDesc, constant: Any):
        super().__init__()
        self.desc = desc
        self.constant = constant


class Array(Node):
    """An array: bytes of primitive values, or a list of nodes."""

    __slots__ = ("data", "desc")

    def __init__(self, desc: ClassDesc, data: bytes | list[Any]):
        super().__init__()
        self.desc = desc
        self.data = data


def decode(raw: bytes) -> str:
    """Text of modified UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        text = raw.replace(b"\xc0\x80", b"\x00").decode("utf-8", "surrogatepass")
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encode(text: str) -> bytes:
    """Modified UTF-8 of a text."""
    if text.isascii() and "\x00" not in text:
        return text.encode()
    raw = text.encode("utf-8", "surrogatepass")
    if b"\x00" not in raw and (not raw or max(raw) < 0xF0):
        return raw
    units = text.encode("utf-16-be", "surrogatepass")
    halves = (chr(units[i] << 8 | units[i + 1]) for i in range(0, len(units), 2))
    return "".join(halves).encode("utf-8", "surrogatepass").replace(b"\x00", b"\xc0\x80")


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
            return self.lookup(_unpack_reference(data, pos + 1)[0] - BASE_HANDLE + self.first_handle)
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
        desc.parent = self._desc()
        desc.prepare()
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


class Writer:
    """Writes nodes to a stream, with handles of its own.

    Parameters
    ----------
    sink
        Takes the bytes, in pieces.
    refuse
        Is asked before an object is written; may raise.
    """

    def __init__(self, sink: Callable[[bytes], Any], refuse: Callable[[Node], None] | None = None):
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
