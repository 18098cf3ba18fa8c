"""Clumps: foreground that hangs together, the unit that HoVer-Net's watershed never leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stqp.inference import postprocess
from stqp.inference.store import MapStore, Region

Pixel = tuple[int, int]
_REMEMBERED = 16
_FIRST_LOOK = 512  # px around a pixel of a clump that a tile cut


@dataclass
class Clumps:
    """The clumps of a window.

    Attributes
    ----------
    labels : int32 (height, width)
        Clumps 1..n; corners connect, and small holes belong to the clump around them, islands and all.
    boxes : int64 (n, 4)
        Bounding boxes x0, y0, x1, y1 in px of the map.
    first : int64 (n, 2)
        x, y of the first pixel, row by row.
    whole : bool (n,)
        Whether the window holds all that can change the clump's nuclei.
    """

    labels: NDArray[np.int32]
    boxes: NDArray[np.int64]
    first: NDArray[np.int64]
    whole: NDArray[np.bool_]


def find_clumps(np_prob: NDArray[np.floating], window: Region, store: MapStore) -> Clumps:
    """Find the clumps of a window of the map."""
    from scipy import ndimage

    filled = postprocess.fill_small_holes(np_prob >= postprocess.THRESHOLD, postprocess.MAX_HOLE)
    labels, n = ndimage.label(filled, np.ones((3, 3)))
    where = np.flatnonzero(labels)
    position = np.zeros(n + 1, np.int64)
    position[labels.reshape(-1)[where[::-1]]] = where[::-1]  # the first pixel is written last
    y, x = np.divmod(position[1:], labels.shape[1])
    slices = ndimage.find_objects(labels)
    boxes = np.array([(c.start, r.start, c.stop, r.stop) for r, c in slices], np.int64).reshape(-1, 4)
    boxes += np.array([window[0], window[1]] * 2)
    whole = np.array([holds_whole(window, (x0, y0, x1, y1), store) for x0, y0, x1, y1 in boxes.tolist()], np.bool_)
    return Clumps(labels, boxes, np.column_stack((x + window[0], y + window[1])), whole)


def holds_whole(window: Region, box: Region, store: MapStore) -> bool:
    """Whether a window holds all that can change a clump's nuclei; the map's own border is no cut."""
    reach = postprocess.REACH
    return (
        (window[0] == 0 or box[0] >= window[0] + reach)
        and (window[1] == 0 or box[1] >= window[1] + reach)
        and (window[2] == store.width or box[2] <= window[2] - reach)
        and (window[3] == store.height or box[3] <= window[3] - reach)
    )


@dataclass
class _Seen:
    region: Region
    mask: NDArray[np.bool_]
    box: Region | None

    def holds(self, pixel: Pixel) -> bool:
        row, column = at(pixel, self.region)
        inside = 0 <= row < self.mask.shape[0] and 0 <= column < self.mask.shape[1]
        return inside and bool(self.mask[row, column])


@dataclass
class ClumpFinder:
    """Finds whole clumps from one of their pixels, looking farther and farther.

    Attributes
    ----------
    store : MapStore
    max_size : int
        Largest bounding box of a clump in px.
    """

    store: MapStore
    max_size: int
    _seen: list[_Seen] = field(default_factory=list)

    def seen(self, pixel: Pixel) -> bool:
        """Whether the pixel's clump was found before, and was not too large."""
        return any(s.box is not None and s.holds(pixel) for s in self._seen)

    def find(self, pixel: Pixel) -> tuple[Region, Pixel] | None:
        """Bounding box and first pixel of the pixel's clump; None when it is too large."""
        if any(s.box is None and s.holds(pixel) for s in self._seen):
            return None
        region = clip(grow((*pixel, pixel[0] + 1, pixel[1] + 1), _FIRST_LOOK), self.store)
        while True:
            clumps = find_clumps(self.store.read_nuclei(region), region, self.store)
            label = int(clumps.labels[at(pixel, region)])
            x0, y0, x1, y1 = clumps.boxes[label - 1].tolist()
            # what is seen of the box only grows, so that each pixel of the clump gives the same answer
            if (x1 - x0) * (y1 - y0) > self.max_size:
                self._remember(_Seen(region, clumps.labels == label, None))
                return None
            if clumps.whole[label - 1]:
                self._remember(_Seen(region, clumps.labels == label, (x0, y0, x1, y1)))
                x, y = clumps.first[label - 1].tolist()
                return (x0, y0, x1, y1), (x, y)
            step = max(region[2] - region[0], region[3] - region[1]) // 2
            near = 2 * postprocess.REACH
            wider = (
                region[0] - step * (x0 - region[0] < near),
                region[1] - step * (y0 - region[1] < near),
                region[2] + step * (region[2] - x1 < near),
                region[3] + step * (region[3] - y1 < near),
            )
            region = clip(wider, self.store)

    def _remember(self, seen: _Seen) -> None:
        self._seen = [*self._seen[-_REMEMBERED + 1 :], seen]


def at(pixel: Pixel, region: Region) -> tuple[int, int]:
    """Row and column, in a region, of a pixel (x, y) of the map."""
    return pixel[1] - region[1], pixel[0] - region[0]


def grow(region: Region, by: int) -> Region:
    """Enlarge a region on all sides."""
    return region[0] - by, region[1] - by, region[2] + by, region[3] + by


def clip(region: Region, store: MapStore) -> Region:
    """Cut a region to the map."""
    return max(region[0], 0), max(region[1], 0), min(region[2], store.width), min(region[3], store.height)
