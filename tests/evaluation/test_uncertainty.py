import numpy as np
import pytest
from evaluation.judges import random_pair
from scipy import stats

from stqp.errors import UsageError
from stqp.evaluation import paired, scores
from stqp.evaluation.counts import Counts
from stqp.evaluation.overlap import from_maps
from stqp.evaluation.uncertainty import Sample, detectable_difference, interval, intervals, needed_images

CLASSES = ["a", "b", "c"]


def counts_of(seeds):
    parts = []
    for seed in seeds:
        true, pred, true_types, pred_types = random_pair(seed)
        parts.append(scores.count(from_maps(true, pred, true_types, pred_types), 0.3, 3))
    return Counts.stack(parts)


@pytest.fixture(scope="module")
def images():
    return counts_of([s for s in range(1, 60) if s % 10][:12])


def test_bca_equals_scipy():
    rng = np.random.default_rng(1)
    data = rng.exponential(size=25)
    judged = stats.bootstrap((data,), np.mean, n_resamples=999, method="BCa", rng=np.random.default_rng(2))
    jackknife = (data.sum() - data) / (len(data) - 1)
    mine = interval(judged.bootstrap_distribution, data.mean(), jackknife)
    assert mine == pytest.approx([*judged.confidence_interval], rel=1e-9)
    plain = np.percentile(judged.bootstrap_distribution, [2.5, 97.5])
    assert interval(judged.bootstrap_distribution, data.mean()) == pytest.approx([*plain])
    assert mine != pytest.approx([*plain], rel=1e-3)


def test_undefined_scores_have_no_interval():
    assert interval(np.full(1000, np.nan), 0.5) is None
    assert interval(np.arange(1000.0), np.nan) is None
    assert interval(np.full(1000, 0.5), 0.5, np.full(8, 0.5)) == [0.5, 0.5]


def test_resamples_equal_a_loop_over_images(images):
    sample = Sample.of_images(images)
    weights = sample.draws(40, np.random.default_rng(3))
    assert (weights.sum(axis=1) == 12).all() and (weights > 1).any()
    fast = sample.statistics(weights)
    each = images.measures()["pq"]
    for row, weight in enumerate(weights):
        chosen = np.repeat(np.arange(12), weight.astype(int))
        assert fast["mean"]["pq"][row] == pytest.approx(np.nanmean(each[chosen]))
        assert fast["pooled"]["pq"][row] == pytest.approx(float(images[chosen].pool().measures()["pq"]))
        f1 = images[chosen].pool().class_measures()["type_f1"]
        assert fast["pooled"]["class:type_f1"][row] == pytest.approx(f1, nan_ok=True)


def test_blocks_are_resampled_within_their_image(images):
    sample = Sample(images, np.repeat([0, 1, 2], 4), "blocks of 250 µm")
    weights = sample.draws(50, np.random.default_rng(0))
    for i in range(3):
        assert (weights[:, 4 * i : 4 * i + 4].sum(axis=1) == 4).all()
    fast = sample.statistics(weights)
    for row, weight in enumerate(weights[:10]):
        chosen = [np.repeat(np.arange(4) + 4 * i, weight[4 * i : 4 * i + 4].astype(int)) for i in range(3)]
        each = [float(images[c].pool().measures()["f_d"]) for c in chosen]
        assert fast["mean"]["f_d"][row] == pytest.approx(np.mean(each))
        whole = images[np.concatenate(chosen)].pool().measures()["f_d"]
        assert fast["pooled"]["f_d"][row] == pytest.approx(float(whole))
    found = intervals(sample, CLASSES, 200)
    assert found["over"] == "blocks of 250 µm" and found["units"] == 12


def test_intervals_say_what_they_are_and_hold_the_estimate(images):
    found = intervals(Sample.of_images(images), CLASSES, 500, seed=1)
    assert (found["method"], found["over"], found["units"]) == ("bca", "images", 12)
    pooled = images.pool()
    for name, value in pooled.measures().items():
        if name in found["pooled"] and 0 < value < 1:
            low, high = found["pooled"][name]
            assert low <= value <= high, name
    assert "type_f1" in found["pooled_per_class"]["a"]
    assert found == intervals(Sample.of_images(images), CLASSES, 500, seed=1)
    other = intervals(Sample.of_images(images), CLASSES, 500, seed=1, method="percentile")
    assert other["method"] == "percentile" and other["pooled"]["pq"] != found["pooled"]["pq"]


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    zero = counts_of([0]).map(np.zeros_like)
    for trial in range(200):
        tp = rng.binomial(50, rng.beta(8, 4, 20)).astype(float)  # found of 50 nuclei in each of 20 images
        detection = np.c_[tp, np.zeros(20), 50 - tp]
        units = Counts(**{**vars(zero.map(lambda a: np.repeat(a, 20, 0))), "detection": detection})
        low, high = intervals(Sample.of_images(units), [], 300, seed=trial)["pooled"]["recall_d"]
        inside += low <= 8 / 12 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_the_permutation_test_equals_scipy(images):
    other = images[::-1]
    other = Counts.stack([images[i] if i % 3 else other[i] for i in range(8)])
    images = images[:8]
    found = paired.compare(Sample.of_images(images), Sample.of_images(other), CLASSES, 100)
    assert found["test"] == "exact" and found["permutations"] == 256
    for name in ("dice", "f_d"):
        a, b = images.measures()[name], other.measures()[name]
        judged = stats.permutation_test(
            (a, b), lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type="samples", vectorized=True
        )
        one = found["mean"][name]
        assert one["difference"] == pytest.approx(judged.statistic)
        assert one["p"] == pytest.approx(judged.pvalue)


def test_pooled_exchanges_equal_a_loop(images):
    a, b = images[:4], images[4:8]
    found = paired.compare(Sample.of_images(a), Sample.of_images(b), CLASSES, 50)
    differences = []
    for mask in range(16):
        swap = [(mask >> i) & 1 for i in range(4)]
        first = Counts.stack([b[i] if s else a[i] for i, s in enumerate(swap)]).pool().measures()["pq"]
        second = Counts.stack([a[i] if s else b[i] for i, s in enumerate(swap)]).pool().measures()["pq"]
        differences.append(float(second - first))
    observed = found["pooled"]["pq"]["difference"]
    assert observed == pytest.approx(differences[0])
    assert found["pooled"]["pq"]["p"] == pytest.approx(np.mean(np.abs(differences) >= abs(observed) - 1e-12))


def test_a_model_against_itself_does_not_differ(images):
    sample = Sample.of_images(images)
    found = paired.compare(sample, sample, CLASSES, 200)
    for kind in ("mean", "pooled"):
        for one in found[kind].values():
            if not np.isnan(one["difference"]):
                assert one["difference"] == 0 and one["p"] == 1 and one["interval"] in ([0.0, 0.0], None)


def test_many_units_are_exchanged_at_random():
    images = counts_of(s for s in range(1, 20) if s % 10)
    found = paired.compare(Sample.of_images(images), Sample.of_images(images[::-1]), CLASSES, 50)
    assert found["test"] == "random" and found["permutations"] == paired.PERMUTATIONS + 1
    assert found["mean"]["pq"]["p"] > 1 / (paired.PERMUTATIONS + 1)
    again = paired.compare(Sample.of_images(images), Sample.of_images(images[::-1]), CLASSES, 50)
    assert again["pooled"]["pq"] == found["pooled"]["pq"]


def test_other_units_cannot_be_paired(images):
    with pytest.raises(UsageError, match="same units, found 12 and 11"):
        paired.compare(Sample.of_images(images), Sample.of_images(images[:11]), CLASSES)


def test_power_equals_statsmodels():
    power = pytest.importorskip("statsmodels.stats.power")
    for images in (3, 6, 15, 60):
        judged = power.TTestPower().solve_power(nobs=images, alpha=0.05, power=0.8)
        assert detectable_difference(0.02, images) == pytest.approx(0.02 * judged, rel=1e-4)
    n = needed_images(0.05, 0.02)
    judged = power.TTestPower().solve_power(effect_size=0.02 / 0.05, alpha=0.05, power=0.8)
    assert n == int(np.ceil(judged))
    assert detectable_difference(0.05, n) <= 0.02 < detectable_difference(0.05, n - 1)


def test_power_in_words():
    from stqp.evaluation.summary import power_sentence

    found = paired.power(np.array([0.01, 0.03, -0.01, 0.02, 0.04, 0.0]), paired=True)
    assert found["images"] == 6
    words = power_sentence("PQ", found)
    assert words.startswith("With 6 images you can see a difference of 0.0") and "80 % power" in words
    alone = power_sentence("PQ", paired.power(np.array([0.5, 0.6, 0.7]), paired=False))
    assert "correlate by 0.5" in alone
    assert paired.power(np.array([0.5, 0.6]), paired=False) == {}
    assert paired.power(np.array([0.5, 0.5, 0.5]), paired=False) == {}
