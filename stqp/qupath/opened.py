"""The folder of a QuPath project, opened like a file: modes, lock, saving, going back."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.locking import LOCK_NAME, FolderLock, is_stale, read_lock
from stqp.qupath import uris
from stqp.qupath.classes import ClassList
from stqp.qupath.folders import STQP_FOLDER
from stqp.qupath.pending import PENDING_NAME, Pending, sweep
from stqp.qupath.saving import Saving, json_bytes, read_json
from stqp.qupath.versions import QuPathVersion

logger = logging.getLogger(__name__)

PROJECT_NAME = "project.qpproj"
MODES = ("r", "r+", "w", "x", "a")
_OWN_PARTS = ("data", "classifiers", STQP_FOLDER)


class OpenedProject:
    """What a project is apart from its images: the project file, classes, metadata, and when they are written.

    Attributes
    ----------
    folder, file : Path
    mode : str
    version : QuPathVersion
        The QuPath that last wrote it, or that a new one is for.
    content : dict
        Of the project file.
    """

    def __init__(self, folder: Path, file: Path, mode: str, version: QuPathVersion):
        self.folder = folder
        self.file = file
        self.mode = mode
        self.version = version
        self.content: dict[str, Any] = {}
        self._classes = ClassList()
        self._metadata: dict[str, Any] | None = None
        self._metadata_changed = False
        self._project_changed = False
        self._lock: FolderLock | None = None
        self._created_folder = False
        self._existed = False
        self._replaced: Path | None = None
        self._closed = False

    @classmethod
    def open(cls, path: str | Path, mode: str = "r", version: str | QuPathVersion | None = None) -> Self:
        """Open a project.

        Parameters
        ----------
        path
            The project's folder, or its ``project.qpproj``.
        mode : {"r", "r+", "w", "x", "a"}
            Read; change an existing one; make one in place of one that may be there; make one that must not
            be there; change or make one. A project that "w" replaces keeps its files: its project file is
            copied to ``project.replaced-<time>.qpproj`` beside the new one, and QuPath still opens it.
        version
            The QuPath that a new project is for; 0.5.1, which 0.4 to 0.7 open, when None. An existing one keeps
            its own.

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
        UsageError
            When there is no such mode, or no such version to write for.
        """
        if mode not in MODES:
            raise UsageError(f"a project opens in mode r, r+, w, x or a, not {mode!r}")
        path = uris.absolute(Path(path))
        file = path if path.suffix == ".qpproj" else path / PROJECT_NAME
        project = cls(file.parent, file, mode, QuPathVersion.to_write(version))
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
            _check_free(self.folder)
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
            self.content = {"version": self.version.text, "createTimestamp": _now(), "images": []}
            self._project_changed = True
        if self.mode == "w" and self._existed:
            self._replaced = self.folder / f"project.replaced-{time.strftime('%Y%m%dT%H%M%S')}.qpproj"
            self.content = {**self.content, "version": self.version.text, "createTimestamp": _now(), "images": []}
            self._project_changed = True
        elif self._existed:
            self.version = QuPathVersion.parse(self.content.get("version"))
        self._make_entries()

    def _load(self) -> None:
        self.content = read_json(self.file)
        images = self.content.get("images") or []
        if not isinstance(images, list) or not all(isinstance(i, dict) and _is_id(i.get("entryID")) for i in images):
            raise InputError(f"{self.file} has no list of images as a QuPath project has; is it whole?")
        self.content["images"] = images
        if self._classes_file.is_file():
            self._classes = ClassList(read_json(self._classes_file))
        if self._lock is not None:
            names = self.folder_names()
            pending = Pending.read(self.folder)
            if pending:
                pending.finish(self.folder, self.file, names)
            if self._lock.took_over:
                sweep(self.folder, self.file, names)

    @property
    def _classes_file(self) -> Path:
        return self.folder / "classifiers" / "classes.json"

    @property
    def _metadata_file(self) -> Path:
        return self.folder / "data" / "metadata.json"

    @property
    def recorded_uri(self) -> str | None:
        """Where the project file says it is."""
        uri = self.content.get("uri")
        return uri if isinstance(uri, str) else None

    def mark_changed(self) -> None:
        """Have the project file written at the next save."""
        self.check_writable()
        self._project_changed = True

    def check_writable(self) -> None:
        """Refuse to change a project that is open for reading only, or closed."""
        if self.mode == "r" or self._closed:
            raise UsageError(f"the project {self.folder} is {'closed' if self._closed else 'open for reading only'}")

    def save(self) -> None:
        """Write what has changed: objects first, then classes, the project file last.

        Each file is replaced at one moment, so a reader, or the next run after this one is killed, finds of each
        image all old objects or all new ones. When the disk refuses, all files are as they were.

        Raises
        ------
        EnvironmentProblem
            When the disk is full or refuses; what is to be saved is still there, and can be saved again.
        """
        self.check_writable()
        saving, pending, content = Saving(), Pending(), self.content
        try:
            self._prepare(saving)
            if self._classes.changed:
                saving.write(self._classes_file, json_bytes(self._classes.content))
            if self._metadata_changed:
                saving.write(self._metadata_file, json_bytes(self._metadata, indent=None))
            if self._project_changed:
                pending = self._pending()
                if pending:
                    saving.write(self.folder / PENDING_NAME, pending.to_bytes())
                if self._existed:
                    before = self.file.read_bytes()
                    if self._replaced is not None:
                        saving.write(self._replaced, before)
                    saving.write(self.file.with_name(f"{self.file.name}.backup"), before)
                content = self._stamped()
                saving.write(self.file, json_bytes(content))
        except BaseException:
            saving.undo()
            raise
        saving.commit()
        self.content = content
        if self._project_changed:
            self._existed, self._created_folder, self._replaced = True, False, None
        self._classes.changed = self._metadata_changed = self._project_changed = False
        self._saved(pending)

    def _stamped(self) -> dict[str, Any]:
        """Content of the project file as of now; keys as QuPath orders them, others behind."""
        images = self.content["images"]
        last = max([int(self.content.get("lastID") or 0), *(int(i["entryID"]) for i in images)])
        now = {**self.content, "modifyTimestamp": _now(), "uri": uris.to_uri(self.file), "lastID": last}
        order = ("version", "createTimestamp", "modifyTimestamp", "uri", "lastID")
        known = {key: now[key] for key in order if key in now}
        return {**known, **{k: v for k, v in now.items() if k not in known and k != "images"}, "images": images}

    def _make_entries(self) -> None:
        """Make the images of `content`."""

    def folder_names(self) -> dict[int, str]:
        """By the id of each image, the name that its folder of stqp's is to have."""
        raise NotImplementedError

    def _prepare(self, saving: Saving) -> None:
        """Add to a save what has changed of the images."""

    def _pending(self) -> Pending:
        """What is to be done once the project file is in its place."""
        return Pending()

    def _saved(self, pending: Pending) -> None:
        """Note that all is saved, and do what was pending."""

    def _rollback(self) -> None:
        """Take back what was done on the disk for images since the last save."""

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
        try:
            if self._lock is not None:
                self._rollback()
                if not self._existed:
                    self._remove_own_parts()
        finally:
            self._release()
            if self._created_folder:
                with contextlib.suppress(OSError):  # somebody put something there: not to be deleted
                    self.folder.rmdir()

    def _remove_own_parts(self) -> None:
        for part in _OWN_PARTS:
            shutil.rmtree(self.folder / part, ignore_errors=True)
        for left in self.folder.glob(".*"):
            if files.is_temporary(left):
                left.unlink(missing_ok=True)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
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


def _check_free(folder: Path) -> None:
    """Refuse a folder that is something else."""
    if not folder.exists() or _left_by_killed_run(folder):
        return
    present = sorted(p.name for p in folder.iterdir() if not p.name.startswith(LOCK_NAME))
    if present:
        raise InputError(
            f"the folder {folder} is not empty and no QuPath project (it holds {', '.join(present[:3])}"
            f"{', ...' if len(present) > 3 else ''}); choose a new folder"
        )


def _left_by_killed_run(folder: Path) -> bool:
    """Whether all that is in a folder was left by a run that was killed before its first save."""
    lock = read_lock(folder)
    if lock is None or not lock.get("creating") or not is_stale(lock, folder / LOCK_NAME):
        return False
    own = (*_OWN_PARTS, PENDING_NAME)
    return all(p.name in own or p.name.startswith(LOCK_NAME) or files.is_temporary(p) for p in folder.iterdir())


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and str(value).lstrip("-").isdecimal()


def _now() -> int:
    return int(time.time() * 1000)
