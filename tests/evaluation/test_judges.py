"""Every score against its slow definition, and against the libraries of the field, on 500 pairs of maps."""

import numpy as np
import pytest
from evaluation import judges

from stqp.evaluation import boundary, scores
from stqp.evaluation.counts import BINS, Counts
from stqp.evaluation.overlap import from_maps, from_polygons
from stqp.polygons import Polygons

K, MPP, NUMBER = 3, 0.3, 500
CLASSES = ["a", "b", "c"]
EXACT = {"rel": 1e-9, "abs": 1e-9, "nan_ok": True}


@pytest.fixture(scope="module")
def pairs():
    return [judges.random_pair(seed) for seed in range(NUMBER)]


@pytest.fixture(scope="module")
def found(pairs):
    return [scores.match(from_maps(t, p, tt, pt), MPP) for t, p, tt, pt in pairs]


def test_all_degenerate_kinds_are_among_them(pairs):
    empty = [(t.max() == 0, p.max() == 0) for t, p, _, _ in pairs]
    assert {(True, True), (True, False), (False, True), (False, False)} == set(empty)
    assert any((t > 0).sum() == 1 for t, _, _, _ in pairs)


def test_segmentation_equals_the_definitions(pairs, found):
    for (t, p, tt, pt), matched in zip(pairs, found, strict=True):
        mine = scores.count_match(matched, K).scores(CLASSES)
        expected, per_class = judges.slow_scores(t, p, tt, pt, MPP, K)
        for name, value in expected.items():
            assert mine[name] == pytest.approx(value, **EXACT), name
        assert [mine["per_class"][c]["pq"] for c in CLASSES] == pytest.approx(per_class, **EXACT)


def test_detection_pairs_as_many_as_possible_at_the_least_distance(pairs, found):
    for (t, p, _, _), matched in zip(pairs, found, strict=True):
        centres = [np.array([np.argwhere(m).mean(axis=0) for m in judges.masks_of(x)]).reshape(-1, 2) for x in (t, p)]
        distance = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2) * MPP
        near = np.where(distance <= 3 + 1e-9, distance - 1000, 0)
        rows, columns = judges.linear_sum_assignment(near)
        good = distance[rows, columns] <= 3 + 1e-9
        assert len(matched.true) == good.sum()
        assert matched.distance.sum() == pytest.approx(distance[rows, columns][good].sum(), **EXACT)
        f_d = judges.nan_ratio(2 * good.sum(), len(distance) + distance.shape[1])
        assert scores.count_match(matched, K).measures()["f_d"] == pytest.approx(f_d, **EXACT)


def test_typing_equals_the_definitions_and_scikit_learn(pairs, found):
    from sklearn import metrics

    for (_, _, tt, pt), matched in zip(pairs, found, strict=True):
        mine = scores.count_match(matched, K).scores(CLASSES)
        of_class, known = judges.slow_typing(tt, pt, [*zip(matched.true, matched.pred, strict=True)], K)
        for c, name in enumerate(CLASSES, start=1):
            for key, value in of_class[c].items():
                assert mine["per_class"][name][key] == pytest.approx(value, **EXACT), key
        if len(known) < 2:
            continue
        true, pred = map(np.array, zip(*known, strict=True))
        present = sorted(set(true.tolist()))
        f1 = {"labels": present, "zero_division": 0}
        assert mine["type_f1_macro"] == pytest.approx(metrics.f1_score(true, pred, average="macro", **f1), **EXACT)
        weighted = metrics.f1_score(true, pred, average="weighted", **f1)
        assert mine["type_f1_weighted"] == pytest.approx(weighted, **EXACT)
        assert mine["type_accuracy"] == pytest.approx(metrics.accuracy_score(true, pred), **EXACT)
        balanced = metrics.recall_score(true, pred, average="macro", **f1)
        assert mine["type_balanced_accuracy"] == pytest.approx(balanced, **EXACT)
        if len(present) > 1 and len(set(pred.tolist())) > 1:  # scikit-learn says 0 where it is undefined
            assert mine["type_mcc"] == pytest.approx(metrics.matthews_corrcoef(true, pred), **EXACT)


def test_boundaries_equal_distance_transforms(pairs, found):
    measured = 0
    for (t, p, _, _), matched in zip(pairs, found, strict=True):
        mine = boundary.of_maps(matched, t, p).boundary
        i, j = (x[matched.good] for x in (matched.overlap.true_index, matched.overlap.pred_index))
        for row, a, b in zip(mine, i, j, strict=True):
            expected = np.array(judges.slow_distances(t == a + 1, p == b + 1)) * MPP
            assert row == pytest.approx(expected, **EXACT)
            measured += 1
    assert measured > 200


def test_parts_add_up_to_the_whole(pairs, found):
    for (t, p, _, _), matched in zip(pairs[::5], found[::5], strict=True):
        matched = boundary.of_maps(matched, t, p)
        group = [(xy[:, 0] > 15) + 2 * (xy[:, 1] > 12) for xy in (matched.overlap.true_xy, matched.overlap.pred_xy)]
        parts = scores.count_match(matched, K, (*(g.astype(np.int64) for g in group), 4), area_mm2=[1, 2, 3, 4])
        whole = scores.count_match(matched, K, area_mm2=10)
        for name, value in vars(parts.pool()).items():
            assert value == pytest.approx(getattr(whole, name), **EXACT), name


def test_polygons_give_the_same_as_maps(pairs):
    for t, p, tt, pt in pairs:
        outlines = [squares(m) for m in (t, p)]
        by_maps, by_polygons = from_maps(t, p, tt, pt), from_polygons(*outlines, tt, pt)
        mine = [boundary.of_maps(scores.match(by_maps, MPP), t, p)]
        mine.append(boundary.of_polygons(scores.match(by_polygons, MPP), *outlines))
        a, b = (scores.count_match(m, K) for m in mine)
        for name, value in vars(a).items():
            assert getattr(b, name) == pytest.approx(value, **EXACT), name


def squares(inst):
    """Each nucleus as the squares of its pixels: outlines that draw it exactly, whatever its shape."""
    rows, columns = np.nonzero(inst)
    order = np.argsort(inst[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    corner = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    coords = (np.c_[columns, rows][:, None] + corner[None]).reshape(-1, 2)
    counts = np.bincount(inst[rows, columns], minlength=inst.max() + 1)[1:]
    return Polygons(coords, np.arange(len(rows) + 1) * 4, np.concatenate(([0], np.cumsum(counts))))


def test_calibration_equals_torchmetrics():
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(1, 400))
        probability = rng.dirichlet([0.7] * K, n)
        true, pred = rng.integers(1, K + 1, n), probability.argmax(axis=1) + 1
        inst = np.arange(1, n + 1).reshape(1, -1).repeat(2, 0).repeat(20, 1)
        table = from_maps(inst, inst, true, pred)
        table = table.__class__(**{**vars(table), "pred_probability": probability.max(axis=1)})
        mine = scores.count(table, MPP, K).measures()["ece"]
        judged = multiclass_calibration_error(
            torch.tensor(probability, dtype=torch.float64), torch.tensor(true - 1), K, n_bins=BINS, norm="l1"
        )
        assert mine == pytest.approx(float(judged), abs=1e-6)  # torchmetrics counts in single precision
        bins = np.minimum((probability.max(axis=1) * BINS).astype(int), BINS - 1)
        gaps = [abs(((true == pred) - probability.max(axis=1))[bins == b].sum()) for b in range(BINS)]
        assert mine == pytest.approx(sum(gaps) / n, **EXACT)


def test_panoptic_quality_equals_torchmetrics(pairs):
    import torch
    from torchmetrics.functional.detection import panoptic_quality

    for t, p, _, _ in pairs[1:200:2]:
        if not (t.any() and p.any()):
            continue
        # one thing class and the background as stuff, whose own quality is not asked for
        maps = [torch.tensor(np.stack([m > 0, m], -1).astype(np.int64)) for m in (p, t)]
        judged = panoptic_quality(maps[0][None], maps[1][None], things={1}, stuffs={0}, return_per_class=True)
        assert scores.count(from_maps(t, p), MPP, 0).measures()["pq"] == pytest.approx(float(judged[0, 0]), abs=1e-6)


def test_segmentation_equals_stardist(pairs):
    matching = pytest.importorskip("stardist.matching", reason="stardist is no test extra that is installed")
    for t, p, _, _ in pairs:
        if not (t.any() and p.any()):
            continue
        judged = matching.matching(t, p, thresh=0.5 + 1e-6)  # inclusive, in single precision
        mine = scores.count(from_maps(t, p), MPP, 0)
        assert mine.quality[:3].tolist() == [judged.tp, judged.fp, judged.fn]
        measures = mine.measures()
        assert measures["dq"] == pytest.approx(judged.f1, **EXACT)
        assert measures["pq"] == pytest.approx(judged.panoptic_quality, rel=1e-6)  # of IoUs in single precision
        table = from_maps(t, p)
        shared = matching.label_overlap(t, p)[1:, 1:]
        assert shared[table.true_index, table.pred_index].tolist() == table.shared.tolist()
        assert shared.sum() == table.shared.sum()


def test_segmentation_equals_panoptica(pairs):
    panoptica = pytest.importorskip("panoptica", reason="panoptica needs an older numpy than stqp")
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.UNMATCHED_INSTANCE,
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.5 + 1e-9),  # inclusive
    )
    for t, p, _, _ in pairs:
        if not (t.any() and p.any()):
            continue
        judged = next(iter(evaluator.evaluate(p.astype(np.uint16)[None], t.astype(np.uint16)[None]).values()))
        measures = scores.count(from_maps(t, p), MPP, 0).measures()
        for mine, other in (("pq", judged.pq), ("sq", judged.sq), ("dq", judged.rq)):
            assert measures[mine] == pytest.approx(float(np.nan_to_num(other)), **EXACT)


def test_points_have_no_segmentation():
    xy = np.array([[5.0, 5.0], [30.0, 5.0]])
    from stqp.evaluation import overlap

    table = overlap.from_points(xy, xy + 1, [1, 2], [1, 1])
    mine = scores.count(table, 0.25, K).measures()
    assert mine["f_d"] == 1 and mine["type_accuracy"] == 0.5
    assert all(np.isnan(mine[k]) for k in ("dice", "aji", "pq", "mpq", "boundary_error_um"))


def test_counts_of_many_images_are_scored_at_once(pairs, found):
    each = [scores.count_match(m, K) for m in found[:50]]
    stacked = Counts.stack(each).measures()
    for i, counts in enumerate(each):
        for name, value in counts.measures().items():
            assert stacked[name][i] == pytest.approx(float(value), **EXACT)
