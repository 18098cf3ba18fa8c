"""From counts to clusters and to what sets each cluster apart; every heavy step is scanpy's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.counts import Counts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Progress = Callable[[int, int, str], None]

TARGET_SUM = 1e4
COMPONENTS = 50
NEIGHBOURS = 15
LARGE_PANEL = 1000  # genes; a targeted panel is chosen already, a larger one has genes that only make noise
VARIABLE_GENES = 2000
SMALLEST = 2  # cells of a cluster; one cell alone cannot be tested
STEPS = 8
EXACT_CELLS = 60_000  # up to here exact neighbours are as fast as approximate ones, with what these compile


@dataclass(frozen=True)
class GeneStatistics:
    """How each gene differs between a cluster and all other cells; float64 (clusters, genes) each.

    Attributes
    ----------
    score
        z of the rank test of Wilcoxon; the order of the genes in a cluster.
    log_fold
        log2 of the means' ratio.
    p_adjusted
        Benjamini and Hochberg's, within the cluster.
    inside, outside
        Fraction of the cells with the gene.
    """

    score: Floats
    log_fold: Floats
    p_adjusted: Floats
    inside: Floats
    outside: Floats

    def order(self, cluster: int) -> Ints:
        """Genes from the most raised to the most lowered."""
        return np.argsort(-self.score[cluster], kind="stable")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread.

    Sums that threads share depend in their last digits on how many there are, and neighbours and clusters hang on
    these: the same seed would give other types on another machine.
    """
    import numba  # type: ignore[import-untyped]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        numba.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def cluster(
    counts: Counts, resolution: float, seed: int = 0, progress: Progress | None = None, min_counts: float = 1
) -> tuple[Ints, Any]:
    """Cluster cells by their expression.

    Total count to 1e4, log1p, highly variable genes for large panels only, PCA, neighbours, Leiden.

    Parameters
    ----------
    counts
        Of `checked_counts`.
    resolution
        Of Leiden.
    seed
        The same seed gives the same clusters.
    progress
        Called with (steps done, steps in all, name of the next).
    min_counts
        Cells with fewer take no part.

    Returns
    -------
    labels : int64 (n,)
        Cluster by falling size; -1 for cells that took no part.
    logged
        AnnData of the cells that took part, normalised, its ``obs["cluster"]`` the labels as text.
    """
    import anndata
    import pandas as pd
    import scanpy as sc

    tell = progress or (lambda done, total, name: None)
    part = np.flatnonzero(counts.totals >= max(min_counts, 1))
    labels = np.full(len(counts.totals), -1, np.int64)
    tell(0, STEPS, "normalising")
    var = pd.DataFrame(index=pd.Index(counts.genes, dtype=object))
    logged = anndata.AnnData(
        counts.matrix[part].copy(), obs=pd.DataFrame(index=pd.RangeIndex(len(part)).astype(str)), var=var
    )
    if len(part) < 3:
        labels[part] = 0
        logged.obs["cluster"] = pd.Categorical(["0"] * len(part))
        return labels, logged
    with _quiet():
        sc.pp.normalize_total(logged, target_sum=TARGET_SUM)
        sc.pp.log1p(logged)
        large = len(counts.genes) >= LARGE_PANEL
        if large:
            sc.pp.highly_variable_genes(logged, n_top_genes=min(VARIABLE_GENES, len(counts.genes)))
        tell(1, STEPS, "principal components")
        components = min(COMPONENTS, len(part) - 1, (VARIABLE_GENES if large else len(counts.genes)) - 1)
        if components >= 1:
            # the covariance in double precision: exact but for the last digits, which nothing hangs on then
            sc.pp.pca(
                logged, n_comps=components, random_state=seed, svd_solver="covariance_eigh", dtype="float64"
            )  # fmt: skip
        tell(2, STEPS, "neighbours")
        sc.pp.neighbors(
            logged,
            n_neighbors=min(NEIGHBOURS, len(part) - 1),
            use_rep="X_pca" if components >= 1 else "X",
            random_state=seed,
            transformer="sklearn" if len(part) <= EXACT_CELLS else None,
        )
        tell(3, STEPS, "Leiden")
        sc.tl.leiden(
            logged, resolution=resolution, flavor="igraph", n_iterations=2, random_state=seed, directed=False,
            key_added="cluster",
        )  # fmt: skip
    found = logged.obs["cluster"].astype(int).to_numpy()
    sizes = np.bincount(found)
    order = np.argsort(-sizes, kind="stable")
    new = np.empty(len(order), np.int64)
    new[order] = np.where(sizes[order] >= SMALLEST, np.arange(len(order)), -1)
    labels[part] = new[found]
    logged.obs["cluster"] = pd.Categorical(new[found].astype(str))
    del logged.obsp, logged.obsm
    return labels, logged


def rank_genes(logged: Any, n_clusters: int) -> GeneStatistics:
    """Test every gene of every cluster against all other cells by Wilcoxon's rank test.

    Parameters
    ----------
    logged
        Of `cluster`.
    n_clusters
        Clusters, of 0 to n_clusters - 1; cells of -1 are left out. At least 2.
    """
    import scanpy as sc

    with _quiet():
        keep = np.asarray(logged.obs["cluster"] != "-1")
        if not keep.all():
            logged = logged[keep].copy()
        groups = [str(i) for i in range(n_clusters)]
        sc.tl.rank_genes_groups(logged, "cluster", groups=groups, method="wilcoxon", pts=True, use_raw=False)
    result = logged.uns["rank_genes_groups"]
    place = {gene: i for i, gene in enumerate(logged.var_names)}
    columns = {name: np.zeros((n_clusters, len(place))) for name in ("scores", "logfoldchanges", "pvals_adj")}
    inside, outside = columns["scores"].copy(), columns["scores"].copy()
    for i, group in enumerate(groups):
        at = np.array([place[gene] for gene in result["names"][group]], np.int64)
        for name, values in columns.items():
            values[i, at] = result[name][group]
        inside[i], outside[i] = result["pts"][group].to_numpy(), result["pts_rest"][group].to_numpy()
    return GeneStatistics(columns["scores"], columns["logfoldchanges"], columns["pvals_adj"], inside, outside)
