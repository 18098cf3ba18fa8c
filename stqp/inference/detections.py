"""Nuclei found on a slide: outlines, class probabilities and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.inference.postprocess import class_of
from stqp.polygons import Polygons
from stqp.shapes import eccentricity, shape, solidity

HAEMATOXYLIN = "Nucleus: Hematoxylin OD mean"


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
    cells : Polygons or None
        Outline of the cell around each nucleus, in full-resolution pixels, where they were made.
    haematoxylin : float64 (n,) or None
        Mean optical density of haematoxylin over each nucleus, where it was measured.
    """

    polygons: Polygons
    class_prob: NDArray[np.float64]
    classes: Sequence[str]
    mpp: float
    pixel: float = 1.0
    counts: dict[str, int] = field(default_factory=dict)
    cells: Polygons | None = None
    haematoxylin: NDArray[np.float64] | None = None

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
        return replace(
            self,
            polygons=self.polygons.take(chosen),
            class_prob=self.class_prob[chosen],
            cells=None if self.cells is None else self.cells.take(chosen),
            haematoxylin=None if self.haematoxylin is None else self.haematoxylin[chosen],
        )

    def within(self, boxes: ArrayLike) -> Detections:
        """Nuclei whose centres lie in one of the boxes ``(x0, y0, x1, y1)``, in full-resolution px."""
        return self.take(in_boxes(self.polygons.centroid(), boxes))

    @cached_property
    def measurements(self) -> dict[str, NDArray[np.float64]]:
        """Measurements by QuPath name, (n,) each: the probability of each class, shape, stain, and those of cells.

        The perimeter is that of the nucleus as estimated from its pixels, about 20 % below the length of
        the outline along their edges, which QuPath would measure as ``Nucleus: Length µm``; with that length a
        disc would have a circularity of 0.6.
        """
        result = {f"Probability: {name}": self.class_prob[:, i] for i, name in enumerate(self.classes, start=1)}
        result |= self._shape("Nucleus", self.polygons, through_edges=False)
        if self.haematoxylin is not None:
            result[HAEMATOXYLIN] = self.haematoxylin
        if self.cells is not None:
            result |= self._shape("Cell", self.cells, through_edges=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = self.polygons.area() / self.cells.area()
            result["Nucleus/Cell area ratio"] = np.minimum(ratio, 1.0)
        return result

    def _shape(self, of: str, polygons: Polygons, through_edges: bool) -> dict[str, NDArray[np.float64]]:
        area, perimeter, circularity = shape(polygons, self.mpp, self.pixel, through_edges)
        return {
            f"{of}: Area µm^2": area,
            f"{of}: Perimeter µm": perimeter,
            f"{of}: Circularity": circularity,
            f"{of}: Eccentricity": eccentricity(polygons),
            f"{of}: Solidity": solidity(polygons),
        }

    def instance_map(self, width: int, height: int) -> NDArray[np.int32]:
        """Draw the nuclei as ids 1..n in full-resolution px, (height, width)."""
        return np.asarray(self.polygons.rasterize((height, width)), np.int32)


def in_boxes(xy: NDArray[np.float64], boxes: ArrayLike) -> NDArray[np.bool_]:
    """Whether each point lies in one of the half-open boxes ``(x0, y0, x1, y1)``."""
    inside = np.zeros(len(xy), bool)
    for x0, y0, x1, y1 in np.asarray(boxes, dtype=np.float64).reshape(-1, 4):
        inside |= (xy[:, 0] >= x0) & (xy[:, 0] < x1) & (xy[:, 1] >= y0) & (xy[:, 1] < y1)
    return inside
