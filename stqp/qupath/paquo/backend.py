"""A QuPath project read and written by QuPath itself, in its own JVM, which paquo finds and starts.

What changes is collected as in the native backend, with the same lock and the same going back; QuPath reads the
project file, the classes and the objects, and writes them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from stqp import files
from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.qupath.classes import colors_in_use
from stqp.qupath.codec.build import check
from stqp.qupath.codec.document import backup_of
from stqp.qupath.codec.layout import packed
from stqp.qupath.entry import ProjectEntry
from stqp.qupath.folders import STAGED
from stqp.qupath.interface import Replace
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.paquo.jvm import Columns, java_errors, start
from stqp.qupath.paquo.read import CLASS, read, tree
from stqp.qupath.paquo.write import make
from stqp.qupath.pending import PENDING_NAME, Pending, is_whole
from stqp.qupath.project import QuPathProject
from stqp.qupath.qpdata import mask_to_drop
from stqp.qupath.relink import update_uris
from stqp.qupath.saving import Saving, read_json
from stqp.qupath.versions import QuPathVersion
from stqp.slides import Slide
from stqp.taxonomy import RGB

logger = logging.getLogger(__name__)

_open: weakref.WeakSet[PaquoProject] = weakref.WeakSet()


class PaquoProject(QuPathProject):
    """A project that QuPath reads and writes; `stqp.qupath.backends.open_project` opens it.

    `stqp.qupath.interface.Project` says what the methods promise. What the installed QuPath does not know, such as
    tags before 0.6, it drops when it saves.
    """

    _java: Any

    @classmethod
    def open(cls, path: str | Path, mode: str = "r", version: str | QuPathVersion | None = None) -> Self:
        """Open a project, as `QuPathProject.open` does.

        Parameters
        ----------
        path, mode
            As there.
        version
            None; new projects are those of the installed QuPath.

        Raises
        ------
        EnvironmentProblem
            When there is no QuPath, or another process writes the project.
        InputError
            When QuPath cannot read the project.
        UsageError
            When another version is asked for.
        """
        installed = str(start().qupath_version)
        if version is not None and str(version) != installed:
            raise UsageError(
                f"the paquo backend writes projects of the installed QuPath {installed}, not of {version}; "
                "use the native backend"
            )
        return super().open(path, mode, installed)

    def _make_entries(self) -> None:
        java = start()
        if not [p for p in _open if not p._closed]:
            # classes and their colours belong to a session of QuPath; ours begins with the first project
            java.LogManager.setError()
            Columns().method(CLASS, "resetCaches").invokeWithArguments([])
            java.LogManager.setWarn()
        _open.add(self)
        file = java.File(str(self.file))
        if not self._existed:
            self._java = java.Projects.createProject(file, java.BufferedImage)
            return
        classifiers = self.folder / "classifiers"
        there = classifiers.exists()
        with java_errors(f"QuPath {java.qupath_version} cannot read the project {self.file}", InputError):
            self._java = java.ProjectIO.loadProject(file, java.BufferedImage)
        if not there and self.mode == "r":
            with contextlib.suppress(OSError):  # QuPath makes it to look into it
                classifiers.rmdir()
        if self.mode != "w":
            self.content["images"] = json.loads(str(_gson().toJson(self._java.getImageList())))
        listed = [{"name": str(c.toString()), "color": _number(c.getColor())} for c in self._java.getPathClasses()]
        self._classes = type(self._classes)({"pathClasses": listed})
        self._metadata = _plain(self._java.getMetadata()) if hasattr(self._java, "getMetadata") else {}
        super()._make_entries()
        homes = [entry.home for entry in self._entries]
        self._entries = [PaquoEntry(self, image, new=False) for image in self.content["images"]]
        for entry, home in zip(self._entries, homes, strict=True):
            entry.home = home

    def add_image(
        self, slide: Slide, name: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> ProjectEntry:
        """Add an image, or find it when the project has it already; as `QuPathProject.add_image`."""
        entry = super().add_image(slide, name, metadata)
        if not isinstance(entry, PaquoEntry):
            entry = self._entries[-1] = PaquoEntry(self, self.content["images"][-1], new=True)
        return entry

    def save(self) -> None:
        """Write what has changed: stqp puts the objects that QuPath wrote in their places, QuPath writes the rest.

        Raises
        ------
        EnvironmentProblem
            When the disk is full or refuses.
        """
        self.check_writable()
        changed = self._project_changed or self._classes.changed or self._metadata_changed
        saving, pending = Saving(), self._pending() if self._project_changed else Pending()
        try:
            self._prepare(saving)
            if pending:
                saving.write(self.folder / PENDING_NAME, pending.to_bytes())
            if self._replaced is not None:
                saving.write(self._replaced, self.file.read_bytes())
        except BaseException:
            saving.undo()
            raise
        saving.commit()
        if changed:
            with java_errors(f"QuPath cannot write the project {self.file}", EnvironmentProblem):
                self._tell_java()
                self._java.syncChanges()
            self._read_back()
            self._existed, self._created_folder, self._replaced = True, False, None
        self._classes.changed = self._metadata_changed = self._project_changed = False
        self._saved(pending)

    def _tell_java(self) -> None:
        """Have QuPath's project be as this one."""
        present = {int(str(entry.getID())): entry for entry in self._java.getImageList()}
        wanted = [entry.id for entry in self._entries]
        for number, java_entry in present.items():
            if number not in wanted:
                self._java.removeImage(java_entry, False)
        for entry, image in zip(self._entries, self.content["images"], strict=True):
            java_entry = present.get(entry.id)
            if java_entry is None:
                java_entry = self._add_to_java(entry.id, image["serverBuilder"])
            self._tell_entry(java_entry, entry, image["serverBuilder"])
        colored = [_path_class(name, color) for name, color in self.classes.items()]
        self._java.setPathClasses([])  # or QuPath keeps its own when there are as many
        self._java.setPathClasses(colored)
        if self._metadata_changed:
            if hasattr(self._java, "getMetadata"):
                _fill(self._java.getMetadata(), self.metadata)
            else:
                logger.warning("QuPath %s does not keep the metadata of the project", start().qupath_version)

    def _add_to_java(self, number: int, server_builder: Mapping[str, Any]) -> Any:
        builder = _builder(server_builder)
        while True:
            added = self._java.addImage(builder)
            if int(str(added.getID())) >= number:
                return added
            self._java.removeImage(added, False)  # its number is taken by files on the disk

    def _tell_entry(self, java_entry: Any, entry: ProjectEntry, wanted: Mapping[str, Any]) -> None:
        java = start()
        if str(java_entry.getImageName()) != entry.name:
            java_entry.setImageName(java.String(entry.name))
        said = java_entry.getDescription()
        if (None if said is None else str(said)) != entry.description:
            java_entry.setDescription(entry.description)
        if {str(k): str(java_entry.getMetadataValue(k)) for k in java_entry.getMetadataKeys()} != entry.metadata:
            java_entry.clearMetadata()
            for key, text in entry.metadata.items():
                java_entry.putMetadataValue(java.String(key), java.String(text))
        if hasattr(java_entry, "getTags"):
            java_entry.getTags().clear()
            for tag in entry.tags:
                java_entry.getTags().add(java.String(tag))
        elif entry.tags:
            logger.warning("QuPath %s does not keep the tags of %s", java.qupath_version, entry.name)
        if json.loads(str(_gson().toJson(java_entry.getServerBuilder()))) != wanted:
            field = java_entry.getClass().getDeclaredField("serverBuilder")
            field.setAccessible(True)
            field.set(java_entry, _builder(wanted))

    def _read_back(self) -> None:
        """Take over what QuPath wrote."""
        content = read_json(self.file)
        images = self.content["images"]  # which the entries share
        for image, fresh in zip(images, content["images"], strict=True):
            image.clear()
            image.update(fresh)
        self.content = {**content, "images": images}
        self.version = QuPathVersion.parse(content.get("version"))


class PaquoEntry(ProjectEntry):
    """One image of a `PaquoProject`."""

    def read_objects(self) -> PathObjects:
        """Read the image's objects, with those that will be saved; none when none were ever saved.

        Raises
        ------
        InputError
            When the file is broken.
        """
        path = self._readable()
        if path is None:
            return PathObjects.empty()
        java, columns = start(), Columns()
        with java_errors(f"QuPath cannot read {path}", InputError):
            return read(columns, *tree(columns, java.PathIO.readHierarchy(java.File(str(path)))))

    def _readable(self) -> Path | None:
        """File with the objects, or its backup; a file without an end would keep QuPath busy for ever."""
        path = self._current()
        backup = backup_of(path)
        if is_whole(path):
            return path
        if is_whole(backup):
            logger.warning("%s cannot be read; its backup %s is used", path, backup.name)
            return backup
        if path.exists() or backup.exists():
            raise InputError(f"{path} cannot be read as QuPath data: its beginning or its end is missing; is it whole?")
        return None

    def stage_update(self, index: ArrayLike, new: PathObjects) -> None:
        """Refuse: QuPath's hierarchy cannot put an object in the place of another."""
        raise UsageError("objects are replaced in their places by the native backend only; leave out --backend paquo")

    def edit_image_data(self, **changes: Any) -> None:
        """Refuse, as `stage_update`."""
        raise UsageError("type, stains, workflow and properties are changed by the native backend only")

    def stage_objects(self, new: PathObjects, replace: Replace | None) -> None:
        """Have QuPath write the objects to a file that takes its place when the project is saved."""
        check(new)
        if (new.kind == ObjectKind.TMA_CORE).any():
            raise UsageError("TMA cores need a grid, which only QuPath itself makes; here they can be read and kept")
        java, columns = start(), Columns()
        update_uris(self._project)
        path = self._readable()
        server = self._server()
        try:
            with java_errors(f"QuPath cannot read {path}", InputError):
                data = self._image_data(path, server)
                java_objects, parent = tree(columns, data.getHierarchy())
                present = read(columns, java_objects, parent)
            nothing = np.zeros(len(present), bool)
            drop = nothing if path is None else mask_to_drop(path, present, replace or nothing, new)
            for name, color in colors_in_use(new).items():
                _path_class(name, self._project.classes.get(name, color))
            with java_errors(f"QuPath cannot write the objects of {self.name}", EnvironmentProblem):
                hierarchy = data.getHierarchy()
                gone = columns.take(java_objects, np.flatnonzero(drop))
                hierarchy.removeObjects(columns.list_of(gone), True)
                roots = columns.take(make(columns, new), np.flatnonzero(new.parent < 0))
                hierarchy.getRootObject().addChildObjects(columns.list_of(roots))
                self.folder.mkdir(parents=True, exist_ok=True)
                fresh = self.folder / f"{STAGED}.part"
                java.PathIO.writeImageData(java.File(str(fresh)), data)
            files.move(fresh, self.folder / STAGED)
        finally:
            server.close()
        self._staged = PathObjects.concatenate([present.take(~drop), new])

    def _server(self) -> Any:
        doing = f"QuPath cannot open the image of {self.name}, which it needs to write objects; use the native backend"
        with java_errors(doing, InputError):
            return _builder(self._json["serverBuilder"]).build()

    def _image_data(self, path: Path | None, server: Any) -> Any:
        java = start()
        if path is None:
            data = java.ImageData(server)
            data.setImageType(java.ImageType.BRIGHTFIELD_H_E)
        elif java.compatibility.supports_addobjects:  # from 0.6
            data = java.PathIO.readImageData(java.File(str(path)).toPath(), server)
        else:
            data = java.PathIO.readImageData(java.File(str(path)), None, server, java.BufferedImage)
        data.setProperty("PROJECT_ENTRY_ID", java.String(f"{self._project.file}::{self.id}"))
        return data


def _gson() -> Any:
    return start().GsonTools.getInstance()


def _builder(content: Mapping[str, Any]) -> Any:
    """QuPath's server builder."""
    from paquo.jpype_backend import jpype

    builders = jpype.JClass("qupath.lib.images.servers.ImageServerBuilder$ServerBuilder")
    return _gson().fromJson(start().String(json.dumps(content)), builders.class_)


def _path_class(name: str, color: RGB) -> Any:
    """QuPath's class, in this colour."""
    from paquo.jpype_backend import jpype

    java = start()
    boxed = jpype.JClass("java.lang.Integer")(packed(color))
    path_class = java.PathClass.fromString(java.String(name), boxed)
    path_class.setColor(boxed)
    return path_class


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _plain(java_map: Any) -> dict[str, Any]:
    return {str(key): str(java_map.get(key)) for key in java_map.keySet()}


def _fill(java_map: Any, content: Mapping[str, str]) -> None:
    java_map.clear()
    for key, text in content.items():
        java_map.put(start().String(key), start().String(text))
