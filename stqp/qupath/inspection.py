"""What a project holds: its images and their state, its objects by kind and class, and who wrote them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stqp.errors import InputError
from stqp.qupath import qpdata, uris
from stqp.qupath.codec.document import backup_of
from stqp.qupath.colors import hex_color
from stqp.qupath.folders import OBJECTS
from stqp.qupath.image import ImageData
from stqp.qupath.interface import Entry, Project
from stqp.qupath.objects import Mask, ObjectKind, PathObjects
from stqp.qupath.ownership import RUN_KEY, SOURCE_KEY, corrected, owned
from stqp.qupath.saving import read_json

FOUND, FOUND_RELATIVE, MISSING, NO_FILE = "found", "found relative to the project", "missing", "not a file"
UNCLASSIFIED = "Unclassified"
_KIND_NAMES = {
    ObjectKind.ANNOTATION: "annotations",
    ObjectKind.DETECTION: "detections",
    ObjectKind.CELL: "cells",
    ObjectKind.TILE: "tiles",
    ObjectKind.TMA_CORE: "TMA cores",
}


@dataclass(frozen=True)
class Writer:
    """Objects of one source.

    Attributes
    ----------
    source : str
        As stqp marks them, e.g. ``predict:<run>``.
    runs : dict of int
        Objects by the run that wrote them.
    last_run : str or None
        When the last one began (UTC, ISO 8601), where its record is kept in the project.
    objects, corrected : int
        All, and those whose class or shape is no longer what was written.
    kinds : dict of int
    """

    source: str
    runs: dict[str, int]
    last_run: str | None
    objects: int
    corrected: int
    kinds: dict[str, int]


@dataclass(frozen=True)
class EntryInfo:
    """What is known of one image.

    Attributes
    ----------
    id, name, tags, description
        As the project has them.
    image : str
        "found", "found relative to the project", "missing", or "not a file".
    uri, path : str or None
        As the project has it, and the file that it means here.
    width, height : int or None
    mpp : float or None
        µm per pixel as the project has it.
    image_type : str or None
        As QuPath calls it, e.g. ``BRIGHTFIELD_H_E``.
    objects : int
    kinds, classes : dict of int
        Objects by kind and by class, the most frequent first.
    writers : list of Writer
        stqp's own, by source.
    others : dict of int
        By kind, objects that stqp did not write: drawn by hand, or made by QuPath's commands.
    saved : str or None
        When the objects were saved last (UTC, ISO 8601).
    error : str or None
        Why the objects cannot be read.
    """

    id: int
    name: str
    image: str
    uri: str | None
    path: str | None
    width: int | None
    height: int | None
    mpp: float | None
    image_type: str | None = None
    objects: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    writers: list[Writer] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    saved: str | None = None
    error: str | None = None
    tags: list[str] = field(default_factory=list)
    description: str | None = None


@dataclass(frozen=True)
class ProjectInfo:
    """What is known of a project.

    Attributes
    ----------
    file, version : str
        The project file, and the QuPath that last wrote it.
    saved : str or None
        When it was saved last (UTC, ISO 8601).
    images : int
        All, also where `entries` are only some.
    classes : dict of str
        Colour by class, ``#rrggbb``.
    class_objects : dict of int
        Objects by class, in `entries`.
    entries : list of EntryInfo
    """

    file: str
    version: str
    saved: str | None
    images: int
    classes: dict[str, str]
    class_objects: dict[str, int]
    entries: list[EntryInfo]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        return asdict(self)


def inspect_project(
    project: Project,
    names: Sequence[str | int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> ProjectInfo:
    """Look at a project; objects are read once, and a file that is broken is said to be so.

    Parameters
    ----------
    project
        Open in any mode.
    names
        Names or ids of images; all when there are none.
    progress
        Called with images done and in total.

    Raises
    ------
    InputError
        When the project has no image of a name.
    """
    chosen = [project.entry(name) for name in names] if names else list(project.entries)
    infos = []
    for i, entry in enumerate(chosen):
        infos.append(inspect_entry(entry))
        if progress is not None:
            progress(i + 1, len(chosen))
    totals: dict[str, int] = {}
    for info in infos:
        for name, number in info.classes.items():
            totals[name] = totals.get(name, 0) + number
    content = read_json(project.file) if project.file.is_file() else {}
    modified = content.get("modifyTimestamp")
    return ProjectInfo(
        file=str(project.file),
        version=str(project.version),
        saved=_moment(modified / 1000) if isinstance(modified, (int, float)) else None,
        images=len(project.entries),
        classes={name: hex_color(color) for name, color in project.classes.items()},
        class_objects=_most_first(totals),
        entries=infos,
    )


def inspect_entry(entry: Entry) -> EntryInfo:
    """Look at one image of a project."""
    path, uri, size = entry.image_path, entry.image_uri, entry.size
    known: dict[str, Any] = {
        "id": entry.id,
        "name": entry.name,
        "image": image_state(uri, path),
        "uri": uri,
        "path": None if path is None else str(path),
        "width": size[0] if size else None,
        "height": size[1] if size else None,
        "mpp": entry.mpp,
        "tags": entry.tags,
        "description": entry.description,
    }
    file = entry.folder / OBJECTS
    if not file.exists() and not backup_of(file).exists():
        return EntryInfo(**known)
    known["saved"] = _moment((file if file.exists() else backup_of(file)).stat().st_mtime)
    try:
        data: ImageData = qpdata.read_image_data(file)
    except InputError as error:
        return EntryInfo(**known, error=str(error))
    objects = data.objects
    own = owned(objects)
    return EntryInfo(
        **known,
        image_type=data.image_type,
        objects=len(objects),
        kinds=_kinds(objects),
        classes=_most_first({name or UNCLASSIFIED: n for name, n in objects.class_counts().items()}),
        writers=_writers(objects, own, entry.stqp_folder),
        others=_kinds(objects, ~own),
    )


def image_state(uri: str | None, path: Path | None) -> str:
    """Say whether the file of an image is there, and how it was found."""
    if uri is None or path is None:
        return NO_FILE
    if not uris.exists(path):
        return MISSING
    said = uris.uri_path(uri)
    return FOUND if said is not None and uris.exists(uris.local_path(said)) else FOUND_RELATIVE


def _writers(objects: PathObjects, own: Mask, folder: Path) -> list[Writer]:
    if not own.any():
        return []
    records = _records(folder)
    at = np.flatnonzero(own)
    sources = objects.metadata[SOURCE_KEY][at].astype(str)
    runs = objects.metadata[RUN_KEY][at] if RUN_KEY in objects.metadata else np.full(len(at), None, object)
    changed = corrected(objects)[at]
    result = []
    for source in sorted(set(sources.tolist())):
        mine = sources == source
        counts: dict[str, int] = {}
        for run in runs[mine].tolist():
            counts[run or "?"] = counts.get(run or "?", 0) + 1
        times = [t for key in (source, *counts) if (t := records.get(key)) is not None]
        kinds = _kinds(objects.take(at[mine]))
        result.append(
            Writer(
                source, _most_first(counts), max(times, default=None), int(mine.sum()), int(changed[mine].sum()), kinds
            )
        )
    return result


def _records(folder: Path) -> dict[str, str]:
    """When runs began, by their source or their identifier, from the records that stqp keeps of an image."""
    result: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            began, results = str(content["started"]), content["results"]
            for key in (results.get("source"), results.get("run")):
                if key:
                    result[str(key)] = max(began, result.get(str(key), ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # something else, or broken: the objects' own marks still say what is needed
    return result


def _kinds(objects: PathObjects, mask: Mask | None = None) -> dict[str, int]:
    counts = np.bincount(objects.kind if mask is None else objects.kind[mask], minlength=len(_KIND_NAMES)).tolist()
    return {name: counts[kind] for kind, name in _KIND_NAMES.items() if counts[kind]}


def _most_first(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
