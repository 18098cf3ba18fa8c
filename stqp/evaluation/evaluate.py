"""Predicted nuclei against the truth: folders of instance maps, or images of QuPath projects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.evaluation import overlap, scores
from stqp.inference.held_out import Boxes, held_out_boxes
from stqp.inference.maps import InstanceMap, list_maps, map_stem, name_of, read_class_names, read_map
from stqp.taxonomy import UNKNOWN

logger = logging.getLogger(__name__)
MPP = 0.25

Progress = Callable[[int, int], None]


def evaluate_maps(
    true_folder: Path,
    pred_folder: Path,
    mpp: float = MPP,
    *,
    held_out: Path | None = None,
    bootstrap: int = 1000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a folder of predicted instance maps.

    Parameters
    ----------
    true_folder, pred_folder
        Files of the same stems, as `stqp.inference.maps.read_map` reads them. Classes are matched by
        name; where one side has no names, its numbers are taken in the other side's order, and where neither
        has, the numbers are the names.
    mpp
        µm per px of the maps.
    held_out
        A training run: only nuclei whose centres lie in its held-out boxes count.
    bootstrap
        Resamples for the intervals.
    progress
        Called with the images done and their number.

    Returns
    -------
    dict
        As `scores.summarise`, with ``mpp``.

    Raises
    ------
    InputError
        When an image is missing on one side, or a file is not what it should be.
    """
    true_files, pred_files = list_maps(true_folder), list_maps(pred_folder)
    boxes = None if held_out is None else _boxes_by_stem(held_out)
    if boxes is not None:
        true_files = _restrict(true_files, boxes, true_folder, held_out)
        pred_files = {k: v for k, v in pred_files.items() if k in true_files}
    _same_stems(true_files, pred_files, true_folder, pred_folder)
    names = read_class_names(true_folder), read_class_names(pred_folder)
    pairs: dict[str, tuple[overlap.Overlap, list[str], list[str]]] = {}
    for done, stem in enumerate(sorted(true_files)):
        true, pred = read_map(true_files[stem], names[0]), read_map(pred_files[stem], names[1])
        if true.inst.shape != pred.inst.shape:
            raise InputError(
                f"{true_files[stem]} has {true.inst.shape} px and {pred_files[stem]} has {pred.inst.shape}; "
                "expected maps of one image"
            )
        table = overlap.from_maps(true.inst, pred.inst, true.types, pred.types, true.ids, pred.ids)
        if boxes is not None:
            table = table.within(boxes[stem])
        pairs[stem] = (table, *_names(true, pred, table))
        if progress:
            progress(done + 1, len(true_files))
    return score_tables(pairs, mpp, bootstrap)


def score_tables(
    tables: Mapping[str, tuple[overlap.Overlap, Sequence[str], Sequence[str]]],
    mpp: float | Mapping[str, float],
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Score the tables of several images.

    Parameters
    ----------
    tables
        By image: the table, and the class name of each true and each predicted nucleus.
    mpp
        µm per px of the tables' centres, one for all or by image.
    bootstrap
        Resamples for the intervals.

    Returns
    -------
    dict
        As `scores.summarise`, with ``mpp``.
    """
    from dataclasses import replace

    from stqp.taxonomy import ordered

    true_names = {n for _, true, _ in tables.values() for n in true} - {UNKNOWN}
    pred_names = {n for _, _, pred in tables.values() for n in pred} - {UNKNOWN}
    classes = _in_order(true_names, ordered)
    classes += [n for n in _in_order(pred_names, ordered) if n not in true_names]
    number = {UNKNOWN: 0, **{name: i for i, name in enumerate(classes, start=1)}}
    counted = {}
    for image, (table, true, pred) in tables.items():
        typed = replace(table, true_types=_numbers(true, number), pred_types=_numbers(pred, number))
        counted[image] = scores.count(typed, mpp if isinstance(mpp, (int, float)) else mpp[image], len(classes))
    result = scores.summarise(counted, classes, bootstrap)
    return {"mpp": mpp if isinstance(mpp, (int, float)) else dict(mpp), **result}


def _boxes_by_stem(run: Path) -> dict[str, Boxes]:
    boxes: dict[str, Boxes] = {}
    for image, its in held_out_boxes(run).items():
        boxes.setdefault(map_stem(image), []).extend(its)
    return boxes


def _restrict(found: dict[str, Path], boxes: Mapping[str, Boxes], folder: Path, run: Path | None) -> dict[str, Path]:
    kept = {stem: path for stem, path in found.items() if stem in boxes}
    if not kept:
        raise InputError(f"no map in {folder} is of an image that {run} held out; those are {', '.join(sorted(boxes))}")
    return kept


def _same_stems(true: Mapping[str, Path], pred: Mapping[str, Path], true_folder: Path, pred_folder: Path) -> None:
    for here, there, folder in ((true, pred, pred_folder), (pred, true, true_folder)):
        if missing := sorted(set(here) - set(there)):
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            raise InputError(
                f"expected maps of the same images, found none in {folder} for {', '.join(missing[:10])}{more}"
            )


def _names(true: InstanceMap, pred: InstanceMap, table: overlap.Overlap) -> tuple[list[str], list[str]]:
    true_classes, pred_classes = true.classes or pred.classes, pred.classes or true.classes
    return (
        [name_of(t, true_classes) for t in table.true_types.tolist()],
        [name_of(t, pred_classes) for t in table.pred_types.tolist()],
    )


def _in_order(names: set[str], ordered: Callable[[set[str]], list[str]]) -> list[str]:
    """Numbers by their value, names by the taxonomy."""
    if all(n.isdigit() for n in names):
        return sorted(names, key=int)
    return ordered(names)


def _numbers(names: Sequence[str], number: Mapping[str, int]) -> NDArray[np.int64]:
    return np.array([number.get(n, 0) for n in names], np.int64)
