"""Size and shape of nuclei from their outlines, exact: no pixels are counted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons

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


def second_moments(polygons: Polygons) -> tuple[Floats, Floats, Floats]:
    """Central second moments of each polygon per area: xx, yy, xy, each float64 (n,); NaN without an area.

    Green's theorem turns the integrals over the area into sums over the edges (Steger 1996), so that holes and
    several parts need nothing more.
    """
    result = np.full((len(polygons), 3), np.nan)
    for chosen, block in polygons.blocks():
        starts = block.ring_offsets[block.geom_offsets]
        # about the centre: at 100,000 px the products would otherwise lose their digits
        center = np.nan_to_num(block.centroid())
        x, y = (block.coords - np.repeat(center, np.diff(starts), axis=0)).T
        next_x, next_y = block.after(x), block.after(y)
        cross = x * next_y - next_x * y
        area = block.sums(cross) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            for column, value in enumerate(
                (
                    (x * x + x * next_x + next_x * next_x) / 12,
                    (y * y + y * next_y + next_y * next_y) / 12,
                    (2 * x * y + x * next_y + next_x * y + 2 * next_x * next_y) / 24,
                )
            ):
                result[chosen, column] = block.sums(value * cross) / area
    result[~np.isfinite(result).all(axis=1)] = np.nan
    return result[:, 0], result[:, 1], result[:, 2]


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
    import shapely

    area = polygons.area() * mpp**2
    area[area <= 0] = np.nan
    perimeter = polygons.perimeter() * mpp
    xx, yy, xy = second_moments(polygons)
    middle, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    major, minor = 4 * np.sqrt(middle + half) * mpp, 4 * np.sqrt(np.maximum(middle - half, 0)) * mpp
    hull = np.empty(len(polygons))
    for chosen, block in polygons.blocks():
        # of the vertices, which an outline that crosses itself has, too
        points = shapely.multipoints(block.coords, indices=block.vertex_owner, out=np.full(len(block), None, object))
        hull[chosen] = shapely.area(shapely.convex_hull(points))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [
            area,
            perimeter,
            np.minimum(4 * np.pi * area / perimeter**2, 1.0),
            major,
            minor,
            np.sqrt(np.clip(1 - (minor / major) ** 2, 0, 1)),
            np.clip(area / (hull * mpp**2), 0, 1),
        ]
    features = np.stack(columns, axis=1)
    features[~np.isfinite(area)] = np.nan
    return features, orientation(xx, yy, xy)
