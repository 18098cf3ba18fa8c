import numpy as np
import pytest

from stqp.alignment import measure
from stqp.alignment.fields import MIN_NUCLEI, STEP_UM, Grid, Windows, nucleus_contrast, surfaces
from stqp.alignment.shifts import Shifts, find_peak
from stqp.polygons import Polygons

AXIS = np.arange(-40, 41) * STEP_UM


def hill(x, y, width=2.0, height=1.0):
    return height * np.exp(-((AXIS[None] - x) ** 2 + (AXIS[:, None] - y) ** 2) / (2 * width**2))


def test_peak_is_found_between_the_pixels():
    noise = np.random.default_rng(0).normal(0, 0.0003, (81, 81))
    for x, y in ((0, 0), (3.1, -7.73), (-15.22, 15.4), (0.25, 0.25)):
        peak = find_peak((hill(x, y) + noise).astype(np.float32))
        np.testing.assert_allclose(peak.shift, (x, y), atol=0.05)
        assert peak.trusted and peak.confidence > 0.8


def test_peaks_that_say_nothing_are_not_believed():
    noise = np.random.default_rng(0).normal(0, 0.05, (81, 81)).astype(np.float32)
    periodic = sum(hill(x, 0) for x in (-12, 0, 12)).astype(np.float32)
    border = hill(20, 3).astype(np.float32)
    for surface in (noise, np.zeros((81, 81), np.float32), periodic + noise / 10, border + noise / 10):
        peak = find_peak(surface)
        assert not peak.trusted and peak.confidence == 0
    assert find_peak(periodic + noise / 10).rival > 0.9


@pytest.mark.parametrize("way", [(0, 0), (0.7, 0.4), (-1.6, 1.2), (5, -6.2), (-14.5, 3)])
def test_shift_is_measured(scene, way):
    quality = measure(scene.slide, scene.nuclei.shift(*np.array(way) / scene.mpp), scene.mpp)
    np.testing.assert_allclose(quality.offset, way, atol=0.12)
    assert quality.spread < 0.15 and quality.affine_residual < 0.15
    distance = np.hypot(*way)
    assert quality.verdict == ("good" if distance < 1 else "fair" if distance <= 2 else "shifted")
    assert quality.is_bad == (distance > 2)
    assert np.nanmedian(quality.residual) == pytest.approx(distance, abs=0.15)
    record = quality.to_dict()
    assert record["distance_um"] == pytest.approx(distance, abs=0.15) and record["fields"] == len(quality.fields)


def test_words_say_where_the_nuclei_lie(scene):
    right = measure(scene.slide, scene.nuclei.shift(4 / scene.mpp, 0), scene.mpp)
    assert right.text().startswith("shifted: the nuclei lie 4.0 µm to the right of the stain")
    up = measure(scene.slide, scene.nuclei.shift(0, -3 / scene.mpp), scene.mpp)
    assert "3.0 µm to the top of" in up.text()


def test_stain_under_the_nuclei(scene):
    good = measure(scene.slide, scene.nuclei, scene.mpp)
    off = measure(scene.slide, scene.nuclei.shift(6 / scene.mpp, 0), scene.mpp)
    assert good.stained > 0.95 > 0.6 > off.stained
    known = np.isfinite(good.contrast)
    assert known.mean() > 0.9 and np.median(good.contrast[known]) > 0.3
    assert np.isfinite(good.residual).all() and np.median(good.residual) < 0.15


def test_contrast_is_that_of_a_plain_loop(scene):
    import cv2

    centers = scene.nuclei.centroid()
    grid = Grid.choose(centers, scene.mpp, (scene.slide.width, scene.slide.height), None)
    windows = Windows(scene.slide, scene.mpp, grid)
    members = grid.members(centers)[0]
    nuclei = scene.nuclei.take(members)
    fast = nucleus_contrast(windows, 0, nuclei)
    stain = windows.stain(0)
    x, y = windows.corner(0)
    labels = nuclei.shift(-x, -y).scale(1 / windows.scale).rasterize(stain.shape)
    apart = [cv2.distanceTransform((labels != i).astype(np.uint8), cv2.DIST_L2, 5) for i in range(1, len(nuclei) + 1)]
    nearest = np.min(apart, axis=0)
    for i in range(0, len(nuclei), 17):
        ring = (labels == 0) & (apart[i] > 2) & (apart[i] <= 6) & (apart[i] <= nearest)
        slow = (stain[labels == i + 1].mean() - stain[ring].mean()) / windows.range
        assert fast[i] == pytest.approx(slow, abs=0.05)


def test_turned_and_bent_slides_are_told_apart(scene):
    middle = np.array([412.0, 312.0])
    turned = measure(scene.slide, scene.displaced(lambda p: (p - middle)[:, ::-1] * [-0.012, 0.012]), scene.mpp)
    assert turned.verdict == "deformed" and turned.text().startswith("turned, scaled or sheared")
    assert turned.affine_residual < 0.3 < 1 < turned.spread
    bent = measure(scene.slide, scene.displaced(lambda p: 5 * np.sin(p[:, ::-1] / 80)), scene.mpp)
    assert bent.verdict == "deformed" and bent.text().startswith("locally deformed")


def test_another_image_has_no_relation(scene):
    width = scene.slide.width
    mirrored = scene.nuclei.transform([[-1, 0, width], [0, 1, 0], [0, 0, 1]])
    quality = measure(scene.slide, mirrored, scene.mpp)
    assert quality.verdict == "unrelated" and quality.is_bad and "no relation" in quality.text()
    assert np.isnan(quality.residual).all()


def test_nothing_to_measure_is_not_known(scene):
    for few in (scene.nuclei.take(np.arange(3)), Polygons.empty(), Polygons.empty(4), scene.nuclei.shift(1e6, 0)):
        quality = measure(scene.slide, few, scene.mpp)
        assert quality.verdict == "unknown" and not quality.is_bad and len(quality.fields) == 0
        assert quality.to_dict()["distance_um"] is None and "not known" in quality.text()


def test_of_many_fields_an_even_sample_is_taken(scene):
    centers = scene.nuclei.centroid()
    size = (scene.slide.width, scene.slide.height)
    every = Grid.choose(centers, scene.mpp, size, None)
    some = Grid.choose(centers, scene.mpp, size, 6)
    assert every.eligible == some.eligible == len(every.cells) > 8 > len(some.cells) == 6
    assert {*map(tuple, some.cells.tolist())} < {*map(tuple, every.cells.tolist())}
    assert np.ptp(some.cells, axis=0).tolist() >= (np.ptp(every.cells, axis=0) - 1).tolist()
    counts = np.array([len(m) for m in every.members(centers)])
    assert counts.min() >= MIN_NUCLEI and counts.sum() <= len(centers)
    quality = measure(scene.slide, scene.nuclei, scene.mpp, 6)
    assert len(quality.fields) <= 6 and 0.1 < np.isfinite(quality.contrast).mean() < 0.9
    assert np.isfinite(quality.residual).all()


def test_members_of_fields_are_those_of_a_plain_loop():
    rng = np.random.default_rng(3)
    centers = np.r_[rng.uniform(-500, 3000, (400, 2)), [[np.nan, 1], [np.inf, 3], [1e300, 1]]]
    grid = Grid.choose(centers, 0.25, (3000, 3000), None)
    for cell, members in zip(grid.cells, grid.members(centers), strict=True):
        slow = [i for i, c in enumerate(centers) if np.isfinite(c).all() and (np.floor(c / grid.side) == cell).all()]
        assert sorted(members.tolist()) == slow


def test_parts_of_a_field_have_surfaces_of_their_own(scene):
    centers = scene.nuclei.centroid()
    grid = Grid.choose(centers, scene.mpp, (scene.slide.width, scene.slide.height), 1)
    windows = Windows(scene.slide, scene.mpp, grid, keep=True)
    members = grid.members(centers)[0]
    parts = surfaces(windows, 0, scene.nuclei.take(members), centers[members], 2)
    (whole,) = surfaces(windows, 0, scene.nuclei.take(members), centers[members])
    assert 2 <= len(parts) <= 4 and sum(p.nuclei for p in parts) <= whole.nuclei == len(members)
    assert np.hypot(*Shifts.of(parts).together.shift) < 0.3
