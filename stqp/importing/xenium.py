"""Import a sample into a QuPath project: everything is read and checked first, then written at once."""

from __future__ import annotations

import json
import logging
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.alignment.refine import LIMIT_UM
from stqp.errors import InputError, UsageError
from stqp.hdf5 import write_anndata
from stqp.importing.objects import KINDS, class_table, to_objects
from stqp.importing.region import find_region
from stqp.importing.staged import StagedFiles
from stqp.importing.typing import Progress, show_classes, stage_typing, type_nuclei, typing_options, typing_steps
from stqp.qupath.backends import DEFAULT_BACKEND, check_backend, open_project
from stqp.qupath.entry import ProjectEntry
from stqp.qupath.objects import PathObjects
from stqp.qupath.ownership import SOURCE_KEY, object_uuids, owned, settled, stamp
from stqp.record import RunRecord
from stqp.sample import SpatialSample
from stqp.slides import open_slide
from stqp.sources.building import read_xenium_sample
from stqp.sources.filters import Filters
from stqp.taxonomy import UNKNOWN

logger = logging.getLogger(__name__)

COMMAND = "import-xenium"
CELLS_FILE, SAMPLE_FILE, RECORD_FILE, KNOWN_FILE = "cells.h5ad", "sample.json", "import.json", "known_nuclei.npz"
_STEPS = 5


def import_xenium(
    outs: str | Path,
    he: str | Path,
    alignment: str | Path,
    project: str | Path,
    labels: str | Path | None = None,
    label_key: str | None = None,
    class_map: str | Path | None = None,
    name: str | None = None,
    as_kind: str = "annotations",
    keep_corrections: bool = True,
    mpp: float | None = None,
    nuclei_source: str = "polygons",
    backend: str = DEFAULT_BACKEND,
    alignment_direction: str = "he-to-morphology",
    keypoint_fit: str = "affine",
    qc: bool = True,
    refine: str = "off",
    refine_limit: float = LIMIT_UM,
    region: str | Path | None = None,
    min_transcripts: int | None = None,
    max_control_fraction: float | None = None,
    min_area: float | None = None,
    max_area: float | None = None,
    max_overlap: float | None = 0.5,
    min_stain: float | None = None,
    tissue_only: bool = False,
    cell_types: str | None = None,
    markers: str | Path | None = None,
    taxonomy: str | Path | None = None,
    resolution: float | None = None,
    seed: int = 0,
    species: str = "auto",
    reference: str | Path | None = None,
    reference_key: str | None = None,
    tumour_genes: str | Path | None = None,
    tumour_origin: str = "epithelial",
    progress: Progress | None = None,
) -> RunRecord:
    """Turn a Xenium run and its H&E into typed nuclei of a QuPath project.

    A second import of the same sample replaces what the first wrote and nothing else.

    Parameters
    ----------
    outs
        The Xenium output folder.
    he
        The H&E image of the same section.
    alignment
        csv of a 3x3 matrix from H&E to morphology pixels, csv of keypoints, Explorer's zip of both, six or nine
        numbers row by row (as text, ``.json`` or ``.npy``), or ``identity``.
    project
        Folder of the QuPath project; made where there is none.
    labels
        Labels of the cells: csv, tsv, parquet or h5ad. Without, every nucleus is Unknown.
    label_key
        Column of the labels; for h5ad of ``obs``.
    class_map
        csv ``label,class``.
    name
        Of the sample; the region's own when None.
    as_kind : {"annotations", "detections", "cells"}
        What the nuclei are in QuPath.
    keep_corrections
        Keep nuclei whose class or shape a person changed since the last import, and do not bring back those
        that a person deleted.
    mpp
        µm per pixel of the H&E, in place of what the file says.
    nuclei_source : {"polygons", "masks"}
        Outlines of the run's tables, simplified for display, or of the masks of its segmentation.
    backend : {"native", "paquo"}
        What writes the project, see `stqp.qupath.backends`.
    alignment_direction : {"he-to-morphology", "morphology-to-he", "auto"}
        What the matrix maps; ``auto`` asks the slide's pixel size, its bounds and its stain.
    keypoint_fit : {"affine", "similarity"}
        What is fitted to keypoints.
    qc
        Measure how well the nuclei lie on the haematoxylin, see `stqp.alignment.measure`.
    refine : {"off", "shift", "affine", "smooth"}
        Correct the alignment by the haematoxylin, see `stqp.alignment.refine`.
    refine_limit
        µm by which a refinement moves a nucleus at most.
    region
        Part of the run to import: csv of a selection in Xenium Explorer, GeoJSON in H&E pixels, or
        ``annotation:NAME`` for what somebody drew on the image in the project.
    min_transcripts, max_control_fraction, min_area, max_area, max_overlap, min_stain, tissue_only
        See `stqp.sources.filters.Filters`.
    cell_types : {None, "stqp", "paper", "reference"}
        Type the cells by their counts in place of labels, see `stqp.celltyping.methods.type_cells`; `class_map` is
        then of a reference's types.
    markers, taxonomy, resolution, seed, species, reference, reference_key, tumour_genes, tumour_origin
        How, see there; `taxonomy` is a TOML file, and `tumour_genes` a text file of names.
    progress
        Called with steps done, steps in all, and what is being done.

    Returns
    -------
    RunRecord
        ``results`` has the project, the entry's name and the number of nuclei written of each class.

    Raises
    ------
    InputError
        When a file is missing, broken, or does not belong to the others; nothing is written then.
    UsageError
        When arguments do not go together.
    EnvironmentProblem
        When the disk is full or somebody else writes the project; what was there before stays.
    """
    arguments = {k: v for k, v in locals().items() if k != "progress"}
    if as_kind not in KINDS:
        raise UsageError(f"expected one of {', '.join(KINDS)} to make of the nuclei, found {as_kind!r}")
    typing = typing_options(
        cell_types, labels, class_map, markers=markers, taxonomy=taxonomy, resolution=resolution, seed=seed,
        species=species, reference=reference, reference_key=reference_key, tumour_genes=tumour_genes,
        tumour_origin=tumour_origin,
    )  # fmt: skip
    check_backend(backend)
    filters = Filters(
        min_transcripts, max_control_fraction, min_area, max_area, max_overlap, min_stain, tissue_only
    )  # fmt: skip
    part = None if region is None else find_region(region, project, he)
    record = RunRecord(COMMAND, arguments)

    more = 0 if typing is None else typing_steps()

    def step(done: int, doing: str) -> None:
        if progress is not None:
            progress(done + (more if done > 1 else 0), _STEPS + more, doing)

    def typing_step(done: int, _: int, doing: str) -> None:
        if progress is not None:
            progress(1 + done, _STEPS + more, f"typing: {doing}")

    step(0, "reading the run and its slide")
    sample = read_xenium_sample(
        outs,
        he,
        alignment,
        labels,
        label_key,
        class_map if typing is None else None,
        name,
        mpp,
        record,
        nuclei_source,
        alignment_direction=alignment_direction,
        keypoint_fit=keypoint_fit,
        region=part,
        filters=filters,
        qc=qc,
        refine=refine,
        refine_limit=refine_limit,
    )
    step(1, "counting transcripts")
    expression = sample.expression()
    typed = None if typing is None else type_nuclei(sample, expression, typing, record, typing_step)
    if labels is None and typed is None:
        record.warn(f"no labels were given, so every nucleus is {UNKNOWN}; stqp label types them")
    source, run = f"{COMMAND}:{sample.id}", uuid.uuid4().hex[:12]
    ids = object_uuids(sample.id, sample.nuclei.cell_id, sample.nuclei.position)
    objects = to_objects(sample, as_kind, ids)
    step(2, "adding the image")
    with open_project(project, "a", backend) as qupath:
        before = {entry.id for entry in qupath.entries}
        with open_slide(he, sample.mpp) as slide:
            entry = qupath.add_image(slide, name, {"stqp.sample": sample.id})
        fresh = entry.id not in before
        if entry.mpp is not None and abs(entry.mpp / sample.mpp - 1) > 0.01:
            record.warn(f"the project has {entry.name} at {entry.mpp:g} µm per pixel, the import {sample.mpp:g}")
        present = PathObjects.empty() if fresh else entry.read_objects()
        ever: dict[str, Any] = {} if fresh else _read_known(entry.stqp_folder / KNOWN_FILE)
        own = owned(present, source)
        if not keep_corrections:
            own |= np.isin(present.ids.astype(str), ids.astype(str))
        kept = own & settled(present) if keep_corrections else np.zeros(len(present), bool)
        deleted = _deleted(present, _unpack(ever.get(f"ids-{sample.id}")), record) if keep_corrections else set()
        withheld = set(present.ids[~own | kept].tolist()) | deleted
        wanted = np.array([i not in withheld for i in ids.tolist()], bool)
        _count(record, present, own, kept, deleted.intersection(ids.tolist()), source)
        unmarked = np.isin(present.ids[~own].astype(str), ids.astype(str)).sum()
        record.skip("nuclei that are in the image already without stqp's mark (left as they are)", unmarked)
        new = stamp(objects.take(wanted), source, run)
        show_classes(qupath, list(class_table(sample)), None if typing is None else typing["taxonomy"])
        record.count("nuclei written", len(new))
        counts = new.class_counts()
        record.results["classes"] = {c: counts[c] for c in class_table(sample) if c in counts}
        record.results.update(project=str(qupath.folder), entry=entry.name, sample=sample.id, run=run)
        with StagedFiles(entry.stqp_folder) as staged:
            description = _describe(sample, run, record, entry, fresh)
            write_anndata(staged.path(description["expression"]), expression)
            step(3, "writing nuclei")
            ever[f"ids-{sample.id}"] = _pack(deleted.union(ids.tolist()))
            with files.disk_errors(entry.stqp_folder), staged.path(KNOWN_FILE).open("wb") as file:
                np.savez(file, **ever)
            files.write_json(staged.path(SAMPLE_FILE), description)
            if typed is not None:
                stage_typing(staged, typed, expression, sample.id, description["expression"], str(outs), record)
            # by id: what a person drew or corrected is never in the mask
            gone = set(present.ids[own & ~kept].tolist())
            entry.write_objects(new, replace=lambda now: np.array([i in gone for i in now.ids.tolist()], bool))
            step(4, "saving the project")
            record.write(staged.path(RECORD_FILE))
            staged.place()
            qupath.save()
            image = entry.id
    step(_STEPS, "done")
    return record


def _count(
    record: RunRecord,
    present: PathObjects,
    own: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    deleted: set[str],
    source: str,
) -> None:
    """Note what the project already held."""
    replaced = int((own & ~kept).sum())
    if replaced:
        record.count("nuclei of the last import replaced", replaced)
    others = int((~own).sum())
    if others:
        record.count("other objects of the image left alone", others)
    record.skip("nuclei that somebody corrected or accepted (kept; --discard-corrections overwrites)", int(kept.sum()))
    record.skip("nuclei that somebody deleted (--discard-corrections brings them back)", len(deleted))
    column = present.metadata.get(SOURCE_KEY)
    if column is not None:
        other = {s for s in column.tolist() if s and s.startswith(f"{COMMAND}:") and s != source}
        if other:
            names = ", ".join(sorted(s.split(":", 1)[1] for s in other))
            record.warn(f"the image also has nuclei of the sample {names}; where both lie there are two outlines")


def _deleted(present: PathObjects, known: set[str], record: RunRecord) -> set[str]:
    """Ids that an import wrote and that are no longer there."""
    here = set(present.ids.tolist())
    if known and not known & here:
        record.warn("all nuclei of the last import were gone from the image; they are written again")
        return set()
    return known - here


def _describe(sample: SpatialSample, run: str, record: RunRecord, entry: ProjectEntry, fresh: bool) -> dict[str, Any]:
    """What `sample.json` says; other samples of the same slide stay, and their coverage counts."""
    path = entry.stqp_folder / SAMPLE_FILE
    others: dict[str, Any] = {}
    if not fresh and path.is_file():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            others = {**old.pop("other_samples", {}), str(old["sample"]): old}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not what stqp writes there ({error}); delete it and import again") from error
    mine = others.pop(sample.id, None)
    for other in others.values():
        other["coverage"] = other.get("own_coverage", other["coverage"])
    taken = {other.get("expression") for other in others.values()}
    own_coverage = [ring.round(3).tolist() for ring in sample.coverage]
    default = CELLS_FILE if CELLS_FILE not in taken else f"cells-{sample.id}.h5ad"
    description: dict[str, Any] = {
        "sample": sample.id,
        "name": sample.name,
        "source": sample.source,
        "run": run,
        "imported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": record.to_dict()["versions"],
        "slide": str(sample.slide),
        "size": list(sample.size),
        "mpp": sample.mpp,
        "alignment": sample.alignment.tolist(),
        "um_to_he": sample.to_he.tolist(),
        "classes": {name: list(color) for name, color in class_table(sample).items()},
        "expression": mine.get("expression", default) if isinstance(mine, dict) else default,
        "coverage": own_coverage + [ring for other in others.values() for ring in other["coverage"]],
    }
    if sample.extra.get("refinement"):
        description["refinement"] = sample.extra["refinement"]
    if others:
        description["own_coverage"] = own_coverage
        description["other_samples"] = others
    return description


def _read_known(path: Path) -> dict[str, NDArray[np.uint8]]:
    """Ids of the nuclei that imports have offered, packed, by sample."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not what stqp writes there ({error}); delete it and import again") from error


def _pack(ids: set[str]) -> NDArray[np.uint8]:
    """UUIDs as 16 bytes each, (n, 16)."""
    raw = bytes.fromhex("".join(sorted(ids)).replace("-", ""))
    return np.frombuffer(raw, np.uint8).reshape(-1, 16)


def _unpack(raw: NDArray[np.uint8] | None) -> set[str]:
    """UUIDs as text."""
    return set() if raw is None else {str(uuid.UUID(bytes=row.tobytes())) for row in raw}
