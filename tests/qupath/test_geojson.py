"""GeoJSON that QuPath's strict reader takes."""

import json

import numpy as np
import pytest
import shapely
from qupath.qupath_objects import geometry_objects, many

from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.qupath.geojson import write_geojson
from stqp.qupath.objects import ObjectKind, PathObjects


def read(path):
    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert content["type"] == "FeatureCollection"
    for feature in content["features"]:
        for key in ("geometry", "nucleusGeometry"):
            if key in feature:
                check_geometry(feature[key])
        assert None not in feature["properties"].values()  # QuPath fails on "name": null
    return content["features"]


def check_geometry(geometry):
    assert geometry["type"] in ("Polygon", "MultiPolygon")  # 0.6 refuses collections
    parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    for part in parts:
        for ring in part:
            assert ring[0] == ring[-1] and len(ring) >= 4
    shape = shapely.from_geojson(json.dumps({k: geometry[k] for k in ("type", "coordinates")}))
    assert shapely.is_valid(shape) and shape.area > 0


def test_columns(tmp_path):
    objects = many(200, seed=11)
    progress = []
    assert write_geojson(tmp_path / "o.geojson", objects, lambda *a: progress.append(a)) == 0
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
        assert properties["measurements"]["Area µm²"] == objects.measurements["Area µm²"][i]
        assert properties["metadata"].get("note") == objects.metadata["note"][i]
        assert ("Score" in properties["measurements"]) == np.isfinite(objects.measurements["Score"][i])
        assert feature["geometry"].get("plane", {"z": 0})["z"] == objects.plane[i, 1]
        has = objects.kind[i] == ObjectKind.CELL and np.diff(objects.nuclei.geom_offsets)[i] > 0
        assert ("nucleusGeometry" in feature) == has
        shape = shapely.from_geojson(json.dumps(feature["geometry"]))
        np.testing.assert_allclose(shape.bounds, objects.polygons.bounds()[i], atol=6e-4)
    classified = [f["properties"]["classification"] for f in features if "classification" in f["properties"]]
    assert {"name": "Tumor: Positive", "color": [250, 62, 62]} in classified


def test_holes_and_parts(tmp_path):
    objects = geometry_objects()
    write_geojson(tmp_path / "o.geojson", objects)
    shapes = [shapely.from_geojson(json.dumps(f["geometry"])) for f in read(tmp_path / "o.geojson")]
    np.testing.assert_allclose([s.area for s in shapes], objects.polygons.area(), rtol=1e-4)
    assert len(shapes[0].interiors) == 1 and shapes[1].geom_type == "MultiPolygon"


def test_invalid_outlines_are_repaired_or_left_out(tmp_path):
    rings = [
        [[0, 0], [10, 10], [10, 0], [0, 10]],  # a bow tie
        [[0, 0], [10, 0], [10, 10]],
        [[5, 5], [6, 6], [7, 7]],  # no area
        [[0.0001, 0], [0.0002, 0], [0.0002, 0.0001]],  # vanishes when rounded
        [[0, 0], [10, 0], [10, 10], [20, 10], [10, 10], [0, 10]],  # a spike
    ]
    offsets = np.concatenate(([0], np.cumsum([len(r) for r in rings])))
    polygons = Polygons.concatenate([Polygons.from_rings(np.concatenate(rings), offsets), Polygons.empty(1)])
    objects = PathObjects.build(polygons)
    assert write_geojson(tmp_path / "o.geojson", objects) == 3
    features = read(tmp_path / "o.geojson")
    assert [f["id"] for f in features] == objects.ids[[0, 1, 4]].tolist()
    areas = [shapely.from_geojson(json.dumps(f["geometry"])).area for f in features]
    np.testing.assert_allclose(areas, [50, 50, 100], rtol=1e-3)


def test_no_objects(tmp_path):
    assert write_geojson(tmp_path / "o.json", PathObjects.empty()) == 0
    assert read(tmp_path / "o.json") == []


def test_a_file_that_qupath_would_ignore_is_refused(tmp_path):
    with pytest.raises(UsageError, match="geojson"):
        write_geojson(tmp_path / "o.txt", many(1))
