"""Every kind of object and shape, and what a file holds beside objects: written, read, written again."""

import dataclasses

import numpy as np
import pytest
import shapely
from qupath.qupath_objects import discs, many, same

from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath.image import Stains, WorkflowStep
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind
from stqp.qupath.qpdata import edit_image_data, read_image_data, read_objects, rewrite, write_new


def lines_of(*items):
    """Make ragged lines: each item is a list of runs of vertices."""
    runs = [np.asarray(run, float).reshape(-1, 2) for item in items for run in item]
    return Polygons(
        np.concatenate(runs),
        np.concatenate(([0], np.cumsum([len(r) for r in runs]))).astype(np.int64),
        np.concatenate(([0], np.cumsum([len(i) for i in items]))).astype(np.int64),
    )


def every_shape():
    """Make one annotation of each shape, on planes and with colours of their own."""
    square, hole = shapely.box(0, 0, 10, 10), shapely.box(30, 30, 60, 60) - shapely.box(40, 40, 50, 50)
    empty = shapely.Polygon()
    outlines = [square, square, shapely.Point(50, 50).buffer(10), hole, empty, empty, empty, empty, square]
    lines = lines_of(
        [], [], [], [], [[[1.1, 2], [3, 4.3]]], [[[0, 0], [5, 5], [7, 2]]], [[[1, 1], [2, 2], [9, 9]]],
        [[[0, 0], [1, 1]], [[5, 5], [6, 7], [8, 8]]], [[[100, 100], [120, 130]]],
    )  # fmt: skip
    kinds = ["POLYGON", "RECTANGLE", "ELLIPSE", "GEOMETRY", "LINE", "POLYLINE", "POINTS", "GEOMETRY", "GEOMETRY"]
    from stqp.qupath.codec.decode import ellipse

    rings = Polygons.from_shapely([*outlines[:2], shapely.Polygon(ellipse(40, 40, 60, 60)), *outlines[3:]])
    n = len(kinds)
    return PathObjects.build(
        rings,
        lines=lines,
        roi_kind=[RoiKind[k] for k in kinds],
        plane=[[-1, i % 3, i % 2] for i in range(n)],
        colors=[-1, 0xFF00FF80, 0x80102030, 0, -1, -1, 0xFFFFFFFF, -1, -1],
        classes=["A: B", None, "A", "A", "B", None, "A", "B", "A"],
        names=[f"shape {i}" for i in range(n)],
        metadata={"ANNOTATION_DESCRIPTION": ["line one\nline two", *[None] * (n - 1)]},
    )


def same_in_full(a, b):
    same(a, b)
    for column in ("roi_kind", "colors", "parent"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)
    x, y = a.lines or Polygons.empty(len(a)), b.lines or Polygons.empty(len(b))
    np.testing.assert_array_equal(x.geom_offsets, y.geom_offsets)
    np.testing.assert_array_equal(x.ring_offsets, y.ring_offsets)
    np.testing.assert_allclose(x.coords, y.coords, rtol=1e-7)
    for m, n in ((a.missing, len(b)), (b.missing, len(a))):
        assert m is None or len(m) == n
    if a.missing is not None or b.missing is not None:
        np.testing.assert_array_equal(a.missing, b.missing)


def test_every_shape_comes_back(tmp_path):
    objects = every_shape()
    path = tmp_path / "data.qpdata"
    write_new(path, objects, "{}")
    read = read_objects(path)
    # a rectangle begins at its corner, whichever way it was drawn
    shapes, drawn = read.polygons.to_shapely(), objects.polygons.to_shapely()
    assert shapely.area(shapely.symmetric_difference(shapes, drawn)).max() < 1e-3
    same_in_full(dataclasses.replace(read, polygons=objects.polygons), objects)
    # a line keeps double precision, as in QuPath
    assert read.lines.coords[0].tolist() == [1.1, 2.0]
    write_new(tmp_path / "again", read, "{}")
    same_in_full(read_objects(tmp_path / "again"), read)


def test_own_colours_among_many(tmp_path):
    objects = many(500)
    objects.colors[::7] = 0xFF336699
    write_new(tmp_path / "data.qpdata", objects, "{}")
    same_in_full(read_objects(tmp_path / "data.qpdata"), objects)


def test_columns_are_taken_and_joined():
    objects = every_shape()
    rest = many(4)
    both = PathObjects.concatenate([rest, objects])
    same_in_full(both.take(np.arange(4, len(both))), objects)
    assert len(both.lines) == len(both) and (both.colors[:4] == -1).all()
    drawn = PathObjects.build(Polygons.empty(2), lines=lines_of([[[0, 0], [1, 1]]], [[[0, 0], [1, 1], [2, 2]]]))
    assert drawn.roi_kind.tolist() == [RoiKind.LINE, RoiKind.POLYLINE]


def cores():
    return PathObjects.build(
        discs([[100, 100], [300, 100], [100, 300], [300, 300], [500, 100], [500, 300]], 40, 32),
        kind=ObjectKind.TMA_CORE,
        names=["A-1", "A-2", "B-1", "B-2", "C-1", "C-2"],
        metadata={"Case ID": [f"case {i}" for i in range(6)]},
        missing=[False, True, False, False, False, True],
    )


def test_a_new_tma_grid(tmp_path):
    path = tmp_path / "data.qpdata"
    inside = PathObjects.build(discs([[100, 100], [300, 100]], 5, 12), kind=ObjectKind.DETECTION, parent=[-1, -1])
    objects = PathObjects.concatenate([cores(), inside])
    objects.parent[6:] = [0, 1]
    write_new(path, objects, "{}", tma_grid=(2, 3), image_type="BRIGHTFIELD_H_DAB")
    data = read_image_data(path)
    assert data.tma_grid == (2, 3) and data.image_type == "BRIGHTFIELD_H_DAB"
    order = np.argsort(data.objects.ids)
    same(data.objects.take(order).take(data.objects.take(order).kind == 4), objects.take(np.argsort(objects.ids)).take(
        objects.kind[np.argsort(objects.ids)] == 4))  # fmt: skip
    read = data.objects
    missing = dict(zip(read.names, read.missing, strict=True))
    assert [missing[n] for n in cores().names] == cores().missing.tolist()
    cell = np.flatnonzero(read.kind == ObjectKind.DETECTION)
    assert read.names[read.parent[cell]].tolist() == ["A-1", "A-2"]
    # and it is kept when others are added
    rewrite(path, np.zeros(len(read), bool), many(5))
    assert read_image_data(path).tma_grid == (2, 3)


def test_cores_need_a_grid(tmp_path):
    with pytest.raises(UsageError, match="need a grid"):
        write_new(tmp_path / "x", cores(), "{}")
    with pytest.raises(UsageError, match="needs 4 cores, but there are 6"):
        write_new(tmp_path / "x", cores(), "{}", tma_grid=(2, 2))
    write_new(tmp_path / "x", many(3), "{}")
    with pytest.raises(UsageError, match="new file only"):
        rewrite(tmp_path / "x", np.zeros(3, bool), cores())


STAINS = Stains("mine", [("Hematoxylin", (0.65, 0.7, 0.29)), ("Eosin", (0.2, 0.99, 0.1))], (240.0, 240.0, 239.0))
STEP = WorkflowStep("Set pixel size", 'setPixelSizeMicrons(0.25, 0.25) // "é"', {"x": "0.25", "n": 3, "on": True})


def test_what_a_file_holds_beside_objects(tmp_path):
    path = tmp_path / "data.qpdata"
    properties = {"note": "héllo", "count": 3, "ratio": 0.5, "done": False}
    write_new(path, many(20), '{"qupathVersion":"0.5.1"}', properties, stains=STAINS, steps=[STEP])
    data = read_image_data(path)
    assert data.image_type == "BRIGHTFIELD_H_E" and data.qupath_version == "0.5.1"
    assert data.stains == STAINS and data.workflow == [STEP] and data.properties == properties
    assert data.tma_grid is None


def test_it_changes_without_the_rest(tmp_path):
    path, objects = tmp_path / "data.qpdata", many(20)
    write_new(path, objects, "{}", {"kept": "yes", "old": 1})
    edit_image_data(path, image_type="FLUORESCENCE", stains=STAINS, steps=[STEP], properties={"old": 2, "new": 1.5})
    edit_image_data(path, steps=[WorkflowStep("Again")])
    data = read_image_data(path)
    assert data.image_type == "FLUORESCENCE" and data.stains == STAINS
    assert data.workflow == [STEP, WorkflowStep("Again")]
    assert data.properties == {"kept": "yes", "old": 2, "new": 1.5}
    same(data.objects, objects)
    before = path.read_bytes()
    edit_image_data(path)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="no image type"):
        edit_image_data(path, image_type="H&E")
    assert path.read_bytes() == before


def test_broken_stains_name_the_file(tmp_path):
    path = tmp_path / "data.qpdata"
    write_new(path, many(2), "{}", stains=STAINS)
    path.write_bytes(path.read_bytes().replace(b'"Values 1"', b'"Valves 1"'))
    with pytest.raises(InputError, match=r"data\.qpdata.*stains"):
        read_image_data(path)
    assert len(read_objects(path)) == 2
