"""Size and shape of nuclei from their outlines, exact: no pixels are counted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.shapes import second_moments, solidity

Floats = NDArray[np.float64]

SHAPE = (
    "area (µm²)",
    "perimeter (µm)",
    "circularity",
    "major axis (µm)",
    "minor axis (µm)",
    "eccentricity",
    "solidity",
)


def orientation(xx: Floats, yy: Floats, xy: Floats) -> Floats:
    """Angle of the major axis against x, radians, y down, (n,)."""
    return np.arctan2(2 * xy, xx - yy) / 2


def shape_features(polygons: Polygons, mpp: float) -> tuple[Floats, Floats]:
    """Measure outlines.

    Parameters
    ----------
    polygons
        In px.
    mpp
        µm per px.

    Returns
    -------
    features : float64 (n, len(SHAPE))
        In the order of `SHAPE`; axes are those of the ellipse with the same second moments. NaN without an area.
    angle : float64 (n,)
        Of the major axis.
    """
    area = polygons.area() * mpp**2
    area[area <= 0] = np.nan
    perimeter = polygons.perimeter() * mpp
    xx, yy, xy = second_moments(polygons)
    middle, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    major, minor = 4 * np.sqrt(middle + half) * mpp, 4 * np.sqrt(np.maximum(middle - half, 0)) * mpp
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [
            area,
            perimeter,
            np.minimum(4 * np.pi * area / perimeter**2, 1.0),
            major,
            minor,
            np.sqrt(np.clip(1 - (minor / major) ** 2, 0, 1)),
            np.clip(solidity(polygons), 0, 1),
        ]
    features = np.stack(columns, axis=1)
    features[~np.isfinite(area)] = np.nan
    return features, orientation(xx, yy, xy)
