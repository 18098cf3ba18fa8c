"""Write the types of cells to their nuclei in a project, in place; what a person corrected stays."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.hdf5 import write_anndata
from stqp.importing.objects import CONFIDENCE
from stqp.importing.staged import StagedFiles
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import SOURCE_KEY, WRITTEN_KEY, object_uuids, owned, settled
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord
from stqp.taxonomy import UNKNOWN, color_of

if TYPE_CHECKING:
    from stqp.celltyping.result import Typing

COMMAND = "label"
SAMPLE_FILE = "sample.json"
CLUSTER = "Label cluster"
Ints = NDArray[np.int64]
Objects = NDArray[np.object_]


def label_project(
    project: str | Path,
    entry: str | None = None,
    h5ad: str | Path | None = None,
    tumour_region: str | None = None,
    tumour_genes: str | Path | None = None,
    taxonomy: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> RunRecord:
    """Type the cells of a project's images and write what came out to their nuclei.

    Class, the measurements ``Label confidence`` and ``Label cluster`` change in place; nuclei that a person
    corrected or accepted stay. Beside the project, ``typing.json`` and ``clusters.csv`` say how each cluster
    was named, and ``cells.h5ad`` gets the columns ``class``, ``confidence``, ``cluster`` and ``fine_type``.

    Parameters
    ----------
    project
        Folder of the QuPath project, or its file.
    entry
        Name or id of the image; all with counts when None.
    h5ad
        Counts to use in place of those beside the project; its index holds the cell ids.
    tumour_region
        Name or class of annotations: their epithelial cells are Neoplastic, and no others.
    tumour_genes
        Text file of gene names, one a line.
    taxonomy
        TOML file of classes.
    progress
        Called with (steps done, steps in all, name of the next).
    **options
        Of `stqp.celltyping.methods.type_cells`.

    Returns
    -------
    RunRecord
        ``results`` has for each image the classes of its cells and nuclei.

    Raises
    ------
    InputError
        When there are no counts, or they cannot be typed; nothing is written then.
    UsageError
        When arguments do not go together.
    """
    from stqp.celltyping.taxonomies import Taxonomy

    given = {"project": project, "entry": entry, "h5ad": h5ad, "tumour_region": tumour_region,
             "tumour_genes": tumour_genes, "taxonomy": taxonomy, **options}  # fmt: skip
    record = RunRecord(COMMAND, given)
    classes = None if taxonomy is None else Taxonomy.read(taxonomy)
    if tumour_genes is not None:
        options["tumour"] = read_genes(Path(tumour_genes))
    record.results["images"] = {}
    # objects change in their places, which QuPath's own hierarchy cannot do
    with QuPathProject.open(project, "r+") as qupath:
        chosen = [qupath.entry(entry)] if entry is not None else list(qupath.entries)
        chosen = [e for e in chosen if (e.stqp_folder / SAMPLE_FILE).is_file()]
        if not chosen:
            what = "no image" if entry is None else f"the image {entry}"
            has = "has" if entry is None else "has no"
            raise InputError(f"{what} of the project {qupath.folder} {has} counts beside it; import a sample first")
        if h5ad is not None and len(chosen) > 1:
            raise UsageError(
                f"--h5ad holds the counts of one image, the project has {len(chosen)}; name one by --entry"
            )
        colors = {} if classes is None else dict(classes.colors)
        with contextlib.ExitStack() as stack:
            staged = [stack.enter_context(StagedFiles(e.stqp_folder)) for e in chosen]
            for one, folder in zip(chosen, staged, strict=True):
                for sample in _samples(one.stqp_folder / SAMPLE_FILE)[: 1 if h5ad is not None else None]:
                    typed = _label(
                        one, folder, sample, h5ad, tumour_region, {**options, "taxonomy": classes}, record, progress
                    )
                    names = list(typed.class_counts())
                    qupath.add_classes({name: colors.get(name, color_of(name)) for name in names})
            for folder in staged:
                folder.place()
            qupath.save()
    return record


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


def _samples(path: Path) -> list[dict[str, Any]]:
    """The samples of an image, the last imported first."""
    try:
        first = json.loads(path.read_text(encoding="utf-8"))
        found = [first, *first.get("other_samples", {}).values()]
        return [{"sample": str(s["sample"]), "expression": str(s["expression"])} for s in found]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what stqp writes there ({error}); import the sample again") from error


def _label(
    entry: Any,
    staged: StagedFiles,
    sample: dict[str, Any],
    h5ad: str | Path | None,
    region: str | None,
    options: dict[str, Any],
    record: RunRecord,
    progress: Callable[[int, int, str], None] | None,
) -> Typing:
    """Type one sample and stage what changes."""
    from stqp.celltyping.methods import type_cells
    from stqp.celltyping.result import CLUSTERS_FILE, TYPING_FILE

    beside = entry.stqp_folder / sample["expression"]
    source = beside if h5ad is None else Path(h5ad)
    adata = read_counts(source)
    record.add_input(source)
    present = entry.read_objects()
    inside = None if region is None else in_region(present, region, adata, entry.name)
    typed = type_cells(adata, tumour_cells=inside, name=str(source), progress=progress, **options)
    said = record.results.setdefault("notes", [])
    said += [note for note in typed.summary.get("notes", []) if note not in said]
    image = write_labels(entry, present, typed, adata, sample["sample"], record)
    record.results["images"].setdefault(entry.name, {})[sample["sample"]] = {
        "cells": typed.class_counts(), "nuclei": image, "clusters": len(typed.clusters),
    }  # fmt: skip
    suffix = "" if sample["expression"] == "cells.h5ad" else f"-{sample['sample']}"
    summary = {"sample": sample["sample"], "counts": str(source), **typed.to_json()}
    files.write_json(staged.path(TYPING_FILE.replace(".", f"{suffix}.")), {**summary, "record": record.to_dict()})
    files.write_bytes(staged.path(CLUSTERS_FILE.replace(".", f"{suffix}.")), typed.clusters_csv().encode())
    if beside.is_file():
        kept = adata if source == beside else read_counts(beside)
        write_anndata(staged.path(sample["expression"]), with_types(kept, typed))
    return typed


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
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no AnnData file ({error})") from error


def with_types(adata: Any, typed: Typing) -> Any:
    """The AnnData with the columns of the typing in ``obs``; cells that were not typed are Unknown."""
    import pandas as pd

    place = {key: i for i, key in enumerate(typed.cell_ids.tolist())}
    at = np.array([place.get(str(i), -1) for i in adata.obs_names], np.int64)
    adata.obs["class"] = pd.Categorical(np.append(typed.classes, UNKNOWN)[at])
    adata.obs["confidence"] = np.append(typed.confidence, 0.0)[at]
    adata.obs["cluster"] = np.append(typed.cluster, -1)[at]
    adata.obs["fine_type"] = pd.Categorical(np.concatenate([typed.fine, [None]])[at])
    return adata


def in_region(present: PathObjects, name: str, adata: Any, image: str) -> NDArray[np.bool_]:
    """Cells whose place lies in the annotations of a name or class; bool (n,)."""
    import shapely

    found = (present.kind == ObjectKind.ANNOTATION) & ((present.names == name) | (present.classes == name))
    found &= ~owned(present)
    if not found.any():
        raise InputError(f"the image {image} has no annotation that is called {name!r} or of that class")
    if "spatial" not in adata.obsm:
        raise InputError(f"the cells have no places (obsm['spatial']), so none can be in the region {name!r}")
    area = shapely.union_all(shapely.make_valid(present.polygons.take(found).to_shapely()))
    shapely.prepare(area)
    places = np.asarray(adata.obsm["spatial"], np.float64)
    return np.asarray(shapely.contains_xy(area, places[:, 0], places[:, 1]), bool)


def write_labels(
    entry: Any, present: PathObjects, typed: Typing, adata: Any, sample: str, record: RunRecord
) -> dict[str, int]:
    """Write class, confidence and cluster to the nuclei of a sample in place.

    Returns
    -------
    dict
        Nuclei of each class after it, corrected ones among them.
    """
    column = present.metadata.get(SOURCE_KEY, np.full(len(present), None, object))
    mine = np.array([text is not None and text.split(":", 1)[-1] == sample for text in column.tolist()], bool)
    mine &= np.array([(text or "").startswith("import-") for text in column.tolist()], bool)
    at = cell_of(present, typed.cell_ids, adata, sample)
    known = mine & (at >= 0)
    record.skip("nuclei whose cell is not among those typed (left as they are)", int((mine & ~known).sum()))
    kept = known & settled(present)
    wanted = typed.classes[at]
    differ = int((kept & (present.classes != wanted)).sum())
    record.skip("nuclei that somebody corrected or accepted (kept as they are)", int(kept.sum()))
    if kept.any():
        _add(record, "of the kept nuclei, typed otherwise", differ)
    change = np.flatnonzero(known & ~kept)
    old = present.take(change)
    new_classes = wanted[change]
    _add(record, "nuclei typed", len(change))
    _add(record, "of these, of another class than before", int((old.classes != new_classes).sum()))
    measured = {
        **old.measurements,
        CONFIDENCE: typed.confidence[at[change]],
        CLUSTER: np.where(typed.cluster[at[change]] >= 0, typed.cluster[at[change]].astype(np.float64), np.nan),
    }
    written = old.metadata[WRITTEN_KEY].copy() if len(change) else np.zeros(0, object)
    # the shape is what it was: only the class in the mark changes
    written[:] = [f"{c}|{w.rsplit('|', 1)[1]}" for c, w in zip(new_classes.tolist(), written.tolist(), strict=True)]
    colors = {**old.class_colors, **{name: color_of(name) for name in set(new_classes.tolist())}}
    new = dataclasses.replace(
        old,
        classes=new_classes,
        measurements=measured,
        metadata={**old.metadata, WRITTEN_KEY: written},
        class_colors=colors,
    )
    if len(change):
        entry.update_objects(change, new)
    final = present.classes.copy()
    final[change] = new_classes
    counts = np.unique(final[mine].astype(str), return_counts=True)
    return dict(zip(counts[0].tolist(), counts[1].tolist(), strict=True))


def cell_of(present: PathObjects, cells: Objects, adata: Any, sample: str) -> Ints:
    """Row of each object's cell, -1 for none: by the object's id, else by its name; int64 (objects,)."""
    number = np.ones(len(cells), np.int64)
    if "n_nuclei" in adata.obs:
        number = np.asarray(adata.obs["n_nuclei"], np.int64)
    owner = np.repeat(np.arange(len(cells)), number)
    position = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    by_id = dict(zip(object_uuids(sample, cells[owner], position).tolist(), owner.tolist(), strict=True))
    by_name = {cell: i for i, cell in enumerate(cells.tolist())}
    found = [
        by_id.get(identifier, by_name.get(name, -1))
        for identifier, name in zip(present.ids.tolist(), present.names.tolist(), strict=True)
    ]
    return np.array(found, np.int64)


def _add(record: RunRecord, name: str, number: int) -> None:
    """Add to a count, over the samples."""
    record.count(name, int(record.counts.get(name, 0)) + number)
