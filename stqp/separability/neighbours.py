"""What stands around each nucleus: how many, how near, how large, and whether they lie along each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons

Floats = NDArray[np.float64]

NEAR_UM, FAR_UM = 20.0, 50.0
_GRID_UM = 2.0
_LEAST_SEEN = 0.5  # share of a disc that lies on what was looked at, below which its density is not known
_CHUNK = 4096

NEIGHBOURHOOD = (
    "distance to the nearest nucleus (µm)",
    f"nuclei within {NEAR_UM:g} µm (1/1000 µm²)",
    f"nuclei within {FAR_UM:g} µm (1/1000 µm²)",
    f"mean area within {NEAR_UM:g} µm (µm²)",
    f"mean area within {FAR_UM:g} µm (µm²)",
    f"mean eccentricity within {NEAR_UM:g} µm",
    f"common direction within {NEAR_UM:g} µm",
    f"common direction within {FAR_UM:g} µm",
    f"along its neighbours within {NEAR_UM:g} µm",
)


def seen_share(
    places: Floats, radii: tuple[float, ...], size: tuple[float, float], coverage: Polygons | None
) -> Floats:
    """Share of a disc around each place that lies on the slide and in what was covered, float64 (n, radii).

    Parameters
    ----------
    places : float64 (n, 2)
        µm.
    radii
        µm.
    size
        Width and height of the slide in µm.
    coverage
        Where nuclei were looked for, in µm; everywhere when None.
    """
    import cv2

    width, height = (int(np.ceil(side / _GRID_UM)) for side in size)
    mask = np.ones((height, width), np.float32)
    if coverage is not None:
        mask = coverage.scale(1 / _GRID_UM).rasterize((height, width), np.ones(len(coverage), np.float32), mask * 0)
    result = np.empty((len(places), len(radii)))
    at = np.nan_to_num(places)
    column = np.clip((at[:, 0] / _GRID_UM).astype(np.int64), 0, width - 1)
    row = np.clip((at[:, 1] / _GRID_UM).astype(np.int64), 0, height - 1)
    for index, radius in enumerate(radii):
        reach = int(radius / _GRID_UM)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        disc = (np.hypot(x, y) * _GRID_UM <= radius).astype(np.float32)
        share = cv2.filter2D(mask, cv2.CV_32F, disc / disc.sum(), borderType=cv2.BORDER_CONSTANT)
        result[:, index] = share[row, column]
    return np.clip(result, 0, 1)


def neighbour_features(places: Floats, area: Floats, eccentricity: Floats, angle: Floats, seen: Floats) -> Floats:
    """Measure the surroundings of each nucleus among all nuclei.

    Parameters
    ----------
    places : float64 (n, 2)
        Centres in µm; a nucleus without one is nobody's neighbour.
    area, eccentricity, angle : float64 (n,)
        Of each nucleus, µm² and radians; NaN where not known.
    seen : float64 (n, 2)
        Of `seen_share` for `NEAR_UM` and `FAR_UM`.

    Returns
    -------
    float64 (n, len(NEIGHBOURHOOD))
        Densities are per area that was seen; NaN where less than half of the disc was, where there is no place,
        and for means without a neighbour. Directions are weighted by eccentricity, from 0 (none in common) to 1.
    """
    from scipy.spatial import cKDTree

    n = len(places)
    result = np.full((n, len(NEIGHBOURHOOD)), np.nan)
    known = np.flatnonzero(np.isfinite(places).all(axis=1))
    if len(known) < 2:
        return result
    tree = cKDTree(places[known])
    nearest, _ = tree.query(places[known], k=2)
    result[known, 0] = nearest[:, 1]
    size, long = np.nan_to_num(area[known]), np.nan_to_num(eccentricity[known])
    has = np.isfinite(area[known]).astype(np.float64)
    wave = np.exp(2j * np.nan_to_num(angle[known])) * long
    radii = (NEAR_UM, FAR_UM)
    for start in range(0, len(known), _CHUNK):
        part = np.arange(start, min(start + _CHUNK, len(known)))
        pairs = cKDTree(places[known[part]]).sparse_distance_matrix(tree, FAR_UM, output_type="ndarray")
        mine, other, away = pairs["i"], pairs["j"], pairs["v"]
        apart = part[mine] != other
        mine, other, away = mine[apart], other[apart], away[apart]
        for index, radius in enumerate(radii):
            if radius < FAR_UM:
                within = away <= radius
                a, b = mine[within], other[within]
            else:
                a, b = mine, other

            def total(values: Floats, a: NDArray = a, b: NDArray = b, number: int = len(part)) -> Floats:
                return np.bincount(a, values[b], number).astype(np.float64)

            count = np.bincount(a, minlength=len(part))
            with np.errstate(divide="ignore", invalid="ignore"):
                share = seen[known[part], index]
                density = 1000 * count / (np.pi * radius**2 * share)
                density[share < _LEAST_SEEN] = np.nan
                measured, weight = total(has), total(long)
                mean_wave = (total(wave.real) + 1j * total(wave.imag)) / weight
                mean_area = total(size) / measured
                rows = known[part]
                result[rows, 1 + index] = density
                result[rows, 3 + index] = mean_area
                result[rows, 6 + index] = np.abs(mean_wave)
                if index == 0:
                    result[rows, 5] = total(long) / measured
                    result[rows, 8] = (mean_wave * np.conj(np.exp(2j * angle[rows]))).real
    result[~np.isfinite(result)] = np.nan
    return result
