"""Which label is whose: the join of a file of labels to the cells and nuclei of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.sources.labels import NUCLEUS_COLUMN, Labels, clean

Objects = NDArray[np.object_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_CONFLICTS = 0.01  # of the cells; more is no slip but a wrong file
FEW_MATCH = 0.5  # of the run's cells; with less, the user hears why
_SAMPLE = 20_000  # ids looked at for the reasons


@dataclass(frozen=True)
class Assigned:
    """Labels in the order of the cells and of the nuclei, with what did not fit.

    Attributes
    ----------
    cells : object (c,)
        None where the file has no label for the cell.
    nuclei : object (n,)
    confidence : float64 (n,)
    skipped : dict
        Reason to number.
    warnings : list of str
        What the user should look at.
    """

    cells: Objects
    nuclei: Objects
    confidence: Floats
    skipped: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def assign(labels: Labels, cell_ids: Objects, nucleus_cell: Ints, nucleus_label_id: Ints) -> Assigned:
    """Give each cell and nucleus its label.

    Parameters
    ----------
    labels
        From `read_labels`.
    cell_ids : object (c,)
        Of the run.
    nucleus_cell : int64 (n,)
        Row of each nucleus's cell.
    nucleus_label_id : int64 (n,)
        The run's own number of each nucleus.

    Raises
    ------
    InputError
        When no id is of this run, or many cells have two labels.
    """
    import pandas as pd

    cells = pd.Index(cell_ids)
    ids, names, confidence, numbers = labels.ids, labels.labels, labels.confidence, labels.label_ids
    if labels.columns[0] in cells:  # no header: the first row is data, too
        ids, names = np.r_[[labels.columns[0]], ids].astype(object), np.r_[clean([labels.columns[1]]), names]
        confidence = np.r_[np.nan, confidence]
    row = np.asarray(cells.get_indexer(pd.Index(ids)), dtype=np.int64)
    if (row < 0).all():
        raise InputError(
            f"the labels {labels.path} are for other cells: none of its ids (first: {ids[0] if len(ids) else None!r}) "
            f"is among the run's (first: {cell_ids[0]!r}); {likeliest(ids, cell_ids)}"
        )
    warnings = []
    covered = len(np.unique(row[row >= 0]))
    others = int((row < 0).sum())
    if covered < FEW_MATCH * len(cell_ids) and others > covered:
        warnings.append(
            f"{labels.path} has labels for {covered} of the run's {len(cell_ids)} cells, and {others} for others; "
            + likeliest(ids[row < 0], cell_ids)
        )
    skipped = {"labels for cells that the run lacks": int((row < 0).sum())}
    known = row >= 0
    row, names, confidence = row[known], names[known], confidence[known]
    n = len(nucleus_cell)
    if numbers is not None:
        numbers = numbers[known]
        if (nucleus_label_id < 0).all():
            raise InputError(
                f"{labels.path} has labels by nucleus ({NUCLEUS_COLUMN}), but the run does not number its nuclei"
            )
        nuclei = pd.Index(nucleus_label_id)
        place = np.asarray(nuclei.get_indexer(pd.Index(numbers)), dtype=np.int64)
        fits = (place >= 0) & (nucleus_cell[np.maximum(place, 0)] == row)
        skipped["labels for nuclei that the run lacks"] = int((~fits).sum())
        of_nucleus, sure, conflicts = _by_place(place[fits], names[fits], confidence[fits], n)
        _refuse_many(conflicts, n, "nuclei", labels.path)
        skipped["nuclei with two different labels (now Unknown)"] = conflicts
        of_cell = np.full(len(cell_ids), None, object)
        of_cell[nucleus_cell[::-1]] = of_nucleus[::-1]  # a cell takes the label of its first nucleus
        return Assigned(of_cell, of_nucleus, sure, {k: v for k, v in skipped.items() if v}, warnings)
    of_cell, sure, conflicts = _by_place(row, names, confidence, len(cell_ids))
    _refuse_many(conflicts, len(cell_ids), "cells", labels.path)
    skipped["cells with two different labels (now Unknown)"] = conflicts
    return Assigned(
        of_cell, of_cell[nucleus_cell], sure[nucleus_cell], {k: v for k, v in skipped.items() if v}, warnings
    )


def _by_place(place: Ints, names: Objects, confidence: Floats, size: int) -> tuple[Objects, Floats, int]:
    """Label by place; a place with two different labels has none and is counted."""
    label, sure = np.full(size, None, object), np.full(size, np.nan)
    label[place[::-1]], sure[place[::-1]] = names[::-1], confidence[::-1]
    differs = np.unique(place[label[place] != names])
    label[differs], sure[differs] = None, np.nan
    return label, sure, len(differs)


def _refuse_many(conflicts: int, of: int, what: str, path: Path) -> None:
    if conflicts > max(1, MAX_CONFLICTS * of):
        raise InputError(
            f"{path} gives {conflicts} of {of} {what} two different labels; expected one each: "
            "does it hold several samples or several clusterings?"
        )


def likeliest(ids: Objects, cell_ids: Objects) -> str:
    """Say why ids are not the run's: three reasons, the likeliest first.

    Each is tried: the share of the ids that would be the run's if it were so decides the order.

    Parameters
    ----------
    ids : object (k,)
        That did not match.
    cell_ids : object (c,)
        Of the run.
    """
    given, own = [str(i) for i in ids[:_SAMPLE]], {str(i) for i in cell_ids}
    bare = {re.sub(r"-\d+$", "", i) for i in own}
    some = str(cell_ids[0]) if len(cell_ids) else ""
    rows = {*range(len(cell_ids) + 1)}

    def suffix(text: str) -> bool:
        return re.sub(r"-\d+$", "", text) in bare

    def decimals(text: str) -> bool:
        return re.fullmatch(r"\d+\.0+", text) is not None and text.split(".")[0] in own

    def number(text: str) -> bool:
        return not some.isdigit() and text.isdigit() and int(text) in rows

    def prefix(text: str) -> bool:
        parts = {*re.split(r"[_:.]", text), *re.findall(r"[a-p]{8}-\d+", text)}
        return not decimals(text) and not own.isdisjoint(parts - {text})

    def other_version(text: str) -> bool:
        return some.isdigit() and re.fullmatch(r"[a-p]{8}-\d+", text) is not None

    tests = {
        "the ids differ by their suffix (-1): write them as the run does": suffix,
        "these are row numbers or integer ids, the run has text ids": number,
        "the ids carry a sample's name besides the run's id: remove it": prefix,
        "the integer ids were written with decimals": decimals,
        "the ids are of a run of version 1.3 or later, this one has integers": other_version,
    }
    shares = {reason: sum(map(test, given)) / max(len(given), 1) for reason, test in tests.items()}
    # what nothing else explains
    shares["they are of another run, region or segmentation"] = 0.05
    ranked = sorted(shares, key=lambda reason: -shares[reason])[:3]
    return f"likely {ranked[0]}; otherwise {ranked[1]}, or {ranked[2]}"
