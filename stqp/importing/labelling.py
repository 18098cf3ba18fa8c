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

from stqp.celltyping.result import REPORT_FILE
from stqp.errors import InputError, UsageError
from stqp.hdf5 import write_anndata
from stqp.importing.objects import CLUSTER, CONFIDENCE
from stqp.importing.staged import StagedFiles
from stqp.importing.typing import (
    UNTYPED,
    class_colors,
    prepared,
    read_counts,
    show_classes,
    stage_typing,
    type_sample,
    with_types,
)
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import SOURCE_KEY, WRITTEN_KEY, object_uuids, owned, settled
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord

if TYPE_CHECKING:
    from stqp.celltyping.result import Typing
    from stqp.celltyping.taxonomies import Taxonomy

COMMAND = "label"
SAMPLE_FILE = "sample.json"
Ints = NDArray[np.int64]
Objects = NDArray[np.object_]


def label_project(
    project: str | Path,
    entry: str | None = None,
    h5ad: str | Path | None = None,
    tumour_region: str | None = None,
    normal_region: str | None = None,
    tumour_genes: str | Path | None = None,
    taxonomy: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> RunRecord:
    """Type the cells of a project's images and write what came out to their nuclei.

    Class, the measurements ``Label confidence`` and ``Label cluster`` change in place; nuclei that a person
    corrected or accepted stay. Beside the project, ``typing.json``, ``clusters.csv`` and, for people,
    ``typing.html`` say how each cluster was named, and ``cells.h5ad`` gets the columns ``class``, ``confidence``,
    ``cluster`` and ``fine_type``.

    Parameters
    ----------
    project
        Folder of the QuPath project, or its file.
    entry
        Name or id of the image; all with counts when None.
    h5ad
        Counts to use in place of those beside the project; its index holds the cell ids.
    tumour_region
        Name or class of annotations: their cells of the tumour's origin are Neoplastic, and no others.
    normal_region
        Name or class of annotations of normal tissue: nothing in them is a tumour, which is held against them.
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
    given = {"project": project, "entry": entry, "h5ad": h5ad, "tumour_region": tumour_region,
             "normal_region": normal_region, "tumour_genes": tumour_genes, "taxonomy": taxonomy, **options}  # fmt: skip
    record = RunRecord(COMMAND, given)
    ready = prepared({**options, "tumour_genes": tumour_genes, "taxonomy": taxonomy})
    regions = {"tumour_cells": tumour_region, "normal_cells": normal_region}
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
        for option in ("neoplastic_clusters", "normal_clusters"):
            if options.get(option) is not None and len(chosen) > 1:
                raise UsageError(
                    f"clusters of each image have their own numbers, the project has {len(chosen)}; name one by --entry"
                )
        with contextlib.ExitStack() as stack:
            staged = [stack.enter_context(StagedFiles(e.stqp_folder)) for e in chosen]
            for one, folder in zip(chosen, staged, strict=True):
                for sample in _samples(one.stqp_folder / SAMPLE_FILE)[: 1 if h5ad is not None else None]:
                    _label(qupath, one, folder, sample, h5ad, regions, ready, record, progress)
            for folder in staged:
                folder.place()
            qupath.save()
    return record


def _samples(path: Path) -> list[dict[str, Any]]:
    """The samples of an image, the last imported first."""
    try:
        first = json.loads(path.read_text(encoding="utf-8"))
        found = [first, *first.get("other_samples", {}).values()]
        return [{"sample": str(s["sample"]), "expression": str(s["expression"])} for s in found]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what stqp writes there ({error}); import the sample again") from error


def _label(
    qupath: QuPathProject,
    entry: Any,
    staged: StagedFiles,
    sample: dict[str, Any],
    h5ad: str | Path | None,
    regions: dict[str, str | None],
    options: dict[str, Any],
    record: RunRecord,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    """Type one sample and stage what changes."""
    beside = entry.stqp_folder / sample["expression"]
    source = beside if h5ad is None else Path(h5ad)
    adata = read_counts(source)
    record.add_input(source)
    kept = adata if source == beside or not beside.is_file() else read_counts(beside)
    if kept is not adata:
        _take_places(adata, kept, source, entry.name)
    present = entry.read_objects()
    drawn = {
        key: None if name is None else in_region(present, name, adata, entry.name) for key, name in regions.items()
    }
    typed = type_sample(adata, str(source), {**options, **drawn}, progress)
    said = record.results.setdefault("notes", [])
    said += [note for note in typed.summary.get("notes", []) if note not in said]
    show_classes(qupath, list(typed.class_counts()), options["taxonomy"])  # objects take the project's colours
    image = write_labels(entry, present, typed, adata, sample["sample"], record, options["taxonomy"])
    record.results["images"].setdefault(entry.name, {})[sample["sample"]] = {
        "cells": typed.class_counts(), "nuclei": image, "clusters": len(typed.clusters),
        "report": str(entry.stqp_folder / REPORT_FILE),
    }  # fmt: skip
    stage_typing(staged, typed, adata, sample["sample"], sample["expression"], str(source), record)
    if beside.is_file():
        write_anndata(staged.path(sample["expression"]), with_types(kept, typed))


def _take_places(adata: Any, kept: Any, source: Path, image: str) -> None:
    """Give counts of the user's the places on the image, and what the import said of their cells."""
    at = kept.obs_names.get_indexer(adata.obs_names)
    if len(at) and (at < 0).all():
        raise InputError(
            f"no cell of {source} (such as {adata.obs_names[0]!r}) is one of the {len(kept):,} of the image {image} "
            f"({kept.obs_names[0]!r}); are these counts of another sample?"
        )
    if (at >= 0).all() and "spatial" in kept.obsm:
        adata.obsm["spatial"] = np.asarray(kept.obsm["spatial"])[at]
    if UNTYPED in kept.obs:
        adata.obs[UNTYPED] = np.append(np.asarray(kept.obs[UNTYPED], bool), False)[at]
    if "n_nuclei" in kept.obs:
        adata.obs["n_nuclei"] = np.append(np.asarray(kept.obs["n_nuclei"], np.int64), 0)[at]


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
    entry: Any,
    present: PathObjects,
    typed: Typing,
    adata: Any,
    sample: str,
    record: RunRecord,
    taxonomy: Taxonomy | None = None,
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
    colors = {**old.class_colors, **class_colors(sorted(set(new_classes.tolist())), taxonomy)}
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
