"""A slide in, nuclei out: windows for the network, maps, nuclei."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.errors import InputError
from stqp.inference import tiles
from stqp.inference.detections import Detections
from stqp.inference.model import Predictor, downsample_of
from stqp.inference.store import MapStore
from stqp.slides import Slide
from stqp.tissue import broken_file, find_tissue

logger = logging.getLogger(__name__)
_READERS = 3
_AHEAD = 3  # batches that are read before the network asks for them

Progress = Callable[[int, int], None]
Cell = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """The windows that cover a slide; their outputs meet without a gap or an overlap.

    Attributes
    ----------
    width, height : int
        Of the map in the network's px.
    downsample : float
        Full-resolution px per px of the map.
    input_size, output_size : int
        Of a window.
    """

    width: int
    height: int
    downsample: float
    input_size: int
    output_size: int

    @classmethod
    def of(cls, slide: Slide, mpp: float, predictor: Predictor) -> Grid:
        """Make the grid for a slide of `mpp` µm/px."""
        step = downsample_of(predictor.mpp, mpp)
        return cls(
            math.ceil(slide.width / step),
            math.ceil(slide.height / step),
            step,
            predictor.input_size,
            predictor.output_size,
        )

    @property
    def cells(self) -> list[Cell]:
        """Row and column of each window."""
        rows, columns = -(-self.height // self.output_size), -(-self.width // self.output_size)
        return [(r, c) for r in range(rows) for c in range(columns)]

    def box(self, cell: Cell, margin: float = 0.0) -> tuple[float, float, float, float]:
        """What a window's output covers, in full-resolution px, with a margin in px of the map."""
        side = self.output_size
        x, y = cell[1] * side, cell[0] * side
        corners = (x - margin, y - margin, x + side + margin, y + side + margin)
        return tuple(v * self.downsample for v in corners)  # type: ignore[return-value]

    def read(self, slide: Slide, cell: Cell) -> NDArray[np.uint8]:
        """Read a window's input."""
        around = (self.input_size - self.output_size) / 2
        x, y, _, _ = self.box(cell, around)
        with broken_file(slide):
            return slide.read(x, y, (self.input_size, self.input_size), self.downsample)


def slide_mpp(slide: Slide, mpp: float | None = None) -> float:
    """Give the µm per px of a slide, or what the user says it is.

    Raises
    ------
    InputError
        When neither says.
    """
    value = mpp or slide.mpp
    if not value:
        raise InputError(f"{slide.path} does not say its µm per pixel; give it with --mpp")
    return value


def predict_slide(
    slide: Slide,
    predictor: Predictor,
    *,
    mpp: float | None = None,
    batch_size: int = 4,
    tissue: bool = True,
    boxes: ArrayLike | None = None,
    tile: int = tiles.TILE,
    margin: int = tiles.MARGIN,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Detections:
    """Find and type the nuclei of a slide.

    Parameters
    ----------
    slide
        The slide; it is read at the network's µm per px.
    predictor
        The network.
    mpp
        µm per px of the slide, in place of what its file says.
    batch_size
        Windows at a time.
    tissue
        Skip windows without tissue.
    boxes
        Look only here: boxes ``(x0, y0, x1, y1)`` in full-resolution px. Nuclei whose centres lie in one are
        kept.
    tile, margin
        As `tiles.find_nuclei`.
    folder
        For the temporary file of maps, ``6 + classes`` bytes a pixel of tissue.
    progress
        Called with the steps done and their number.

    Returns
    -------
    Detections
        Ordered by their centres, row by row.

    Raises
    ------
    InputError
        When the µm per px are not known.
    EnvironmentProblem
        When the disk is full.
    """
    mpp = slide_mpp(slide, mpp)
    grid = Grid.of(slide, mpp, predictor)
    cells = _choose(grid, slide, mpp, tissue, boxes, margin)
    n_tiles = -(-grid.width // tile) * -(-grid.height // tile)

    total = len(cells) + n_tiles

    def tell(done: int, _: int) -> None:
        if progress:
            progress(done, total)

    with MapStore(grid.width, grid.height, grid.output_size, len(predictor.classes) + 1, folder) as store:
        for done, (batch, images) in enumerate(_batches(slide, grid, cells, batch_size)):
            maps = predictor.predict(images)
            for index, (row, column) in enumerate(batch):
                store.write(row, column, maps["np"][index], maps["hv"][index], maps["tp"][index])
            tell(done * batch_size + len(batch), total)
        nuclei = tiles.find_nuclei(
            store, tile=tile, margin=margin, progress=lambda done, _: tell(len(cells) + done, total)
        )
    if nuclei.cut_clumps:
        logger.warning(
            "%d tiles cut a clump of foreground too large to be processed whole; nuclei there may be wrong",
            nuclei.cut_clumps,
        )
    found = Detections(
        nuclei.polygons.scale(grid.downsample),
        nuclei.class_prob,
        [*predictor.classes],
        mpp,
        grid.downsample,
        {
            "windows": len(cells),
            "windows without tissue": 0 if boxes is not None else len(grid.cells) - len(cells),
            "tiles that cut a clump": nuclei.cut_clumps,
        },
    )
    return found if boxes is None else found.within(boxes)


def _choose(grid: Grid, slide: Slide, mpp: float, tissue: bool, boxes: ArrayLike | None, margin: int) -> list[Cell]:
    """Windows to predict."""
    cells = grid.cells
    if boxes is not None:
        wanted = np.asarray(boxes, np.float64).reshape(-1, 4)
        kept = []
        for cell in cells:
            x0, y0, x1, y1 = grid.box(cell, margin)
            apart = (wanted[:, 0] >= x1) | (wanted[:, 2] <= x0) | (wanted[:, 1] >= y1) | (wanted[:, 3] <= y0)
            if not apart.all():
                kept.append(cell)
        cells = kept
    if tissue and cells:
        mask = find_tissue(slide, mpp)
        cells = [cell for cell in cells if mask.touches(*grid.box(cell))]
        if not cells:
            logger.warning("no tissue was found on %s; --no-tissue looks everywhere", slide.path)
    return cells


def _batches(
    slide: Slide, grid: Grid, cells: Sequence[Cell], size: int
) -> Iterator[tuple[Sequence[Cell], NDArray[np.uint8]]]:
    """Read batches of windows in threads, a few ahead of the network."""
    batches = [cells[i : i + size] for i in range(0, len(cells), size)]

    def read(batch: Sequence[Cell]) -> NDArray[np.uint8]:
        return np.stack([grid.read(slide, cell) for cell in batch])

    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[tuple[Sequence[Cell], Future[NDArray[np.uint8]]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(read, batch)))
                if len(waiting) > _AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
