"""Where a prediction is worst: fields of an image, and what became of each nucleus in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.evaluation.counts import Floats
from stqp.evaluation.evaluate import Evaluation, Image
from stqp.evaluation.scores import Match, count_match

FIELD_UM = 125.0
FOUND, SHAPE, CLASS, MISSED, SPURIOUS, PREDICTED = (
    "found",
    "found, outline off",
    "found, other class",
    "missed",
    "spurious",
    "its prediction",
)
"""States of nuclei: true ones are the first four, predicted ones the last two."""
_FEWEST = 10  # true and predicted nuclei of a field that says something


@dataclass(frozen=True)
class Field:
    """A part of an image.

    Attributes
    ----------
    image : Image
        The image.
    box : tuple of float
        x0, y0, x1, y1 in px.
    scores : dict of float
        ``pq``, ``f_d``, ``type_accuracy``, and the numbers ``true``, ``predicted``, ``missed``, ``spurious``.
    """

    image: Image
    box: tuple[float, float, float, float]
    scores: dict[str, float]

    @property
    def rank(self) -> float:
        """Low where the prediction is bad: PQ, or F_d where there are no outlines."""
        return self.scores["f_d"] if np.isnan(self.scores["pq"]) else self.scores["pq"]


def worst_fields(evaluation: Evaluation, prediction: str, most: int, side_um: float = FIELD_UM) -> list[Field]:
    """Fields with the lowest panoptic quality first; those with few nuclei are left out unless all have few.

    Parameters
    ----------
    evaluation
        The matched nuclei.
    prediction
        Whose.
    most
        At most so many, and of one image at most a third of them where there are others.
    side_um
        Side of a field in µm.
    """
    fields = [f for image in evaluation.images for f in fields_of(image, prediction, len(evaluation.classes), side_um)]
    crowded = [f for f in fields if f.scores["true"] + f.scores["predicted"] >= _FEWEST]
    ranked = sorted(crowded or fields, key=lambda f: (f.rank, -f.scores["true"]))
    share = most if len(evaluation.images) < 3 else max(1, -(-most // 3))
    chosen: list[Field] = []
    taken: dict[str, int] = {}
    for field in ranked:
        if len(chosen) < most and taken.get(field.image.name, 0) < share:
            chosen.append(field)
            taken[field.image.name] = taken.get(field.image.name, 0) + 1
    return chosen


def fields_of(image: Image, prediction: str, n_classes: int, side_um: float = FIELD_UM) -> list[Field]:
    """Fields of an image that hold nuclei, with their scores."""
    found = image.matches[prediction]
    table, side = found.overlap, side_um / image.mpp
    cells = [np.floor(xy / side).astype(np.int64) for xy in (table.true_xy, table.pred_xy)]
    every = np.concatenate(cells)
    if not len(every):
        return []
    corners, place = np.unique(every, axis=0, return_inverse=True)
    place = place.reshape(-1)
    group = place[: len(cells[0])], place[len(cells[0]) :], len(corners)
    counts = count_match(found, n_classes, group)
    measures = counts.measures()
    numbers = {
        "true": counts.n_true.sum(axis=1),
        "predicted": counts.n_pred.sum(axis=1),
        "missed": counts.unpaired_true.sum(axis=1),
        "spurious": counts.unpaired_pred.sum(axis=1),
    }
    columns: dict[str, Floats] = {**{k: measures[k] for k in ("pq", "f_d", "type_accuracy")}, **numbers}
    return [
        Field(
            image,
            (x * side, y * side, (x + 1) * side, (y + 1) * side),
            {name: float(values[i]) for name, values in columns.items()},
        )
        for i, (x, y) in enumerate(corners.tolist())
    ]


def states(found: Match) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """What became of each true and each predicted nucleus of the table, by the names above."""
    table = found.overlap
    true = np.full(len(table.true_area), MISSED, object)
    pred = np.full(len(table.pred_area), SPURIOUS, object)
    i, j = found.true, found.pred
    m = len(table.pred_area)
    outlined = np.isin(i * m + j, table.true_index[found.good] * m + table.pred_index[found.good])
    has_area = (table.true_area[i] > 0) & (table.pred_area[j] > 0)
    known = table.true_types[i] > 0
    wrong = known & (table.true_types[i] != table.pred_types[j]) & bool((table.pred_types > 0).any())
    state = np.full(len(i), FOUND, object)
    state[has_area & ~outlined] = SHAPE
    state[wrong] = CLASS
    true[i], pred[j] = state, PREDICTED
    return true, pred
