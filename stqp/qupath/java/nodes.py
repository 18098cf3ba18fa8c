"""What a Java object stream is made of: the nodes that the reader makes and the writer takes.

A node that occurs twice in the stream is one Python object, so the writer numbers handles afresh and a
changed tree is again a valid stream. Written from the Java Object Serialization Specification, chapter 6.
"""

from __future__ import annotations

import struct
from typing import Any

NULL_TAG, REFERENCE, CLASS_DESC, OBJECT, STRING, ARRAY, CLASS, BLOCK = range(0x70, 0x78)
END_BLOCK, RESET, BLOCK_LONG, EXCEPTION, LONG_STRING, PROXY_DESC, ENUM = range(0x78, 0x7F)
MAGIC = b"\xac\xed\x00\x05"
WRITE_METHOD, SERIALIZABLE, EXTERNALIZABLE, BLOCK_DATA, ENUM_FLAG = 1, 2, 4, 8, 16
BASE_HANDLE = 0x7E0000
_FORMATS = {"J": "q", "Z": "?", "B": "b", "C": "H", "I": "i", "S": "h", "F": "f", "D": "d"}
SIZES = {"B": 1, "C": 2, "D": 8, "F": 4, "I": 4, "J": 8, "S": 2, "Z": 1}


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

    __slots__ = ("annotations", "depth", "fields", "flags", "name", "parent", "primitive_size", "uid")

    def __init__(self, name: str, uid: bytes, flags: int, fields: list[tuple[str, str, Any]], parent: ClassDesc | None):
        super().__init__()
        self.name, self.uid, self.flags, self.parent = name, uid, flags, parent
        self.fields = fields
        self.annotations: list[Any] = []
        self.primitive_size = 0
        self.depth = 0  # known when all of it is read

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

    __slots__ = ("annotations", "depth", "names", "parent")

    def __init__(self, names: list[bytes]):
        super().__init__()
        self.names = names
        self.annotations: list[Any] = []
        self.depth = 0
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
