import logging
import threading

import numpy as np
import pytest
from perfect_maps import CLASSES, ColourNetwork, grid_of_nuclei, paint
from PIL import Image

from stqp.devices import OutOfDeviceMemory, memory_of
from stqp.errors import EnvironmentProblem
from stqp.inference import engine, pipeline, tiles
from stqp.inference.batches import choose_batch, fit_windows, predict_in_parts
from stqp.inference.engine import predict_slide
from stqp.inference.store import MapStore
from stqp.inference.windows import SAMPLE, Grid, Plan, needs
from stqp.polygons import Polygons
from stqp.slides import open_slide

OPTIONS = {"mpp": 0.25, "tissue": False}


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    inst = grid_of_nuclei(1000, 25)
    path = tmp_path_factory.mktemp("painted") / "slide.png"
    Image.fromarray(paint(inst, np.arange(625) % 3 + 1)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(painted):
    with open_slide(painted) as slide:
        return predict_slide(slide, ColourNetwork(), **OPTIONS)


@pytest.fixture(scope="module")
def tall(tmp_path_factory):
    """More regions than the sample has: 1200 x 30000 px, with nuclei in the upper half and at the very end."""
    inst = grid_of_nuclei(1000, 25)
    piece = paint(inst, np.arange(625) % 3 + 1)
    image = np.full((30_000, 1200, 3), 255, np.uint8)
    for top in (*range(0, 14_000, 1000), 29_000):
        image[top : top + 1000, 100:1100] = piece
    path = tmp_path_factory.mktemp("tall") / "slide.png"
    Image.fromarray(image).save(path, compress_level=1)
    return path


def check_same(found, expected):
    np.testing.assert_array_equal(found.polygons.coords, expected.polygons.coords)
    np.testing.assert_array_equal(found.class_prob, expected.class_prob)


def test_replicas_share_the_windows(painted, expected):
    class Meeting(ColourNetwork):
        meeting = threading.Barrier(3, timeout=60)
        met = False

        def predict(self, batch):
            if not self.met:  # each of three devices has a first batch at the same time
                self.meeting.wait()
                self.met = True
            return super().predict(batch)

    replicas = [Meeting(), Meeting(), Meeting()]
    with open_slide(painted) as slide:
        found = predict_slide(slide, replicas, batch_size=2, **OPTIONS)
    check_same(found, expected)
    assert sum(r.windows for r in replicas) == 49 and min(r.windows for r in replicas) >= 1


def test_batches_are_halved_until_they_fit(painted, expected, caplog):
    class Small(ColourNetwork):
        def predict(self, batch):
            if len(batch) > 2:
                raise OutOfDeviceMemory("too many")
            return super().predict(batch)

    with open_slide(painted) as slide, caplog.at_level(logging.WARNING, "stqp"):
        found = predict_slide(slide, Small(), batch_size=8, **OPTIONS)
        check_same(found, expected)
        assert caplog.text.count("going on with") == 2  # 8, 4, 2, and it is remembered

        class None_(ColourNetwork):
            def predict(self, batch):
                raise OutOfDeviceMemory("the memory of cuda is too small")

        with pytest.raises(EnvironmentProblem, match="too small"):
            predict_slide(slide, None_(), batch_size=8, **OPTIONS)
    images = np.random.default_rng(0).integers(0, 255, (7, 256, 256, 3), dtype=np.uint8)
    maps, largest = predict_in_parts(Small(), images, 1 << 30)
    assert largest == 1 or largest == 2
    for key, value in ColourNetwork().predict(images).items():
        np.testing.assert_array_equal(maps[key], value)


class Elastic(ColourNetwork):
    """Takes windows of several sizes."""

    sizes, memory, device = (256, 512, 1024), 400.0, "cpu"

    def resized(self, size):
        other = Elastic(size, size - 92)
        other.sizes, other.memory, other.device = self.sizes, self.memory, self.device
        return other


@pytest.mark.parametrize(("side", "size"), [(150, 256), (420, 512), (932, 1024), (20_000, 1024)])
def test_windows_are_of_the_size_that_computes_least(side, size):
    def count(p):
        return (-(-side // p.output_size)) ** 2

    assert fit_windows([Elastic(), Elastic()], count)[1].input_size == size
    large = Elastic()
    large.memory = memory_of("cpu") / 512**2 / 8  # 512 px are an eighth of the memory
    assert fit_windows([large], count)[0].input_size <= 512
    large.memory *= 1000
    assert fit_windows([large], count)[0].input_size == 256
    assert choose_batch(large) == 1
    plain = ColourNetwork()
    assert fit_windows([plain], count) == [plain]


def test_the_result_does_not_hang_on_the_size_of_windows(painted, expected):
    with open_slide(painted) as slide:
        check_same(predict_slide(slide, Elastic(), **OPTIONS), expected)
        check_same(predict_slide(slide, ColourNetwork(270, 80), workers=1, tile=200, **OPTIONS), expected)


def test_batches_fit_the_device(monkeypatch):
    monkeypatch.setattr("stqp.inference.batches.memory_of", lambda name: 16 * 10**9)
    network = Elastic()
    assert [choose_batch(network.resized(size)) for size in network.sizes] == [4, 4, 1]
    network.device = "cuda:1"
    assert [choose_batch(network.resized(size)) for size in network.sizes] == [32, 32, 8]
    network.memory = 6000.0
    assert [choose_batch(network.resized(size)) for size in network.sizes] == [24, 6, 1]


def test_post_processing_does_not_wait_for_the_network(tall, monkeypatch):
    begun = threading.Event()
    process = tiles.process_tile

    def tell(*args):
        begun.set()
        return process(*args)

    class Waiting(ColourNetwork):
        def predict(self, batch):
            if self.windows > 180:  # of 216, of which the sample has 172
                assert begun.wait(60), "no tile was post-processed while there were windows left"
            return super().predict(batch)

    monkeypatch.setattr(pipeline.tiles, "process_tile", tell)
    with open_slide(tall) as slide:
        found = predict_slide(slide, Waiting(512, 420), batch_size=2, **OPTIONS)
    assert len(found) == 15 * 625


def test_the_bounds_come_from_a_sample_that_is_spread_and_fixed(tall):
    with open_slide(tall) as slide:
        grid = Grid.of(slide, 0.25, ColourNetwork(512, 420))
    plan = Plan.make(grid, grid.cells, 2)
    assert len(plan.regions) == 30 * 2 > SAMPLE
    assert sorted(cell for group in plan.groups for cell in group) == grid.cells
    rows = sorted({region[1] // 1000 for region in plan.regions[:SAMPLE]})
    assert rows[0] <= 2 and rows[-1] >= 27 and np.diff(rows).max() <= 3
    assert plan == Plan.make(grid, grid.cells[::-1], 2)
    sampled = {cell for group in plan.groups[: plan.sampled] for cell in group}
    assert len(sampled) < 0.8 * len(grid.cells)


def test_nuclei_outside_of_the_sample_are_found(tmp_path):
    inst = grid_of_nuclei(400, 10)
    with open_slide(_blank(tmp_path / "probe.png")) as slide:
        grid = Grid.of(slide, 0.25, ColourNetwork(1024, 932))
    last = Plan.make(grid, grid.cells, 2).regions[-1]
    path = _blank(tmp_path / "slide.png", (last[0] + 300, last[1] + 300), paint(inst, np.ones(100, int)))
    with open_slide(path) as slide:
        found = predict_slide(slide, ColourNetwork(1024, 932), **OPTIONS)
        assert len(found) == 100
        assert len(predict_slide(slide, ColourNetwork(1024, 932), boxes=[[0, 0, 50, 50]], **OPTIONS)) == 0


def _blank(path, at=None, content=None):
    image = np.full((6000, 6000, 3), 255, np.uint8)
    if content is not None:
        image[at[1] : at[1] + len(content), at[0] : at[0] + content.shape[1]] = content
    Image.fromarray(image).save(path, compress_level=1)
    return path


def test_maps_that_nobody_needs_leave_their_place(tall, monkeypatch):
    stores = []

    class Spied(MapStore):
        def __init__(self, *args):
            super().__init__(*args)
            stores.append(self)

    monkeypatch.setattr(engine, "MapStore", Spied)
    monkeypatch.setattr("stqp.inference.windows.SAMPLE", 5)
    network = ColourNetwork(512, 420)
    with open_slide(tall) as slide:
        found = predict_slide(slide, network, batch_size=1, tile=256, **OPTIONS)
    assert len(found) == 15 * 625
    assert stores[0].chunks == []
    assert stores[0].file_chunks < 0.6 * network.windows  # the sample, and a band


def test_every_window_is_waited_for():
    for tile, margin, side in ((100, 96, 164), (256, 128, 80), (1024, 128, 420)):
        tiling = tiles.make_tiling(1500, 900, tile, margin)
        cells = [(r, c) for r in range(-(-900 // side)) for c in range(-(-1500 // side)) if (r + c) % 3]
        waiting, readers, filled = needs(tiling, cells, side)
        for number in range(np.prod(tiling.shape)):
            x0, y0, x1, y1 = tiling.window(number)
            read = [c for c in cells if c[1] * side < x1 and (c[1] + 1) * side > x0
                    and c[0] * side < y1 and (c[0] + 1) * side > y0]  # fmt: skip
            assert waiting.get(number, 0) == len(read)
            x0, y0, x1, y1 = tiling.core(number)
            assert (number in filled) == any(
                c[1] * side < x1 and (c[1] + 1) * side > x0 and c[0] * side < y1 and (c[0] + 1) * side > y0
                for c in cells
            )
        assert sum(readers.values()) == sum(waiting.values())


def test_polygons_limit_where_is_looked(painted, expected):
    rings = [[100, 100], [500, 150], [300, 600], [700, 700], [900, 700], [900, 900], [700, 900]]
    drawn = Polygons.from_rings(rings, [0, 3, 7])
    network = ColourNetwork()
    with open_slide(painted) as slide:
        found = predict_slide(slide, network, within=drawn, **OPTIONS)
        both = predict_slide(slide, ColourNetwork(), within=drawn, boxes=[[0, 0, 1000, 500]], **OPTIONS)
    x, y = expected.polygons.centroid().T
    square = (x > 700) & (x < 900) & (y > 700) & (y < 900)
    # right of the first edge, below the second, above the third
    triangle = (
        ((y - 100) * 400 > (x - 100) * 50) & ((x - 500) * 450 < (y - 150) * -200) & ((y - 100) * 200 < (x - 100) * 500)
    )
    inside = expected.take(square | triangle)
    assert 60 < len(inside) < 200
    check_same(found, inside)
    assert network.windows < 40
    check_same(both, expected.take(triangle & (y < 500)))
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    hole = Polygons.from_rings(np.concatenate([square * 1000, square[::-1] * 600 + 200]), [0, 4, 8])
    ring = Polygons(hole.coords, hole.ring_offsets, np.array([0, 2]))
    with open_slide(painted) as slide:
        found = predict_slide(slide, ColourNetwork(), within=ring, **OPTIONS)
    outside = ~((x > 200) & (x < 800) & (y > 200) & (y < 800))
    check_same(found, expected.take(outside))


@pytest.mark.parametrize(("mpp", "warned"), [(0.5, True), (0.3, False), (0.125, False)])
def test_a_slide_of_another_scale_is_resampled(tmp_path, caplog, mpp, warned):
    """Nuclei of the same µm come out with the same µm, and what the file lacks is said."""
    scale = 0.25 / mpp
    inst = grid_of_nuclei(round(800 * scale), 12, radius=(round(20 * scale), round(24 * scale)))
    Image.fromarray(paint(inst, np.full(144, 2))).save(tmp_path / "slide.png")
    with open_slide(tmp_path / "slide.png") as slide, caplog.at_level(logging.WARNING, "stqp"):
        found = predict_slide(slide, ColourNetwork(), mpp=mpp, tissue=False)
    assert ("is enlarged 2.0 times" in caplog.text) == warned
    true = np.bincount(inst.ravel())[1:] * mpp**2
    at = np.floor(found.polygons.centroid()).astype(int)
    ids = inst[at[:, 1], at[:, 0]]
    large = found.polygons.area() * mpp**2 > 10  # a blurred rim is no nucleus
    once = np.flatnonzero(np.bincount(ids[large], minlength=145)[1:] == 1) + 1
    assert len(once) >= 140 and 140 <= large.sum() <= 148  # between some that touch, the stub's colours blur
    alone = large & np.isin(ids, once)
    ratio = found.polygons.area()[alone] * mpp**2 / true[ids[alone] - 1]
    assert abs(np.median(ratio) - 1) < 0.04 and ((ratio > 0.85) & (ratio < 1.15)).mean() > 0.95


def test_a_scale_that_contradicts_the_file_is_said(tmp_path, caplog):
    import tifffile

    image = paint(grid_of_nuclei(300, 6), np.ones(36, int))
    tifffile.imwrite(
        tmp_path / "slide.tif", image, resolution=(40000, 40000), resolutionunit="CENTIMETER", tile=(64, 64)
    )
    for mpp, said in ((None, False), (0.26, False), (0.5, True), (0.2, True)):
        caplog.clear()
        with open_slide(tmp_path / "slide.tif", mpp=mpp) as slide, caplog.at_level(logging.WARNING, "stqp"):
            assert slide.file_mpp == pytest.approx(0.25)
            predict_slide(slide, ColourNetwork(), tissue=False)
        assert ("says that it has 0.25 µm per pixel" in caplog.text) == said


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 150, 190), (243, 243, 243)])
@pytest.mark.parametrize("tissue", [True, False])
def test_a_slide_of_one_colour_has_no_nuclei(tmp_path, colour, tissue):
    Image.new("RGB", (700, 500), colour).save(tmp_path / "slide.png")
    with open_slide(tmp_path / "slide.png") as slide:
        found = predict_slide(slide, ColourNetwork(), mpp=0.25, tissue=tissue)
    assert len(found) == 0 and found.class_prob.shape == (0, len(CLASSES) + 1)
    assert len(found.class_names) == 0


def test_threads_end_with_the_run(painted):
    before = threading.active_count()
    with open_slide(painted) as slide:
        predict_slide(slide, ColourNetwork(), **OPTIONS)

        class Broken(ColourNetwork):
            def predict(self, batch):
                raise ValueError("of its own")

        with pytest.raises(ValueError, match="of its own"):
            predict_slide(slide, Broken(), **OPTIONS)
    assert threading.active_count() == before
