"""A class gets another name, in the project's list and in all objects; that is no correction by a person."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stqp.errors import UsageError
from stqp.qupath.interface import Entry, Project
from stqp.qupath.objects import Mask, PathObjects
from stqp.qupath.ownership import WRITTEN_KEY, owned, written_classes


def rename_class(
    project: Project, old: str, new: str, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Rename a class; where there is one of the new name already, the two become one.

    Parameters
    ----------
    project
        Open for writing; all images are written together at its next save, or none.
    old, new
        Full names, as ``Tumor: Positive``. Classes derived from a class have names of their own.
    progress
        Called with images done and in total.

    Returns
    -------
    dict of int
        Objects that have the new name now, by image, where there are any.

    Raises
    ------
    UsageError
        When neither the project nor any object has the class, or the new name is none.
    InputError
        When objects of an image cannot be written anew, as below TMA cores; nothing is changed then.
    """
    old, new = old.strip(), new.strip()
    if not new or "\n" in new or any(not part.strip() for part in new.split(":")):
        raise UsageError(f"{new!r} cannot be the name of a class in QuPath")
    colors = project.classes
    if old in colors:
        taken = {name: colors.get(new, color) if name == old else color for name, color in colors.items()}
        renamed = {new if name == old else name: color for name, color in taken.items()}
        project.set_classes(renamed)
    changed: dict[str, int] = {}
    entries = list(project.entries)
    for done, entry in enumerate(entries, start=1):
        number = rename_in_entry(entry, old, new)
        if number:
            changed[entry.name] = changed.get(entry.name, 0) + number
        if progress is not None:
            progress(done, len(entries))
    if not changed and old not in colors:
        raise UsageError(f"the project {project.folder} has no class {old!r}, and no object of it")
    return changed


def rename_in_entry(entry: Entry, old: str, new: str) -> int:
    """Rename a class in the objects of one image; how many have it."""
    present = entry.read_objects()
    classes = np.array([name == old for name in present.classes.tolist()], bool)
    # what stqp wrote is noted under the name; a class that somebody made of it stays a correction
    marks = owned(present) & np.array([name == old for name in written_classes(present).tolist()], bool)
    marks &= np.array([name != new for name in present.classes.tolist()], bool)
    if not (classes | marks).any():
        return 0
    affected = _families(present, classes | marks)
    texts = present.classes.copy()
    texts[classes] = new
    metadata = dict(present.metadata)
    if marks.any():
        column = metadata[WRITTEN_KEY].copy()
        column[marks] = [f"{new}|{text.rsplit('|', 1)[1]}" for text in column[marks].tolist()]
        metadata[WRITTEN_KEY] = column
    colors = {(new if name == old else name): color for name, color in present.class_colors.items()}
    renamed = dataclasses.replace(present, classes=texts, metadata=metadata, class_colors=colors)
    entry.write_objects(renamed.take(affected), lambda _: affected)
    return int(classes.sum())


def _families(objects: PathObjects, mask: Mask) -> NDArray[np.bool_]:
    """Objects of the mask with all that are above and below them."""
    top = np.arange(len(objects))
    while (inner := objects.parent[top] >= 0).any():
        top[inner] = objects.parent[top[inner]]
    return np.isin(top, top[mask])
