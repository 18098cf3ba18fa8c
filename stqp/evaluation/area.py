"""Where nuclei count: in what was held out, covered or drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.evaluation.nuclei import Side, select
from stqp.evaluation.scores import Match
from stqp.inference.detections import in_boxes
from stqp.inference.held_out import Boxes, held_out_boxes
from stqp.inference.maps import map_stem
from stqp.polygons import Polygons


def within(found: Match, coverage: Polygons | None, box: Boxes | None, skipped: dict[str, int]) -> Match:
    """Keep the nuclei whose centres lie in the area to score."""
    table = found.overlap
    keep = np.ones(len(table.true_area), bool), np.ones(len(table.pred_area), bool)
    if coverage is not None:
        reasons = (
            "true nuclei outside of the regions drawn",
            "predicted nuclei outside of what the ST run covered, or of the regions drawn",
        )
        for mask, xy, reason in zip(keep, (table.true_xy, table.pred_xy), reasons, strict=True):
            mask &= covered(xy, coverage)
            if number := int((~mask).sum()):
                skipped[reason] = skipped.get(reason, 0) + number
    if box is not None:
        for mask, xy in zip(keep, (table.true_xy, table.pred_xy), strict=True):
            mask &= in_boxes(xy, box)
    return found if all(mask.all() for mask in keep) else select(found, *keep)


def covered(xy: NDArray[np.float64], coverage: Polygons) -> NDArray[np.bool_]:
    """Whether each point lies in an area."""
    import shapely

    area = shapely.union_all(coverage.to_shapely())
    shapely.prepare(area)
    return np.asarray(shapely.contains_xy(area, xy[:, 0], xy[:, 1]), bool)


def area_mm2(truth: Side, box: Boxes | None, mpp: float) -> float:
    """Area that is scored: of the boxes and the coverage, or of the image."""
    import shapely

    shapes: list[Any] = []
    if truth.size is not None:
        shapes.append(shapely.box(0, 0, *truth.size))
    if truth.coverage is not None:
        shapes.append(shapely.union_all(shapely.make_valid(truth.coverage.to_shapely())))
    if box is not None:
        shapes.append(shapely.union_all([shapely.box(b[0], b[1], b[2], b[3]) for b in box]))
    if not shapes:
        return float("nan")
    return float(shapely.area(shapely.intersection_all(shapes)) * mpp**2 / 1e6)


def boxes_of(run: Path) -> dict[str, Boxes]:
    """Held-out boxes by the names of images and by the stems of their maps."""
    found = held_out_boxes(run)
    boxes: dict[str, Boxes] = dict(found)
    for image, its in found.items():
        if map_stem(image) != image:
            boxes.setdefault(map_stem(image), []).extend(its)
    return boxes
