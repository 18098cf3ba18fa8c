"""Classes that others gave: a labelled reference, a CellTypist model, or the user's labels."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.clustering import STEPS, TARGET_SUM, Progress
from stqp.celltyping.confidence import reliability_of
from stqp.celltyping.counts import Counts, checked_counts
from stqp.celltyping.fine_types import NONE, SHARED, class_of_fine_type
from stqp.celltyping.gene_names import current_symbol, ensembl_id, symbol_of, to_human
from stqp.celltyping.result import Typing
from stqp.celltyping.taxonomies import Taxonomy
from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.sources.labels import read_labels, to_classes
from stqp.taxonomy import UNKNOWN, VISUAL_CLASSES, read_class_map

Objects = NDArray[np.object_]
Ints = NDArray[np.int64]

LEAST = 0.5  # probability below which a cell is Unknown
MIN_COUNTS = 3
SHARED_GENES = 20  # genes of both, without which nothing is learned
CELLS_PER_TYPE = 2_000  # of the reference; more teach little
HELD_OUT = 5  # one of so many cells of the reference is not learned from
_VISUAL = {c.name.lower(): c.name for c in VISUAL_CLASSES}


def by_labels(
    adata: Any,
    labels: str | Path,
    label_key: str | None,
    class_map: str | Path | None,
    taxonomy: Taxonomy | None = None,
) -> Typing:
    """Take the user's labels as `sources.labels` reads them; the map, then the taxonomy says their classes."""
    read = read_labels(labels, label_key)
    mapped = None if class_map is None else read_class_map(Path(class_map))
    if taxonomy is not None:
        classes = _classes(read.labels, mapped, taxonomy)
        lacking = dict(Counter(str(label) for label in read.labels[classes == UNKNOWN].tolist() if label is not None))
    else:
        classes, lacking = to_classes(read.labels, mapped)
    ids = np.array([str(i) for i in adata.obs_names], object)
    place = {key: i for i, key in enumerate(read.ids.tolist())}
    at = np.array([place.get(i, -1) for i in ids.tolist()], np.int64)
    if not (at >= 0).any():
        raise InputError(
            f"no cell id of {read.path} (such as {next(iter(place), '')!r}) is one of the cells' ({ids[0]!r})"
        )
    found = np.where(at >= 0, np.append(classes, UNKNOWN)[at], UNKNOWN)
    given = np.append(read.confidence, np.nan)[at]
    confidence = np.where(found == UNKNOWN, 0.0, np.where(np.isfinite(given), np.clip(given, 0, 1), 1.0))
    notes = [
        f"{number} labels {label!r} have no class in the {'class map' if mapped else 'taxonomy'} and became Unknown"
        for label, number in lacking.items()
    ]
    if (at < 0).any():
        notes.append(f"{int((at < 0).sum())} cells have no label")
    return _by_name(
        ids, np.concatenate([read.labels, [None]])[at], found, confidence, "labels", {"labels": str(labels)}, notes
    )


def by_reference(
    adata: Any,
    counts: Counts,
    reference: Path,
    key: str | None,
    class_map: str | Path | None,
    taxonomy: Taxonomy | None,
    seed: int,
    progress: Progress | None,
) -> Typing:
    """Learn the types of a labelled reference, or ask a CellTypist model.

    The cells of a reference are thinned to the depth of the cells that are typed, as a model of deep ones is too sure
    of sparse ones. A fifth of them is held out, and says how far the probabilities can be believed.
    """
    tell = progress or (lambda done, total, name: None)
    if not reference.is_file():
        raise InputError(f"the reference {reference} does not exist; give an .h5ad or a CellTypist model (.pkl)")
    tell(1, STEPS, "reference")
    if reference.suffix.lower() == ".pkl":
        fine, confidence = _celltypist(counts, reference)
        held_out: dict[str, Any] = {}
    else:
        fine, confidence, held_out = _learned(counts, reference, key, seed, tell)
    mapped = None if class_map is None else read_class_map(Path(class_map))
    classes = _classes(fine, mapped, taxonomy)
    few = (counts.totals < MIN_COUNTS) | (confidence < LEAST)
    classes[few] = UNKNOWN
    notes = [f"{int(few.sum())} cells with fewer than {MIN_COUNTS} counts or a probability below {LEAST:g} are Unknown"]
    strange = Counter(f for f, c in zip(fine.tolist(), classes.tolist(), strict=True) if c == UNKNOWN)
    unmapped = [f for f in strange if _class(f, mapped, taxonomy) == UNKNOWN]
    if unmapped:
        notes.append(f"types of the reference without a class: {', '.join(sorted(unmapped)[:10])}")
    parameters = {"reference": str(reference), "reference_key": key, "seed": seed}
    ids = np.array([str(i) for i in adata.obs_names], object)
    confidence = np.where(classes == UNKNOWN, 0.0, confidence)
    result = _by_name(ids, fine, classes, confidence, "reference", parameters, [*counts.notes, *notes])
    result.summary["unknown"] = {
        f"fewer than {MIN_COUNTS} counts": int((counts.totals < MIN_COUNTS).sum()),
        f"a probability below {LEAST:g}": int((few & (counts.totals >= MIN_COUNTS)).sum()),
        "its type has no class": int(((classes == UNKNOWN) & ~few).sum()),
    }
    if held_out:
        result.summary["confidence"] = held_out
    return result


def _shared_genes(counts: Counts, theirs: Counts, reference: Path) -> tuple[Ints, Ints]:
    """Columns of the genes that both have, by whichever of their names agree most."""
    best: tuple[Ints, Ints] | None = None
    for mine in (counts.genes.tolist(), *counts.other_names.values()):
        for other in (theirs.genes.tolist(), *theirs.other_names.values()):
            for rename in (_plain, _human):
                place = {rename(gene): i for i, gene in reversed(list(enumerate(other)))}
                pairs = {place[rename(gene)]: i for i, gene in enumerate(mine) if rename(gene) in place}
                if best is None or len(pairs) > len(best[0]):
                    best = np.array(list(pairs.values()), np.int64), np.array(list(pairs), np.int64)
    if best is None or len(best[0]) < SHARED_GENES:
        raise InputError(
            f"the reference {reference} shares {0 if best is None else len(best[0])} genes with the cells, and "
            f"{SHARED_GENES} are needed: it has genes like {', '.join(theirs.genes[:3])}, the cells "
            f"{', '.join(counts.genes[:3])}; name both by symbols or both by Ensembl ids"
        )
    order = np.argsort(best[0], kind="stable")
    return best[0][order], best[1][order]


def _plain(gene: str) -> str:
    """Today's symbol, or an Ensembl id without its version."""
    identifier = ensembl_id(gene)
    return current_symbol(gene) if identifier is None else current_symbol(symbol_of(identifier[1]))


def _human(gene: str) -> str:
    return to_human(_plain(gene))


def _learned(
    counts: Counts, reference: Path, key: str | None, seed: int, tell: Any
) -> tuple[Objects, NDArray[np.float64], dict[str, Any]]:
    import anndata
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    try:
        known = anndata.read_h5ad(reference)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"the reference {reference} is no AnnData file ({error})") from error
    if key is None:
        raise UsageError(
            f"name the column of the reference's types with --reference-key: {', '.join(known.obs.columns)}"
        )
    if key not in known.obs.columns:
        raise InputError(f"expected the column {key!r} in obs of {reference}, found {', '.join(known.obs.columns)}")
    theirs = checked_counts(known, f"the reference {reference}")
    mine, others = _shared_genes(counts, theirs, reference)
    types = known.obs[key].astype(object)
    named = np.flatnonzero(types.notna().to_numpy())
    labels = types.astype(str).to_numpy(dtype=object)
    rng = np.random.default_rng(seed)
    rows = [named[labels[named] == name] for name in sorted(set(labels[named].tolist()))]
    if len(rows) < 2:
        raise InputError(f"expected two types or more in {key!r} of the reference {reference}, found {len(rows)}")
    rows = [r if len(r) <= CELLS_PER_TYPE else rng.choice(r, CELLS_PER_TYPE, replace=False) for r in rows]
    chosen = rng.permutation(np.sort(np.concatenate(rows)))
    tell(3, STEPS, "learning the reference's types")
    depth = np.asarray(counts.matrix[:, mine].sum(axis=1), np.float64).ravel()
    thinned = _thinned(theirs.matrix[chosen][:, others], depth[depth >= MIN_COUNTS], rng)
    kept = np.flatnonzero(np.asarray(thinned.sum(axis=1)).ravel() >= MIN_COUNTS)
    chosen, thinned = chosen[kept], thinned[kept]
    held = np.arange(len(chosen)) % HELD_OUT == 0
    if len(set(labels[chosen[~held]].tolist())) < 2:
        raise InputError(f"the reference {reference} has too few cells with counts of the genes that both have")
    model = LogisticRegression(max_iter=300, C=1.0)
    model.fit(_logged(thinned[~held]), labels[chosen[~held]].astype(str))
    chance = model.predict_proba(_logged(thinned[held])) if held.any() else np.zeros((0, 1))
    right = model.classes_[chance.argmax(axis=1)] == labels[chosen[held]].astype(str)
    bins, distance = reliability_of(chance.max(axis=1), right.astype(np.float64))
    said = {"held_out": bins, "expected_calibration_error": distance, "of": "cells of the reference, thinned"}
    tell(6, STEPS, "typing the cells")
    names = model.classes_.astype(object)
    fine, confidence = np.empty(len(counts.totals), object), np.zeros(len(counts.totals))
    for begin in range(0, len(fine), 20_000):
        chance = model.predict_proba(_logged(counts.matrix[begin : begin + 20_000][:, mine]))
        fine[begin : begin + 20_000] = names[chance.argmax(axis=1)]
        confidence[begin : begin + 20_000] = chance.max(axis=1)
    return fine, confidence, said


def _thinned(matrix: Any, depth: NDArray[np.float64], rng: np.random.Generator) -> Any:
    """Counts with totals like those of `depth`, by leaving out counts at random."""
    from scipy import sparse

    if not len(depth):
        return matrix
    total = np.maximum(np.asarray(matrix.sum(axis=1), np.float64).ravel(), 1)
    share = np.minimum(1.0, rng.choice(depth, len(total)) / total)
    result = sparse.csr_matrix(matrix, copy=True)
    result.data = rng.binomial(result.data.astype(np.int64), np.repeat(share, np.diff(result.indptr))).astype(
        np.float32
    )
    result.eliminate_zeros()
    return result


def _logged(matrix: Any) -> Any:
    """log1p of counts per 1e4, over the given genes; sparse."""
    from scipy import sparse

    total = np.maximum(np.asarray(matrix.sum(axis=1), np.float64).ravel(), 1)
    result = sparse.csr_matrix(sparse.diags(TARGET_SUM / total) @ matrix)
    result.data = np.log1p(result.data)
    return result


def _celltypist(counts: Counts, model: Path) -> tuple[Objects, NDArray[np.float64]]:
    if importlib.util.find_spec("celltypist") is None:
        raise EnvironmentProblem(f"the model {model} is CellTypist's, which is not installed; pip install celltypist")
    import anndata
    import celltypist  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import pandas as pd

    try:
        loaded = celltypist.models.Model.load(str(model))
        logged = anndata.AnnData(_logged(counts.matrix), var=pd.DataFrame(index=pd.Index(counts.genes)))
        found = celltypist.annotate(logged, model=loaded, majority_voting=False)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"the CellTypist model {model} cannot be used ({error})") from error
    fine = found.predicted_labels["predicted_labels"].astype(str).to_numpy(dtype=object)
    return fine, found.probability_matrix.to_numpy(dtype=np.float64).max(axis=1)


def _class(fine: str, mapped: dict[str, str] | None, taxonomy: Taxonomy | None = None) -> str:
    """Class of a type: by the map; else itself, where it is a class; else by the taxonomy and the table of types."""
    if mapped is not None:
        return mapped.get(fine, UNKNOWN)
    if taxonomy is not None:
        names = {name.casefold(): name for name in taxonomy.classes}
        if fine.casefold() in names:
            return names[fine.casefold()]
        return taxonomy.class_of(fine, _class(fine, None))
    if fine.lower() in _VISUAL:
        return _VISUAL[fine.lower()]
    found = class_of_fine_type(fine)
    return UNKNOWN if found in (None, NONE, SHARED) else str(found)


def _classes(fine: Objects, mapped: dict[str, str] | None, taxonomy: Taxonomy | None = None) -> Objects:
    known = {n: UNKNOWN if n is None else _class(str(n), mapped, taxonomy) for n in set(fine.tolist())}
    return np.array([known[name] for name in fine.tolist()], object)


def _by_name(
    ids: Objects,
    fine: Objects,
    classes: Objects,
    confidence: NDArray[np.float64],
    method: str,
    parameters: dict[str, Any],
    notes: list[str],
) -> Typing:
    """Typing whose clusters are the types that were named, by falling size."""
    order = [name for name, _ in sorted(Counter(f for f in fine.tolist() if f is not None).items(),
                                        key=lambda item: (-item[1], item[0]))]  # fmt: skip
    number = {name: i for i, name in enumerate(order)}
    cluster = np.array([number.get(f, -1) for f in fine.tolist()], np.int64)
    rows = []
    for i, name in enumerate(order):
        found = Counter(classes[cluster == i].tolist())
        rows.append(
            {"cluster": i, "cells": int((cluster == i).sum()), "decision": found.most_common(1)[0][0],
             "fine_type": name, "why": f"named {name!r} by the {method}", "classes": dict(found)}
        )  # fmt: skip
    summary = {"parameters": {"method": method, **parameters}, "notes": notes}
    return Typing(ids, classes, confidence, cluster, fine, rows, summary)
