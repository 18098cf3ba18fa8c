"""What several test files need."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons


def real_folder() -> Path | None:
    """Folder of the real data, None where it is not there."""
    value = os.environ.get("STQP_REAL_DATA")
    return Path(value) if value and Path(value).is_dir() else None


def best_iou(polygons: Polygons, instances: NDArray[np.integer]) -> NDArray[np.float64]:
    """Largest intersection over union of each polygon with any instance of a label image."""
    height, width = instances.shape
    owner, row, start, stop = polygons.spans()
    start, stop = np.clip(start, 0, width), np.clip(stop, 0, width)
    keep = (row >= 0) & (row < height) & (stop > start)
    owner, row, start, stop = owner[keep], row[keep], start[keep], stop[keep]
    lengths = stop - start
    column = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(start, lengths)
    pixel_owner = np.repeat(owner, lengths)
    seen = instances[np.repeat(row, lengths), column].astype(np.int64)
    sizes = np.bincount(instances.ravel())
    own = np.bincount(pixel_owner, minlength=len(polygons))
    pair, common = np.unique(pixel_owner * (len(sizes) + 1) + seen, return_counts=True)
    polygon, label = pair // (len(sizes) + 1), pair % (len(sizes) + 1)
    hit = label > 0
    polygon, label, common = polygon[hit], label[hit], common[hit]
    result = np.zeros(len(polygons))
    np.maximum.at(result, polygon, common / (own[polygon] + sizes[label] - common))
    return result
