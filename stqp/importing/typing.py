"""From counts to types and the files that say how: what `stqp label` and every import share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.importing.objects import CLUSTER
from stqp.importing.staged import StagedFiles
from stqp.record import RunRecord
from stqp.taxonomy import RGB, UNKNOWN, color_of

if TYPE_CHECKING:
    from stqp.celltyping.result import Typing
    from stqp.celltyping.taxonomies import Taxonomy
    from stqp.sample import SpatialSample

UNTYPED = "untyped"  # column of obs: cells that an import was told not to trust
UNTRUSTED = "the import was told not to trust the cell (few transcripts, many controls)"
CELLS_FILE = "cells.h5ad"
IMPORT_METHODS = ("stqp", "paper", "reference")
_DEFAULTS = {"seed": 0, "species": "auto", "tumour_origin": "epithelial"}
Progress = Callable[[int, int, str], None]


def prepared(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `stqp.celltyping.methods.type_cells`, with the files of classes and of tumour genes read.

    Raises
    ------
    InputError
        When one of them cannot be read.
    """
    from stqp.celltyping.taxonomies import Taxonomy

    result = dict(options)
    taxonomy, genes = result.get("taxonomy"), result.pop("tumour_genes", None)
    result["taxonomy"] = None if taxonomy is None else Taxonomy.read(taxonomy)
    result["tumour"] = None if genes is None else read_genes(Path(genes))
    return result


def type_sample(adata: Any, name: str, options: Mapping[str, Any], progress: Progress | None = None) -> Typing:
    """Type the cells of a sample; those that its import was told not to trust are Unknown.

    Parameters
    ----------
    adata
        Counts.
    name
        What they are, for messages.
    options
        Of `prepared`.
    progress
        Called with (steps done, steps in all, name of the next).
    """
    from stqp.celltyping.methods import type_cells

    typed = type_cells(adata, name=name, progress=progress, **options)
    if UNTYPED in adata.obs:
        doubted = np.asarray(adata.obs[UNTYPED], bool) & (typed.classes != UNKNOWN)
        typed.set_unknown(doubted, UNTRUSTED)
    taxonomy: Taxonomy | None = options.get("taxonomy")
    if taxonomy is not None:
        typed.summary["taxonomy"] = {
            "name": taxonomy.name,
            "classes": list(taxonomy.classes),
            "colors": {name: list(color) for name, color in taxonomy.colors.items()},
            "parents": dict(taxonomy.parents),
            "visual": taxonomy.to_visual,
        }
    return typed


def class_colors(names: list[str], taxonomy: Taxonomy | None) -> dict[str, RGB]:
    """Colours of classes: all of a taxonomy in its order, then any others; Unknown last."""
    own = {} if taxonomy is None else dict(taxonomy.colors)
    rest = {name: color_of(name) for name in names if name not in own}
    return {**own, **rest}


def show_classes(qupath: Any, names: list[str], taxonomy: Taxonomy | None) -> None:
    """Have the project list classes; a colour that a taxonomy chose is set, any other stays as the project has it."""
    colors = class_colors(names, taxonomy)
    chosen = {name: color for name, color in colors.items() if color != color_of(name)}
    if any(qupath.classes.get(name, color) != color for name, color in chosen.items()):
        qupath.set_classes({name: chosen.get(name, color) for name, color in qupath.classes.items()})
    qupath.add_classes(colors)


def typing_options(
    method: str | None, labels: Any, class_map: Any, taxonomy: str | Path | None, **options: Any
) -> dict[str, Any] | None:
    """Options of an import that types its cells, see `prepared`; None for one that does not.

    Raises
    ------
    InputError
        When the taxonomy or the tumour genes cannot be read.
    UsageError
        When it reads labels, or when options say how to type and the method is None.
    """
    given = {"taxonomy": taxonomy, **options}
    if method is None:
        said = [name for name, value in given.items() if value is not None and value != _DEFAULTS.get(name)]
        if said:
            raise UsageError(f"--{said[0].replace('_', '-')} says how cells are typed; give --type, too")
        return None
    if labels is not None or method not in IMPORT_METHODS:
        raise UsageError(
            f"cells are typed by {', '.join(IMPORT_METHODS)}, and not where labels are given; found {method!r}"
        )
    return prepared({**given, "method": method, "class_map": class_map})


def typing_steps() -> int:
    """Steps that `type_nuclei` tells of."""
    from stqp.celltyping.clustering import STEPS

    return STEPS


def type_nuclei(
    sample: SpatialSample,
    expression: Any,
    options: Mapping[str, Any],
    record: RunRecord,
    progress: Progress | None = None,
) -> Typing:
    """Type the cells of a sample that is not written yet; its nuclei and its AnnData take what comes out.

    Parameters
    ----------
    sample
        Its nuclei change.
    expression
        Of ``sample.expression()``; changes.
    options
        Of `typing_options`.
    record
        Of the run.
    progress
        As of `stqp.celltyping.methods.type_cells`.
    """
    typed = type_sample(expression, "the run's counts", options, progress)
    for note in typed.summary.get("notes", []):
        record.results.setdefault("notes", []).append(note)
    nuclei, at = sample.nuclei, sample.nuclei.cell
    nuclei.classes, nuclei.confidence = typed.classes[at], typed.confidence[at]
    sample.cells.classes = typed.classes
    clusters = np.where(typed.cluster[at] >= 0, typed.cluster[at].astype(np.float64), np.nan)
    sample.extra["measurements"] = {**sample.extra.get("measurements", {}), CLUSTER: clusters}
    sample.extra["class_colors"] = class_colors(list(typed.class_counts()), options["taxonomy"])
    with_types(expression, typed)
    record.results["typing"] = {"cells": typed.class_counts(), "clusters": len(typed.clusters)}
    return typed


def stage_typing(
    staged: StagedFiles, typed: Typing, adata: Any, sample: str, expression: str, source: str, record: RunRecord
) -> None:
    """Stage ``typing.json``, ``clusters.csv`` and ``typing.html``; another sample's names have its id behind.

    Parameters
    ----------
    staged
        The folder beside the image.
    typed, adata
        What came out, and the counts with their places.
    sample, expression, source
        Id of the sample, name of its counts beside the project, and where those that were typed are from.
    record
        Of the run.
    """
    from stqp.celltyping.result import CLUSTERS_FILE, REPORT_FILE, TYPING_FILE
    from stqp.report.typing import typing_html

    suffix = "" if expression == CELLS_FILE else f"-{sample}"

    def path(name: str) -> Path:
        return staged.path(name.replace(".", f"{suffix}."))

    content = {"sample": sample, "counts": source, **typed.to_json()}
    files.write_json(path(TYPING_FILE), {**content, "record": record.to_dict()})
    files.write_bytes(path(CLUSTERS_FILE), typed.clusters_csv().encode())
    files.write_bytes(path(REPORT_FILE), typing_html(typed, adata.obsm.get("spatial"), sample).encode())


def read_genes(path: Path) -> list[str]:
    """Gene names, one a line; the first column of a table; lines that start with ``#`` are comments.

    Raises
    ------
    InputError
        When there are none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list of genes {path} cannot be read: {error}") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    genes = [line.replace("\t", ",").replace(";", ",").split(",")[0].strip().strip('"') for line in lines]
    genes = [g for g in genes if g and g.lower() not in ("gene", "genes", "symbol")]
    if not genes:
        raise InputError(f"the list of genes {path} is empty; expected one name a line")
    return genes


def read_counts(path: Path) -> Any:
    """Read an AnnData file.

    Raises
    ------
    InputError
        When it is missing or none.
    """
    import anndata

    if not path.is_file():
        raise InputError(f"the counts {path} do not exist; import the sample again, or give --h5ad")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path} is no AnnData file, or was cut off ({error})") from error


def with_types(adata: Any, typed: Typing) -> Any:
    """The AnnData with the columns of the typing in ``obs``; cells that were not typed are Unknown."""
    import pandas as pd

    at = rows_of(typed, adata.obs_names)
    adata.obs["class"] = pd.Categorical(np.append(typed.classes, UNKNOWN)[at])
    adata.obs["confidence"] = np.append(typed.confidence, 0.0)[at]
    adata.obs["cluster"] = np.append(typed.cluster, -1)[at]
    adata.obs["fine_type"] = pd.Categorical(np.concatenate([typed.fine, [None]])[at])
    return adata


def rows_of(typed: Typing, cells: Any) -> NDArray[np.int64]:
    """Row of each cell in what was typed, -1 for none."""
    place = {key: i for i, key in enumerate(typed.cell_ids.tolist())}
    return np.array([place.get(str(i), -1) for i in cells], np.int64)
