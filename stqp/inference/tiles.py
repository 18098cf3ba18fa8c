"""Post-processing of a whole slide in tiles, nucleus for nucleus as if it were done at once.

The unit of ownership is the clump: foreground that hangs together, corners and enclosed islands
included. HoVer-Net's watershed never leaves a clump, so a clump that lies wholly inside of the seen
window (with `REACH` px around it) is processed exactly, and belongs to the tile whose core holds its
first pixel. Of a clump that its owner's window cuts, each tile tells what its core holds; the parts are put
together (`stitching`) and the clump is processed in a window of its own size. Only a clump larger than
`MAX_CLUMP` px is cut: its nuclei then belong to the tile that holds their centres, and the cuts are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stqp.inference import postprocess
from stqp.inference.clumps import Border, Clumps, Part, Tiling, at, find_clumps, grow, leaving_parts
from stqp.inference.stitching import Stitcher, Task
from stqp.inference.store import MapStore, Region
from stqp.polygonise import polygonise
from stqp.polygons import Polygons

TILE = 1024
MARGIN = 128
MAX_CLUMP = 6000 * 6000  # px of a clump's bounding box

Progress = Callable[[int, int], None]


@dataclass
class Nuclei:
    """Nuclei in px of the map.

    Attributes
    ----------
    polygons : Polygons
    class_prob : float64 (n, C)
        Mean probability of background and each class.
    cut_clumps : int
        Windows in which a clump too large to be processed whole was cut.
    """

    polygons: Polygons
    class_prob: NDArray[np.float64]
    cut_clumps: int = 0


@dataclass(frozen=True)
class Found:
    """The nuclei of one tile or clump, as compact as they can be kept.

    Attributes
    ----------
    coords : int32 (vertices, 2)
        In px of the map; each nucleus is one ring along the edges of pixels.
    counts : int32 (n,)
        Vertices of each.
    centres : float64 (n, 2)
    class_prob : float64 (n, C)
    """

    coords: NDArray[np.int32]
    counts: NDArray[np.int32]
    centres: NDArray[np.float64]
    class_prob: NDArray[np.float64]

    @classmethod
    def none(cls, n_types: int) -> Found:
        """No nuclei."""
        return cls(np.empty((0, 2), np.int32), np.empty(0, np.int32), np.empty((0, 2)), np.empty((0, n_types)))


@dataclass(frozen=True)
class Seen:
    """What a tile gave: its nuclei, and what it saw of clumps that reach into others."""

    found: Found
    parts: list[Part] = field(default_factory=list)
    border: Border | None = None


def make_tiling(width: int, height: int, tile: int = TILE, margin: int = MARGIN) -> Tiling:
    """Tiles of a map, with a margin that is wide enough."""
    return Tiling(width, height, tile, max(margin, postprocess.MAX_HOLE + 2 * postprocess.REACH))


def make_stitcher(tiling: Tiling, max_clump: int = MAX_CLUMP) -> Stitcher:
    """Make a stitcher for which no clump is too large that fits a tile."""
    largest = max(max_clump, (tiling.tile + 2 * tiling.margin) ** 2)
    return Stitcher(tiling, largest, 2 * postprocess.REACH)


def process_tile(store: MapStore, tiling: Tiling, number: int, bounds: postprocess.Bounds) -> Seen:
    """Find the nuclei of the clumps that a tile owns, and the parts of those that it must share."""
    window = tiling.window(number)
    clumps = find_clumps(store.read_nuclei(window), window)
    nothing = Found.none(store.n_types)
    if not len(clumps.boxes):
        return Seen(nothing)
    owned, shared = _sort_out(clumps, number, tiling)
    parts, border = leaving_parts(clumps, shared, number, tiling) if shared else ([], None)
    if not owned.any():
        return Seen(nothing, parts, border)
    boxes = clumps.boxes[owned]
    around = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    region = tiling.clip(grow(around, postprocess.REACH))
    inside = np.s_[region[1] - window[1] : region[3] - window[1], region[0] - window[0] : region[2] - window[0]]
    np_prob, hv, tp = store.read(region)
    np_prob *= np.r_[False, owned][clumps.labels[inside]]
    return Seen(_nuclei(np_prob, hv, tp, region, bounds, store.mpp), parts, border)


def process_task(store: MapStore, task: Task, bounds: postprocess.Bounds) -> Found:
    """Find the nuclei of one clump, or of a part of it."""
    np_prob, hv, tp = store.read(task.region)
    labels = find_clumps(np_prob, task.region).labels
    np_prob *= labels == labels[at(task.first, task.region)]
    return _nuclei(np_prob, hv, tp, task.region, bounds, store.mpp, task.core)


def assemble(parts: Sequence[Found], n_types: int, scale: float = 1.0) -> tuple[Polygons, NDArray[np.float64]]:
    """Put nuclei together, ordered by their centres, row by row.

    Parameters
    ----------
    parts
        In any order; each is read twice, one after the other, so that they may lie in a file.
    n_types
        Columns of the probabilities.
    scale
        Factor for the coordinates.

    Returns
    -------
    polygons : Polygons
    class_prob : float64 (n, C)
    """
    # copies, or each would hold on to all that was read with it
    known = [(p.counts.copy(), p.centres.copy(), p.coords[_starts(p.counts)]) for p in parts]
    counts = np.concatenate([np.empty(0, np.int64), *(k[0] for k in known)])
    centres = np.concatenate([np.empty((0, 2)), *(k[1] for k in known)])
    firsts = np.concatenate([np.empty((0, 2), np.int32), *(k[2] for k in known)])
    del known
    # an island may share its centre with the ring around it, but no pixel
    order = np.lexsort((firsts[:, 0], firsts[:, 1], centres[:, 0], centres[:, 1]))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    offsets = np.concatenate(([0], np.cumsum(counts[order])))
    coords, class_prob = np.empty((int(offsets[-1]), 2)), np.empty((len(order), n_types))
    first = 0
    for part in parts:
        mine = place[first : first + len(part.counts)]
        first += len(part.counts)
        class_prob[mine] = part.class_prob
        shift = np.repeat(offsets[mine] - _starts(part.counts), part.counts)
        coords[np.arange(len(part.coords)) + shift] = part.coords * scale
    return Polygons(coords, offsets, np.arange(len(order) + 1)), class_prob


def _starts(counts: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.cumsum(counts, dtype=np.int64) - counts


def find_nuclei(
    store: MapStore,
    bounds: postprocess.Bounds | None,
    *,
    tile: int = TILE,
    margin: int = MARGIN,
    max_clump: int = MAX_CLUMP,
    order: Iterable[int] | None = None,
) -> Nuclei:
    """Find the nuclei of all maps of a store, tile after tile; `pipeline` does the same in parallel.

    Parameters
    ----------
    store
        The maps.
    bounds
        As `postprocess.instances`; no nuclei when None.
    tile, margin
        Side of the tiles' cores and what is read around them, in px; they change speed and memory, not the
        result. The margin is at least 96.
    max_clump
        Largest bounding box, in px, of a clump that is processed whole.
    order
        Of the tiles; row by row when None.

    Returns
    -------
    Nuclei
        Ordered by their centres, row by row.
    """
    tiling = make_tiling(store.width, store.height, tile, margin)
    stitcher = make_stitcher(tiling, max_clump)
    parts: list[Found] = []
    cut = 0
    rows, columns = tiling.shape
    for number in range(rows * columns) if order is None else order:
        if bounds is None or store.is_empty(tiling.core(number)):
            tasks = stitcher.add(number, (), None)
        else:
            seen = process_tile(store, tiling, number, bounds)
            parts.append(seen.found)
            tasks = stitcher.add(number, seen.parts, seen.border)
        for task in tasks:
            assert bounds is not None
            cut += task.core is not None
            parts.append(process_task(store, task, bounds))
            stitcher.done(task)
    polygons, class_prob = assemble(parts, store.n_types)
    return Nuclei(polygons, class_prob, cut)


def _sort_out(clumps: Clumps, number: int, tiling: Tiling) -> tuple[NDArray[np.bool_], list[int]]:
    """Which clumps a tile owns, and the labels of those that some tile's window cuts."""
    core, window = tiling.core(number), tiling.window(number)
    x0, y0, x1, y1 = clumps.boxes.T
    inside = (x0 >= core[0]) & (y0 >= core[1]) & (x1 <= core[2]) & (y1 <= core[3])
    meets = (x1 > core[0]) & (y1 > core[1]) & (x0 < core[2]) & (y0 < core[3])
    owned, shared = inside.copy(), []
    small = tiling.margin - postprocess.REACH
    for index in np.flatnonzero(meets & ~inside).tolist():
        box = tuple(clumps.boxes[index].tolist())
        whole = tiling.holds_whole(window, box)
        if whole:
            first = clumps.first(index + 1, window)
            owned[index] = core[0] <= first[0] < core[2] and core[1] <= first[1] < core[3]
        if max(box[2] - box[0], box[3] - box[1]) <= small:
            continue  # whichever tile has some of it has it whole
        if not whole or not all(tiling.holds_whole(tiling.window(n), box) for n in tiling.numbers(box)):
            shared.append(index + 1)
    return owned, shared


def _nuclei(
    np_prob: NDArray[np.uint8],
    hv: NDArray[np.int16],
    tp: NDArray[np.uint8],
    region: Region,
    bounds: postprocess.Bounds,
    mpp: float,
    core: Region | None = None,
) -> Found:
    """Nuclei of a region; with a core, only those whose centre lies in it."""
    inst = postprocess.instances(np_prob, hv, bounds, mpp)
    polygons, ids = polygonise(inst)
    if not len(ids):
        return Found.none(tp.shape[2])
    class_prob = postprocess.class_probabilities(inst, tp, int(inst.max()))[ids - 1] / 255
    polygons = polygons.shift(region[0], region[1])  # first, so that a centre is rounded once
    centres = polygons.centroid()
    if core is not None:
        x, y = centres.T
        mine = (x >= core[0]) & (x < core[2]) & (y >= core[1]) & (y < core[3])
        polygons, class_prob, centres = polygons.take(mine), class_prob[mine], centres[mine]
    return Found(polygons.coords.astype(np.int32), np.diff(polygons.ring_offsets).astype(np.int32), centres, class_prob)
