"""A QuPath project on disk: its images, their objects, its classes; opened like a file."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import ArrayLike

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.locking import LOCK_NAME, FolderLock, is_stale, read_lock
from stqp.qupath import entry as entries
from stqp.qupath import servers
from stqp.qupath.entry import ProjectEntry
from stqp.qupath.layout import packed, unpacked
from stqp.qupath.objects import PathObjects
from stqp.slides import Slide
from stqp.taxonomy import RGB

logger = logging.getLogger(__name__)

PROJECT_NAME = "project.qpproj"
QUPATH_VERSION = entries.QUPATH_VERSION
_OWN_PARTS = ("data", "classifiers", entries.STQP_FOLDER)


class QuPathProject:
    """A QuPath project; use `open`.

    Nothing of an existing project changes before `save`, or the end of a ``with`` block without an error.
    An error takes back what was added since the last save.

    Attributes
    ----------
    folder : Path
    mode : str
    """

    def __init__(self, folder: Path, file: Path, mode: str):
        self.folder = folder
        self.file = file
        self.mode = mode
        self._json: dict[str, Any] = {}
        self._classes: list[dict[str, Any]] = []
        self._entries: list[ProjectEntry] = []
        self._lock: FolderLock | None = None
        self._created_folder = False
        self._existed = False
        self._project_changed = False
        self._classes_changed = False
        self._replaced: Path | None = None
        self._closed = False

    @classmethod
    def open(cls, path: str | Path, mode: str = "r") -> QuPathProject:
        """Open a project.

        Parameters
        ----------
        path
            The project's folder, or its ``project.qpproj``.
        mode : {"r", "r+", "w", "x", "a"}
            Read; change an existing one; make one in place of one that may be there; make one that must not
            be there; change or make one. A project that "w" replaces keeps its files: its project file is
            renamed to ``project.replaced-<time>.qpproj`` beside the new one, and QuPath still opens it.

        Returns
        -------
        QuPathProject
            Also a context manager.

        Raises
        ------
        InputError
            When there is no project to read, one where none should be, or something that is no project.
        EnvironmentProblem
            When another stqp process writes the project, or the disk refuses.
        """
        if mode not in ("r", "r+", "w", "x", "a"):
            raise UsageError(f"a project opens in mode r, r+, w, x or a, not {mode!r}")
        path = servers.absolute(Path(path))
        file = path if path.suffix == ".qpproj" else path / PROJECT_NAME
        project = cls(file.parent, file, mode)
        try:
            project._open()
        except BaseException:
            project.abort()
            raise
        return project

    def _open(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; expected the folder of a QuPath project")
        self._existed = self.file.is_file()
        if self.mode in ("r", "r+") and not self._existed:
            raise InputError(f"there is no QuPath project {self.file}; name a folder that holds {PROJECT_NAME}")
        if self.mode == "x" and self._existed:
            raise InputError(f"the QuPath project {self.file} exists already; choose another folder, or add to it")
        if not self._existed:
            self._check_free()
        if self.mode != "r":
            if not self.folder.exists():
                with files.disk_errors(self.folder):
                    self.folder.mkdir(parents=True)
                self._created_folder = True
            left_over = _left_by_killed_run(self.folder)
            self._lock = FolderLock(self.folder, creating=not self._existed)
            if left_over and not self._existed:
                self._remove_own_parts()
        if self._existed:
            self._load()
        else:
            now = _now()
            self._json = {"version": QUPATH_VERSION, "createTimestamp": now, "modifyTimestamp": now, "lastID": 0}
            self._json["images"] = []
        if self.mode == "w" and self._existed:
            self._replaced = self.folder / f"project.replaced-{time.strftime('%Y%m%dT%H%M%S')}.qpproj"
            self._json = {**self._json, "version": QUPATH_VERSION, "createTimestamp": _now(), "images": []}
            self._entries = []
        if self.mode == "w" or not self._existed:
            self._project_changed = True

    def _check_free(self) -> None:
        """Refuse a folder that is something else."""
        if not self.folder.exists() or _left_by_killed_run(self.folder):
            return
        present = sorted(p.name for p in self.folder.iterdir() if p.name != LOCK_NAME)
        if present:
            raise InputError(
                f"the folder {self.folder} is not empty and no QuPath project (it holds {', '.join(present[:3])}"
                f"{', ...' if len(present) > 3 else ''}); choose a new folder"
            )

    def _load(self) -> None:
        self._json = _read_json(self.file)
        images = self._json.get("images") or []
        if not isinstance(images, list) or not all(isinstance(i, dict) and "entryID" in i for i in images):
            raise InputError(f"{self.file} has no list of images as a QuPath project has; is it whole?")
        self._json["images"] = images
        self._entries = [ProjectEntry(self, image, new=False) for image in images]
        if self._classes_file.is_file():
            content = _read_json(self._classes_file)
            listed = content.get("pathClasses") or []
            self._classes = [c for c in listed if isinstance(c, dict)]

    @property
    def _classes_file(self) -> Path:
        return self.folder / "classifiers" / "classes.json"

    @property
    def entries(self) -> list[ProjectEntry]:
        """The project's images, in its order."""
        return list(self._entries)

    @property
    def recorded_uri(self) -> str | None:
        """Where the project file says it is."""
        uri = self._json.get("uri")
        return uri if isinstance(uri, str) else None

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
        self._check_writable()
        wanted = servers.absolute(slide.path)
        for present in self._entries:
            path = present.image_path
            if path is not None and (path == wanted or path.resolve() == wanted.resolve()):
                present.add_metadata(metadata or {})
                return present
        name = name or slide.path.name
        number = max([int(self._json.get("lastID") or 0), *(e.id for e in self._entries), *self._ids_on_disk()]) + 1
        image: dict[str, Any] = {
            "serverBuilder": servers.builder_json(slide, name),
            "entryID": number,
            "randomizedName": str(uuid.uuid4()),
            "imageName": name,
            "metadata": {str(k): str(v) for k, v in (metadata or {}).items()},
        }
        added = ProjectEntry(self, image, new=True)
        added.write_image_files(slide)
        self._json["lastID"] = number
        self._json["images"].append(image)
        self._entries.append(added)
        self._project_changed = True
        return added

    def _ids_on_disk(self) -> list[int]:
        data = self.folder / "data"
        return [int(p.name) for p in data.iterdir() if p.name.isdigit()] if data.is_dir() else []

    @property
    def classes(self) -> dict[str, RGB]:
        """Colours of the project's classes."""
        named = [c for c in self._classes if isinstance(c.get("name"), str)]
        return {c["name"]: unpacked(int(c.get("color") or 0)) for c in named}

    def add_classes(self, colors: Mapping[str, RGB]) -> None:
        """Add classes that the project lacks; those it has keep their colours."""
        self._check_writable()
        present = self.classes
        for name, color in colors.items():
            if name not in present:
                self._classes.append({"name": name, "color": packed(color)})
                self._classes_changed = True

    def write_objects(
        self, entry: ProjectEntry, new: PathObjects, replace: Callable[[PathObjects], ArrayLike] | None
    ) -> None:
        """Do what `ProjectEntry.write_objects` says."""
        self._check_writable()
        # the project's colour wins in QuPath, so it is the one to write
        colored = dataclasses.replace(new, class_colors={**new.class_colors, **self._colors_of(new)})
        entry.stage_objects(colored, replace)
        self.add_classes(entries.colors_in_use(colored))

    def _colors_of(self, objects: PathObjects) -> dict[str, RGB]:
        used = set(objects.classes.tolist())
        return {name: color for name, color in self.classes.items() if name in used}

    def mark_changed(self) -> None:
        """Have the project file written at the next save."""
        self._check_writable()
        self._project_changed = True

    def _check_writable(self) -> None:
        if self.mode == "r" or self._closed:
            raise UsageError(f"the project {self.folder} is {'closed' if self._closed else 'open for reading only'}")

    def save(self) -> None:
        """Write everything: objects first, the project file last.

        Raises
        ------
        EnvironmentProblem
            When the disk is full or refuses.
        """
        self._check_writable()
        for entry in self._entries:
            entry.commit()
        if self._classes_changed:
            content = _read_json(self._classes_file) if self._classes_file.is_file() else {}
            files.write_json(self._classes_file, {**content, "pathClasses": self._classes})
            self._classes_changed = False
        if self._project_changed:
            ids = [e.id for e in self._entries]
            self._json["lastID"] = max([int(self._json.get("lastID") or 0), *ids])
            self._json["modifyTimestamp"] = _now()
            self._json["uri"] = servers.to_uri(self.file)
            with files.disk_errors(self.file):
                if self._replaced is not None:
                    shutil.copy2(self.file, self._replaced)
                    self._replaced = None
                if self.file.exists():
                    shutil.copy2(self.file, self.file.with_name(self.file.name + ".backup"))
            files.write_json(self.file, _in_order(self._json))
            self._project_changed = False
        self._existed = True
        self._created_folder = False

    def close(self) -> None:
        """Save, unless opened for reading, and let others in."""
        if self._closed:
            return
        if self.mode != "r":
            try:
                self.save()
            except BaseException:
                self.abort()
                raise
        self._closed = True
        self._release()

    def abort(self) -> None:
        """Take back what was done since the last save, and let others in."""
        if self._closed:
            return
        self._closed = True
        held = self._lock is not None
        try:
            if held:
                for entry in self._entries:
                    entry.rollback()
                if not self._existed:
                    self._remove_own_parts()
        finally:
            self._release()
            if self._created_folder and held:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_own_parts(self) -> None:
        for part in _OWN_PARTS:
            shutil.rmtree(self.folder / part, ignore_errors=True)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> QuPathProject:
        """Open as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save and close, or take everything back after an error."""
        if kind is None:
            self.close()
        else:
            self.abort()


def _left_by_killed_run(folder: Path) -> bool:
    """Whether all that is in a folder was left by a run that was killed before its first save."""
    lock = read_lock(folder)
    if lock is None or not lock.get("creating") or not is_stale(lock, folder / LOCK_NAME):
        return False
    return all(p.name in (LOCK_NAME, *_OWN_PARTS) or p.name.startswith(".project.qpproj.") for p in folder.iterdir())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as QuPath's JSON ({error}); is it whole?") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object, as QuPath writes it")
    return content


def _in_order(content: dict[str, Any]) -> dict[str, Any]:
    """Keys as QuPath orders them, others behind."""
    order = ("version", "createTimestamp", "modifyTimestamp", "uri", "lastID")
    known = {key: content[key] for key in order if key in content}
    images = {"images": content["images"]}
    return {**known, **{k: v for k, v in content.items() if k not in known and k != "images"}, **images}


def _now() -> int:
    return int(time.time() * 1000)
