"""Simple features of every nucleus of a slide, in µm and in units of the slide's own stain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.separability.neighbours import FAR_UM, NEAR_UM, NEIGHBOURHOOD, neighbour_features, seen_share
from stqp.separability.pixels import PIXEL_UM, PIXELS, pixel_features
from stqp.separability.shape import SHAPE, shape_features
from stqp.slides import Slide

Floats = NDArray[np.float64]

NAMES = (*SHAPE, *PIXELS, *NEIGHBOURHOOD)
_EDGE_PX = 0.5


@dataclass(frozen=True)
class Features:
    """Numbers of ``n`` nuclei.

    Attributes
    ----------
    values : float64 (n, len(names))
        NaN where not known.
    names : tuple of str
    counts : dict
        What could not be measured, by reason.
    """

    values: Floats
    names: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)

    def beside(self, other: Features) -> Features:
        """Both, column by column."""
        counts = {k: self.counts.get(k, 0) + other.counts.get(k, 0) for k in {**self.counts, **other.counts}}
        return Features(np.hstack([self.values, other.values]), (*self.names, *other.names), counts)


def reading_mpp(*mpp: float) -> float:
    """µm per px at which slides are read, so that all of them are seen alike: as the coarsest has it, at least."""
    return max(PIXEL_UM, *mpp)


def measure(
    slide: Slide,
    polygons: Polygons,
    mpp: float,
    coverage: Polygons | None = None,
    work_mpp: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Measure all nuclei of a slide.

    Parameters
    ----------
    slide
        The H&E.
    polygons
        All its nuclei, in full-resolution px; neighbours are looked for among them.
    mpp
        Its µm per px.
    coverage
        Where nuclei were looked for, in the same px; everywhere when None.
    work_mpp
        µm per px at which the slide is read; `reading_mpp` when None.
    progress
        Called with tiles done and their number.

    Returns
    -------
    Features
        With the names `NAMES`. Size and shape of a nucleus that the slide's edge cuts are NaN.

    Raises
    ------
    InputError
        When the slide cannot be read to its end.
    """
    if not mpp > 0:
        raise UsageError(f"expected µm per pixel above 0, found {mpp}")
    shape, angle = shape_features(polygons, mpp)
    bounds = polygons.bounds()
    with np.errstate(invalid="ignore"):
        cut = (bounds[:, :2] < _EDGE_PX).any(axis=1)
        cut |= (bounds[:, 2:] > np.array([slide.width, slide.height]) - _EDGE_PX).any(axis=1)
    shape[cut] = np.nan
    angle = np.where(cut, np.nan, angle)
    pixels = pixel_features(slide, polygons, mpp, work_mpp or reading_mpp(mpp), progress=progress)
    places = polygons.centroid() * mpp
    size = slide.width * mpp, slide.height * mpp
    covered = None if coverage is None else coverage.scale(mpp)
    seen = seen_share(places, (NEAR_UM, FAR_UM), size, covered)
    around = neighbour_features(places, shape[:, 0], shape[:, SHAPE.index("eccentricity")], angle, seen)
    values = np.hstack([shape, pixels, around])
    counts = {
        "nuclei that the slide's edge cuts (their size and shape are not known)": int(cut.sum()),
        "nuclei with too few pixels for their stain": int(np.isnan(pixels[:, 0]).sum()),
        "features that are not known (imputed)": int(np.isnan(values).sum()),
    }
    return Features(values, NAMES, counts)
