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
