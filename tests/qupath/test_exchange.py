"""Objects into files and back."""

import gzip
import json

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image
from qupath.qupath_objects import geometry_objects, many, same

from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath.exchange import export_objects, import_objects
from stqp.qupath.exchange_tables import read_parquet, shapes, write_parquet
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind
from stqp.qupath.ownership import SOURCE_KEY, owned
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide


@pytest.fixture
def objects():
    """Objects of all kinds, some within others."""
    result = PathObjects.concatenate([many(60, seed=4), geometry_objects()])
    result.parent[1:4] = 0
    return result


@pytest.fixture
def project(tmp_path, objects):
    """Three images: objects in the first, others in the second, none in the third."""
    pixels = np.random.default_rng(0).integers(0, 255, (61, 97, 3), np.uint8)
    with QuPathProject.open(tmp_path / "project", "x") as opened:
        for name in ("a.one.png", "b.png", "c.png"):
            Image.fromarray(pixels).save(tmp_path / name)
            with open_slide(tmp_path / name, mpp=0.5) as slide:
                entry = opened.add_image(slide)
            if name == "a.one.png":
                entry.write_objects(objects)
            if name == "b.png":
                entry.write_objects(many(10, seed=5, kind=ObjectKind.DETECTION))
    return tmp_path / "project"


def export(folder, out, form, **options):
    with QuPathProject.open(folder) as opened:
        return export_objects(opened, out, form, **options)


def bring(folder, *paths, **options):
    with QuPathProject.open(folder, "r+") as opened:
        return import_objects(opened, paths, **options)


def read(folder, name):
    with QuPathProject.open(folder) as opened:
        return opened.entry(name).read_objects()


def by_id(objects, without=()):
    result = objects.take(np.argsort(objects.ids.astype(str)))
    result.parent[:] = -1
    for key in list(result.metadata):
        if key.startswith("stqp.") or key in without:
            del result.metadata[key]
    return result


def test_tables(project, tmp_path):
    written = export(project, tmp_path / "out", "csv", compress=True)
    assert [w.entry for w in written] == ["a.one.png", "b.png"]
    objects = read(project, "a.one.png")
    table = pd.read_csv(tmp_path / "out" / "a.one.png.csv.gz")
    assert table["id"].tolist() == objects.ids.tolist()
    np.testing.assert_allclose(table["centroid_x_um"], objects.polygons.centroid()[:, 0] / 2)
    np.testing.assert_allclose(table["area_um2"], objects.polygons.area() / 4)
    np.testing.assert_allclose(table["Score"], objects.measurements["Score"], rtol=1e-6)
    assert table["kind"].tolist() == [ObjectKind(k).name.lower() for k in objects.kind]
    assert table["parent"].dropna().unique().tolist() == [objects.ids[objects.parent[objects.parent >= 0][0]]]
    assert (table["image"] == "a.one.png").all() and "metadata.cell" in table


def test_geoparquet_is_read_by_geopandas(project, tmp_path):
    export(project, tmp_path / "out", "parquet")
    frame = geopandas.read_parquet(tmp_path / "out" / "a.one.png.parquet")
    objects = read(project, "a.one.png")
    np.testing.assert_allclose(frame.geometry.area, objects.polygons.area(), rtol=1e-5)
    cells = frame["kind"] == "cell"
    assert frame["nucleus"].notna().sum() > 0 and not frame.loc[~cells, "nucleus"].notna().any()


@pytest.mark.parametrize("form", ["parquet", "geojson"])
def test_there_and_back(project, tmp_path, form):
    before = read(project, "a.one.png")
    (path,) = [w.file for w in export(project, tmp_path / "out", form, entries=["a.one.png"])]
    (done,) = bring(project, path, entry="c.png")
    assert (done.objects, done.replaced, done.source) == (len(before), 0, "import:a.one.png")
    after = read(project, "c.png")
    assert owned(after, "import:a.one.png").all()
    a, b = by_id(before), by_id(after)
    assert a.class_counts() == b.class_counts() and a.names.tolist() == b.names.tolist()
    assert (after.parent >= 0).sum() == (before.parent >= 0).sum()
    if form == "parquet":
        upright = a.roi_kind != RoiKind.ELLIPSE
        np.testing.assert_array_equal(a.roi_kind[upright], b.roi_kind[upright])
        for part in (a, b):
            part.class_colors = {}
        same(a.take(a.roi_kind == RoiKind.POLYGON), b.take(a.roi_kind == RoiKind.POLYGON))
    np.testing.assert_allclose(a.polygons.area(), b.polygons.area(), rtol=1e-3)


def test_only_some(project, tmp_path):
    objects = read(project, "a.one.png")
    written = export(
        project, tmp_path / "out", "csv", kinds=["cells", "tiles"], classes=["Unclassified"], entries=["1"]
    )
    wanted = np.isin(objects.kind, [2, 3]) & (objects.classes == None)  # noqa: E711
    assert [w.objects for w in written] == [wanted.sum()]
    assert export(project, tmp_path / "none", "csv", classes=["No such"]) == []


def test_cells_for_xenium_ranger(project, tmp_path):
    written = export(project, tmp_path / "out", "ranger")
    with open(tmp_path / "out" / "b.png.geojson") as file:  # noqa: PTH123
        content = json.load(file)
    assert len(content["features"]) == 10 == written[1].objects
    for feature in content["features"]:
        assert feature["properties"]["objectType"] == "cell" and feature["geometry"]["type"] == "Polygon"


def test_a_second_import_replaces_the_first_but_no_corrections(project, tmp_path):
    export(project, tmp_path / "out", "parquet", entries=["b.png"])
    path = tmp_path / "out" / "b.png.parquet"
    (first,) = bring(project, path, entry="c.png", source="mine")
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entry("c.png")
        objects = entry.read_objects()
        changed = objects.take([2])
        changed.classes[:] = "Dead"
        ids = {changed.ids[0]}
        entry.write_objects(changed, lambda p: np.array([i in ids for i in p.ids.tolist()]))
    (second,) = bring(project, path, entry="c.png", source="mine")
    assert (first.objects, second.objects, second.replaced, second.corrected, second.present) == (10, 9, 9, 1, 0)
    assert len(read(project, "c.png")) == 10
    (third,) = bring(project, path, entry="c.png", source="mine", keep_corrections=False)
    assert (third.objects, third.replaced, third.corrected) == (10, 10, 0)


def test_objects_of_others_stay_unless_they_are_to_be_replaced(project, tmp_path):
    export(project, tmp_path / "out", "parquet", entries=["b.png"])
    path = tmp_path / "out" / "b.png.parquet"
    frame = geopandas.read_parquet(path)
    frame["class"] = "Edited"
    frame.to_parquet(path)
    (done,) = bring(project, path)  # to b.png, by its name
    assert (done.entry, done.objects, done.present) == ("b.png", 0, 10)
    (done,) = bring(project, path, replace=True)
    assert (done.objects, done.replaced, done.present) == (10, 10, 0)
    assert read(project, "b.png").class_counts() == {"Edited": 10}


def test_parquet_of_others(tmp_path):
    frame = geopandas.GeoDataFrame(
        {"id": ["x1", "x2", "x3"], "score": [1, 2, 3], "what": ["p", None, "q"], "flag": [True, False, True]},
        geometry=[shapely.box(0, 0, 5, 5), shapely.LineString([(0, 0), (3, 4)]), shapely.Point(7, 8)],
    )
    frame.to_parquet(tmp_path / "f.parquet")
    objects = read_parquet(tmp_path / "f.parquet")
    assert (objects.kind == ObjectKind.ANNOTATION).all()
    assert objects.roi_kind.tolist() == [RoiKind.RECTANGLE, RoiKind.LINE, RoiKind.POINTS]
    assert objects.measurements["score"].tolist() == [1, 2, 3]
    assert objects.metadata["what"].tolist() == ["p", None, "q"] and objects.metadata["id"].tolist() == [
        "x1", "x2", "x3",
    ]  # fmt: skip
    assert [g.geom_type for g in shapes(objects)] == ["Polygon", "LineString", "MultiPoint"]
    plain = pd.DataFrame({"geometry": [shapely.box(0, 0, 5, 5).wkb]})
    plain.to_parquet(tmp_path / "g.parquet")
    assert read_parquet(tmp_path / "g.parquet").polygons.area().tolist() == [25]


def test_lines_points_and_shapes_that_cross_themselves(tmp_path):
    lines = Polygons(
        np.array([[0, 0], [9, 9], [1, 1], [2, 2], [3, 0], [5, 5], [6, 6], [7, 7], [8, 9.0]]),
        np.array([0, 2, 5, 7, 9]),
        np.array([0, 1, 2, 2, 4]),
    )
    bow = np.array([[0, 0], [10, 10], [10, 0], [0, 20.0]])
    polygons = Polygons(bow, np.array([0, 4]), np.array([0, 0, 0, 1, 1]))
    objects = PathObjects.build(polygons, lines=lines, roi_kind=[5, 7, 1, 4])
    made = shapes(objects)
    assert [g.geom_type for g in made] == ["LineString", "MultiPoint", "MultiPolygon", "MultiLineString"]
    assert shapely.is_valid(made).all()
    write_parquet(tmp_path / "f.parquet", objects, "image", None)
    back = read_parquet(tmp_path / "f.parquet")
    assert back.roi_kind.tolist() == [RoiKind.LINE, RoiKind.POINTS, RoiKind.GEOMETRY, RoiKind.GEOMETRY]
    assert back.lines is not None
    np.testing.assert_array_equal(back.lines.coords, lines.coords)
    np.testing.assert_array_equal(back.lines.ring_offsets, lines.ring_offsets)


def test_what_is_refused(project, tmp_path):
    export(project, tmp_path / "out", "csv")
    with pytest.raises(UsageError, match="exists already"):
        export(project, tmp_path / "out", "csv")
    assert export(project, tmp_path / "out", "csv", overwrite=True)
    for options, text in (({"kinds": ["cell"]}, "no objects of the kind"), ({"compress": True}, "not compressed")):
        with pytest.raises(UsageError, match=text):
            export(project, tmp_path / "new", "parquet", **options)
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "b.geojson.gz").write_bytes(gzip.compress(b"{"))
    for name, text in (("x.parquet", "named after none"), ("b.txt", "ends neither"), ("absent.png.parquet", "named")):
        with pytest.raises(InputError, match=text):
            bring(project, tmp_path / name, entry="b.png" if name == "b.txt" else None)
    with pytest.raises(InputError, match="cannot be read as parquet"):
        bring(project, tmp_path / "x.parquet", entry=1)
    before = (project / "data" / "2" / "data.qpdata").read_bytes()
    export(project, tmp_path / "more", "parquet", entries=["b.png"])
    with pytest.raises(InputError):
        bring(project, tmp_path / "more" / "b.png.parquet", tmp_path / "b.geojson.gz")
    assert (project / "data" / "2" / "data.qpdata").read_bytes() == before
    assert SOURCE_KEY not in read(project, "b.png").metadata
