import numpy as np
import shapely
from perfect_maps import grid_of_nuclei
from scipy import ndimage

from stqp.inference.polygonise import polygonise


def reference(mask):
    """Union of pixel squares of each largest part, holes filled: the candidates where parts are equally large."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())[1:]
    result = []
    for part in np.flatnonzero(sizes == sizes.max()) + 1:
        rows, columns = np.nonzero(parts == part)
        union = shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))
        result.append(shapely.Polygon(union.exterior))
    return result


def test_outlines_equal_the_union_of_pixels():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 14, 2)
        labels = rng.integers(0, 4, (height, width)) * (rng.random((height, width)) < 0.8)
        polygons, ids = polygonise(labels)
        assert ids.tolist() == [i for i in np.unique(labels).tolist() if i]
        for label, outline in zip(ids, polygons.to_shapely(), strict=True):
            assert outline.is_valid
            assert any(outline.equals(expected) for expected in reference(labels == label))


def test_area_is_the_number_of_pixels():
    inst = grid_of_nuclei(600, 20)
    polygons, ids = polygonise(inst)
    assert len(ids) == 400
    np.testing.assert_array_equal(polygons.area(), np.bincount(inst.ravel())[ids])
    np.testing.assert_array_equal(polygons.rasterize(inst.shape, ids), inst)


def test_no_vertex_is_superfluous():
    polygons, _ = polygonise(np.ones((50, 70), int))
    assert sorted(map(tuple, polygons.coords.tolist())) == [(0, 0), (0, 50), (70, 0), (70, 50)]


def test_corners_and_holes():
    # two parts that touch at a corner: the larger one; a bay closed by a corner: filled
    labels = np.array([[5, 5, 0, 0], [5, 0, 0, 0], [0, 5, 0, 0]])
    polygons, ids = polygonise(labels)
    assert ids.tolist() == [5] and polygons.area().tolist() == [3]
    bay = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]])
    (outline,) = polygonise(bay)[0].to_shapely()
    assert outline.is_valid and outline.area == 8
    ring = np.ones((5, 5), int)
    ring[1:4, 1:4] = 0
    ring[2, 2] = 7
    polygons, ids = polygonise(ring)
    assert ids.tolist() == [1, 7] and polygons.area().tolist() == [25, 1]


def test_nothing_to_outline():
    for shape in ((0, 5), (4, 4)):
        polygons, ids = polygonise(np.zeros(shape, int))
        assert len(polygons) == len(ids) == 0
