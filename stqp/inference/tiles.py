"""Post-processing of a whole slide in tiles, nucleus for nucleus as if it were done at once.

The unit of ownership is the clump: foreground that hangs together, corners and enclosed islands
included. HoVer-Net's watershed never leaves a clump, so a clump that lies wholly inside of the seen
window (with `REACH` px around it) is processed exactly, and belongs to the tile whose core holds its
first pixel. A clump that a window cuts is taken up afterwards in a window of its own size. Only a clump
larger than `MAX_CLUMP` px is cut: its nuclei then belong to the tile that holds their centres, and the
cuts are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stqp.inference import postprocess
from stqp.inference.clumps import ClumpFinder, Pixel, at, clip, find_clumps, grow, holds_whole
from stqp.inference.store import MapStore, Region
from stqp.polygonise import polygonise
from stqp.polygons import Polygons

TILE = 2048
MARGIN = 128
MAX_CLUMP = 6000 * 6000  # px of a clump's bounding box
_BOUNDS_SIDE = 1000  # px: the size of region that HoVer-Net was published with
_BOUNDS_REGIONS = 48

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


@dataclass
class _Parts:
    polygons: list[Polygons] = field(default_factory=list)
    class_prob: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, polygons: Polygons, class_prob: NDArray[np.float64]) -> None:
        self.polygons.append(polygons)
        self.class_prob.append(class_prob)


def slide_bounds(store: MapStore) -> postprocess.Bounds | None:
    """Bounds for `postprocess.instances` that fit the slide, whatever its tiles.

    The median, weighted by foreground, of what HoVer-Net would use for single regions of 1000 px; up to 48
    regions, those richest in predicted area. A slide of one region is scaled as HoVer-Net scales it.

    On 12 CoNSeP tiles with maps blurred, weakened and noisy to three degrees, PQ was 0.951, 0.921 and 0.843,
    against 0.941, 0.913 and 0.825 with HoVer-Net's scaling of each tile, and 0.952, 0.912 and 0.827 with the
    extremes of all tiles. Bounds fixed for all slides would not do: a network that is sure of little gives
    answers half as large.
    """
    area: dict[tuple[int, int], int] = {}
    side = _BOUNDS_SIDE
    for row, column in store.chunks:
        key = (row * store.side + store.side // 2) // side, (column * store.side + store.side // 2) // side
        area[key] = area.get(key, 0) + 1
    chosen = sorted(area, key=lambda k: (-area[k], k))[:_BOUNDS_REGIONS]
    bounds, weights = [], []
    for row, column in chosen:
        x, y = column * side, row * side
        region = clip((x, y, x + side, y + side), store)
        if region[2] <= region[0] or region[3] <= region[1]:
            continue
        np_prob, hv, _ = store.read(region)
        foreground = int((np_prob >= postprocess.THRESHOLD).sum())
        if foreground:
            bounds.append(postprocess.sobel_bounds(np_prob, hv))
            weights.append(float(foreground))
    return postprocess.combine_bounds(bounds, weights)


def find_nuclei(
    store: MapStore,
    bounds: postprocess.Bounds | None = None,
    *,
    tile: int = TILE,
    margin: int = MARGIN,
    max_clump: int = MAX_CLUMP,
    progress: Progress | None = None,
) -> Nuclei:
    """Find the nuclei of all maps of a store.

    Parameters
    ----------
    store
        The maps.
    bounds
        As `postprocess.instances`; made from the store when None.
    tile, margin
        Side of the tiles' cores and what is read around them, in px; they change speed and memory, not the
        result. The margin is at least 96.
    max_clump
        Largest bounding box, in px, of a clump that is processed whole.
    progress
        Called with the tiles done and their number.

    Returns
    -------
    Nuclei
        Ordered by their centres, row by row.
    """
    margin = max(margin, postprocess.MAX_HOLE + 2 * postprocess.REACH)
    bounds = slide_bounds(store) if bounds is None else bounds
    parts, cut = _Parts(), 0
    done: set[Pixel] = set()
    finder = ClumpFinder(store, max(max_clump, (tile + 2 * margin) ** 2))
    corners = [(x, y) for y in range(0, store.height, tile) for x in range(0, store.width, tile)]
    for index, (left, top) in enumerate(corners):
        core = clip((left, top, left + tile, top + tile), store)
        if bounds is not None and not store.is_empty(core):
            window = clip(grow(core, margin), store)
            for pixel in _tile(store, core, window, bounds, parts):
                if finder.seen(pixel):
                    continue
                clump = finder.find(pixel)
                if clump is None:
                    _one_clump(store, window, pixel, bounds, parts, core)
                    cut += 1
                    continue
                box, first = clump
                x, y = first[0] // tile * tile, first[1] // tile * tile
                owner = clip(grow(clip((x, y, x + tile, y + tile), store), margin), store)
                if not holds_whole(owner, box, store) and first not in done:
                    done.add(first)
                    _one_clump(store, clip(grow(box, 2 * postprocess.REACH), store), first, bounds, parts)
        if progress:
            progress(index + 1, len(corners))
    polygons = Polygons.concatenate(parts.polygons)
    class_prob = np.concatenate([np.zeros((0, store.n_types)), *parts.class_prob])
    centre = polygons.centroid()
    order = np.lexsort((centre[:, 0], centre[:, 1]))
    return Nuclei(polygons.take(order), class_prob[order], cut)


def _tile(store: MapStore, core: Region, window: Region, bounds: postprocess.Bounds, parts: _Parts) -> list[Pixel]:
    """Process the clumps that a tile owns; give a pixel of each clump of its core that the window cuts."""
    np_prob, hv, tp = store.read(window)
    clumps = find_clumps(np_prob, window, store)
    if not len(clumps.boxes):
        return []
    x, y = clumps.first.T
    owned = clumps.whole & (x >= core[0]) & (x < core[2]) & (y >= core[1]) & (y < core[3])
    if owned.any():
        _extract(np.where(np.r_[False, owned][clumps.labels], np_prob, 0), hv, tp, window, bounds, parts)
    inner = clumps.labels[core[1] - window[1] : core[3] - window[1], core[0] - window[0] : core[2] - window[0]]
    where = np.flatnonzero(np.r_[False, ~clumps.whole][inner])
    _, first = np.unique(inner.reshape(-1)[where], return_index=True)
    rows, columns = np.divmod(where[first], inner.shape[1])
    return [(core[0] + c, core[1] + r) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]


def _extract(
    np_prob: NDArray[np.float32],
    hv: NDArray[np.float32],
    tp: NDArray[np.uint8],
    window: Region,
    bounds: postprocess.Bounds,
    parts: _Parts,
    core: Region | None = None,
) -> None:
    """Nuclei of a window; with a core, only those whose centre lies in it."""
    inst = postprocess.instances(np_prob, hv, bounds)
    polygons, ids = polygonise(inst)
    if not len(ids):
        return
    class_prob = postprocess.class_probabilities(inst, tp, int(inst.max()))[ids - 1] / 255
    polygons = polygons.shift(window[0], window[1])
    if core is not None:
        x, y = polygons.centroid().T
        mine = (x >= core[0]) & (x < core[2]) & (y >= core[1]) & (y < core[3])
        polygons, class_prob = polygons.take(mine), class_prob[mine]
    parts.add(polygons, class_prob)


def _one_clump(
    store: MapStore,
    region: Region,
    pixel: Pixel,
    bounds: postprocess.Bounds,
    parts: _Parts,
    core: Region | None = None,
) -> None:
    """Process the one clump of a region that holds a pixel."""
    np_prob, hv, tp = store.read(region)
    labels = find_clumps(np_prob, region, store).labels
    _extract(np.where(labels == labels[at(pixel, region)], np_prob, 0), hv, tp, region, bounds, parts, core)
