"""Which objects are nuclei, and how a slide is split."""

import itertools
import json

import numpy as np
import pytest
import shapely

from stqp.errors import InputError
from stqp.patches.blocks import grid, hold_out
from stqp.patches.drawing import starts
from stqp.patches.nuclei import read_nuclei, select_nuclei
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects


def circles(n, radius=10.0):
    return Polygons.from_shapely([shapely.Point(50 * i + 30, 40).buffer(radius) for i in range(n)])


def test_blocks_tile_the_slide():
    blocks = grid(6000, 5000, 1000)
    assert len(blocks) == 30
    assert {b.box[2] - b.box[0] for b in blocks} == {1000.0}
    assert sum((b.box[2] - b.box[0]) * (b.box[3] - b.box[1]) for b in grid(2049, 777, 500)) == pytest.approx(2049 * 777)


def test_held_out_blocks_look_like_the_whole():
    rng = np.random.default_rng(0)
    counts = rng.poisson([200, 50, 5], (60, 3))
    counts[:30, 1] = 0  # a class that half of the slide lacks
    held = hold_out(counts, 0.2, seed=1)
    assert held.sum() == 12
    share = counts[held].sum(0) / counts.sum(0)
    assert np.abs(share[:2] - 0.2).max() < 0.04
    assert (held == hold_out(counts, 0.2, seed=1)).all()
    assert (held != hold_out(counts, 0.2, seed=2)).any()


def test_one_block_cannot_be_split():
    with pytest.raises(InputError, match="--block"):
        hold_out(np.ones((1, 2), int), 0.2, 0)
    assert not hold_out(np.ones((1, 2), int), 0.0, 0).any()


def test_patches_cover_a_block_and_never_leave_it():
    for length, size in ((1000, 512), (697, 512), (512, 512), (1537, 512), (1024, 256), (100, 512), (1, 16)):
        found = starts(length, size)
        assert found[0] == 0 and found[-1] + size == max(length, size)
        assert all(0 < b - a <= size for a, b in itertools.pairwise(found))
        assert len(found) == -(-length // size)


def objects(**columns):
    return PathObjects.build(circles(4), **columns)


def test_annotations_with_a_class_are_nuclei_and_regions_are_not():
    polygons = Polygons.concatenate([circles(4), circles(1, radius=400.0)])
    found = select_nuclei(PathObjects.build(polygons, classes=["Dead", None, "Ignore*", "Unknown", "Dead"]), 0.25)
    assert [*found.classes] == ["Dead", "Unknown"]
    assert sum(found.skipped.values()) == 3


def test_unclassified_annotations_of_stqp_are_unknown_nuclei():
    source = ["import-xenium:s"] * 2 + [None] * 2
    found = select_nuclei(objects(classes=[None] * 4, metadata={"stqp.source": source}), 0.25)
    assert [*found.classes] == ["Unknown"] * 2


def test_cells_give_their_nuclei_and_predictions_are_no_truth():
    cells = objects(kind=ObjectKind.CELL, classes=["Dead"] * 4, nuclei=circles(4, radius=5.0))
    found = select_nuclei(cells, 0.25)
    assert found.polygons.area() == pytest.approx(circles(4, radius=5.0).area())
    detections = objects(kind=ObjectKind.DETECTION, classes=["Dead"] * 4)
    assert len(select_nuclei(detections, 0.25).polygons) == 4
    predicted = objects(kind=ObjectKind.DETECTION, classes=["Dead"] * 4, metadata={"stqp.source": "predict:m"})
    assert len(select_nuclei(predicted, 0.25).polygons) == 0
    both = PathObjects.concatenate([predicted, cells])
    assert len(select_nuclei(both, 0.25).polygons) == 4


class Image:
    """What `read_nuclei` asks of an entry."""

    def __init__(self, folder, size=(300, 100)):
        self.stqp_folder, self.size = folder, size


def drawn(*regions):
    """Nuclei at x = 30, 80, 130, 180, and regions of a class."""
    nuclei = objects(classes=["Dead"] * 4)
    boxes = Polygons.from_shapely([shapely.box(*box) for _, box in regions])
    return PathObjects.concatenate([nuclei, PathObjects.build(boxes, classes=[name for name, _ in regions])])


def covered(found):
    return shapely.union_all(found.coverage.to_shapely())


def test_regions_bound_what_is_used(tmp_path):
    image = Image(tmp_path)
    found = read_nuclei(image, drawn(("Train", (0, 0, 100, 100)), ("region", (100, 0, 150, 100))), 0.25)
    assert len(found.polygons) == 4 and [*found.skipped.values()] == [2]
    assert covered(found).equals(shapely.box(0, 0, 150, 100))
    found = read_nuclei(image, drawn(("Ignore", (100, 20, 150, 60))), 0.25)
    assert covered(found).equals(shapely.box(0, 0, 300, 100) - shapely.box(100, 20, 150, 60))
    assert read_nuclei(image, drawn(("Stroma", (0, 0, 9, 9))), 0.25).coverage is None
    (tmp_path / "sample.json").write_text(json.dumps({"coverage": [[[50, 0], [200, 0], [200, 90], [50, 90]]]}))
    both = drawn(("Region", (0, 0, 100, 100)), ("Ignore", (90, 0, 400, 100)))
    assert covered(read_nuclei(image, both, 0.25)).equals(shapely.box(50, 0, 90, 90))


def test_an_ignored_hole_is_masked_in_a_patch(tmp_path):
    found = read_nuclei(Image(tmp_path), drawn(("Ignore", (100, 20, 150, 60))), 0.25)
    valid = found.coverage.rasterize((100, 300), np.ones(len(found.coverage)), np.zeros((100, 300), np.uint8))
    assert valid[10, 120] and not valid[40, 120] and valid[80, 120] and valid.sum() == 300 * 100 - 50 * 40
