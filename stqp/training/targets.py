"""Targets of HoVer-Net from an instance map: where nuclei are, and how far from their centres."""

import math

import numpy as np
from numpy.typing import NDArray

SMALLEST = 30
"""Pixels at 0.25 µm/px; a nucleus with less in the crop gets no hv target, as its authors have it."""


def hv_map(instances: NDArray[np.integer], mpp: float = 0.25) -> NDArray[np.float32]:
    """Horizontal and vertical distances to the centre of mass of each nucleus.

    Each side of the centre is scaled by its own extreme to [-1, 0] and [0, 1] (Graham et al. 2019, 2.2).

    Parameters
    ----------
    instances : int (H, W)
        0 is background; ids need not be consecutive.
    mpp
        µm per px. At coarser than 0.25 fewer pixels are enough for a nucleus, as for post-processing.

    Returns
    -------
    float32 (2, H, W)
        Channel 0 runs along x, channel 1 along y.
    """
    result = np.zeros((2, *instances.shape), np.float32)
    rows, columns = np.nonzero(instances)
    if not len(rows):
        return result
    _, index, counts = np.unique(instances[rows, columns], return_inverse=True, return_counts=True)
    for channel, position in ((0, columns), (1, rows)):
        # the authors round the centre down to a pixel; so the centre pixel is exactly 0
        centre = np.floor(np.bincount(index, position) / counts + 0.5)
        distance = position - centre[index]
        low, high = np.zeros(len(counts)), np.zeros(len(counts))
        np.minimum.at(low, index, distance)
        np.maximum.at(high, index, distance)
        scale = np.where(distance < 0, -low[index], high[index])
        result[channel, rows, columns] = distance / np.where(scale == 0, 1, scale)
    small = counts < math.ceil(SMALLEST * min(1.0, 0.25 / mpp) ** 2)
    if small.any():
        lost = small[index]
        result[:, rows[lost], columns[lost]] = 0
    return result


def split_touching_border(instances: NDArray[np.integer]) -> NDArray[np.int32]:
    """Give each connected piece of an id an id of its own, as a crop or a mirror can cut a nucleus in two."""
    from skimage.measure import label

    return label(instances, background=0, connectivity=2).astype(np.int32)
