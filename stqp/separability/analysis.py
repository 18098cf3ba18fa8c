"""From nuclei with groups to pairs, merges and a proposed taxonomy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.fine_types import type_key
from stqp.celltyping.markers import MarkerTable
from stqp.celltyping.taxonomies import VISUAL
from stqp.errors import InputError
from stqp.record import RunRecord
from stqp.separability import blocks, model, pairs
from stqp.separability.features import Features
from stqp.separability.groups import Group, SlideNuclei, lineage_of, table_of
from stqp.separability.merging import Merging, merge
from stqp.separability.notes import notes_of
from stqp.separability.proposal import Proposed, name_classes, to_taxonomy
from stqp.separability.result import MIN_BLOCKS, Separability, Settings

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[int, int, str], None]


def analyse(
    slides: list[SlideNuclei],
    features: list[Features],
    by: str,
    settings: Settings,
    record: RunRecord,
    progress: Progress | None = None,
    only_known: bool = False,
) -> Separability:
    """Hold the groups of nuclei against each other.

    Parameters
    ----------
    slides, features
        The nuclei of each slide and their features, row for row.
    by
        What the groups are.
    settings
    record
        Gets counts.
    progress
        Called with steps done, their number, and the name of the next.
    only_known
        Leave out nuclei of which no feature is known, in place of taking the median for all.

    Raises
    ------
    InputError
        When fewer than two groups can be judged.
    """
    tell = progress or (lambda done, total, name: None)
    parts = [np.flatnonzero([g is not None for g in s.group.tolist()]) for s in slides]
    places = [s.polygons.centroid() * s.mpp for s in slides]
    for i, (part, where, known) in enumerate(zip(parts, places, features, strict=True)):
        fine = np.isfinite(where[part]).all(axis=1)
        if only_known:
            fine &= np.isfinite(known.values[part]).any(axis=1)
            record.skip("nuclei of which nothing is given", int((~fine).sum()))
        parts[i] = part[fine]
    slide = np.repeat(np.arange(len(slides)), [len(p) for p in parts])
    row = np.concatenate(parts)

    def gather(columns: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([c[p] for c, p in zip(columns, parts, strict=True)])

    where, group = gather(places), gather([s.group for s in slides])
    kind, classes = gather([s.type for s in slides]), gather([s.classes for s in slides])
    block = blocks.block_of(where, slide, settings.block) if len(row) else row
    groups, small = _enough(table_of(group, kind, classes, block, slide, by), by, settings, len(slides))
    number = {g.name: i for i, g in enumerate(groups)}
    y = np.array([number.get(str(name), -1) for name in group.tolist()], np.int64)
    keep = y >= 0
    record.count("nuclei judged", int(keep.sum()))
    record.count("groups judged", len(groups))
    record.skip("nuclei of groups too small to judge", int((~keep).sum()))
    slide, row, where, y = slide[keep], row[keep], where[keep], y[keep]
    values = gather([f.values for f in features])[keep]
    _, block = np.unique(block[keep], return_inverse=True)
    block = block.reshape(-1)
    n_blocks = int(block.max()) + 1
    record.count("spatial blocks", n_blocks)
    slide_of_block = np.zeros(n_blocks, np.int64)
    slide_of_block[block] = slide
    split = blocks.folds(where, slide, block, y, settings.guard, settings.seed)
    scores = model.out_of_fold(
        values, y, len(groups), split, settings.seed,
        lambda done, total: tell(done, total + 2, f"learning, fold {min(done + 1, total)} of {total}"),
    )  # fmt: skip
    tell(len(split), len(split) + 2, "comparing pairs")
    sites = pairs.Sites(block, pairs.draws_of(slide_of_block, settings.seed))
    rows = [np.flatnonzero(y == i) for i in range(len(groups))]
    found = [
        pairs.judge_pair(a, b, scores, sites, (rows[a], rows[b]))
        for a in range(len(groups))
        for b in range(a + 1, len(groups))
    ]
    tell(len(split) + 1, len(split) + 2, "merging")
    lines = [lineage_of(g) for g in groups]
    singles = [[i] for i in range(len(groups))]
    tree = merge(scores, y, sites, singles, lines, settings.least, settings.across)
    start, start_lines = _namable(groups, lines, by)
    merging = tree
    if start != singles:
        merging = merge(scores, y, sites, start, start_lines, settings.least, settings.across)
    merging = _in_order(merging, groups, lines)
    proposed = _propose(merging, groups, lines)
    taxonomy = to_taxonomy(proposed, f"seen in the image, by {by}", MarkerTable.shipped())
    result = Separability(
        groups, small, slide, row, y, block, scores, pairs.decide(found, settings.least), tree, merging, proposed,
        taxonomy, model.calibration_error(scores, y), len(split),
        n_blocks, len(np.unique(slide)) > 1, settings,
    )  # fmt: skip
    result.notes = notes_of(result, by)
    tell(len(split) + 2, len(split) + 2, "done")
    return result


def _enough(found: list[Group], by: str, settings: Settings, slides: int) -> tuple[list[Group], list[Group]]:
    """Groups that can be judged, and those that cannot."""

    def good(g: Group) -> bool:
        return g.nuclei >= settings.min_nuclei and g.blocks >= MIN_BLOCKS and g.slides >= min(slides, 2)

    judged, small = [g for g in found if good(g)], [g for g in found if not good(g)]
    if len(judged) >= 2:
        return judged, small
    if not found:
        raise InputError(f"no nucleus has a {by} that could be learnt from; run stqp label first")
    if len(found) == 1:
        raise InputError(f"all nuclei are of one group, {found[0].name}; there is nothing to tell apart")
    needs = f"{settings.min_nuclei} nuclei in {MIN_BLOCKS} blocks of {settings.block:g} µm"
    if slides > 1:
        needs += " on two slides"
    most = ", ".join(f"{g.name}: {g.nuclei:,} in {g.blocks}" for g in sorted(found, key=lambda g: -g.nuclei)[:5])
    raise InputError(
        f"fewer than two groups have {needs} ({most}); use a smaller --block or --min-nuclei, or wider groups"
    )


def _namable(groups: list[Group], lines: list[str], by: str) -> tuple[list[list[int]], list[str]]:
    """Groups that a taxonomy can only name together: those of one fine type."""
    sets: dict[str, list[int]] = {}
    for i, g in enumerate(groups):
        sets.setdefault(g.name if by == "class" else type_key(g.type), []).append(i)
    names = []
    for members in sets.values():
        size: dict[str, int] = {}
        for i in members:
            size[lines[i]] = size.get(lines[i], 0) + groups[i].nuclei
        names.append(max(size, key=lambda line: (size[line], line)))
    return [*sets.values()], names


def _in_order(merging: Merging, groups: list[Group], lines: list[str]) -> Merging:
    """Classes in the order of the visual ones, which their ids follow, and in a lineage the largest first."""

    def key(i: int) -> tuple[int, str, int]:
        size: dict[str, int] = {}
        for g in merging.classes[i].members:
            size[lines[g]] = size.get(lines[g], 0) + groups[g].nuclei
        line = max(size, key=lambda name: (size[name], name))
        return VISUAL.index(line) if line in VISUAL else len(VISUAL), line, -sum(size.values())

    order = sorted(range(len(merging.classes)), key=key)
    place = {old: new for new, old in enumerate(order)}
    pairs_ = [
        dataclasses.replace(p, a=min(place[p.a], place[p.b]), b=max(place[p.a], place[p.b])) for p in merging.pairs
    ]
    return dataclasses.replace(
        merging, classes=[merging.classes[i] for i in order], pairs=sorted(pairs_, key=lambda p: (p.a, p.b))
    )


def _propose(merging: Merging, groups: list[Group], lines: list[str]) -> list[Proposed]:
    types, lineages = [], []
    for merged in merging.classes:
        size: dict[str, int] = {}
        line: dict[str, int] = {}
        for g in merged.members:
            for name, number in groups[g].types.items():
                size[name] = size.get(name, 0) + number
            line[lines[g]] = line.get(lines[g], 0) + groups[g].nuclei
        once: dict[str, str] = {}
        for name in sorted(size, key=lambda t: (-size[t], t)):
            once.setdefault(type_key(name), name)
        types.append([*once.values()])
        lineages.append(sorted(line, key=lambda t: (-line[t], t)))
    return name_classes(types, lineages)
