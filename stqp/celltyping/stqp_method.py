"""The default method: clusters, cells sorted by their scores under spill-over, votes, doubt."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping import methods, neoplastic, spillover, voting
from stqp.celltyping.clustering import STEPS, Progress, rank_genes
from stqp.celltyping.confidence import calibrate, class_scores, name_confidence
from stqp.celltyping.counts import Counts
from stqp.celltyping.markers import MarkerTable
from stqp.celltyping.pathologist import Said
from stqp.celltyping.result import Typing
from stqp.taxonomy import UNKNOWN


def by_stqp(
    adata: Any,
    counts: Counts,
    table: MarkerTable,
    tumours: list[str],
    dividing: list[str],
    said: Said,
    parameters: dict[str, Any],
    progress: Progress | None,
) -> Typing:
    """Type cells; see `methods.type_cells`."""
    tell = progress or (lambda done, total, name: None)
    seed, genes, n = parameters["seed"], counts.genes.tolist(), len(counts.totals)
    leiden, logged = methods.clustered(counts, parameters["resolution"], seed, methods.CLUSTER_COUNTS, progress)
    tell(4, STEPS, "scores of cells, and what leaks from neighbours")
    around = spillover.neighbourhoods(adata.obsm.get("spatial", None), n)
    mixture = spillover.fit(counts.matrix, leiden, around, seed)
    scores = spillover.posterior(counts.matrix, around, mixture)
    labels, mixture, scores, order = _refined(scores, counts, mixture)
    new = np.full(int(leiden.max()) + 2, -1, np.int64)  # the last for cells of no cluster
    new[order] = np.arange(len(order))
    leiden = new[leiden]
    tell(5, STEPS, "testing genes")
    part = np.flatnonzero(counts.totals >= methods.CLUSTER_COUNTS)
    logged.obs["cluster"] = _text(labels[part])
    k = int(labels.max()) + 1
    statistics = rank_genes(logged, k)
    tell(6, STEPS, "votes")
    in_cluster = labels >= 0
    sizes = np.bincount(labels[in_cluster], minlength=k)
    totals = np.bincount(labels[in_cluster], weights=counts.totals[in_cluster], minlength=k).astype(np.float64)
    ballot = voting.vote(statistics, genes, table, voting.over_base(mixture.profiles, totals, statistics, sizes))
    fine, spoke = voting.fine_types(ballot, table)
    tell(7, STEPS, "confidence")
    names = [*ballot.classes]
    groups = np.array([names.index(d) if d in names else -1 for d in ballot.decision.tolist()], np.int64)
    sure = np.flatnonzero(counts.totals >= methods.MIN_COUNTS)
    calibration = calibrate(counts.matrix, around, mixture, groups, sure, seed)
    score, best = class_scores(scores, groups)
    own = np.where(in_cluster, np.append(groups, -1)[labels], -1)
    reasons = _reasons(counts, table, names, score, best, own, np.append(groups, -1)[leiden])
    doubt = np.zeros(n, bool)
    for at in reasons.values():
        doubt |= at
    classes = np.append(np.array(names, object), UNKNOWN)[np.where(doubt, -1, best)]
    confidence = calibration(score) * np.append(name_confidence(ballot.margin), 0.0)[labels]
    confidence = np.where(classes == UNKNOWN, 0.0, confidence)
    fine_of = np.concatenate([fine, [None]])[labels]
    fine_of[classes == UNKNOWN] = None
    said.check(k)
    normal, what = said.normal_profile(mixture.profiles, mixture.weights, counts.matrix, classes, fine_of)
    candidates = said.from_origin(ballot.decision, fine)
    candidates[np.array(said.normal_clusters or [], np.int64)] = False
    judged = neoplastic.judge(
        mixture.profiles, mixture.weights, np.flatnonzero(candidates), genes, tumours, dividing, normal, what, seed
    )
    found = [e.cluster for e in judged if e.neoplastic]
    decision, why, notes = ballot.decision.copy(), list(ballot.why), []
    for number in said.normal_clusters or ():
        why[number] += "; named as normal"
    if said.tumour_class is not None:
        classes = np.where(said.tumour(labels, classes, fine_of, found), said.tumour_class, classes)
        if said.tumour_cells is None:
            decision[np.array(found if said.tumour_clusters is None else said.tumour_clusters, np.int64)] = (
                said.tumour_class
            )
    elif found:
        notes.append(
            f"evidence speaks for a tumour in {len(found)} clusters, and the taxonomy has no class for it; "
            "add [classes.Neoplastic], or a class whose parent it is"
        )
    ballot = dataclasses.replace(ballot, decision=decision, why=why)
    rows = methods.describe(labels, classes, ballot, fine, spoke, statistics, genes)
    for evidence in judged:
        rows[evidence.cluster]["tumour"] = evidence.why
    parameters |= {
        "min_counts": methods.MIN_COUNTS,
        "least_score": methods.LEAST_SCORE,
        "gates": dataclasses.asdict(voting.Gates()),
    }
    summary = {
        "parameters": parameters,
        "leaked_share": mixture.leaked,
        "cells_moved": int((in_cluster & (leiden >= 0) & (np.append(groups, -1)[leiden] != own)).sum()),
        "unknown": {reason: int(at.sum()) for reason, at in reasons.items()},
        "offers": dict(zip(table.classes, np.asarray(table.offers(genes)).tolist(), strict=True)),
        "confidence": calibration.to_json(),
        "neoplastic": {
            "decided_by": said.by,
            **said.to_json(),
            "tumour_genes_on_panel": sorted(set(genes) & set(tumours)),
            "evidence": [e.to_json() for e in judged],
        },
        "notes": notes,
    }
    return Typing(methods.cell_ids(adata), classes, confidence, labels, fine_of, rows, summary)


def _refined(
    scores: NDArray[np.float32], counts: Counts, mixture: spillover.Mixture
) -> tuple[NDArray[np.int64], spillover.Mixture, NDArray[np.float32], NDArray[np.int64]]:
    """Cluster of each cell by its score; clusters that lost their cells go, the rest are numbered by size."""
    best = scores.argmax(axis=1)
    enough = counts.totals >= methods.MIN_COUNTS
    tested = np.bincount(best[counts.totals >= methods.CLUSTER_COUNTS], minlength=scores.shape[1])
    order = np.argsort(-tested, kind="stable")
    order = order[tested[order] >= 2]
    kept = scores[:, order]
    kept = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-30)
    labels = np.where(enough, kept.argmax(axis=1), -1).astype(np.int64)
    weights = mixture.weights[order] / mixture.weights[order].sum()
    return labels, spillover.Mixture(mixture.profiles[order], weights, mixture.leaked), kept, order


def _reasons(
    counts: Counts,
    table: MarkerTable,
    names: list[str],
    score: NDArray[np.float64],
    best: NDArray[np.int64],
    own: NDArray[np.int64],
    leiden: NDArray[np.int64],
) -> dict[str, NDArray[np.bool_]]:
    """Why cells are Unknown; each cell under its first reason."""
    speaks = np.asarray(table.votes(counts.genes.tolist()), bool)
    alone = speaks & (speaks.sum(axis=1, keepdims=True) == 1)
    held = np.asarray(counts.matrix @ alone.astype(np.float32))
    at = np.maximum(best, 0)
    mine = held[np.arange(len(held)), at]
    others = held.copy()
    others[np.arange(len(held)), at] = 0
    few = counts.totals < methods.MIN_COUNTS
    found = {
        f"fewer than {methods.MIN_COUNTS} counts": few,
        "its cluster has no class": own < 0,
        "its own score says another class than its cluster": best != own,
        f"its score is below {methods.LEAST_SCORE:g}": score < methods.LEAST_SCORE,
        "it was clustered with another class, and its score does not settle it": (leiden >= 0)
        & (leiden != best)
        & (score < (1 + methods.LEAST_SCORE) / 2),
        f"{methods.CONTRARY} or more counts of another class's markers, and none of its own": (mine == 0)
        & (others.max(axis=1, initial=0) >= methods.CONTRARY),
    }
    seen = np.zeros(len(score), bool)
    result = {}
    for reason, of in found.items():
        result[reason] = of & ~seen
        seen |= of
    return result


def _text(labels: NDArray[np.int64]) -> Any:
    import pandas as pd

    return pd.Categorical(labels.astype(str))
