"""Images that are no longer where a project says: found by a map of folders, by their place, or by their name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stqp.errors import InputError
from stqp.qupath import servers, uris
from stqp.qupath.validation.imagesize import Size, image_sizes

if TYPE_CHECKING:
    from stqp.qupath.entry import ProjectEntry
    from stqp.qupath.project import QuPathProject

logger = logging.getLogger(__name__)

FOUND = "found already"
RELINKED = "relinked"
NOT_FOUND = "not found"
AMBIGUOUS = "ambiguous"
OTHER_SIZE = "other size"
UNREADABLE = "unreadable"
NO_FILE = "no file"
# the first that any file of an image has is that of the image
_ORDER = (AMBIGUOUS, OTHER_SIZE, UNREADABLE, NOT_FOUND, RELINKED, FOUND, NO_FILE)


@dataclass(frozen=True)
class Relinked:
    """What became of one image.

    Attributes
    ----------
    id : int
    name : str
    status : str
        "found already", "relinked", "not found", "ambiguous" (several files of its name and size, or one that
        several images claim), "other size" (the file is another image), "unreadable" (no image, or one of a
        format whose size stqp cannot check), "no file" (the image is on a server).
    old : str or None
        Its URI.
    new : str or None
        The URI written; None when it stays.
    candidates : tuple of Path
        The files that were considered, where none was taken.
    """

    id: int
    name: str
    status: str
    old: str | None
    new: str | None = None
    candidates: tuple[Path, ...] = ()


@dataclass
class _Answer:
    status: str
    path: Path | str | None = None
    candidates: tuple[Path, ...] = ()
    by_name: bool = False


def relink(
    project: QuPathProject,
    mapping: Mapping[str | Path, str | Path] | Iterable[tuple[str | Path, str | Path]] = (),
    search: Iterable[str | Path] = (),
    *,
    check: bool = True,
    force: bool = False,
    dry_run: bool = False,
) -> list[Relinked]:
    r"""Find the images of a project that moved, and note where they are.

    Parameters
    ----------
    project
        Open for writing, unless `dry_run`. Its file is written at the next save.
    mapping
        Old and new folders; the longest that fits is taken. POSIX paths, Windows paths with a drive
        (``C:\slides``) or of a network share (``\\server\share``), for which capitals mean nothing, or URIs.
    search
        Folders that are searched, with all below them, for files of the images' names. Where several have the
        right size, none is taken.
    check
        Whether a new file must be there, open as an image, and have the width and height that the project
        notes. False for a project that is prepared for another machine.
    force
        Whether `mapping` also applies to images that are found where they are.
    dry_run
        Whether the project stays as it is.

    Returns
    -------
    list of Relinked
        One for each image, in the project's order.

    Raises
    ------
    InputError
        When a folder to search is not there.
    UsageError
        When the project is open for reading only.
    """
    if not dry_run:
        project.check_writable()
    pairs = [(str(a), str(b)) for a, b in (mapping.items() if isinstance(mapping, Mapping) else mapping)]
    finder = _Finder(project, pairs, check, force)
    plans = [[(b, finder.without_search(b)) for b in entry.uri_builders() if b["uri"]] for entry in project.entries]
    missing = [b for plan in plans for b, answer in plan if answer.status == NOT_FOUND]
    index = _search(search, {uris.same_name(_name(b)) for b in missing})
    for plan in plans:
        plan[:] = [(b, finder.by_name(b, index, a) if a.status == NOT_FOUND else a) for b, a in plan]
    _refuse_claimed_twice(plans)
    for old, _ in pairs:
        if not any(uris.remap(p, old, "/") for plan in plans for b, _ in plan if (p := uris.uri_path(b["uri"]))):
            logger.warning("no image of the project %s lies in %s", project.folder, old)
    return [_report(entry, plan, dry_run) for entry, plan in zip(project.entries, plans, strict=True)]


def update_uris(project: QuPathProject) -> list[Relinked]:
    """Note where the images of a project that moved are, if they moved with it; others stay as they are.

    The project file says where it was, which is how images are found relative to it, and at the next save it
    will say where it is. QuPath writes the URIs anew in the same way when it opens such a project.

    Parameters
    ----------
    project
        Open for writing.

    Returns
    -------
    list of Relinked
        The images that are noted anew.
    """
    home = uris.uri_path(project.recorded_uri or "")
    if not home or uris.local_path(home) == project.file:
        return []
    before = home.rsplit("/", 1)[0]
    result = []
    for entry in project.entries:
        plan = []
        for builder in entry.uri_builders():
            path = uris.uri_path(builder["uri"])
            if not path or uris.exists(uris.local_path(path)):
                continue
            moved = uris.beside(path, project.recorded_uri, project.folder)
            # what lay in the project's own folder is now nowhere else
            if moved is not None and (uris.exists(moved) or uris.remap(path, before, "/") is not None):
                plan.append((builder, _Answer(RELINKED, moved)))
        if plan:
            result.append(_report(entry, plan, dry_run=False))
    return result


class _Finder:
    """Where the file of one builder is."""

    def __init__(self, project: QuPathProject, pairs: Sequence[tuple[str, str]], check: bool, force: bool):
        self._project = project
        self._pairs = sorted(pairs, key=lambda pair: -uris.length(pair[0]))
        self._check = check
        self._force = force
        self._sizes: dict[Path, set[Size] | None] = {}

    def without_search(self, builder: dict[str, Any]) -> _Answer:
        """Where it is, by the URI, the map, or the place relative to the project."""
        path = uris.uri_path(builder["uri"])
        if not path:
            return _Answer(NO_FILE)
        said = uris.local_path(path)
        found = uris.exists(said)
        if found and not self._force:
            return _Answer(FOUND, said)
        mapped = next((new for a, b in self._pairs if (new := uris.remap(path, a, b)) is not None), None)
        if mapped is not None and mapped != path:
            if not self._check:
                return _Answer(RELINKED, mapped)
            if uris.exists(uris.local_path(mapped)):
                return self._verified(builder, [uris.absolute(uris.local_path(mapped))])
        if found:
            return _Answer(FOUND, said)
        moved = uris.beside(path, self._project.recorded_uri, self._project.folder)
        if moved is not None and uris.exists(moved):
            return self._verified(builder, [moved])
        return _Answer(NOT_FOUND)

    def by_name(self, builder: dict[str, Any], index: dict[str, list[Path]], before: _Answer) -> _Answer:
        """The one file of its name."""
        same = index.get(uris.same_name(_name(builder)), [])
        exact = [p for p in same if p.name == _name(builder)]
        if not same:
            return before
        answer = self._verified(builder, exact or same)
        answer.by_name = True
        return answer

    def _verified(self, builder: dict[str, Any], candidates: list[Path]) -> _Answer:
        everything = tuple(candidates)
        if self._check:
            readable = [p for p in candidates if self._image_sizes(p) is not None]
            if not readable:
                return _Answer(UNREADABLE, candidates=everything)
            metadata = builder.get("metadata")
            size = servers.size_of(metadata) if isinstance(metadata, dict) else None
            candidates = [p for p in readable if size is None or size in (self._image_sizes(p) or ())]
            if not candidates:
                return _Answer(OTHER_SIZE, candidates=everything)
        if len(candidates) > 1:
            return _Answer(AMBIGUOUS, candidates=tuple(candidates))
        return _Answer(RELINKED, candidates[0])

    def _image_sizes(self, path: Path) -> set[Size] | None:
        if path not in self._sizes:
            self._sizes[path] = image_sizes(path)
        return self._sizes[path]


def _name(builder: dict[str, Any]) -> str:
    return uris.file_name(uris.uri_path(builder["uri"]) or "")


def _search(folders: Iterable[str | Path], names: set[str]) -> dict[str, list[Path]]:
    """Files, and folders that are images, of the given names."""
    result: dict[str, list[Path]] = {}
    seen: set[str] = set()
    for given in folders:
        folder = uris.absolute(Path(given))
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder} to search for images")
        if not names:
            continue
        for place, below, inside in os.walk(folder, onerror=lambda error: logger.warning("not searched: %s", error)):
            for name in (*below, *inside):
                if uris.same_name(name) in names:
                    path = Path(place, name)
                    real = os.path.realpath(path)
                    if real not in seen:
                        seen.add(real)
                        result.setdefault(uris.same_name(name), []).append(path)
    return {name: sorted(paths) for name, paths in result.items()}


def _refuse_claimed_twice(plans: list[list[tuple[dict[str, Any], _Answer]]]) -> None:
    """Images that were in different places are different; one file of their name is not both."""
    claims: dict[str, set[str]] = {}
    answers = [(b, a) for plan in plans for b, a in plan if a.status in (FOUND, RELINKED)]
    for builder, answer in answers:
        claims.setdefault(os.path.realpath(str(answer.path)), set()).add(str(uris.uri_path(builder["uri"])))
    for _, answer in answers:
        if answer.by_name and len(claims[os.path.realpath(str(answer.path))]) > 1:
            answer.status, answer.candidates, answer.path = AMBIGUOUS, (Path(str(answer.path)),), None


def _report(entry: ProjectEntry, plan: list[tuple[dict[str, Any], _Answer]], dry_run: bool) -> Relinked:
    """Write the new URIs of an image whose every file is found, and say what was done."""
    status = min((a.status for _, a in plan), key=_ORDER.index, default=NO_FILE)
    old = entry.image_uri
    if status != RELINKED:
        candidates = tuple(p for _, a in plan for p in a.candidates)
        return Relinked(entry.id, entry.name, status, old, candidates=candidates)
    changes = {b["uri"]: uris.to_uri(a.path) for b, a in plan if a.status == RELINKED and a.path is not None}
    if not dry_run:
        for builder, _ in plan:
            builder["uri"] = changes.get(builder["uri"], builder["uri"])
        entry.mark_server_changed()
    first = next(iter(changes))
    return Relinked(entry.id, entry.name, RELINKED, first, changes[first])
