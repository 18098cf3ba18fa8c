"""The Groovy scripts for QuPath that come with stqp, and how they get into a project."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import stqp
from stqp import files
from stqp.errors import EnvironmentProblem, InputError, UsageError

PROJECT_FOLDER = "scripts"
"""Where QuPath's menu *Project scripts* looks, beside the project file."""
_SHIPPED = "qupath_scripts"
_RECORD = "scripts.json"
_BACKUP = ".bak"


@dataclass(frozen=True)
class Script:
    """A script of stqp's.

    Attributes
    ----------
    name : str
        Without the ending.
    text : str
        All of it; lines end with a line feed.
    """

    name: str
    text: str

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return f"{self.name}.groovy"

    @property
    def header(self) -> str:
        """What its first comment says: what it does, how to run it, arguments, versions."""
        found = re.match(r"/\*\n(.*?)\n \*/", self.text, re.DOTALL)
        lines = found[1].split("\n") if found else []
        return "\n".join(line.removeprefix(" *").removeprefix(" ") for line in lines)

    @property
    def summary(self) -> str:
        """First sentence of the header."""
        paragraph = " ".join(self.header.split("\n\n", 1)[0].split())
        return re.split(r"(?<=\.) ", paragraph, maxsplit=1)[0]


@dataclass(frozen=True)
class Installed:
    """What became of one script in a project.

    Attributes
    ----------
    name : str
    path : Path
        Of its file in the project.
    state : str
        ``new``; ``same``, it was there; ``updated``, an older one of stqp's was there; ``kept``, somebody had
        changed it; ``replaced``, the same, with `force`, and theirs is beside it, its name ending in ``.bak``.
    difference : str
        For ``kept`` and ``replaced``, a unified diff from stqp's to what was there; else empty.
    """

    name: str
    path: Path
    state: str
    difference: str = ""

    @property
    def changes(self) -> tuple[int, int]:
        """Lines that somebody added and took out."""
        lines = self.difference.splitlines()[2:]
        return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)


def scripts_folder() -> Path:
    """Find the scripts: in the installed package, or beside it in a checkout.

    Raises
    ------
    EnvironmentProblem
        When they were not installed.
    """
    house = Path(stqp.__file__).parent
    for place in (house / _SHIPPED, house.parent / _SHIPPED):
        if place.is_dir():
            return place
    raise EnvironmentProblem(f"the scripts for QuPath are missing from {house / _SHIPPED}; install stqp again")


def available() -> list[Script]:
    """Read the scripts of stqp, by name."""
    return [Script(path.stem, _read(path)) for path in sorted(scripts_folder().glob("*.groovy"))]


def install(project: Path, only: Iterable[str] = (), force: bool = False) -> list[Installed]:
    """Put scripts where QuPath shows them in a project's menu.

    What somebody changed stays. An older version that nobody changed gives way to the newer one: what was
    installed is noted in the project's folder ``stqp``.

    Parameters
    ----------
    project
        Folder of the project, or its project file.
    only
        Names of scripts, with or without ``.groovy``; all when there are none.
    force
        Whether to replace also what somebody changed; theirs is kept with ``.bak`` at its end.

    Returns
    -------
    list of Installed
        One for each script.

    Raises
    ------
    InputError
        When there is no such project, or a script that is there cannot be read.
    UsageError
        When there is no script of a name.
    EnvironmentProblem
        When the disk refuses.
    """
    from stqp.qupath.folders import STQP_FOLDER
    from stqp.qupath.project import PROJECT_NAME

    file = project if project.suffix == ".qpproj" else project / PROJECT_NAME
    if not file.is_file():
        raise InputError(f"there is no QuPath project {file}; name a folder that holds {PROJECT_NAME}")
    record = file.parent / STQP_FOLDER / _RECORD
    noted = _noted(record)
    before = dict(noted)
    result = []
    for script in _chosen(only):
        path = file.parent / PROJECT_FOLDER / script.file_name
        result.append(_install_one(script, path, noted.get(script.name), force))
        if result[-1].state != "kept":
            noted[script.name] = _digest(script.text)
    if noted != before:
        files.write_json(record, noted)
    return result


def _chosen(only: Iterable[str]) -> list[Script]:
    scripts = {script.name: script for script in available()}
    names = [name.removesuffix(".groovy") for name in only] or list(scripts)
    unknown = [name for name in names if name not in scripts]
    if unknown:
        raise UsageError(f"stqp has no script {unknown[0]!r}; it has: {', '.join(scripts)}")
    return [scripts[name] for name in dict.fromkeys(names)]


def _install_one(script: Script, path: Path, noted: str | None, force: bool) -> Installed:
    state, difference = "new", ""
    if path.exists():
        present = _read(path)
        if present == script.text:
            return Installed(script.name, path, "same")
        if _digest(present) == noted:
            state = "updated"
        else:
            state = "replaced" if force else "kept"
            lines = script.text.splitlines(), present.splitlines()
            difference = "\n".join(difflib.unified_diff(*lines, "stqp", str(path), lineterm=""))
        if state == "kept":
            return Installed(script.name, path, state, difference)
        if state == "replaced":
            files.write_bytes(path.with_name(path.name + _BACKUP), path.read_bytes())
    files.write_bytes(path, script.text.encode())
    return Installed(script.name, path, state, difference)


def _noted(record: Path) -> dict[str, str]:
    """Digest by script of what was installed; nothing when the record is gone or broken."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return {str(name): str(digest) for name, digest in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> str:
    """Text of a script, whatever its line ends: editors on Windows change them."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error.reason}); move it away and install again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
