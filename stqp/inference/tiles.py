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
from stqp.inference.polygonise import polygonise
from stqp.inference.store import MapStore, Region
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


@dataclass
class _Clumps:
    """Labelled clumps of a window and where they are, in px of the map."""

    labels: NDArray[np.int32]
    boxes: NDArray[np.int64]  # (n, 4): x0, y0, x1, y1
    first: NDArray[np.int64]  # (n, 2): x, y of the first pixel, row by row
    whole: NDArray[np.bool_]


def slide_bounds(store: MapStore) -> postprocess.Bounds | None:
    """Bounds for `postprocess.instances` that fit the slide, whatever its tiles.

    The median, weighted by foreground, of what HoVer-Net would use for single regions of 1000 px; up to 48
    regions, those richest in predicted area. A slide of one region is scaled as HoVer-Net scales it.
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
        region = _clip((x, y, x + side, y + side), store)
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
    done: set[tuple[int, int]] = set()
    cores = [
        _clip((x, y, x + tile, y + tile), store)
        for y in range(0, store.height, tile)
        for x in range(0, store.width, tile)
    ]
    giant: tuple[Region, NDArray[np.bool_]] | None = None
    for index, core in enumerate(cores):
        if bounds is not None and not store.is_empty(core):
            window = _clip(_grow(core, margin), store)
            seeds = _tile(store, core, window, bounds, parts)
            for label_seed in seeds:
                if giant is not None and _holds(giant, label_seed):
                    clump: tuple[Region, tuple[int, int]] | None = None
                else:
                    clump, giant = _whole_clump(store, label_seed, max_clump, giant)
                if clump is None:
                    _cut_clump(store, core, window, label_seed, bounds, parts)
                    cut += 1
                    continue
                box, first = clump
                owner = first[0] // tile * tile, first[1] // tile * tile
                its_core = _clip((*owner, owner[0] + tile, owner[1] + tile), store)
                if first in done or _inside(box, _clip(_grow(its_core, margin), store), store):
                    continue
                done.add(first)
                region = _clip(_grow(box, 2 * postprocess.REACH), store)
                _keep(store, region, bounds, parts, _at(first, region))
        if progress:
            progress(index + 1, len(cores))
    polygons = Polygons.concatenate(parts.polygons)
    class_prob = np.concatenate([np.zeros((0, store.n_types)), *parts.class_prob])
    centre = polygons.centroid()
    order = np.lexsort((centre[:, 0], centre[:, 1]))
    return Nuclei(polygons.take(order), class_prob[order], cut)


def _tile(
    store: MapStore, core: Region, window: Region, bounds: postprocess.Bounds, parts: _Parts
) -> list[tuple[int, int]]:
    """Process the clumps that a tile owns; give a pixel of each clump of its core that the window cuts."""
    np_prob, hv, tp = store.read(window)
    clumps = _find_clumps(np_prob, window, store)
    if not len(clumps.boxes):
        return []
    x, y = clumps.first.T
    owned = clumps.whole & (x >= core[0]) & (x < core[2]) & (y >= core[1]) & (y < core[3])
    lookup = np.r_[False, owned]
    if owned.any():
        _extract(np.where(lookup[clumps.labels], np_prob, 0), hv, tp, window, bounds, parts)
    seeds = []
    inner = clumps.labels[core[1] - window[1] : core[3] - window[1], core[0] - window[0] : core[2] - window[0]]
    cut = np.r_[False, ~clumps.whole]
    where = np.flatnonzero(cut[inner])
    labels, first = np.unique(inner.reshape(-1)[where], return_index=True)
    for position in where[first]:
        row, column = divmod(int(position), inner.shape[1])
        seeds.append((core[0] + column, core[1] + row))
    del labels
    return seeds


def _find_clumps(np_prob: NDArray[np.float32], window: Region, store: MapStore) -> _Clumps:
    from scipy import ndimage

    filled = postprocess.fill_small_holes(np_prob >= postprocess.THRESHOLD, postprocess.MAX_HOLE)
    labels, n = ndimage.label(filled, np.ones((3, 3)))
    where = np.flatnonzero(labels)
    position = np.zeros(n + 1, np.int64)
    position[labels.reshape(-1)[where[::-1]]] = where[::-1]  # the first pixel is written last
    y, x = np.divmod(position[1:], labels.shape[1])
    boxes = np.array([(c.start, r.start, c.stop, r.stop) for r, c in ndimage.find_objects(labels)], np.int64).reshape(
        -1, 4
    ) + np.array([window[0], window[1]] * 2)
    whole = np.array([_inside(tuple(b), window, store) for b in boxes.tolist()], bool)
    return _Clumps(labels, boxes, np.column_stack((x + window[0], y + window[1])), whole)


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


def _keep(
    store: MapStore,
    region: Region,
    bounds: postprocess.Bounds,
    parts: _Parts,
    seed: tuple[int, int],
    core: Region | None = None,
) -> None:
    """Process the one clump of a region that holds the pixel (row, column)."""
    np_prob, hv, tp = store.read(region)
    labels = _find_clumps(np_prob, region, store).labels
    _extract(np.where(labels == labels[seed], np_prob, 0), hv, tp, region, bounds, parts, core)


def _cut_clump(
    store: MapStore, core: Region, window: Region, seed: tuple[int, int], bounds: postprocess.Bounds, parts: _Parts
) -> None:
    _keep(store, window, bounds, parts, _at(seed, window), core)


def _whole_clump(
    store: MapStore, seed: tuple[int, int], max_clump: int, giant: tuple[Region, NDArray[np.bool_]] | None
) -> tuple[tuple[Region, tuple[int, int]] | None, tuple[Region, NDArray[np.bool_]] | None]:
    """Bounding box and first pixel of the clump at a pixel; None, and its mask, when it is too large."""
    region = _clip(_grow((seed[0], seed[1], seed[0] + 1, seed[1] + 1), 512), store)
    while True:
        clumps = _find_clumps(store.read_nuclei(region), region, store)
        label = clumps.labels[_at(seed, region)]
        x0, y0, x1, y1 = clumps.boxes[label - 1].tolist()
        if clumps.whole[label - 1]:
            x, y = clumps.first[label - 1].tolist()
            return ((x0, y0, x1, y1), (x, y)), giant
        if (region[2] - region[0]) * (region[3] - region[1]) > max_clump:
            return None, (region, clumps.labels == label)
        step = max(region[2] - region[0], region[3] - region[1]) // 2
        near = 2 * postprocess.REACH
        region = _clip(
            (
                region[0] - step * (x0 - region[0] < near),
                region[1] - step * (y0 - region[1] < near),
                region[2] + step * (region[2] - x1 < near),
                region[3] + step * (region[3] - y1 < near),
            ),
            store,
        )


def _holds(giant: tuple[Region, NDArray[np.bool_]], seed: tuple[int, int]) -> bool:
    region, mask = giant
    row, column = _at(seed, region)
    return 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and bool(mask[row, column])


def _inside(box: tuple[int, ...], window: Region, store: MapStore) -> bool:
    """Whether all that can change a clump's nuclei is in the window; the map's own border is no cut."""
    reach = postprocess.REACH
    return (
        (window[0] == 0 or box[0] >= window[0] + reach)
        and (window[1] == 0 or box[1] >= window[1] + reach)
        and (window[2] == store.width or box[2] <= window[2] - reach)
        and (window[3] == store.height or box[3] <= window[3] - reach)
    )


def _at(pixel: tuple[int, int], region: Region) -> tuple[int, int]:
    return pixel[1] - region[1], pixel[0] - region[0]


def _grow(region: Region, by: int) -> Region:
    return region[0] - by, region[1] - by, region[2] + by, region[3] + by


def _clip(region: Region, store: MapStore) -> Region:
    return max(region[0], 0), max(region[1], 0), min(region[2], store.width), min(region[3], store.height)
