"""Objects of a project into files that other programs read, and from files into a project."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stqp.errors import InputError, UsageError
from stqp.qupath import exchange_tables
from stqp.qupath.folders import folder_names
from stqp.qupath.geojson import write_geojson
from stqp.qupath.inspection import UNCLASSIFIED
from stqp.qupath.interface import Entry, Project
from stqp.qupath.objects import Mask, ObjectKind, PathObjects, RoiKind
from stqp.qupath.ownership import owned, settled, stamp

FORMATS = {"geojson": ".geojson", "parquet": ".parquet", "csv": ".csv", "ranger": ".geojson"}
KINDS = {
    "annotations": ObjectKind.ANNOTATION,
    "detections": ObjectKind.DETECTION,
    "cells": ObjectKind.CELL,
    "tiles": ObjectKind.TILE,
    "cores": ObjectKind.TMA_CORE,
}
SOURCE = "import:"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes
    ----------
    entry, file : str
        Name of the image, and the file.
    objects : int
        In the file.
    mended, left_out : int
        Objects whose invalid outline is written as a valid one, and those that have nothing to write.
    """

    entry: str
    file: str
    objects: int
    mended: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Imported:
    """A file that was read.

    Attributes
    ----------
    file, entry, source : str
        The file, the image that got its objects, and how they are marked.
    objects : int
        Added.
    replaced : int
        Taken out for them.
    corrected : int
        Of the last import, kept as somebody corrected them since.
    present : int
        Not added, as the image has other objects with their ids.
    """

    file: str
    entry: str
    source: str
    objects: int
    replaced: int
    corrected: int
    present: int


def export_objects(
    project: Project,
    out: str | Path,
    form: str = "geojson",
    *,
    entries: Sequence[str | int] = (),
    kinds: Iterable[str] = (),
    classes: Iterable[str] = (),
    compress: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Exported]:
    """Write the objects of images, a file for each image that has any.

    Parameters
    ----------
    project
        Open in any mode.
    out
        Folder; made where there is none.
    form : {"geojson", "parquet", "csv", "ranger"}
        GeoJSON for QuPath; GeoParquet; a table without shapes; GeoJSON of cells for Xenium Ranger's
        import-segmentation, which takes nothing else, in pixels of the image.
    entries
        Names or ids of images; all when there are none.
    kinds
        Of `KINDS`; all when there are none. For Xenium Ranger cells and detections, or what stqp wrote where there
        are neither.
    classes
        Full names, "Unclassified" for objects without a class; all when there are none.
    compress
        Whether GeoJSON and csv are compressed (``.gz``).
    overwrite
        Whether files that are there are replaced.
    progress
        Called with images done and in total.

    Raises
    ------
    UsageError
        When there is no such format or kind, or a file is there already.
    InputError
        When the project has no such image, or its objects cannot be read.
    """
    kinds, classes = list(kinds), set(classes)
    if form not in FORMATS:
        raise UsageError(f"objects are written as {', '.join(FORMATS)}, not as {form!r}")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"there are no objects of the kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    if compress and form in ("parquet", "ranger"):
        raise UsageError(f"a file of the format {form} is not compressed with gzip")
    chosen = [project.entry(name) for name in entries] if entries else list(project.entries)
    names = folder_names((entry.id, entry.name) for entry in project.entries)
    suffix = FORMATS[form] + (".gz" if compress else "")
    paths = {entry.id: Path(out) / f"{names[entry.id]}{suffix}" for entry in chosen}
    if not overwrite and (there := [path for path in paths.values() if path.exists()]):
        raise UsageError(f"{there[0]} exists already; choose another folder, or say --overwrite")
    result = []
    for done, entry in enumerate(chosen, start=1):
        objects = entry.read_objects()
        objects = objects.take(_wanted(objects, form, kinds, classes))
        if len(objects):
            result.append(_write(paths[entry.id], objects, form, entry))
        if progress is not None:
            progress(done, len(chosen))
    return result


def _wanted(objects: PathObjects, form: str, kinds: list[str], classes: set[str]) -> Mask:
    mask = np.ones(len(objects), bool)
    if kinds:
        mask &= np.isin(objects.kind, [int(KINDS[kind]) for kind in kinds])
    elif form == "ranger":
        mask &= np.isin(objects.kind, [int(ObjectKind.CELL), int(ObjectKind.DETECTION)])
        if not mask.any():
            mask = owned(objects)
    if classes:
        mask &= np.array([(name or UNCLASSIFIED) in classes for name in objects.classes.tolist()], bool)
    return mask


def _write(path: Path, objects: PathObjects, form: str, entry: Entry) -> Exported:
    if form in ("csv", "parquet"):
        writer = exchange_tables.write_csv if form == "csv" else exchange_tables.write_parquet
        writer(path, objects, entry.name, entry.mpp)
        return Exported(entry.name, str(path), len(objects))
    before = len(objects)
    if form == "ranger":
        objects = _cells(objects)
    written = write_geojson(path, objects, nested=False if form == "ranger" else None)
    return Exported(entry.name, str(path), written.written, written.mended, before - written.written)


def _cells(objects: PathObjects) -> PathObjects:
    """Cells of one outline each, as Xenium Ranger takes them; of several parts the largest, lines and points not."""
    from stqp.polygons import Polygons

    filled = ~np.isin(
        objects.roi_kind, [int(k) for k in (RoiKind.NONE, RoiKind.LINE, RoiKind.POLYLINE, RoiKind.POINTS)]
    )
    objects = objects.take(filled)
    polygons = objects.polygons
    rings = Polygons(polygons.coords, polygons.ring_offsets, np.arange(len(polygons.ring_offsets)))
    area, owner = rings.area(), polygons.ring_owner
    order = np.lexsort((-area, owner))
    first = order[np.flatnonzero(np.diff(owner[order], prepend=-1))]
    single = rings.take(first)
    # the outline of a nucleus alone is that of its cell as well
    return dataclasses.replace(
        objects.take(owner[first]),
        kind=np.full(len(first), ObjectKind.CELL, np.uint8),
        polygons=single,
        roi_kind=np.full(len(first), RoiKind.POLYGON, np.uint8),
        lines=None,
        parent=np.full(len(first), -1, np.int64),
    )


def import_objects(
    project: Project,
    paths: Sequence[str | Path],
    *,
    entry: str | int | None = None,
    source: str | None = None,
    replace: bool = False,
    keep_corrections: bool = True,
    progress: Progress | None = None,
) -> list[Imported]:
    """Add objects of files to images; a second import of the same source replaces those of the first.

    Parameters
    ----------
    project
        Open for writing; all files are imported at its next save, or none.
    paths
        GeoJSON (also ``.gz``) or parquet, in full-resolution pixels.
    entry
        Name or id of the image; when None, the one whose name that of the file is, endings aside.
    source
        How the objects are marked; ``import:<name of the file>`` when None.
    replace
        Whether objects of others in the image that have the same ids are replaced; they stay otherwise, and the
        file's are not added.
    keep_corrections
        Whether objects of the last import that somebody corrected since stay as they are.
    progress
        Called with files done and in total.

    Raises
    ------
    InputError
        When a file cannot be read, or belongs to no image or to several.
    UsageError
        When the project is open for reading only.
    """
    result = []
    for done, path in enumerate([Path(p) for p in paths], start=1):
        target = project.entry(entry) if entry is not None else _entry_of(project, path)
        new = _read(path)
        label = source or SOURCE + _stem(path)
        present = target.read_objects()
        mine = owned(present, label)
        kept = mine & settled(present) if keep_corrections else np.zeros(len(present), bool)
        same = np.isin(present.ids.astype(str), new.ids.astype(str))
        drop = (mine & ~kept) | (same & ~mine if replace else False)
        staying = set(present.ids[~drop].tolist())
        add = np.array([i not in staying for i in new.ids.tolist()], bool)
        clash = int((~add).sum())
        kept_same = int((kept & same).sum())
        fresh = stamp(new.take(add), label, uuid.uuid4().hex[:12])
        gone = drop.copy()
        target.write_objects(fresh, lambda _, gone=gone: gone)  # type: ignore[misc]
        result.append(
            Imported(str(path), target.name, label, len(fresh), int(drop.sum()), int(kept.sum()), clash - kept_same)
        )
        if progress is not None:
            progress(done, len(paths))
    return result


def _read(path: Path) -> PathObjects:
    if not path.is_file():
        raise InputError(f"there is no file {path} to import")
    if path.suffix.lower() == ".parquet":
        objects = exchange_tables.read_parquet(path)
    elif path.name.lower().removesuffix(".gz").endswith((".geojson", ".json")):
        from stqp.qupath.geojson_read import read_geojson

        objects = read_geojson(path)
    else:
        raise InputError(f"{path} ends neither in .geojson, .json (or these and .gz) nor in .parquet")
    if len(set(objects.ids.tolist())) < len(objects):
        raise InputError(f"{path} has several objects with one id")
    if (objects.kind == ObjectKind.TMA_CORE).any():
        raise InputError(f"{path} has TMA cores, which only QuPath can add to an image")
    return objects


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".gz", ".geojson", ".json", ".parquet"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return name


def _entry_of(project: Project, path: Path) -> Entry:
    """The image that a file is named after."""
    names = folder_names((entry.id, entry.name) for entry in project.entries)
    stem = _stem(path).casefold()
    for called in (
        lambda e: {names[e.id].casefold(), e.name.casefold()},
        lambda e: {Path(names[e.id]).stem.casefold(), e.name.split(".")[0].casefold()},
    ):
        found = [entry for entry in project.entries if stem in called(entry)]
        if len(found) == 1:
            return found[0]
        if found:
            break
    what = "none" if not found else f"{len(found)} images"
    raise InputError(f"{path} is named after {what} of the images of {project.folder}; name the image with --entry")
