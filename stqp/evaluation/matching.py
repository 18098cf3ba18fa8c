"""One-to-one matching of nuclei: by overlap, and by the distance of their centres."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LARGEST_DENSE = 64  # nodes of a group; above, and for packs of small groups, a sparse solver is faster
_PACK = 512  # edges that are solved at a time: few calls for many small groups


def best_assignment(i: Ints, j: Ints, cost: Floats) -> NDArray[np.bool_]:
    """Choose edges of a bipartite graph so that each node has at most one, and the sum of costs is least.

    The graph falls into many small groups that are solved apart, so that time and memory grow with the
    number of edges, not with n x m. Groups of one node and its neighbours are solved at once.

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
    useful = np.flatnonzero(cost < 0)
    if not len(useful):
        return chosen
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    i, j, cost = i[useful], j[useful], cost[useful]
    left, i_local = np.unique(i, return_inverse=True)
    right, j_local = np.unique(j, return_inverse=True)
    n = len(left) + len(right)
    graph = coo_matrix((np.ones(len(i), bool), (i_local, j_local + len(left))), shape=(n, n))
    group_of_node: Ints = np.asarray(connected_components(graph, directed=False)[1], np.int64)
    group = group_of_node[i_local]
    order: Ints = np.lexsort((cost, group))  # the best edge of a group first
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    sizes = np.diff(np.r_[starts, len(order)])
    sides = group_of_node[: len(left)], group_of_node[len(left) :]
    nodes = [np.bincount(side, minlength=int(group_of_node.max()) + 1) for side in sides]
    fewer: Ints = np.minimum(nodes[0], nodes[1])
    star = fewer[group[order[starts]]] == 1
    chosen[useful[order[starts[star]]]] = True
    rest = np.repeat(~star, sizes)
    edges, ends = order[rest], np.cumsum(sizes[~star])
    start = 0
    while start < len(edges):
        # whole groups, about a pack of edges of them
        last = min(int(np.searchsorted(ends, start + _PACK)), len(ends) - 1)
        stop = int(ends[last])
        pack = edges[start:stop]
        chosen[useful[pack]] = _solve(i_local[pack], j_local[pack], cost[pack])
        start = stop
    return chosen


def _solve(i: Ints, j: Ints, cost: Floats) -> NDArray[np.bool_]:
    rows, i = np.unique(i, return_inverse=True)
    columns, j = np.unique(j, return_inverse=True)
    if max(len(rows), len(columns)) <= _LARGEST_DENSE:
        from scipy.optimize import linear_sum_assignment

        dense = np.zeros((len(rows), len(columns)))
        dense[i, j] = cost
        a, b = linear_sum_assignment(dense)
    else:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import min_weight_full_bipartite_matching

        # a column of its own for each row means "unpaired", and makes a full matching always possible
        size = len(rows)
        offset = 1.0 - float(cost.min())
        weights = np.r_[cost + offset, np.full(size, offset)]
        graph = coo_matrix(
            (weights, (np.r_[i, np.arange(size)], np.r_[j, len(columns) + np.arange(size)])),
            shape=(size, len(columns) + size),
        )
        a, b = min_weight_full_bipartite_matching(graph.tocsr())
    taken = np.full(len(rows), -1)
    taken[a] = b
    return np.asarray(taken[i] == j, bool)


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
