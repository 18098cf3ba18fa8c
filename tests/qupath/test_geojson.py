"""GeoJSON that QuPath's strict reader takes."""

import gzip
import json
import math

import numpy as np
import pyarrow as pa
import pytest
import shapely
from qupath.qupath_objects import discs, geometry_objects, many

from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.qupath import geojson
from stqp.qupath.codec.decode import ellipse
from stqp.qupath.geo.text import Runs, coordinate_texts, listed, number_texts, object_texts, string_texts
from stqp.qupath.geojson import write_geojson
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind

# members that a reader of QuPath 0.4 to 0.7 looks for, and what it does not like there
ALIASES = {"type", "object_type", "children", "id", "geometry"}


def read(path, areas_only=True):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    content = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert content["type"] == "FeatureCollection"
    check(content["features"], areas_only)
    return content["features"]


def check(features, areas_only):
    for feature in features:
        for key in ("geometry", "nucleusGeometry"):
            if key in feature:
                check_geometry(feature[key], areas_only)
        properties = feature["properties"]
        assert None not in properties.values()  # QuPath fails on "name": null
        assert not ALIASES.intersection(properties)
        assert all(math.isfinite(v) for v in properties.get("measurements", {}).values())
        if "classification" in properties:  # without a colour it fails
            assert {"name", "color"} == {*properties["classification"]}
        check(properties.get("childObjects", []), areas_only)


def check_geometry(geometry, areas_only=True):
    kinds = {"Polygon", "MultiPolygon"} if areas_only else {
        "Polygon", "MultiPolygon", "Point", "MultiPoint", "LineString", "MultiLineString"}  # fmt: skip
    assert geometry["type"] in kinds  # 0.6 refuses collections
    parts = {"Polygon": [geometry["coordinates"]], "MultiPolygon": geometry["coordinates"]}.get(geometry["type"], [])
    for part in parts:
        for ring in part:
            assert ring[0] == ring[-1] and len(ring) >= 4
    shape = shapely.from_geojson(json.dumps({k: geometry[k] for k in ("type", "coordinates")}))
    assert shapely.is_valid(shape) and not shape.is_empty
    assert shape.area > 0 or not areas_only


def shape_of(feature):
    return shapely.from_geojson(json.dumps(feature["geometry"]))


def test_columns(tmp_path):
    objects = many(200, seed=11)
    objects.colors[::5] = 0xFF102030
    progress = []
    assert write_geojson(tmp_path / "o.geojson", objects, lambda *a: progress.append(a)) == (200, 0, 0)
    assert progress == [(200, 200)]
    features = read(tmp_path / "o.geojson")
    types = {0: "annotation", 1: "detection", 2: "cell", 3: "tile"}
    for i, feature in enumerate(features):
        properties = feature["properties"]
        assert feature["id"] == objects.ids[i]
        assert properties["objectType"] == types[objects.kind[i]]
        assert properties.get("classification", {}).get("name") == objects.classes[i]
        assert properties.get("name") == objects.names[i]
        assert properties.get("isLocked", False) == objects.locked[i]
        assert properties.get("color") == ([16, 32, 48] if i % 5 == 0 else None)
        assert properties["measurements"]["Area µm²"] == objects.measurements["Area µm²"][i]
        assert properties["metadata"].get("note") == objects.metadata["note"][i]
        assert ("Score" in properties["measurements"]) == np.isfinite(objects.measurements["Score"][i])
        np.testing.assert_equal(properties.get("classProbability", np.nan), objects.probability[i])
        assert feature["geometry"].get("plane", {"z": 0})["z"] == objects.plane[i, 1]
        has = objects.kind[i] == ObjectKind.CELL and np.diff(objects.nuclei.geom_offsets)[i] > 0
        assert ("nucleusGeometry" in feature) == has
        np.testing.assert_allclose(shape_of(feature).bounds, objects.polygons.bounds()[i], atol=6e-4)
    classified = [f["properties"]["classification"] for f in features if "classification" in f["properties"]]
    assert {"name": "Tumor: Positive", "color": [250, 62, 62]} in classified


def test_small_chunks_and_compression_change_nothing(tmp_path, monkeypatch):
    objects = many(100)
    objects.parent[50:60] = 3
    objects.parent[70:80] = 55
    write_geojson(tmp_path / "a.geojson", objects)
    monkeypatch.setattr(geojson, "_CHUNK", 7)
    monkeypatch.setattr(geojson, "_CHUNK_VERTICES", 90)
    progress = []
    assert write_geojson(tmp_path / "b.geojson.gz", objects, lambda *a: progress.append(a)) == (100, 0, 0)
    assert len(progress) > 15 and progress[-1] == (100, 100)
    assert gzip.decompress((tmp_path / "b.geojson.gz").read_bytes()) == (tmp_path / "a.geojson").read_bytes()
    first = (tmp_path / "b.geojson.gz").read_bytes()
    write_geojson(tmp_path / "c.JSON.GZ", objects)
    assert (tmp_path / "c.JSON.GZ").read_bytes() == first


def test_holes_and_parts(tmp_path):
    objects = geometry_objects()
    assert write_geojson(tmp_path / "o.geojson", objects) == (5, 0, 0)
    features = read(tmp_path / "o.geojson")
    shapes = [shape_of(f) for f in features]
    np.testing.assert_allclose([s.area for s in shapes], objects.polygons.area(), rtol=1e-4)
    assert len(shapes[0].interiors) == 1 and shapes[1].geom_type == "MultiPolygon"
    # an ellipse is one by its bounds, so a turned one has to be a polygon
    assert [f["geometry"].get("isEllipse") for f in features] == [None, None, None, True, None]


def test_invalid_outlines_are_mended_or_left_out(tmp_path):
    rings = [
        [[0, 0], [10, 10], [10, 0], [0, 10]],  # a bow tie
        [[0, 0], [10, 0], [10, 10]],
        [[5, 5], [6, 6], [7, 7]],  # no area
        [[0.0001, 0], [0.0002, 0], [0.0002, 0.0001]],  # vanishes when rounded
        [[0, 0], [10, 0], [10, 10], [20, 10], [10, 10], [0, 10]],  # a spike
        [[0, 0], [10, 0], [math.nan, 10]],
        [[0, 0], [10, 0], [math.inf, 10]],
    ]
    offsets = np.concatenate(([0], np.cumsum([len(r) for r in rings])))
    polygons = Polygons.concatenate([Polygons.from_rings(np.concatenate(rings), offsets), Polygons.empty(1)])
    objects = PathObjects.build(polygons)
    assert write_geojson(tmp_path / "o.geojson", objects) == (3, 2, 5)
    features = read(tmp_path / "o.geojson")
    assert [f["id"] for f in features] == objects.ids[[0, 1, 4]].tolist()
    np.testing.assert_allclose([shape_of(f).area for f in features], [50, 50, 100], rtol=1e-3)


def test_rings_that_cross_each_other_are_mended(tmp_path):
    square, other = [[0, 0], [10, 0], [10, 10], [0, 10]], [[5.3, 5.3], [15.1, 6.2], [15, 15], [5, 15.7]]
    polygons = Polygons(np.array([*square, *other]), np.array([0, 4, 8]), np.array([0, 2]))
    assert write_geojson(tmp_path / "o.geojson", PathObjects.build(polygons)) == (1, 1, 0)
    (feature,) = read(tmp_path / "o.geojson")
    xy = shapely.get_coordinates(shape_of(feature))
    assert (np.round(xy, 3) == xy).all()


def test_a_broken_nucleus_is_left_off(tmp_path):
    cells = discs([[50, 50]] * 3, 20, 12)
    rings = [[50, 50], [55, 55], [60, 60], [50, 50], [60, 60], [60, 50], [50, 60], [45, 45], [50, 45], [50, 50]]
    nuclei = Polygons.from_rings(rings, [0, 3, 7, 10])
    objects = PathObjects.build(cells, kind=ObjectKind.CELL, nuclei=nuclei)
    assert write_geojson(tmp_path / "o.geojson", objects) == (3, 2, 0)
    features = read(tmp_path / "o.geojson")
    assert ["nucleusGeometry" in f for f in features] == [False, True, True]
    assert features[1]["nucleusGeometry"]["type"] == "MultiPolygon"


def test_lines_points_and_mixtures(tmp_path):
    from qupath.test_qpdata_kinds import every_shape

    objects = every_shape()
    assert write_geojson(tmp_path / "o.geojson", objects) == (9, 1, 0)  # QuPath knows no mixture of area and line
    features = read(tmp_path / "o.geojson", areas_only=False)
    types = ["Polygon", "Polygon", "Polygon", "Polygon", "LineString", "LineString", "MultiPoint", "MultiLineString",
             "Polygon"]  # fmt: skip
    assert [f["geometry"]["type"] for f in features] == types
    assert features[4]["geometry"]["coordinates"] == [[1.1, 2], [3, 4.3]]
    assert features[4]["geometry"]["plane"] == {"c": -1, "z": 1, "t": 0}
    assert features[2]["properties"]["color"] == [16, 32, 48]
    one = PathObjects.build(
        Polygons.empty(4),
        lines=Polygons.from_rings([[1, 2], [3, 3], [3, 3.0001], [1, 1], [2, 2], [5, 5], [6, 6]], [0, 1, 3, 5, 7]),
        roi_kind=[RoiKind.POINTS, RoiKind.LINE, RoiKind.LINE, RoiKind.LINE],
    )
    one.lines.coords[5:] = np.nan
    assert write_geojson(tmp_path / "o.geojson", one) == (2, 0, 2)  # a line without a length, and one of NaN
    features = read(tmp_path / "o.geojson", areas_only=False)
    assert features[0]["geometry"] == {"type": "Point", "coordinates": [1, 2]}


def test_children_are_within_their_parents(tmp_path):
    objects = PathObjects.build(
        discs(np.arange(20).reshape(10, 2) * 30, 10, 8),
        parent=[-1, 0, -1, 1, 2, 0, 3, -1, 1, 4],
        kind=[0, 0, 0, 1, 1, 1, 1, 0, 1, 1],
    )
    assert write_geojson(tmp_path / "o.geojson", objects) == (10, 0, 0)

    def tree(features):
        return {objects.ids.tolist().index(f["id"]): tree(f["properties"].get("childObjects", [])) for f in features}

    features = read(tmp_path / "o.geojson")
    assert tree(features) == {0: {1: {3: {6: {}}, 8: {}}, 5: {}}, 2: {4: {9: {}}}, 7: {}}
    assert write_geojson(tmp_path / "o.geojson", objects, nested=False) == (10, 0, 0)
    assert [f["id"] for f in read(tmp_path / "o.geojson")] == objects.ids.tolist()
    # children of one that is left out go to its parent
    objects.polygons.coords[8:16] = 7
    assert write_geojson(tmp_path / "o.geojson", objects) == (9, 0, 1)
    assert tree(read(tmp_path / "o.geojson")) == {0: {3: {6: {}}, 5: {}, 8: {}}, 2: {4: {9: {}}}, 7: {}}
    objects.parent[0] = 5
    with pytest.raises(UsageError, match="after their parents"):
        write_geojson(tmp_path / "o.geojson", objects)


def test_tma_cores(tmp_path):
    cores = PathObjects.build(
        Polygons.from_rings(np.concatenate([ellipse(0, 0, 50, 50), ellipse(100, 0, 150, 50)]), [0, 128, 256]),
        kind=ObjectKind.TMA_CORE,
        roi_kind=[RoiKind.ELLIPSE] * 2,
        missing=[False, True],
    )
    write_geojson(tmp_path / "o.geojson", cores)
    features = read(tmp_path / "o.geojson")
    assert [f["properties"]["isMissing"] for f in features] == [False, True]
    assert all(f["geometry"]["isEllipse"] for f in features)


def test_no_objects(tmp_path):
    assert write_geojson(tmp_path / "o.json", PathObjects.empty()) == (0, 0, 0)
    assert read(tmp_path / "o.json") == []
    nothing = PathObjects.build(Polygons.empty(3))
    assert write_geojson(tmp_path / "o.json", nothing) == (0, 0, 3)
    assert read(tmp_path / "o.json") == []


@pytest.mark.parametrize("name", ["o.txt", "o.geojson.zip", "o.gz", "geojson"])
def test_a_file_that_qupath_would_ignore_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="geojson"):
        write_geojson(tmp_path / name, many(1))
    assert not (tmp_path / name).exists()


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "o.geojson"
    write_geojson(path, many(3))
    before = path.read_bytes()
    objects = many(3)
    objects.classes[1] = "two\nlines"
    with pytest.raises(UsageError, match="two lines"):
        write_geojson(path, objects)
    with pytest.raises(UsageError, match="decimals"):
        write_geojson(path, many(3), decimals=10)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_text_of_every_sort(tmp_path):
    texts = ['say "x"', "back\\slash", "tab\tnew\nline", "\x01", "half \ud800", "🙂 µ", "", '"coordinates":[[1,2]]']
    objects = PathObjects.build(discs(np.zeros((8, 2)), 10, 8), names=texts, metadata={'k"ey\n\udc00': texts})
    objects.classes[:5] = ['a "b"', " ", "x: y", "ü", "\ud800"]
    write_geojson(tmp_path / "o.geojson", objects)
    features = read(tmp_path / "o.geojson")
    assert [f["properties"]["name"] for f in features] == texts
    assert [f["properties"]["metadata"]['k"ey\n\udc00'] for f in features] == texts
    classes = [f["properties"].get("classification", {}).get("name") for f in features]
    assert classes == ['a "b"', None, "x: y", "ü", "\ud800", None, None, None]


def slow_text(coords, decimals):
    """The obvious way."""
    return [[round(float(v), decimals) for v in xy] for xy in coords]


@pytest.mark.parametrize("decimals", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("size", [1.0, 1e3, 999_998, 1e9])
def test_numbers_are_those_of_json(decimals, size):
    rng = np.random.default_rng(decimals)
    coords = np.round((rng.random((400, 2)) * 2 - 1) * size, decimals)
    coords[:4] = [[0, -0.0], [1, 10], [0.5, -0.25], [100, 1000]]
    coords = np.round(coords, decimals)
    starts = np.arange(0, 400, 8)
    texts = coordinate_texts(Runs(coords, starts, np.zeros(50, np.int64), np.full(50, 2)), decimals)
    for text, start in zip(texts.to_pylist(), starts, strict=True):
        assert json.loads(text.removesuffix("}")) == slow_text(coords[start : start + 8], decimals)


def test_brackets():
    runs = Runs(
        np.arange(16.0).reshape(8, 2), np.array([0, 2, 3, 5, 6]), np.array([0, 1, 2, 0, 0]), np.array([4, 1, 3])
    )
    assert coordinate_texts(runs, 3).to_pylist() == [
        "[[[[0,1],[2,3]],[[4,5]]],[[[6,7],[8,9]]]]}",
        "[10,11]}",
        "[[[12,13],[14,15]]]}",
    ]


def test_rows_of_nulls_stay():
    columns = [pa.array([None, "a", None]), pa.array([None, "b", "c"])]
    assert listed(columns, ",").to_pylist() == ["", "a,b", "c"]
    assert listed(columns[:1], ",").to_pylist() == ["", "a", ""]
    numbers = pa.array([None, "1", None])
    assert object_texts([("k", numbers), ('"', numbers)]).to_pylist() == [None, '{"k":1,"\\"":1}', None]
    assert object_texts([]) is None


def test_missing_numbers_and_texts():
    assert number_texts(np.array([1.5, np.nan, np.inf, 1e-7, 0.1])).to_pylist() == ["1.5", None, None, "1e-7", "0.1"]
    assert string_texts(np.array(["a", None], object)).to_pylist() == ['"a"', None]
