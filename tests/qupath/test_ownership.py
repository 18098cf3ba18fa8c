"""What stqp wrote, and what a person changed since."""

import uuid

import numpy as np
import pytest
import shapely
from PIL import Image
from qupath.qupath_objects import discs, geometry_objects, many, same

from stqp.polygons import Polygons
from stqp.qupath.objects import PathObjects
from stqp.qupath.ownership import (
    _sorted_vertices,
    corrected,
    object_uuid,
    object_uuids,
    owned,
    replacement,
    settled,
    stamp,
    written_classes,
)
from stqp.qupath.project import QuPathProject
from stqp.qupath.qpdata import read_objects, write_new
from stqp.slides import open_slide


def test_stamped_objects_are_owned_by_their_source_only():
    a, b, user = stamp(many(20, seed=1), "import:a", "r1"), stamp(many(10, seed=2), "predict:m", "r1"), many(5, seed=3)
    objects = PathObjects.concatenate([a, user, b])
    assert owned(objects, "import:a").tolist() == [True] * 20 + [False] * 15
    assert owned(objects).sum() == 30
    assert not owned(user).any() and not corrected(user).any()
    assert not corrected(objects).any()


def test_what_comes_back_from_the_file_is_not_corrected(tmp_path):
    # coordinates that float32 rounds, holes, several parts, rings that touch
    import shapely

    touching = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(2, 0, 3, 1)])
    rings = Polygons(
        np.array([[0, 0], [4, 0], [4, 4], [0, 4], [4, 0], [8, 0], [8, 4], [4, 4]], float),
        np.array([0, 4, 8]),
        np.array([0, 2]),
    )
    parts = [
        many(300),
        geometry_objects(),
        PathObjects.build(Polygons.from_shapely([touching])),
        PathObjects.build(rings),
        PathObjects.build(discs(np.random.default_rng(0).random((50, 2)) * 1e5, 7.3, 11).shift(0.1, 1 / 3)),
    ]
    objects = stamp(PathObjects.concatenate(parts), "s", "r")
    write_new(tmp_path / "f", objects, "{}")
    read = read_objects(tmp_path / "f")
    assert owned(read, "s").all()
    assert not corrected(read).any()
    assert written_classes(read).tolist() == objects.classes.tolist()
    # twice, as a second machine would
    write_new(tmp_path / "g", read, "{}")
    assert not corrected(read_objects(tmp_path / "g")).any()


def test_changes_of_class_or_shape_are_seen():
    objects = stamp(many(10, seed=4), "s", "r")
    objects.classes[2] = "Neoplastic" if objects.classes[2] != "Neoplastic" else "Dead"
    first = objects.polygons.ring_offsets[5]
    objects.polygons.coords[first, 0] += 0.01
    objects.names[7] = "a name is no correction"
    objects.classes[8] = None if objects.classes[8] else "Dead"
    assert np.flatnonzero(corrected(objects)).tolist() == [2, 5, 8]


def test_a_second_run_keeps_corrections():
    first = stamp(many(30, seed=5), "s", "r1")
    first.ids[:] = object_uuids("sample", np.arange(30), np.zeros(30, int))
    present = PathObjects.concatenate([first, many(4, seed=6)])
    present.classes[3] = "Corrected"
    second = many(40, seed=7)
    second.ids[:] = object_uuids("sample", np.arange(40), np.zeros(40, int))
    drop, add = replacement(present, second, "s")
    assert drop.sum() == 29 and not drop[3] and not drop[30:].any()
    assert add.sum() == 39 and not add[3]
    drop, add = replacement(present, second, "s", keep_corrected=False)
    assert drop.sum() == 30 and add.all()
    drop, add = replacement(present, second, "other")
    assert not drop.any() and add.sum() == 10


def test_ids_are_steady_and_valid():
    ids = object_uuids("S", ["a", "a", "b"], ["1", "2", "1"])
    assert len(set(ids)) == 3
    assert object_uuid("S", "a", "2") == ids[1]
    assert object_uuid("T", "a", "2") != ids[1]
    assert object_uuid("S", "a1", "2") != object_uuid("S", "a", "12")
    for text in ids:
        parsed = uuid.UUID(text)
        assert str(parsed) == text and parsed.version == 5 and parsed.variant == uuid.RFC_4122
    namespace = uuid.uuid5(uuid.NAMESPACE_DNS, "stqp.qupath.objects")
    assert ids[0] == str(uuid.uuid5(namespace, "S\x1fa\x1f1"))
    assert object_uuids("S", [], []).size == 0


@pytest.mark.parametrize("kind", [list, np.array])
def test_ids_from_numbers_and_text_agree(kind):
    one_by_one = [object_uuid("S", "1", "3"), object_uuid("S", "2", "4")]
    assert object_uuids("S", kind([1, 2]), kind([3, 4])).tolist() == one_by_one


def test_random_ids_are_valid_and_distinct():
    ids = PathObjects.build(discs([[0, 0]] * 200, 1, 3)).ids
    assert len(set(ids)) == 200
    assert all(uuid.UUID(i).version == 4 and str(uuid.UUID(i)) == i for i in ids)


def test_taking_and_joining():
    a, b = many(30, seed=8), many(20, seed=9)
    a.parent[5] = 3
    both = PathObjects.concatenate([a, b])
    same(both.take(np.arange(30)), a)
    same(both.take(np.arange(50) >= 30), b)
    assert both.take([5, 3]).parent.tolist() == [1, -1]
    assert both.take([5]).parent.tolist() == [-1]
    assert len(PathObjects.concatenate([])) == 0
    frame = a.to_frame()
    assert len(frame) == 30 and {"id", "kind", "class", "cell", "Score"} <= set(frame.columns)
    assert sum(a.class_counts().values()) == 30


def test_qupaths_rounding_of_shapes_with_holes_is_no_correction():
    """QuPath 0.6 and later round WKB coordinates to 0.01 px and keep them as float32."""
    rng = np.random.default_rng(3)
    outer = shapely.Point(3003.217, 41.093).buffer(12.3)
    holed = outer.difference(shapely.Point(3003.2, 41.1).buffer(4.4))
    stamped = stamp(PathObjects.build(Polygons.from_shapely([holed, outer]), classes=["A", "A"]), "test", "run")
    saved = stamped.take([0, 1])
    once = np.floor(saved.polygons.coords / 0.01 + 0.5) * 0.01
    several = saved.polygons.vertex_owner == 0
    saved.polygons.coords[several] = once[several].astype(np.float32)
    assert not corrected(saved).any()
    saved.polygons.coords[several] += rng.normal(0, 0.1, (several.sum(), 2))
    assert corrected(saved).tolist() == [True, False]


def test_the_projects_colour_goes_into_the_objects(tmp_path):
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(tmp_path / "s.png")
    new = PathObjects.build(
        Polygons.from_rings([[5, 5], [9, 5], [7, 9]], [0, 3]), classes=["A"], class_colors={"A": (9, 9, 9)}
    )
    with QuPathProject.open(tmp_path / "p", "x") as project, open_slide(tmp_path / "s.png") as slide:
        project.add_classes({"A": (1, 2, 3)})
        project.add_image(slide).write_objects(new)
    with QuPathProject.open(tmp_path / "p", "r") as project:
        assert project.entries[0].read_objects().class_colors == {"A": (1, 2, 3)}


def test_sorted_vertices_are_those_of_a_plain_sort():
    rng = np.random.default_rng(0)
    length = rng.integers(0, 9, 500)
    starts = np.r_[0, np.cumsum(length)]
    vertices = (rng.normal(size=(starts[-1], 2)) * rng.choice([1e-3, 1, 1e5], (starts[-1], 1))).astype(np.float32)
    vertices[rng.random(len(vertices)) < 0.2] *= np.float32(-0.0)
    vertices[rng.random(len(vertices)) < 0.3, 0] = 5
    plain = vertices + np.float32(0)
    order = np.lexsort((plain[:, 1], plain[:, 0], np.repeat(np.arange(500), length)))
    assert plain[order].tobytes() == _sorted_vertices(vertices, starts).tobytes()


def test_what_a_person_accepted_stays(tmp_path):
    objects = stamp(many(10), "import:S", "first")
    objects.metadata["stqp.reviewed"] = np.full(10, None, object)
    objects.metadata["stqp.reviewed"][[2, 5]] = "someone 2026-01-01T10:00:00Z"
    assert np.flatnonzero(settled(objects)).tolist() == [2, 5] and not corrected(objects).any()
    drop, _ = replacement(objects, stamp(many(10), "import:S", "second"), "import:S")
    assert np.flatnonzero(~drop).tolist() == [2, 5]
