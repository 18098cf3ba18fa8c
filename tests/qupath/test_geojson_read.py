"""GeoJSON of QuPath's versions and of others, read as QuPath reads it."""

import gzip
import json
import zipfile

import numpy as np
import pytest
from qupath.qupath_objects import discs, geometry_objects, many, same
from qupath.test_qpdata_kinds import every_shape

from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.qupath.geo import stream as geojson_stream
from stqp.qupath.geo.coordinates import CoordinateStore
from stqp.qupath.geojson import write_geojson
from stqp.qupath.geojson_read import read_geojson
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 5], [0, 0]]]}
UUID = "12059192-3b27-4438-96dc-97b41ca84717"


def feature(geometry=SQUARE, **properties):
    more = {k: properties.pop(k) for k in ("id", "nucleusGeometry") if k in properties}
    return {"type": "Feature", **more, "geometry": geometry, "properties": properties}


def collection(*features, **more):
    return {"type": "FeatureCollection", **more, "features": [*features]}


@pytest.fixture
def parse(tmp_path):
    def parse(content, name="o.geojson", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read_geojson(path, **options)

    return parse


@pytest.fixture(params=[1 << 20, 50, 7])
def block(request, monkeypatch):
    """Size of the pieces that a file comes in."""
    monkeypatch.setattr(geojson_stream, "BLOCK", request.param)


def rounded(objects):
    """What a file with three decimals keeps."""
    for shapes in (objects.polygons, objects.nuclei, objects.lines):
        if shapes is not None:
            np.round(shapes.coords, 3, out=shapes.coords)
    return objects


def same_in_full(a, b, order=None):
    if order is not None:
        b = b.take(order)
    same(a, b)
    for column in ("roi_kind", "colors"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)
    x, y = a.lines or Polygons.empty(len(a)), b.lines or Polygons.empty(len(b))
    np.testing.assert_array_equal(x.geom_offsets, y.geom_offsets)
    np.testing.assert_array_equal(x.ring_offsets, y.ring_offsets)
    np.testing.assert_array_equal(x.coords, y.coords)
    none = np.zeros(len(a), bool)
    np.testing.assert_array_equal(none if a.missing is None else a.missing, none if b.missing is None else b.missing)


@pytest.mark.parametrize("suffix", ["geojson", "json.gz"])
def test_objects_come_back(tmp_path, suffix, block):
    objects = rounded(many(60, seed=3))
    objects.colors[::7] = 0xFF336699
    write_geojson(tmp_path / f"o.{suffix}", objects)
    read = read_geojson(tmp_path / f"o.{suffix}")
    same_in_full(read, objects)
    assert read.class_colors["Tumor: Positive"] == (250, 62, 62)
    write_geojson(tmp_path / f"again.{suffix}", read)
    same_in_full(read_geojson(tmp_path / f"again.{suffix}"), objects)


def test_every_shape_comes_back(tmp_path, block):
    objects = every_shape()
    ellipse = slice(*objects.polygons.ring_offsets[2:4])
    exact = objects.polygons.coords[ellipse].copy()
    rounded(objects).polygons.coords[ellipse] = exact
    write_geojson(tmp_path / "o.geojson", objects)
    read = read_geojson(tmp_path / "o.geojson")
    # as in QuPath: a square is a rectangle, a colour has no alpha, of a mixture the area stays
    expected = objects.take(np.arange(len(objects)))
    expected.roi_kind[[0, 8]] = RoiKind.RECTANGLE
    expected.colors[expected.colors >= 0] |= 0xFF000000
    last = expected.lines.ring_offsets[expected.lines.geom_offsets[-2]]
    offsets = expected.lines.geom_offsets.copy()
    offsets[-1] = offsets[-2]
    expected.lines = Polygons(expected.lines.coords[:last], expected.lines.ring_offsets[: offsets[-1] + 1], offsets)
    for shapes in (read.polygons, expected.polygons):  # rectangles begin at their upper left corner
        for i in np.flatnonzero(read.roi_kind == RoiKind.RECTANGLE):
            first = shapes.ring_offsets[shapes.geom_offsets[i]]
            shapes.coords[first : first + 4] = shapes.coords[first : first + 4][
                np.lexsort(shapes.coords[first : first + 4].T)
            ]
    same_in_full(read, expected)


def test_holes_come_back(tmp_path):
    objects = geometry_objects()
    write_geojson(tmp_path / "o.geojson", objects)
    read = read_geojson(tmp_path / "o.geojson")
    assert read.roi_kind.tolist() == [
        RoiKind.GEOMETRY,
        RoiKind.GEOMETRY,
        RoiKind.RECTANGLE,
        RoiKind.ELLIPSE,
        RoiKind.POLYGON,
    ]
    np.testing.assert_allclose(read.polygons.area(), objects.polygons.area(), rtol=1e-5)
    np.testing.assert_array_equal(np.diff(read.polygons.geom_offsets), [2, 2, 1, 1, 1])


def test_children_come_back(tmp_path, block):
    objects = PathObjects.build(
        rounded(many(40)).polygons,
        parent=[-1, 0, -1, 1, 2, 0, 3, -1, 1, 4, *[8] * 20, *range(29, 39)],
        kind=ObjectKind.ANNOTATION,
        measurements={"a": np.arange(40)},
        metadata={"m": [str(i) for i in range(40)]},
    )
    write_geojson(tmp_path / "o.geojson", objects)
    read = read_geojson(tmp_path / "o.geojson")
    place = {identity: i for i, identity in enumerate(read.ids)}
    same_in_full(read.take([place[i] for i in objects.ids]), objects)
    assert (read.parent < np.arange(40)).all()


def test_children_before_the_rest_of_their_parent(parse, block):
    child = feature(name="child", objectType="detection", measurements={"x": 1})
    grandchild = feature(name="grandchild", children=[feature(name="last")])
    parent = {
        "geometry": SQUARE,
        "nucleusGeometry": SQUARE,
        "properties": {
            "childObjects": [child, {**child, "properties": {**child["properties"], "childObjects": [grandchild]}}],
            "classification": {"name": "A", "color": [1, 2, 3]},
            "measurements": {"y": 2},
            "metadata": {"childObjects": "[{", "k": "v"},
            "name": "parent",
            "objectType": "cell",
        },
        "id": UUID,
        "type": "Feature",
    }
    for content in (collection(parent, child), [parent, child]):
        read = parse(content)
        assert read.names.tolist() == ["parent", "child", "child", "grandchild", "last", "child"]
        assert read.parent.tolist() == [-1, 0, 0, 2, 3, -1]
        assert read.ids[0] == UUID and read.classes[0] == "A" and read.kind[0] == ObjectKind.CELL
        assert read.metadata["k"][0] == "v" and read.metadata["childObjects"][0] == "[{"
        np.testing.assert_array_equal(read.measurements["x"], [np.nan, 1, 1, np.nan, np.nan, 1])
        assert len(read.nuclei.take([0]).coords) == 3 and read.measurements["y"][0] == 2
    alone = parse(parent)
    assert alone.names.tolist() == ["parent", "child", "child", "grandchild", "last"]


def test_the_forms_of_a_document(parse, tmp_path, block):
    some = [feature(name=str(i)) for i in range(3)]
    lines = [json.dumps(f).encode() for f in some]
    forms = {
        "collection": collection(*some),
        "with others": collection(*some, crs={"type": "name", "features": []}, bbox=[0, 0, 1, 1], name="features"),
        "list": some,
        "list of collections": [collection(*some[:2]), collection(some[2])],
        "pretty": json.dumps(collection(*some), indent=2).encode(),
        "byte order mark": b"\xef\xbb\xbf" + json.dumps(collection(*some)).encode(),
        "lines": b"\r\n".join(lines),
        "sequence": b"".join(b"\x1e" + line + b"\n" for line in lines),
        "collections": b"\n".join(
            [json.dumps(collection(*some[:2])).encode(), json.dumps(collection(some[2])).encode()]
        ),
        "features last": json.dumps({"features": some, "type": "FeatureCollection", "z": {"a": [1]}}).encode(),
        "gzip": gzip.compress(json.dumps(collection(*some)).encode()),
    }
    for name, content in forms.items():
        read = parse(content)
        assert read.names.tolist() == ["0", "1", "2"], name
        assert read.polygons.area().tolist() == [25, 25, 25], name
        assert len({*read.ids}) == 3
    with zipfile.ZipFile(tmp_path / "o.zip", "w") as archive:
        archive.writestr("a/o.geojson", json.dumps(collection(*some)))
        archive.writestr("readme.txt", "no objects")
        archive.writestr("b.json", lines[0])
    assert read_geojson(tmp_path / "o.zip").names.tolist() == ["0", "1", "2", "0"]
    for empty in (b"", b"  ", b"[]", b'{"type":"FeatureCollection","features":[]}'):
        assert len(parse(empty)) == 0


def test_geometries(parse):
    line = [[0, 0], [4, 4]]
    shapes = {
        "Point": ([1, 2], RoiKind.POINTS),
        "MultiPoint": ([[1, 2], [3, 4, 5]], RoiKind.POINTS),
        "LineString": (line, RoiKind.LINE),
        "MultiLineString": ([line, [[0, 0], [1, 1], [2, 0]]], RoiKind.GEOMETRY),
        "Polygon": ([[[0, 0], [9, 0], [9, 9], [0, 0]], [[5, 1], [5, 2], [6, 2], [5, 1]]], RoiKind.GEOMETRY),
        "MultiPolygon": ([[[[0, 0], [9, 0], [9, 9], [0, 0]]]], RoiKind.POLYGON),
    }
    geometries = [{"type": kind, "coordinates": xy} for kind, (xy, _) in shapes.items()]
    read = parse(collection(*map(feature, geometries)))
    assert read.roi_kind.tolist() == [kind for _, kind in shapes.values()]
    assert np.diff(read.lines.ring_offsets).tolist() == [1, 2, 2, 2, 3]
    assert np.diff(read.lines.geom_offsets).tolist() == [1, 1, 1, 2, 0, 0]
    np.testing.assert_allclose(read.polygons.area(), [0, 0, 0, 0, 40, 40.5])
    # alone, each is an annotation
    for geometry, kind in zip(geometries, read.roi_kind, strict=True):
        alone = parse(geometry)
        assert alone.roi_kind.tolist() == [kind] and alone.kind.tolist() == [ObjectKind.ANNOTATION]
    # a collection: areas and lines stay, as columns can hold both; points only where there is nothing else
    both = parse({"type": "GeometryCollection", "geometries": [geometries[4], geometries[2], geometries[0]]})
    assert both.roi_kind.tolist() == [RoiKind.GEOMETRY]
    assert len(both.lines.coords) == 2 and both.polygons.area().tolist() == [40]
    points = parse({"type": "GeometryCollection", "geometries": geometries[:2]})
    assert points.roi_kind.tolist() == [RoiKind.POINTS] and np.diff(points.lines.ring_offsets).tolist() == [3]
    none = parse(collection(feature({}), feature({"type": "Polygon", "coordinates": []}), feature(None)))
    assert none.roi_kind.tolist() == [RoiKind.NONE] * 3


def test_ellipses_rectangles_and_planes(parse):
    box = {"type": "Polygon", "coordinates": [[[1, 2], [1, 8], [5, 8], [5, 2], [1, 2]]]}
    read = parse(collection(feature(box), feature({**box, "isEllipse": True, "plane": {"c": 2, "z": 3, "t": 4}})))
    assert read.roi_kind.tolist() == [RoiKind.RECTANGLE, RoiKind.ELLIPSE]
    assert read.plane.tolist() == [[-1, 0, 0], [2, 3, 4]]
    assert read.polygons.take([0]).coords.tolist() == [[1, 2], [5, 2], [5, 8], [1, 8]]
    assert len(read.polygons.take([1]).coords) == 128
    assert read.polygons.bounds().tolist() == [[1, 2, 5, 8]] * 2


def test_holes_are_turned_against_their_outer_rings(parse):
    for outer in ([[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]], [[0, 0], [0, 9], [9, 9], [9, 0], [0, 0]]):
        for hole in ([[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]], [[2, 2], [2, 4], [4, 4], [4, 2], [2, 2]]):
            geometry = {"type": "MultiPolygon", "coordinates": [[outer, hole], [[[20, 0], [21, 0], [21, 2], [20, 0]]]]}
            read = parse(collection(feature(), feature(geometry), feature()))
            assert read.polygons.area().tolist() == [25, 81 - 4 + 1, 25]


def test_classes_and_colours(parse):
    forms = {
        "text": "A",
        "name": {"name": "A", "color": [1, 2, 3]},
        "alpha": {"name": "A", "color": [1, 2, 3, 4]},
        "packed": {"name": "A", "colorRGB": -(2**24) + 0x010203},
        "names": {"names": ["A", "B"], "color": [4, 5, 6]},
        "0.3": {"name": "B", "colorRGB": 7, "parentClass": {"name": "A", "colorRGB": 1}},
        "empty": {},
        "none": None,
    }
    read = parse(collection(*[feature(classification=c) for c in forms.values()]))
    assert read.classes.tolist() == ["A", "A", "A", "A", "A: B", "A: B", None, None]
    assert read.class_colors == {"A": (1, 2, 3), "A: B": (4, 5, 6)}
    for color, expected in (([1, 2, 3], 0xFF010203), (-1, 0xFFFFFFFF), (0x80010203, 0x80010203), ("red", -1)):
        assert parse(collection(feature(color=color))).colors.tolist() == [expected]
    for name, color in (("packed", (1, 2, 3)), ("alpha", (1, 2, 3))):
        assert parse(collection(feature(classification=forms[name]))).class_colors == {"A": color}


def test_kinds_and_ids(parse):
    kinds = ["annotation", "detection", "cell", "tile", "tmaCore", "odd"]
    others = [feature(object_type="tma_core"), feature(type="cell"), feature(type="odd")]
    read = parse(collection(*[feature(objectType=k) for k in kinds], *others))
    assert read.kind.tolist() == [0, 1, 2, 3, 4, 0, 4, 2, 0]
    assert read.metadata["type"].tolist() == [None] * 8 + ["odd"]
    ids = ["PathAnnotationObject", "PathCellObject", "PathTileObject", "TMACoreObject", UUID, "cell 7", 8, None]
    read = parse(collection(*[feature(id=i) for i in ids]))
    assert read.kind.tolist() == [0, 2, 3, 4, 0, 0, 0, 0]
    assert read.ids[4] == UUID and len({*read.ids}) == 8 and all(len(i) == 36 for i in read.ids)
    assert read.metadata["id"].tolist() == [None] * 5 + ["cell 7", "8", None]


def test_properties(parse):
    read = parse(
        json.dumps(
            collection(
                feature(
                    name="n", isLocked=True, classProbability=0.75, isMissing=True, measurements={"a": 1, "b": None}
                ),
                feature(measurements=[{"name": "a", "value": 2.5}, {"name": "c", "value": float("nan")}]),
                feature(
                    measurements={"a": "NaN", "b": "Infinity", "c": "4", "d": "note"}, metadata={"k": 1, "n": None}
                ),
                {"type": "Feature", "geometry": SQUARE, "properties": None},
                {"type": "Feature", "geometry": SQUARE},
            )
        ).encode()
    )
    assert read.names[0] == "n" and read.locked.tolist() == [True, False, False, False, False]
    assert read.missing.tolist() == [True, False, False, False, False]
    assert read.probability[0] == 0.75 and np.isnan(read.probability[1:]).all()
    np.testing.assert_array_equal(read.measurements["a"], [1, 2.5, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(read.measurements["b"], [np.nan, np.nan, np.inf, np.nan, np.nan])
    assert read.measurements["c"][2] == 4 and "d" not in read.measurements
    assert read.metadata["k"][2] == "1" and "n" not in read.metadata


def test_properties_of_others_are_metadata(parse):
    # as TIAToolbox, a tool of a person, and Space Ranger write them
    one = feature(prob=0.9, type=3, contour=[[1, 2]], note="x", ok=True, nothing=None)
    two = feature(
        cell_id=17, children=[8, 9], coordinates=[[1, 2], [3, 4]], nested={"coordinates": [1, 2], "children": [1]}
    )
    read = parse(collection(one, two))
    assert {k: v.tolist() for k, v in read.metadata.items()} == {
        "prob": ["0.9", None], "type": ["3", None], "contour": ["[[1, 2]]", None], "note": ["x", None],
        "ok": ["true", None], "cell_id": [None, "17"], "children": [None, "[8, 9]"],
        "coordinates": [None, "[[1, 2], [3, 4]]"],
        "nested": [None, '{"coordinates": [1, 2], "children": [1]}'],
    }  # fmt: skip


def test_a_class_in_one_geometry_is_split(parse):
    rng = np.random.default_rng(0)
    rings = [[*r.tolist(), r[0].tolist()] for r in (discs(rng.random((5, 2)) * 100, 5, 7).coords.reshape(5, 7, 2))]
    hole = [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]], [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]]
    content = [
        feature({"type": "MultiPolygon", "coordinates": [[r] for r in rings]}, id=UUID, classification="A"),
        feature(name="between"),
        feature({"type": "MultiPolygon", "coordinates": [hole, [rings[0]]]}, classification="B", measurements={"m": 3}),
        feature({"type": "LineString", "coordinates": [[0, 0], [1, 1]]}),
    ]
    whole = parse(content)
    assert len(whole) == 4 and np.diff(whole.polygons.geom_offsets).tolist() == [5, 1, 3, 0]
    read = parse(content, split=True)
    assert read.classes.tolist() == ["A"] * 5 + [None, "B", "B", None]
    assert read.ids[0] == UUID and len({*read.ids}) == 9
    assert np.diff(read.polygons.geom_offsets).tolist() == [1, 1, 1, 1, 1, 1, 2, 1, 0]
    assert read.roi_kind.tolist() == [1, 1, 1, 1, 1, 1, 4, 1, 5]
    assert read.measurements["m"][6:8].tolist() == [3, 3]
    np.testing.assert_allclose(read.polygons.area()[6], 77)
    assert read.polygons.take([2]).coords.tolist() == rings[2][:-1]
    assert len(read.polygons.coords) == len(whole.polygons.coords)


SPOILT = {
    "number": (b"12", "where a GeoJSON object begins"),
    "garbage": (b"\x00\x01\x02\xff" * 100, "is not UTF-8"),
    "text": (b"hello", "'h' where"),
    "utf-16": (json.dumps(collection()).encode("utf-16"), "UTF-16"),
    "latin-1": (json.dumps(collection(feature(name="é")), ensure_ascii=False).encode("latin-1"), "not UTF-8"),
    "type": ({"type": "Topology"}, "'Topology'"),
    "geometry type": (collection(feature(), feature({"type": "Circle", "coordinates": [1, 2]})), "'Circle'.*feature 2"),
    "no coordinates": (collection(feature({"type": "Polygon"})), "without coordinates.*feature 1"),
    "null in coordinates": (collection(feature({"type": "Point", "coordinates": [None, 1]})), "Point.*feature 1"),
    "wrong depth": (collection(feature(), feature({"type": "Polygon", "coordinates": [[0, 0], [1, 1]]})), "feature 2"),
    "mixed depth": (collection(feature({"type": "Polygon", "coordinates": [[[0, 0]], [1, 1]]})), "feature 1"),
    "one number": (collection(feature({"type": "MultiPoint", "coordinates": [[1], [2]]})), "feature 1"),
    "properties": (collection({"type": "Feature", "geometry": SQUARE, "properties": 3}), "properties.*feature 1"),
    "classification": (collection(feature(classification=[1])), "classification.*feature 1"),
    "plane": (collection(feature({**SQUARE, "plane": {"z": 1e400}})), "plane"),
    "a list of numbers": ([1, 2], "1 where a feature"),
    "deep": (b"[" * 100_000, "nested too deep"),
    "deep coordinates": (b'{"type":"Polygon","coordinates":' + b"[" * 300 + b"1,2" + b"]" * 300 + b"}", "Polygon"),
    "deep properties": (b'{"type":"Feature","properties":{"a":' + b'{"a":' * 50_000, "nested too deep"),
    "comma": (b'{"type":"FeatureCollection","features":[{"type" "Feature"}' + b" " * 100 + b"]}", "is no JSON"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_no_geojson_says_so(parse, name):
    content, message = SPOILT[name]
    with pytest.raises(InputError, match=rf"o\.geojson .*{message}"):
        parse(content)


def test_many_children_of_one_parent_are_never_held_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(geojson_stream, "BLOCK", 4096)
    objects = many(2000)
    objects.parent[1:] = 0
    write_geojson(tmp_path / "o.geojson", objects)
    stream = geojson_stream.FeatureStream(geojson_stream.blocks(tmp_path / "o.geojson"), CoordinateStore())
    held = [len(stream._text) for _ in stream.events()]
    assert len(held) == 2001 and max(held) < 10_000


def test_children_without_end_are_refused(parse):
    one = b'{"type":"Feature","geometry":{},"properties":{"childObjects":['
    with pytest.raises(InputError, match="more than 1000 deep"):
        parse(b'{"type":"FeatureCollection","features":[' + one * 1200)


def test_every_truncation_is_noticed(tmp_path, parse):
    objects = many(4, seed=5)
    objects.parent[2] = 1
    write_geojson(tmp_path / "whole.geojson", objects)
    data = (tmp_path / "whole.geojson").read_bytes().rstrip()
    assert len(parse(data)) == 4
    for stop in range(1, len(data), 3):
        with pytest.raises(InputError, match=r"o\.geojson"):
            parse(data[:stop])


def test_damaged_compression(parse, tmp_path):
    data = gzip.compress(json.dumps(collection(*[feature(name=str(i)) for i in range(300)])).encode())
    for spoilt in (data[:100], data[:-4], data[:50] + b"xxxx" + data[54:]):
        with pytest.raises(InputError, match=r"o\.geojson"):
            parse(spoilt)
    with pytest.raises(InputError, match="cannot be read"):
        read_geojson(tmp_path / "absent.geojson")
    with pytest.raises(InputError, match="cannot be read"):
        parse(b"PK\x03\x04 nothing of a zip")


def test_random_bytes_never_do_worse_than_an_input_error(tmp_path, parse):
    write_geojson(tmp_path / "whole.geojson", many(5))
    data = bytearray((tmp_path / "whole.geojson").read_bytes())
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(300):
        spoilt = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            spoilt[place] = rng.choice(np.frombuffer(b'[]{}",:0e-x\\', np.uint8))
        try:
            read += len(parse(bytes(spoilt))) > 0
        except InputError:
            continue
    assert 0 < read < 300
