"""The networks keep TIAToolbox's contract, and lite its price."""

import numpy as np
import pytest
import torch

from stqp.errors import UsageError
from stqp.training.network import ARCHITECTURES, architecture, build_network, cost, initialize

CLASSES = ["Neoplastic", "Inflammatory", "Connective"]


def test_lite_costs_what_it_may():
    network = build_network("lite", CLASSES)
    initialize(network)
    parameters, gflop = cost(network, 256)
    assert parameters <= 3e6 and gflop <= 8


def test_lite_geometry_and_larger_windows():
    torch.manual_seed(0)
    network = build_network("lite", CLASSES).eval()
    image = torch.rand(1, 3, 512, 512) * 255
    with torch.no_grad():
        large, small = network(image), network(image[..., 128:384, 128:384])
    assert {k: v.shape[1:] for k, v in small.items()} == {"tp": (4, 164, 164), "np": (2, 164, 164), "hv": (2, 164, 164)}
    assert large["np"].shape[-1] == 420
    middle = large["np"][..., 128:-128, 128:-128]
    assert torch.allclose(middle[..., 60:-60, 60:-60], small["np"][..., 60:-60, 60:-60], atol=0.05)


def test_the_last_layers_start_as_they_should():
    network = build_network("lite", CLASSES)
    initialize(network)
    images = torch.rand(2, 3, 256, 256) * 255
    with torch.no_grad():
        output = network(images)
    assert float(output["hv"].std()) < 0.2  # distances start near none
    assert float(output["tp"].std()) > 0.5  # classes start apart, or their features never learn


def test_unknown_architecture():
    with pytest.raises(UsageError, match="fast"):
        architecture("huge")


@pytest.fixture(scope="module")
def hovernet():
    return pytest.importorskip("tiatoolbox.models.architecture.hovernet").HoVerNet


def test_lite_runs_in_tiatoolbox_and_shares_its_weights(hovernet):
    plain = build_network("lite", CLASSES).eval()
    theirs = build_network("lite", CLASSES, tiatoolbox=True).eval()
    assert isinstance(theirs, hovernet)
    theirs.load_state_dict(plain.state_dict(), strict=True)
    batch = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8)
    np_map, hv, tp = hovernet.infer_batch(theirs, batch, device="cpu")
    assert np_map.shape == (1, 164, 164, 1) and hv.shape == (1, 164, 164, 2)
    with torch.no_grad():
        ours = plain(batch.permute(0, 3, 1, 2).float())
    assert np.allclose(hv[0], ours["hv"][0].permute(1, 2, 0).numpy(), atol=1e-4)
    result = theirs.postproc([np_map[0], hv[0], tp[0]])
    assert result[0]["task_type"] == "nuclei_segmentation"


@pytest.mark.parametrize("arch", ["fast", "original"])
def test_tiatoolbox_networks_load_strictly(hovernet, arch):
    network = build_network(arch, CLASSES)
    assert type(network) is hovernet
    hovernet(num_types=4, mode=arch).load_state_dict(network.state_dict(), strict=True)
    assert ARCHITECTURES[arch].margin == {"fast": 46, "original": 95}[arch]


def step(arch, side, dtype=None):
    """One training step of a network, on a small window."""
    from stqp.training.losses import HoVerNetLoss
    from stqp.training.module import HoVerNetModule
    from stqp.training.settings import LossOptions, Settings
    from stqp.training.state import Plan, State, phases

    torch.manual_seed(0)
    network = build_network(arch, CLASSES)
    initialize(network)
    schedule = Settings.of(["x"], arch=arch).resolved().schedule
    plan = Plan(schedule, phases(schedule)[0], 1)
    module = HoVerNetModule(network, HoVerNetLoss(LossOptions()), plan, State())
    margin = 16 if arch == "lite" else ARCHITECTURES[arch].margin
    inner = side - 2 * margin
    g = torch.Generator().manual_seed(1)
    batch = {
        "image": torch.randint(0, 256, (1, 3, side, side), generator=g, dtype=torch.uint8),
        "np": torch.randint(0, 2, (1, inner, inner), generator=g),
        "hv": torch.rand(1, 2, inner, inner, generator=g),
        "tp": torch.randint(0, 4, (1, inner, inner), generator=g),
        "valid": torch.ones(1, inner, inner),
        "typed": torch.ones(1, inner, inner),
    }
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = module.training_step(batch, 0)
    loss.backward()
    assert torch.isfinite(loss)
    return float(loss.detach()), network


@pytest.mark.parametrize(("arch", "side"), [("lite", 128), ("fast", 96), ("original", 270)])
def test_gradients_flow_to_every_parameter(arch, side):
    if arch != "lite":
        pytest.importorskip("tiatoolbox.models.architecture.hovernet")
    _, network = step(arch, side)
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_half_precision_on_a_cpu_does_not_crash_and_learns_the_same():
    half, network = step("lite", 128, torch.bfloat16)
    full, _ = step("lite", 128)
    assert half == pytest.approx(full, rel=0.05)
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in network.parameters())


def test_fast_in_half_precision_on_a_cpu(hovernet):
    network = build_network("fast", CLASSES).eval()
    images = torch.randint(0, 256, (1, 3, 96, 96)).float()
    with torch.no_grad():
        full = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(images)  # TIAToolbox's own layer raises here
    assert all(torch.allclose(half[k].float(), full[k], atol=0.05 * float(full[k].abs().max())) for k in full)


def test_upsampling_gives_the_bits_of_tiatoolbox(hovernet):
    from tiatoolbox.models.architecture.utils import UpSample2x

    theirs = hovernet(num_types=4, mode="fast")
    ours = build_network("fast", CLASSES)
    assert isinstance(ours.upsample2x, UpSample2x) and type(theirs.upsample2x) is UpSample2x  # nothing global changed
    x = torch.randn(2, 3, 7, 5)
    assert torch.equal(ours.upsample2x(x), theirs.upsample2x(x))
    assert [*ours.state_dict()] == [*theirs.state_dict()]
