"""Clumps: foreground that hangs together, the unit that HoVer-Net's watershed never leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.inference import postprocess
from stqp.inference.store import Region

Pixel = tuple[int, int]
Place = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """Tiles of a map: cores that meet, and windows that hold a margin around them.

    Attributes
    ----------
    width, height : int
        Of the map in px.
    tile, margin : int
        Side of the cores, and what is seen around them.
    """

    width: int
    height: int
    tile: int
    margin: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.height // self.tile), -(-self.width // self.tile)

    def place(self, number: int) -> Place:
        """Row and column of a tile."""
        return divmod(number, self.shape[1])

    def number(self, pixel: Pixel) -> int:
        """Number of the tile whose core holds a pixel (x, y)."""
        return pixel[1] // self.tile * self.shape[1] + pixel[0] // self.tile

    def core(self, number: int) -> Region:
        """Core of a tile."""
        row, column = self.place(number)
        left, top = column * self.tile, row * self.tile
        return self.clip((left, top, left + self.tile, top + self.tile))

    def window(self, number: int) -> Region:
        """Core of a tile and the margin around it."""
        return self.clip(grow(self.core(number), self.margin))

    def clip(self, region: Region) -> Region:
        """Cut a region to the map."""
        return max(region[0], 0), max(region[1], 0), min(region[2], self.width), min(region[3], self.height)

    def numbers(self, region: Region) -> list[int]:
        """Tiles whose cores a region touches."""
        x0, y0, x1, y1 = self.clip(region)
        rows, columns = range(y0 // self.tile, -(-y1 // self.tile)), range(x0 // self.tile, -(-x1 // self.tile))
        return [row * self.shape[1] + column for row in rows for column in columns]

    def holds_whole(self, window: Region, box: Region) -> bool:
        """Whether a window holds all that can change a clump's nuclei; the map's own border is no cut."""
        reach = postprocess.REACH
        return (
            (window[0] == 0 or box[0] >= window[0] + reach)
            and (window[1] == 0 or box[1] >= window[1] + reach)
            and (window[2] == self.width or box[2] <= window[2] - reach)
            and (window[3] == self.height or box[3] <= window[3] - reach)
        )


@dataclass
class Clumps:
    """The clumps of a window.

    Attributes
    ----------
    labels : int32 (height, width)
        Clumps 1..n; corners connect, and small holes belong to the clump around them, islands and all.
    boxes : int64 (n, 4)
        Bounding boxes x0, y0, x1, y1 in px of the map.
    """

    labels: NDArray[np.int32]
    boxes: NDArray[np.int64]

    def first(self, label: int, window: Region) -> Pixel:
        """First pixel of a clump, row by row."""
        x0, y0, x1, _ = self.boxes[label - 1].tolist()
        row = self.labels[y0 - window[1], x0 - window[0] : x1 - window[0]]
        return x0 + int(np.argmax(row == label)), y0


def find_clumps(np_prob: NDArray[np.uint8], window: Region) -> Clumps:
    """Find the clumps of a window of the map."""
    from scipy import ndimage

    filled = postprocess.fill_small_holes(postprocess.is_nucleus(np_prob), postprocess.MAX_HOLE)
    labels = postprocess.label_pieces(filled, corners=True)
    slices = ndimage.find_objects(labels)
    boxes = np.array([(c.start, r.start, c.stop, r.stop) for r, c in slices], np.int64).reshape(-1, 4)
    return Clumps(labels, boxes + np.array([window[0], window[1]] * 2))


@dataclass(frozen=True)
class Part:
    """What one tile's core holds of a clump that reaches into other tiles.

    Attributes
    ----------
    tile, label : int
        The tile and the clump's number there.
    box : Region
        Bounding box of the part, in px of the map.
    first : Pixel
        Its first pixel, row by row.
    """

    tile: int
    label: int
    box: Region
    first: Pixel


@dataclass(frozen=True)
class Border:
    """Where parts of clumps leave a tile: pixels ``y * width + x`` of the map, ascending, and the labels there.

    Attributes
    ----------
    inner, inner_labels : int64, int32 (n,)
        Along the inside of the core.
    outer, outer_labels : int64, int32 (m,)
        The pixels around the core, which other tiles own.
    """

    inner: NDArray[np.int64]
    inner_labels: NDArray[np.int32]
    outer: NDArray[np.int64]
    outer_labels: NDArray[np.int32]


def leaving_parts(clumps: Clumps, labels: Sequence[int], number: int, tiling: Tiling) -> tuple[list[Part], Border]:
    """Parts of the given clumps in the core of tile `number`, and where they leave it."""
    core, window = tiling.core(number), tiling.window(number)
    chosen = np.zeros(len(clumps.boxes) + 1, np.bool_)
    chosen[list(labels)] = True
    rows, columns = slice(core[1] - window[1], core[3] - window[1]), slice(core[0] - window[0], core[2] - window[0])
    parts = []
    for label in labels:
        x0, y0, x1, y1 = clumps.boxes[label - 1].tolist()
        x0, y0, x1, y1 = max(x0, core[0]), max(y0, core[1]), min(x1, core[2]), min(y1, core[3])
        mask = clumps.labels[y0 - window[1] : y1 - window[1], x0 - window[0] : x1 - window[0]] == label
        across, down = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if len(across):
            box = (x0 + int(across[0]), y0 + int(down[0]), x0 + int(across[-1]) + 1, y0 + int(down[-1]) + 1)
            first = x0 + int(np.argmax(mask[down[0]])), box[1]
            parts.append(Part(number, label, box, first))
    inner = _frame(clumps.labels, rows, columns, window, tiling.width, chosen)
    wide = slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(columns.start - 1, 0), columns.stop + 1)
    edges = (
        rows.start > 0,
        rows.stop < clumps.labels.shape[0],
        columns.start > 0,
        columns.stop < clumps.labels.shape[1],
    )
    outer = _frame(clumps.labels, *wide, window, tiling.width, chosen, edges)
    return parts, Border(*inner, *outer)


def _frame(
    labels: NDArray[np.int32],
    rows: slice,
    columns: slice,
    window: Region,
    width: int,
    chosen: NDArray[np.bool_],
    edges: tuple[bool, bool, bool, bool] = (True, True, True, True),
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Pixels of chosen labels along the edges (top, bottom, left, right) of a part of a window."""
    bottom, right = min(rows.stop, labels.shape[0]) - 1, min(columns.stop, labels.shape[1]) - 1
    across = np.arange(columns.start, right + 1)
    down = np.arange(rows.start, bottom + 1)
    sides = [
        (np.full(len(across), rows.start), across),
        (np.full(len(across), bottom), across),
        (down, np.full(len(down), columns.start)),
        (down, np.full(len(down), right)),
    ]
    kept = [side for side, there in zip(sides, edges, strict=True) if there]
    if not kept:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    y, x = (np.concatenate([side[axis] for side in kept]) for axis in (0, 1))
    found = labels[y, x]
    mine = chosen[found]
    pixels, where = np.unique((y[mine] + window[1]) * width + x[mine] + window[0], return_index=True)
    return pixels.astype(np.int64), found[mine][where]


def at(pixel: Pixel, region: Region) -> tuple[int, int]:
    """Row and column, in a region, of a pixel (x, y) of the map."""
    return pixel[1] - region[1], pixel[0] - region[0]


def grow(region: Region, by: int) -> Region:
    """Enlarge a region on all sides."""
    return region[0] - by, region[1] - by, region[2] + by, region[3] + by
