"""The nuclei of one side of an image, whatever they were stored as, and the table of two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.evaluation import boundary, overlap
from stqp.evaluation.scores import Match, match
from stqp.polygons import Polygons
from stqp.taxonomy import UNKNOWN

Floats = NDArray[np.float64]
Names = NDArray[np.object_]
MPP = 0.25
"""µm per px where nothing says it: the datasets of the field are at 40x."""
_SAME = 0.01  # µm/px that differ by less are the same


@dataclass(frozen=True)
class Side:
    """True or predicted nuclei of one image: a map, outlines or centres.

    Attributes
    ----------
    source : str
        Where they are from, for messages.
    classes : object (n,)
        Class names; `UNKNOWN` where the class is not known.
    inst : integer (height, width) or None
        Instance map; the nuclei are its ids in ascending order.
    polygons : Polygons or None
        Outlines in px.
    points : float64 (n, 2) or None
        Centres in px.
    probability : float64 (n,) or None
        Of the named class; NaN where there is none.
    mpp : float or None
        µm per px, None when the source does not say.
    size : (int, int) or None
        Width and height of the image in px.
    coverage : Polygons or None
        The area to score; None for all.
    image : Path or None
        File of the H&E.
    pixels : uint8 (height, width, 3) or None
        The H&E itself, where it is in no file of its own.
    about : dict
        Text by key: organ, slide, patient.
    skipped : dict
        Objects that were no nuclei, by reason.
    """

    source: str
    classes: Names
    inst: NDArray[np.integer] | None = None
    polygons: Polygons | None = None
    points: Floats | None = None
    probability: Floats | None = None
    mpp: float | None = None
    size: tuple[int, int] | None = None
    coverage: Polygons | None = None
    image: Path | None = None
    pixels: NDArray[np.uint8] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the nuclei."""
        return len(self.classes)

    def check(self) -> Side:
        """Raise `InputError` for probabilities that are none."""
        if self.probability is not None:
            bad = (self.probability < 0) | (self.probability > 1)
            if number := int(bad.sum()):
                raise InputError(
                    f"expected probabilities from 0 to 1 in {self.source}, found {self.probability[bad][0]:g} "
                    f"and others ({number} of {len(self)} nuclei)"
                )
        return self

    def outlines(self) -> tuple[Polygons, NDArray[np.int64]]:
        """Outlines for pictures, and the nucleus of each."""
        if self.polygons is not None:
            return self.polygons, np.arange(len(self))
        if self.inst is not None:
            from stqp.polygonise import polygonise

            polygons, ids = polygonise(self.inst)
            present = np.unique(self.inst)
            return polygons, np.searchsorted(present[present > 0], ids)
        return _discs(np.empty((0, 2)) if self.points is None else self.points), np.arange(len(self))


def _discs(points: Floats, radius: float = 6.0) -> Polygons:
    """Small octagons that stand for points."""
    turn = np.arange(8) * np.pi / 4
    ring = np.c_[np.cos(turn), np.sin(turn)] * radius
    return Polygons.from_rings((points[:, None] + ring[None]).reshape(-1, 2), np.arange(len(points) + 1) * 8)


def common_mpp(true: Side, pred: Side, given: float | None, default: float | None = MPP) -> float:
    """µm per px of both sides.

    Raises
    ------
    InputError
        When they differ, or nobody says it.
    """
    if true.mpp and pred.mpp and abs(true.mpp / pred.mpp - 1) > _SAME:
        raise InputError(
            f"expected truth and prediction at one µm per px, found {true.mpp:g} in {true.source} and "
            f"{pred.mpp:g} in {pred.source}; bring one to the other's pixels"
        )
    said = true.mpp or pred.mpp
    if given and said and abs(given / said - 1) > _SAME:
        raise InputError(f"--mpp says {given:g} µm per px, {true.source} says {said:g}; leave --mpp out")
    mpp = said or given or default
    if not mpp:
        raise InputError(f"the image {true.source} does not say its µm per pixel; give it with --mpp")
    return mpp


def compare_sides(true: Side, pred: Side, mpp: float, boundaries: bool = True) -> Match:
    """Match the nuclei of two sides of an image.

    Outlines are drawn at the image's pixels, finer where those are coarser than 0.25 µm; where one side is a
    map, at its pixels. Where one side has centres alone, only detection and typing can be scored.

    Parameters
    ----------
    true, pred
        The sides. Types are set to 0; see `typed`.
    mpp
        µm per px.
    boundaries
        Whether to measure how far boundaries lie apart.

    Raises
    ------
    InputError
        When maps differ in size.
    """
    if true.points is not None or pred.points is not None:
        table = overlap.from_points(_centres(true), _centres(pred), np.zeros(len(true)), np.zeros(len(pred)))
        return match(_with_probability(table, pred), mpp)
    if true.inst is None and pred.inst is None:
        assert true.polygons is not None and pred.polygons is not None
        if true.size and pred.size and true.size != pred.size:
            raise _sizes_differ(true, pred, true.size, pred.size)
        scale = max(1.0, mpp / MPP)
        table = overlap.from_polygons(true.polygons, pred.polygons, np.zeros(len(true)), np.zeros(len(pred)), scale)
        found = match(_with_probability(table, pred), mpp)
        return boundary.of_polygons(found, true.polygons, pred.polygons, scale) if boundaries else found
    shape = next(s.inst.shape for s in (true, pred) if s.inst is not None)
    maps = []
    for side in (true, pred):
        if side.inst is not None:
            maps.append(side.inst)
        else:
            assert side.polygons is not None
            if side.size and side.size != shape[::-1]:
                raise _sizes_differ(true, pred, shape[::-1], side.size)
            maps.append(side.polygons.rasterize(shape))
    if maps[0].shape != maps[1].shape:
        raise _sizes_differ(true, pred, maps[0].shape[::-1], maps[1].shape[::-1])
    table = overlap.from_maps(maps[0], maps[1])
    table = replace(table, **_positions(table, true, pred))
    found = match(_with_probability(table, pred), mpp)
    if not boundaries:
        return found
    by_maps = replace(found, overlap=overlap.from_maps(maps[0], maps[1]))
    return replace(found, boundary=boundary.of_maps(by_maps, maps[0], maps[1]).boundary)


def _positions(table: overlap.Overlap, true: Side, pred: Side) -> dict[str, Any]:
    """Ids as positions + 1 of the side's nuclei, as tables of polygons have them."""
    result = {}
    for side, name in ((true, "true_ids"), (pred, "pred_ids")):
        ids = getattr(table, name)
        result[name] = np.arange(1, len(ids) + 1) if side.inst is not None else ids
    return result


def _centres(side: Side) -> Floats:
    if side.points is not None:
        return side.points
    if side.polygons is not None:
        return side.polygons.centroid()
    assert side.inst is not None
    return overlap.from_maps(side.inst, np.zeros_like(side.inst)).true_xy


def _with_probability(table: overlap.Overlap, pred: Side) -> overlap.Overlap:
    if pred.probability is None:
        return table
    return replace(table, pred_probability=pred.probability[table.pred_ids - 1])


def _sizes_differ(true: Side, pred: Side, a: tuple[int, ...], b: tuple[int, ...]) -> InputError:
    ratio = a[0] / b[0] if b[0] else 0
    scaled = abs(ratio - a[1] / max(b[1], 1)) < 0.01
    hint = "; they look like the same image at other µm per px" if scaled and ratio != 1 else ""
    return InputError(
        f"expected maps of one image, found {a[0]} x {a[1]} px in {true.source} and {b[0]} x {b[1]} px in "
        f"{pred.source}{hint}"
    )


def typed(found: Match, true: Side, pred: Side, classes: Sequence[str]) -> Match:
    """Give the nuclei of a match their class numbers, 1.. in the order of `classes`; others are Unknown."""
    number = {name: i for i, name in enumerate(classes, start=1)}

    def numbers(side: Side, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        names, inverse = np.unique(side.classes.astype(str), return_inverse=True)
        of_name = np.array([number.get(n, 0) for n in names.tolist()], np.int64)
        return of_name[inverse.reshape(-1)][ids - 1] if len(names) else np.empty(0, np.int64)

    table = found.overlap
    return replace(
        found,
        overlap=replace(table, true_types=numbers(true, table.true_ids), pred_types=numbers(pred, table.pred_ids)),
    )


def select(found: Match, true_mask: NDArray[np.bool_], pred_mask: NDArray[np.bool_]) -> Match:
    """Keep some of the nuclei of a match, and match them anew by their centres."""
    table = found.overlap
    kept = match(table.select(true_mask, pred_mask), found.mpp)
    if found.boundary is None:
        return kept
    pairs = true_mask[table.true_index[found.good]] & pred_mask[table.pred_index[found.good]]
    return replace(kept, boundary=found.boundary[pairs])


def map_names(side: Side, class_map: Mapping[str, str]) -> tuple[Side, int]:
    """Give the nuclei the classes that a map has for theirs; and how many became Unknown.

    A class that the map lacks stays when it is one that the map leads to, and is Unknown otherwise.
    """
    targets = set(class_map.values())
    names, inverse = np.unique(side.classes.astype(str), return_inverse=True)
    mapped = [class_map.get(n, n if n in targets else UNKNOWN) for n in names.tolist()]
    lost = np.array([m == UNKNOWN and n != UNKNOWN for m, n in zip(mapped, names.tolist(), strict=True)], bool)
    inverse = inverse.reshape(-1)
    classes = np.array([*mapped, None], object)[:-1][inverse] if len(names) else side.classes
    return replace(side, classes=classes), int(lost[inverse].sum()) if len(names) else 0
