import numpy as np
import pytest
import shapely
from perfect_maps import CLASSES, grid_of_nuclei, hv_maps
from scipy import ndimage

from stqp.inference import postprocess, tiles
from stqp.inference.store import MapStore
from stqp.polygonise import polygonise

SIDE = 164


def filled_store(np_prob, hv, tp):
    height, width = np_prob.shape
    store = MapStore(width, height, SIDE, tp.shape[2])

    def padded(maps):
        edges = [(0, -height % SIDE), (0, -width % SIDE)] + [(0, 0)] * (maps.ndim - 2)
        return np.pad(maps, edges)

    p, v, t = padded(np_prob), padded(hv), padded(tp)
    for row in range(0, height, SIDE):
        for column in range(0, width, SIDE):
            at = slice(row, row + SIDE), slice(column, column + SIDE)
            store.write(row // SIDE, column // SIDE, p[at], v[at], t[at])
    return store


def outlines(polygons):
    return set(shapely.to_wkb(shapely.normalize(polygons.to_shapely())).tolist())


def noise(rng, shape, sigma):
    values = ndimage.gaussian_filter(rng.normal(size=shape), (sigma, sigma, *[0] * (len(shape) - 2)))
    return values / values.std()


def random_tp(rng, shape):
    tp = rng.random((*shape, len(CLASSES) + 1))
    return tp / tp.sum(axis=2, keepdims=True)


def compare(np_prob, hv, tp, tile, **options):
    """Nuclei in tiles, and of the whole map at once."""
    with filled_store(np_prob, hv, tp) as store:
        bounds = tiles.slide_bounds(store)
        found = tiles.find_nuclei(store, bounds, tile=tile, **options)
        p, v, t = store.read((0, 0, store.width, store.height))
    inst, prob, _ = postprocess.postprocess_maps(p, v, t, bounds)
    polygons, ids = polygonise(inst)
    return found, polygons, prob[ids - 1] / 255


@pytest.mark.parametrize("tile", [150, 333])
@pytest.mark.parametrize("kind", ["scattered", "rings", "worms", "network"])
def test_tiles_give_what_the_whole_map_gives(kind, tile):
    rng = np.random.default_rng(3)
    shape = (701, 823)
    field = noise(rng, shape, 3)
    level = {
        "scattered": field - 0.5,
        "rings": np.abs(field) - 0.9,  # islands in holes
        "worms": ndimage.gaussian_filter(rng.normal(size=shape), (25, 6)) * 40 - 0.5,  # longer than a margin
        "network": 0.9 - np.abs(field),  # nearly one clump
    }[kind]
    np_prob = 1 / (1 + np.exp(-4 * level))
    hv = noise(rng, (*shape, 2), 4) / 2
    tp = random_tp(rng, shape)
    found, polygons, prob = compare(np_prob, hv, tp, tile, margin=96)
    assert len(polygons) > 30
    assert len(found.polygons) == len(polygons)
    assert outlines(found.polygons) == outlines(polygons)
    assert found.cut_clumps == 0
    order = np.lexsort(polygons.centroid().T)
    np.testing.assert_allclose(found.class_prob, prob[order], atol=1e-12)


def test_one_region_is_scaled_as_hovernet_scales_it():
    inst = grid_of_nuclei(800, 20)
    hv = hv_maps(inst).astype(np.float16)
    found, polygons, _ = compare((inst > 0).astype(float), hv, random_tp(np.random.default_rng(0), inst.shape), 300)
    hovernet = postprocess.instances((inst > 0).astype(np.float32), hv)
    assert outlines(found.polygons) == outlines(polygonise(hovernet)[0])
    assert len(polygons) == hovernet.max()


def test_a_clump_too_large_is_cut_and_counted():
    rng = np.random.default_rng(5)
    shape = (900, 900)
    # one sheet of touching nuclei
    inst = np.arange(1, 901).reshape(30, 30).repeat(30, axis=0).repeat(30, axis=1).astype(np.int32)
    args = (np.ones(shape), hv_maps(inst), random_tp(rng, shape))
    whole, polygons, _ = compare(*args, 200, margin=96)
    cut, _, _ = compare(*args, 200, margin=96, max_clump=1)
    assert whole.cut_clumps == 0
    assert cut.cut_clumps >= 4
    assert outlines(whole.polygons) == outlines(polygons)
    # nuclei far smaller than the margin come out the same all the same
    assert len(cut.polygons) == len(polygons) == 900
    assert outlines(cut.polygons) == outlines(polygons)


def test_nothing_predicted_is_no_nuclei():
    with MapStore(500, 300, SIDE, 4) as store:
        found = tiles.find_nuclei(store)
        assert len(found.polygons) == 0
        assert found.class_prob.shape == (0, 4)
    empty = np.zeros((300, 500))
    with filled_store(empty, np.zeros((300, 500, 2)), np.zeros((300, 500, 4))) as store:
        assert len(tiles.find_nuclei(store).polygons) == 0


def test_store_keeps_regions_apart():
    rng = np.random.default_rng(0)
    np_prob, hv = rng.random((400, 500)), rng.random((400, 500, 2))
    tp = random_tp(rng, (400, 500))
    with filled_store(np_prob, hv, tp) as store:
        p, v, t = store.read((100, 150, 391, 400))
        np.testing.assert_array_equal(p, np_prob[150:400, 100:391].astype(np.float16))
        np.testing.assert_array_equal(v, hv[150:400, 100:391].astype(np.float16))
        np.testing.assert_allclose(t / 255, tp[150:400, 100:391], atol=0.5 / 255 + 1e-9)
        np.testing.assert_array_equal(store.read_nuclei((100, 150, 391, 400)), p)
    with MapStore(400, 400, SIDE, 4) as store:
        store.write(1, 1, np.ones((SIDE, SIDE)), np.ones((SIDE, SIDE, 2)), np.ones((SIDE, SIDE, 4)))
        p, _, _ = store.read((0, 0, 400, 400))
        assert p.sum() == SIDE * SIDE
        assert p[SIDE : 2 * SIDE, SIDE : 2 * SIDE].all()
        assert store.is_empty((0, 0, SIDE, SIDE))
        assert not store.is_empty((0, 0, SIDE + 1, SIDE + 1))
