"""Nuclei found on a slide: outlines, class probabilities and shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.inference.postprocess import class_of
from stqp.polygons import Polygons

# an outline along pixel edges is longer than the nucleus: each corner is cut (Freeman's chain code), and the
# rest is the mean excess of such a chain over all directions (Kulpa 1977)
_CORNER = 1 - math.sqrt(0.5)
_CHAIN = math.pi * (1 + math.sqrt(2)) / 8


@dataclass(frozen=True)
class Detections:
    """``n`` nuclei of one slide.

    Attributes
    ----------
    polygons : Polygons
        In full-resolution pixels, along the edges of the network's pixels.
    class_prob : float64 (n, C)
        Mean probability of background (0) and each class over the nucleus.
    classes : list of str
        Names of the classes 1, 2, ...
    mpp : float
        µm per full-resolution pixel.
    pixel : float
        Side of the network's pixels in full-resolution pixels.
    counts : dict
        What was done: windows, tiles, cut clumps.
    """

    polygons: Polygons
    class_prob: NDArray[np.float64]
    classes: Sequence[str]
    mpp: float
    pixel: float = 1.0
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the nuclei."""
        return len(self.polygons)

    @property
    def class_ids(self) -> NDArray[np.int64]:
        """Id of the likeliest class of each, (n,); 0 when there is none."""
        return class_of(self.class_prob)

    @property
    def class_names(self) -> NDArray[np.object_]:
        """Name of the likeliest class of each, (n,); None when there is none."""
        return np.array([None, *self.classes], dtype=object)[self.class_ids]

    @property
    def probability(self) -> NDArray[np.float64]:
        """Probability of the likeliest class, (n,); NaN when there is none."""
        ids = self.class_ids
        picked = self.class_prob[np.arange(len(ids)), ids]
        return np.where(ids > 0, picked, np.nan)

    def take(self, index: ArrayLike) -> Detections:
        """Nuclei at the given positions or of a mask."""
        chosen = np.asarray(index)
        return Detections(
            self.polygons.take(chosen), self.class_prob[chosen], self.classes, self.mpp, self.pixel, self.counts
        )

    def within(self, boxes: ArrayLike) -> Detections:
        """Nuclei whose centres lie in one of the boxes ``(x0, y0, x1, y1)``, in full-resolution px."""
        return self.take(in_boxes(self.polygons.centroid(), boxes))

    def measurements(self) -> dict[str, NDArray[np.float64]]:
        """Measurements by QuPath name: the probability of each class, and the shape.

        The perimeter is that of the nucleus as estimated from its pixels, about 20 % below the length of
        the outline along their edges; with that length a disc would have a circularity of 0.6.
        """
        area, perimeter, circularity = shape(self.polygons, self.mpp, self.pixel)
        return {
            **{f"Probability: {name}": self.class_prob[:, i] for i, name in enumerate(self.classes, start=1)},
            "Nucleus: Area µm^2": area,
            "Nucleus: Perimeter µm": perimeter,
            "Nucleus: Circularity": circularity,
        }

    def instance_map(self, width: int, height: int) -> NDArray[np.int32]:
        """Draw the nuclei as ids 1..n in full-resolution px, (height, width)."""
        return np.asarray(self.polygons.rasterize((height, width)), np.int32)


def shape(
    polygons: Polygons, mpp: float, pixel: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Area in µm², perimeter in µm and circularity of outlines along pixel edges.

    Parameters
    ----------
    polygons
        One ring each, only with right angles.
    mpp
        µm per unit of the coordinates.
    pixel
        Side of the pixels in that unit.

    Returns
    -------
    area, perimeter, circularity : float64 (n,)
        Circularity is ``4 pi area / perimeter²``, at most 1.
    """
    corners = np.bincount(polygons.vertex_owner, minlength=len(polygons))
    perimeter = (polygons.perimeter() - corners * _CORNER * pixel) * _CHAIN * mpp
    area = polygons.area() * mpp**2
    with np.errstate(divide="ignore", invalid="ignore"):
        circularity = np.minimum(4 * np.pi * area / perimeter**2, 1.0)
    return area, perimeter, circularity


def in_boxes(xy: NDArray[np.float64], boxes: ArrayLike) -> NDArray[np.bool_]:
    """Whether each point lies in one of the half-open boxes ``(x0, y0, x1, y1)``."""
    inside = np.zeros(len(xy), bool)
    for x0, y0, x1, y1 in np.asarray(boxes, dtype=np.float64).reshape(-1, 4):
        inside |= (xy[:, 0] >= x0) & (xy[:, 0] < x1) & (xy[:, 1] >= y0) & (xy[:, 1] < y1)
    return inside
