"""Ragged polygons against shapely."""

import numpy as np
import pytest
import shapely

from stqp.polygons import Polygons


def shapes(seed=0, n=40, size=200.0):
    rng = np.random.default_rng(seed)
    result = []
    for i in range(n):
        centre = shapely.Point(rng.uniform(0, size, 2))
        blob = shapely.affinity.rotate(
            shapely.affinity.scale(centre.buffer(rng.uniform(2, 15)), 1, rng.uniform(0.3, 1)), rng.uniform(0, 180)
        )
        if i % 5 == 1:
            blob = blob.difference(centre.buffer(1.0))
        if i % 7 == 2:
            blob = shapely.MultiPolygon([blob, shapely.affinity.translate(blob, 40, 0)])
        result.append(blob)
    result[3] = shapely.box(10, 10, 14, 13)
    return np.array(result, dtype=object)


@pytest.fixture(params=range(3))
def pair(request):
    geometries = shapes(request.param)
    return geometries, Polygons.from_shapely(geometries)


def test_measures_equal_shapely(pair):
    geometries, polygons = pair
    assert np.allclose(polygons.area(), shapely.area(geometries))
    assert np.allclose(polygons.perimeter(), shapely.length(geometries))
    assert np.allclose(polygons.centroid(), shapely.get_coordinates(shapely.centroid(geometries)))
    assert np.allclose(polygons.bounds(), shapely.bounds(geometries))


def test_area_keeps_its_digits_far_from_the_origin():
    geometry = shapely.affinity.translate(shapely.Point(0, 0).buffer(3), 2e5, 3e5)
    assert Polygons.from_shapely([geometry]).area()[0] == pytest.approx(shapely.Point(0, 0).buffer(3).area, rel=1e-9)


def test_there_and_back(pair):
    geometries, polygons = pair
    back = polygons.to_shapely()
    assert np.allclose(shapely.area(shapely.symmetric_difference(back, geometries)), 0, atol=1e-6)


def test_rasterised_pixels_are_those_whose_centre_is_inside(pair):
    geometries, polygons = pair
    shape = 190, 210
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    expected = np.zeros(shape, int)
    for i, geometry in enumerate(geometries):
        expected[shapely.contains_xy(geometry, x, y)] = i + 1
    assert (polygons.rasterize(shape) == expected).all()
    values = np.arange(len(polygons)) % 3 + 1
    assert (polygons.rasterize(shape, values) == np.r_[0, values][expected]).all()


def test_pixel_convention():
    square = Polygons.from_rings([[2, 3], [5, 3], [5, 4], [2, 4]], [0, 4])
    image = square.rasterize((6, 7))
    assert image[3, 2:5].all() and image.sum() == 3


def test_take_concatenate_and_empty():
    geometries = shapes()
    polygons = Polygons.from_shapely(geometries)
    index = np.array([7, 3, 3, 11])
    assert np.allclose(polygons.take(index).area(), polygons.area()[index])
    mask = polygons.area() > 50
    both = Polygons.concatenate([polygons.take(mask), polygons.take(~mask), Polygons.empty(2)])
    assert len(both) == len(polygons) + 2
    assert np.allclose(both.area(), [*polygons.area()[mask], *polygons.area()[~mask], 0, 0])
    assert np.isnan(both.centroid()[-1]).all() and np.isnan(both.bounds()[-1]).all()
    assert not both.take([len(both) - 1]).rasterize((5, 5)).any()
    assert shapely.is_empty(both.to_shapely()[-1])
    assert len(polygons.take([])) == 0 and len(Polygons.concatenate([])) == 0 and len(Polygons.empty().area()) == 0


def test_a_repeated_last_vertex_is_dropped():
    ring = np.array([[0, 0], [2, 0], [2, 2], [0, 0]], float)
    polygons = Polygons.from_rings(np.vstack([ring, ring + 5]), [0, 4, 8])
    assert len(polygons.coords) == 6 and np.allclose(polygons.area(), 2)


def test_transform_is_the_column_vector_convention():
    matrix = np.array([[0, -2, 5], [1, 0, 7], [0, 0, 1.0]])
    moved = Polygons.from_rings([[1, 2], [3, 2], [3, 5]], [0, 3]).transform(matrix)
    assert np.allclose(moved.coords[0], matrix[:2] @ [1, 2, 1])
    assert np.allclose(moved.area(), 3 * 2)


def test_lines_and_points_have_no_area():
    polygons = Polygons.from_shapely([shapely.LineString([(0, 0), (3, 3)]), shapely.Point(1, 1), None])
    assert len(polygons) == 3 and not polygons.area().any()


@pytest.mark.parametrize("vertices", [1, 7, 10**6])
def test_blocks_are_the_polygons_in_order(vertices):
    import shapely

    rng = np.random.default_rng(2)
    shapes = shapely.buffer(shapely.points(rng.random((9, 2)) * 100), rng.uniform(1, 4, 9), quad_segs=2)
    shapes[3] = shapely.difference(shapes[3], shapely.buffer(shapely.centroid(shapes[3]), 0.3))
    shapes[5] = None
    polygons = Polygons.from_shapely(shapes)
    blocks = list(polygons.blocks(vertices))
    assert [i for chosen, _ in blocks for i in range(chosen.start, chosen.stop)] == list(range(9))
    again = Polygons.concatenate([block for _, block in blocks])
    assert all((getattr(again, k) == getattr(polygons, k)).all() for k in ("coords", "ring_offsets", "geom_offsets"))
    assert list(Polygons.empty().blocks()) == []
