"""The paths for many objects at once, against those for one after the other; objects replaced in their places."""

import dataclasses

import numpy as np
import pytest
import shapely
from qupath.qupath_objects import discs, geometry_objects, many, same

from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath import qpdata
from stqp.qupath.codec import carry, columns, pack, runs
from stqp.qupath.codec.document import Document
from stqp.qupath.codec.layout import ID_KEY
from stqp.qupath.codec.ragged import copy_rows, gather, scatter
from stqp.qupath.java.nodes import Instance, Text, encode
from stqp.qupath.java.reader import Reader
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind
from stqp.qupath.qpdata import read_objects, rewrite, update, write_new

N = 1200


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, request):
    """Make blocks so small that there are many of them."""
    if "whole" not in request.keywords:
        monkeypatch.setattr(carry, "_BLOCK", 256)
        monkeypatch.setattr(columns, "_BLOCK", 300)
        monkeypatch.setattr(runs, "_WINDOW_MAX", 200)
    fixed = "00000000-0000-4000-8000-000000000000"
    monkeypatch.setattr(qpdata, "random_ids", lambda n: np.array([fixed] * n, object))


def slowly(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs.RunReader, "take_run", lambda self, contents: False)
        return read_objects(path)


def nodes_of(path):
    """Each object's node by its id, without handles, and everything beside the objects."""
    items = Reader(path.read_bytes()).read()
    document = Document(items, qpdata._parse(path).root, None)
    hierarchy = next(i for i in items if isinstance(i, Instance) and i.desc.name.endswith("Hierarchy"))
    document.root = hierarchy.get("rootObject")
    found = {}
    for item, parts, _, _ in document.walk():
        own = [d for k, d in enumerate(item.data) if not parts.start <= k < parts.stop and k != parts.count]
        identity = next(str(v) for k, v in zip(item.data[2].data[1].data, item.data[2].data[2].data, strict=True)
                        if str(k) == ID_KEY)  # fmt: skip
        found[identity] = (item.desc.name, plain(own))
    return found, plain([i for i in items if i is not hierarchy])


def plain(item):
    if isinstance(item, Text):
        return str(item)
    if isinstance(item, (list, tuple)):
        return [plain(d) for d in item]
    if hasattr(item, "data"):
        return [getattr(getattr(item, "desc", None), "name", ""), plain(item.data)]
    return item.constant.raw if hasattr(item, "constant") else item if isinstance(item, bytes) else type(item).__name__


def odd(n=N, seed=0):
    """Make objects of which some have colours, shapes and texts that few have."""
    rng = np.random.default_rng(seed)
    objects = many(n, seed)
    objects.colors[::37] = 0xFF336699
    rectangles = np.flatnonzero(np.arange(n) % 53 == 5)
    corners = rng.integers(0, 1000, (4, len(rectangles)))
    boxes = shapely.box(corners[0], corners[1], corners[2] + 2000, corners[3] + 2000)
    holes = np.flatnonzero(np.arange(n) % 61 == 7)
    hole = geometry_objects().polygons.take(np.zeros(len(holes), int))
    place = np.arange(n)
    place[rectangles] = n + np.arange(len(rectangles))
    place[holes] = n + len(rectangles) + np.arange(len(holes))
    objects.polygons = Polygons.concatenate([objects.polygons, Polygons.from_shapely(boxes), hole]).take(place)
    objects.roi_kind[rectangles], objects.roi_kind[holes] = RoiKind.RECTANGLE, RoiKind.GEOMETRY
    objects.names[::41] = [f"größe \x00 😀 {i}" * (i % 7) for i in range(len(objects.names[::41]))]
    objects.names[3] = "long " * 3000
    objects.ids[::97] = [f"no uuid {i}" for i in range(len(objects.ids[::97]))]
    objects.measurements["few"] = np.where(rng.random(n) < 0.01, rng.random(n), np.nan)
    return objects


def test_rows_of_bytes():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 5000, dtype=np.uint8)
    starts, lengths = rng.integers(0, 4000, 300), rng.integers(0, 90, 300)
    places = np.cumsum(lengths) - lengths
    out = np.zeros(int(lengths.sum()), np.uint8)
    copy_rows(out, places, data, starts, lengths)
    np.testing.assert_array_equal(out, np.concatenate([data[a : a + n] for a, n in zip(starts, lengths, strict=True)]))
    rows = gather(data, starts, 7)
    np.testing.assert_array_equal(rows, [data[a : a + 7] for a in starts])
    scatter(data, np.array([1, 4990]), rows[:2])
    np.testing.assert_array_equal(data[4990:4997], rows[1])
    assert gather(data, np.empty(0, np.int64), 9000).shape == (0, 9000)


@pytest.mark.parametrize("make", [many, odd])
def test_together_and_singly_give_the_same_bytes(tmp_path, monkeypatch, make):
    objects = make(N)
    write_new(tmp_path / "fast", objects, "{}")
    with monkeypatch.context() as patch:
        patch.setattr(pack.Fresh, "_singly", lambda self: np.ones(len(self), bool))
        write_new(tmp_path / "slow", objects, "{}")
    assert (tmp_path / "fast").read_bytes() == (tmp_path / "slow").read_bytes()


def test_odd_objects_come_back(tmp_path, monkeypatch):
    objects = odd()
    write_new(tmp_path / "f", objects, "{}")
    fast, slow = read_objects(tmp_path / "f"), slowly(tmp_path / "f", monkeypatch)
    same(fast, slow)
    for column in ("roi_kind", "colors", "ids"):
        np.testing.assert_array_equal(getattr(fast, column), getattr(slow, column))
    np.testing.assert_array_equal(fast.ids, objects.ids)
    np.testing.assert_array_equal(fast.colors, objects.colors)


def test_unequal_numbers_of_x_and_y(tmp_path):
    path = tmp_path / "f"
    objects = many(50, kind=ObjectKind.DETECTION)
    objects.polygons = discs(np.arange(100).reshape(50, 2) * 40, 8, 50)
    write_new(path, objects, "{}")
    raw = bytearray(path.read_bytes())
    places = [i for i in range(len(raw) - 4) if raw[i : i + 4] == b"\0\0\0\x32"]
    raw[places[41] : places[41] + 4] = b"\0\0\0\x31"
    del raw[places[41] + 4 : places[41] + 8]
    path.write_bytes(raw)
    with pytest.raises(InputError, match="cannot be read"):
        read_objects(path)


def test_nothing_is_packed_that_is_not_there(tmp_path):
    empty = many(50, kind=ObjectKind.DETECTION)
    empty.measurements, empty.metadata = {}, {}
    empty.classes[:] = None
    write_new(tmp_path / "f", empty, "{}")
    same(read_objects(tmp_path / "f"), empty)


def test_an_id_that_is_missing_is_made(tmp_path, monkeypatch):
    from stqp.qupath.codec.build import Plan

    monkeypatch.setattr("stqp.qupath.codec.build.ID_KEY", "Other")
    monkeypatch.setattr("stqp.qupath.codec.pack.ID_KEY", "Other")
    objects = many(400, kind=ObjectKind.DETECTION)
    write_new(tmp_path / "f", objects, "{}")
    read = read_objects(tmp_path / "f")
    assert len(set(read.ids.tolist())) == 400 and {len(i) for i in read.ids} == {36}
    np.testing.assert_array_equal(read.metadata["Other"], objects.ids)
    assert Plan is not None


def shared_texts(path, n=300):
    """Write objects whose texts are those of objects before them."""
    objects = many(n, seed=4, kind=ObjectKind.DETECTION)
    objects.metadata = {"of": np.array([f"text {i - i % 5}" for i in range(n)], object)}
    texts = {}

    def text(raw, original=Text):
        if raw.startswith(b"text "):
            return texts.setdefault(raw, original(raw))
        return original(raw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stqp.qupath.codec.build.Text", text)
        patch.setattr(pack.Fresh, "_singly", lambda self: np.ones(len(self), bool))
        patch.setattr("stqp.qupath.codec.build._SHARED_AT_MOST", 0)
        write_new(path, objects, "{}")
    assert path.read_bytes().count(encode("text 0")) == 1
    return objects


def test_texts_of_objects_that_go(tmp_path, monkeypatch):
    path = tmp_path / "f"
    objects = shared_texts(path)
    document = qpdata._parse(path)
    assert sum(len(item) for item, parts, _, _ in document.walk() if parts is None) > 290
    same(read_objects(path), objects)
    drop = np.arange(300) % 10 == 0
    rewrite(path, drop, PathObjects.empty())
    same(read_objects(path), objects.take(~drop))
    same(slowly(path, monkeypatch), objects.take(~drop))


@pytest.mark.parametrize("step", [2, 5, 10, 11])
def test_texts_of_objects_that_are_replaced(tmp_path, monkeypatch, step):
    path = tmp_path / "f"
    objects = shared_texts(path)
    at = np.flatnonzero(np.arange(300) % step == 0)
    new = many(len(at), seed=8)
    update(path, at, new)
    expected = replaced(objects, at, new)
    same(read_objects(path), expected)
    same(slowly(path, monkeypatch), expected)


def replaced(objects, at, new):
    """What a file of leaves should hold."""
    place = np.arange(len(objects))
    place[at] = len(objects) + np.arange(len(at))
    result = PathObjects.concatenate([objects, dataclasses.replace(new, parent=np.full(len(new), -1))]).take(place)
    result.parent[:] = objects.parent
    return result


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.qpdata"
    write_new(path, odd(), "{}", {"kept": "yes"})
    return path


def test_nothing_replaced_is_nothing_changed(file):
    before = file.read_bytes()
    update(file, np.empty(0, int), PathObjects.empty())
    assert file.read_bytes() == before


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 1.0])
def test_objects_are_replaced_in_their_places(file, share, monkeypatch):
    present = read_objects(file)
    before, beside = nodes_of(file)
    rng = np.random.default_rng(int(100 * share))
    at = np.flatnonzero(rng.random(N) < share)
    at = rng.permutation(at)
    new = odd(len(at), seed=7) if len(at) > 300 else many(len(at), seed=7)
    new.ids[: len(at) // 2] = present.ids[at[: len(at) // 2]]
    new.ids[len(at) // 2 :] = [f"new {i}" for i in range(len(at) - len(at) // 2)]
    update(file, at, new)
    write_new(file.with_name("alone"), new, "{}")
    expected = replaced(present, at, read_objects(file.with_name("alone")))  # where rings begin as in a file
    fast, slow = read_objects(file), slowly(file, monkeypatch)
    same(slow, expected)
    same(fast, slow)
    np.testing.assert_array_equal(fast.colors, expected.colors)
    after, beside_after = nodes_of(file)
    assert beside_after == beside
    kept = np.delete(present.ids, at).tolist()
    assert [i for i in kept if before[i] != after[i]] == []
    assert list(after) == expected.ids.tolist()
    assert not list(file.parent.glob("*.bkp"))


def test_the_first_objects_define_what_others_refer_to(file, monkeypatch):
    present = read_objects(file)
    new = many(300, seed=9, kind=ObjectKind.CELL)
    update(file, np.arange(300), new)
    expected = replaced(present, np.arange(300), new)
    same(slowly(file, monkeypatch), expected)
    same(read_objects(file), expected)


def test_what_is_put_back_is_the_same_file(file):
    before, present = file.read_bytes(), read_objects(file)
    at = np.flatnonzero((np.arange(N) > 300) & (present.roi_kind == RoiKind.POLYGON) & (present.colors < 0))
    update(file, at, many(len(at), seed=11))
    update(file, at, present.take(at))
    same(read_objects(file), present)
    assert abs(len(file.read_bytes()) - len(before)) < 5000


def families(n=600):
    objects = many(n, seed=5)
    # 0 > (1, 2 > many, many), the rest of the root
    objects.parent[:] = np.where(np.arange(n) < 1, -1, np.arange(n) % 4 - 1)
    objects.parent[1:4] = [0, 0, -1]
    return objects


@pytest.mark.parametrize("at", [[0], [1], [0, 1, 2], [2, 10, 300], list(range(600)), list(range(4, 600, 3))])
def test_children_stay_with_what_is_replaced(tmp_path, monkeypatch, at):
    path = tmp_path / "f"
    write_new(path, families(), "{}")
    present = read_objects(path)
    new = many(len(at), seed=6)
    new.parent[1:] = 0  # does not count
    update(path, at, new)
    expected = replaced(present, np.array(at), new)
    same(read_objects(path), expected)
    same(slowly(path, monkeypatch), expected)


def test_replacing_and_adding_and_taking_out(file):
    present = read_objects(file)
    document = qpdata._parse(file)
    at, drop = np.arange(5, N, 7), np.arange(N) % 11 == 3
    new, more = many(len(at), seed=3), many(20, seed=12)
    document.replace(at, new)
    document.drop(drop)
    document.append(more)
    document.save(file)
    same(read_objects(file), PathObjects.concatenate([replaced(present, at, new).take(~drop), more]))


def test_ids_are_read_alone(file):
    np.testing.assert_array_equal(qpdata._parse(file).ids(), read_objects(file).ids)


def test_refusals(file):
    before, present = file.read_bytes(), read_objects(file)
    with pytest.raises(InputError, match=r"data\.qpdata already has"):
        update(file, [3], present.take([4]))
    with pytest.raises(UsageError, match="different positions"):
        update(file, [3, 3], many(2))
    with pytest.raises(UsageError, match="different positions"):
        update(file, [N], many(1))
    with pytest.raises(UsageError, match="different positions"):
        update(file, [0, 1], many(1))
    assert file.read_bytes() == before
    update(file, [3, 4], present.take([4, 3]))
    assert read_objects(file).ids[3:5].tolist() == present.ids[[4, 3]].tolist()


def test_cores_of_a_grid_are_not_replaced(tmp_path):
    path = tmp_path / "f"
    cores = PathObjects.build(discs([[100, 100], [300, 100]], 40, 32), kind=ObjectKind.TMA_CORE)
    write_new(path, PathObjects.concatenate([cores, many(100)]), "{}", tma_grid=(2, 1))
    before = path.read_bytes()
    with pytest.raises(InputError, match="refers to an object"):
        update(path, [1], many(1))
    with pytest.raises(UsageError, match="new file only"):
        update(path, [5], cores.take([0]))
    assert path.read_bytes() == before
    update(path, [5, 7], many(2, seed=3))
    assert (read_objects(path).kind == ObjectKind.TMA_CORE).sum() == 2
