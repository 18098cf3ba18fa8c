"""The votes of arXiv 2604.23481 as its public encoding counts them, so that its labels can be made again.

Known weaknesses are part of it: a gene counts once for each fine type it marks, only ranks count, `TAU_VOTE` is
compared with the sum of all votes, ties go to the first class, and Neoplastic is a matter of a gene list alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from stqp.celltyping.clustering import GeneStatistics
from stqp.celltyping.voting import Ballot
from stqp.taxonomy import UNKNOWN

RESOLUTION = 4.0
TOP_N = 10  # genes that vote, with weights from 10 down to 1
TAU_VOTE = 5  # smallest sum of votes
TOP_M = 20  # genes looked at for cancer
TAU_CANCER = 0.25  # share of them above which an epithelial cluster is neoplastic
KEY_ORDER = ("Epithelial", "Inflammatory", "Connective")  # a tie goes to the first


def vote(
    statistics: GeneStatistics,
    genes: list[str],
    table: Any,
    tumour_genes: Collection[str],
    top_n: int = TOP_N,
    tau_vote: float = TAU_VOTE,
    top_m: int = TOP_M,
    tau_cancer: float = TAU_CANCER,
) -> Ballot:
    """Name every cluster by the paper's rules.

    Parameters
    ----------
    statistics
        Of the clusters.
    genes
        Names as the table has them.
    table
        A `MarkerTable`.
    tumour_genes
        The cancer genes.
    top_n, tau_vote, top_m, tau_cancer
        The paper's constants.

    Returns
    -------
    Ballot
        Its votes are sums of weights, not normalised.
    """
    classes = tuple(c for c in KEY_ORDER if c in table.classes)
    columns = [list(table.classes).index(c) for c in classes]
    times = np.asarray(table.counts_by_fine_type(genes), np.float64)[:, columns]
    tumour = set(tumour_genes)
    k = len(statistics.score)
    votes, margins, markers = np.zeros((k, len(classes))), np.zeros(k), np.zeros(k, np.int64)
    decisions, why, speakers = np.full(k, UNKNOWN, object), [], []
    for i in range(k):
        order = statistics.order(i)
        top = order[:top_n]
        weights = top_n - np.arange(len(top), dtype=np.float64)
        votes[i] = weights @ times[top]
        spoke = [
            (genes[g], float(w), [c for c, t in zip(classes, times[g], strict=True) if t])
            for g, w in zip(top, weights, strict=True)
            if times[g].any()
        ]
        speakers.append(spoke)
        best = int(votes[i].argmax()) if len(classes) else 0
        total = float(votes[i].sum())
        if total < tau_vote:
            why.append(f"the votes add up to {total:g}, and {tau_vote:g} are asked for")
            continue
        ranked = np.sort(votes[i])[::-1]
        margins[i] = float(1 - ranked[1] / ranked[0]) if len(ranked) > 1 else 1.0
        markers[i] = sum(classes[best] in of for _, _, of in spoke)
        decisions[i] = classes[best]
        reason = f"{classes[best]} has {votes[i, best]:g} of {total:g} votes"
        if classes[best] == "Epithelial":
            cancer = sum(genes[g] in tumour for g in order[:top_m]) / max(1, min(top_m, len(order)))
            if cancer > tau_cancer:
                decisions[i] = "Neoplastic"
            reason += f"; {cancer:.0%} of the first {top_m} genes are cancer genes"
        why.append(reason)
    return Ballot(classes, votes, margins, decisions, why, speakers, markers)
