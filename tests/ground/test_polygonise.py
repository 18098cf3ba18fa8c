import numpy as np
import pytest
import shapely
from perfect_maps import grid_of_nuclei
from scipy import ndimage

from stqp.polygonise import polygonise, polygonise_bands


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


@pytest.mark.parametrize("rows", [1, 3, 7, 50])
def test_bands_give_what_the_whole_map_gives(rows):
    from skimage.measure import label

    noise = np.random.default_rng(5).random((41, 23)) < 0.62
    whole = label(noise, connectivity=1).astype(np.uint32)
    whole[whole == 3] = 900  # higher than any that counts
    highest = int(whole[whole < 900].max())
    polygons, ids, beyond = polygonise_bands(lambda a, b: whole[a:b], 41, rows, highest)
    expected, labels = polygonise(np.where(whole == 900, 0, whole))
    assert ids.tolist() == labels.tolist() and beyond.tolist() == ([900] if 900 in whole else [])
    np.testing.assert_array_equal(polygons.bounds(), expected.bounds())
    np.testing.assert_array_equal(polygons.area(), expected.area())


def test_bands_keep_the_largest_part_and_may_be_empty():
    parts = np.zeros((20, 5), int)
    parts[1, 1], parts[10:13, 2] = 1, 1
    polygons, ids, _ = polygonise_bands(lambda a, b: parts[a:b], 20, 4, 1)
    assert ids.tolist() == [1] and polygons.bounds().tolist() == [[2, 10, 3, 13]]
    polygons, ids, _ = polygonise_bands(lambda a, b: parts[a:b] * 0, 20, 4, 1)
    assert len(polygons) == len(ids) == 0
