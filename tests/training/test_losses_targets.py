"""Losses and targets against slow, obvious references."""

import numpy as np
import pytest
import torch

from stqp.training.losses import dice, gradient_error, hovernet_loss
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


def test_a_nucleus_cut_in_two_becomes_two():
    instances = np.zeros((20, 20), np.int32)
    instances[2:6, 2:6] = instances[12:16, 12:16] = 4
    instances[2:6, 6:9] = 5
    assert len(np.unique(split_touching_border(instances))) == 4


def make_batch(size=32, classes=3):
    generator = torch.Generator().manual_seed(1)
    target = {
        "np": torch.zeros(2, size, size, dtype=torch.int64),
        "hv": torch.rand(2, 2, size, size, generator=generator) - 0.5,
        "tp": torch.zeros(2, size, size, dtype=torch.int64),
        "valid": torch.ones(2, size, size),
        "typed": torch.ones(2, size, size),
    }
    target["np"][:, 8:20, 8:20] = 1
    target["tp"][:, 8:20, 8:20] = 2
    output = {
        "np": torch.randn(2, 2, size, size, generator=generator, requires_grad=True),
        "hv": torch.randn(2, 2, size, size, generator=generator, requires_grad=True),
        "tp": torch.randn(2, classes + 1, size, size, generator=generator, requires_grad=True),
    }
    return output, target


def test_perfect_output_has_almost_no_loss():
    _, target = make_batch()
    perfect = {
        "np": 50.0 * torch.nn.functional.one_hot(target["np"], 2).permute(0, 3, 1, 2),
        "hv": target["hv"].clone(),
        "tp": 50.0 * torch.nn.functional.one_hot(target["tp"], 4).permute(0, 3, 1, 2),
    }
    loss, terms = hovernet_loss(perfect, target)
    assert float(loss) < 1e-3, terms


def test_dice_is_the_formula_for_present_classes():
    output, target = make_batch()
    weight = torch.ones_like(target["valid"])
    probability = torch.softmax(output["np"], 1)
    expected = 0.0
    for c in (0, 1):
        p, t = probability[:, c], (target["np"] == c).float()
        expected += 1 - (2 * (p * t).sum() + 1e-3) / (p.sum() + t.sum() + 1e-3)
    assert torch.isclose(dice(output["np"], target["np"], weight), expected)


def test_gradient_error_is_the_difference_of_gradients():
    output, target = make_batch()
    focus = target["np"].float()
    ticks = torch.arange(-2, 3).float()
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    total = 0.0
    for channel, kernel in ((0, x), (1, y)):
        kernel = (kernel / (x**2 + y**2 + 1e-15))[None, None]

        def gradient(m, kernel=kernel, channel=channel):
            return torch.nn.functional.conv2d(m[:, channel : channel + 1], kernel, padding=2)[:, 0]

        total += (((gradient(output["hv"]) - gradient(target["hv"])) ** 2) * focus).sum()
    expected = total / (2 * focus.sum())
    assert torch.isclose(gradient_error(output["hv"], target["hv"], focus), expected, rtol=1e-4)


def test_what_is_not_known_does_not_count():
    output, target = make_batch()
    target["valid"][:, :4] = 0
    target["typed"][:, 8:20, 8:14] = 0
    first, _ = hovernet_loss(output, target)
    first.backward()
    assert not output["np"].grad[:, :, :4].any() and not output["tp"].grad[:, :, :4].any()
    assert not output["tp"].grad[:, :, 8:20, 8:14].any() and output["np"].grad[:, :, 8:20, 8:14].any()
    target["tp"][:, 8:20, 8:14] = 1
    assert torch.isclose(hovernet_loss(output, target)[0], first)


def test_nothing_known_or_no_nucleus_is_no_nan():
    output, target = make_batch()
    for name in ("valid", "typed", "np", "tp"):
        target[name].zero_()
    loss, _ = hovernet_loss(output, target)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(v.grad).all() for v in output.values())
