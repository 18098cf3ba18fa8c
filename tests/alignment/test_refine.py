import json

import numpy as np
import pytest

from stqp.alignment import refine
from stqp.alignment.correction import Correction, Field
from stqp.alignment.fields import FIELD_UM
from stqp.alignment.quality import fit_affine
from stqp.alignment.shifts import Shifts
from stqp.errors import UsageError

MIDDLE = np.array([412.0, 312.0])


@pytest.mark.parametrize("kind", ["shift", "affine", "smooth"])
def test_shift_is_taken_back(scene, kind):
    moved = scene.nuclei.shift(4.3 / scene.mpp, -3.1 / scene.mpp)
    result = refine(scene.slide, moved, scene.mpp, kind)
    assert result.applied and result.before.verdict == "shifted" and result.after.verdict == "good"
    back = result.correction.apply_polygons(moved)
    assert np.percentile(scene.miss(back), 95) < (0.2 if kind == "shift" else 0.6)
    assert result.largest_um == pytest.approx(np.hypot(4.3, 3.1), abs=1.0)
    assert "before" in result.reason and json.dumps(result.to_dict())


@pytest.mark.parametrize("kind", ["affine", "smooth"])
def test_turn_and_scale_are_taken_back(scene, kind):
    moved = scene.displaced(lambda p: (p - MIDDLE)[:, ::-1] * [-0.012, 0.012] + (p - MIDDLE) * 0.006 + [2, 0])
    result = refine(scene.slide, moved, scene.mpp, kind)
    assert result.applied and np.median(scene.miss(result.correction.apply_polygons(moved))) < 0.15
    shifted = refine(scene.slide, moved, scene.mpp, "shift")
    assert np.median(scene.miss(shifted.correction.apply_polygons(moved))) > 1


def test_smooth_warp_is_taken_back(scene):
    moved = scene.displaced(lambda p: np.stack([4 * np.sin(p[:, 1] / 130), 3 * np.cos(p[:, 0] / 150)], axis=1))
    assert np.median(scene.miss(moved)) > 2
    result = refine(scene.slide, moved, scene.mpp, "smooth")
    assert result.applied and result.used == "smooth"
    assert np.median(scene.miss(result.correction.apply_polygons(moved))) < 0.25


@pytest.mark.parametrize("kind", ["shift", "affine", "smooth", "off"])
def test_an_aligned_slide_is_left_as_it_is(scene, kind):
    result = refine(scene.slide, scene.nuclei, scene.mpp, kind)
    assert not result.applied and not result.correction.moves and result.after is result.before
    assert ("not asked for" if kind == "off" else "already") in result.reason


def test_weak_evidence_moves_nothing(scene):
    mirrored = scene.nuclei.transform([[-1, 0, scene.slide.width], [0, 1, 0], [0, 0, 1]])
    result = refine(scene.slide, mirrored, scene.mpp, "smooth")
    assert not result.applied and "evidence is too weak" in result.reason
    result = refine(scene.slide, scene.nuclei.take(np.arange(5)), scene.mpp, "shift")
    assert not result.applied and "evidence is too weak" in result.reason


def test_nothing_moves_beyond_the_bound(scene):
    moved = scene.nuclei.shift(8 / scene.mpp, 0)
    result = refine(scene.slide, moved, scene.mpp, "shift", limit_um=5)
    assert not result.applied and "8.0 µm, beyond the bound of 5 µm" in result.reason
    bent = scene.displaced(lambda p: 4 * np.sin(p[:, ::-1] / 130))
    result = refine(scene.slide, bent, scene.mpp, "smooth", limit_um=4)
    assert result.correction.largest(bent.coords) * scene.mpp <= 4 + 1e-6


@pytest.mark.parametrize(("kind", "limit"), [("bend", 5), ("shift", 0), ("shift", np.nan), ("shift", 1000)])
def test_wrong_options_are_refused(scene, kind, limit):
    with pytest.raises(UsageError, match="expected"):
        refine(scene.slide, scene.nuclei, scene.mpp, kind, limit)


def shifts(at, way, confidence=None):
    n = len(at)
    return Shifts(at, way, np.full(n, 0.1), np.ones(n) if confidence is None else confidence, np.ones(n), np.ones(n),
                  np.full(n, 50), None)  # fmt: skip


def test_affine_fit_withstands_wrong_fields():
    rng = np.random.default_rng(0)
    at = rng.uniform(0, 8000, (60, 2))
    truth = np.array([[1.001, -0.002, 5.0], [0.002, 0.999, -9.0], [0, 0, 1]])
    way = (at @ truth[:2, :2].T + truth[:2, 2] - at) * 0.25 + rng.normal(0, 0.05, (60, 2))
    way[::6] += rng.uniform(-15, 15, (10, 2))
    matrix = fit_affine(shifts(at, way), 0.25)
    miss = at @ (matrix - truth)[:2, :2].T + (matrix - truth)[:2, 2]
    assert np.hypot(*miss.T).max() * 0.25 < 0.15
    assert fit_affine(shifts(at[:5], way[:5]), 0.25) is None
    line = np.c_[np.arange(9.0), np.zeros(9)] * FIELD_UM
    assert fit_affine(shifts(line, np.ones((9, 2))), 0.25) is None


def test_displacements_between_the_nodes():
    grid = Field(np.array([10.0, 20.0]), 5.0, np.random.default_rng(0).normal(size=(4, 6, 2)))
    np.testing.assert_allclose(grid.at(grid.nodes().reshape(-1, 2)), grid.displacement.reshape(-1, 2), atol=1e-12)
    middle = grid.at(np.array([[12.5, 20.0]]))[0]
    np.testing.assert_allclose(middle, grid.displacement[0, :2].mean(axis=0))
    np.testing.assert_allclose(grid.at(np.array([[-1e9, 1e9]]))[0], grid.displacement[-1, 0])
    assert np.isnan(grid.at(np.array([[np.nan, 1.0]]))).all()


def test_corrections_are_stored_and_read_back():
    points = np.random.default_rng(1).uniform(0, 40, (50, 2))
    grid = Field(np.array([0.0, 1.0]), 10.0, np.random.default_rng(0).normal(size=(5, 4, 2)))
    for correction in (Correction.none(), Correction(np.array([[1, 0.1, 3], [0, 1, -2.5], [0, 0, 1]]), grid)):
        read = Correction.from_dict(json.loads(json.dumps(correction.to_dict())))
        np.testing.assert_allclose(read.apply(points), correction.apply(points), atol=1e-3)
        assert read.moves == correction.moves
