"""What a slide's pixels are like inside of each nucleus, read tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.slides import RGBImage, Slide
from stqp.tissue import broken_file

Progress = Callable[[int, int], None]
_TILE = 2048


def pixel_means(
    slide: Slide,
    polygons: Polygons,
    values: Callable[[RGBImage], NDArray[np.floating]],
    downsample: float = 1.0,
    tile: int = _TILE,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Mean of something over the pixels whose centres are inside of each polygon.

    Each tile that holds a polygon is read once, and a polygon across tiles is put together from its parts.

    Parameters
    ----------
    slide
        The slide.
    polygons
        In full-resolution px.
    values
        Makes (height, width), or (height, width, k), of an RGB image.
    downsample
        Full-resolution px per pixel that is read.
    tile
        Side of the tiles in pixels that are read; changes the memory, not the result.
    progress
        Called with the tiles done and their number.

    Returns
    -------
    float64 (n,) or (n, k)
        NaN where no pixel is inside.
    """
    scaled = polygons.scale(1 / downsample)
    bounds = np.nan_to_num(scaled.bounds(), nan=-1.0)
    total, number = None, np.zeros(len(polygons))
    tiles = _tiles(bounds, tile)
    for done, (column, row) in enumerate(tiles):
        x, y = column * tile, row * tile
        near = np.flatnonzero(
            (bounds[:, 2] > x) & (bounds[:, 0] < x + tile) & (bounds[:, 3] > y) & (bounds[:, 1] < y + tile)
        )
        with broken_file(slide):
            image = slide.read(x * downsample, y * downsample, (tile, tile), downsample)
        sums, counts = _sums(np.asarray(values(image)), scaled.take(near).shift(-x, -y))
        if total is None:
            total = np.zeros((len(polygons), *sums.shape[1:]))
        total[near] += sums
        number[near] += counts
        if progress:
            progress(done + 1, len(tiles))
    if total is None:
        return np.full(len(polygons), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / number.reshape(-1, *[1] * (total.ndim - 1)))


def _tiles(bounds: NDArray[np.float64], tile: int) -> list[tuple[int, int]]:
    """Columns and rows of the tiles that boxes touch, row by row."""
    first = np.floor(bounds[:, :2] / tile).astype(np.int64)
    last = np.maximum(np.ceil(bounds[:, 2:] / tile).astype(np.int64) - 1, first)
    filled = bounds[:, 2] > bounds[:, 0]
    found: set[tuple[int, int]] = set()
    corners = np.unique(np.column_stack([first, last])[filled], axis=0)  # few: most nuclei lie in one tile
    for x0, y0, x1, y1 in corners.tolist():
        found |= {(x, y) for y in range(y0, y1 + 1) for x in range(x0, x1 + 1)}
    return sorted(found, key=lambda t: (t[1], t[0]))


def _sums(values: NDArray[Any], polygons: Polygons) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of the values inside of each polygon, and the number of its pixels in the image."""
    height, width = values.shape[:2]
    owner, row, start, stop = polygons.spans()
    start, stop = np.maximum(start, 0), np.minimum(stop, width)
    keep = (row >= 0) & (row < height) & (stop > start)
    owner, row, start, stop = owner[keep], row[keep], start[keep], stop[keep]
    # sums along the rows give each run of pixels by two look-ups
    running = np.zeros((height, width + 1, *values.shape[2:]))
    np.cumsum(values, axis=1, out=running[:, 1:])
    runs = running[row, stop] - running[row, start]
    n = len(polygons)
    counts = np.asarray(np.bincount(owner, stop - start, n), np.float64)
    if runs.ndim == 1:
        return np.asarray(np.bincount(owner, runs, n), np.float64), counts
    return np.column_stack([np.bincount(owner, runs[:, k], n) for k in range(runs.shape[1])]), counts
