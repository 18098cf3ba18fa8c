"""Cells as mixtures of a cluster's profile and of what leaks in from their neighbours.

Transcripts that belong to a cell lie in part in the outlines of its neighbours. So a cell ``i`` of cluster ``k`` is
taken to hold gene ``g`` with probability ``(1 - a) p[k, g] + a q[i, g]``, where ``q[i]`` are the genes of its nearest
neighbours and ``a`` is the slide's share of leaked counts. Profiles, shares and ``a`` are fitted by
expectation and maximisation; the posterior over the clusters is the score of each cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEIGHBOURS = 6  # cells that touch a cell, in a tissue without gaps
START, MOST = 0.1, 0.5  # share of leaked counts
ROUNDS = 6
FIT_CELLS = 20_000  # a profile needs no more; the fit then costs the same on any slide
_SMOOTH = 0.5  # counts that every gene has in every cluster before it is seen
_BLOCK = 4_000_000  # elements of a temporary array


@dataclass(frozen=True)
class Mixture:
    """What was fitted.

    Attributes
    ----------
    profiles : float64 (k, g)
        Genes of each cluster, without what leaked in; rows sum to 1.
    weights : float64 (k,)
        Share of the cells.
    leaked : float
        Share of a cell's counts that are its neighbours'.
    """

    profiles: Floats
    weights: Floats
    leaked: float


def neighbourhoods(spatial: Any, n: int) -> Any:
    """Nearest neighbours of each cell as a scipy CSR (n, n) of ones; None without places."""
    from scipy import sparse
    from scipy.spatial import cKDTree

    k = min(NEIGHBOURS, n - 1)
    if spatial is None or k < 1:
        return None
    places = np.asarray(spatial, np.float64)[:, :2]
    if len(places) != n or not np.isfinite(places).all() or np.ptp(places, axis=0).max() == 0:
        return None
    _, found = cKDTree(places).query(places, k + 1)
    rows = np.arange(n)[:, None]
    # where cells share a place, a cell need not be the first of its own neighbours
    mine = found == rows
    mine[~mine.any(axis=1), -1] = True
    others = found[~mine].reshape(n, k)
    return sparse.csr_matrix((np.ones(n * k, np.float32), others.ravel(), np.arange(n + 1) * k), shape=(n, n))


def fit(matrix: Any, labels: Ints, around: Any, seed: int = 0) -> Mixture:
    """Fit profiles and the share of leaked counts, beginning from a clustering.

    Parameters
    ----------
    matrix
        scipy CSR (n, g) of counts.
    labels : int64 (n,)
        Cluster of each cell, -1 for none.
    around
        Of `neighbourhoods`, None for no leakage.
    seed
        Chooses the cells that are fitted, where there are many.
    """
    k, genes = int(labels.max()) + 1, matrix.shape[1]
    cells = np.flatnonzero(labels >= 0)
    if len(cells) > FIT_CELLS:
        cells = np.sort(np.random.default_rng(seed).choice(cells, FIT_CELLS, replace=False))
    background = np.asarray(matrix.sum(axis=0), np.float64).ravel() + _SMOOTH
    background /= background.sum()
    start = _one_hot(labels[cells], k).T @ matrix[cells]
    mixture = Mixture(_profiles(start.toarray(), background), _weights(np.bincount(labels[cells], minlength=k)),
                      0.0 if around is None else START)  # fmt: skip
    for _ in range(ROUNDS):
        own, members, leaked, total = np.zeros((k, genes)), np.zeros(k), 0.0, 0.0
        for block, rows, columns, values, nearby in _blocks(matrix, around, cells, k):
            chance = _chances(mixture, columns, nearby)
            posterior = _posterior(mixture, chance, values, rows, len(block))
            members += posterior.sum(axis=0)
            weight = posterior[rows] * values[:, None]
            if nearby is not None:
                kept = (1 - mixture.leaked) * mixture.profiles.T.astype(np.float32)[columns] / chance
                total += float(values.sum())
                weight *= kept
                leaked += float(values.sum()) - float(weight.sum())
            order = np.argsort(columns, kind="stable")
            at, first = np.unique(columns[order], return_index=True)
            own[:, at] += np.add.reduceat(weight[order], first, axis=0).T
        share = min(leaked / total, MOST) if total else 0.0
        mixture = Mixture(_profiles(own, background), _weights(members), share)
    return mixture


def posterior(matrix: Any, around: Any, mixture: Mixture) -> NDArray[np.float32]:
    """Probability of each cluster for each cell, float32 (n, k)."""
    n, k = matrix.shape[0], len(mixture.weights)
    result = np.empty((n, k), np.float32)
    for block, rows, columns, values, nearby in _blocks(matrix, around, np.arange(n), k):
        chance = _chances(mixture, columns, nearby)
        result[block] = _posterior(mixture, chance, values, rows, len(block))
    return result


def _one_hot(labels: Ints, k: int) -> Any:
    from scipy import sparse

    n = len(labels)
    return sparse.csr_matrix((np.ones(n, np.float32), labels, np.arange(n + 1)), shape=(n, k))


def _profiles(counts: Floats, background: Floats) -> Floats:
    """Genes of each cluster; few counts lean towards those of the slide."""
    smoothed = counts + _SMOOTH * len(background) * background
    return np.asarray(smoothed / smoothed.sum(axis=1, keepdims=True))


def _weights(members: NDArray[Any]) -> Floats:
    smoothed = members + 1.0
    return np.asarray(smoothed / smoothed.sum())


def _blocks(
    matrix: Any, around: Any, cells: Ints, k: int
) -> Iterator[tuple[Ints, Ints, Ints, NDArray[np.float32], NDArray[np.float32] | None]]:
    """Cells in blocks: the cells, then by count that is not zero: row in the block, gene, count, share nearby."""
    genes = matrix.shape[1]
    dense = max(1, _BLOCK // genes)
    per_cell = np.diff(matrix.indptr)[cells]
    begin = 0
    while begin < len(cells):
        many = np.searchsorted(np.cumsum(per_cell[begin:]), _BLOCK // k, side="right")
        end = min(begin + max(1, min(int(many), dense)), len(cells))
        block = cells[begin:end]
        part = matrix[block]
        rows = np.repeat(np.arange(len(block)), np.diff(part.indptr))
        nearby = None
        if around is not None:
            dense_part = np.asarray((around[block] @ matrix).toarray(), np.float32)
            dense_part /= np.maximum(dense_part.sum(axis=1, keepdims=True), 1)
            nearby = dense_part[rows, part.indices]
        yield block, rows, part.indices.astype(np.int64), part.data.astype(np.float32), nearby
        begin = end


def _chances(mixture: Mixture, columns: Ints, nearby: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Chance of the gene of each count under each cluster, (counts, k)."""
    if nearby is None:
        return mixture.profiles.T.astype(np.float32)[columns]
    own = ((1 - mixture.leaked) * mixture.profiles.T).astype(np.float32)
    result: NDArray[np.float32] = own[columns] + (np.float32(mixture.leaked) * nearby)[:, None]
    return result


def _posterior(
    mixture: Mixture, chance: NDArray[np.float32], values: NDArray[np.float32], rows: Ints, n: int
) -> NDArray[np.float32]:
    """Probability of each cluster for the cells of a block, (n, k)."""
    terms = np.log(chance)
    terms *= values[:, None]
    score = np.tile(np.log(mixture.weights).astype(np.float32), (n, 1))
    if len(rows):
        seen, first = np.unique(rows, return_index=True)
        score[seen] += np.add.reduceat(terms, first, axis=0)
    score -= score.max(axis=1, keepdims=True)
    np.exp(score, out=score)
    score /= score.sum(axis=1, keepdims=True)
    return score
