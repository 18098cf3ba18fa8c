"""Typing of cells, one interface for every method."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.clustering import STEPS, Progress, cluster, one_thread, rank_genes
from stqp.celltyping.counts import Counts, best_named, checked_counts, with_names
from stqp.celltyping.gene_names import current_symbol, harmonise, known_genes, species_of, to_mouse
from stqp.celltyping.gene_sets import proliferation_genes, tumour_genes
from stqp.celltyping.markers import MarkerTable
from stqp.celltyping.pathologist import Said
from stqp.celltyping.result import Typing, top_genes
from stqp.celltyping.taxonomies import Taxonomy
from stqp.errors import InputError, UsageError
from stqp.taxonomy import UNKNOWN

METHODS = ("stqp", "paper", "reference", "labels")
RESOLUTION = 2.0  # of method stqp; fine enough for its classes, and its cells are sorted once more by their scores
MIN_COUNTS = 3  # counts without which a cell is Unknown
CLUSTER_COUNTS = 5  # counts of cells that make the clusters
LEAST_SCORE = 0.6  # of a cell's class; below, Unknown
_USED_BY = {
    "markers": ("stqp", "paper"),
    "taxonomy": ("stqp", "reference", "labels"),
    "resolution": ("stqp", "paper"),
    "reference": ("reference",),
    "reference_key": ("reference",),
    "labels": ("labels",),
    "label_key": ("labels",),
    "class_map": ("reference", "labels"),
    "normal_clusters": ("stqp",),
    "normal_region": ("stqp",),
    "tumour_genes": ("stqp", "paper"),
}
CONTRARY = 3  # counts of markers of another class alone, without one of its own, that contradict a class


def type_cells(
    adata: Any,
    method: str = "stqp",
    markers: MarkerTable | str | Path | None = None,
    taxonomy: Taxonomy | None = None,
    resolution: float | None = None,
    seed: int = 0,
    species: str = "auto",
    reference: str | Path | None = None,
    reference_key: str | None = None,
    labels: str | Path | None = None,
    label_key: str | None = None,
    class_map: str | Path | None = None,
    neoplastic_clusters: Collection[int] | None = None,
    normal_clusters: Collection[int] | None = None,
    tumour_cells: NDArray[np.bool_] | None = None,
    normal_cells: NDArray[np.bool_] | None = None,
    tumour: Collection[str] | None = None,
    tumour_origin: str = "epithelial",
    name: str = "the expression",
    progress: Progress | None = None,
) -> Typing:
    """Type cells by their expression.

    Parameters
    ----------
    adata
        AnnData of counts, (n, genes); ``obsm["spatial"]`` where there are places.
    method : {"stqp", "paper", "reference", "labels"}
        How; see the modules `voting`, `paper` and `reference`. ``labels`` takes the user's own.
    markers
        A marker table or its file; the shipped one when None.
    taxonomy
        Classes; the visual ones when None.
    resolution
        Of Leiden; 2.0 for stqp, 4.0 for paper when None.
    seed
        The same seed gives the same types.
    species : {"auto", "human", "mouse"}
        Of the gene names.
    reference, reference_key
        For ``reference``: an .h5ad of labelled cells and the column of ``obs``, or a CellTypist model (.pkl).
    labels, label_key, class_map
        For ``labels``: as `stqp.sources.labels.read_labels` takes them; the map also serves ``reference``.
    neoplastic_clusters
        Clusters that a pathologist names as the tumour; evidence is recorded and does not decide then.
    normal_clusters
        Clusters that a pathologist names as normal: they are no tumour, and evidence is held against them.
    tumour_cells : bool (n,)
        Cells in a region that a pathologist drew: those of the origin's class are Neoplastic, and no others.
    normal_cells : bool (n,)
        Cells in a region that a pathologist drew: none is a tumour's, and evidence is held against those of the
        origin's class.
    tumour
        Tumour genes; the shipped ones when None.
    tumour_origin : {"epithelial", "melanocytic", "stromal", "haematopoietic"}
        What a tumour may come from.
    name
        What `adata` is, for messages.
    progress
        Called with (steps done, steps in all, name of the next).

    Raises
    ------
    InputError
        When these are no counts, when no gene is in the table, or when all cells are of one cluster.
    UsageError
        When arguments do not go together.
    EnvironmentProblem
        When a CellTypist model is given and CellTypist is not installed.

    Notes
    -----
    Everything is computed on one thread, see `stqp.celltyping.clustering.one_thread`.
    """
    if method not in METHODS:
        raise UsageError(f"expected one of the methods {', '.join(METHODS)}, found {method!r}")
    if resolution is not None and not resolution > 0:
        raise UsageError(f"the resolution is above 0, found {resolution:g}")
    said = Said(
        _numbers(neoplastic_clusters), tumour_cells, _numbers(normal_clusters), normal_cells, tumour_origin, taxonomy
    )
    given = {
        "markers": markers, "taxonomy": taxonomy, "resolution": resolution, "reference": reference,
        "reference_key": reference_key, "labels": labels, "label_key": label_key, "class_map": class_map,
        "normal_clusters": normal_clusters, "normal_region": normal_cells, "tumour_genes": tumour,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None and method not in _USED_BY[option]:
            raise UsageError(
                f"--{option.replace('_', '-')} has no part in the method {method}; it is for "
                f"{' and '.join(_USED_BY[option])}"
            )
    with one_thread():
        if method in ("reference", "labels"):
            result = _by_others(
                adata, method, reference, reference_key, labels, label_key, class_map, said, seed, name, progress
            )
        else:
            result = _by_markers(adata, method, markers, resolution, seed, species, tumour, said, name, progress)
    if progress is not None:
        progress(STEPS, STEPS, "done")
    return result


def _numbers(clusters: Collection[int] | None) -> list[int] | None:
    return None if clusters is None else [int(c) for c in clusters]


def _by_others(
    adata: Any,
    method: str,
    reference: str | Path | None,
    reference_key: str | None,
    labels: str | Path | None,
    label_key: str | None,
    class_map: str | Path | None,
    said: Said,
    seed: int,
    name: str,
    progress: Progress | None,
) -> Typing:
    """Types that a reference or the user gave; what a pathologist said decides after them."""
    from stqp.celltyping.reference import by_labels, by_reference

    if method == "labels":
        if labels is None:
            raise UsageError("the method labels needs the file of labels (--labels)")
        result = by_labels(adata, labels, label_key, class_map, said.taxonomy)
    else:
        if reference is None:
            raise UsageError("the method reference needs --reference, an .h5ad of labelled cells or a CellTypist model")
        counts = checked_counts(adata, name)
        result = by_reference(
            adata, counts, Path(reference), reference_key, class_map, said.taxonomy, seed, progress
        )  # fmt: skip
    said.check(len(result.clusters))
    result.classes = said.decide(result.cluster, result.classes, result.fine, result.clusters)
    result.summary["neoplastic"] = {"decided_by": said.by if said.decides else method, **said.to_json()}
    return result


def _by_markers(
    adata: Any,
    method: str,
    markers: MarkerTable | str | Path | None,
    resolution: float | None,
    seed: int,
    species: str,
    tumour: Collection[str] | None,
    said: Said,
    name: str,
    progress: Progress | None,
) -> Typing:
    """Clusters that markers name."""
    counts = checked_counts(adata, name)
    if isinstance(markers, MarkerTable):
        table = markers
    else:
        table = MarkerTable.shipped(species) if markers is None else MarkerTable.read(markers)
    if said.taxonomy is not None:
        table = table.with_taxonomy(said.taxonomy)
    counts = best_named(counts, lambda names: known_genes(names, table))
    names, report = harmonise(counts.genes.tolist(), table)
    counts = with_names(counts, names)
    genes = counts.genes.tolist()
    found = species if species != "auto" else species_of(genes)
    organism = "mouse" if found == "mouse" else "human"
    tumours = _tumour_genes(method, organism, table, tumour, genes)
    dividing = proliferation_genes(organism)
    parameters: dict[str, Any] = {
        "method": method,
        "markers": table.name,
        "taxonomy": None if said.taxonomy is None else said.taxonomy.name,
        "seed": seed,
        "resolution": resolution,
        "species": report.species,
    }
    if method == "paper":
        from stqp.celltyping import paper

        parameters["resolution"] = resolution or paper.RESOLUTION
        result = _by_paper(adata, counts, table, tumours, said, parameters, progress)
    else:
        from stqp.celltyping.stqp_method import by_stqp

        parameters["resolution"] = resolution or RESOLUTION
        result = by_stqp(adata, counts, table, tumours, dividing, said, parameters, progress)
    result.summary["genes"] = report.to_json()
    result.summary["notes"] = [*counts.notes, *report.sentences(), *table.notes, *result.summary.get("notes", [])]
    return result


def _tumour_genes(
    method: str, organism: str, table: MarkerTable, tumour: Collection[str] | None, genes: list[str]
) -> list[str]:
    """Tumour genes, as the panel names them."""
    if tumour is not None:
        symbols = {current_symbol(g): g for g in genes}
        wanted = [s for g in tumour for s in (current_symbol(g), *(to_mouse(g) if organism == "mouse" else ()))]
        found = list(dict.fromkeys(symbols[s] for s in wanted if s in symbols))
        if not found:
            raise InputError(
                f"none of the {len(tumour)} tumour genes given ({', '.join(list(tumour)[:3])}) is on the panel "
                f"({', '.join(genes[:3])}, ...); give genes of the panel, or leave out --tumour-genes"
            )
        return found
    wide = tumour_genes(organism, lineage=True)
    if method == "paper":
        return wide  # the paper's census holds genes of lineages, too
    speak = np.asarray(table.votes(wide), bool)
    # a gene of a lineage that marks none of this table cannot be mistaken for a marker
    return [*tumour_genes(organism), *(g for g, v in zip(wide, speak.tolist(), strict=True) if not any(v))]


def clustered(counts: Counts, resolution: float, seed: int, least: float, progress: Progress | None) -> tuple[Any, Any]:
    """Cluster, and refuse a single cluster."""
    labels, logged = cluster(counts, resolution, seed, progress, least)
    found = int(labels.max(initial=-1)) + 1
    if found < 2:
        raise InputError(
            f"all {int((counts.totals >= least).sum()):,} cells with {least:g} counts or more are of "
            f"{'one cluster' if found else 'no cluster'}, so no gene sets one apart from another; raise the "
            "resolution, or bring labels of your own (--method labels)"
        )
    return labels, logged


def _by_paper(
    adata: Any,
    counts: Counts,
    table: MarkerTable,
    tumours: list[str],
    said: Said,
    parameters: dict[str, Any],
    progress: Progress | None,
) -> Typing:
    from stqp.celltyping import paper
    from stqp.celltyping.voting import fine_types

    labels, logged = clustered(counts, parameters["resolution"], parameters["seed"], 1, progress)
    if progress is not None:
        progress(4, STEPS, "testing genes")
    k = int(labels.max()) + 1
    statistics = rank_genes(logged, k)
    genes = counts.genes.tolist()
    ballot = paper.vote(statistics, genes, table, tumours)
    fine, spoke = fine_types(ballot, table)
    decision = np.append(ballot.decision, UNKNOWN)
    classes = decision[labels]
    share = ballot.votes.max(axis=1, initial=0) / np.maximum(ballot.votes.sum(axis=1), 1e-9)
    confidence = np.where(classes == UNKNOWN, 0.0, np.append(share, 0.0)[labels])
    rows = describe(labels, classes, ballot, fine, spoke, statistics, genes)
    parameters |= {
        "top_n": paper.TOP_N,
        "tau_vote": paper.TAU_VOTE,
        "top_m": paper.TOP_M,
        "tau_cancer": paper.TAU_CANCER,
    }
    fine_of = np.concatenate([fine, [None]])[labels]
    said.check(k)
    classes = said.decide(labels, classes, fine_of, rows)
    summary = {
        "parameters": parameters,
        "unknown": {"its cluster has no class": int((classes == UNKNOWN).sum())},
        "neoplastic": {
            "decided_by": said.by if said.decides else f"more than {paper.TAU_CANCER:.0%} cancer genes",
            **said.to_json(),
        },
        "notes": ["the confidence of the paper's method is the share of the votes"],
    }
    return Typing(cell_ids(adata), classes, confidence, labels, fine_of, rows, summary)


def cell_ids(adata: Any) -> NDArray[np.object_]:
    """Ids of the cells as text."""
    return np.array([str(i) for i in adata.obs_names], object)


def describe(
    labels: NDArray[np.int64],
    classes: NDArray[np.object_],
    ballot: Any,
    fine: NDArray[np.object_],
    spoke: list[dict[str, float]],
    statistics: Any,
    genes: list[str],
) -> list[dict[str, Any]]:
    """Table of clusters."""
    rows = []
    for i in range(len(ballot.decision)):
        names, numbers = np.unique(classes[labels == i].astype(str), return_counts=True)
        rows.append(
            {
                "cluster": i,
                "cells": int(numbers.sum()),
                "decision": ballot.decision[i],
                "why": ballot.why[i],
                "fine_type": fine[i],
                "fine_types": {name: round(weight, 4) for name, weight in list(spoke[i].items())[:10]},
                "votes": {c: float(v) for c, v in zip(ballot.classes, ballot.votes[i], strict=True)},
                "votes_without_class": ballot.outside[i] if ballot.outside else {},
                "margin": float(ballot.margin[i]),
                "classes": dict(zip(names.tolist(), numbers.tolist(), strict=True)),
                "top_genes": top_genes(statistics, genes, i),
            }
        )
    return rows
