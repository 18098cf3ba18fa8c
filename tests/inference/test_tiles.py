import numpy as np
import pytest
import shapely
from perfect_maps import CLASSES, grid_of_nuclei, hv_maps
from scipy import ndimage

from stqp.errors import EnvironmentProblem
from stqp.inference import postprocess, tiles
from stqp.inference.store import HV_UNIT, MapStore
from stqp.polygonise import polygonise

SIDE = 164
WIDE = (-9e9, 9e9, -9e9, 9e9)


@pytest.fixture
def make_store(tmp_path):
    """Makes a store of maps, in files that the test's folder takes away."""
    opened = []

    def make(np_prob, hv, tp, side=SIDE):
        height, width = np_prob.shape
        store = MapStore(width, height, side, tp.shape[2], tmp_path / f"maps-{len(opened)}")
        opened.append(store)

        def padded(maps):
            edges = [(0, -height % side), (0, -width % side)] + [(0, 0)] * (maps.ndim - 2)
            return np.pad(maps, edges)

        p, v, t = padded(np_prob), padded(hv), padded(tp)
        for row in range(0, height, side):
            for column in range(0, width, side):
                at = slice(row, row + side), slice(column, column + side)
                store.write((row // side, column // side), p[at], v[at], t[at])
        return store

    yield make
    for store in opened:
        store.__exit__()


def outlines(polygons):
    return set(shapely.to_wkb(shapely.normalize(polygons.to_shapely())).tolist())


def noise(rng, shape, sigma):
    values = ndimage.gaussian_filter(rng.normal(size=shape), (sigma, sigma, *[0] * (len(shape) - 2)))
    return values / values.std()


def random_tp(rng, shape):
    tp = rng.random((*shape, len(CLASSES) + 1))
    return tp / tp.sum(axis=2, keepdims=True)


def whole_map(store):
    """Nuclei of the whole map at once, with bounds from the whole map, in the order of their centres."""
    p, v, t = store.read((0, 0, store.width, store.height))
    bounds = postprocess.sobel_bounds(p, v)
    inst, prob, _ = postprocess.postprocess_maps(p, v, t, bounds)
    polygons, ids = polygonise(inst)
    centre, first = polygons.centroid(), polygons.coords[polygons.ring_offsets[:-1]]
    order = np.lexsort((first[:, 0], first[:, 1], centre[:, 0], centre[:, 1]))
    return bounds, polygons.take(order), (prob[ids - 1] / 255)[order]


def check_equal(found, polygons, prob):
    np.testing.assert_array_equal(found.polygons.coords, polygons.coords)
    np.testing.assert_array_equal(found.polygons.ring_offsets, polygons.ring_offsets)
    np.testing.assert_array_equal(found.class_prob, prob)


@pytest.mark.parametrize("tile", [150, 333])
@pytest.mark.parametrize("kind", ["scattered", "rings", "worms", "network"])
def test_tiles_give_what_the_whole_map_gives(make_store, kind, tile):
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
    store = make_store(np_prob, hv, random_tp(rng, shape))
    bounds, polygons, prob = whole_map(store)
    found = tiles.find_nuclei(store, bounds, tile=tile, margin=96)
    assert len(polygons) > 30
    assert found.cut_clumps == 0
    check_equal(found, polygons, prob)


def adversarial(rng):
    """A map of what is hard for tiles: blobs, worms, rings, sheets, spirals, dots at corners, holes, emptiness."""
    height, width = (int(n) for n in rng.integers(90, 400, 2))
    level = np.full((height, width), -1.0)
    y, x = np.mgrid[:height, :width]
    for kind in rng.choice(8, size=rng.integers(1, 4)):
        if kind == 0:
            part = noise(rng, (height, width), rng.uniform(1, 6)) - rng.uniform(0, 1.5)
        elif kind == 1:
            part = noise(rng, (height, width), 1) * 0 - 1
            part += 2 * (np.abs(noise(rng, (height, width), rng.uniform(3, 12))) < rng.uniform(0.05, 0.6))
        elif kind == 2:
            radius = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
            part = np.cos(radius / rng.uniform(3, 20)) - rng.uniform(0, 0.8)
        elif kind == 3:
            cx, cy = rng.uniform(0, width), rng.uniform(0, height)
            turn = np.hypot(x - cx, y - cy) / rng.uniform(4, 12) + np.arctan2(y - cy, x - cx)
            part = np.cos(turn) - rng.uniform(0, 0.5)
        elif kind == 4:
            part = np.where((x % 50 < 3) | (y % 70 < 3), 1.0, -1.0)  # a net of lines
        elif kind == 5:
            part = np.ones((height, width))  # one sheet
        elif kind == 6:  # diagonals that touch at corners only
            part = np.where((x + y) % int(rng.integers(5, 40)) == 0, 1.0, -1.0)
        else:
            part = np.full((height, width), -1.0)
            for corner in rng.permutation([(a, b) for a in (0, 1, height - 1) for b in (0, 1, width - 1)])[:3]:
                part[max(corner[0] - 9, 0) : corner[0] + 9, max(corner[1] - 9, 0) : corner[1] + 9] = 1
        level = np.maximum(level, part)
    if rng.random() < 0.5:  # nothing in one part
        level[: int(rng.integers(0, height)), : int(rng.integers(0, width))] = -1
    np_prob = 1 / (1 + np.exp(-4 * level))
    hv = noise(rng, (height, width, 2), rng.uniform(2, 8)) * rng.uniform(0.2, 1)
    return np_prob, hv, random_tp(rng, (height, width))


@pytest.mark.parametrize("block", range(8))
def test_two_hundred_random_maps_in_tiles_equal_the_whole(make_store, block):
    several = total = 0
    for seed in range(25):
        rng = np.random.default_rng([block, seed])
        store = make_store(*adversarial(rng), side=int(rng.choice([80, 164])))
        bounds, polygons, prob = whole_map(store)
        tile = int(rng.integers(40, 160))
        tiling = tiles.make_tiling(store.width, store.height, tile)
        order = rng.permutation(np.prod(tiling.shape)).tolist()
        found = tiles.find_nuclei(store, bounds, tile=tile, margin=96, order=order)
        check_equal(found, polygons, prob)
        assert found.cut_clumps == 0
        several += np.prod(tiling.shape) > 3
        total += len(polygons)
    assert several > 12 and total > 100


def test_one_region_is_scaled_as_hovernet_scales_it(make_store):
    inst = grid_of_nuclei(800, 20)
    hv = (np.rint(hv_maps(inst) * HV_UNIT) / HV_UNIT).astype(np.float32)
    store = make_store((inst > 0).astype(float), hv, random_tp(np.random.default_rng(0), inst.shape))
    bounds, polygons, _ = whole_map(store)
    hovernet = postprocess.instances((inst > 0).astype(np.float32), hv)
    assert outlines(polygons) == outlines(polygonise(hovernet)[0])
    assert outlines(tiles.find_nuclei(store, bounds, tile=300).polygons) == outlines(polygons)


def test_a_clump_too_large_is_cut_and_counted(make_store):
    rng = np.random.default_rng(5)
    shape = (900, 900)
    # one sheet of touching nuclei
    inst = np.arange(1, 901).reshape(30, 30).repeat(30, axis=0).repeat(30, axis=1).astype(np.int32)
    store = make_store(np.ones(shape), hv_maps(inst), random_tp(rng, shape))
    bounds, polygons, _ = whole_map(store)
    whole = tiles.find_nuclei(store, bounds, tile=200, margin=96)
    cut = tiles.find_nuclei(store, bounds, tile=200, margin=96, max_clump=1)
    assert whole.cut_clumps == 0
    assert cut.cut_clumps >= 4
    assert outlines(whole.polygons) == outlines(polygons)
    # nuclei far smaller than the margin come out the same all the same, in whichever order the tiles come
    assert len(cut.polygons) == len(polygons) == 900
    assert outlines(cut.polygons) == outlines(polygons)
    turned = tiles.find_nuclei(store, bounds, tile=200, margin=96, max_clump=1, order=range(24, -1, -1))
    np.testing.assert_array_equal(cut.polygons.coords, turned.polygons.coords)


def test_nothing_predicted_is_no_nuclei(make_store, tmp_path):
    with MapStore(500, 300, SIDE, 4, tmp_path / "empty") as store:
        found = tiles.find_nuclei(store, WIDE)
        assert len(found.polygons) == 0
        assert found.class_prob.shape == (0, 4)
    store = make_store(np.zeros((300, 500)), np.zeros((300, 500, 2)), np.zeros((300, 500, 4)))
    assert len(tiles.find_nuclei(store, WIDE).polygons) == 0
    assert len(tiles.find_nuclei(store, None).polygons) == 0


def test_store_keeps_regions_apart(make_store, tmp_path):
    rng = np.random.default_rng(0)
    np_prob, hv = rng.random((400, 500)), rng.uniform(-1.2, 1.2, (400, 500, 2))
    np_prob[200, 200:202] = 0.5, np.nextafter(np.float32(0.5), np.float32(0))
    tp = random_tp(rng, (400, 500))
    store = make_store(np_prob, hv, tp)
    p, v, t = store.read((100, 150, 391, 400))
    np.testing.assert_array_equal(p >= 128, np_prob[150:400, 100:391] >= 0.5)
    np.testing.assert_allclose(p / 256, np_prob[150:400, 100:391], atol=1 / 256)
    np.testing.assert_allclose(v / HV_UNIT, hv[150:400, 100:391], atol=0.5 / HV_UNIT + 1e-6)
    np.testing.assert_allclose(t / 255, tp[150:400, 100:391], atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(store.read_nuclei((100, 150, 391, 400)), p)
    with MapStore(400, 400, SIDE, 4, tmp_path / "one") as store:
        store.write((1, 1), np.ones((SIDE, SIDE)), np.ones((SIDE, SIDE, 2)), np.ones((SIDE, SIDE, 4)))
        p, _, _ = store.read((0, 0, 400, 400))
        assert (p > 0).sum() == SIDE * SIDE
        assert p[SIDE : 2 * SIDE, SIDE : 2 * SIDE].all()
        assert store.is_empty((0, 0, SIDE, SIDE))
        assert not store.is_empty((0, 0, SIDE + 1, SIDE + 1))


def test_dropped_chunks_give_their_place_to_others(tmp_path):
    maps = np.ones((SIDE, SIDE)), np.zeros((SIDE, SIDE, 2)), np.full((SIDE, SIDE, 4), 0.25)
    with MapStore(10 * SIDE, SIDE, SIDE, 4, tmp_path / "maps") as store:
        for column in range(10):
            store.write((0, column), maps[0] * column / 10, *maps[1:])
            if column >= 2:
                store.drop((0, column - 2))
        assert store.chunks == [(0, 8), (0, 9)] and store.file_chunks == 3
        p = store.read_nuclei((0, 0, 10 * SIDE, SIDE))
        assert (p.max(axis=0)[::SIDE].tolist()) == [0] * 8 + [int(256 * 0.8), int(256 * 0.9)]
    assert (tmp_path / "maps").stat().st_size == 3 * store.chunk_bytes


def test_chunks_left_by_another_process_are_taken_up_where_they_are_whole(tmp_path):
    rng = np.random.default_rng(0)
    path, written = tmp_path / "maps", {}
    with MapStore(4 * SIDE, SIDE, SIDE, 4, path) as store:
        for column in range(4):
            maps = rng.random((SIDE, SIDE)), rng.random((SIDE, SIDE, 2)), rng.random((SIDE, SIDE, 4))
            written[0, column] = store.write((0, column), *maps)
        before = store.read((0, 0, 4 * SIDE, SIDE))
    with path.open("r+b") as file:
        file.seek(store.chunk_bytes + 1000)
        file.write(b"\x00\xff\x00")  # the second is broken, and of the last the end is missing
        file.truncate(4 * store.chunk_bytes - 1)
    with MapStore(4 * SIDE, SIDE, SIDE, 4, path) as store:
        assert store.adopt(written) == [(0, 0), (0, 2)] == store.chunks
        for a, b in zip(before, store.read((2 * SIDE, 0, 3 * SIDE, SIDE)), strict=True):
            np.testing.assert_array_equal(a[:, 2 * SIDE : 3 * SIDE], b)
        store.write((0, 1), *maps)
        assert store.file_chunks == 3
    with MapStore(4 * SIDE, SIDE, SIDE, 4, path) as store:
        written[0, 3] = written[0, 1] = (3, 0)
        store._slots[0, 3] = 3
        path.write_bytes(b"")
        with pytest.raises(EnvironmentProblem, match="ends early"):
            store.read((0, 0, 4 * SIDE, SIDE))
