"""One image of a QuPath project."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from stqp import files
from stqp.errors import UsageError
from stqp.qupath import qpdata, servers, uris
from stqp.qupath.codec.document import backup_of
from stqp.qupath.folders import OBJECTS, STAGED, STQP_FOLDER
from stqp.qupath.image import ImageData, Stains, WorkflowStep
from stqp.qupath.interface import Replace
from stqp.qupath.objects import PathObjects
from stqp.qupath.pending import NEW_MARK, is_whole
from stqp.qupath.saving import Saving, drop, json_bytes
from stqp.qupath.summary import summary
from stqp.slides import Slide

if TYPE_CHECKING:
    from stqp.qupath.project import QuPathProject

logger = logging.getLogger(__name__)


class ProjectEntry:
    """One image of a QuPath project; `QuPathProject` makes them.

    `stqp.qupath.interface.Entry` says what its methods promise. A change is written when the project is saved.
    """

    def __init__(self, project: QuPathProject, content: dict[str, Any], new: bool):
        self._project = project
        self._json = content
        self._new = new
        self._staged: PathObjects | None = None
        self._server_changed = False
        self._found: tuple[str, str | None, Path | None] | None = None
        self.home: str | None = None

    def __repr__(self) -> str:
        """Name and id."""
        return f"ProjectEntry({self.name!r}, id={self.id})"

    @property
    def id(self) -> int:
        """Number of the image in the project."""
        return int(self._json["entryID"])

    @property
    def name(self) -> str:
        """Name as QuPath lists it."""
        return str(self._json.get("imageName") or self.id)

    def rename(self, name: str) -> None:
        """Give the image another name; what stqp noted of it goes with it."""
        if not name.strip():
            raise UsageError("the name of an image is not empty")
        if self._set("imageName", name):
            self._project.forget_names()

    @property
    def description(self) -> str | None:
        """Text that QuPath shows with the image, None when there is none."""
        text = self._json.get("description")
        return None if text is None else str(text)

    @description.setter
    def description(self, text: str | None) -> None:
        self._set("description", text)

    @property
    def tags(self) -> list[str]:
        """Tags of the image, a copy; QuPath 0.6 and later keep them."""
        return [str(tag) for tag in self._json.get("tags") or []]

    @tags.setter
    def tags(self, tags: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(str(tag) for tag in tags))
        if wanted == self.tags:
            return
        self._set("tags", wanted)
        if wanted and not self._project.version.keeps_tags:
            logger.warning(
                "QuPath %s drops the tags of images when it saves; 0.6 and later keep them", self._project.version
            )

    @property
    def metadata(self) -> dict[str, str]:
        """What the project notes of the image, a copy."""
        return {str(k): str(v) for k, v in (self._json.get("metadata") or {}).items()}

    @metadata.setter
    def metadata(self, metadata: Mapping[str, str]) -> None:
        wanted = {str(k): str(v) for k, v in metadata.items()}
        if wanted != self.metadata or list(wanted) != list(self.metadata):
            self._set("metadata", wanted)

    def add_metadata(self, metadata: Mapping[str, str]) -> None:
        """Set keys of the metadata; others stay."""
        self.metadata = {**self.metadata, **metadata}

    def remove_metadata(self, keys: Iterable[str]) -> None:
        """Take keys out of the metadata; those that are not there do no harm."""
        gone = {keys} if isinstance(keys, str) else set(keys)
        self.metadata = {k: v for k, v in self.metadata.items() if k not in gone}

    def _set(self, key: str, value: Any) -> bool:
        """Change a key of the project file, None takes it out; whether that changes anything."""
        self._project.check_writable()
        if self._json.get(key) == value and (value is not None or key not in self._json):
            return False
        if value is None:
            del self._json[key]
        else:
            self._json[key] = value
        self._project.mark_changed()
        return True

    @property
    def image_uri(self) -> str | None:
        """URI of the image as the project has it, None when it names none; of several, the first."""
        return next((b["uri"] for b in self.uri_builders() if b["uri"]), None)

    def uri_builders(self) -> list[dict[str, Any]]:
        """The parts of the server builder that name a file, themselves."""
        return list(servers.uri_builders(self._json.get("serverBuilder")))

    @property
    def image_path(self) -> Path | None:
        """Image file: where the project says, or at the same place relative to the project; None if no file."""
        uri, recorded = self.image_uri, self._project.recorded_uri
        if uri is None:
            return None
        # a search on a slow network drive is made once, as long as it finds something
        if self._found is None or self._found[:2] != (uri, recorded) or not self._found[2]:
            path = uris.resolve(uri, recorded, self._project.folder)
            if path is None or not uris.exists(path):
                return path
            self._found = (uri, recorded, path)
        return self._found[2]

    @property
    def image_found(self) -> bool:
        """Whether the image file is there."""
        path = self.image_path
        return path is not None and uris.exists(path)

    @property
    def mpp(self) -> float | None:
        """µm per pixel as set in the project, None when it is not."""
        return servers.mpp_of(servers.metadata_of(self._json))

    def set_mpp(self, mpp: float) -> None:
        """Set the µm per pixel, as a person does in QuPath.

        Raises
        ------
        UsageError
            When they are not above 0.
        InputError
            When the project has no metadata of the image.
        """
        self._project.check_writable()
        servers.set_mpp(self._json, mpp)
        self.mark_server_changed()

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels, None when the project does not say."""
        return servers.size_of(servers.metadata_of(self._json))

    @property
    def is_rgb(self) -> bool | None:
        """Whether the image has three colours of 8 bits, None when the project does not say."""
        said = servers.metadata_of(self._json).get("isRGB")
        return said if isinstance(said, bool) else None

    @property
    def folder(self) -> Path:
        """Folder of the image's files in the project."""
        return self._project.folder / "data" / str(self.id)

    @property
    def stqp_folder(self) -> Path:
        """Folder for what stqp notes of the image; its name is good on Windows, and no other image's."""
        root = self._project.folder / STQP_FOLDER
        if self.home is not None and (root / self.home).exists():
            return root / self.home
        return root / self._project.free_folder_name(self)

    def read_objects(self) -> PathObjects:
        """Read the image's objects, with those that will be saved; none when none were ever saved.

        Raises
        ------
        InputError
            When the file is broken.
        """
        path = self._current()
        backup = backup_of(path)
        if not path.exists() and not backup.exists():
            return PathObjects.empty()
        return qpdata.read_objects(path)

    def write_objects(self, new: PathObjects, replace: Replace | None = None) -> None:
        """Add objects; those for which `replace` gives True are dropped, all others stay.

        Parameters
        ----------
        new
            Appended.
        replace
            Makes a mask, bool (n,), of the objects present. None keeps all.

        Raises
        ------
        InputError
            When something in the file cannot be carried over; nothing has changed then.
        UsageError
            When the new objects cannot be written, or the project is open for reading only.
        """
        self._project.write_objects(self, new, replace)

    def update_objects(self, index: ArrayLike, new: PathObjects) -> None:
        """Put new objects in the place of some: order, parents and children stay, and so does all else.

        Parameters
        ----------
        index : int (k,)
            Positions in what `read_objects` gives, each once.
        new
            ``k`` objects in that order; their ids may be those of the old ones.

        Raises
        ------
        InputError
            When something else in the file refers to one of the old objects; nothing has changed then.
        UsageError
            When the new objects cannot be written, or the project is open for reading only.
        """
        self._project.update_objects(self, index, new)

    def read_image_data(self) -> ImageData:
        """Read the image's objects, type, stains, workflow and properties; an empty one when none were saved.

        Raises
        ------
        InputError
            When the file is broken.
        """
        path = self._current()
        if not path.exists() and not backup_of(path).exists():
            return ImageData(PathObjects.empty(), image_type="UNSET")
        return qpdata.read_image_data(path)

    def edit_image_data(
        self,
        *,
        image_type: str | None = None,
        stains: Stains | None = None,
        steps: Sequence[WorkflowStep] = (),
        properties: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        """Change what is saved of the image beside its objects; see `stqp.qupath.qpdata.edit_image_data`."""
        self._project.check_writable()
        path = self._current()
        if not path.exists() and not backup_of(path).exists():
            self.write_objects(PathObjects.empty())
            path = self._current()
        target = self.folder / STAGED
        qpdata.edit_image_data(
            path, image_type=image_type, stains=stains, steps=steps, properties=properties, target=target
        )
        if self._staged is None:
            self._staged = qpdata.read_objects(target)

    def stage_update(self, index: ArrayLike, new: PathObjects) -> None:
        """Write the file with replaced objects, to take its place when the project is saved."""
        target = self.folder / STAGED
        qpdata.update(self._current(), index, new, target)
        self._staged = qpdata.read_objects(target)

    def stage_objects(self, new: PathObjects, replace: Replace | None) -> None:
        """Write the objects to a file that takes its place when the project is saved."""
        target = self.folder / STAGED
        path = self._current()
        if path.exists() or backup_of(path).exists():
            drop = replace or (lambda present: np.zeros(len(present), bool))
            self._staged = qpdata.rewrite(path, drop, new, target)
        else:
            head = self._project.version.head(self._json["serverBuilder"])
            qpdata.write_new(target, new, json.dumps(head, ensure_ascii=False, separators=(",", ":")))
            self._staged = new

    def write_image_files(self, slide: Slide) -> None:
        """Write what QuPath keeps beside the objects of a new image: the server, and a thumbnail."""
        from PIL import Image

        files.write_bytes(self.folder / NEW_MARK, b"")  # nobody's, if this run is killed
        files.write_bytes(self.folder / "server.json", self._server_json())
        buffer = io.BytesIO()
        Image.fromarray(slide.thumbnail(1000, 600)).save(buffer, "JPEG", quality=85)
        files.write_bytes(self.folder / "thumbnail.jpg", buffer.getvalue())

    def _server_json(self) -> bytes:
        version = self._project.version
        return json_bytes(version.server_json(self._json["serverBuilder"]), version.server_json_indent)

    def mark_server_changed(self) -> None:
        """Have the server builder written at the next save."""
        self._server_changed = True
        self._project.mark_changed()

    def prepare(self, saving: Saving) -> None:
        """Have what changed take its place in a save."""
        if self._staged is not None:
            path, staged = self.folder / OBJECTS, self.folder / STAGED
            # a broken file is not worth more than the backup that is there
            saving.place(staged, path, backup_of(path) if is_whole(path) else None)
            file = self.folder / "summary.json"
            saving.write(file, summary(file, self._staged, staged, self.size))
        if self._server_changed and self.folder.exists():
            saving.write(self.folder / "server.json", self._server_json())

    def saved(self) -> None:
        """Note that all is in its place."""
        if self._staged is not None:
            drop(backup_of(self.folder / OBJECTS))
        if self._new:
            drop(self.folder / NEW_MARK)
        self._staged = None
        self._server_changed = self._new = False

    def rollback(self) -> None:
        """Forget staged objects, and all files of an image that was never saved."""
        self._staged = None
        if self._new:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            for name in (STAGED, f"{STAGED}.bkp"):
                (self.folder / name).unlink(missing_ok=True)

    def _current(self) -> Path:
        return self.folder / (STAGED if self._staged is not None else OBJECTS)
