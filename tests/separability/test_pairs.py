import itertools

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from stqp.errors import InputError
from stqp.separability import blocks, model, pairs
from stqp.separability.merging import combined, merge


def scored(rng, sizes, means, n_blocks=40, spread=0.0):
    """Scores of an ideal observer of one number that is normal in each group, and the number."""
    y = np.repeat(np.arange(len(sizes)), sizes)
    block = rng.integers(0, n_blocks, len(y))
    value = np.array(means)[y] + rng.normal(0, 1, len(y)) + rng.normal(0, spread, n_blocks)[block]
    return -((value[:, None] - np.array(means)) ** 2) / 2, y, block, value


def test_auc_of_a_block_is_scikit_learns():
    rng = np.random.default_rng(0)
    block = rng.integers(0, 6, 400)
    is_a = rng.random(400) < 0.4
    score = np.round(rng.normal(0, 1, 400) + is_a, 1)  # with ties
    is_a[block == 3] = True
    auc, weight = pairs.auc_by_block(score, is_a, block, 8)
    for k in range(6):
        of = block == k
        if k == 3:
            assert weight[k] == 0
            continue
        assert auc[k] == pytest.approx(roc_auc_score(is_a[of], score[of]))
        assert weight[k] == pytest.approx((of & is_a).sum() * (of & ~is_a).sum() / of.sum())
    assert (weight[6:] == 0).all()


@pytest.mark.parametrize("n_blocks", [8, 15, 40])
@pytest.mark.parametrize("distance", [0.0, 1.0, 2.5])
def test_intervals_cover(n_blocks, distance):
    """Blocks differ, in size and in how far the groups are apart; 95 % of the intervals hold the truth."""
    rng = np.random.default_rng(1)
    spread = 0.4
    truth = norm.cdf(distance / np.sqrt(2 + spread**2))
    draws = pairs.draws_of(np.zeros(n_blocks, np.int64), 0, 300)
    inside = []
    for _ in range(150):
        values, weights = np.full(n_blocks, 0.5), np.zeros(n_blocks)
        for k in range(n_blocks):
            a, b = (rng.poisson(rng.gamma(2, 4)) for _ in range(2))
            if a and b:
                x, z = rng.normal(distance + spread * rng.normal(), 1, a), rng.normal(0, 1, b)
                values[k], weights[k] = (x[:, None] > z).mean(), a * b / (a + b)
        found = pairs.estimate(values, weights, draws)
        inside.append(found.low <= truth <= found.high)
        assert found.low <= found.value <= found.high
    assert np.mean(inside) >= 0.89


def test_blocks_are_drawn_and_slides_first_where_there_are_five():
    few = pairs.draws_of(np.repeat([0, 1], [10, 30]), 0, 50)
    assert (few[:, :10].sum(axis=1) == 10).all() and (few[:, 10:].sum(axis=1) == 30).all()
    many = pairs.draws_of(np.repeat(np.arange(6), 10), 0, 50)
    assert (many.sum(axis=1) == 60).all() and many[:, :10].sum(axis=1).std() > 0
    assert np.array_equal(many, pairs.draws_of(np.repeat(np.arange(6), 10), 0, 50))


def test_holms_procedure():
    assert pairs.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert not len(pairs.holm([]))


def test_none_of_many_pairs_is_told_apart_by_chance():
    """20 groups of one look, 190 pairs, ten times: hardly ever is one more than chance."""
    wrong = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        y, block = np.repeat(np.arange(20), 60), rng.integers(0, 40, 1200)
        scores = rng.normal(0, 1, (1200, 20))
        draws = pairs.draws_of(np.zeros(40, np.int64), seed, 300)
        rows = [np.flatnonzero(y == g) for g in range(20)]
        found = [
            pairs.judge_pair(a, b, scores, pairs.Sites(block, draws), (rows[a], rows[b]))
            for a, b in itertools.combinations(range(20), 2)
        ]
        decided = pairs.decide(found, 0.8)
        assert np.mean([p.verdict == "not told apart" for p in decided]) > 0.8
        assert not any(p.verdict == "told apart" for p in decided)
        wrong.append(any(not p.chance for p in decided))
    assert sum(wrong) <= 2


def test_a_tint_of_blocks_is_no_difference_between_nuclei():
    """Groups that look alike, whose shares follow a tint: over all nuclei it seems that they can be told apart."""
    rng = np.random.default_rng(4)
    n, n_blocks = 6000, 50
    block = rng.integers(0, n_blocks, n)
    tint = rng.normal(0, 2, n_blocks)
    y = (rng.random(n) < 1 / (1 + np.exp(-tint[block]))).astype(np.int64)
    value = tint[block] + rng.normal(0, 1, n)
    scores = np.stack([-value, value], axis=1)
    draws = pairs.draws_of(np.zeros(n_blocks, np.int64), 0, 300)
    found = pairs.judge_pair(1, 0, scores, pairs.Sites(block, draws), (np.flatnonzero(y == 1), np.flatnonzero(y == 0)))
    assert found.over_all > 0.75 and not found.apart
    assert found.auc.low < 0.5 < found.auc.high and found.auc.value < 0.55


def test_groups_that_never_meet_are_marked():
    rng = np.random.default_rng(5)
    scores, y, block, _ = scored(rng, [400, 400], [0, 1.5])
    block = 2 * (block // 2) + y  # each block holds one of them
    draws = pairs.draws_of(np.zeros(41, np.int64), 0, 500)
    found = pairs.judge_pair(0, 1, scores, pairs.Sites(block, draws), (np.flatnonzero(y == 0), np.flatnonzero(y == 1)))
    assert found.apart and found.auc.value == pytest.approx(roc_auc_score(y == 0, scores[:, 0] - scores[:, 1]))
    assert found.auc.low < norm.cdf(1.5 / np.sqrt(2)) < found.auc.high
    (judged,) = pairs.decide([found], 0.6)
    assert judged.verdict == "told apart" and not judged.chance
    lonely = pairs.judge_pair(
        0, 1, scores, pairs.Sites(y, draws[:, :2]), (np.flatnonzero(y == 0), np.flatnonzero(y == 1))
    )
    assert pairs.decide([lonely], 0.8)[0].verdict == "not judged"


def test_folds_hold_blocks_out_behind_a_guard_band():
    rng = np.random.default_rng(6)
    places = rng.uniform(0, 1000, (3000, 2))
    y = rng.integers(0, 3, 3000)
    one = np.zeros(3000, np.int64)
    block = blocks.block_of(places, one, 125.0)
    assert len(np.unique(block)) == 64
    found = blocks.folds(places, one, block, y, 30.0, 0)
    assert sorted(np.concatenate([test for _, test in found]).tolist()) == list(range(3000))
    for train, test in found:
        assert not set(block[train].tolist()) & set(block[test].tolist())
        nearest = np.hypot(*(places[train[::20], None] - places[test]).transpose(2, 0, 1)).min()
        assert nearest > 30 and len(train) > 1000
    again = blocks.folds(places, one, block, y, 30.0, 0)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(found, again, strict=True))
    slide = rng.integers(0, 3, 3000)
    for train, test in blocks.folds(places, slide, blocks.block_of(places, slide, 125.0), y, 30.0, 0):
        assert not set(slide[train].tolist()) & set(slide[test].tolist())
    with pytest.raises(InputError, match="one spatial block"):
        blocks.folds(places, one, one, y, 30.0, 0)
    with pytest.raises(InputError, match="smaller --guard"):
        blocks.folds(places, one, block, y, 900.0, 0)


def test_the_model_learns_without_seeing_and_is_calibrated():
    rng = np.random.default_rng(7)
    n = 4000
    y = rng.choice(4, n, p=[0.55, 0.25, 0.15, 0.05])
    x = rng.normal(0, 1, (n, 6))
    x[:, 0] += 1.5 * (y == 1)
    x[:, 1] *= 1 + 1.5 * (y == 2)  # told by its spread alone
    x[rng.random(x.shape) < 0.05] = np.nan
    places = rng.uniform(0, 2000, (n, 2))
    one = np.zeros(n, np.int64)
    block = blocks.block_of(places, one, 200.0)
    split = blocks.folds(places, one, block, y, 20.0, 0)
    scores = model.out_of_fold(x, y, 4, split, 0)
    assert np.array_equal(scores, model.out_of_fold(x, y, 4, split, 0))
    auc = {b: roc_auc_score(y[np.isin(y, (0, b))] == b, (scores[:, b] - scores[:, 0])[np.isin(y, (0, b))])
           for b in (1, 2, 3)}  # fmt: skip
    assert auc[1] > 0.8 and auc[2] > 0.65 and 0.4 < auc[3] < 0.6
    assert model.calibration_error(scores, y) < 0.1


def test_what_looks_alike_is_merged_and_a_chain_is_not():
    rng = np.random.default_rng(8)
    # 0 and 1 alike; 2 far; 3 alike 2 but of another lineage
    scores, y, block, _ = scored(rng, [500, 200, 300, 300], [0, 0.1, 2.5, 2.6])
    draws = pairs.draws_of(np.zeros(40, np.int64), 0, 300)
    start, lines = [[0], [1], [2], [3]], ["a", "a", "a", "b"]
    found = merge(scores, y, pairs.Sites(block, draws), start, lines, 0.8)
    assert [c.members for c in found.classes] == [(2,), (3,), (0, 1)]
    low = [p for p in found.pairs if p.auc.value < 0.8]
    assert [{found.classes[p.a].members, found.classes[p.b].members} for p in low] == [{(2,), (3,)}]
    assert sorted(found.order) == [0, 1, 2, 3] and len(found.steps) == 3
    assert abs(found.order.index(0) - found.order.index(1)) == 1
    across = merge(scores, y, pairs.Sites(block, draws), start, lines, 0.8, across=True)
    assert sorted(c.members for c in across.classes) == [(0, 1), (2, 3)]
    for one in across.classes:
        assert one.recall.low < one.recall.value < one.recall.high and one.recall.value > 0.8
    # a chain: each like the next, the ends well apart
    scores, y, block, _ = scored(rng, [400] * 5, [0, 0.9, 1.8, 2.7, 3.6])
    chain = merge(scores, y, pairs.Sites(block, draws), [[i] for i in range(5)], ["a"] * 5, 0.8)
    assert len(chain.classes) >= 2
    together = merge(scores, y, pairs.Sites(block, draws), [[0, 4], [1], [2], [3]], ["a"] * 4, 0.8)
    assert all(not ({0, 4} & {*c.members}) or {0, 4} <= {*c.members} for c in together.classes)


def test_recall_is_the_share_that_is_found():
    rng = np.random.default_rng(9)
    scores, y, block, _ = scored(rng, [900, 300], [0, 2])
    draws = pairs.draws_of(np.zeros(40, np.int64), 0, 300)
    found = merge(scores, y, pairs.Sites(block, draws), [[0], [1]], ["a", "a"], 0.8)
    for g, one in enumerate(found.classes):
        assert one.recall.value == pytest.approx((scores[y == g].argmax(axis=1) == g).mean())
        assert one.recall.low < norm.cdf(1) < one.recall.high
    assert found.classes[0].recall_found > found.classes[0].recall.value  # the frequent one gains
    assert found.classes[1].precision_found > 0.7


def test_merged_likelihood_is_the_mixtures():
    scores = np.log(np.array([[0.2, 0.4, 0.4], [0.7, 0.1, 0.2]]))
    found = np.exp(combined(scores, np.array([30, 10, 60]), (0, 1)))
    assert np.allclose(found, [0.75 * 0.2 + 0.25 * 0.4, 0.75 * 0.7 + 0.25 * 0.1])
