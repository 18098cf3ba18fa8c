"""What is on a slide, drawn at any µm per px: the image, its nuclei, and where they are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.slides import ArraySlide, RGBImage, Slide, open_slide
from stqp.tissue import broken_file


@dataclass(frozen=True)
class Layers:
    """A part of a slide.

    Attributes
    ----------
    image : uint8 (h, w, 3)
    nuclei : int32 (h, w)
        Position of the nucleus + 1, 0 where there is none.
    valid : uint8 (h, w)
        0 where nothing is known.
    """

    image: RGBImage
    nuclei: NDArray[np.int32]
    valid: NDArray[np.uint8]


class Painter(Protocol):
    """Draws parts of one open image."""

    def draw(self, x: float, y: float, size: tuple[int, int], step: float) -> Layers:
        """Draw a part.

        Parameters
        ----------
        x, y
            Its top left corner, full-resolution px.
        size
            Its width and height in px of the result.
        step
            Full-resolution px per px of the result.
        """


class Canvas(Protocol):
    """One image with its nuclei; goes to other processes."""

    def near(self, box: tuple[float, float, float, float]) -> tuple[Canvas, NDArray[np.int64]]:
        """What a box (x0, y0, x1, y1 in full-resolution px) needs, and the positions of its nuclei."""

    def open(self) -> Any:
        """Open the image; a context that gives a `Painter`."""


@dataclass(frozen=True)
class SlideCanvas:
    """A slide with outlines.

    Attributes
    ----------
    image : Path
    mpp : float
    polygons : Polygons
        Nuclei, in full-resolution px.
    coverage : Polygons or None
        Area in which nuclei are known; all when None.
    masked : Polygons
        Area in which they are not; a nucleus on it is known all the same.
    """

    image: Path
    mpp: float
    polygons: Polygons
    coverage: Polygons | None
    masked: Polygons

    def near(self, box: tuple[float, float, float, float]) -> tuple[SlideCanvas, NDArray[np.int64]]:
        """The same with the nuclei that touch a box, and their positions."""
        index, masked = (np.flatnonzero(touching(p.bounds(), box)) for p in (self.polygons, self.masked))
        part = SlideCanvas(
            self.image, self.mpp, self.polygons.take(index), self.coverage, self.masked.take(masked)
        )  # fmt: skip
        return part, index

    @contextmanager
    def open(self) -> Iterator[Painter]:
        """Open the slide."""
        with open_slide(self.image, self.mpp) as slide, broken_file(slide):
            yield _SlidePainter(self, slide)


class _SlidePainter:
    def __init__(self, canvas: SlideCanvas, slide: Slide):
        self._canvas, self._slide = canvas, slide

    def draw(self, x: float, y: float, size: tuple[int, int], step: float) -> Layers:
        canvas, shape = self._canvas, (size[1], size[0])

        def here(polygons: Polygons) -> Polygons:
            return polygons.shift(-x, -y).scale(1 / step)

        box = x, y, x + size[0] * step, y + size[1] * step
        index = np.flatnonzero(touching(canvas.polygons.bounds(), box))
        nuclei = here(canvas.polygons.take(index)).rasterize(shape, index + 1)
        valid = np.ones(shape, np.uint8)
        if canvas.coverage is not None:
            area = here(canvas.coverage)
            valid = area.rasterize(shape, np.ones(len(area)), np.zeros(shape, np.uint8))
        if len(canvas.masked):
            hidden = here(canvas.masked)
            doubt = hidden.rasterize(shape, np.ones(len(hidden)), np.zeros(shape, np.uint8))
            valid[(doubt > 0) & (nuclei == 0)] = 0
        return Layers(self._slide.read(x, y, size, step), nuclei, valid)


@dataclass(frozen=True)
class MapCanvas:
    """An image with an instance map.

    Attributes
    ----------
    load : callable
        Gives the image, uint8 (h, w, 3), and the map of its nuclei, position + 1, int32 (h, w).
    path : Path
    n : int
        Number of nuclei.
    """

    load: Callable[[], tuple[RGBImage, NDArray[np.int32]]]
    path: Path
    n: int

    def near(self, box: tuple[float, float, float, float]) -> tuple[MapCanvas, NDArray[np.int64]]:
        """Itself, and all nuclei."""
        return self, np.arange(self.n)

    @contextmanager
    def open(self) -> Iterator[Painter]:
        """Read the image."""
        image, nuclei = self.load()
        yield _MapPainter(ArraySlide(image, self.path), nuclei)


class _MapPainter:
    def __init__(self, slide: Slide, nuclei: NDArray[np.int32]):
        self._slide, self._nuclei = slide, nuclei

    def draw(self, x: float, y: float, size: tuple[int, int], step: float) -> Layers:
        height, width = self._nuclei.shape
        # the pixel that holds the centre of each pixel of the result
        column = np.floor(x + (np.arange(size[0]) + 0.5) * step).astype(np.int64)
        row = np.floor(y + (np.arange(size[1]) + 0.5) * step).astype(np.int64)
        inside = np.outer((row >= 0) & (row < height), (column >= 0) & (column < width))
        found = self._nuclei[np.ix_(np.clip(row, 0, height - 1), np.clip(column, 0, width - 1))]
        image = self._slide.read(x, y, size, step)
        return Layers(image, np.where(inside, found, 0).astype(np.int32), inside.astype(np.uint8))


def touching(bounds: NDArray[np.float64], box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """Which bounding boxes (n, 4) touch a box; bool (n,)."""
    x0, y0, x1, y1 = box
    return (bounds[:, 0] < x1) & (bounds[:, 2] > x0) & (bounds[:, 1] < y1) & (bounds[:, 3] > y0)
