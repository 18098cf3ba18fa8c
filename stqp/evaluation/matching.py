"""One-to-one matching of nuclei: by overlap, and by the distance of their centres."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LARGEST_DENSE = 400  # nuclei of one group; above, a sparse solver saves memory


def best_assignment(i: Ints, j: Ints, cost: Floats) -> NDArray[np.bool_]:
    """Choose edges of a bipartite graph so that each node has at most one, and the sum of costs is least.

    The graph falls into many small groups, and each is solved alone, so that cost and memory grow with
    the number of edges, not with n x m.

    Parameters
    ----------
    i, j : int64 (edges,)
        Left and right node of each edge; no edge twice.
    cost : float64 (edges,)
        Below 0 where taking an edge is better than leaving it.

    Returns
    -------
    bool (edges,)
        The edges taken; none with a cost of 0 or more.
    """
    chosen = np.zeros(len(i), bool)
    if not len(i):
        return chosen
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    left, i_local = np.unique(i, return_inverse=True)
    right, j_local = np.unique(j, return_inverse=True)
    n = len(left) + len(right)
    graph = coo_matrix((np.ones(len(i), bool), (i_local, j_local + len(left))), shape=(n, n))
    _, group_of_node = connected_components(graph, directed=False)
    group = group_of_node[i_local]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    sizes = np.diff(np.r_[starts, len(order)])
    single = order[starts[sizes == 1]]
    chosen[single] = cost[single] < 0
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        edges = order[start : start + size]
        chosen[edges] = _solve(i_local[edges], j_local[edges], cost[edges])
    return chosen


def _solve(i: Ints, j: Ints, cost: Floats) -> NDArray[np.bool_]:
    rows, i = np.unique(i, return_inverse=True)
    columns, j = np.unique(j, return_inverse=True)
    if max(len(rows), len(columns)) <= _LARGEST_DENSE:
        from scipy.optimize import linear_sum_assignment

        dense = np.zeros((len(rows), len(columns)))
        dense[i, j] = np.minimum(cost, 0)
        a, b = linear_sum_assignment(dense)
    else:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import min_weight_full_bipartite_matching

        # a column of its own for each row means "unpaired", and makes a full matching always possible
        size = len(rows)
        offset = 1.0 - float(cost.min())
        weights = np.r_[np.minimum(cost, 0) + offset, np.full(size, offset)]
        graph = coo_matrix(
            (weights, (np.r_[i, np.arange(size)], np.r_[j, len(columns) + np.arange(size)])),
            shape=(size, len(columns) + size),
        )
        a, b = min_weight_full_bipartite_matching(graph.tocsr())
    taken = np.full(len(rows), -1)
    taken[a] = b
    return (taken[i] == j) & (cost < 0)


def pair_centres(true_xy: Floats, pred_xy: Floats, radius: float) -> tuple[Ints, Ints]:
    """Pair points one-to-one within a radius: as many pairs as possible, then the least sum of distances.

    Parameters
    ----------
    true_xy, pred_xy : float64 (n, 2), (m, 2)
    radius
        Largest distance of a pair, in the unit of the points; a pair at this distance counts.

    Returns
    -------
    true_index, pred_index : int64 (pairs,)
        Ordered by true_index.
    """
    if not len(true_xy) or not len(pred_xy):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    from scipy.spatial import cKDTree

    candidates = cKDTree(true_xy).sparse_distance_matrix(cKDTree(pred_xy), radius * (1 + 1e-9), output_type="ndarray")
    i, j = candidates["i"].astype(np.int64), candidates["j"].astype(np.int64)
    # one pair more outweighs any sum of distances within a group of nuclei
    many = radius * (min(len(true_xy), len(pred_xy)) + 1)
    chosen = best_assignment(i, j, candidates["v"] - many)
    i, j = i[chosen], j[chosen]
    order = np.argsort(i)
    return i[order], j[order]
