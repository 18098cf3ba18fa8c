"""How sure a label is: scores mapped to how often they are right, on simulated cells of the same slide.

Cells of known cluster are drawn from the slide's own profiles, with the depth, the neighbours and the scatter of its
real cells. Half of them fit the map from score to share of right labels, which only rises; the other half test it. That
covers which cluster a cell belongs to; whether the cluster's name is right is a factor by its margin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.spillover import Mixture, posterior

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SIMULATED = 4_000
BINS = 10
# share of rightly named clusters by margin: fitted to 2,149 clusters with a known truth, named by two marker tables,
# of 36 simulated and thinned slides and of 40 on real panels with scatter, ambient RNA and doublets (0.85 right at a
# margin of 0.3, 0.93 at 0.5, 0.97 at 0.7, 0.99 from 0.8)
NAME_FLOOR, NAME_TOP, NAME_SCALE = 0.43, 0.998, 0.22


class Calibration:
    """A map from a cell's score to how often it is right, with its test.

    Attributes
    ----------
    scores, right : float64 (m,)
        Steps of the map, rising.
    reliability : list of dict
        By bin of confidence on held-out cells: number, mean confidence, share right.
    error
        Mean distance of the two over the bins, weighted by their numbers (expected calibration error).
    """

    def __init__(self, scores: Floats, right: Floats, reliability: list[dict[str, float]], error: float):
        self.scores, self.right, self.reliability, self.error = scores, right, reliability, error

    def __call__(self, score: NDArray[Any]) -> Floats:
        """Confidence of scores."""
        if not len(self.scores):
            return np.clip(np.asarray(score, np.float64), 0, 1)
        return np.interp(score, self.scores, self.right)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"held_out": self.reliability, "expected_calibration_error": self.error, "simulated": SIMULATED}


def name_confidence(margin: Floats) -> Floats:
    """How often the class of a cluster is right, by its margin."""
    return NAME_TOP - (NAME_TOP - NAME_FLOOR) * np.exp(-np.asarray(margin, np.float64) / NAME_SCALE)


def calibrate(matrix: Any, around: Any, mixture: Mixture, groups: Ints, cells: Ints, seed: int = 0) -> Calibration:
    """Fit and test the map on simulated cells.

    Parameters
    ----------
    matrix
        scipy CSR (n, g) of counts.
    around
        Of `spillover.neighbourhoods`, or None.
    mixture
        Of the slide.
    groups : int64 (k,)
        Class of each cluster by number; -1 for Unknown.
    cells : int64 (m,)
        Cells whose depth and neighbours may be taken.
    seed
        Of the draws.
    """
    from scipy import sparse
    from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped]

    none = Calibration(np.zeros(0), np.zeros(0), [], float("nan"))
    if len(cells) < 50 or (groups >= 0).sum() == 0:
        return none
    rng = np.random.default_rng(seed)
    hosts = np.sort(rng.choice(cells, SIMULATED, replace=len(cells) < SIMULATED))
    truth = rng.choice(len(groups), SIMULATED, p=mixture.weights / mixture.weights.sum())
    nearby = None
    if around is not None:
        nearby = sparse.csr_matrix(around[hosts] @ matrix)
        nearby = sparse.diags(1 / np.maximum(np.asarray(nearby.sum(axis=1)).ravel(), 1)) @ nearby
    depth = np.asarray(matrix[hosts].sum(axis=1), np.float64).ravel()
    scatter = _dispersion(matrix, cells, rng)
    parts = []
    for begin in range(0, SIMULATED, 500):
        at = slice(begin, begin + 500)
        share = mixture.profiles[truth[at]]
        if nearby is not None:
            share = (1 - mixture.leaked) * share + mixture.leaked * nearby[at].toarray()
        noise = rng.gamma(1 / scatter, scatter, share.shape) if scatter > 0 else 1.0
        parts.append(sparse.csr_matrix(rng.poisson(depth[at, None] * share * noise).astype(np.float32)))
    drawn = sparse.csr_matrix(sparse.vstack(parts))
    scores = _with_nearby(drawn, nearby, mixture)
    score, best = class_scores(scores, groups)
    seen = (best >= 0) & (np.asarray(drawn.sum(axis=1)).ravel() > 0)
    right = (best == groups[truth]).astype(np.float64)
    fit = seen & (np.arange(SIMULATED) % 2 == 0)
    test = seen & ~fit
    if fit.sum() < 25 or test.sum() < 25:
        return none
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(score[fit], right[fit])
    x, y = np.asarray(model.X_thresholds_, np.float64), np.asarray(model.y_thresholds_, np.float64)
    reliability, error = reliability_of(np.interp(score[test], x, y), right[test])
    return Calibration(x, y, reliability, error)


def class_scores(scores: NDArray[np.float32], groups: Ints) -> tuple[Floats, Ints]:
    """Score and number of the best class of each cell, -1 for Unknown, from its scores of the clusters."""
    numbers = np.unique(groups)
    summed = np.stack([scores[:, groups == number].sum(axis=1) for number in numbers], axis=1)
    best = summed.argmax(axis=1)
    return summed[np.arange(len(summed)), best].astype(np.float64), numbers[best]


def reliability_of(confidence: Floats, right: Floats) -> tuple[list[dict[str, float]], float]:
    """Reliability by bin, and the expected calibration error."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows, error = [], 0.0
    for i in np.unique(bins):
        of = bins == i
        mean, share = float(confidence[of].mean()), float(right[of].mean())
        rows.append({"cells": int(of.sum()), "confidence": mean, "right": share})
        error += of.mean() * abs(mean - share)
    return rows, float(error)


def _with_nearby(drawn: Any, nearby: Any, mixture: Mixture) -> NDArray[np.float32]:
    """Posterior of drawn cells whose neighbours' genes are given."""
    if nearby is None:
        return posterior(drawn, None, mixture)
    from scipy import sparse

    n = drawn.shape[0]
    # the neighbours' shares stand as n more rows, of which each drawn cell has its own as its one neighbour
    scale = 1e6
    both = sparse.csr_matrix(sparse.vstack([drawn, nearby * scale])).astype(np.float32)
    links = sparse.csr_matrix((np.ones(n, np.float32), (np.arange(n), np.arange(n) + n)), shape=(2 * n, 2 * n))
    return posterior(both, links, mixture)[:n]


def _dispersion(matrix: Any, cells: Ints, rng: np.random.Generator) -> float:
    """Scatter of counts beyond Poisson's among cells of like depth: median of the genes, within 0 and 1."""
    some = cells if len(cells) <= 5_000 else np.sort(rng.choice(cells, 5_000, replace=False))
    part = matrix[some]
    totals = np.asarray(part.sum(axis=1), np.float64).ravel()
    mean = np.asarray(part.sum(axis=0), np.float64).ravel() / max(totals.sum(), 1)
    expected = (totals**2).sum() * mean**2
    square = np.asarray(part.multiply(part).sum(axis=0), np.float64).ravel()
    common = mean > np.quantile(mean, 0.5)
    excess = (square - totals.sum() * mean - expected)[common] / np.maximum(expected[common], 1e-12)
    # genes that differ between types scatter for that reason; the lowest tenth does not
    return float(np.clip(np.quantile(excess, 0.1), 0.0, 1.0)) if len(excess) else 0.0
