"""Clusters vote for visual classes through the genes that set them apart.

A gene has one vote for each class, however many fine types it marks; it is shared between the classes that it
speaks for, and is as strong as the gene is raised and as many more of the cluster's cells hold it than of the others
(squared: a gene of every second cell tells a type, one of every tenth is as often noise).
A raised gene also speaks against the classes that it excludes. Votes are measured against what the panel offers each
class, and dampened by the share of the class's markers that are lowered: only dampened, as one fine type of a class
lacks the markers of the others. A cluster whose best two classes are close, or whose best has too few markers, stays
Unknown. Lineages without a class (erythroid cells, neurons, whatever a taxonomy leaves out) stand for election, too: a
cluster that elects one is Unknown, rather than of the class with the most stray markers.

A gene that many clusters share (EPCAM on a slide full of epithelium) is not raised over all other cells together. So a
gene also speaks where a cluster is well over the gene's base, its level in the lowest quarter of the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.clustering import GeneStatistics
from stqp.taxonomy import UNKNOWN

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Objects = NDArray[np.object_]

BASE_QUANTILE = 0.25
LOUD = 0.05  # share of the strongest vote from which a marker counts as one
BASE_CELLS = 20  # cells of a cluster that takes part in the base


@dataclass(frozen=True)
class Gates:
    """What a gene and a class must reach.

    Attributes
    ----------
    p
        Largest adjusted p of a gene that speaks.
    log_fold
        Smallest log2 fold change of a gene that speaks, up or down.
    inside
        Smallest share of a cluster's cells (of the others' for a lowered gene) that hold the gene.
    base_fold, base_z
        Smallest log2 fold change over the base and its z, of a gene that is not raised over all others.
    full_log_fold
        log2 fold change from which a gene's vote is whole.
    lowered
        Part of its votes that a class loses when all its markers are lowered.
    markers
        Smallest number of raised markers of the winning class.
    margin
        Smallest distance of the best class to the second, as a share of the best.
    """

    p: float = 0.01
    log_fold: float = 0.5
    inside: float = 0.03
    base_fold: float = 2.0
    base_z: float = 5.0
    full_log_fold: float = 2.0
    lowered: float = 0.5
    markers: int = 2
    margin: float = 0.25


@dataclass(frozen=True)
class Ballot:
    """How clusters were named.

    Attributes
    ----------
    classes
        That could be voted for.
    votes : float64 (k, classes)
        Normalised by what the panel offers, not below 0.
    margin : float64 (k,)
        Distance of the best to the second as a share of the best; 0 without votes.
    decision : object (k,)
        Class or Unknown.
    why : list of str
        One sentence each.
    speakers : list of list
        For each cluster the raised markers: (gene, weight of its vote, classes).
    markers : int64 (k,)
        Raised markers of the best class.
    outside : list of dict
        For each cluster the votes of lineages that have no class, those with any.
    """

    classes: tuple[str, ...]
    votes: Floats
    margin: Floats
    decision: Objects
    why: list[str]
    speakers: list[list[tuple[str, float, list[str]]]]
    markers: Ints
    outside: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Base:
    """How each cluster stands over the level of the lowest clusters; float64 (k, g) each.

    Attributes
    ----------
    log_fold
        log2 of its share of the gene to the base's.
    z
        Of the cluster's count against the base's share.
    inside
        Share of cells with the gene in the lowest clusters, float64 (g,).
    """

    log_fold: Floats
    z: Floats
    inside: Floats


def over_base(profiles: Floats, totals: Floats, statistics: GeneStatistics, sizes: Ints) -> Base:
    """Compare every cluster with the lowest quarter of the clusters, gene by gene.

    Parameters
    ----------
    profiles : float64 (k, g)
        Share of each gene in each cluster's counts.
    totals : float64 (k,)
        Counts of each cluster.
    statistics
        Of the clusters.
    sizes : int64 (k,)
        Cells of each cluster.
    """
    large = sizes >= min(BASE_CELLS, sizes.max())
    low = np.quantile(profiles[large], BASE_QUANTILE, axis=0, method="lower")
    inside = np.quantile(statistics.inside[large], BASE_QUANTILE, axis=0, method="lower")
    some = 0.1 / profiles.shape[1]
    expected = (low + some) * totals[:, None]
    z = (profiles * totals[:, None] - expected) / np.sqrt(expected + 1)
    return Base(np.log2((profiles + some) / (low + some)), z, inside)


def vote(statistics: GeneStatistics, genes: list[str], table: Any, base: Base, gates: Gates | None = None) -> Ballot:
    """Name every cluster.

    Parameters
    ----------
    statistics
        Of the clusters.
    genes
        Names as the table has them.
    table
        A `MarkerTable`.
    base
        Of `over_base`.
    gates
        What must be reached.
    """
    gates = gates or Gates()
    classes = tuple(table.classes)
    speaks = np.asarray(table.votes(genes), bool)
    others = np.asarray(table.speaks_for_lineages(genes), bool)
    excludes = np.asarray(table.against(genes), bool) & ~speaks
    number_of = np.maximum(speaks.sum(axis=1, keepdims=True) + others.sum(axis=1, keepdims=True), 1)
    share, share_of_others = speaks / number_of, others / number_of
    sure = statistics.p_adjusted < gates.p
    up = sure & (statistics.log_fold >= gates.log_fold) & (statistics.inside >= gates.inside)
    down = sure & (statistics.log_fold <= -gates.log_fold) & (statistics.outside >= gates.inside)
    high = ~down & (base.log_fold >= gates.base_fold) & (base.z >= gates.base_z) & (statistics.inside >= gates.inside)
    up |= high
    fold = np.where(high, np.maximum(statistics.log_fold, base.log_fold), statistics.log_fold)
    below = np.where(high, np.minimum(statistics.outside, base.inside), statistics.outside)
    strength = up * np.clip(fold / gates.full_log_fold, 0, 1) * np.clip(statistics.inside - below, 0, 1) ** 2
    offers = share.sum(axis=0)
    room = offers + offers.mean()  # few markers offered make few votes loud, but not at any volume
    lost = gates.lowered * (down @ share) / np.maximum(offers, 1e-9)
    votes = np.clip(strength @ share - strength @ excludes, 0, None) * (1 - lost) / np.where(room > 0, room, 1)
    loud = strength >= LOUD * strength.max(axis=1, keepdims=True, initial=0)
    counted = (loud & (strength > 0)).astype(np.int64)
    number = counted @ speaks.astype(np.int64)
    elsewhere = strength @ share_of_others / np.maximum(share_of_others.sum(axis=0) + offers.mean(), 1e-9)
    elsewhere = np.where(counted @ others.astype(np.int64) >= gates.markers, elsewhere, 0.0)
    outside = [
        {name: float(v) for name, v in zip(table.lineages, row.tolist(), strict=True) if v > 0} for row in elsewhere
    ]
    decisions, why, margins, markers, speakers = np.full(len(votes), UNKNOWN, object), [], [], [], []
    for i, row in enumerate(votes):
        order = np.argsort(-row, kind="stable")
        best = int(order[0])
        second, rival = (float(row[order[1]]), classes[order[1]]) if len(row) > 1 else (0.0, "")
        if outside[i]:
            lineage, loudest = max(outside[i].items(), key=lambda item: item[1])
            second, rival = (loudest, lineage) if loudest > second else (second, rival)
        margin = max(0.0, float(1 - second / row[best])) if row[best] > 0 else 0.0
        margins.append(margin)
        markers.append(int(number[i, best]))
        if second > row[best]:
            why.append(f"the markers of {rival} lead, which have no class")
        elif row[best] <= 0:
            why.append("no marker of a class is raised")
        elif number[i, best] < gates.markers:
            why.append(f"{classes[best]} leads with {number[i, best]} raised marker, and {gates.markers} are asked for")
        elif margin < gates.margin:
            why.append(f"{classes[best]} and {rival} are too close: margin {margin:.2f}, {gates.margin:g} is asked for")
        else:
            decisions[i] = classes[best]
            why.append(f"{number[i, best]} raised markers of {classes[best]}, margin {margin:.2f}")
        spoke = np.flatnonzero(up[i] & speaks.any(axis=1))
        spoke = spoke[np.argsort(-statistics.score[i, spoke], kind="stable")]
        speakers.append(
            [(genes[g], float(strength[i, g]), [classes[c] for c in np.flatnonzero(speaks[g])]) for g in spoke]
        )
    return Ballot(classes, votes, np.array(margins), decisions, why, speakers, np.array(markers, np.int64), outside)


def fine_types(ballot: Ballot, table: Any) -> tuple[Objects, list[dict[str, float]]]:
    """Fine types that spoke for each cluster's class.

    Returns
    -------
    names : object (k,)
        The one with the most weight, None for clusters without a class. A gene's weight is shared between its types.
    weights : list of dict
        All that spoke, by falling weight.
    """
    names: Objects = np.full(len(ballot.decision), None, object)
    weights = []
    for i, (decision, spoke) in enumerate(zip(ballot.decision.tolist(), ballot.speakers, strict=True)):
        found: dict[str, float] = {}
        for gene, weight, classes in spoke:
            for visual in classes:
                types = table.fine_types_of(gene, visual)
                for fine in types:
                    if decision in (UNKNOWN, visual):
                        found[fine] = found.get(fine, 0.0) + weight / len(types)
        ranked = dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
        weights.append(ranked)
        if decision != UNKNOWN and ranked:
            names[i] = next(iter(ranked))
    return names, weights
