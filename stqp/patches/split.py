"""Which side of the split each block of tissue stands on: to learn from, to choose by, to test on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError
from stqp.patches.blocks import Block, grid, guarded, hold_out
from stqp.patches.options import CutOptions, matches, parse_filter
from stqp.patches.sources import Source
from stqp.patches.store import SIDES, TEST, TRAINING, VALIDATION
from stqp.record import RunRecord

Ints = NDArray[np.int64]
_SMALLEST = 128  # px of a patch that is still worth it
UNDECIDED = -1


@dataclass
class Split:
    """Blocks with their sides.

    Attributes
    ----------
    blocks : list of Block
        Drawn back by the guard band.
    sides : int64 (n,)
    counts : int64 (n, classes)
        Nuclei of each class in each block.
    block_um : float
        Side of a block as it was chosen.
    """

    blocks: list[Block]
    sides: Ints
    counts: Ints
    block_um: float

    def boxes(self, sources: Sequence[Source]) -> dict[str, list[dict[str, Any]]]:
        """By side, the images with their boxes in full-resolution px."""
        result: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for number, side in enumerate(SIDES):
            for index, source in enumerate(sources):
                here = [
                    [*b.box] for b, s in zip(self.blocks, self.sides, strict=True) if s == number and b.source == index
                ]
                if here:
                    result[side].append({**source.describe(), "boxes": here})
        return result


def split_sources(
    sources: Sequence[Source],
    types: Sequence[NDArray[np.uint8]],
    n_classes: int,
    options: CutOptions,
    record: RunRecord,
) -> Split:
    """Divide images into blocks, and the blocks among the sides.

    Raises
    ------
    InputError
        When there is too little to split, or a slide or patient would stand on both sides.
    UsageError
        When `holdout` and `validate_on` want the same image.
    """
    if options.split_file is not None:
        return _again(sources, types, n_classes, options, record)
    fixed = _fixed_sides(sources, options)
    groups = _groups(sources, options)
    blocks, counts, size = _blocks(sources, types, n_classes, options, fixed)
    sides = np.array([fixed[b.source] for b in blocks], np.int64)
    # the same place of the same slide is one thing, whatever project it is in
    keys = [(sources[b.source].slide, b.box) if groups is None else groups[b.source] for b in blocks]
    free = np.flatnonzero(sides == UNDECIDED)
    if len(free):
        sides[free] = _choose(_numbers([keys[i] for i in free]), counts[free], options)
    _check_apart(sources, blocks, sides, fixed, options, groups)
    slides = _numbers([sources[b.source].slide for b in blocks])
    gap = [options.guard / s.mpp for s in sources]
    kept = guarded(blocks, sides, gap, slides)
    keep = np.array([b is not None for b in kept], bool)
    record.skip("blocks that the guard band fills", int((~keep).sum()))
    left = [b for b in kept if b is not None]
    return Split(left, sides[keep], _count_all(left, sources, types, n_classes)[0], size)


def _fixed_sides(sources: Sequence[Source], options: CutOptions) -> list[int]:
    """Side of each image that the user named, `UNDECIDED` for others."""
    result = [UNDECIDED] * len(sources)
    for filters, side in ((options.validate_on, VALIDATION), (options.holdout, TEST)):
        for text in filters:
            found = [i for i, s in enumerate(sources) if matches([text], s.about)]
            if not found:
                key = parse_filter(text)[0]
                there = sorted({s.about[key] for s in sources if key in s.about})
                raise InputError(f"no image with nuclei has {text}; there is {_listed(there) or f'no {key} at all'}")
            for i in found:
                if result[i] not in (UNDECIDED, side):
                    raise UsageError(f"the image {sources[i].entry} is asked for both as validation and as test")
                result[i] = side
    if sources and UNDECIDED not in result:
        raise InputError("every image with nuclei is held out, so none is left to learn from")
    return result


def _groups(sources: Sequence[Source], options: CutOptions) -> list[str] | None:
    """What must stay together, for each image; None when that is a block."""
    if options.split == "block":
        return None
    if options.split == "slide":
        return [s.slide for s in sources]
    key = str(options.split_key)
    if lacking := [s.entry for s in sources if not s.about.get(key)]:
        keys = sorted({k for s in sources for k in s.about})
        raise InputError(
            f"there is no metadata {key}, which the split is by, for {_listed(lacking)}; there is {', '.join(keys)}"
        )
    return [s.about[key] for s in sources]


def _choose(groups: Ints, counts: Ints, options: CutOptions) -> Ints:
    """Side of each block whose side is open."""
    validation = 0.0 if options.validate_on else options.validation
    n = int(groups.max()) + 1
    sums = np.zeros((n, counts.shape[1]), np.int64)
    np.add.at(sums, groups, counts)
    what = {"block": "spatial block", "slide": "slide"}.get(options.split, options.split_key or "")
    sides = np.full(n, TRAINING, np.int64)
    sides[hold_out(sums, options.test, options.seed + 1, what=what)] = TEST
    rest = np.flatnonzero(sides == TRAINING)
    held = hold_out(sums[rest], validation / (1 - options.test), options.seed, what=what)
    sides[rest[held]] = VALIDATION
    return sides[groups]


def _blocks(
    sources: Sequence[Source],
    types: Sequence[NDArray[np.uint8]],
    n_classes: int,
    options: CutOptions,
    fixed: Sequence[int],
) -> tuple[list[Block], Ints, float]:
    """Blocks that hold nuclei, with their nuclei of each class; smaller ones where too few can be chosen from."""
    held = options.test + (0.0 if options.validate_on else options.validation)
    size = options.block
    while True:
        blocks: list[Block] = []
        rows = []
        for number, (source, kinds) in enumerate(zip(sources, types, strict=True)):
            cells = grid(source.width, source.height, size / source.mpp, number)
            table, filled = _count(cells, source.centres[source.counted], kinds[source.counted], n_classes)
            filled |= source.complete
            blocks += [cell for cell, any_ in zip(cells, filled.tolist(), strict=True) if any_]
            rows.append(table[filled])
        free = sum(fixed[b.source] == UNDECIDED for b in blocks)
        enough = options.split != "block" or held <= 0 or free >= max(2, 1 / held)
        if enough or size / 2 < _SMALLEST * options.mpp:
            return blocks, np.concatenate(rows), size
        size /= 2


def _count(
    cells: Sequence[Block], centres: NDArray[np.float64], kinds: NDArray[np.uint8], n_classes: int
) -> tuple[Ints, NDArray[np.bool_]]:
    """Nuclei of each class in each box, int64 (boxes, classes), and which boxes hold any."""
    import shapely

    boxes = np.array([c.box for c in cells], float).reshape(-1, 4)
    # a centre on the line between two boxes is the next one's
    found, centre = shapely.STRtree(np.asarray(shapely.points(centres), object)).query(shapely.box(*boxes.T))
    x, y = centres[centre].T
    inside = (x >= boxes[found, 0]) & (x < boxes[found, 2]) & (y >= boxes[found, 1]) & (y < boxes[found, 3])
    found, centre = found[inside], centre[inside]
    table = np.zeros((len(cells), 256), np.int64)
    np.add.at(table, (found, kinds[centre]), 1)
    return table[:, 1 : n_classes + 1], np.asarray(table.any(axis=1), bool)


def _count_all(
    blocks: Sequence[Block], sources: Sequence[Source], types: Sequence[NDArray[np.uint8]], n_classes: int
) -> tuple[Ints, NDArray[np.bool_]]:
    """`_count` for blocks of several images."""
    table, filled = np.zeros((len(blocks), n_classes), np.int64), np.zeros(len(blocks), bool)
    owner = np.array([b.source for b in blocks], np.int64)
    for number, (source, kinds) in enumerate(zip(sources, types, strict=True)):
        here = np.flatnonzero(owner == number)
        centres, numbers = source.centres[source.counted], kinds[source.counted]
        table[here], filled[here] = _count([blocks[i] for i in here.tolist()], centres, numbers, n_classes)
    return table, filled


def _check_apart(
    sources: Sequence[Source],
    blocks: Sequence[Block],
    sides: Ints,
    fixed: Sequence[int],
    options: CutOptions,
    groups: list[str] | None,
) -> None:
    """Refuse that one slide, or one patient, is learnt from and held out."""
    met: list[set[int]] = [set() for _ in sources]
    for block, side in zip(blocks, sides.tolist(), strict=True):
        met[block.source].add(side)

    def check(names: Sequence[str], whole: Sequence[bool], what: str) -> None:
        for name in dict.fromkeys(names):
            mine = [i for i, n in enumerate(names) if n == name]
            if any(whole[i] for i in mine) and len(set().union(*(met[i] for i in mine))) > 1:
                found = []
                for i in mine:
                    where = " and ".join(SIDES[side] for side in sorted(met[i]))
                    found.append(f"{sources[i].entry} of {sources[i].about['project']} ({where})")
                raise InputError(
                    f"the same {what} would stand on two sides of the split: {_listed(found)}; hold out all or none"
                )

    # a slide may stand on both sides where it is split by blocks, and nowhere else
    check([s.slide for s in sources], [groups is not None or side != UNDECIDED for side in fixed], "slide")
    if groups is not None and options.split_key:
        check(groups, [True] * len(sources), options.split_key)


def _again(
    sources: Sequence[Source],
    types: Sequence[NDArray[np.uint8]],
    n_classes: int,
    options: CutOptions,
    record: RunRecord,
) -> Split:
    """The split of an earlier run, on the same slides; what it does not know is learnt from."""
    if options.holdout or options.validate_on:
        raise UsageError("the split of an earlier run says what is held out; leave out what else is to be")
    items = read_split(options.split_file or Path())
    blocks: list[Block] = []
    sides: list[int] = []
    new = []
    for number, source in enumerate(sources):
        mine = [(side, item) for side, item in items if item.get("slide") == source.slide]
        mine = mine or [(side, item) for side, item in items if item["entry"] == source.entry]
        for side, item in mine:
            blocks += [Block(number, tuple(map(float, box))) for box in item["boxes"]]  # type: ignore[arg-type]
            sides += [side] * len(item["boxes"])
        if not mine:
            new.append(source.entry)
            cells = grid(source.width, source.height, options.block / source.mpp, number)
            blocks += cells
            sides += [TRAINING] * len(cells)
    if len(new) == len(sources):
        raise InputError(f"{options.split_file} names none of the images {_listed([s.entry for s in sources])}")
    if new:
        record.warn(f"{options.split_file} does not name the image {_listed(new)}, which is learnt from")
    table, filled = _count_all(blocks, sources, types, n_classes)
    # a box that was cut then is cut again, whatever has become of its nuclei
    fresh = np.array([sources[b.source].entry in new for b in blocks], bool)
    keep = filled | ~fresh
    left = [b for b, k in zip(blocks, keep.tolist(), strict=True) if k]
    return Split(left, np.array(sides, np.int64)[keep], table[keep], options.block)


def read_split(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read ``split.json`` of a run: side and image with its boxes.

    Raises
    ------
    InputError
        When it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("split", content)  # a manifest has it too
        items = [(number, item) for number, side in enumerate(SIDES) for item in content.get(side, [])]
        for _, item in items:
            str(item["entry"])
            if np.array(item["boxes"], float).shape[1:] != (4,):
                raise ValueError("a box has not four numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no split of an earlier run ({error}); expected its split.json") from error
    if not items:
        raise InputError(f"{path} is no split of an earlier run: it names no image")
    return items


def _numbers(keys: Sequence[Any]) -> Ints:
    """Number of each key, in the order in which they come."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
