"""Own writer to own reader, the fast paths against the node-by-node ones, and lossless changes."""

import itertools
import struct

import numpy as np
import pytest
import shapely
from qupath.qupath_objects import geometry_objects, many, same

from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath import qpdata
from stqp.qupath.codec import document as document_module
from stqp.qupath.codec import pack, runs
from stqp.qupath.codec.decode import Parts, java_list
from stqp.qupath.codec.layout import KINDS, Vocabulary
from stqp.qupath.java.nodes import NULL, Array, Block, Instance, Text
from stqp.qupath.java.reader import Reader
from stqp.qupath.java.writer import Writer
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind
from stqp.qupath.qpdata import read_objects, rewrite, write_new

N = 3000


@pytest.fixture(scope="module")
def objects():
    return many(N)


@pytest.fixture
def file(tmp_path, objects):
    path = tmp_path / "data.qpdata"
    write_new(path, objects, '{"dataVersion":3}')
    return path


def read_slowly(path, monkeypatch):
    """Read every object as nodes."""
    with monkeypatch.context() as patch:
        patch.setattr(runs.RunReader, "take_run", lambda self, contents: False)
        return read_objects(path)


def test_objects_come_back(file, objects):
    same(read_objects(file), objects)
    assert read_objects(file).class_colors["Tumor: Positive"] == (250, 62, 62)


def test_the_fast_reader_agrees_with_the_slow_one(file, monkeypatch):
    fast, slow = read_objects(file), read_slowly(file, monkeypatch)
    same(fast, slow)
    np.testing.assert_array_equal(fast.roi_kind, slow.roi_kind)
    assert fast.class_colors == slow.class_colors


def test_the_fast_reader_is_used(file):
    document = qpdata._parse(file)
    in_runs = sum(len(item) for item, parts, _, _ in document.walk() if parts is None)
    assert in_runs > 0.9 * N


def test_the_fast_writer_writes_the_bytes_of_the_slow_one(tmp_path, objects, monkeypatch):
    fixed = "00000000-0000-4000-8000-000000000000"
    monkeypatch.setattr(qpdata, "random_ids", lambda n: np.array([fixed] * n, object))
    write_new(tmp_path / "fast", objects, "{}")
    monkeypatch.setattr(pack.Fresh, "_singly", lambda self: np.ones(len(self), bool))
    write_new(tmp_path / "slow", objects, "{}")
    assert (tmp_path / "fast").read_bytes() == (tmp_path / "slow").read_bytes()


def test_own_files_survive_the_generic_codec(file):
    data = file.read_bytes()
    pieces = []
    Writer(pieces.append).write(Reader(data).read())
    assert b"".join(pieces) == data


def test_runs_are_carried_byte_for_byte(file):
    document = qpdata._parse(file)
    document.drop(np.zeros(N, bool))
    before = file.read_bytes()
    document.save(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("seed", range(4))
def test_dropping_keeps_the_rest(file, objects, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    drop = rng.random(N) < (0.02, 0.5, 0.95, 0.995)[seed]
    drop[:200] = True  # what defines the classes goes as well
    new = many(50, seed=seed + 10)
    result = rewrite(file, drop, new)
    expected = PathObjects.concatenate([objects.take(~drop), new])
    same(read_objects(file), expected)
    same(read_slowly(file, monkeypatch), expected)
    same(result, expected)
    assert not list(file.parent.glob("*.bkp"))


def test_many_changes_in_a_row(file, objects):
    expected = objects
    for seed in range(5):
        new = many(300, seed=seed + 20)
        drop = np.random.default_rng(seed).random(len(expected)) < 0.4
        rewrite(file, drop, new)
        expected = PathObjects.concatenate([expected.take(~drop), new])
    same(read_objects(file), expected)


def test_drop_may_be_a_function(file, objects):
    rewrite(file, lambda present: present.classes == "Neoplastic", PathObjects.empty())
    same(read_objects(file), objects.take(objects.classes != "Neoplastic"))


def family():
    """Two trees: 0 > (1, 2 > (3, 4 > 5)), 6 > 7."""
    objects = many(8, seed=3, kind=ObjectKind.ANNOTATION)
    objects.parent[:] = [-1, 0, 0, 2, 2, 4, -1, 6]
    return objects


def test_children_come_back_within_their_parents(tmp_path):
    objects = family()
    write_new(tmp_path / "f", objects, "{}")
    same(read_objects(tmp_path / "f"), objects)


def test_children_written_out_of_order_are_put_with_their_parents(tmp_path):
    objects = many(6, seed=3)
    objects.parent[:] = [-1, -1, 0, 1, 0, 1]
    write_new(tmp_path / "f", objects, "{}")
    read = read_objects(tmp_path / "f")
    order = np.array([0, 2, 4, 1, 3, 5])
    same(read, objects.take(order))


@pytest.mark.parametrize("drop", [set(c) for k in (1, 2, 3) for c in itertools.combinations(range(8), k)][::3])
def test_children_of_a_dropped_object_move_to_its_parent(tmp_path, drop):
    objects = family()
    write_new(tmp_path / "f", objects, "{}")
    mask = np.isin(np.arange(8), list(drop))
    rewrite(tmp_path / "f", mask, PathObjects.empty())
    read = read_objects(tmp_path / "f")
    # slowly: each kept object's nearest kept ancestor
    for i, identity in enumerate(read.ids):
        old = objects.ids.tolist().index(identity)
        parent = objects.parent[old]
        while parent >= 0 and mask[parent]:
            parent = objects.parent[parent]
        assert read.parent[i] == (-1 if parent < 0 else read.ids.tolist().index(objects.ids[parent]))
    assert sorted(read.ids) == sorted(objects.ids[~mask])


def test_runs_within_parents_are_carried(tmp_path):
    n = 600
    objects = many(n, seed=5)
    objects.parent[:] = np.where(np.arange(n) < 2, -1, np.arange(n) % 2)
    write_new(tmp_path / "f", objects, "{}")
    before = read_objects(tmp_path / "f")
    assert (before.parent[1:300] == 0).all()
    drop = np.zeros(n, bool)
    drop[0] = drop[10:20] = True
    rewrite(tmp_path / "f", drop, PathObjects.empty())
    same(read_objects(tmp_path / "f"), before.take(~drop))


def test_geometries(tmp_path):
    objects = geometry_objects()
    write_new(tmp_path / "f", objects, "{}")
    read = read_objects(tmp_path / "f")
    assert read.roi_kind.tolist() == [
        RoiKind.GEOMETRY,
        RoiKind.GEOMETRY,
        RoiKind.RECTANGLE,
        RoiKind.ELLIPSE,
        RoiKind.POLYGON,  # turned: no ellipse that QuPath has
    ]
    np.testing.assert_allclose(read.polygons.area(), objects.polygons.area(), rtol=1e-6)
    np.testing.assert_allclose(read.polygons.bounds(), objects.polygons.bounds(), rtol=1e-6)


def test_no_objects(tmp_path):
    write_new(tmp_path / "f", PathObjects.empty(), "{}")
    assert len(read_objects(tmp_path / "f")) == 0
    new = many(20)
    rewrite(tmp_path / "f", lambda present: np.zeros(len(present), bool), new)
    same(read_objects(tmp_path / "f"), new)


def test_annotations_keep_doubles(tmp_path):
    objects = many(100, kind=ObjectKind.ANNOTATION)
    write_new(tmp_path / "f", objects, "{}")
    read = read_objects(tmp_path / "f")
    np.testing.assert_array_equal(read.measurements["Area µm²"], objects.measurements["Area µm²"])


def foreign_file(path, extra, children):
    """File with things that stqp does not make: `extra` items, and given children of the root."""
    document_objects = many(5, seed=1)
    write_new(path, document_objects, "{}")
    document = qpdata._parse(path)
    v = Vocabulary(document.vocabulary._existing)
    made = children(v, document)
    parts = Parts(document.root)
    document_module._set_children(document.root, parts, document.root.data[parts.start : parts.stop] + made)
    document.items[-1:-1] = extra(v, document)
    document.save(path)
    return document_objects


def odd_annotation(v, identity, measurements=NULL, roi=None, color=NULL):
    """Annotation in the second id layout, which QuPath reads and does not write."""
    uuid = Instance(v.desc("java.util.UUID"), [(struct.pack(">qq", *identity), [], None)])
    square = v.serial(
        "qupath.lib.roi.PolygonROI$SerializationProxy",
        struct.pack(">iii", -1, 0, 0),
        [NULL, NULL, *(Array(v.desc("[F"), np.array(a, ">f4").tobytes()) for a in ([0, 9, 9, 0], [0, 0, 9, 9]))],
    )
    fields = [v.metadata([("mine", Text(b"yes"))])] + ([] if measurements is NULL else [measurements])
    return Instance(
        v.desc("qupath.lib.objects.PathAnnotationObject"),
        [
            NULL,
            color,
            uuid,
            Block(struct.pack(">i", len(fields))),
            *fields,
            Block(struct.pack(">i", 0)),
            v.boolean(False),
            NULL,
            square if roi is None else roi(v),
            Block(struct.pack(">d", 0.25)),
        ],
    )


@pytest.fixture
def more_classes(monkeypatch):
    """Teach the vocabulary classes that only tests write."""
    from stqp.qupath.codec import layout

    more = {
        "java.util.UUID": (-4856846361193249489, 2, "J leastSigBits,J mostSigBits", None),
        "[[F": (0, 2, "", None),
        "qupath.lib.roi.AreaROI$SerializationProxy": (1, 2, "I c,I t,I z,[ x [[F,[ y [[F", None),
        "org.locationtech.jts.geom.Coordinate": (1, 2, "D x,D y,D z", None),
        "org.locationtech.jts.geom.CoordinateArraySequence": (1, 2, "I dimension,I measures,[ coordinates [L", None),
        "org.locationtech.jts.geom.LinearRing": (1, 2, "L points LS;", None),
        "org.locationtech.jts.geom.Polygon": (1, 2, "L shell LR;,[ holes [L", None),
        "org.locationtech.jts.geom.MultiPolygon": (1, 2, "[ geometries [L", None),
        "qupath.lib.roi.GeometryROI$SerializationProxy": (1, 2, "I c,I t,I z,L geometry LG;", None),
        "[D": (4514449696888150558, 2, "", None),
        "qupath.lib.measurements.NumericMeasurementList$DoubleList": (1, 2, "[ values [D", layout.NUMERIC_LIST),
    }
    monkeypatch.setattr(layout, "_KNOWN", {**layout._KNOWN, **more})


def test_the_second_id_layout_and_open_lists_and_areas(tmp_path, more_classes):
    def area(v):
        rows = [[[0, 9, 9, 0], [2, 2, 4, 4]], [[0, 0, 9, 9], [2, 4, 4, 2]]]
        arrays = [
            Array(v.desc("[[F"), [Array(v.desc("[F"), np.array(r, ">f4").tobytes()) for r in axis]) for axis in rows
        ]
        return v.serial("qupath.lib.roi.AreaROI$SerializationProxy", struct.pack(">iii", -1, 1, 2), arrays)

    def children(v, document):
        names = v.array_list([Text(b"first"), Text(b"second")])
        values = Array(v.desc("[D"), struct.pack(">3d", 1.5, 2.5, 99))  # room for one more
        numeric = Instance(
            v.desc("qupath.lib.measurements.NumericMeasurementList$DoubleList"),
            [(b"\x00", [NULL, names], None), (b"", [values], None)],
        )
        return [odd_annotation(v, (2, 1), numeric), odd_annotation(v, (2, 3), roi=area, color=v.integer(-1))]

    base = foreign_file(tmp_path / "f", lambda v, d: [], children)
    read = read_objects(tmp_path / "f")
    assert read.ids[5] == "00000000-0000-0001-0000-000000000002"
    assert read.metadata["mine"].tolist() == [None] * 5 + ["yes", "yes"]
    assert read.measurements["first"][5] == 1.5 and read.measurements["second"][5] == 2.5
    assert "third" not in read.measurements
    assert read.polygons.area()[5:].tolist() == [81, 77]
    assert read.plane[6].tolist() == [-1, 2, 1]
    # and is carried as it was
    before = (tmp_path / "f").read_bytes()
    rewrite(tmp_path / "f", np.arange(7) < 0, PathObjects.empty())
    assert (tmp_path / "f").read_bytes() == before
    rewrite(tmp_path / "f", np.arange(7) < 5, PathObjects.empty())
    same(read_objects(tmp_path / "f"), read.take(np.arange(5, 7)))
    assert len(base) == 5


def test_objects_of_03_have_no_place_for_metadata_they_lack(tmp_path):
    def children(v, document):
        plain = next(document.walk())[0]
        parts = Parts(plain)
        measured = v.serial("qupath.lib.measurements.DefaultMeasurementList", b"", [v.array_list([])])
        tail = plain.data[parts.stop :]
        return [
            Instance(plain.desc, [NULL, NULL, NULL, Block(bytes(4)), *tail]),
            Instance(plain.desc, [NULL, NULL, measured, Block(bytes(4)), *tail]),
            Instance(plain.desc, [NULL, NULL, v.metadata([("mine", Text(b"x"))]), NULL, Block(bytes(4)), *tail]),
        ]

    foreign_file(tmp_path / "f", lambda v, d: [], children)
    read = read_objects(tmp_path / "f")
    assert len(read) == 8 and len(set(read.ids.tolist())) == 8
    assert read.metadata["mine"].tolist() == [None] * 7 + ["x"]
    np.testing.assert_array_equal(read.polygons.area()[5:], read.polygons.area()[0])
    before = (tmp_path / "f").read_bytes()
    rewrite(tmp_path / "f", np.arange(8) < 0, PathObjects.empty())
    assert (tmp_path / "f").read_bytes() == before


def test_geometries_of_02_are_serialised_jts(more_classes):
    from stqp.qupath.codec.decode import roi

    v = Vocabulary()
    jts = "org.locationtech.jts.geom."

    def ring(box):
        corners = [*shapely.box(*box).exterior.coords]
        points = [v.serial(jts + "Coordinate", struct.pack(">3d", x, y, np.nan), []) for x, y in corners]
        sequence = v.serial(jts + "CoordinateArraySequence", bytes(8), [v.array(points)])
        return v.serial(jts + "LinearRing", b"", [sequence])

    polygon = v.serial(jts + "Polygon", b"", [ring((0, 0, 10, 10)), v.array([ring((2, 2, 4, 4))])])
    several = v.serial(jts + "MultiPolygon", b"", [v.array([polygon, polygon])])
    for geometry, n_rings in ((polygon, 2), (several, 4)):
        node = v.serial("qupath.lib.roi.GeometryROI$SerializationProxy", struct.pack(">3i", -1, 0, 0), [geometry])
        kind, rings, _, plane = roi(node)
        assert (kind, len(rings), plane) == (RoiKind.GEOMETRY, n_rings, (-1, 0, 0))
        assert [len(r) for r in rings] == [4] * n_rings
        assert rings[1].min() == 2 and rings[0].max() == 10


def test_a_reference_from_elsewhere_to_a_dropped_object_is_refused(tmp_path):
    def extra(v, document):
        first = next(document.walk())[0]
        return [v.hash_map([(Text(b"favourite"), first)])]

    foreign_file(tmp_path / "f", extra, lambda v, d: [])
    before = (tmp_path / "f").read_bytes()
    with pytest.raises(InputError, match=r"refers to an object that is to be replaced"):
        rewrite(tmp_path / "f", np.arange(5) == 0, PathObjects.empty())
    assert (tmp_path / "f").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]
    rewrite(tmp_path / "f", np.arange(5) == 1, PathObjects.empty())
    assert len(read_objects(tmp_path / "f")) == 4


def test_unknown_objects_are_named(tmp_path):
    write_new(tmp_path / "f", many(5, kind=ObjectKind.TILE), "{}")
    data = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(data.replace(b"PathTileObject", b"PathBirdObject"))
    with pytest.raises(InputError, match="PathBirdObject"):
        read_objects(tmp_path / "f")
    before = (tmp_path / "f").read_bytes()
    with pytest.raises(InputError, match="PathBirdObject"):
        rewrite(tmp_path / "f", lambda present: np.zeros(len(present), bool), PathObjects.empty())
    assert (tmp_path / "f").read_bytes() == before


def test_truncated_and_broken_files_name_themselves(tmp_path):
    path = tmp_path / "f"
    write_new(path, many(30), "{}")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in [0, 3, 10, len(data) - 1, *rng.integers(0, len(data), 60).tolist()]:
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match=str(path)):
            read_objects(path)
    path.write_bytes(rng.bytes(1000))
    with pytest.raises(InputError, match=str(path)):
        read_objects(path)


def test_flipped_bytes_never_raise_anything_else(tmp_path):
    path = tmp_path / "f"
    write_new(path, many(60), "{}")
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for position in rng.integers(4, len(data), 150).tolist():
        path.write_bytes(data[:position] + bytes([data[position] ^ int(rng.integers(1, 256))]) + data[position + 1 :])
        try:
            read_objects(path)
        except InputError:
            refused += 1
    assert refused > 10


def test_the_backup_is_read_and_replaced(tmp_path):
    path, backup = tmp_path / "data.qpdata", tmp_path / "data.qpdata.bkp"
    objects = many(30)
    write_new(path, objects, "{}")
    path.rename(backup)
    same(read_objects(path), objects)
    path.write_bytes(backup.read_bytes()[:100])
    same(read_objects(path), objects)
    rewrite(path, np.arange(30) < 10, PathObjects.empty())
    assert not backup.exists()
    same(read_objects(path), objects.take(np.arange(10, 30)))


def test_a_crash_while_writing_leaves_the_old_file(file, objects, monkeypatch):
    before = file.read_bytes()
    calls = itertools.count()

    def crash(self, above=0):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return None

    monkeypatch.setattr(Writer, "flush", crash)
    with pytest.raises(KeyboardInterrupt):
        rewrite(file, np.arange(N) < 10, PathObjects.empty())
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.classes.__setitem__(0, "A:B"), "QuPath class"),
        (lambda o: o.classes.__setitem__(0, ""), "QuPath class"),
        (lambda o: o.classes.__setitem__(0, "A\nB"), "QuPath class"),
        (lambda o: o.ids.__setitem__(0, o.ids[1]), "twice"),
        (lambda o: o.polygons.coords.__setitem__(0, np.nan), "finite"),
        (lambda o: o.kind.__setitem__(0, 4), "TMA"),
        (lambda o: o.parent.__setitem__(0, 3), "parents"),
        (lambda o: o.metadata["note"].__setitem__(0, "x" * 70000), "65535"),
        (lambda o: o.metadata.__setitem__("Object ID", o.names), "Object ID"),
        (lambda o: setattr(o, "polygons", Polygons.empty(5)), "no outline"),
        (lambda o: setattr(o, "names", o.names[:2]), "names"),
    ],
)
def test_what_qupath_would_not_read_is_refused(tmp_path, change, message):
    objects = many(5, seed=2)
    change(objects)
    with pytest.raises(UsageError, match=message):
        write_new(tmp_path / "f", objects, "{}")
    assert not list(tmp_path.iterdir())


def test_ids_that_are_there_already_are_refused(file, objects):
    with pytest.raises(InputError, match="already has"):
        rewrite(file, np.zeros(N, bool), objects.take([3]))
    rewrite(file, np.arange(N) == 3, objects.take([3]))
    assert len(read_objects(file)) == N


def test_a_mask_of_the_wrong_length_is_refused(file):
    with pytest.raises(UsageError, match="shape"):
        rewrite(file, np.zeros(2, bool), PathObjects.empty())


def test_values_that_look_like_objects_do_not_mislead(tmp_path):
    """A text that holds the bytes an object begins with must not cut a run."""
    objects = many(400, seed=4, kind=ObjectKind.DETECTION)
    write_new(tmp_path / "f", objects, "{}")
    document = qpdata._parse(tmp_path / "f")
    desc = document.vocabulary._existing["qupath.lib.objects.PathDetectionObject"]
    head = b"sq" + struct.pack(">I", 0x7E0000 + desc.handle)
    # as coordinates: any four bytes are a float, and the x of a polygon follow each other
    x = np.frombuffer(head * 2, ">f4").astype(np.float64)
    assert np.isfinite(x).all()
    for index in (100, 101, 250):
        first = objects.polygons.ring_offsets[index]
        objects.polygons.coords[first : first + 3, 0] = x
    write_new(tmp_path / "f", objects, "{}")
    assert (tmp_path / "f").read_bytes().count(head) == 399 + 6  # the first object defines the class
    same(read_objects(tmp_path / "f"), objects)


def test_java_lists():
    v = Vocabulary()
    texts = [v.text("a"), v.text("b")]
    assert java_list(v.names(("a", "b"))[1]) == texts
    assert java_list(v.array_list(texts)) == texts
    assert java_list(NULL) == []
    assert set(KINDS.values()) == set(ObjectKind)
