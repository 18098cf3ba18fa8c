"""Files for Xenium Ranger: plain valid polygons in µm."""

import json

import numpy as np
import pytest
import shapely
from qupath.qupath_objects import discs, geometry_objects, many

from stqp.alignment import Alignment
from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ranger import write_xenium_ranger

PIXEL = 0.2125
# a quarter turn, as in 10x's own example
MATRIX = np.array([[0.011, 1.2896, 808.0], [-1.2896, 0.011, 73097.0], [0, 0, 1]])
TO_UM = np.diag([PIXEL, PIXEL, 1]) @ MATRIX


def read(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    for feature in content["features"]:
        assert feature["type"] == "Feature" and feature["properties"] == {"objectType": "cell"}
        for key in ("geometry", "nucleusGeometry"):
            if key in feature:
                assert {*feature[key]} == {"type", "coordinates"} and feature[key]["type"] == "Polygon"
                assert len(feature[key]["coordinates"]) == 1
                assert shapely.is_valid(shapely.from_geojson(json.dumps(feature[key])))
    return content["features"]


def test_cells_with_nuclei(tmp_path):
    objects = many(50, kind=ObjectKind.CELL)
    path = tmp_path / "cells.geojson"
    result = write_xenium_ranger(path, objects, TO_UM)
    assert result[1:5] == (50, 0, 0, 0)
    assert result.arguments == (f"--nuclei={path}", f"--cells={path}", "--units=microns")
    features = read(path)
    assert [f["id"] for f in features] == objects.ids.tolist()
    has = np.diff(objects.nuclei.geom_offsets) > 0
    assert ["nucleusGeometry" in f for f in features] == has.tolist()
    # and the way back is the alignment's own
    back = Alignment(MATRIX, "m").um_to_he(PIXEL)
    centres = [shapely.from_geojson(json.dumps(f["geometry"])).centroid for f in features]
    xy = np.array([[c.x, c.y, 1] for c in centres]) @ back.T
    np.testing.assert_allclose(xy[:, :2], objects.polygons.centroid(), atol=0.01)


def test_nuclei_alone(tmp_path):
    path = tmp_path / "nuclei.geojson"
    result = write_xenium_ranger(path, many(20, kind=ObjectKind.DETECTION), np.eye(3))
    assert result.arguments == (f"--nuclei={path}", "--units=microns") and len(read(path)) == 20


def test_shapes_become_one_valid_ring(tmp_path):
    path = tmp_path / "odd.geojson"
    odd = geometry_objects()
    bad = Polygons.from_rings([[0, 0], [10, 10], [10, 0], [0, 20], [5, 5], [6, 6], [7, 7]], [0, 4, 7])
    objects = PathObjects.concatenate([odd, PathObjects.build(bad), PathObjects.build(Polygons.empty(1))])
    result = write_xenium_ranger(path, objects, np.eye(3))
    assert result[1:5] == (6, 2, 1, 2)
    areas = [shapely.from_geojson(json.dumps(f["geometry"])).area for f in read(path)]
    np.testing.assert_allclose(areas[:3], [10000, 105, 5], rtol=1e-4)


def test_what_is_no_cell_or_no_matrix_is_refused(tmp_path):
    path = tmp_path / "x.geojson"
    with pytest.raises(UsageError, match="no cells"):
        write_xenium_ranger(path, many(3, kind=ObjectKind.TILE), np.eye(3))
    for matrix in (np.eye(2), np.ones((3, 3)), np.diag([0, 1, 1]), np.full((3, 3), np.nan)):
        with pytest.raises(UsageError, match="matrix"):
            write_xenium_ranger(path, many(3, kind=1), matrix)
    with pytest.raises(UsageError, match="gz"):
        write_xenium_ranger(tmp_path / "x.geojson.gz", many(3, kind=1), np.eye(3))
    assert not path.exists()


def test_a_mirrored_slide(tmp_path):
    path = tmp_path / "m.geojson"
    objects = PathObjects.build(discs([[10, 10], [40, 40]], 5, 12), kind=ObjectKind.DETECTION)
    write_xenium_ranger(path, objects, np.array([[-0.25, 0, 100], [0, 0.25, 0], [0, 0, 1]]))
    assert [f["geometry"]["coordinates"][0][0] for f in read(path)] == [[96.25, 2.5], [88.75, 10]]
