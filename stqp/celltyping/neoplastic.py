"""Which epithelial clusters are a tumour's, by evidence: tumour genes against chance, and proliferation.

A panel is no random draw of genes. So the tumour genes of a cluster are compared with other genes of the same panel
that are expressed as strongly, and the cluster with normal epithelium: what is named as such, else the least raised
epithelium of the slide, where there is more than one cluster of it, else all other cells.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEOPLASTIC = "Neoplastic"
DRAWS = 9_999
ALPHA = 0.005  # of all candidates together
EXCESS = 1.0  # log2 fold change beyond what other genes have
RAISED = 3  # tumour genes that are at least doubled
FEWEST = 3  # tumour genes on the panel without which nothing is said
_BINS = 8


@dataclass(frozen=True)
class Evidence:
    """What speaks for a tumour in one cluster.

    Attributes
    ----------
    cluster
        Number.
    tumour, proliferation
        Mean log2 fold change of the genes beyond that of genes expressed as strongly.
    p, p_proliferation
        Share of random draws that reach as much; for all candidates together (Bonferroni).
    raised
        Tumour genes that are at least doubled, the most raised first.
    against
        What it was compared with.
    neoplastic
        The decision.
    why
        One sentence.
    """

    cluster: int
    tumour: float
    p: float
    proliferation: float
    p_proliferation: float
    raised: list[str]
    against: str
    neoplastic: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__}


def judge(
    profiles: Floats,
    weights: Floats,
    candidates: Ints,
    genes: Sequence[str],
    tumour: Collection[str],
    proliferation: Collection[str],
    normal: Floats | None = None,
    what: str = "",
    seed: int = 0,
) -> list[Evidence]:
    """Weigh the evidence for a tumour in every cluster that it may come from.

    Parameters
    ----------
    profiles : float64 (k, g)
        Share of each gene in each cluster's counts.
    weights : float64 (k,)
        Share of the cells.
    candidates : int64 (m,)
        Clusters of the classes that a tumour may come from.
    genes
        Names, as those of the gene sets.
    tumour, proliferation
        Gene sets.
    normal : float64 (g,), optional
        Share of each gene in what is known to be normal.
    what
        What that is, for the record.
    seed
        Of the random draws.
    """
    if not len(candidates):
        return []
    names = np.asarray(genes, dtype=object).astype(str)
    sets = {"tumour": np.isin(names, list(tumour)), "proliferation": np.isin(names, list(proliferation))}
    sets["tumour"] &= ~sets["proliferation"]
    some = 0.1 / profiles.shape[1]
    level = weights @ profiles
    bins = np.minimum(np.argsort(np.argsort(level)) * _BINS // len(level), _BINS - 1)
    free = ~sets["tumour"] & ~sets["proliferation"]
    rng = np.random.default_rng(seed)
    draws = {name: _draws(rng, np.flatnonzero(of), bins, free) for name, of in sets.items()}
    several = len(candidates) > 1
    against = what if normal is not None else "the least raised of these clusters" if several else "all other cells"
    result = []
    for cluster in candidates.tolist():
        if normal is not None:
            reference = normal
        elif several:
            reference = np.quantile(profiles[candidates], 0.25, axis=0, method="lower")
        else:
            others = np.where(np.arange(len(weights)) == cluster, 0, weights)
            reference = others @ profiles / max(others.sum(), 1e-12) if others.sum() else level
        fold = np.log2((profiles[cluster] + some) / (reference + some))
        found = {name: _against_chance(fold, np.flatnonzero(of), draws[name]) for name, of in sets.items()}
        p, p_prolif = (min(1.0, found[name][1] * len(candidates)) for name in ("tumour", "proliferation"))
        excess, dividing = found["tumour"][0], found["proliferation"][0]
        up = np.flatnonzero(sets["tumour"] & (fold >= 1))
        up = up[np.argsort(-fold[up], kind="stable")]
        on_panel = int(sets["tumour"].sum())
        strong = p <= ALPHA and excess >= EXCESS and len(up) >= RAISED
        # weaker evidence needs the second kind beside it
        both = p <= 10 * ALPHA and excess >= EXCESS / 2 and len(up) >= RAISED
        both &= p_prolif <= 10 * ALPHA and dividing >= EXCESS
        yes = on_panel >= FEWEST and (strong or both)
        if on_panel < FEWEST:
            why = f"the panel has {on_panel} tumour genes, too few to judge by"
        else:
            why = (
                f"against {against} tumour genes are raised {excess:+.2f} (log2) beyond genes as strong, p {p:.2g}, "
                f"proliferation {dividing:+.2f}, p {p_prolif:.2g}, {len(up)} of {on_panel} tumour genes doubled"
            )
        result.append(Evidence(cluster, excess, p, dividing, p_prolif, names[up].tolist(), against, bool(yes), why))
    return result


def _draws(
    rng: np.random.Generator, members: NDArray[np.int64], bins: NDArray[np.int64], free: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Random genes of the same bins, (draws, members); none where a bin has no others."""
    columns = []
    for gene in members.tolist():
        same = np.flatnonzero(free & (bins == bins[gene]))
        if len(same):
            columns.append(same[rng.integers(0, len(same), DRAWS)])
    return np.stack(columns, axis=1) if columns else np.zeros((DRAWS, 0), np.int64)


def _against_chance(fold: Floats, members: NDArray[np.int64], draws: NDArray[np.int64]) -> tuple[float, float]:
    """Mean beyond the draws' and the share of draws that reach it."""
    if not len(members) or not draws.shape[1]:
        return 0.0, 1.0
    mean = float(fold[members].mean())
    chance = fold[draws].mean(axis=1)
    return mean - float(chance.mean()), float((1 + (chance >= mean).sum()) / (1 + len(chance)))
