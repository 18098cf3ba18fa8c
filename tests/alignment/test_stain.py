import numpy as np
import pytest

from stqp.alignment.stain import Stains


def painted(stains, haematoxylin, eosin):
    density = haematoxylin[..., None] * stains.haematoxylin + eosin[..., None] * stains.eosin
    return np.clip(np.round(256 * 10**-density - 1), 0, 255).astype(np.uint8)


def tilted(degrees):
    usual = Stains.usual()
    angle = np.deg2rad(degrees)
    axis = np.cross(usual.haematoxylin, usual.eosin)
    axis /= np.linalg.norm(axis)
    turn = [np.cos(angle) * v + np.sin(angle) * np.cross(axis, v) for v in (usual.haematoxylin, usual.eosin)]
    return Stains(turn[0], turn[1], True)


@pytest.fixture
def amounts():
    rng = np.random.default_rng(0)
    nucleus = rng.random((80, 80)) < 0.3
    haematoxylin = np.where(nucleus, rng.uniform(0.4, 0.9, nucleus.shape), rng.uniform(0, 0.02, nucleus.shape))
    eosin = np.where(nucleus, rng.uniform(0, 0.05, nucleus.shape), rng.uniform(0.2, 0.5, nucleus.shape))
    return haematoxylin, eosin


@pytest.mark.parametrize("degrees", [0, 6, -6])
def test_stains_of_a_slide_are_found_and_told_apart(amounts, degrees):
    truth = tilted(degrees)
    image = painted(truth, *amounts)
    found = Stains.estimate(image)
    assert found.estimated
    for a, b in ((found.haematoxylin, truth.haematoxylin), (found.eosin, truth.eosin)):
        assert np.degrees(np.arccos(a @ b)) < 3
    amount = found.amount(image)
    assert amount.dtype == np.float32 and amount.shape == image.shape[:2]
    assert np.abs(amount - amounts[0]).max() < 0.08


def test_amount_is_that_of_linear_algebra(amounts):
    stains = Stains.usual()
    image = painted(stains, *amounts)
    density = -np.log10((image.astype(float) + 1) / 256)
    basis = np.array([stains.haematoxylin, stains.eosin, np.cross(stains.haematoxylin, stains.eosin)])
    slow = density.reshape(-1, 3) @ np.linalg.inv(basis)
    np.testing.assert_allclose(stains.amount(image).ravel(), np.maximum(slow[:, 0], 0), atol=1e-4)
    assert stains.amount(np.full((2, 3, 3), 255, np.uint8)).max() == 0


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((100, 100, 3), 255, np.uint8),
        np.zeros((0, 3), np.uint8),
        np.full((100, 100, 3), (200, 40, 40), np.uint8),  # blood alone
        np.random.default_rng(1).integers(0, 255, (100, 100, 3)).astype(np.uint8),
    ],
)
def test_what_is_no_haematoxylin_and_eosin_does_not_pass_for_it(pixels):
    assert not Stains.estimate(pixels).estimated
