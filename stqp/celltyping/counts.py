"""The counts of an AnnData, wherever it keeps them, checked; and the names of its genes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError

Floats = NDArray[np.float64]
Objects = NDArray[np.object_]

LAYERS = ("counts", "raw_counts", "raw", "count")
SYMBOLS = ("gene_symbols", "gene_symbol", "feature_name", "gene_name", "gene_names", "symbol", "SYMBOL")
IDS = ("gene_ids", "gene_id", "ensembl_id", "feature_id")


@dataclass(frozen=True)
class Counts:
    """Checked counts of genes.

    Attributes
    ----------
    matrix
        scipy CSR (n, g), float32, whole numbers.
    genes : object (g,)
        Names, each once.
    totals : float64 (n,)
        Counts of each cell.
    notes
        What was mended, one sentence each.
    other_names
        Other names of the genes, by the column of ``var``.
    """

    matrix: Any
    genes: Objects
    totals: Floats
    notes: list[str]
    other_names: dict[str, list[str]] = field(default_factory=dict)


def checked_counts(adata: Any, name: str = "the expression") -> Counts:
    """Take the counts of genes out of an AnnData, or say why they are none.

    Parameters
    ----------
    adata
        The first that holds counts of ``layers["counts"]`` (or ``raw_counts``, ``raw``, ``count``), ``X`` and
        ``raw.X``; dense or sparse, of any type of number, in memory or backed by its file. With
        ``var["feature_types"]``, genes only.
    name
        What it is, for messages.

    Raises
    ------
    InputError
        When there are no cells, genes or counts, or values that are not counts: negative, not whole, not finite.
    """
    problems: list[str] = []
    for where, matrix, var in _places(adata):
        found = _counts_of(matrix, var, name)
        if isinstance(found, Counts):
            if problems:
                found.notes.append(f"{problems[0].split('; give', 1)[0]}; the counts of {where} were taken")
            return with_names(found, found.genes.tolist())
        problems.append(found)
    # a layer that says it holds counts is what the user meant
    raise InputError(problems[0] if problems else _nothing(adata.n_obs, adata.n_vars, name))


def _places(adata: Any) -> Iterator[tuple[str, Any, Any]]:
    for layer in LAYERS:
        if layer in adata.layers:
            yield f"the layer {layer!r}", adata.layers[layer], adata.var
    if adata.X is not None:
        yield "X", adata.X, adata.var
    if adata.raw is not None:
        yield ".raw", adata.raw.X, adata.raw.var


def _nothing(cells: int, genes: int, name: str) -> str:
    return f"expected cells and genes in {name}, found {cells} cells and {genes} genes"


def _counts_of(matrix: Any, var: Any, name: str) -> Counts | str:
    """The counts, or why these are none."""
    from scipy import sparse

    if 0 in matrix.shape:
        return _nothing(matrix.shape[0], matrix.shape[1], name)
    if hasattr(matrix, "to_memory"):  # backed, sparse
        matrix = matrix.to_memory()
    if not sparse.issparse(matrix):
        matrix = np.asarray(matrix[:] if hasattr(matrix, "id") else matrix)  # backed, dense
    matrix = sparse.csr_matrix(matrix).astype(np.float64)
    genes = np.array([str(g) for g in var.index], object)
    if "feature_types" in var:
        of_genes = np.asarray(var["feature_types"].astype(str)) == "Gene Expression"
        if of_genes.any() and not of_genes.all():
            matrix, genes = matrix[:, of_genes], genes[of_genes]
            var = var[of_genes]
    values = matrix.data
    if not len(values) or not np.any(values):
        return f"expected counts in {name}, found zeros only in {len(genes)} genes of {matrix.shape[0]} cells"
    if not np.isfinite(values).all():
        strange = int((~np.isfinite(values)).sum())
        return f"expected counts in {name}, found {strange} values that are not finite (NaN or infinity)"
    if values.min() < 0:
        return (
            f"expected counts in {name}, found negative values ({values.min():g}); give them before scaling, as X, "
            "as the layer 'counts' or in .raw"
        )
    fractions = values[values != np.rint(values)]
    if len(fractions):
        return (
            f"expected counts, whole numbers, in {name}, found {fractions[0]:.4g}: these are normalised already; "
            "give the raw counts, as X, as the layer 'counts' or in .raw"
        )
    matrix = matrix.astype(np.float32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    other = {c: [str(g) for g in var[c]] for c in (*SYMBOLS, *IDS) if c in var}
    return Counts(matrix, genes, np.asarray(matrix.sum(axis=1), np.float64).ravel(), [], other)


def best_named(counts: Counts, known: Callable[[Sequence[str]], int]) -> Counts:
    """The counts by those of their genes' names that are known best.

    Parameters
    ----------
    counts
        Of `checked_counts`.
    known
        How many of some names are known.
    """
    best, number, column = counts, known(counts.genes.tolist()), None
    for name, genes in counts.other_names.items():
        found = known(genes)
        if found > number:
            best, number, column = dataclasses.replace(counts, genes=np.array(genes, object)), found, name
    if column is None:
        return counts
    note = f"the genes go by the column {column!r} of var, as {number:,} of these names are known"
    return with_names(dataclasses.replace(best, notes=[*counts.notes, note]), best.genes.tolist())


def with_names(counts: Counts, genes: list[str]) -> Counts:
    """The counts under other names; those of genes that share one are added up."""
    from scipy import sparse

    names, first, inverse = np.unique(np.array(genes, str), return_index=True, return_inverse=True)
    if len(names) == len(genes):
        return dataclasses.replace(counts, genes=np.array(genes, object))
    twice = names[np.bincount(inverse) > 1].tolist()
    note = f"{len(twice)} genes are there more than once, and their counts were added: {', '.join(twice[:5])}"
    place = np.argsort(np.argsort(first))  # keep the order of the file
    fold = sparse.csr_matrix((np.ones(len(genes), np.float32), (np.arange(len(genes)), place[inverse])))
    matrix = sparse.csr_matrix(counts.matrix @ fold)
    matrix.sort_indices()
    kept = np.sort(first)
    others = {column: [of[i] for i in kept.tolist()] for column, of in counts.other_names.items()}
    return Counts(matrix, np.array(genes, object)[kept], counts.totals, [*counts.notes, note], others)
