"""The Java stream codec on streams made by hand."""

import struct

import pytest

from stqp.qupath.java.nodes import (
    MAGIC,
    NULL,
    Array,
    Block,
    ClassDesc,
    EnumNode,
    Instance,
    StreamError,
    Text,
    decode,
    encode,
)
from stqp.qupath.java.reader import Reader
from stqp.qupath.java.writer import Writer


def written(items):
    pieces = []
    Writer(pieces.append).write(items)
    return b"".join(pieces)


def serial(name, fields=(), flags=2, parent=None):
    desc = ClassDesc(name, bytes(8), flags, list(fields), parent)
    desc.prepare()
    return desc


@pytest.mark.parametrize("text", ["", "abc", "Région", "nul\x00", "𝄞 astral", "µm²", "日本"])
def test_modified_utf8_goes_both_ways(text):
    raw = encode(text)
    assert decode(raw) == text
    assert b"\x00" not in raw  # NUL is C0 80, so that C programs may read it
    assert all(byte < 0xF0 for byte in raw)


def test_every_item_survives_and_shared_nodes_stay_shared():
    shared = Text(b"shared")
    integer = serial("java.lang.Integer", [("I", "value", None)])
    floats, objects = serial("[F"), serial("[Ljava.lang.Object;")
    external = serial("x.External", flags=12)
    listed = serial("java.util.ArrayList", [("I", "size", None)], flags=3)
    enum = serial("x.Kind", flags=0x12)
    items = [
        Block(b"\x00\x02ab"),
        Block(bytes(300), long=True),
        shared,
        Text(b"y" * 70000),
        Instance(integer, [(struct.pack(">i", 7), [], None)]),
        Array(floats, struct.pack(">3f", 1, 2, 3)),
        Array(objects, [shared, NULL]),
        Instance(listed, [(struct.pack(">i", 1), [], [Block(bytes(4)), shared])]),
        EnumNode(enum, Text(b"RED")),
        Instance(external, [NULL, Instance(external, [shared, Block(b"\x01")]), Block(b"\x02")]),
    ]
    data = written(items)
    read = Reader(data).read()
    assert written(read) == data
    assert read[6].data[0] is read[2]
    assert read[4].get("value") == 7
    assert str(read[3]) == "y" * 70000
    assert read[9].data[1].data[0] is read[2]


def test_deep_nesting_needs_no_recursion():
    external = serial("x.External", flags=12)
    node = Instance(external, [])
    for _ in range(50_000):
        node = Instance(external, [node])
    data = written([node])
    assert written(Reader(data).read()) == data


def test_every_truncation_is_an_error_or_a_shorter_stream():
    integer = serial("java.lang.Integer", [("I", "value", None)])
    floats = serial("[F")
    items = [Text(b"abc"), Instance(integer, [(bytes(4), [], None)]), Array(floats, bytes(8)), Block(b"xyz")]
    ends = set()
    for upto in range(1, len(items) + 1):
        ends.add(len(written(items[:upto])))
    data = written(items)
    for cut in range(len(data)):
        if cut in ends or cut == len(MAGIC):
            assert len(Reader(data[:cut]).read()) < len(items)
        else:
            with pytest.raises(StreamError):
                Reader(data[:cut]).read()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 no stream",
        MAGIC + b"\x71\x00\x7e\x00\x05",  # refers to nothing
        MAGIC + b"\x99",
        MAGIC + b"\x73\x74\x00\x01a",  # an object whose class is a string
        MAGIC + b"\x75\x72\x00\x02[F" + bytes(8) + b"\x02\x00\x00\x78\x70\xff\xff\xff\xff",  # -1 floats
        MAGIC + b"\x7b",
    ],
)
def test_garbage_is_a_stream_error(data):
    with pytest.raises(StreamError):
        Reader(data).read()


def test_a_node_referred_to_before_it_is_written_is_an_error():
    with pytest.raises(StreamError):
        Writer(lambda _: None).reference(Text(b"a"))
