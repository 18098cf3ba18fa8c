import cv2
import numpy as np
import pytest
from perfect_maps import grid_of_nuclei, hv_maps

from stqp.evaluation.scores import score_maps
from stqp.inference import postprocess


def degraded(inst, seed, blur, shrink, strength):
    """Maps as an imperfect network would make them."""
    rng = np.random.default_rng(seed)

    def smooth(values, sigma):
        return cv2.GaussianBlur(values.astype(np.float32), (0, 0), sigma)

    np_prob = smooth(inst > 0, blur) + strength * smooth(rng.normal(size=inst.shape), 2)
    hv = smooth(hv_maps(inst), blur) * shrink + strength * smooth(rng.normal(size=(*inst.shape, 2)), 2)
    return np.clip(np_prob, 0, 1), hv


@pytest.mark.parametrize(("blur", "shrink", "strength"), [(0.3, 1, 0), (1.5, 0.8, 0.5), (2, 0.4, 1), (3, 1, 2)])
def test_instances_equal_those_of_tiatoolbox(blur, shrink, strength):
    from tiatoolbox.models.architecture.hovernet import HoVerNet

    np_prob, hv = degraded(grid_of_nuclei(601, 20), 1, blur, shrink, strength)
    expected = HoVerNet._proc_np_hv(np_prob[..., None], hv)
    found = postprocess.instances(np_prob, hv)
    assert found.max() > 50
    ids = np.unique(expected)
    np.testing.assert_array_equal(found, np.searchsorted(ids, expected))


@pytest.mark.parametrize(
    ("mpp", "sizes"),
    [(0.125, (21, 5, 10)), (0.25, (21, 5, 10)), (0.26, (21, 5, 10)), (0.5, (11, 3, 3)), (1, (5, 1, 1))],
)
def test_sizes_are_those_of_hovernet_and_shrink_at_coarser_resolution(mpp, sizes):
    found = postprocess.Sizes.at(mpp)
    assert (found.kernel, found.opening, found.smallest) == sizes


@pytest.mark.parametrize("given", [False, True], ids=["own bounds", "bounds of the slide"])
def test_small_nuclei_of_a_coarse_map_are_found(given):
    inst = grid_of_nuclei(500, 40, radius=(3, 6))  # 3 to 5 µm wide at 0.5 µm/px
    np_prob, hv = (inst > 0).astype(np.float32), hv_maps(inst)
    found = {}
    for mpp in (0.25, 0.5):
        bounds = postprocess.sobel_bounds(np_prob, hv, mpp) if given else None
        found[mpp] = postprocess.instances(np_prob, hv, bounds, mpp)
    number = len(np.unique(inst)) - 1
    assert found[0.5].max() > 0.99 * number and found[0.25].max() < 0.9 * number
    assert score_maps(inst, None, found[0.5], None, 0.5, 1)["pq"] > 0.95


def test_bounds_of_the_array_give_the_same_as_none():
    np_prob, hv = degraded(grid_of_nuclei(500, 16), 2, 1.5, 0.7, 0.5)
    bounds = postprocess.sobel_bounds(np_prob, hv)
    np.testing.assert_array_equal(postprocess.instances(np_prob, hv, bounds), postprocess.instances(np_prob, hv))


def test_one_odd_pixel_changes_nothing_when_bounds_are_given():
    np_prob, hv = degraded(grid_of_nuclei(500, 16), 2, 1.5, 0.7, 0.5)
    bounds = postprocess.sobel_bounds(np_prob, hv)
    before = postprocess.instances(np_prob, hv, bounds)
    np_prob[:40, :40], hv[:40, :40] = 0, 0
    clean = postprocess.instances(np_prob, hv, bounds)
    hv[5, 5] = 400  # on the background, far from all nuclei that are compared
    odd = postprocess.instances(np_prob, hv, bounds)
    far = np.s_[60:, 60:]
    np.testing.assert_array_equal(odd[far] > 0, clean[far] > 0)
    np.testing.assert_array_equal(np.diff(odd[far], axis=1) != 0, np.diff(before[far], axis=1) != 0)
    assert postprocess.instances(np_prob, hv).max() != odd.max()


def test_empty_and_full_maps():
    for shape in ((40, 50), (1, 1), (3, 200)):
        for value in (0.0, 1.0):
            inst, prob, ids = postprocess.postprocess_maps(
                np.full(shape, value), np.zeros((*shape, 2)), np.full((*shape, 3), 1 / 3)
            )
            assert inst.shape == shape and inst.dtype == np.int32
            assert len(prob) == len(ids) == inst.max()


def test_class_probabilities_equal_a_loop_over_nuclei():
    rng = np.random.default_rng(0)
    inst = grid_of_nuclei(300, 10)
    tp = rng.random((*inst.shape, 4))
    found = postprocess.class_probabilities(inst, tp, int(inst.max()))
    expected = np.array([tp[inst == i].mean(axis=0) for i in range(1, inst.max() + 1)])
    np.testing.assert_allclose(found, expected)


def test_background_is_a_class_only_when_nothing_else_is_possible():
    prob = np.array([[0.9, 0.04, 0.06], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    assert postprocess.class_of(prob).tolist() == [2, 1, 0]
    assert postprocess.class_of(np.zeros((2, 1))).tolist() == [0, 0]


def test_small_objects_and_holes():
    labels = np.array([[1, 1, 0, 2], [1, 0, 0, 0], [3, 3, 3, 3]])
    assert postprocess.drop_small(labels, 3).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [3, 3, 3, 3]]
    mask = np.zeros((30, 30), bool)
    mask[2:9, 2:9] = mask[12:28, 12:28] = True
    mask[4:6, 4:6] = mask[14:26, 14:26] = False  # holes of 2 and 12 px
    mask[0, 20:25] = True
    filled = postprocess.fill_small_holes(mask, 5)
    assert filled[4:6, 4:6].all() and not filled[14:26, 14:26].any()
    assert (filled != mask).sum() == 4
    np.testing.assert_array_equal(postprocess.fill_small_holes(mask, 12)[12:28, 12:28], True)


def test_combined_bounds_are_a_weighted_median():
    bounds = [(-1.0, 1.0, -2.0, 2.0), (-3.0, 3.0, -1.0, 5.0), (-9.0, 9.0, -9.0, 1.0)]
    assert postprocess.combine_bounds(bounds, [1, 1, 1]) == (-3.0, 3.0, -2.0, 2.0)
    assert postprocess.combine_bounds(bounds, [10, 1, 1]) == bounds[0]
    assert postprocess.combine_bounds([], []) is None
