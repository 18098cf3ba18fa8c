"""Losses and targets against slow, obvious references."""

import math

import numpy as np
import pytest
import torch

from stqp.training.losses import TERMS, HoVerNetLoss, inverse_frequency
from stqp.training.settings import LossOptions
from stqp.training.targets import hv_map, split_touching_border


def slow_hv(instances: np.ndarray) -> np.ndarray:
    result = np.zeros((2, *instances.shape), np.float32)
    for i in np.unique(instances)[1:]:
        rows, columns = np.nonzero(instances == i)
        if len(rows) < 30:
            continue
        for channel, position in ((0, columns), (1, rows)):
            d = (position - int(position.mean() + 0.5)).astype(float)
            if d.min() < 0:
                d[d < 0] /= -d.min()
            if d.max() > 0:
                d[d > 0] /= d.max()
            result[channel, rows, columns] = d
    return result


def blobs(seed: int = 0, size: int = 96, n: int = 14) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.zeros((size, size), np.int32)
    for i in range(n):
        cx, cy = rng.uniform(0, size, 2)
        image[((x - cx) / rng.uniform(2, 12)) ** 2 + ((y - cy) / rng.uniform(2, 12)) ** 2 < 1] = 7 * i + 3
    return image


@pytest.mark.parametrize("seed", range(3))
def test_hv_map_equals_the_definition(seed):
    instances = blobs(seed)
    assert np.abs(hv_map(instances) - slow_hv(instances)).max() < 1e-6


def test_hv_runs_left_to_right_and_top_to_bottom():
    instances = np.zeros((40, 40), np.int32)
    instances[10:31, 5:26] = 1
    hv = hv_map(instances)
    assert hv[0, 20, 5] == -1 and hv[0, 20, 25] == 1 and hv[0, 20, 15] == 0
    assert hv[1, 10, 15] == -1 and hv[1, 30, 15] == 1
    assert not hv_map(np.zeros((5, 5), np.int32)).any()


def test_small_nuclei_have_a_target_at_coarse_resolution():
    instances = np.zeros((20, 20), np.int32)
    instances[2:5, 2:5], instances[10:12, 10:12] = 1, 2  # 2.25 and 1 µm² at 0.5 µm/px
    assert not hv_map(instances).any() and not hv_map(instances, 0.2).any()
    hv = hv_map(instances, 0.5)
    assert hv[:, instances == 1].any() and not hv[:, instances == 2].any()


def test_a_nucleus_cut_in_two_becomes_two():
    instances = np.zeros((20, 20), np.int32)
    instances[2:6, 2:6] = instances[12:16, 12:16] = 4
    instances[2:6, 6:9] = 5
    assert len(np.unique(split_touching_border(instances))) == 4


def random_batch(seed, classes=3, size=20, dtype=torch.float64):
    """Random maps: logits, targets, pixels that do not count, weights of types."""
    g = torch.Generator().manual_seed(seed)
    target = {
        "np": torch.randint(0, 2, (2, size, size), generator=g),
        "hv": torch.rand(2, 2, size, size, generator=g, dtype=dtype) * 2 - 1,
        "tp": torch.randint(0, classes + 1, (2, size, size), generator=g),
        "valid": (torch.rand(2, size, size, generator=g) > 0.2).to(dtype),
        "typed": (torch.rand(2, size, size, generator=g) * (torch.rand(2, size, size, generator=g) > 0.3)).to(dtype),
    }
    output = {
        name: (torch.randn(2, n, size, size, generator=g, dtype=dtype) * 3).requires_grad_()
        for name, n in (("np", 2), ("hv", 2), ("tp", classes + 1))
    }
    return output, target


def slow_terms(output, target, options=LossOptions(), class_weights=None):  # noqa: B008
    """The losses pixel by pixel, as the papers write them, in Python's floats."""
    arrays = {k: v.detach().double().numpy() for k, v in output.items()}
    truth = {k: v.double().numpy() for k, v in target.items()}
    n, _, height, width = arrays["hv"].shape
    classes = arrays["tp"].shape[1]
    class_weights = class_weights or [1.0] * classes
    sums = dict.fromkeys(TERMS, 0.0)
    weight = dict.fromkeys(TERMS, 0.0)
    overlap = {name: np.zeros((3, arrays[name].shape[1])) for name in ("np", "tp")}
    difference = arrays["hv"] - truth["hv"]
    for i in range(n):
        for y in range(height):
            for x in range(width):
                valid = truth["valid"][i, y, x]
                for name in ("np", "tp"):
                    e = np.exp(arrays[name][i, :, y, x] - arrays[name][i, :, y, x].max())
                    p, label = e / e.sum(), int(truth[name][i, y, x])
                    w = valid * (truth["typed"][i, y, x] if name == "tp" else 1)
                    overlap[name][0, label] += w * p[label]
                    overlap[name][1] += w * p
                    overlap[name][2, label] += w
                    loss = -math.log(p[label])
                    if name == "tp":
                        if options.type_loss == "focal":
                            loss *= (1 - p[label]) ** options.focal_gamma
                        elif options.type_loss == "gce":
                            loss = (1 - p[label] ** options.gce_q) / options.gce_q
                        share = options.label_smoothing
                        loss = (1 - share) * loss + share * np.mean(-np.log(p))
                        w *= class_weights[label]
                    sums[f"{name}_ce"] += w * loss
                    weight[f"{name}_ce"] += w
                sums["hv_mse"] += valid * np.mean(difference[i, :, y, x] ** 2)
                weight["hv_mse"] += valid
                focus = valid * truth["np"][i, y, x]
                if not focus:
                    continue
                weight["hv_msge"] += 2 * focus
                for channel in (0, 1):
                    gradient = 0.0
                    for dy in range(-2, 3):
                        for dx in range(-2, 3):
                            if (dy or dx) and 0 <= y + dy < height and 0 <= x + dx < width:
                                along = dx if channel == 0 else dy
                                gradient += difference[i, channel, y + dy, x + dx] * along / (dx * dx + dy * dy)
                    sums["hv_msge"] += focus * gradient**2
    result = {name: sums[name] / max(weight[name], 1e-9) for name in TERMS if not name.endswith("dice")}
    for name in ("np", "tp"):
        common, predicted, present = overlap[name]
        score = (2 * common + 1e-3) / (predicted + present + 1e-3)
        result[f"{name}_dice"] = float(((1 - score) * (present > 0)).sum())
    return result


KINDS = [
    {},
    {"type_loss": "focal", "focal_gamma": 1.5},
    {"type_loss": "gce", "gce_q": 0.6},
    {"label_smoothing": 0.1},
    {"type_loss": "gce", "label_smoothing": 0.2, "hv_msge": 2.5, "tp_dice": 0.0},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_losses_equal_the_slow_reference(kind):
    options = LossOptions(**kind)
    weights = [1.0, 4.0, 0.5, 2.0] if kind else None
    for seed, dtype in ((0, torch.float64), (1, torch.float32)):
        output, target = random_batch(seed, dtype=dtype)
        total, terms = HoVerNetLoss(options, weights)(output, target)
        expected = slow_terms(output, target, options, weights)
        for name in TERMS:
            tolerance = 1e-9 if dtype == torch.float64 and kind == {} else 1e-6
            assert abs(float(terms[name].detach()) - expected[name]) <= tolerance * max(1, abs(expected[name])), name
        whole = sum(expected[name] * getattr(options, name) for name in TERMS)
        assert abs(float(total.detach()) - whole) <= 1e-6 * max(1, whole)


def test_gradients_of_the_losses_are_right():
    output, target = random_batch(3, classes=2, size=6)
    names = [*output]

    def loss(*values):
        return HoVerNetLoss(LossOptions(type_loss="focal", label_smoothing=0.1))(dict(zip(names, values)), target)[0]  # noqa: B905

    assert torch.autograd.gradcheck(loss, tuple(output.values()))


def test_the_loss_of_a_batch_is_made_of_the_sums_of_its_parts():
    output, target = random_batch(4)
    loss = HoVerNetLoss(LossOptions(class_weights="inverse"), [1.0, 3.0, 1.0, 2.0])
    parts = [
        loss.sums({k: v[i : i + 1] for k, v in output.items()}, {k: v[i : i + 1] for k, v in target.items()})
        for i in (0, 1)
    ]
    assert torch.allclose(loss.total(parts[0] + parts[1])[0], loss(output, target)[0], rtol=1e-12)


def test_perfect_output_has_almost_no_loss():
    _, target = random_batch(5, size=32)
    target["valid"][:] = target["typed"][:] = 1
    perfect = {
        "np": 50.0 * torch.nn.functional.one_hot(target["np"], 2).permute(0, 3, 1, 2),
        "hv": target["hv"].clone(),
        "tp": 50.0 * torch.nn.functional.one_hot(target["tp"], 4).permute(0, 3, 1, 2),
    }
    loss, terms = HoVerNetLoss(LossOptions())(perfect, target)
    assert float(loss) < 1e-3, terms


def test_what_is_not_known_does_not_count():
    output, target = random_batch(6, size=32)
    target["np"][:], target["tp"][:] = 0, 0
    target["np"][:, 8:20, 8:20], target["tp"][:, 8:20, 8:20] = 1, 2
    target["valid"][:] = target["typed"][:] = 1
    target["valid"][:, :4] = 0
    target["typed"][:, 8:20, 8:14] = 0
    loss = HoVerNetLoss(LossOptions())
    first, _ = loss(output, target)
    first.backward()
    assert not output["np"].grad[:, :, :4].any() and not output["tp"].grad[:, :, :4].any()
    assert not output["tp"].grad[:, :, 8:20, 8:14].any() and output["np"].grad[:, :, 8:20, 8:14].any()
    target["tp"][:, 8:20, 8:14] = 1
    assert torch.isclose(loss(output, target)[0], first)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nothing_known_or_no_nucleus_is_no_nan(kind):
    output, target = random_batch(7)
    for name in ("valid", "typed", "np", "tp"):
        target[name].zero_()
    for known in (False, True):
        if known:  # all is background, so that every class is absent
            target["valid"].fill_(1)
            target["typed"].fill_(1)
        loss, _ = HoVerNetLoss(LossOptions(**kind))(output, target)
        loss.backward()
        assert torch.isfinite(loss) and all(torch.isfinite(v.grad).all() for v in output.values())


def test_sure_and_wrong_is_no_nan():
    output, target = random_batch(8, dtype=torch.float32)
    for kind in KINDS:
        wild = {k: (v.detach() * 1e4).requires_grad_() for k, v in output.items()}
        loss, _ = HoVerNetLoss(LossOptions(**kind))(wild, target)
        loss.backward()
        assert torch.isfinite(loss) and all(torch.isfinite(v.grad).all() for v in wild.values()), kind


def test_rare_classes_weigh_more_but_not_without_end():
    weights = inverse_frequency([1000, 100, 1, 0], cap=20)
    assert weights[0] == 1 and weights[2] == pytest.approx(10 * weights[1])
    assert weights[3] == weights[4] == pytest.approx(20 * weights[1])
    assert np.average(weights[1:4], weights=[1000, 100, 1]) == pytest.approx(1)
    assert inverse_frequency([0, 0], cap=5)[0] == 1 and np.isfinite(inverse_frequency([0, 0], cap=5)).all()
