"""One image of a QuPath project."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from stqp import files
from stqp.qupath import qpdata, servers
from stqp.qupath.document import backup_of
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.slides import Slide
from stqp.taxonomy import RGB, color_of

if TYPE_CHECKING:
    from stqp.qupath.project import QuPathProject

QUPATH_VERSION = "0.5.1"
STQP_FOLDER = "stqp"
_OBJECTS = "data.qpdata"
_STAGED = ".data.qpdata.staged"
_KIND_NAMES = {
    ObjectKind.ANNOTATION: "Annotations",
    ObjectKind.DETECTION: "Detections",
    ObjectKind.CELL: "Cells",
    ObjectKind.TILE: "Tiles",
    ObjectKind.TMA_CORE: "TMA cores",
}
_RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}

Replace = Callable[[PathObjects], ArrayLike]


class ProjectEntry:
    """One image of a QuPath project; `QuPathProject` makes them."""

    def __init__(self, project: QuPathProject, content: dict[str, Any], new: bool):
        self._project = project
        self._json = content
        self._new = new
        self._staged: PathObjects | None = None

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

    @property
    def metadata(self) -> dict[str, str]:
        """What the project notes of the image, a copy."""
        return {str(k): str(v) for k, v in (self._json.get("metadata") or {}).items()}

    def add_metadata(self, metadata: Mapping[str, str]) -> None:
        """Set keys of the metadata."""
        merged = {**self.metadata, **{str(k): str(v) for k, v in metadata.items()}}
        if merged != self.metadata:
            self._json["metadata"] = merged
            self._project.mark_changed()

    @property
    def image_path(self) -> Path | None:
        """Image file: where the project says, or at the same place relative to the project; None if no file."""
        uri = servers.builder_of(self._json).get("uri")
        if not isinstance(uri, str):
            return None
        return servers.resolve(uri, self._project.recorded_uri, self._project.folder)

    @property
    def mpp(self) -> float | None:
        """µm per pixel as set in the project, None when it is not."""
        return servers.mpp_of(servers.metadata_of(self._json))

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels, None when the project does not say."""
        metadata = servers.metadata_of(self._json)
        return (int(metadata["width"]), int(metadata["height"])) if {"width", "height"} <= metadata.keys() else None

    @property
    def folder(self) -> Path:
        """Folder of the image's files in the project."""
        return self._project.folder / "data" / str(self.id)

    @property
    def stqp_folder(self) -> Path:
        """Folder for what stqp notes of the image; its name is good on Windows, and no other image's."""
        names = [safe_name(e.name).lower() for e in self._project.entries if e.id != self.id]
        name = safe_name(self.name)
        unique = name if name.lower() not in names else f"{name}-{self.id}"
        return self._project.folder / STQP_FOLDER / unique

    def read_objects(self) -> PathObjects:
        """Read the image's objects; none when none were ever saved.

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

    def stage_objects(self, new: PathObjects, replace: Replace | None) -> None:
        """Write the objects to a file that takes its place at `commit`."""
        target = self.folder / _STAGED
        path = self._current()
        if path.exists() or backup_of(path).exists():
            drop = replace or (lambda present: np.zeros(len(present), bool))
            self._staged = qpdata.rewrite(path, drop, new, target)
        else:
            server = self._json["serverBuilder"]
            head = {"dataVersion": 3, "qupathVersion": QUPATH_VERSION, "server": server}
            qpdata.write_new(target, new, json.dumps(head, ensure_ascii=False, separators=(",", ":")))
            self._staged = new

    def write_image_files(self, slide: Slide) -> None:
        """Write what QuPath keeps beside the objects: the server, and a thumbnail."""
        from PIL import Image

        builder = self._json["serverBuilder"]
        files.write_json(self.folder / "server.json", {"builder": builder, "metadata": builder["metadata"]})
        buffer = io.BytesIO()
        Image.fromarray(slide.thumbnail(1000, 600)).save(buffer, "JPEG", quality=85)
        files.write_bytes(self.folder / "thumbnail.jpg", buffer.getvalue())

    def commit(self) -> None:
        """Put staged objects in their place."""
        if self._staged is not None:
            path = self.folder / _OBJECTS
            qpdata.replace_with_backup(self.folder / _STAGED, path)
            self._write_summary(self._staged, path)
            self._staged = None
        self._new = False

    def rollback(self) -> None:
        """Forget staged objects, and all files of an image that was never saved."""
        self._staged = None
        if self._new:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            (self.folder / _STAGED).unlink(missing_ok=True)

    def _current(self) -> Path:
        return self.folder / (_STAGED if self._staged is not None else _OBJECTS)

    def _write_summary(self, objects: PathObjects, path: Path) -> None:
        summary_file = self.folder / "summary.json"
        try:
            summary = dict(json.loads(summary_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            summary = {"timestamp": 0, "imageType": "BRIGHTFIELD_H_E"}
            size = self.size
            if size is not None:
                summary["server"] = {"width": size[0], "height": size[1], "sizeC": 3, "sizeZ": 1, "sizeT": 1}
        summary["timestamp"] = int(path.stat().st_mtime * 1000)
        counts = {"Root objects": 1}
        for kind, name in _KIND_NAMES.items():
            number = int((objects.kind == kind).sum())
            if number:
                counts[name] = number
        annotation = objects.kind == ObjectKind.ANNOTATION
        detection = ~annotation & (objects.kind != ObjectKind.TMA_CORE)
        summary["hierarchy"] = {
            "nObjects": len(objects) + 1,
            "objectTypeCounts": counts,
            "annotationClassificationCounts": _class_counts(objects, annotation),
            "detectionClassificationCounts": _class_counts(objects, detection),
        }
        text = json.dumps(summary, ensure_ascii=False, separators=(",", ":"))
        files.write_bytes(summary_file, text.encode())


def _class_counts(objects: PathObjects, mask: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in objects.classes[mask].tolist():
        counts[name or "Unclassified"] = counts.get(name or "Unclassified", 0) + 1
    return counts


def colors_in_use(objects: PathObjects) -> dict[str, RGB]:
    """Colours of the classes that objects have."""
    names = dict.fromkeys(name for name in objects.classes.tolist() if name is not None)
    return {name: objects.class_colors.get(name) or color_of(name) for name in names}


def safe_name(name: str) -> str:
    """Name for a folder that is allowed on Windows, macOS and Linux."""
    text = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name).strip().rstrip(". ")[:100].rstrip(". ")
    if not text or text.split(".")[0].strip().lower() in _RESERVED:
        text = f"_{text}"
    return text
