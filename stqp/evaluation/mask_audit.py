"""Masks of an ST run against those of a network, field by field: where the two disagree, one of them is wrong.

STHELAR (Giraud-Sauveur et al. 2025, bioRxiv 2025.07.11.664123) keeps its patches by the Dice, the Jaccard index and
the panoptic quality between Xenium's nuclei and those of a pretrained network; a low value means a bad alignment, a
damaged section or nuclei that the stain does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.evaluation.counts import ratio
from stqp.evaluation.drops import USED, Drops
from stqp.evaluation.evaluate import Evaluation
from stqp.evaluation.scores import count_match
from stqp.polygons import Polygons
from stqp.qupath.objects import PathObjects
from stqp.taxonomy import UNKNOWN

FIELD_UM = 64.0  # 256 px at 0.25 µm/px, as STHELAR's patches
SCORES = ("dice", "jaccard", "pq")


@dataclass(frozen=True)
class FieldTable:
    """Fields with their agreement, columns.

    Attributes
    ----------
    image : object (n,)
    box : float64 (n, 4)
        x0, y0, x1, y1 in full-resolution px.
    scores : dict of float64 (n,)
        ``dice``, ``jaccard``, ``pq``, NaN without any nucleus.
    nuclei : int64 (n, classes + 1)
        Of the ST run, by class; 0 is Unknown.
    found : int64 (n,)
        Of the network.
    classes : list of str
    """

    image: NDArray[np.object_]
    box: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]
    nuclei: NDArray[np.int64]
    found: NDArray[np.int64]
    classes: list[str]

    def below(self, score: str, least: float) -> NDArray[np.bool_]:
        """Fields that a filter would drop."""
        return np.nan_to_num(self.scores[score]) < least

    def drops(self, score: str, least: float) -> Drops:
        """Nuclei of each class that the filter would drop."""
        bad = self.below(score, least)
        reason = f"in fields with a {score} below {least:g}"
        counts: dict[str, dict[str, int]] = {}
        for i, name in enumerate([UNKNOWN, *self.classes]):
            if total := int(self.nuclei[:, i].sum()):
                lost = int(self.nuclei[bad, i].sum())
                counts[name] = {USED: total - lost, reason: lost}
        return Drops(counts, "fields")

    def rows(self) -> list[dict[str, Any]]:
        """A row a field, the worst first."""
        order = np.argsort(np.nan_to_num(self.scores["dice"]), kind="stable")
        return [
            {
                "image": self.image[i],
                **dict(zip(("x0", "y0", "x1", "y1"), np.round(self.box[i], 2).tolist(), strict=True)),
                "st_nuclei": int(self.nuclei[i].sum()),
                "found_nuclei": int(self.found[i]),
                **{name: float(values[i]) for name, values in self.scores.items()},
            }
            for i in order
        ]

    def as_objects(self, image: str, score: str, least: float) -> PathObjects:
        """Fields of an image that a filter would drop, as annotations of the class Ignore."""
        chosen = np.flatnonzero(self.below(score, least) & (self.image == image))
        x0, y0, x1, y1 = self.box[chosen].T
        corners = np.stack([np.c_[x0, y0], np.c_[x1, y0], np.c_[x1, y1], np.c_[x0, y1]], axis=1).reshape(-1, 2)
        polygons = Polygons.from_rings(corners, np.arange(len(chosen) + 1) * 4)
        measured = {f"ST agreement: {name}": values[chosen] for name, values in self.scores.items()}
        return PathObjects.build(polygons, classes="Ignore", measurements=measured)


def field_table(evaluation: Evaluation, prediction: str, side_um: float = FIELD_UM) -> FieldTable:
    """Agreement of the truth (the ST run's nuclei) with a prediction (a network's), field by field."""
    images: list[str] = []
    boxes, scores, nuclei, found = [], [], [], []
    k = len(evaluation.classes)
    for image in evaluation.images:
        matched = image.matches[prediction]
        table, side = matched.overlap, side_um / image.mpp
        cells = np.floor(np.concatenate([table.true_xy, table.pred_xy]) / side).astype(np.int64)
        if not len(cells):
            continue
        corners, place = np.unique(cells, axis=0, return_inverse=True)
        place = place.reshape(-1)
        n = len(table.true_area)
        counts = count_match(matched, k, (place[:n], place[n:], len(corners)))
        shared, true, pred = counts.pixels.T
        measures = counts.measures()
        scores.append(np.c_[measures["dice"], ratio(shared, true + pred - shared), measures["pq"]])
        boxes.append(np.c_[corners * side, (corners + 1) * side])
        nuclei.append(counts.n_true.astype(np.int64))
        found.append(counts.n_pred.sum(axis=1).astype(np.int64))
        images += [image.name] * len(corners)
    every = np.concatenate(scores) if scores else np.zeros((0, 3))
    return FieldTable(
        np.array([*images, None], object)[:-1],
        np.concatenate(boxes) if boxes else np.zeros((0, 4)),
        dict(zip(SCORES, every.T, strict=True)),
        np.concatenate(nuclei) if nuclei else np.zeros((0, k + 1), np.int64),
        np.concatenate(found) if found else np.zeros(0, np.int64),
        evaluation.classes,
    )
