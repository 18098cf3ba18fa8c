"""What a save does once the project file is in its place: folders of images that left or were renamed.

It is noted in a file before, so that the next run finishes it when this one is killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stqp import files
from stqp.errors import EnvironmentProblem, InputError
from stqp.qupath.codec.document import backup_of
from stqp.qupath.folders import OBJECTS, STAGED, STQP_FOLDER
from stqp.qupath.java.nodes import MAGIC
from stqp.qupath.saving import read_json

logger = logging.getLogger(__name__)

PENDING_NAME = ".stqp.pending.json"
NEW_MARK = ".stqp.new"
_ASIDE = ".moving-"


@dataclass
class Pending:
    """Folders to delete and to rename.

    Attributes
    ----------
    remove : list of (int, str or None)
        Ids of images that left, and the names of their folders of stqp's.
    rename : list of (int, str, str)
        Id of an image, old and new name of its folder of stqp's.
    placing : bool
        Whether all folders are out of the way of each other.
    """

    remove: list[tuple[int, str | None]] = field(default_factory=list)
    rename: list[tuple[int, str, str]] = field(default_factory=list)
    placing: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.remove or self.rename)

    def to_bytes(self) -> bytes:
        """What the file holds."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, folder: Path) -> Pending:
        """Read what a project has left to do; nothing when there is none, or it is broken."""
        try:
            content = json.loads((folder / PENDING_NAME).read_text(encoding="utf-8"))
            remove = [(int(i), None if n is None else str(n)) for i, n in content["remove"]]
            rename = [(int(i), str(a), str(b)) for i, a, b in content["rename"]]
            names = [n for _, n in remove if n is not None] + [n for _, a, b in rename for n in (a, b)]
            if any(n in ("", ".", "..") or "/" in n or "\\" in n for n in names):
                return cls()
            return cls(remove, rename, bool(content["placing"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def where(self, folder: Path, number: int, name: str) -> str:
        """Name of the folder that an image's things are in at the moment; `name` unless it is being renamed."""
        root = folder / STQP_FOLDER
        for i, old, new in self.rename:
            if i == number and new == name:
                if (root / f"{_ASIDE}{i}").exists():
                    return f"{_ASIDE}{i}"
                if not self.placing and (root / old).exists():
                    return old
        return name

    def finish(self, folder: Path, file: Path, names: dict[int, str]) -> bool:
        """Do it, as far as the project file that is now there says so.

        Parameters
        ----------
        folder, file
            Of the project.
        names
            By the id of each image of the project, the name that its folder is to have.

        Returns
        -------
        bool
            Whether all is done; if not, the next run tries again.
        """
        try:
            elsewhere = ids_elsewhere(folder, file) if self.remove else set()
            for number, name in self.remove:
                if number in names:
                    continue
                if number in elsewhere:
                    logger.warning("the data of image %d stay, as another project in %s has it", number, folder)
                    continue
                _delete(folder / "data" / str(number))
                if name is not None and name.lower() not in {n.lower() for n in names.values()}:
                    _delete(folder / STQP_FOLDER / name)
            self._rename(folder, names)
            (folder / PENDING_NAME).unlink(missing_ok=True)
        except (OSError, EnvironmentProblem) as error:
            logger.warning("folders of the project %s are put in order when it is next saved (%s)", folder, error)
            return False
        return True

    def _rename(self, folder: Path, names: dict[int, str]) -> None:
        root = folder / STQP_FOLDER
        due = [(i, old, new) for i, old, new in self.rename if names.get(i) == new]
        if not due:
            return
        if not self.placing:
            for i, old, _ in due:
                aside = root / f"{_ASIDE}{i}"
                if (root / old).exists() and not aside.exists():
                    (root / old).rename(aside)
            self.placing = True
            files.write_bytes(folder / PENDING_NAME, self.to_bytes())
        for i, _, new in due:
            aside, target = root / f"{_ASIDE}{i}", root / new
            if not aside.exists():
                continue
            if target.exists():  # of an image that left
                free = next(p for k in range(1, 10**6) if not (p := root / f"{new}.old-{k}").exists())
                target.rename(free)
            aside.rename(target)


def _delete(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def ids_elsewhere(folder: Path, file: Path) -> set[int]:
    """Ids of the images of other project files in the same folder, which share its data."""
    result: set[int] = set()
    for other in folder.glob("*.qpproj"):
        if other != file:
            try:
                images = read_json(other).get("images") or []
                result.update(int(i["entryID"]) for i in images)
            except (InputError, ValueError, KeyError, TypeError):
                continue
    return result


def is_whole(path: Path) -> bool:
    """Whether a ``data.qpdata`` is there with its beginning and its end."""
    try:
        with path.open("rb") as file:
            begin = file.read(4)
            file.seek(-3, 2)
            return begin == MAGIC and file.read() == b"EOF"
    except OSError:
        return False


def sweep(folder: Path, file: Path, ids: Iterable[int]) -> None:
    """Clear away what a run that was killed left behind, in a project whose lock is held.

    Parameters
    ----------
    folder, file
        Of the project.
    ids
        Of its images.
    """
    with files.disk_errors(folder):
        known = {*ids, *ids_elsewhere(folder, file)}
        numbered = [f for f in (folder / "data").glob("*") if f.name.isdigit() and f.is_dir()]
        for place in (folder, folder / "classifiers", folder / "data", *numbered):
            for left in place.glob(".*"):
                if left.is_file() and (files.is_temporary(left) or left.name.startswith(STAGED)):
                    left.unlink()
        current = file.read_bytes()
        for copy in folder.glob("project.replaced-*.qpproj"):
            if copy != file and copy.read_bytes() == current:
                copy.unlink()  # of a replacement that did not happen
        for place in numbered:
            if is_whole(place / OBJECTS):
                backup_of(place / OBJECTS).unlink(missing_ok=True)
            mark = place / NEW_MARK
            if mark.exists():
                if int(place.name) in known:
                    mark.unlink()
                else:
                    _delete(place)
            elif int(place.name) not in known:
                with contextlib.suppress(OSError):  # of an image that was deleted with its data kept
                    place.rmdir()
