"""The best shift of each field, how sure it is, and what all fields say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.alignment.fields import SEARCH_UM, STEP_UM, Image, Surface

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RIVAL_UM = 4.0  # another nucleus may fit as well at this distance from the best shift, or beyond
MAX_RIVAL = 0.8  # height of the second peak, as a share of the first, up to which the first is believed
MIN_SIGNAL = 6.0  # height of the peak over the surface's own noise
_PATCH = 6  # px to each side of a peak
_PLACES = np.mgrid[-2:3, -2:3].reshape(2, -1)[::-1].astype(np.float64)
_FAINT = 0.01  # optical density; glass has a texture of its own, from compression
_BLUNT_UM = 0.05  # no shift is known better than this


@dataclass(frozen=True)
class Peak:
    """The highest point of a surface.

    Attributes
    ----------
    shift : float64 (2,)
        By which the nuclei would have to move, in µm, x and y.
    value, here : float
        Contrast there, and without a shift, in optical density.
    rival : float
        Height of the second peak as a share of the first; 1 when the peak lies at the border of the search.
    signal : float
        Height of the peak over the spread of the surface.
    error : float
        Standard error of the shift along an axis, µm.
    """

    shift: Floats
    value: float
    here: float
    rival: float
    signal: float
    error: float

    @property
    def trusted(self) -> bool:
        """Whether the peak stands alone and out of the noise."""
        return self.rival <= MAX_RIVAL and self.signal >= MIN_SIGNAL

    @property
    def confidence(self) -> float:
        """From 0 to 1: how far the peak stands above the next."""
        return float(np.clip(1 - self.rival, 0, 1)) if self.trusted else 0.0


def find_peak(contrast: Image) -> Peak:
    """Find the highest point of a surface of contrasts, between its pixels.

    Parameters
    ----------
    contrast : float32 (2 * r + 1, 2 * r + 1)
        See `stqp.alignment.fields.Surface`.
    """
    reach = contrast.shape[0] // 2
    row, column = np.unravel_index(int(contrast.argmax()), contrast.shape)
    y, x = (int(np.clip(i, _PATCH, 2 * reach - _PATCH)) for i in (row, column))
    patch = contrast[y - _PATCH : y + _PATCH + 1, x - _PATCH : x + _PATCH + 1].astype(np.float64)
    curvature = _curvature(patch[_PATCH - 2 : _PATCH + 3, _PATCH - 2 : _PATCH + 3])
    inside = (y, x) == (row, column) and curvature > 0
    shift = (np.array([x, y]) - reach + (_between_pixels(patch) if inside else 0.0)) * STEP_UM
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1] * STEP_UM
    far = np.hypot(columns - shift[0], rows - shift[1]) > RIVAL_UM
    middle = float(np.median(contrast[far]))
    spread = 1.4826 * float(np.median(np.abs(contrast[far] - middle)))
    height = float(contrast[y, x]) - middle
    if height < _FAINT or spread <= 0:
        return Peak(shift, float(contrast[y, x]), float(contrast[reach, reach]), 1.0, 0.0, SEARCH_UM)
    slope = np.diff(contrast, axis=1)[:, 1:][far[:, 1:-1]].std() / STEP_UM
    error = float(slope / curvature) if inside else SEARCH_UM
    return Peak(
        shift=shift,
        value=float(contrast[y, x]),
        here=float(contrast[reach, reach]),
        rival=float((contrast[far].max() - middle) / height) if inside else 1.0,
        signal=height / spread,
        error=float(np.clip(error, _BLUNT_UM, SEARCH_UM)),
    )


def _between_pixels(patch: Floats) -> Floats:
    """Place of the maximum between the pixels of a patch around it, px from its middle, x and y.

    By a spline of the fourth degree: a paraboloid through the nearest pixels is off by up to a tenth of a px.
    """
    from scipy.interpolate import RectBivariateSpline

    nodes = np.arange(-_PATCH, _PATCH + 1)
    spline = RectBivariateSpline(nodes, nodes, patch, kx=4, ky=4)
    x = y = 0.0
    for width in (1.0, 0.1, 0.01):
        tried = np.linspace(-width, width, 21)
        row, column = np.unravel_index(int(spline(y + tried, x + tried).argmax()), (21, 21))
        x, y = x + tried[column], y + tried[row]
    return np.array([x, y])


def _curvature(patch: Floats) -> float:
    """Smaller curvature of the paraboloid through 5x5 values, per µm²; positive at a maximum."""
    x, y = _PLACES
    terms = np.stack([np.ones(25), x, y, x * x, x * y, y * y], axis=1)
    c = np.linalg.lstsq(terms, patch.ravel(), rcond=None)[0]
    hessian = -np.array([[2 * c[3], c[4]], [c[4], 2 * c[5]]])
    return float(np.linalg.eigvalsh(hessian)[0]) / STEP_UM**2


@dataclass(frozen=True)
class Shifts:
    """Best shifts by place, in columns.

    Attributes
    ----------
    centers : float64 (k, 2)
        Full-resolution px.
    shift : float64 (k, 2)
        µm by which the nuclei would have to move.
    error : float64 (k,)
        Standard error, µm.
    confidence : float64 (k,)
        0 where the shift is not believed.
    contrast, best : float64 (k,)
        Optical density without a shift, and with the best one.
    nuclei : int64 (k,)
    together : Peak or None
        Of all fields at once; None without fields.
    """

    centers: Floats
    shift: Floats
    error: Floats
    confidence: Floats
    contrast: Floats
    best: Floats
    nuclei: Ints
    together: Peak | None

    @classmethod
    def of(cls, surfaces: Sequence[Surface]) -> Shifts:
        """Find the peaks of surfaces, and that of their sum, where each nucleus counts the same."""
        peaks = [find_peak(s.contrast) for s in surfaces]
        nuclei = np.array([s.nuclei for s in surfaces], np.int64)
        together = None
        if surfaces:
            total = np.zeros_like(surfaces[0].contrast, dtype=np.float64)
            for s in surfaces:
                total += s.contrast * s.nuclei
            together = find_peak((total / nuclei.sum()).astype(np.float32))
        return cls(
            centers=np.array([s.center for s in surfaces]).reshape(-1, 2),
            shift=np.array([p.shift for p in peaks]).reshape(-1, 2),
            error=np.array([p.error for p in peaks]),
            confidence=np.array([p.confidence for p in peaks]),
            contrast=np.array([p.here for p in peaks]),
            best=np.array([p.value for p in peaks]),
            nuclei=nuclei,
            together=together,
        )

    def __len__(self) -> int:
        """Count the fields."""
        return len(self.nuclei)

    @property
    def trusted(self) -> NDArray[np.bool_]:
        """Whether each shift is believed."""
        return np.asarray(self.confidence > 0)

    @property
    def weights(self) -> Floats:
        """Of the believed shifts, by their errors; 0 for the others, (k,)."""
        return np.where(self.trusted, 1 / (self.error**2 + 0.1**2), 0.0)
