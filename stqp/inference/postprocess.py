"""From the network's maps to nuclei: HoVer-Net's marker-controlled watershed, and the class of each nucleus.

HoVer-Net (Graham et al. 2019) finds the borders of touching nuclei where the horizontal and vertical
distance maps jump from +1 to -1, which a wide Sobel filter turns into an energy; each valley of the energy
is a nucleus. The filter's answer is scaled to 0..1 over the whole array, so that one odd pixel changes
every nucleus, and nuclei depend on where a tile begins. `postprocess_maps` does the same when `bounds` is
None. A slide is processed in tiles with `bounds` made once from its maps (`sobel_bounds`), and holes are
then filled only up to `MAX_HOLE` px, so that each nucleus depends on nothing farther than its own clump.

The sizes of its filters are made for nuclei at 0.25 µm/px. In the half as large nuclei of 0.5 µm/px they find
hardly half of the markers, from maps without a fault. So they shrink with the resolution, see `Sizes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.number[Any]]
Labels = NDArray[np.int32]
Bounds = tuple[float, float, float, float]

THRESHOLD = 0.5
ENERGY = 0.4  # of the scaled Sobel answer; pixels above are borders
MPP = 0.25  # µm/px that HoVer-Net is made for
MAX_HOLE = 64  # px, side of the largest hole of a marker that is filled when `bounds` are given
REACH = 16  # px around a clump that can change its nuclei: half a kernel and a margin for safety


@dataclass(frozen=True)
class Sizes:
    """Sizes of the filters.

    Attributes
    ----------
    kernel : int
        Side of the Sobel filter in px.
    opening : int
        Diameter in px of the disk that markers are opened with.
    smallest : int
        Pixels of a marker or a nucleus; less is dropped.
    """

    kernel: int = 21
    opening: int = 5
    smallest: int = 10

    @classmethod
    def at(cls, mpp: float) -> Sizes:
        """Sizes for maps of `mpp` µm/px: those of HoVer-Net at 0.25 and finer, and smaller ones at coarser.

        A larger Sobel filter than HoVer-Net's would have sums that are not exact in float64.
        """
        part = min(1.0, MPP / mpp)
        return cls(2 * round(10 * part) + 1, 2 * round(2 * part) + 1, math.ceil(10 * part**2))


def postprocess_maps(
    np_prob: Numbers,
    hv: Numbers,
    tp_prob: Numbers | None = None,
    bounds: Bounds | None = None,
    mpp: float = MPP,
) -> tuple[Labels, NDArray[np.float64], NDArray[np.int64]]:
    """Nuclei of one region, and the probability of each class for each.

    Parameters
    ----------
    np_prob : (height, width)
        Probability of nucleus; as uint8 it is in 256ths.
    hv : (height, width, 2)
        Horizontal and vertical distance maps, about -1 to 1. Whole numbers in any fixed unit give sums that are
        exact in float64, whatever their order, so that no answer hangs on where an array begins.
    tp_prob : (height, width, C)
        Probability of background (0) and each class; None when the network does not type.
    bounds, mpp
        As `instances`.

    Returns
    -------
    inst : int32 (height, width)
        Nuclei 1..n, 0 is background.
    class_prob : float64 (n, C)
        Mean probability over the pixels of each nucleus; C is 0 without `tp_prob`.
    ids : int64 (n,)
        1..n.
    """
    inst = instances(np_prob, hv, bounds, mpp)
    n = int(inst.max(initial=0))
    probability = class_probabilities(inst, tp_prob, n) if tp_prob is not None else np.zeros((n, 0))
    return inst, probability, np.arange(1, n + 1)


def instances(np_prob: Numbers, hv: Numbers, bounds: Bounds | None = None, mpp: float = MPP) -> Labels:
    """Nuclei of one region as an instance map with the ids 1..n.

    Parameters
    ----------
    np_prob, hv
        As `postprocess_maps`.
    bounds
        Lowest and highest answer of the horizontal, then of the vertical Sobel filter, which become energy 1
        and 0. None scales to the extremes of this array, which gives the very instance map that TIAToolbox's
        HoVerNet makes, at 0.25 µm/px.
    mpp
        µm per px of the maps.
    """
    import cv2

    sizes = Sizes.at(mpp)
    pieces = drop_small(label_pieces(is_nucleus(np_prob)), sizes.smallest)
    foreground = pieces > 0
    if not foreground.any():
        return np.zeros(foreground.shape, np.int32)
    energy = _energy(hv, 0, sizes.kernel, None if bounds is None else bounds[:2])
    np.maximum(energy, _energy(hv, 1, sizes.kernel, None if bounds is None else bounds[2:]), out=energy)
    energy *= foreground
    marker = foreground & (energy < ENERGY)
    np.subtract(1, energy, out=energy)
    energy *= foreground
    landscape = cv2.GaussianBlur(energy, (3, 3), 0)
    np.negative(landscape, out=landscape)
    filled = fill_small_holes(marker, max(marker.shape) if bounds is None else MAX_HOLE)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (sizes.opening, sizes.opening))
    opened = cv2.morphologyEx(filled.view(np.uint8), cv2.MORPH_OPEN, kernel)
    markers = drop_small(label_pieces(opened), sizes.smallest)
    return _renumber(_flood(landscape, markers, pieces))


def sobel_bounds(np_prob: Numbers, hv: Numbers, mpp: float = MPP) -> Bounds:
    """Extremes of the two Sobel answers over one region: what HoVer-Net would scale that region by."""
    result: list[float] = []
    kernel = Sizes.at(mpp).kernel
    for axis in (0, 1):
        answer = _sobel(hv[..., axis], axis, kernel)
        result += [float(answer.min()), float(answer.max())]
    return result[0], result[1], result[2], result[3]


def is_nucleus(np_prob: NDArray[Any]) -> NDArray[np.bool_]:
    """Where there is a nucleus, from its probability, which as uint8 is in 256ths."""
    values = np.asarray(np_prob)
    return np.asarray(values >= (round(256 * THRESHOLD) if values.dtype == np.uint8 else THRESHOLD))


def label_pieces(mask: NDArray[Any], corners: bool = False) -> Labels:
    """Number what hangs together by edges (or corners too), int32; by edges in the order of first pixels."""
    import cv2

    pixels = np.ascontiguousarray(mask).view(np.uint8)
    labels = cv2.connectedComponents(pixels, connectivity=8 if corners else 4, ltype=cv2.CV_32S)[1]
    return np.asarray(labels, np.int32)


def class_probabilities(inst: NDArray[np.integer], tp_prob: NDArray[Any], n: int) -> NDArray[np.float64]:
    """Mean probability of each class over the pixels of each of the nuclei 1..n, (n, C)."""
    from scipy import sparse

    where = np.flatnonzero(inst)
    labels = inst.reshape(-1)[where].astype(np.int32)
    values = tp_prob.reshape(-1, tp_prob.shape[-1])[where]
    values = values.astype(np.int32 if values.dtype == np.uint8 else np.float64)
    # a matrix with one 1 in each column, that of the pixel's nucleus, adds up each class
    columns = np.arange(len(labels) + 1, dtype=np.int32)
    adder = sparse.csc_array((np.ones(len(labels), values.dtype), labels, columns), shape=(n + 1, len(labels)))
    size = np.maximum(np.bincount(labels, minlength=n + 1)[1:], 1)
    return np.asarray((adder @ values)[1:] / size[:, None])


def class_of(probability: NDArray[np.float64], background: bool = True) -> NDArray[np.int64]:
    """Class id of each nucleus: the likeliest that is not background; 0 when no class has any probability.

    Parameters
    ----------
    probability : (n, C)
        As `class_probabilities`.
    background
        Whether column 0 is background.
    """
    classes = probability[:, 1:] if background else probability
    if not classes.shape[1]:
        return np.zeros(len(probability), np.int64)
    return np.where(classes.max(axis=1) > 0, classes.argmax(axis=1) + 1, 0)


def drop_small(labels: NDArray[np.integer], smallest: int) -> NDArray[np.integer]:
    """Set labels of fewer than `smallest` pixels to 0."""
    size = np.bincount(labels.ravel())
    small = size < smallest
    small[0] = False
    if not small.any():
        return labels
    lookup = np.arange(len(size), dtype=labels.dtype)
    lookup[small] = 0
    return lookup[labels]


def fill_small_holes(mask: NDArray[np.bool_], largest: int) -> NDArray[np.bool_]:
    """Fill holes whose bounding box is at most `largest` px wide and high; the array's border is no hole."""
    from scipy import ndimage

    background = label_pieces(~mask)
    height, width = mask.shape
    lookup = [False]
    for rows, columns in ndimage.find_objects(background):
        inside = rows.start > 0 and columns.start > 0 and rows.stop < height and columns.stop < width
        lookup.append(inside and rows.stop - rows.start <= largest and columns.stop - columns.start <= largest)
    return np.asarray(mask | np.array(lookup)[background]) if any(lookup) else mask


def combine_bounds(bounds: Sequence[Bounds], weights: Sequence[float]) -> Bounds | None:
    """Weighted median of the bounds of several regions; None without any."""
    if not len(bounds):
        return None
    table, weight = np.asarray(bounds, np.float64), np.asarray(weights, np.float64)
    result = []
    for column in table.T:
        order = np.argsort(column)
        total = np.cumsum(weight[order])
        result.append(float(column[order][np.searchsorted(total, total[-1] / 2)]))
    return result[0], result[1], result[2], result[3]


def _flood(
    landscape: NDArray[np.float32], markers: NDArray[np.integer], pieces: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Watershed of connected pieces; one with a single marker goes to it without flooding."""
    from skimage.segmentation import watershed

    where = np.flatnonzero(markers)
    piece, marker = pieces.reshape(-1)[where], markers.reshape(-1)[where]
    marker_of = np.zeros(int(pieces.max()) + 1, markers.dtype)
    marker_of[piece] = marker
    shared = np.zeros(len(marker_of), np.bool_)
    shared[piece[marker_of[piece] != marker]] = True
    shared[0] = False
    marker_of[0] = 0
    marker_of[shared] = 0
    result = marker_of[pieces]
    if shared.any():
        mask = shared[pieces]
        # only rows and columns that have such pieces: the flood looks at every pixel of its array
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        flooded = watershed(landscape[part], markers=markers[part], mask=mask[part])
        result[part] += flooded.astype(result.dtype)
    return result


def _sobel(values: NDArray[Any], axis: int, kernel: int) -> NDArray[np.float64]:
    import cv2

    dx, dy = (1, 0) if axis == 0 else (0, 1)
    if values.dtype != np.int16:
        values = np.asarray(values, np.float32)
    return np.asarray(cv2.Sobel(values, cv2.CV_64F, dx, dy, ksize=kernel))


def _energy(hv: NDArray[Any], axis: int, kernel: int, bounds: tuple[float, float] | None) -> NDArray[np.float32]:
    if bounds is None:
        # the filter is linear, so that this first scaling matters to the last bit only
        answer = _sobel(_unit(np.asarray(hv[..., axis], np.float32)), axis, kernel)
        return 1 - _unit(answer)
    answer = _sobel(hv[..., axis], axis, kernel)
    low, high = bounds
    np.subtract(high, answer, out=answer)
    answer *= 1 / (high - low) if high > low else 0.0
    return np.clip(answer, 0, 1, out=answer).astype(np.float32)


def _unit(values: NDArray[Any]) -> NDArray[np.float32]:
    import cv2

    scaled = cv2.normalize(values, None, alpha=0, beta=1, norm_type=cv2.NORM_MINMAX, dtype=cv2.CV_32F)
    return np.asarray(scaled)


def _renumber(labels: NDArray[np.integer]) -> Labels:
    present = np.zeros(int(labels.max(initial=0)) + 1, np.bool_)
    present[labels.reshape(-1)] = True
    present[0] = False
    lookup = np.zeros(len(present), np.int32)
    lookup[present] = np.arange(1, present.sum() + 1)
    return lookup[labels]
