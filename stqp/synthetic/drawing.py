"""Draw the made-up tissue as an H&E image: amounts of two stains, then Beer and Lambert's law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.slides import RGBImage
from stqp.synthetic.layout import FOLLICLE, GLAND, GRID_UM, LUMEN, NEST, OUTSIDE, Nuclei, Tissue
from stqp.synthetic.noise import grf

Image = NDArray[np.float32]

# optical density of the stains in red, green, blue: hematoxylin after Ruifrok and Johnston (2001), eosin of
# Macenko et al. (2009), whose pink is nearer to that of scanners
HEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.216, 0.801, 0.558)


@dataclass(frozen=True)
class Chromatin:
    """What hematoxylin shows inside the nuclei of one class, in optical density."""

    body: tuple[float, float]  # mean and spread from nucleus to nucleus
    rim: float  # more of it at the membrane
    pale: float  # less of it in the middle, as a share of the body
    clumps: float  # texture
    eosin: float


CHROMATIN: dict[str, Chromatin] = {
    "Neoplastic": Chromatin((0.58, 0.09), 0.42, 0.30, 0.13, 0.12),
    "Inflammatory": Chromatin((1.25, 0.10), 0.10, 0.02, 0.24, 0.12),
    "Connective": Chromatin((0.85, 0.12), 0.12, 0.05, 0.12, 0.20),
    "Dead": Chromatin((1.70, 0.10), 0.0, 0.0, 0.02, 0.45),
    "Epithelial": Chromatin((0.84, 0.06), 0.18, 0.08, 0.12, 0.15),
}


def draw(
    rng: np.random.Generator,
    tissue: Tissue,
    nuclei: Nuclei,
    size: tuple[int, int],
    mpp: float,
    stain: float = 1.0,
) -> tuple[RGBImage, NDArray[np.int32]]:
    """Draw the image and the map of its nuclei.

    Parameters
    ----------
    rng
        Source of the randomness.
    tissue, nuclei
        What to draw, in µm.
    size
        Width and height of the image in px.
    mpp
        µm per px.
    stain
        How far the stains' colours and strengths stray from the usual; 0 for not at all.

    Returns
    -------
    image : uint8 (height, width, 3)
        RGB.
    instances : int32 (height, width)
        0 for none, i + 1 for nucleus i.
    """
    width, height = size
    hematoxylin, eosin = _background(rng, tissue, (height, width), mpp)
    _cytoplasm(rng, nuclei, hematoxylin, eosin, mpp)
    instances = nuclei.polygons.scale(1 / mpp).rasterize((height, width))
    _nuclei(rng, nuclei, instances, hematoxylin, eosin, mpp)
    return _develop(rng, hematoxylin, eosin, mpp, stain), instances


def _background(rng: np.random.Generator, tissue: Tissue, shape: tuple[int, int], mpp: float) -> tuple[Image, Image]:
    """Stroma, cytoplasm, lumina and glass, without nuclei."""
    import cv2

    height, width = shape

    def enlarge(coarse: NDArray[np.generic]) -> Image:
        grow = GRID_UM / mpp
        matrix = np.array([[grow, 0, 0], [0, grow, 0]])
        field = np.ascontiguousarray(coarse, dtype=np.float32)
        return np.asarray(
            cv2.warpAffine(field, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        )

    ragged = grf(rng, shape, 1.2 / mpp)
    share = {}
    for region in (NEST, FOLLICLE, GLAND, LUMEN, OUTSIDE):
        soft = cv2.GaussianBlur(enlarge(tissue.region == region), (0, 0), 1.2 / mpp)
        share[region] = np.clip(soft + ragged * soft * (1 - soft), 0, 1)
    stroma = np.clip(1 - sum(share.values()), 0, 1)
    fine, medium, coarse = (grf(rng, shape, um / mpp) for um in (0.4, 1.5, 6.0))
    # fibres: a random function of the potential, so that they follow its level lines
    lines = enlarge(tissue.potential) + 0.5 * medium
    knots = np.arange(lines.min() - 1, lines.max() + 1, 0.35)
    values = rng.standard_normal(len(knots))
    values = np.convolve(values, [0.25, 0.5, 0.25], mode="same")
    fibre = np.interp(lines, knots, values / values.std()).astype(np.float32)
    fibre = fibre * (0.75 + 0.35 * coarse)
    wavy = np.clip(0.36 + 0.15 * fibre + 0.08 * coarse + 0.03 * fine, 0, None)
    clefts = np.clip((-fibre - 0.9) * 1.2, 0, 1) * np.clip(0.6 + 0.8 * coarse, 0, 1)
    wavy *= 1 - 0.85 * clefts
    granular = 0.05 * fine + 0.05 * medium
    eosin = stroma * wavy
    eosin += share[NEST] * (0.30 + granular + 0.03 * coarse)
    eosin += share[FOLLICLE] * (0.20 + granular)
    eosin += share[GLAND] * (0.34 + 0.5 * granular)
    hematoxylin = stroma * (0.05 + 0.015 * fibre) + share[NEST] * (0.15 + 0.4 * granular)
    hematoxylin += share[FOLLICLE] * (0.12 + 0.5 * granular) + share[GLAND] * (0.12 + 0.3 * granular)
    return hematoxylin.astype(np.float32), eosin.astype(np.float32)


def _cytoplasm(rng: np.random.Generator, nuclei: Nuclei, hematoxylin: Image, eosin: Image, mpp: float) -> None:
    """Shrunken, hypereosinophilic bodies of dead cells and the cleft around them."""
    dead = np.flatnonzero(nuclei.kind == "Dead")
    nucleus = nuclei.polygons.take(dead)
    theta = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for radius, depth, pink, blue in ((1.95, 0.13, 0.10, 0.03), (1.65, 0.13, 0.80, 0.10)):
        wobble = sum(
            rng.normal(0, depth / k, (len(dead), 1)) * np.cos(k * theta + rng.uniform(0, 6.3, (len(dead), 1)))
            for k in (1, 2, 3)
        )
        reach = nuclei.major[dead, None] * radius * (1 + wobble)
        center = nucleus.centroid()[:, None, :]
        rings = center + reach[..., None] * np.stack([np.cos(theta), np.sin(theta)], axis=-1)
        body = Polygons.from_rings(rings.reshape(-1, 2), np.arange(len(dead) + 1) * len(theta)).scale(1 / mpp)
        where = body.rasterize((eosin.shape[0], eosin.shape[1])) > 0
        eosin[where], hematoxylin[where] = pink + 0.25 * eosin[where], blue


def _nuclei(
    rng: np.random.Generator,
    nuclei: Nuclei,
    instances: NDArray[np.int32],
    hematoxylin: Image,
    eosin: Image,
    mpp: float,
) -> None:
    """Chromatin, membranes and nucleoli."""
    import cv2

    inside = instances > 0
    # distance to the nucleus's own edge, also where two nuclei touch
    alone = inside.copy()
    for axis in (0, 1):
        differs = np.diff(instances, axis=axis) != 0
        index: list[slice] = [slice(None), slice(None)]
        index[axis] = slice(1, None)
        alone[tuple(index)] &= ~differs
    depth = cv2.distanceTransform(alone.astype(np.uint8), cv2.DIST_L2, 3)[inside] * mpp
    who = instances[inside] - 1
    n = len(nuclei.kind)
    body, rim, pale, clumps, pink = np.zeros((5, n), np.float32)
    for name, chromatin in CHROMATIN.items():
        of = nuclei.kind == name
        number = int(of.sum())
        body[of] = np.clip(rng.normal(*chromatin.body, number), 0.3, 2.2)
        rim[of], pale[of], clumps[of] = chromatin.rim, chromatin.pale, chromatin.clumps
        pink[of] = chromatin.eosin
    texture = (0.6 * grf(rng, instances.shape, 0.45 / mpp) + 0.8 * grf(rng, instances.shape, 0.9 / mpp))[inside]
    tone = body[who] * (1 - pale[who] * np.clip(depth / 2.0 - 0.2, 0, 1))
    tone += rim[who] * np.exp(-depth / 0.35) + clumps[who] * texture
    spots = np.zeros(instances.shape, np.float32)
    neoplastic = np.flatnonzero(nuclei.kind == "Neoplastic")
    owner = np.repeat(neoplastic, rng.integers(1, 4, len(neoplastic)))
    away = nuclei.major[owner] * np.sqrt(rng.random(len(owner))) * 0.42
    theta = rng.uniform(0, 2 * np.pi, len(owner))
    at = (nuclei.center[owner] + np.c_[away * np.cos(theta), away * np.sin(theta)]) / mpp
    for (x, y), radius in zip(at, rng.uniform(0.55, 1.0, len(at)) / mpp, strict=True):
        cv2.circle(spots, (round(x * 16), round(y * 16)), round(radius * 16), 0.75, -1, cv2.LINE_8, 4)
    hematoxylin[inside] = np.clip(tone + spots[inside], 0.15, 2.6)
    eosin[inside] = pink[who] + 0.35 * spots[inside]


def _develop(rng: np.random.Generator, hematoxylin: Image, eosin: Image, mpp: float, stain: float) -> RGBImage:
    """Amounts of stain to light on a camera."""
    import cv2

    shape = hematoxylin.shape
    uneven = 1 + 0.05 * stain * grf(rng, shape, 90 / mpp)
    vectors = np.array([HEMATOXYLIN, EOSIN]) * np.exp(0.07 * stain * rng.normal(size=(2, 3)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    strength = np.exp(0.10 * stain * rng.normal(size=2))
    optics = 0.17 / mpp  # blur of the objective, µm
    image = np.empty((*shape, 3), np.uint8)
    light = np.array([243, 241, 244]) + rng.uniform(-3, 3, 3)
    h = np.clip(hematoxylin * uneven * strength[0], 0, None)
    e = np.clip(eosin * uneven * strength[1], 0, None)
    for channel in range(3):
        density = (h * np.float32(vectors[0, channel]) + e * np.float32(vectors[1, channel])) * np.float32(1.05)
        seen = np.float32(light[channel]) * np.exp(-density)
        seen = cv2.GaussianBlur(seen, (0, 0), max(optics, 0.3))
        seen += rng.standard_normal(shape, dtype=np.float32) * np.float32(2.2)
        image[..., channel] = np.clip(seen + 0.5, 0, 255).astype(np.uint8)
    return image
