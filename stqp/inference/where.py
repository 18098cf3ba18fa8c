"""Where on a slide is looked for nuclei: everywhere, on tissue, in boxes, or in what somebody drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.inference.detections import in_boxes
from stqp.inference.store import Cell
from stqp.inference.windows import Grid
from stqp.polygons import Polygons
from stqp.slides import Slide
from stqp.tissue import TissueMask, find_tissue


@dataclass
class Where:
    """Where nuclei are looked for, in full-resolution px.

    Attributes
    ----------
    tissue : bool
        Skip windows without tissue.
    boxes : (n, 4) or None
        Nuclei whose centres lie in one of ``(x0, y0, x1, y1)`` are kept.
    within : Polygons or None
        Nuclei whose centres lie in one of the polygons are kept.
    """

    tissue: bool = True
    boxes: ArrayLike | None = None
    within: Polygons | None = None
    _mask: TissueMask | None = field(default=None, repr=False)

    @property
    def everywhere(self) -> bool:
        """Whether nuclei are kept wherever they lie."""
        return self.boxes is None and self.within is None

    def holds(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether nuclei with these centres are kept, bool (n,)."""
        kept = np.ones(len(xy), np.bool_)
        if self.boxes is not None:
            kept &= in_boxes(xy, self.boxes)
        if self.within is not None and len(xy):
            import shapely

            kept &= shapely.contains_xy(self._drawn, xy[:, 0], xy[:, 1])
        return kept

    def windows(self, grid: Grid, slide: Slide, mpp: float, margin: int) -> list[Cell]:
        """Windows to predict.

        Parameters
        ----------
        grid
            Of all windows.
        slide, mpp
            The slide, the same every time, and its µm/px.
        margin
            px of the map around boxes and polygons that are predicted too.
        """
        cells: Sequence[Cell] = grid.cells
        if self.boxes is not None:
            wanted = np.asarray(self.boxes, np.float64).reshape(-1, 4)
            corners = _corners(grid, cells, margin)
            keep = np.zeros(len(cells), np.bool_)
            for x0, y0, x1, y1 in wanted:
                keep |= (corners[:, 0] < x1) & (corners[:, 2] > x0) & (corners[:, 1] < y1) & (corners[:, 3] > y0)
            cells = [cell for cell, kept in zip(cells, keep.tolist(), strict=True) if kept]
        if self.within is not None and len(cells):
            import shapely

            boxes = shapely.box(*_corners(grid, cells, margin).T)
            met = shapely.intersects(self._drawn, boxes)
            cells = [cell for cell, kept in zip(cells, met.tolist(), strict=True) if kept]
        if self.tissue and len(cells):
            mask = self._mask = self._mask or find_tissue(slide, mpp)
            cells = [cell for cell in cells if mask.touches(*grid.box(cell))]
        return list(cells)

    @cached_property
    def _drawn(self) -> Any:
        """All polygons as one geometry, ready for many questions."""
        import shapely

        assert self.within is not None
        drawn = shapely.union_all(shapely.make_valid(self.within.to_shapely()))
        shapely.prepare(drawn)
        return drawn


def _corners(grid: Grid, cells: Sequence[Cell], margin: int) -> NDArray[np.float64]:
    side = grid.output_size
    first = np.asarray(cells, np.float64).reshape(-1, 2)[:, ::-1] * side
    return np.column_stack((first - margin, first + side + margin)) * grid.downsample
