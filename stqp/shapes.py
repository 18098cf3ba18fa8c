"""Shape of nuclei: area, perimeter, circularity, eccentricity and solidity, of many outlines at once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons

Floats = NDArray[np.float64]

# an outline along pixel edges is longer than the nucleus: each corner is cut (Freeman's chain code), and the
# rest is the mean excess of such a chain over all directions (Kulpa 1977)
_CORNER = 1 - math.sqrt(0.5)
_CHAIN = math.pi * (1 + math.sqrt(2)) / 8


def shape(
    polygons: Polygons, mpp: float, pixel: float = 1.0, through_edges: bool = False
) -> tuple[Floats, Floats, Floats]:
    """Area in µm², perimeter in µm and circularity of outlines along pixel edges.

    Parameters
    ----------
    polygons
        One ring each, only with right angles.
    mpp
        µm per unit of the coordinates.
    pixel
        Side of the pixels in that unit.
    through_edges
        Whether the outlines go through the middles of the pixels' edges instead, so that corners are cut already.

    Returns
    -------
    area, perimeter, circularity : float64 (n,)
        Circularity is ``4 pi area / perimeter²``, at most 1.
    """
    corners = 0 if through_edges else np.bincount(polygons.vertex_owner, minlength=len(polygons))
    perimeter = (polygons.perimeter() - corners * _CORNER * pixel) * _CHAIN * mpp
    area = polygons.area() * mpp**2
    with np.errstate(divide="ignore", invalid="ignore"):
        circularity = np.minimum(4 * np.pi * area / perimeter**2, 1.0)
    return area, perimeter, circularity


def second_moments(polygons: Polygons) -> tuple[Floats, Floats, Floats]:
    """Central second moments of the area inside each polygon, per area: xx, yy, xy, (n,) each; NaN without an area.

    Exact: Green's theorem turns the integrals over the area into sums over the edges (Steger 1996), so that holes and
    several parts need nothing more.
    """
    found = [_second_moments(block) for _, block in polygons.blocks()]
    xx, yy, xy = np.concatenate([np.empty((3, 0)), *found], axis=1)
    return xx, yy, xy


def _second_moments(polygons: Polygons) -> Floats:
    # about the centre: at 100,000 px the products would otherwise lose their digits
    centre = polygons.centroid()
    counts = np.diff(polygons.ring_offsets[polygons.geom_offsets])
    x, y = (polygons.coords[:, axis] - np.repeat(centre[:, axis], counts) for axis in (0, 1))
    after_x, after_y = polygons.after(x), polygons.after(y)
    cross = x * after_y - after_x * y
    area = polygons.sums(cross) / 2
    xx = polygons.sums((x * x + x * after_x + after_x * after_x) * cross) / 12
    yy = polygons.sums((y * y + y * after_y + after_y * after_y) * cross) / 12
    xy = polygons.sums((x * after_y + 2 * x * y + 2 * after_x * after_y + after_x * y) * cross) / 24
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([xx, yy, xy]) / area


def eccentricity(polygons: Polygons) -> Floats:
    """Eccentricity of the ellipse with the second moments of each polygon, (n,): 0 of a circle, below 1."""
    xx, yy, xy = second_moments(polygons)
    with np.errstate(divide="ignore", invalid="ignore"):
        half, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
        return np.asarray(np.sqrt(np.clip(2 * spread / (half + spread), 0, 1)))


def solidity(polygons: Polygons) -> Floats:
    """Area over the area of the convex hull, (n,); NaN where there is none. QuPath's definition."""
    import shapely

    hull = np.full(len(polygons), np.nan)
    for chosen, block in polygons.blocks():
        owner = block.vertex_owner
        long = np.bincount(owner, minlength=len(block)) > 1
        if long.any():  # one line through all vertices has the hull of the polygon, whatever its rings
            kept = long[owner]
            lines = shapely.linestrings(block.coords[kept], indices=(np.cumsum(long) - 1)[owner[kept]])
            hull[chosen][long] = shapely.area(shapely.convex_hull(lines))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(polygons.area() / hull)
