import logging

import numpy as np
import pytest
from perfect_maps import CLASSES, ColourNetwork, grid_of_nuclei, paint
from PIL import Image

from stqp.devices import pick_device
from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.evaluation.scores import score_maps
from stqp.inference.detections import Detections
from stqp.inference.engine import predict_slide
from stqp.inference.model import downsample_of
from stqp.inference.windows import Grid
from stqp.polygonise import polygonise
from stqp.polygons import Polygons
from stqp.shapes import shape
from stqp.slides import open_slide
from stqp.tissue import find_tissue


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A slide of 2500 nuclei across all borders of windows and tiles."""
    inst = grid_of_nuclei(2000, 50)
    types = np.arange(2500) % 3 + 1
    path = tmp_path_factory.mktemp("painted") / "slide.png"
    Image.fromarray(paint(inst, types)).save(path)
    return path, inst, types


def same_nuclei(found, inst, types):
    drawn = found.instance_map(inst.shape[1], inst.shape[0])
    return score_maps(inst, types, drawn, found.class_ids, 0.25, CLASSES)


@pytest.mark.parametrize(("window", "tile"), [((256, 164), 512), ((512, 420), 2048), ((270, 80), 700)])
def test_every_nucleus_is_found_once_and_typed(painted, window, tile):
    path, inst, types = painted
    steps = []
    with open_slide(path) as slide:
        found = predict_slide(
            slide, ColourNetwork(*window), mpp=0.25, tile=tile, tissue=False, progress=lambda *s: steps.append(s)
        )
    assert len(found) == 2500
    scores = same_nuclei(found, inst, types)
    assert scores["dq"] == 1 and scores["sq"] > 0.999 and scores["type_accuracy"] == 1
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1]
    assert found.counts["windows"] == (-(-2000 // window[1])) ** 2


def test_the_result_does_not_depend_on_windows_and_tiles(painted):
    path, _, _ = painted
    with open_slide(path) as slide:
        a = predict_slide(slide, ColourNetwork(256, 164), mpp=0.25, tile=400, tissue=False, batch_size=3)
        b = predict_slide(slide, ColourNetwork(512, 420), mpp=0.25, tile=2048, tissue=False, batch_size=1)
    np.testing.assert_array_equal(a.polygons.coords, b.polygons.coords)
    np.testing.assert_allclose(a.class_prob, b.class_prob)


def test_boxes_limit_where_is_looked(painted):
    path, _, _ = painted
    boxes = [[300, 400, 700, 800], [1500, 1500, 1900, 1700]]
    network = ColourNetwork()
    with open_slide(path) as slide:
        everywhere = predict_slide(slide, ColourNetwork(), mpp=0.25, tissue=False)
        found = predict_slide(slide, network, mpp=0.25, tissue=False, boxes=boxes)
    expected = everywhere.within(boxes)
    assert 100 < len(expected) < 400
    np.testing.assert_array_equal(found.polygons.coords, expected.polygons.coords)
    assert network.windows < 60


def test_a_slide_is_read_at_the_networks_resolution(tmp_path):
    inst = grid_of_nuclei(700, 14, radius=(9, 12))
    types = np.full(inst.max(), 2)
    fine = paint(inst, types)
    # twice as fine: each pixel becomes four
    Image.fromarray(fine.repeat(2, axis=0).repeat(2, axis=1)).save(tmp_path / "fine.png")
    with open_slide(tmp_path / "fine.png") as slide:
        found = predict_slide(slide, ColourNetwork(), mpp=0.125, tissue=False)
        assert Grid.of(slide, 0.125, ColourNetwork()).width == 700
    assert len(found) == inst.max() and found.pixel == 2
    big = inst.repeat(2, axis=0).repeat(2, axis=1)
    scores = same_nuclei(found, big, types)
    assert scores["dq"] == 1 and scores["sq"] > 0.95


def test_an_odd_slide_smaller_than_a_window(tmp_path):
    inst = grid_of_nuclei(600, 15)[:97, :131]
    Image.fromarray(paint(inst, np.ones(225, int))).save(tmp_path / "small.png")
    with open_slide(tmp_path / "small.png") as slide:
        found = predict_slide(slide, ColourNetwork(), mpp=0.25, tissue=False)
    x0, y0, x1, y1 = found.polygons.bounds().T
    assert len(found) >= 3
    assert x0.min() >= 0 and y0.min() >= 0 and x1.max() <= 131 and y1.max() <= 97


def test_resolutions_that_hardly_differ_are_taken_as_equal():
    assert downsample_of(0.25, 0.2499) == 1
    assert downsample_of(0.25, 0.5) == 0.5


def test_unknown_resolution_is_an_error(painted):
    with open_slide(painted[0]) as slide, pytest.raises(InputError, match="--mpp"):
        predict_slide(slide, ColourNetwork())


def test_glass_is_skipped_and_tissue_is_not(tmp_path, caplog):
    rng = np.random.default_rng(0)
    image = np.full((1500, 2000, 3), 243, np.uint8)
    image += rng.integers(0, 6, image.shape, dtype=np.uint8)
    tissue = np.array([200, 150, 190], np.uint8) + rng.integers(0, 20, (450, 450, 3), dtype=np.uint8)
    image[500:950, 1000:1450] = tissue
    Image.fromarray(image).save(tmp_path / "glass.png")
    Image.fromarray(tissue).save(tmp_path / "all.png")
    Image.fromarray(image[:300, :300]).save(tmp_path / "none.png")
    with open_slide(tmp_path / "glass.png") as slide:
        mask = find_tissue(slide, 0.25)
        assert mask.touches(1000, 500, 1010, 510) and mask.touches(1440, 940, 1450, 950)
        assert not mask.touches(0, 0, 600, 200) and not mask.touches(1800, 1300, 2000, 1500)
        network = ColourNetwork()
        predict_slide(slide, network, mpp=0.25)
    assert 9 <= network.windows < 40
    with open_slide(tmp_path / "all.png") as slide:
        assert find_tissue(slide, 0.25).mask.all()
    with open_slide(tmp_path / "none.png") as slide, caplog.at_level(logging.WARNING, "stqp"):
        assert len(predict_slide(slide, ColourNetwork(), mpp=0.25)) == 0
    assert "--no-tissue" in caplog.text


def test_errors_of_reading_reach_the_caller(painted):
    with open_slide(painted[0]) as slide:

        def fail(*_args):
            raise InputError("the file ends early")

        def fail_inside(*_args):
            raise KeyError("strip 17")

        slide.read = fail_inside
        with pytest.raises(InputError, match=r"strip 17.*is it whole"):
            predict_slide(slide, ColourNetwork(), mpp=0.25, tissue=False)
        slide.read = fail
        with pytest.raises(InputError, match="ends early"):
            predict_slide(slide, ColourNetwork(), mpp=0.25, tissue=False)


def test_shape_of_discs_and_rectangles():
    for radius in (8, 15, 30):
        yy, xx = np.mgrid[-40:41, -40:41]
        polygons, _ = polygonise((yy**2 + xx**2 <= radius**2).astype(int))
        area, perimeter, circularity = shape(polygons, 0.25)
        assert area[0] == pytest.approx(np.pi * radius**2 / 16, rel=0.03)
        assert perimeter[0] == pytest.approx(2 * np.pi * radius / 4, rel=0.04)
        assert 0.9 < circularity[0] <= 1
        scaled = shape(polygons.scale(2), 0.125, pixel=2)
        np.testing.assert_allclose(scaled, (area, perimeter, circularity))
    polygons, _ = polygonise(np.ones((4, 60), int))
    _, _, circularity = shape(polygons, 0.25)
    assert circularity[0] < 0.25


def test_detections_name_the_likeliest_class():
    prob = np.array([[0.9, 0.02, 0.05, 0.03], [0.1, 0.7, 0.1, 0.1], [1, 0, 0, 0]])
    squares = Polygons.from_rings(np.tile([[0, 0], [4, 0], [4, 4], [0, 4]], (3, 1)), [0, 4, 8, 12])
    found = Detections(squares, prob, CLASSES, 0.5)
    assert found.class_names.tolist() == ["Inflammatory", "Neoplastic", None]
    np.testing.assert_array_equal(found.probability, [0.05, 0.7, np.nan])
    measured = found.measurements
    assert measured["Probability: Connective"].tolist() == [0.03, 0.1, 0]
    assert measured["Nucleus: Area µm^2"].tolist() == [4, 4, 4]


def test_devices():
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError):
        pick_device("gpu")
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem, match="CUDA"):
            pick_device("cuda")
