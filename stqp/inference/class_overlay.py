"""Nuclei as areas in the colours of their classes, in a transparent pyramid that lies over the slide."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.inference.detections import Detections
from stqp.taxonomy import RGB, UNKNOWN, color_of

MPP = 0.5
_TILE = 512
_DRAWN_UM = 1.0  # µm per px above which nuclei are drawn finer, and averaged
_RGBA = NDArray[np.uint8]


def write_overlay(
    path: Path, found: Detections, size: tuple[int, int], colors: Mapping[str, RGB], mpp: float = MPP
) -> None:
    """Write a tiled, compressed OME-TIFF with transparency (RGBA), atomically.

    It is drawn and written a row of tiles at a time, so that the memory does not grow with the height of the slide;
    coarser levels wait in temporary files beside it. How opaque a pixel is tells how much of it nuclei cover.

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

    Raises
    ------
    EnvironmentProblem
        When the disk is full.
    """
    import tifffile

    step = mpp / found.mpp
    sizes = [(max(1, math.ceil(size[0] / step)), max(1, math.ceil(size[1] / step)))]
    while max(sizes[-1]) > _TILE:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    names = (UNKNOWN, *found.classes)
    palette = np.zeros((len(names) + 1, 4), np.uint8)
    for code, name in enumerate(names, start=1):
        palette[code] = (*colors.get(name, color_of(name)), 255)
    legend = ", ".join(f"{name} #{r:02x}{g:02x}{b:02x}" for name, (r, g, b, _) in zip(names, palette[1:], strict=True))
    described = {
        "axes": "YXS",
        "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm",
        "Description": f"Nuclei in the colours of their classes: {legend}",
    }  # fmt: skip
    with (
        files.replacing(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as writer,
        contextlib.ExitStack() as stack,
    ):
        # files without a name: no kill leaves them behind
        waiting = [stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in sizes[1:]]
        for level, (width, height) in enumerate(sizes):
            strips = (
                _drawn(found, palette, step, width, height) if level == 0 else _read(waiting[level - 1], width, height)
            )
            coarser = waiting[level] if level < len(waiting) else None
            writer.write(
                _tiles(strips, width, coarser),
                shape=(height, width, 4),
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="rgb",
                extrasamples=["unassalpha"],
                compression="deflate",
                subifds=len(sizes) - 1 if level == 0 else None,
                subfiletype=1 if level else 0,
                metadata=described if level == 0 else None,
                resolutionunit="CENTIMETER",
                resolution=(1e4 / (mpp * 2**level),) * 2,
                maxworkers=1,
            )


def _drawn(found: Detections, palette: _RGBA, step: float, width: int, height: int) -> Iterator[list[_RGBA]]:
    """Rows of tiles of the finest level, from the nuclei."""
    finer = max(0, math.ceil(math.log2(step * found.mpp / _DRAWN_UM)))
    times = 2**finer
    polygons = found.polygons.scale(times / step)
    codes = (found.class_ids + 1).astype(np.uint8)
    bounds = np.nan_to_num(polygons.bounds(), nan=-1)
    side = _TILE * times
    columns = -(-width // _TILE)
    for y in range(0, height * times, side):
        near = np.flatnonzero((bounds[:, 3] > y) & (bounds[:, 1] < y + side))
        strip = np.zeros((side, columns * side), np.uint8)
        polygons.take(near).shift(0, -y).rasterize(strip.shape, codes[near], strip)
        strip[:, width * times :] = 0
        row = []
        for x in range(0, columns * side, side):
            tile = palette[strip[:, x : x + side]]
            for _ in range(finer):
                tile = _halved(tile)
            row.append(tile)
        yield row


def _read(file: IO[bytes], width: int, height: int) -> Iterator[list[_RGBA]]:
    """Rows of tiles of a level that waits in a file."""
    file.truncate(4 * width * height)  # what nobody wrote is transparent
    file.seek(0)
    for y in range(0, height, _TILE):
        rows = min(_TILE, height - y)
        strip = np.zeros((_TILE, -(-width // _TILE) * _TILE, 4), np.uint8)
        content = file.read(4 * width * rows)
        strip[:rows, :width] = np.frombuffer(content, np.uint8).reshape(rows, width, 4)
        yield [np.ascontiguousarray(strip[:, x : x + _TILE]) for x in range(0, strip.shape[1], _TILE)]


def _tiles(strips: Iterator[list[_RGBA]], width: int, coarser: IO[bytes] | None) -> Iterator[_RGBA]:
    """Tiles one by one; half of their size goes to the file of the next level."""
    half = -(-width // 2)
    for number, row in enumerate(strips):
        if coarser is not None and any(tile[..., 3].any() for tile in row):
            strip = np.concatenate([_halved(tile) for tile in row], axis=1)[:, :half]
            coarser.seek(4 * half * number * (_TILE // 2))
            coarser.write(strip.tobytes())
        yield from row  # nobody comes back after the last tile


def _halved(tile: _RGBA) -> _RGBA:
    """Means of 2 x 2 pixels, the colour of what is opaque counting as much as it is."""
    result = np.zeros((tile.shape[0] // 2, tile.shape[1] // 2, 4), np.uint8)
    alpha = _sums(tile[..., 3])
    seen = alpha > 0
    if seen.any():
        result[..., 3] = (alpha + 2) // 4
        for channel in range(3):
            light = _sums(tile[..., channel].astype(np.uint32) * tile[..., 3])
            result[seen, channel] = (light[seen] + alpha[seen] // 2) // alpha[seen]
    return result


def _sums(values: NDArray[np.integer]) -> NDArray[np.uint32]:
    rows = values[::2].astype(np.uint32) + values[1::2]
    return rows[:, ::2] + rows[:, 1::2]
