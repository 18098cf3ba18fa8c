"""Patches drawn from blocks of tissue, a batch at a time, in this process or another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.patches.blocks import Block
from stqp.patches.canvas import Canvas, Layers
from stqp.patches.store import FULL, UNKNOWN_TYPE, PatchWriter

_AREA = 4096 * 4096  # px that are drawn at a time


@dataclass(frozen=True)
class Batch:
    """Some blocks of one image.

    Attributes
    ----------
    canvas : Canvas
        What the blocks need of the image.
    source : int
        Position of the image.
    mpp : float
        µm per full-resolution px.
    boxes : list
        Of the blocks, full-resolution px.
    sides : list of int
    types, weight : uint8 (n,)
        Of the canvas's nuclei.
    """

    canvas: Canvas
    source: int
    mpp: float
    boxes: list[tuple[float, float, float, float]]
    sides: list[int]
    types: NDArray[np.uint8]
    weight: NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """What all patches of a file have in common: side in px, µm per px, classes."""

    size: int
    mpp: float
    classes: list[str]


def starts(length: int, size: int) -> list[int]:
    """Evenly spaced starts of the fewest pieces of `size` px that cover `length` px without leaving it."""
    n = math.ceil(length / size)
    return [0] if n <= 1 else [(length - size) * i // (n - 1) for i in range(n)]


def pixels(box: tuple[float, float, float, float], step: float) -> tuple[int, int, int, int]:
    """Whole pixels within a box: x, y in full-resolution px, width and height in px of the patches."""
    # whole pixels, so that a patch at the slide's own µm/px is not resampled
    x, y = (math.ceil(low - 1e-6) for low in box[:2])
    return x, y, int((box[2] - x) / step + 1e-6), int((box[3] - y) / step + 1e-6)


def patches_in(block: Block, step: float, size: int) -> int:
    """How many patches a block takes."""
    _, _, width, height = pixels(block.box, step)
    return len(starts(width, size)) * len(starts(height, size)) if min(width, height) > 0 else 0


def draw_batch(batch: Batch, shape: Shape, path: Path) -> int:
    """Draw the patches of a batch into a file of its own; how many there are.

    Raises
    ------
    InputError
        When the image cannot be read to its end.
    EnvironmentProblem
        When the disk is full.
    """
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with (
            files.replacing(path) as temporary,
            PatchWriter(temporary, shape.size, shape.mpp, shape.classes) as writer,
            batch.canvas.open() as painter,
        ):
            rows = [
                {**arrays, "origin": origin, "source": batch.source, "side": side}
                for box, side in zip(batch.boxes, batch.sides, strict=True)
                for origin, arrays in _patches(painter, batch, box, shape)
            ]
            writer.append_all(rows)
            writer.finish([])
            return len(rows)
    finally:
        cv2.setNumThreads(threads)


def _patches(
    painter: Any, batch: Batch, box: tuple[float, float, float, float], shape: Shape
) -> Iterator[tuple[tuple[float, float], dict[str, NDArray[Any]]]]:
    step = shape.mpp / batch.mpp
    x, y, width, height = pixels(box, step)
    if min(width, height) <= 0:
        return
    types, weight = np.append(np.uint8(0), batch.types), np.append(np.uint8(FULL), batch.weight)
    rows, columns = starts(height, shape.size), starts(width, shape.size)
    # neighbours share tiles of the image, so a block is read at once where it is not too large
    bands = [rows] if width * height <= _AREA else [[row] for row in rows]
    for band in bands:
        low, high = band[0], min(band[-1] + shape.size, height)
        layers = painter.draw(x, y + low * step, (width, high - low), step)
        for row in band:
            for column in columns:
                part = _part(layers, column, row - low, shape.size)
                if part.valid.any():
                    origin = x + column * step, y + row * step
                    yield origin, _arrays(part, types, weight, len(shape.classes))


def _part(layers: Layers, column: int, row: int, size: int) -> Layers:
    """A patch of a block; beyond a block that is smaller, the image mirrors and nothing is known."""
    at = slice(row, row + size), slice(column, column + size)
    image, nuclei, valid = layers.image[at], layers.nuclei[at], layers.valid[at]
    lacking = [(0, size - n) for n in valid.shape]
    if any(after for _, after in lacking):
        image = np.pad(image, [*lacking, (0, 0)], mode="reflect" if min(valid.shape) > 1 else "edge")
        nuclei, valid = np.pad(nuclei, lacking), np.pad(valid, lacking)
    return Layers(image, nuclei, valid)


def _arrays(
    part: Layers, types: NDArray[np.uint8], weight: NDArray[np.uint8], n_classes: int
) -> dict[str, NDArray[Any]]:
    """Maps of a patch from the numbers of its nuclei in the image."""
    present = np.zeros(len(types), bool)
    present[part.nuclei.reshape(-1)] = True
    present[0] = False
    numbers = np.cumsum(present, dtype=np.int32) * present
    kinds = types[present].astype(np.int64)
    kinds[kinds == UNKNOWN_TYPE] = 0
    return {
        "images": part.image,
        "instances": numbers[part.nuclei],
        "types": types[part.nuclei],
        "valid": part.valid,
        "weight": weight[part.nuclei],
        "counts": np.bincount(kinds, minlength=n_classes + 1).astype(np.int32),
    }


def batches(
    blocks: Sequence[Block],
    steps: Sequence[float],
    size: int,
    number: int,
) -> list[tuple[int, list[int]]]:
    """Put neighbouring blocks of an image together, for at most `number` patches: image and positions of each batch."""
    result: list[tuple[int, list[int]]] = []
    filled = 0
    for index in np.argsort([b.source for b in blocks], kind="stable").tolist():
        block = blocks[index]
        here = patches_in(block, steps[block.source], size)
        if not here:
            continue
        if result and result[-1][0] == block.source and filled + here <= number:
            result[-1][1].append(index)
            filled += here
        else:
            result.append((block.source, [index]))
            filled = here
    return result
