"""Haematoxylin and eosin by optical density (Ruifrok and Johnston 2001; vectors after Macenko et al. 2009)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.slides import RGBImage

Floats = NDArray[np.float64]

# unit vectors of optical density (R, G, B) that QuPath starts from for H&E
HAEMATOXYLIN = np.array([0.651, 0.701, 0.290])
EOSIN = np.array([0.216, 0.801, 0.558])
_STAINED = 0.15  # optical density, summed over the channels, below which a pixel is glass
_EXTREME = 1.0  # per cent of the pixels beyond each of the two stains
_FARTHEST = 25.0  # degrees from the usual vectors; beyond, the estimate is of something else
_APART = 12.0  # degrees between the two estimates; below, the image has one stain only
_FEWEST = 1000


@dataclass(frozen=True)
class Stains:
    """Unit vectors of optical density of haematoxylin and eosin.

    Attributes
    ----------
    haematoxylin, eosin : float64 (3,)
        R, G, B.
    estimated : bool
        Whether they come from the slide; otherwise they are the usual ones.
    """

    haematoxylin: Floats
    eosin: Floats
    estimated: bool

    @classmethod
    def usual(cls) -> Stains:
        """The vectors that QuPath starts from."""
        return cls(_unit(HAEMATOXYLIN), _unit(EOSIN), False)

    @classmethod
    def estimate(cls, pixels: RGBImage) -> Stains:
        """Estimate the vectors from pixels of a slide.

        The two stains are the extremes of the pixels' angles in the plane that holds most of their optical
        density. An estimate far from the usual vectors is not believed: pen, blood and a slide of one stain
        would otherwise pass for haematoxylin.

        Parameters
        ----------
        pixels : uint8 (..., 3)
            RGB.
        """
        density = -np.log10((np.asarray(pixels).reshape(-1, 3).astype(np.float64) + 1) / 256)
        density = density[density.sum(axis=1) > _STAINED]
        if len(density) < _FEWEST:
            return cls.usual()
        _, axes = np.linalg.eigh(np.cov(density.T))
        plane = axes[:, [2, 1]]
        plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
        x, y = (density @ plane).T
        angles = np.percentile(np.arctan2(y, x), [_EXTREME, 100 - _EXTREME])
        found = [_unit(plane @ np.array([np.cos(a), np.sin(a)])) for a in angles]
        # haematoxylin takes away more of the red than eosin does
        found.sort(key=lambda v: -v[0])
        usual = cls.usual()
        near = _degrees(found[0], usual.haematoxylin) < _FARTHEST and _degrees(found[1], usual.eosin) < _FARTHEST
        if not near or _degrees(found[0], found[1]) < _APART or min(found[0].min(), found[1].min()) < -0.1:
            return usual
        return cls(found[0], found[1], True)

    def amount(self, image: RGBImage) -> NDArray[np.float32]:
        """Haematoxylin of each pixel, in optical density, (height, width); 0 on glass.

        Parameters
        ----------
        image : uint8 (height, width, 3)
        """
        return self._separated(image, 0)

    def eosin_amount(self, image: RGBImage) -> NDArray[np.float32]:
        """Eosin of each pixel, as `amount` gives the haematoxylin."""
        return self._separated(image, 1)

    def _separated(self, image: RGBImage, stain: int) -> NDArray[np.float32]:
        rest = _unit(np.cross(self.haematoxylin, self.eosin))
        weights = np.linalg.inv(np.array([self.haematoxylin, self.eosin, rest]))[:, stain]
        density = -np.log10((np.arange(256) + 1) / 256)
        tables = (density[:, None] * weights).astype(np.float32)
        result = tables[image[..., 0], 0]
        result += tables[image[..., 1], 1]
        result += tables[image[..., 2], 2]
        return np.maximum(result, 0, out=result)


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float64)


def _degrees(a: Floats, b: Floats) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))
