"""A QuPath project on disk: its images, their objects, its classes; opened like a file."""

from __future__ import annotations

import dataclasses
import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from stqp.errors import InputError, UsageError
from stqp.qupath import servers, uris
from stqp.qupath.classes import colors_in_use
from stqp.qupath.entry import ProjectEntry
from stqp.qupath.folders import STQP_FOLDER, folder_names
from stqp.qupath.interface import Entry, Replace
from stqp.qupath.objects import PathObjects
from stqp.qupath.opened import PROJECT_NAME, OpenedProject
from stqp.qupath.pending import Pending
from stqp.qupath.relink import Relinked, relink, update_uris
from stqp.qupath.saving import Saving, read_json
from stqp.qupath.versions import QuPathVersion
from stqp.slides import Slide
from stqp.taxonomy import RGB

__all__ = ["PROJECT_NAME", "ProjectEntry", "QuPathProject"]

logger = logging.getLogger(__name__)


class QuPathProject(OpenedProject):
    """A QuPath project; use `open`.

    Nothing of an existing project changes before `save`, or the end of a ``with`` block without an error.
    An error takes back what was added since the last save. `stqp.qupath.interface.Project` says what the
    methods promise.

    Attributes
    ----------
    folder, file : Path
    mode : str
    version : QuPathVersion
        The QuPath that last wrote it, or that a new one is for.
    """

    def __init__(self, folder: Path, file: Path, mode: str, version: QuPathVersion):
        super().__init__(folder, file, mode, version)
        self._entries: list[ProjectEntry] = []
        self._removed: list[tuple[ProjectEntry, bool]] = []
        self._names: dict[int, str] | None = None

    def _make_entries(self) -> None:
        self.forget_names()
        self._entries = [ProjectEntry(self, image, new=False) for image in self.content["images"]]
        names, pending = self.folder_names(), Pending.read(self.folder)
        for entry in self._entries:
            entry.home = pending.where(self.folder, entry.id, names[entry.id])

    @property
    def entries(self) -> list[ProjectEntry]:
        """The project's images, in its order."""
        return list(self._entries)

    def entry(self, name_or_id: str | int) -> ProjectEntry:
        """Find an image by its name or id.

        Raises
        ------
        InputError
            When there is none of that name, or several.
        """
        found = [e for e in self._entries if e.name == name_or_id]
        found = found or [e for e in self._entries if str(e.id) == str(name_or_id)]
        if not found:
            names = ", ".join(repr(e.name) for e in self._entries) or "none"
            raise InputError(f"{self.file} has no image {name_or_id!r}; its images are: {names}")
        if len(found) > 1:
            ids = ", ".join(str(e.id) for e in found)
            raise InputError(f"{self.file} has {len(found)} images named {name_or_id!r}; use an id: {ids}")
        return found[0]

    @property
    def metadata(self) -> dict[str, str]:
        """Text by key that belongs to the whole project, a copy; QuPath 0.6 and later keep it."""
        if self._metadata is None:
            self._metadata = read_json(self._metadata_file) if self._metadata_file.is_file() else {}
        return {str(k): str(v) for k, v in self._metadata.items()}

    @metadata.setter
    def metadata(self, metadata: Mapping[str, str]) -> None:
        self.check_writable()
        wanted = {str(k): str(v) for k, v in metadata.items()}
        if wanted != self.metadata:
            self._metadata, self._metadata_changed = dict(wanted), True
            if not self.version.keeps_project_metadata:
                logger.warning("QuPath %s has no metadata of projects; 0.6 and later show them", self.version)

    def add_image(
        self, slide: Slide, name: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> ProjectEntry:
        """Add an image, or find it when the project has it already.

        Parameters
        ----------
        slide
            An open slide; its µm/px become those of the image in QuPath.
        name
            As QuPath lists it; the file's name when None.
        metadata
            Text by key; added to what an image that is there already has.
        """
        self.check_writable()
        wanted = uris.absolute(slide.path)
        for present in self._entries:
            path = present.image_path
            if path is not None and _same_image(path, wanted) and not servers.series_of(present.uri_builders()[0]):
                present.add_metadata(metadata or {})
                return present
        name = name or os.fsencode(slide.path.name).decode("utf-8", "replace")
        ids = [e.id for e in (*self._entries, *(e for e, _ in self._removed))]
        number = max([int(self.content.get("lastID") or 0), *ids, *self._ids_on_disk()]) + 1
        image: dict[str, Any] = {
            "serverBuilder": servers.builder_json(slide, name),
            "entryID": number,
            "randomizedName": str(uuid.uuid4()),
            "imageName": name,
            "metadata": {str(k): str(v) for k, v in (metadata or {}).items()},
            **self.version.new_entry_keys(),
        }
        added = ProjectEntry(self, image, new=True)
        try:
            added.write_image_files(slide)
        except BaseException:
            added.rollback()
            raise
        self.content["lastID"] = number
        self.content["images"].append(image)
        self._entries.append(added)
        self.mark_changed()
        self.forget_names()
        return added

    def _ids_on_disk(self) -> list[int]:
        data = self.folder / "data"
        return [int(p.name) for p in data.iterdir() if p.name.isdigit()] if data.is_dir() else []

    def remove(self, entry: Entry, keep_files: bool = False) -> None:
        """Take an image out of the project; its files go once the project file is saved without it.

        Parameters
        ----------
        entry
            One of `entries`.
        keep_files
            Whether its objects and what stqp noted of it stay on the disk. The image itself always does.

        Raises
        ------
        UsageError
            When the entry is not of this project.
        """
        self.check_writable()
        place = next((i for i, e in enumerate(self._entries) if e is entry), None)
        if place is None:
            raise UsageError(f"{entry!r} is no image of the project {self.folder}")
        self._removed.append((self._entries.pop(place), keep_files))
        del self.content["images"][place]
        self.mark_changed()
        self.forget_names()

    def relink(
        self,
        mapping: Mapping[str | Path, str | Path] | Iterable[tuple[str | Path, str | Path]] = (),
        search: Iterable[str | Path] = (),
        *,
        check: bool = True,
        force: bool = False,
        dry_run: bool = False,
    ) -> list[Relinked]:
        """Find images that moved, as `stqp.qupath.relink.relink` does."""
        return relink(self, mapping, search, check=check, force=force, dry_run=dry_run)

    def update_uris(self) -> list[Relinked]:
        """Write where images are that were found at the same place relative to a project that moved."""
        return update_uris(self)

    @property
    def classes(self) -> dict[str, RGB]:
        """Colours of the project's classes."""
        return self._classes.colors

    def add_classes(self, colors: Mapping[str, RGB]) -> None:
        """Add classes that the project lacks; those it has keep their colours."""
        self.check_writable()
        self._classes.add(colors)

    def set_classes(self, colors: Mapping[str, RGB]) -> None:
        """Have these classes, in this order and these colours, and no others."""
        self.check_writable()
        self._classes.replace(colors)

    def write_objects(self, entry: ProjectEntry, new: PathObjects, replace: Replace | None) -> None:
        """Do what `ProjectEntry.write_objects` says."""
        self.check_writable()
        colored = self._colored(new)
        entry.stage_objects(colored, replace)
        self.add_classes(colors_in_use(colored))

    def update_objects(self, entry: ProjectEntry, index: ArrayLike, new: PathObjects) -> None:
        """Do what `ProjectEntry.update_objects` says."""
        self.check_writable()
        colored = self._colored(new)
        entry.stage_update(index, colored)
        self.add_classes(colors_in_use(colored))

    def _colored(self, new: PathObjects) -> PathObjects:
        """Objects with the project's colours, as these are the ones that QuPath shows."""
        used = set(new.classes.tolist())
        own = {name: color for name, color in self.classes.items() if name in used}
        return dataclasses.replace(new, class_colors={**new.class_colors, **own})

    def folder_names(self) -> dict[int, str]:
        """By the id of each image, the name that its folder of stqp's is to have."""
        if self._names is None:
            images = self.content["images"]
            self._names = folder_names((int(i["entryID"]), str(i.get("imageName") or i["entryID"])) for i in images)
        return self._names

    def forget_names(self) -> None:
        """Note that images came, went, or have another name."""
        self._names = None

    def free_folder_name(self, entry: ProjectEntry) -> str:
        """Name of a folder for what stqp notes of an image, that is no other image's at the moment."""
        name = self.folder_names().get(entry.id, str(entry.id))
        root = self.folder / STQP_FOLDER
        for other in (*self._entries, *(e for e, _ in self._removed)):
            if other is not entry and other.home is not None and other.home.lower() == name.lower():
                return f"{name}-{entry.id}" if (root / other.home).exists() else name
        return name

    def _prepare(self, saving: Saving) -> None:
        if self._project_changed and self._existed:
            update_uris(self)
        for entry in self._entries:
            entry.prepare(saving)

    def _pending(self) -> Pending:
        pending, names = Pending(), self.folder_names()
        for entry, keep_files in self._removed:
            if not keep_files:
                folder = entry.stqp_folder
                pending.remove.append((entry.id, folder.name if folder.exists() else None))
        for entry in self._entries:
            folder = entry.stqp_folder
            if folder.exists():
                entry.home = folder.name
                if folder.name != names[entry.id]:
                    pending.rename.append((entry.id, folder.name, names[entry.id]))
        return pending

    def _saved(self, pending: Pending) -> None:
        for entry in self._entries:
            entry.saved()
        for entry, _ in self._removed:
            entry.rollback()
        self._removed = []
        names = self.folder_names()
        if pending:
            pending.finish(self.folder, self.file, names)
        for entry in self._entries:
            entry.home = pending.where(self.folder, entry.id, names[entry.id])

    def _rollback(self) -> None:
        for entry in (*self._entries, *(e for e, _ in self._removed)):
            entry.rollback()


def _same_image(path: Path, wanted: Path) -> bool:
    return path == wanted or path.resolve() == wanted.resolve()
