"""Several projects in one new one: all images and objects, all classes; the projects merged stay as they are."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stqp import files
from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.locking import LOCK_NAME, is_stale, read_lock
from stqp.qupath import servers, uris
from stqp.qupath.classes import ClassList
from stqp.qupath.entry import ProjectEntry
from stqp.qupath.folders import STAGED, STQP_FOLDER, folder_names
from stqp.qupath.pending import NEW_MARK
from stqp.qupath.project import PROJECT_NAME, QuPathProject
from stqp.qupath.saving import json_bytes
from stqp.qupath.versions import QuPathVersion

ON_DUPLICATE = ("refuse", "keep", "skip", "rename")
_SHARED = ("classifiers", "scripts")


@dataclass(frozen=True)
class MergedEntry:
    """Where an image of the new project comes from.

    Attributes
    ----------
    project : str
        Folder of the project it was in.
    old_id, old_name, id, name
        What it was there, and is now; the new ones are None where it was left out.
    """

    project: str
    old_id: int
    old_name: str
    id: int | None
    name: str | None


@dataclass
class Merged:
    """What became of the projects.

    Attributes
    ----------
    file : str
        The new project file.
    entries : list of MergedEntry
        All, also those that were left out.
    colors : list of str
        Classes that have other colours in a later project; the first project's are taken.
    conflicts : list of str
        Classifiers, scripts and metadata of one name that differ; the first project's are taken.
    """

    file: str
    entries: list[MergedEntry] = field(default_factory=list)
    colors: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        return asdict(self)


def merge_projects(
    out: str | Path,
    projects: Sequence[str | Path],
    on_duplicate: str = "refuse",
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Make one project of several.

    Images get new ids, and their files of objects are copied byte for byte. An image whose name another has gets
    the name of its project behind it. The new project takes its place when it is complete.

    Parameters
    ----------
    out
        Folder of the new project; empty, or not there.
    projects
        Folders or project files; the first one's colours, classifiers and scripts go before the others'.
    on_duplicate : {"refuse", "keep", "skip", "rename"}
        What to do with an image that an earlier project has too: nothing at all; keep both under one name; leave
        the later one out; keep both, the later one under another name.
    progress
        Called with images done and in total.

    Raises
    ------
    InputError
        When there is no project, something is at `out`, or two projects have the same image and `on_duplicate`
        is "refuse".
    EnvironmentProblem
        When the disk refuses, or a project is being written.
    UsageError
        When `out` lies in one of the projects.
    """
    if on_duplicate not in ON_DUPLICATE:
        raise UsageError(f"on_duplicate is one of {', '.join(ON_DUPLICATE)}, not {on_duplicate!r}")
    if not projects:
        raise UsageError("name at least one project to merge")
    target = uris.absolute(Path(out))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already; name a new folder for the merged project")
    with ExitStack() as stack:
        opened = [stack.enter_context(_readable(path, target)) for path in projects]
        plan = _plan(opened, on_duplicate)
        with _in_place(target) as folder:
            return _write(folder, target, opened, plan, progress)


@contextmanager
def _readable(path: str | Path, target: Path) -> Iterator[QuPathProject]:
    with QuPathProject.open(path) as project:
        if target.is_relative_to(project.folder):
            raise UsageError(f"the new project {target} would lie in {project.folder}, which it is made of")
        lock = read_lock(project.folder)
        if lock is not None and not is_stale(lock, project.folder / LOCK_NAME):
            raise EnvironmentProblem(
                f"the project {project.folder} is being written by process {lock.get('pid')} on {lock.get('host')}; "
                "wait for it"
            )
        yield project


@contextmanager
def _in_place(target: Path) -> Iterator[Path]:
    """Give a new folder that takes its place at the end, or is gone after an error."""
    with files.disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            folder = staged / "project"  # mkdtemp's own is private to the user
            folder.mkdir()
            yield folder
            if target.exists():
                target.rmdir()
            folder.rename(target)
            files.sync_folder(target.parent)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _plan(
    projects: Sequence[QuPathProject], on_duplicate: str
) -> list[tuple[ProjectEntry, dict[str, Any], MergedEntry]]:
    """Each image with its new content of the project file, and what it is called there."""
    result: list[tuple[ProjectEntry, dict[str, Any], MergedEntry]] = []
    known: dict[str, tuple[QuPathProject, ProjectEntry]] = {}
    taken: set[str] = set()
    number = 0
    for project in projects:
        mine: dict[str, tuple[QuPathProject, ProjectEntry]] = {}
        own: set[str] = set()
        raw = {int(image["entryID"]): image for image in project.content["images"]}
        for entry in project.entries:
            content = copy.deepcopy(raw[entry.id])
            key = _set_places(content, project)
            before = known.get(key) if key else None
            if before is not None and on_duplicate == "refuse":
                raise InputError(
                    f"the image {entry.name!r} of {project.folder} is {before[1].name!r} of {before[0].folder} too; "
                    "say with --on-duplicate whether to keep, skip or rename it"
                )
            if key:
                mine.setdefault(key, (project, entry))
            if before is not None and on_duplicate == "skip":
                result.append((entry, {}, MergedEntry(str(project.folder), entry.id, entry.name, None, None)))
                continue
            number += 1
            name = entry.name
            # within a project names are as somebody left them
            if name.casefold() in taken and not (before is not None and on_duplicate == "keep"):
                name = _free(name, project.folder.name, taken | own)
            own.add(name.casefold())
            content.update(entryID=number, imageName=name)
            result.append((entry, content, MergedEntry(str(project.folder), entry.id, entry.name, number, name)))
        known = {**mine, **known}
        taken |= own
    return result


def _set_places(content: dict[str, Any], project: QuPathProject) -> str | None:
    """Have the content say where its files are; what is equal for the same image, None when it names none."""
    places = []
    for builder in servers.uri_builders(content.get("serverBuilder")):
        path = uris.resolve(builder["uri"], project.recorded_uri, project.folder)
        if path is None:
            places.append(builder["uri"])
            continue
        said = uris.uri_path(builder["uri"]) or ""
        if uris.exists(path) and uris.local_path(said) != path:
            builder["uri"] = uris.to_uri(path)
        places.append(os.path.normcase(os.path.realpath(path)))
    if not places:
        return None
    return json.dumps([places, _without_places(content.get("serverBuilder"))], sort_keys=True)


def _without_places(builder: Any) -> Any:
    """A server builder without what may differ for the same view of the same image."""
    if isinstance(builder, dict):
        dropped = ("uri", "metadata", "providerClassName")
        return {k: _without_places(v) for k, v in builder.items() if k not in dropped}
    return [_without_places(v) for v in builder] if isinstance(builder, list) else builder


def _free(name: str, project: str, taken: set[str]) -> str:
    wanted, number = f"{name} ({project})", 2
    while wanted.casefold() in taken:
        wanted, number = f"{name} ({project} {number})", number + 1
    return wanted


def _write(
    folder: Path,
    target: Path,
    projects: Sequence[QuPathProject],
    plan: Sequence[tuple[ProjectEntry, dict[str, Any], MergedEntry]],
    progress: Callable[[int, int], None] | None,
) -> Merged:
    result = Merged(str(target / PROJECT_NAME), [merged for _, _, merged in plan])
    kept = [(entry, content) for entry, content, merged in plan if merged.id is not None]
    homes = folder_names((content["entryID"], content["imageName"]) for _, content in kept)
    for done, (entry, content) in enumerate(kept, start=1):
        number = content["entryID"]
        _copy(entry.folder, folder / "data" / str(number))
        _copy(entry.stqp_folder, folder / STQP_FOLDER / homes[number])
        if progress is not None:
            progress(done, len(kept))
    classes = ClassList()
    metadata: dict[str, str] = {}
    for project in projects:
        for name, color in project.classes.items():
            if classes.colors.get(name, color) != color:
                result.colors.append(f"{name} (in {project.folder})")
        classes.add(project.classes)
        for key, text in project.metadata.items():
            if metadata.setdefault(key, text) != text:
                result.conflicts.append(f"the metadata {key!r} of {project.folder}")
        for part in _SHARED:
            result.conflicts += _copy_shared(project.folder / part, folder / part)
    if classes.content["pathClasses"]:
        files.write_bytes(folder / "classifiers" / "classes.json", json_bytes(classes.content))
    if metadata:
        files.write_bytes(folder / "data" / "metadata.json", json_bytes(metadata, indent=None))
    now = int(time.time() * 1000)
    content = {
        "version": _newest([p.version for p in projects]).text,
        "createTimestamp": now,
        "modifyTimestamp": now,
        "uri": uris.to_uri(target / PROJECT_NAME),
        "lastID": len(kept),
        "images": [content for _, content in kept],
    }
    files.write_bytes(folder / PROJECT_NAME, json_bytes(content))
    return result


def _newest(versions: Sequence[QuPathVersion]) -> QuPathVersion:
    """The version that reads what all of them write."""
    return max(versions, key=lambda v: v.number or (99, 0))


def _copy(source: Path, target: Path) -> None:
    """Copy a folder with all its files and their times, but for what a killed run left behind."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=lambda _, names: [n for n in names if _left_over(n)])


def _left_over(name: str) -> bool:
    return files.is_temporary(Path(name)) or name.startswith(STAGED) or name == NEW_MARK


def _copy_shared(source: Path, target: Path) -> list[str]:
    """Copy files that are not there yet; those that are and differ."""
    result = []
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        place = target / path.relative_to(source)
        if not path.is_file() or (path.parent == source and path.name == "classes.json") or _left_over(path.name):
            continue
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)
        elif place.read_bytes() != path.read_bytes():
            result.append(str(path))
    return result
