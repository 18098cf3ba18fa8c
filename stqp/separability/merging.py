"""Merge the groups that are least told apart until every class that is left can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stqp.separability.pairs import Estimate, Pair, Sites, decide, estimate, judge_pair

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_AUC = 0.8
"""Of two nuclei, one of each class, four times in five the right one is named: about what two normal distributions
1.2 standard deviations apart give, where a classifier is right in 73 of 100 of each class."""


@dataclass(frozen=True)
class Step:
    """One merge: two sets of groups, their AUC before it, and whether it is part of the proposal."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    auc: float
    merged: bool


@dataclass(frozen=True)
class Merged:
    """One class of the proposal.

    Attributes
    ----------
    members : tuple of int
        Its groups.
    recall : Estimate
        Share of its nuclei that the out-of-fold model gives this class, when all classes weigh the same.
    recall_found : float
        The same, when classes are as frequent as they are on these slides.
    precision_found : float
        Of the nuclei that are then given this class, the share that is.
    """

    members: tuple[int, ...]
    recall: Estimate
    recall_found: float
    precision_found: float


@dataclass(frozen=True)
class Merging:
    """What was merged, and the classes that came out.

    Attributes
    ----------
    classes : list of Merged
    pairs : list of Pair
        Of the classes, by their places in `classes`.
    steps : list of Step
        All merges down to one, for an order and a tree; `Step.merged` tells which belong to the proposal.
    order : list of int
        Groups such that what was merged first stands together.
    """

    classes: list[Merged]
    pairs: list[Pair]
    steps: list[Step] = field(default_factory=list)
    order: list[int] = field(default_factory=list)


def combined(scores: Floats, sizes: Ints, members: Sequence[int]) -> Floats:
    """Log likelihood under several groups together, each as frequent as it is, (n,)."""
    chosen = [*members]
    with np.errstate(divide="ignore"):
        weighted = scores[:, chosen] + np.log(sizes[chosen])
    top = weighted.max(axis=1)
    return top + np.log(np.exp(weighted - top[:, None]).sum(axis=1)) - np.log(sizes[chosen].sum())


def merge(
    scores: Floats,
    y: Ints,
    sites: Sites,
    start: Sequence[Sequence[int]],
    lineage: Sequence[str],
    least: float,
    across: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Merging:
    """Merge, beginning with sets of groups.

    Of all pairs that may be merged, the one with the lowest AUC goes first, until none is below `least`. After each
    merge the AUC of what was merged is taken anew from the sum of the likelihoods, so that a chain of groups, each
    like the next, is not merged from one end to the other.

    Parameters
    ----------
    scores : float64 (n, groups)
        Of `model.out_of_fold`.
    y : int64 (n,)
        Group of each nucleus.
    sites
        Where they stand.
    start
        Groups that belong together from the start (clusters of one fine type); every group is in one set.
    lineage
        Of each set; sets of different lineages are not merged unless `across`.
    least
        AUC.
    across
        Whether lineages may be merged.
    """
    sizes = np.bincount(y, minlength=scores.shape[1])
    nodes = {i: tuple(members) for i, members in enumerate(start)}
    kinds = {i: {name} for i, name in enumerate(lineage)}
    columns = {i: combined(scores, sizes, members) for i, members in nodes.items()}
    rows = {i: np.flatnonzero(np.isin(y, members)) for i, members in nodes.items()}
    found: dict[tuple[int, int], Pair] = {}

    def compare(i: int, j: int) -> None:
        both = np.stack([columns[i], columns[j]], axis=1)
        found[min(i, j), max(i, j)] = judge_pair(0, 1, both, sites, (rows[i], rows[j]))

    keys = list(nodes)
    for i in keys:
        for j in keys:
            if i < j:
                compare(i, j)
        if progress is not None:
            progress(i + 1, len(keys))
    steps: list[Step] = []
    proposal: tuple[list[int], list[Pair]] | None = None
    trees = {i: [*members] for i, members in nodes.items()}
    while True:
        choice, merging = _next(found, kinds, least, across, proposal is None)
        if proposal is None and not merging:
            proposal = [*nodes], [found[pair] for pair in sorted(found)]
            snapshot = dict(nodes), dict(columns)
        if choice is None:
            break
        i, j = choice
        new = max(nodes) + 1
        steps.append(Step(nodes[i], nodes[j], found[choice].auc.value, merging))
        nodes[new] = tuple(sorted(nodes[i] + nodes[j]))
        kinds[new] = kinds[i] | kinds[j]
        columns[new] = combined(scores, sizes, nodes[new])
        rows[new] = np.union1d(rows[i], rows[j])
        trees[new] = trees[i] + trees[j]
        for old in (i, j):
            for table in (nodes, kinds, columns, rows, trees):
                del table[old]
        found = {pair: value for pair, value in found.items() if not {i, j} & {*pair}}
        for other in list(nodes):
            if other != new:
                compare(other, new)
    assert proposal is not None
    keys, pairs = proposal
    place = {key: i for i, key in enumerate(keys)}
    listed = [
        Pair(place[i], place[j], p.auc, p.over_all, p.apart) for (i, j), p in zip(_pairs_of(keys), pairs, strict=True)
    ]
    members, likelihoods = snapshot
    classes = _recalls([members[key] for key in keys], [likelihoods[key] for key in keys], y, sites)
    return Merging(classes, decide(listed, least), steps, next(iter(trees.values())))


def _pairs_of(keys: list[int]) -> list[tuple[int, int]]:
    return sorted((min(i, j), max(i, j)) for i in keys for j in keys if i < j)


def _next(
    found: dict[tuple[int, int], Pair], kinds: dict[int, set[str]], least: float, across: bool, proposing: bool
) -> tuple[tuple[int, int] | None, bool]:
    """The pair to merge next, and whether the proposal merges it."""
    if not found:
        return None, False

    def value(pair: tuple[int, int]) -> float:
        auc = found[pair].auc
        return auc.value if np.isfinite(auc.error) else 1.0  # not judged is no reason to merge

    within = [pair for pair in found if kinds[pair[0]] == kinds[pair[1]]]
    allowed = [*found] if across else within
    if proposing and allowed:
        best = min(allowed, key=lambda pair: (value(pair), pair))
        if value(best) < least:
            return best, True
    best = min(within or [*found], key=lambda pair: (value(pair), pair))
    return best, False


def _recalls(members: list[tuple[int, ...]], columns: list[Floats], y: Ints, sites: Sites) -> list[Merged]:
    owner = np.zeros(max(max(m) for m in members) + 1, np.int64)
    for i, group in enumerate(members):
        owner[list(group)] = i
    truth = owner[y]
    likelihood = np.stack(columns, axis=1)
    number = np.bincount(truth, minlength=len(members))
    even = likelihood.argmax(axis=1)
    found = (likelihood + np.log(number)).argmax(axis=1)
    block, n_blocks = sites.block, sites.draws.shape[1]
    result = []
    for i, group in enumerate(members):
        of = truth == i
        count = np.bincount(block[of], minlength=n_blocks).astype(np.float64)
        right = np.bincount(block[of], even[of] == i, n_blocks)
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = estimate(np.where(count > 0, right / count, 0), count, sites.draws)
        given = found == i
        precision = float((given & of).sum() / given.sum()) if given.any() else float("nan")
        result.append(Merged(group, recall, float((given & of).sum() / max(of.sum(), 1)), precision))
    return result
