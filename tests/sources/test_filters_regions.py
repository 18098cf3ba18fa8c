"""Filters that count what they leave out, and regions from Explorer and from QuPath."""

import gzip
import json

import numpy as np
import pytest
import shapely

from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.sources.filters import Filters, apply_filters, overlapped
from stqp.sources.regions import contains, read_region


def boxes(*bounds):
    return Polygons.from_shapely([shapely.box(*b) for b in bounds])


def run(filters, polygons, transcripts, controls=None):
    controls = np.zeros(len(polygons), int) if controls is None else np.array(controls)
    return apply_filters(filters, polygons, polygons.area(), np.array(transcripts), controls)


def test_no_limits_keep_all():
    result = run(Filters(max_overlap=None), boxes((0, 0, 1, 1), (0, 0, 1, 1)), [0, 0])
    assert result.keep.all() and not result.untyped.any() and result.skipped == {}


def test_of_two_on_each_other_the_one_with_more_transcripts_stays():
    polygons = boxes((0, 0, 10, 10), (1, 1, 9, 9), (8, 8, 18, 18))
    result = run(Filters(), polygons, [5, 50, 7])
    assert result.keep.tolist() == [False, True, True]  # the last touches by a corner only
    assert list(result.skipped.values()) == [1]
    assert overlapped(polygons, np.array([5, 5, 5]), 0.5).tolist() == [False, True, False]  # the larger
    same = boxes((0, 0, 4, 4), (0, 0, 4, 4))
    assert overlapped(same, np.array([1, 1]), 0.5).tolist() == [False, True]  # the first


def test_what_is_lost_takes_none_with_it():
    # 0 beats 1, and 1 would beat 2, but 1 is gone
    chain = boxes((0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10))
    assert overlapped(chain, np.array([30, 20, 10]), 0.5).tolist() == [False, True, False]


def test_crossed_outlines_do_not_stop_it():
    bow = Polygons.from_rings([[0, 0], [10, 10], [10, 0], [0, 10]], [0, 4])
    both = Polygons.concatenate([bow, boxes((0, 0, 10, 10))])
    assert overlapped(both, np.array([1, 2]), 0.5).tolist() == [True, False]


def test_area_leaves_out_and_counts_make_unknown():
    polygons = boxes((0, 0, 1, 1), (10, 0, 15, 5), (20, 0, 40, 20), (50, 0, 55, 5), (60, 0, 65, 5))
    filters = Filters(min_transcripts=10, max_control_fraction=0.05, min_area=4, max_area=100)
    result = run(filters, polygons, [100, 100, 100, 9, 100], [0, 1, 0, 0, 10])
    assert result.keep.tolist() == [False, True, False, True, True]
    assert result.untyped.tolist() == [False, False, False, True, True]
    assert sum(result.skipped.values()) == 4 and all("µm²" in k or "Unknown" in k for k in result.skipped)


@pytest.mark.parametrize(
    "limits",
    [
        {"min_transcripts": -1},
        {"max_overlap": 2},
        {"max_control_fraction": float("nan")},
        {"min_area": 9, "max_area": 5},
    ],
)
def test_limits_that_make_no_sense(limits):
    with pytest.raises(UsageError):
        Filters(**limits)


EXPLORER = """#Selection name: tumour
#Area (µm^2): 100
Selection,X,Y
tumour,0,0
tumour,10,0
tumour,10,10
tumour,0,10
tumour,0,0
rim,20,20
rim,30,20
rim,30,30
"""


def test_a_selection_of_explorer_is_in_um(tmp_path):
    path = tmp_path / "selection.csv"
    path.write_text(EXPLORER, encoding="utf-8")
    region = read_region(path)
    assert region.in_um and region.names == ["tumour", "rim"]
    np.testing.assert_allclose(region.polygons.area(), [100, 50])
    half = region.on_slide(np.diag([4.0, 4.0, 1.0]))
    assert contains(half, np.array([[20.0, 20], [50, 50], [116, 100], [39.9, 39.9]])).tolist() == [
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("wrap", ["collection", "array", "feature", "geometry", "gz"])
def test_geojson_is_in_pixels(tmp_path, wrap):
    hole = shapely.box(0, 0, 100, 100) - shapely.box(40, 40, 60, 60)
    geometry = json.loads(shapely.to_geojson(hole))
    feature = {"type": "Feature", "geometry": geometry, "properties": {"name": "Region 1"}}
    content = {"array": [feature], "feature": feature, "geometry": geometry}.get(
        wrap, {"type": "FeatureCollection", "features": [feature]}
    )
    raw = json.dumps(content).encode()
    path = tmp_path / "region.geojson"
    path.write_bytes(gzip.compress(raw) if wrap == "gz" else raw)
    region = read_region(path)
    assert not region.in_um and contains(region.on_slide(np.eye(3)), np.array([[10.0, 10], [50, 50]])).tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Selection,X,Y"),
        ("cell_id,group\na,1\n", "found cell_id, group"),
        ("Selection,X,Y\na,1,1\na,2,2\n", "no area"),
        ("Selection,X,Y\na,1,1\na,2,x\na,3,3\n", "without a place"),
        ("Selection,X,Y\na,1,1\na,2,nan\na,3,3\n", "not finite"),
        ('{"type":"FeatureCollection","features":[{"type":', "no GeoJSON"),
        ('{"type":"Point","coordinates":[1,2]}', "no area"),
    ],
)
def test_regions_that_are_none(tmp_path, text, message):
    path = tmp_path / "region.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_region(path)
    assert str(path) in str(error.value)
    with pytest.raises(InputError, match="does not exist"):
        read_region(tmp_path / "none.csv")
