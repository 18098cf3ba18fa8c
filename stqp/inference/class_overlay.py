"""Nuclei as areas in the colours of their classes, in a transparent pyramid that lies over the slide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.inference.detections import Detections
from stqp.taxonomy import RGB, UNKNOWN, color_of

MPP = 0.5
_TILE = 512
_DRAWN_UM = 5.0  # µm per px beyond which a nucleus is a dot, and its area is added to the pixel of its centre
_RGBA = NDArray[np.uint8]


def write_overlay(
    path: Path, found: Detections, size: tuple[int, int], colors: Mapping[str, RGB], mpp: float = MPP
) -> None:
    """Write a tiled, compressed OME-TIFF with transparency (RGBA), atomically.

    It is drawn and written a row of tiles at a time, so that the memory does not grow with the slide. Coarser levels
    are drawn anew: how opaque a pixel is tells how much of it nuclei cover.

    Parameters
    ----------
    path
        Replaced; ends in ``.ome.tif``.
    found
        The nuclei.
    size
        Width and height of the slide in full-resolution px.
    colors
        Of the classes; others get the taxonomy's.
    mpp
        µm per px of the overlay.
    """
    import tifffile

    step = mpp / found.mpp
    steps = [step]
    while max(_level_size(size, steps[-1])) > _TILE:
        steps.append(steps[-1] * 2)
    names = (UNKNOWN, *found.classes)
    palette = np.zeros((len(names) + 1, 4), np.uint8)
    for code, name in enumerate(names, start=1):
        palette[code] = (*colors.get(name, color_of(name)), 255)
    drawing = _Drawing(found, palette)
    legend = ", ".join(f"{name} #{r:02x}{g:02x}{b:02x}" for name, (r, g, b, _) in zip(names, palette[1:], strict=True))
    described = {
        "axes": "YXS",
        "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm",
        "Description": f"Nuclei in the colours of their classes: {legend}",
    }  # fmt: skip
    with files.replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as writer:
        for level, pixel in enumerate(steps):
            width, height = _level_size(size, pixel)
            writer.write(
                drawing.tiles(pixel, width, height, fine=level == 0),
                shape=(height, width, 4),
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="rgb",
                extrasamples=["unassalpha"],
                compression="deflate",
                subifds=len(steps) - 1 if level == 0 else None,
                subfiletype=1 if level else 0,
                metadata=described if level == 0 else None,
                resolutionunit="CENTIMETER",
                resolution=(1e4 / (pixel * found.mpp),) * 2,
                maxworkers=1,
            )


def _level_size(size: tuple[int, int], step: float) -> tuple[int, int]:
    return max(1, math.ceil(size[0] / step)), max(1, math.ceil(size[1] / step))


class _Drawing:
    def __init__(self, found: Detections, palette: _RGBA):
        self.polygons, self.codes, self.palette = found.polygons, (found.class_ids + 1).astype(np.uint8), palette
        self.mpp = found.mpp
        bounds = np.nan_to_num(self.polygons.bounds(), nan=-1)
        self.top, self.bottom = bounds[:, 1], bounds[:, 3]

    def tiles(self, step: float, width: int, height: int, fine: bool) -> Iterator[_RGBA]:
        """Tiles of a level, row by row; `step` full-resolution px are a pixel."""
        for y in range(0, height, _TILE):
            if step * self.mpp > _DRAWN_UM:
                strip = self._dots(step, width, y)
                yield from (_padded(strip[:, x : x + _TILE]) for x in range(0, width, _TILE))
                continue
            times = 1 if fine else 2
            codes = self._areas(step / times, width * times, y * times, _TILE * times)
            for x in range(0, width, _TILE):
                yield self._colored(codes[:, x * times : (x + _TILE) * times], times)

    def _areas(self, step: float, width: int, y: int, rows: int) -> NDArray[np.uint8]:
        """Class codes of the pixels of some rows."""
        near = np.flatnonzero((self.bottom > y * step) & (self.top < (y + rows) * step))
        codes = np.zeros((rows, width), np.uint8)
        self.polygons.take(near).scale(1 / step).shift(0, -y).rasterize(codes.shape, self.codes[near], codes)
        return codes

    def _colored(self, codes: NDArray[np.uint8], times: int) -> _RGBA:
        """Pixels in their colours; of 2 x 2 the mean of those that nuclei cover."""
        tile = self.palette[codes]
        if times > 1:
            rows = tile[::2].astype(np.uint16) + tile[1::2]
            parts = rows[:, ::2] + rows[:, 1::2]
            alpha = parts[..., 3]
            seen = alpha > 0
            covered = (alpha[seen] // 255)[:, None]
            tile = np.zeros(parts.shape, np.uint8)
            tile[seen, :3] = (parts[seen, :3] + covered // 2) // covered
            tile[..., 3] = alpha // times**2
        return _padded(tile)

    def _dots(self, step: float, width: int, y: int) -> _RGBA:
        """Some rows in which a pixel holds many nuclei: their areas, by class."""
        near = np.flatnonzero((self.bottom > y * step) & (self.top < (y + _TILE) * step))
        part = self.polygons.take(near)
        column, row = np.floor(part.centroid() / step).astype(np.int64).T
        inside = (row >= y) & (row < y + _TILE) & (column >= 0) & (column < width)
        place = ((row - y) * width + column)[inside]
        area, codes = part.area()[inside] / step**2, self.codes[near][inside]
        covered = np.bincount(place, area, _TILE * width)
        result = np.zeros((_TILE * width, 4), np.uint8)
        seen = covered > 0
        for channel in range(3):
            light = np.bincount(place, area * self.palette[codes, channel], _TILE * width)
            result[seen, channel] = np.rint(light[seen] / covered[seen])
        result[:, 3] = np.rint(255 * np.minimum(covered, 1))
        return result.reshape(_TILE, width, 4)


def _padded(tile: _RGBA) -> _RGBA:
    if tile.shape[:2] == (_TILE, _TILE):
        return np.ascontiguousarray(tile)
    full = np.zeros((_TILE, _TILE, 4), np.uint8)
    full[: tile.shape[0], : tile.shape[1]] = tile
    return full
