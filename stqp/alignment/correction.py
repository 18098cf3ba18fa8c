"""A correction of where nuclei lie on the slide: an affine map, and a smooth displacement on top of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Field:
    """Displacements on a regular grid, linear in between and held at the border.

    Attributes
    ----------
    origin : float64 (2,)
        Place of the first node, full-resolution px, x and y.
    step : float
        Between the nodes, px.
    displacement : float64 (rows, columns, 2)
        px, x and y.
    """

    origin: Floats
    step: float
    displacement: Floats

    def nodes(self) -> Floats:
        """Places of all nodes, (rows, columns, 2), px."""
        rows, columns = self.displacement.shape[:2]
        x, y = np.meshgrid(np.arange(columns), np.arange(rows))
        return self.origin + np.stack([x, y], axis=-1) * self.step

    def at(self, points: Floats) -> Floats:
        """Displacement at points, (n, 2), px; NaN where a point is."""
        rows, columns = self.displacement.shape[:2]
        place = (points - self.origin) / self.step
        place = np.clip(place, 0, [columns - 1, rows - 1])
        known = np.isfinite(place).all(axis=1)
        low = np.zeros(place.shape, np.int64)
        low[known] = np.minimum(np.floor(place[known]), [max(columns - 2, 0), max(rows - 2, 0)]).astype(np.int64)
        share = place - low
        x0, y0 = low.T
        x1, y1 = np.minimum(x0 + 1, columns - 1), np.minimum(y0 + 1, rows - 1)
        u, v = share[:, :1], share[:, 1:]
        d = self.displacement
        upper = d[y0, x0] * (1 - u) + d[y0, x1] * u
        lower = d[y1, x0] * (1 - u) + d[y1, x1] * u
        return np.asarray(upper * (1 - v) + lower * v)


@dataclass(frozen=True)
class Correction:
    """Moves points of the slide, in full-resolution px: ``matrix @ p + field(p)``.

    Attributes
    ----------
    matrix : float64 (3, 3)
    field : Field or None
    """

    matrix: Floats
    field: Field | None = None

    @classmethod
    def none(cls) -> Correction:
        """Moves nothing."""
        return cls(np.eye(3))

    @property
    def moves(self) -> bool:
        """Whether it moves anything at all."""
        return self.field is not None or not np.array_equal(self.matrix, np.eye(3))

    def apply(self, points: Floats) -> Floats:
        """Moved points, (n, 2)."""
        moved = points @ self.matrix[:2, :2].T + self.matrix[:2, 2]
        return moved if self.field is None else moved + self.field.at(points)

    def apply_polygons(self, polygons: Polygons) -> Polygons:
        """Moved polygons; every vertex by itself."""
        return Polygons(self.apply(polygons.coords), polygons.ring_offsets, polygons.geom_offsets)

    def largest(self, points: Floats) -> float:
        """Longest way of any of the points, px."""
        ways = np.hypot(*(self.apply(points) - points).T)
        return float(np.nanmax(ways)) if np.isfinite(ways).any() else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON types, from which `from_dict` makes the same correction."""
        result: dict[str, Any] = {"matrix": self.matrix.tolist(), "field": None}
        if self.field is not None:
            result["field"] = {
                "origin": self.field.origin.tolist(),
                "step": self.field.step,
                "displacement": self.field.displacement.round(4).tolist(),
            }
        return result

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Correction:
        """What `to_dict` gave."""
        field = stored["field"]
        made = None if field is None else Field(np.array(field["origin"]), field["step"], _grid(field["displacement"]))
        return cls(np.array(stored["matrix"], np.float64), made)


def _grid(values: Any) -> Floats:
    return np.array(values, dtype=np.float64)
