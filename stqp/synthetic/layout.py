"""Where things are in the made-up tissue: its regions, its fibres, and the outline of every nucleus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.synthetic.noise import grf

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# regions of the tissue
STROMA, NEST, FOLLICLE, GLAND, LUMEN, OUTSIDE = range(6)
VERTICES = 24  # and the first once more: what XOA 2.x writes
GRID_UM = 2.0  # step of the coarse maps


@dataclass(frozen=True)
class Look:
    """How the nuclei of one visual class are shaped, in µm."""

    major: tuple[float, float]  # half axis: mean, spread of its logarithm
    ratio: tuple[float, float]  # major to minor: from, to
    wobble: float  # relative depth of the outline's irregularity
    gap: float  # free space to the next nucleus, relative to the size; below 1 they may touch


LOOKS: dict[str, Look] = {
    "Neoplastic": Look((5.2, 0.20), (1.05, 1.45), 0.07, 0.97),
    "Inflammatory": Look((2.9, 0.08), (1.0, 1.15), 0.03, 1.06),
    "Connective": Look((6.8, 0.18), (3.4, 5.2), 0.03, 1.05),
    "Dead": Look((2.3, 0.12), (1.0, 1.3), 0.03, 1.8),
    "Epithelial": Look((3.9, 0.08), (1.3, 1.6), 0.025, 1.04),
}


@dataclass(frozen=True)
class Tissue:
    """Coarse maps of the tissue, one value each `GRID_UM`.

    Attributes
    ----------
    region : uint8 (h, w)
        One of `STROMA` ... `OUTSIDE`.
    potential : float64 (h, w)
        µm; its level lines are the fibres of the stroma.
    glands : float64 (g, 3)
        Centre x, y and radius of the lumen, µm.
    """

    width_um: float
    height_um: float
    region: NDArray[np.uint8]
    potential: Floats
    glands: Floats

    def at(self, array: NDArray[Any], xy: Floats) -> NDArray[Any]:
        """Values of a coarse map at points in µm."""
        i = np.clip((xy[:, 1] / GRID_UM).astype(int), 0, array.shape[0] - 1)
        j = np.clip((xy[:, 0] / GRID_UM).astype(int), 0, array.shape[1] - 1)
        return array[i, j]


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of the tissue, by columns; polygons in µm."""

    polygons: Polygons
    kind: NDArray[np.str_]
    center: Floats
    major: Floats
    angle: Floats


def make_tissue(rng: np.random.Generator, width_um: float, height_um: float) -> Tissue:
    """Lay out nests, follicles, glands, stroma and the glass beside the tissue."""
    h, w = int(np.ceil(height_um / GRID_UM)) + 1, int(np.ceil(width_um / GRID_UM)) + 1
    y, x = np.mgrid[:h, :w] * GRID_UM
    region = np.full((h, w), STROMA, np.uint8)
    tumour = grf(rng, (h, w), 38 / GRID_UM) + 0.35 * grf(rng, (h, w), 12 / GRID_UM)
    immune = grf(rng, (h, w), 24 / GRID_UM)
    region[immune > np.quantile(immune, 0.88)] = FOLLICLE
    region[tumour > np.quantile(tumour, 0.66)] = NEST
    glands: list[tuple[float, float, float]] = []
    wanted = max(2, round(width_um * height_um / 22000))
    for _ in range(60 * wanted):
        radius = rng.uniform(9, 19)
        reach = radius + 18
        if min(width_um, height_um) <= 2 * reach:
            break
        cx, cy = rng.uniform(reach, width_um - reach), rng.uniform(reach, height_um - reach)
        near = np.hypot(x - cx, y - cy) < reach
        if (region[near] == NEST).mean() > 0.03 or any(
            np.hypot(cx - gx, cy - gy) < reach + r + 16 for gx, gy, r in glands
        ):
            continue
        glands.append((cx, cy, radius))
        if len(glands) == wanted:
            break
    edge = grf(rng, (h, w), 20 / GRID_UM)
    corner = x / width_um + y / height_um  # glass in the lower right corner
    region[corner + 0.06 * edge > 1.74] = OUTSIDE
    for cx, cy, radius in glands:
        away = gland_radius(cx, cy, x, y)
        region[away < radius + 15] = GLAND
        region[away < radius] = LUMEN
    direction = rng.uniform(0, np.pi)
    potential = x * np.cos(direction) + y * np.sin(direction) + 30 * grf(rng, (h, w), 45 / GRID_UM)
    return Tissue(width_um, height_um, region, potential, np.array(glands).reshape(-1, 3))


def gland_radius(cx: float, cy: float, x: Floats, y: Floats) -> Floats:
    """Distance from a gland's centre, bent so that its lumen is a little irregular."""
    theta = np.arctan2(y - cy, x - cx)
    phase = cx + 2 * cy
    return np.hypot(x - cx, y - cy) / (1 + 0.12 * np.cos(2 * theta + phase) + 0.05 * np.cos(3 * theta - phase))


def make_nuclei(rng: np.random.Generator, tissue: Tissue, margin_um: float = 0.5) -> Nuclei:
    """Fill the tissue with nuclei; each is whole within the image."""
    slope_y, slope_x = np.gradient(tissue.potential)
    fibres = np.arctan2(slope_x, -np.asarray(slope_y))
    spots, kinds, angles, ranks = [], [], [], []

    def add(xy: Floats, kind: str, angle: Floats, rank: float) -> None:
        spots.append(xy)
        kinds.append(np.full(len(xy), kind, dtype="<U16"))
        angles.append(angle)
        ranks.append(rank + rng.random(len(xy)))

    def scatter(per_um2: float) -> Floats:
        number = round(tissue.width_um * tissue.height_um * per_um2)
        return rng.random((number, 2)) * [tissue.width_um, tissue.height_um]

    for cx, cy, radius in tissue.glands:
        number = int(2 * np.pi * (radius + 9) / 6.6)
        theta = (np.arange(number) + rng.uniform(-0.12, 0.12, number)) * 2 * np.pi / number
        x, y = np.cos(theta), np.sin(theta)
        # gland_radius is proportional to the distance, so its value at distance 1 undoes the bend
        ring = (radius + 9.5 + rng.uniform(-0.8, 0.8, number)) / gland_radius(cx, cy, cx + x, cy + y)
        add(np.c_[cx + ring * x, cy + ring * y], "Epithelial", theta + rng.normal(0, 0.12, number), 0)
    dead = scatter(1 / 4200)
    dead = dead[np.isin(tissue.at(tissue.region, dead), (NEST, STROMA))]
    add(dead, "Dead", rng.uniform(0, np.pi, len(dead)), 1)
    for region, kind, density in (
        (NEST, "Neoplastic", 1 / 22),
        (FOLLICLE, "Inflammatory", 1 / 14),
        (STROMA, "Connective", 1 / 75),
        (STROMA, "Inflammatory", 1 / 700),
        (NEST, "Inflammatory", 1 / 1500),
    ):
        xy = scatter(density)
        xy = xy[tissue.at(tissue.region, xy) == region]
        angle = rng.uniform(0, np.pi, len(xy))
        if kind == "Connective":  # along the fibres
            along = tissue.at(fibres, xy)
            angle = along + rng.normal(0, 0.15, len(xy))
        scattered = kind == "Inflammatory" and region != FOLLICLE
        add(xy, kind, angle, 2 if scattered else 3)
    center, kind_of = np.concatenate(spots), np.concatenate(kinds)
    angle, rank = np.concatenate(angles), np.concatenate(ranks)
    polygons, major = _outlines(rng, center, kind_of, angle)
    bounds = polygons.bounds()
    inside = (bounds[:, :2] > margin_um).all(axis=1)
    inside &= (bounds[:, 2:] < [tissue.width_um - margin_um, tissue.height_um - margin_um]).all(axis=1)
    region_at = tissue.at(tissue.region, center)
    inside &= region_at != OUTSIDE
    inside &= (region_at != LUMEN) | (kind_of == "Epithelial")
    chosen = np.flatnonzero(inside)
    chosen = chosen[_without_overlap(polygons.take(chosen), kind_of[chosen], center[chosen], rank[chosen])]
    chosen = chosen[np.lexsort((center[chosen, 0], (center[chosen, 1] // 40).astype(int)))]
    return Nuclei(polygons.take(chosen), kind_of[chosen], center[chosen], major[chosen], angle[chosen])


def _outlines(
    rng: np.random.Generator, center: Floats, kind: NDArray[np.str_], angle: Floats
) -> tuple[Polygons, Floats]:
    """Outline of each nucleus: an ellipse, made irregular, and bent where it is long."""
    n = len(center)
    major, ratio, wobble = np.empty(n), np.empty(n), np.empty(n)
    for name, look in LOOKS.items():
        of = kind == name
        number = int(of.sum())
        major[of] = look.major[0] * np.exp(rng.normal(0, look.major[1], number))
        ratio[of] = rng.uniform(*look.ratio, number)
        wobble[of] = look.wobble
    theta = np.arange(VERTICES) * 2 * np.pi / VERTICES
    radius = np.ones((n, VERTICES))
    for order in (2, 3, 4, 5):
        depth = wobble * rng.normal(0, 1, n) / (order - 1)
        radius += depth[:, None] * np.cos(order * theta + rng.uniform(0, 2 * np.pi, n)[:, None])
    radius = np.clip(radius, 0.6, 1.4)
    u = major[:, None] * radius * np.cos(theta)
    v = (major / ratio)[:, None] * radius * np.sin(theta)
    bend = np.where(ratio > 2, rng.normal(0, 0.018, n), 0)
    v = v + bend[:, None] * (u**2 - (major**2 / 3)[:, None])
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, y = center[:, :1] + u * cos - v * sin, center[:, 1:] + u * sin + v * cos
    xy = np.stack([x, y], axis=-1).reshape(-1, 2)
    return Polygons.from_rings(xy, np.arange(n + 1) * VERTICES), major


def _without_overlap(polygons: Polygons, kind: NDArray[np.str_], center: Floats, rank: Floats) -> Ints:
    """Positions of nuclei that keep their distance; of two that do not, the one of lower rank stays."""
    import shapely

    gap = np.select([kind == name for name in LOOKS], [look.gap for look in LOOKS.values()], 1.0)
    owner = polygons.vertex_owner
    grown = Polygons(
        center[owner] + (polygons.coords - center[owner]) * gap[owner, None],
        polygons.ring_offsets,
        polygons.geom_offsets,
    ).to_shapely()
    a, b = shapely.STRtree(grown).query(grown, predicate="intersects")
    a, b = a[a != b], b[a != b]
    alive, kept = np.ones(len(grown), bool), np.zeros(len(grown), bool)
    while alive.any():
        live = alive[a] & alive[b]
        a, b = a[live], b[live]
        best = np.full(len(grown), np.inf)
        np.minimum.at(best, a, rank[b])
        wins = alive & (rank < best)
        kept |= wins
        alive &= ~wins
        alive[b[wins[a]]] = False
    return np.flatnonzero(kept)
