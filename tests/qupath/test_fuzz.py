"""Damaged and hostile .qpdata streams: objects or one clear error, in bounded time and memory."""

import struct
import tracemalloc

import numpy as np
import pytest
from qupath.fuzzing import attempt, damaged
from qupath.qupath_objects import geometry_objects, many
from qupath.test_qpdata_kinds import STAINS, STEP, every_shape

from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.qupath import qpdata
from stqp.qupath.java.nodes import NULL, Array, Block, Instance
from stqp.qupath.objects import PathObjects
from stqp.qupath.qpdata import read_image_data, read_objects, write_new


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """Two streams: many leaves, and every shape beside a workflow, stains and properties."""
    folder = tmp_path_factory.mktemp("streams")
    write_new(folder / "many", many(60), '{"qupathVersion":"0.5.1"}')
    objects = PathObjects.concatenate([every_shape(), geometry_objects()])
    objects.parent[5:] = 2
    write_new(folder / "shapes", objects, "{}", {"a": 1, "b": "x", "c": 0.5}, stains=STAINS, steps=[STEP, STEP])
    return [(folder / name).read_bytes() for name in ("many", "shapes")]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("part", range(4))
def test_damage(streams, tmp_path, part):
    read = 0
    for seed in range(part * 500, part * 500 + 500):
        rng = np.random.default_rng(seed)
        data = damaged(streams[seed % 2], rng)
        read += attempt(tmp_path / "data.qpdata", data, change=seed % 4 == 0)
    assert 10 < read < 400  # the damage is neither always fatal nor never


def test_every_truncation(streams, tmp_path):
    data = streams[1]
    for length in range(0, len(data) - 1, 7):
        assert not attempt(tmp_path / "data.qpdata", data[:length])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damage_to_real_files(real_data, tmp_path):
    found = sorted((real_data / "qupath").glob("golden_v*/data/*/data.qpdata"))
    if not found:
        pytest.skip(f"{real_data} has no qupath/golden_v*")
    files = [path.read_bytes() for path in found]
    for seed in range(1500):
        attempt(tmp_path / "data.qpdata", damaged(files[seed % len(files)], np.random.default_rng(seed)))


def test_an_array_of_two_thousand_million(streams, tmp_path):
    data = bytearray(streams[0])
    at = data.index(b"\x00\x02[F") + 40
    at = data.index(b"\x78\x70", at) + 2  # the first array's length
    data[at : at + 4] = b"\x7f\xff\xff\xff"
    tracemalloc.start()
    assert not attempt(tmp_path / "data.qpdata", bytes(data))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_class_that_descends_from_itself(tmp_path):
    name = b"qupath.lib.Ouroboros"
    desc = (
        b"\x72" + struct.pack(">H", len(name)) + name + bytes(8) + b"\x02\x00\x00\x78\x71" + struct.pack(">I", 0x7E0000)
    )
    with pytest.raises(InputError, match="descend"):
        (tmp_path / "data.qpdata").write_bytes(b"\xac\xed\x00\x05\x73" + desc)
        read_objects(tmp_path / "data.qpdata")


def saved(path, change):
    """Write a file whose document was changed as nodes."""
    write_new(path, many(3), "{}")
    document = qpdata._parse(path)
    change(document)
    document.save(path)
    return path


def test_objects_nested_twenty_thousand_deep(tmp_path):
    n = 20_000
    box = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], float)
    objects = PathObjects.build(
        Polygons.from_rings(np.tile(box, (n, 1)), np.arange(0, 4 * n + 1, 4)), parent=np.arange(n) - 1
    )
    write_new(tmp_path / "data.qpdata", objects, "{}")
    assert read_objects(tmp_path / "data.qpdata").parent.tolist() == (np.arange(n) - 1).tolist()


def test_lists_nested_a_hundred_thousand_deep(tmp_path):
    path = tmp_path / "data.qpdata"
    write_new(path, many(3), "{}")
    data = path.read_bytes()
    # Object[] within Object[]
    array = b"\x75\x72\x00\x13[Ljava.lang.Object;" + struct.pack(">q", -8012369246846506644) + b"\x02\x00\x00\x78\x70"
    nested = array + b"\x00\x00\x00\x01" + b"\x75\x71\x00\x7e\x00\x00\x00\x00\x00\x01" * 100_000
    path.write_bytes(data[:4] + nested + data[4:])
    with pytest.raises(InputError, match="nested too deeply"):
        read_objects(path)


def test_a_shape_that_a_hundred_thousand_objects_share(tmp_path):
    """Few bytes in the file, 80 GB in columns."""

    def share(document):
        v = document.vocabulary
        vertices = Array(v.desc("[F"), np.arange(100_000).astype(">f4").tobytes())
        shape = v.serial("qupath.lib.roi.PolygonROI$SerializationProxy", struct.pack(">iii", -1, 0, 0),
                         [NULL, NULL, vertices, vertices])  # fmt: skip
        identity = v.metadata([])
        one = v.desc("qupath.lib.objects.PathDetectionObject")
        rest = [v.boolean(False), NULL, shape, Block(struct.pack(">d", np.nan))]
        node = [NULL, NULL, identity, NULL, Block(struct.pack(">i", 0)), *rest]
        document.root.data[4:] = [
            Block(struct.pack(">i", 100_000)),
            *(Instance(one, list(node)) for _ in range(100_000)),
        ]

    path = saved(tmp_path / "data.qpdata", share)
    with pytest.raises(InputError, match="vertices"):
        read_objects(path)


def test_a_different_measurement_in_each_object(tmp_path):
    n = 30_000
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], float)
    objects = PathObjects.build(Polygons.from_rings(np.tile(square, (n, 1)), np.arange(0, 4 * n + 1, 4)))
    path = tmp_path / "data.qpdata"
    write_new(path, objects, "{}")

    reader_path = tmp_path / "hostile"
    reader_path.write_bytes(path.read_bytes())
    document = qpdata._parse(reader_path)
    nodes = []
    for item, parts, _, _ in document.walk():
        if parts is None:
            reader = item.reader
            nodes += [reader.unpack(item, i) for i in range(len(item))]
        else:
            nodes.append(item)
    v = document.vocabulary
    for i, node in enumerate(nodes):
        value = v.serial("qupath.lib.measurements.DoubleMeasurement", struct.pack(">d", i), [v.text(f"m{i}")])
        node.data[3] = v.serial("qupath.lib.measurements.DefaultMeasurementList", b"", [v.array_list([value])])
    document.root.data[5:] = nodes
    document.save(reader_path)
    with pytest.raises(InputError, match="different measurements"):
        read_image_data(reader_path)
