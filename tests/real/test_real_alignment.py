"""Alignment on real stain: shifts and warps of the outlines of 15,546 nuclei are measured and taken back."""

import numpy as np
import pytest
from support import best_iou

from stqp.alignment import measure, place, read_alignment, refine
from stqp.polygons import Polygons
from stqp.record import RunRecord
from stqp.slides import open_slide
from stqp.sources.xenium import XeniumBundle

SHIFTS = [(2.0, 0.0), (-1.2, 1.6), (0.0, -4.0), (2.83, 2.83), (-8.0, 0.0), (4.8, -6.4)]


class Consep:
    def __init__(self, folder):
        bundle = XeniumBundle.open(folder / "outs")
        self.aligned = read_alignment(folder / "he" / "region_he_imagealignment.csv")
        self.pixel_size = bundle.pixel_size
        self.um = bundle.read_nuclei(bundle.read_cells().ids).polygons
        self.nuclei = self.um.transform(self.aligned.um_to_he(self.pixel_size))
        self.slide = open_slide(folder / "he" / "region_he_image.ome.tif")
        self.mpp = self.slide.mpp
        self.instances = np.load(folder / "truth" / "he_instances.npz")["inst"]
        self.best = self.iou(self.nuclei)

    def iou(self, polygons):
        return float(np.median(best_iou(polygons, self.instances)))

    def miss(self, polygons):
        return np.hypot(*(polygons.coords - self.nuclei.coords).T) * self.mpp


@pytest.fixture(scope="module")
def consep(real_data):
    folder = real_data / "consep_xenium"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    made = Consep(folder)
    yield made
    made.slide.close()


@pytest.mark.parametrize("way", SHIFTS)
def test_shift_is_reported_and_taken_back(consep, way):
    moved = consep.nuclei.shift(*np.array(way) / consep.mpp)
    assert consep.iou(moved) < 0.3 < consep.best - 0.6
    result = refine(consep.slide, moved, consep.mpp, "shift")
    np.testing.assert_allclose(result.before.offset, way, atol=0.3 / np.sqrt(2))
    assert result.applied and result.after.verdict == "good"
    assert consep.iou(result.correction.apply_polygons(moved)) > consep.best - 0.02


def test_shift_through_the_alignment_matrix(consep):
    from stqp.alignment import Alignment

    step = np.array([[1, 0, 5.0 / consep.mpp], [0, 1, 3.0 / consep.mpp], [0, 0, 1]])
    wrong = Alignment(consep.aligned.matrix @ np.linalg.inv(step), "shifted.csv")
    record = RunRecord("test", {})
    placed = place(wrong, consep.pixel_size, consep.slide, consep.um, record, refine_by="shift")
    assert record.results["refinement"]["before"]["offset_um"] == pytest.approx([5, 3], abs=0.2)
    assert consep.iou(placed.polygons(consep.um)) > consep.best - 0.02
    assert consep.iou(consep.um.transform(placed.aligned.um_to_he(consep.pixel_size))) > consep.best - 0.02


def test_fifteen_um_are_found(consep):
    quality = measure(consep.slide, consep.nuclei.shift(-9 / consep.mpp, 12 / consep.mpp), consep.mpp)
    np.testing.assert_allclose(quality.offset, (-9, 12), atol=0.2)
    assert quality.verdict == "shifted" and quality.fields.trusted.mean() > 0.8


def warp(consep, seed, shortest=700, longest=1500, amplitude=6.0):
    """Two waves an axis, of random ways; the largest displacement is `amplitude` µm."""
    rng = np.random.default_rng(seed)
    at = consep.nuclei.coords * consep.mpp
    way = np.zeros_like(at)
    for axis in (0, 1):
        for _ in range(2):
            angle, length, phase = rng.uniform(0, 2 * np.pi), rng.uniform(shortest, longest), rng.uniform(0, 2 * np.pi)
            way[:, axis] += np.sin(2 * np.pi * (at @ [np.cos(angle), np.sin(angle)]) / length + phase)
    way *= amplitude / np.hypot(*way.T).max()
    return Polygons(consep.nuclei.coords + way / consep.mpp, consep.nuclei.ring_offsets, consep.nuclei.geom_offsets)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_smooth_warp_is_taken_back(consep, seed):
    moved = warp(consep, seed)
    result = refine(consep.slide, moved, consep.mpp, "smooth")
    before, after = consep.iou(moved), consep.iou(result.correction.apply_polygons(moved))
    assert result.applied and result.used == "smooth" and before < 0.45
    assert (after - before) / (consep.best - before) > 0.8


@pytest.mark.parametrize("kind", ["shift", "affine", "smooth"])
def test_aligned_slide_is_not_made_worse(consep, kind):
    result = refine(consep.slide, consep.nuclei, consep.mpp, kind)
    assert consep.miss(result.correction.apply_polygons(consep.nuclei)).max() <= 0.1
    assert result.before.verdict == "good" and result.before.distance < 0.1 and result.before.stained > 0.9


def test_a_little_off_is_not_made_worse(consep):
    for kind in ("shift", "smooth"):
        moved = consep.nuclei.shift(0.45 / consep.mpp, 0)
        back = refine(consep.slide, moved, consep.mpp, kind).correction.apply_polygons(moved)
        assert np.median(consep.miss(back)) < 0.15


def test_other_tissue_has_no_relation(consep):
    width = consep.slide.width
    mirrored = consep.nuclei.transform([[-1, 0, width], [0, 1, 0], [0, 0, 1]])
    assert measure(consep.slide, mirrored, consep.mpp).verdict == "unrelated"
