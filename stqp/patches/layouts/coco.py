"""Nuclei as annotations of COCO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygonise import polygonise


def categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    """Categories: 0 for a nucleus of unknown class, then the classes by their numbers."""
    names = ["Unknown", *classes]
    return [{"id": i, "name": name, "supercategory": "nucleus"} for i, name in enumerate(names)]


def nuclei_annotations(
    instances: NDArray[np.int32], types: NDArray[np.uint8], image: int, start: int
) -> list[dict[str, Any]]:
    """Annotations of the nuclei of one image.

    The outline of a nucleus runs along the edges of its pixels; one with a hole or of several parts, which that
    outline cannot tell, is run-length encoded.

    Parameters
    ----------
    instances : int32 (h, w)
    types : uint8 (h, w)
    image
        Id of the image.
    start
        Id of the first annotation.
    """
    polygons, ids = polygonise(instances)
    bounds, outlined = polygons.bounds(), polygons.area()
    present, first, area = np.unique(instances, return_index=True, return_counts=True)
    kinds = types.reshape(-1)[first]
    result = []
    for i, number in enumerate(ids.tolist()):
        at = int(np.searchsorted(present, number))
        ring = polygons.coords[polygons.ring_offsets[i] : polygons.ring_offsets[i + 1]]
        segmentation: Any = [ring.reshape(-1).tolist()]
        x0, y0, x1, y1 = bounds[i].tolist()
        if outlined[i] != area[at]:
            mask = instances == number
            segmentation = run_lengths(mask)
            rows, columns = np.nonzero(mask)
            x0, y0, x1, y1 = (float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        result.append(
            {
                "id": start + i,
                "image_id": image,
                "category_id": int(kinds[at]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(area[at]),
                "iscrowd": 0,
                "segmentation": segmentation,
            }
        )
    return result


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Uncompressed run lengths of a mask, down its columns, the first of zeros."""
    flat = np.concatenate([[False], mask.reshape(-1, order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    if mask.size in edges:  # ends in the mask
        counts = counts[:-1]
    return {"size": [*mask.shape], "counts": counts.tolist()}
