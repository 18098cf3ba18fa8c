"""A copy of a project in which the nuclei carry other labels of their cells, for a network to learn."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.fine_types import NONE, SHARED, class_of_fine_type
from stqp.errors import InputError
from stqp.experiments.manifest import VISUAL_MAP
from stqp.importing.labelling import cell_of
from stqp.importing.typing import read_counts
from stqp.qupath.objects import PathObjects
from stqp.qupath.ownership import owned
from stqp.qupath.project import ProjectEntry, QuPathProject
from stqp.taxonomy import UNKNOWN, color_of

Objects = NDArray[np.object_]


def relabelled(source: Path, target: Path, column: str, names: Mapping[str, str]) -> None:
    """Copy a project without its images, and give its nuclei other classes.

    Parameters
    ----------
    source
        The project; it stays as it is.
    target
        Folder of the copy, whole or not at all; one that is there is left as it is.
    column
        Column of the cells beside the images; empty for the classes that the objects have.
    names
        Label to class; a label that is not named keeps its own name.

    Raises
    ------
    InputError
        When an image has no cells beside it, or the cells no such column.
    """
    if target.exists():
        return
    unfinished = target.with_name(f".{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    folder = source.parent if source.suffix == ".qpproj" else source
    with QuPathProject.open(source, "r") as project:
        images = {entry.id: entry.image_path for entry in project.entries}
    skip = {path.resolve() for path in images.values() if path is not None}
    shutil.copytree(
        folder,
        unfinished,
        ignore=lambda at, found: {n for n in found if (Path(at) / n).resolve() in skip or n.endswith(".lock")},
    )
    with QuPathProject.open(unfinished, "r+") as project:
        for entry in project.entries:
            _relabel(entry, column, names, project)
        project.save()
    unfinished.replace(target)


def _relabel(entry: ProjectEntry, column: str, names: Mapping[str, str], project: QuPathProject) -> None:
    present = entry.read_objects()
    labels = present.classes if not column else _labels(entry, present, column)
    nuclei = np.flatnonzero(owned(present) & np.array([label is not None for label in labels.tolist()], bool))
    if not len(nuclei):
        return
    old = present.take(nuclei)
    classes = renamed(labels[nuclei], names)
    colors = {name: color_of(name) for name in sorted(set(classes.tolist()))}
    entry.update_objects(nuclei, dataclasses.replace(old, classes=classes, class_colors={**old.class_colors, **colors}))
    project.add_classes(colors)


def renamed(labels: Objects, names: Mapping[str, str]) -> Objects:
    """Class of each label; see `relabelled`."""
    distinct = sorted({str(label) for label in labels.tolist()})
    if names is VISUAL_MAP:
        table = {label: _visual(label) for label in distinct}
    else:
        table = {label: names.get(label, label) for label in distinct}
    return np.array([*(table[str(label)] for label in labels.tolist()), None], object)[:-1]


def _visual(label: str) -> str:
    """Visual class of a fine type; what has none, or is none, keeps its name or is Unknown."""
    found = class_of_fine_type(label)
    return label if found is None else UNKNOWN if found in (NONE, SHARED) else found


def _labels(entry: ProjectEntry, present: PathObjects, column: str) -> Objects:
    """Label of each object's cell; None for objects that are no nuclei of a sample."""
    sample = entry.stqp_folder / "sample.json"
    if not sample.is_file():
        raise InputError(f"the image {entry.name} has no cells beside it, so no labels {column!r}; import it by stqp")
    first = json.loads(sample.read_text(encoding="utf-8"))
    result = np.full(len(present), None, object)
    for one in (first, *first.get("other_samples", {}).values()):
        path = entry.stqp_folder / str(one["expression"])
        cells = read_counts(path)
        if column not in cells.obs:
            raise InputError(f"the cells {path} have no column {column!r}; there are {', '.join(cells.obs)}")
        values = np.array([UNKNOWN if v != v or v is None else str(v) for v in cells.obs[column].tolist()], object)
        at = cell_of(present, np.array([str(i) for i in cells.obs_names], object), cells, str(one["sample"]))
        result[at >= 0] = values[at[at >= 0]]
    return result
