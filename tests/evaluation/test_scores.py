import math

import numpy as np
import pytest
from perfect_maps import grid_of_nuclei
from scipy.optimize import linear_sum_assignment

from stqp.errors import InputError
from stqp.evaluation import matching, runs
from stqp.evaluation.overlap import from_maps, from_polygons
from stqp.evaluation.scores import count, score_maps, summarise
from stqp.polygonise import polygonise

A, B, C = 1, 2, 3


def blocks(*boxes, shape=(40, 60), ids=None):
    """Map of rectangles (x0, y0, x1, y1)."""
    inst = np.zeros(shape, np.int32)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        inst[y0:y1, x0:x1] = number if ids is None else ids[number - 1]
    return inst


def masks_of(inst):
    return [inst == i for i in np.unique(inst) if i]


def reference(true, pred, mpp):
    """The scores by their definitions, over all pairs of masks."""
    t, p = masks_of(true), masks_of(pred)
    inter = np.array([[(a & b).sum() for b in p] for a in t], float).reshape(len(t), len(p))
    union = np.array([[(a | b).sum() for b in p] for a in t], float).reshape(len(t), len(p))
    iou = inter / np.maximum(union, 1)
    tp = (iou > 0.5).sum()
    fp, fn = len(p) - tp, len(t) - tp
    dq = tp / (tp + fp / 2 + fn / 2)
    sq = iou[iou > 0.5].mean() if tp else 0.0

    def aggregate(pairs):
        i, u = 0.0, 0.0
        for a, b in pairs:
            i, u = i + inter[a, b], u + union[a, b]
        u += sum(t[a].sum() for a in range(len(t)) if a not in {x for x, _ in pairs})
        u += sum(p[b].sum() for b in range(len(p)) if b not in {y for _, y in pairs})
        return i / u

    best = [(a, int(iou[a].argmax())) for a in range(len(t)) if iou[a].max() > 0]
    rows, columns = linear_sum_assignment(-iou)
    one = [(a, b) for a, b in zip(rows, columns, strict=True) if iou[a, b] > 0]
    centre = [np.array([np.argwhere(m).mean(axis=0) for m in side]) for side in (t, p)]
    distance = np.linalg.norm(centre[0][:, None] - centre[1][None], axis=2) * mpp
    cost = np.where(distance <= 3, distance - 1000, 0)
    rows, columns = linear_sum_assignment(cost)
    paired = (distance[rows, columns] <= 3).sum()
    return {
        "dice": 2 * ((true > 0) & (pred > 0)).sum() / ((true > 0).sum() + (pred > 0).sum()),
        "aji": aggregate(best),
        "aji_plus": aggregate(one),
        "dq": dq,
        "sq": sq,
        "pq": dq * sq,
        "f_d": 2 * paired / (len(t) + len(p)),
    }


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_their_definitions(seed):
    rng = np.random.default_rng(seed)
    true = grid_of_nuclei(200, 8, seed)
    pred = np.roll(grid_of_nuclei(200, 8, seed, radius=(6, 12)), rng.integers(-4, 5, 2), (0, 1))
    pred[rng.random(pred.max() + 1)[pred] < 0.2] = 0
    pred[:, 100:103] = 0  # cuts nuclei, which stay one
    true, pred = true * 7, pred * 1_000_003  # ids that are not consecutive
    found = score_maps(true, None, pred.astype(np.int64), None, 0.25, 0)
    for name, value in reference(true, pred, 0.25).items():
        assert found[name] == pytest.approx(value), name


def test_hand_computed_case():
    # 100 px each; IoU 80/120, a miss, and an extra
    true = blocks((0, 0, 10, 10), (20, 0, 30, 10))
    pred = blocks((2, 0, 12, 10), (40, 0, 50, 10))
    found = score_maps(true, [A, A], pred, [A, B], 0.25, ["a", "b"])
    assert found["dice"] == pytest.approx(160 / 400)
    assert found["dq"] == pytest.approx(0.5) and found["sq"] == pytest.approx(2 / 3)
    assert found["pq"] == pytest.approx(1 / 3)
    assert found["aji"] == found["aji_plus"] == pytest.approx(80 / 320)
    assert found["f_d"] == pytest.approx(0.5)
    assert found["precision_d"] == found["recall_d"] == 0.5
    a, b = found["per_class"]["a"], found["per_class"]["b"]
    # one pair of class a: TPc 1; one unpaired on each side
    assert a["f_c"] == pytest.approx(2 / (2 + 1 + 1))
    assert a["f_c_code"] == pytest.approx(2 / (2 + 0 + 1))
    assert a["type_f1"] == 1
    # for class b the pair is a true negative
    assert b["f_c"] == pytest.approx(2 / (2 + 1 + 1))
    assert b["f_c_code"] == 0 and math.isnan(b["type_f1"])
    assert found["f_c_mean"] == a["f_c"]  # b is absent from the truth
    assert a["pq"] == pytest.approx(2 / 3 * 1 / 1.5) and b["pq"] == 0
    assert found["mpq"] == a["pq"]
    assert found["confusion"].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_typing_by_hand():
    boxes = [(x, y, x + 5, y + 5) for y in (0, 10, 20) for x in (0, 10, 20)]
    true = pred = blocks(*boxes)
    true_types = [A, A, A, A, B, B, B, C, 0]
    pred_types = [A, A, A, B, B, B, A, C, C]
    found = score_maps(true, true_types, pred, pred_types, 0.25, ["a", "b", "c"])
    assert found["f_d"] == 1 and found["n_true"] == 9 and found["n_true_unknown"] == 1
    a, b, c = (found["per_class"][k] for k in "abc")
    # a: TP 3, FN 1, FP 1, TN 3 (two b and one c); the nucleus of unknown truth does not count
    assert a["f_c"] == pytest.approx(2 * 6 / (2 * 6 + 2 + 2))
    assert a["f_c_code"] == pytest.approx(6 / 10)
    assert a["type_f1"] == pytest.approx(6 / 8)
    assert b["type_f1"] == pytest.approx(4 / 6)
    assert c["type_f1"] == 1 and c["precision"] == 1 and c["n_pred"] == 2
    assert found["type_f1_macro"] == pytest.approx((6 / 8 + 4 / 6 + 1) / 3)
    assert found["type_accuracy"] == pytest.approx(6 / 8)
    assert c["pq"] == 1  # a prediction on a nucleus of unknown class is no false positive
    assert found["confusion"].tolist() == [[0, 0, 0, 1], [0, 3, 1, 0], [0, 1, 2, 0], [0, 0, 0, 1]]


def test_iou_of_a_half_is_no_match():
    true, pred = blocks((0, 0, 10, 10)), blocks((0, 0, 10, 20))
    assert score_maps(true, None, pred, None, 0.25, 0)["pq"] == 0
    assert score_maps(true, None, blocks((0, 0, 10, 19)), None, 0.25, 0)["dq"] == 1


def test_radius_is_in_um():
    true, pred = blocks((0, 0, 10, 10)), blocks((12, 0, 22, 10))
    assert score_maps(true, None, pred, None, 0.25, 0)["f_d"] == 1  # 12 px are 3 µm
    assert score_maps(true, None, pred, None, 0.2501, 0)["f_d"] == 0
    assert score_maps(true, None, blocks((13, 0, 23, 10)), None, 0.25, 0)["f_d"] == 0


@pytest.mark.parametrize("typed", [True, False])
def test_empty_sides(typed):
    some, none = blocks((0, 0, 5, 5)), np.zeros((40, 60), int)
    one, no = ([A], []) if typed else (None, None)
    for true, pred, t, p in ((some, none, one, no), (none, some, no, one)):
        found = score_maps(true, t, pred, p, 0.25, ["a"])
        assert found["pq"] == found["dice"] == found["aji"] == found["aji_plus"] == found["f_d"] == 0
        assert math.isnan(found["type_f1_macro"])
    found = score_maps(none, no, none, no, 0.25, ["a"])
    assert all(math.isnan(found[k]) for k in ("pq", "dice", "aji", "f_d", "f_c_mean"))
    assert math.isnan(found["per_class"]["a"]["f_c"])


def test_means_and_pooled_scores_differ_and_are_named():
    big = blocks(*[(x, 0, x + 5, 5) for x in range(0, 60, 10)])
    small = blocks((0, 0, 5, 5))
    nothing = np.zeros_like(big)
    counts = {
        "good": count(from_maps(big, big, [A] * 6, [A] * 6), 0.25, 1),
        "missed": count(from_maps(small, nothing, [A], []), 0.25, 1),
        "empty": count(from_maps(nothing, nothing), 0.25, 1),
    }
    found = summarise(counts, ["a"], bootstrap=200)
    assert found["mean"]["pq"] == pytest.approx(0.5)  # the empty image has no score
    assert found["pooled"]["pq"] == pytest.approx(6 / 6.5)
    assert found["mean"]["n_true"] == found["pooled"]["n_true"] == 7
    assert found["mean"]["per_class"]["a"]["type_f1"] == 1
    low, high = found["interval"]["pooled"]["pq"]
    assert 0 <= low <= found["pooled"]["pq"] <= high <= 1 and low < high
    assert summarise(counts, ["a"], bootstrap=200)["interval"] == found["interval"]
    with pytest.raises(InputError):
        summarise({}, [])


def test_types_must_fit_the_map():
    inst = blocks((0, 0, 5, 5), (10, 0, 15, 5), ids=[4, 9])
    assert from_maps(inst, inst, [A, B]).true_types.tolist() == [A, B]
    table = from_maps(inst, inst, [C, A, B], [A, B], true_ids=[100, 9, 4])
    assert table.true_types.tolist() == [B, A]
    with pytest.raises(InputError, match="3 types"):
        from_maps(inst, inst, [A, B, C])
    with pytest.raises(InputError, match="first is id 9"):
        from_maps(inst, inst, [A, B], true_ids=[4, 5])
    with pytest.raises(InputError, match="one size"):
        from_maps(inst, inst[:10])


def test_pairing_takes_as_many_pairs_as_possible():
    # the nearest pair first would leave one pair; two are possible
    true = np.array([[0.0, 0.0], [2.0, 0.0]])
    pred = np.array([[2.5, 0.0], [4.9, 0.0]])
    i, j = matching.pair_centres(true, pred, 3.0)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 0), (1, 1)]


def test_pairing_equals_a_dense_assignment(monkeypatch):
    rng = np.random.default_rng(1)
    true, pred = rng.random((150, 2)) * 30, rng.random((130, 2)) * 30
    distance = np.linalg.norm(true[:, None] - pred[None], axis=2)
    rows, columns = linear_sum_assignment(np.where(distance <= 3, distance - 1e4, 0))
    good = distance[rows, columns] <= 3
    for largest in (400, 5):  # dense, then sparse
        monkeypatch.setattr(matching, "_LARGEST_DENSE", largest)
        i, j = matching.pair_centres(true, pred, 3.0)
        assert len(i) == good.sum() and len(set(i)) == len(set(j)) == len(i)
        assert distance[i, j].sum() == pytest.approx(distance[rows, columns][good].sum())


def test_polygons_give_what_maps_give(monkeypatch):
    true = grid_of_nuclei(300, 10, 1)
    pred = np.roll(grid_of_nuclei(300, 10, 2, radius=(6, 12)), (3, -2), (0, 1))
    rng = np.random.default_rng(0)
    true_types, pred_types = rng.integers(0, 4, len(np.unique(true)) - 1), rng.integers(0, 4, len(np.unique(pred)) - 1)
    polygons = [polygonise(inst)[0] for inst in (true, pred)]
    drawn = [p.rasterize(true.shape) for p in polygons]
    by_maps = from_maps(*drawn, true_types[np.unique(drawn[0])[1:] - 1], pred_types[np.unique(drawn[1])[1:] - 1])
    for at_a_time in (7, 40_000):
        monkeypatch.setattr(runs, "_POLYGONS", at_a_time)
        by_polygons = from_polygons(*polygons, true_types, pred_types)
        for name in ("true_area", "pred_area", "true_index", "pred_index", "shared", "true_types", "pred_types"):
            np.testing.assert_array_equal(getattr(by_polygons, name), getattr(by_maps, name))
        np.testing.assert_allclose(by_polygons.true_xy, by_maps.true_xy)
    half = from_polygons(*(p.scale(0.5) for p in polygons), true_types, pred_types, scale=2.0)
    np.testing.assert_array_equal(half.shared, by_maps.shared)
    np.testing.assert_allclose(half.pred_xy * 2, by_maps.pred_xy)


def test_overlapping_polygons_a_later_covers_an_earlier():
    from stqp.polygons import Polygons

    squares = Polygons.from_rings(
        [[0, 0], [4, 0], [4, 4], [0, 4]] * 2 + [[2, 0], [6, 0], [6, 4], [2, 4]], [0, 4, 8, 12]
    )
    table = from_polygons(squares, Polygons.empty(), [1, 2, 3], [])
    assert table.true_ids.tolist() == [2, 3] and table.true_area.tolist() == [8, 16]
    assert len(table.pred_ids) == 0


def test_boxes_choose_whole_nuclei_by_their_centres():
    true = blocks((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10))
    table = from_maps(true, true).within([[0, 0, 25, 40], [45, 0, 50, 5]])
    # half-open boxes: the centre (25, 5) lies outside of the first, (45, 5) outside of the second
    assert table.true_ids.tolist() == [1] and table.shared.tolist() == [100]
    table = from_maps(true, true).within([[24, 0, 50, 40]])
    assert table.true_ids.tolist() == [2, 3] and table.true_index.tolist() == [0, 1]
