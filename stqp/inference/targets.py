"""What is to be predicted: slides, folders, globs, and images of QuPath projects."""

from __future__ import annotations

import fnmatch
import glob
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stqp.errors import InputError, UsageError
from stqp.inference.maps import map_stem
from stqp.inference.status import STATUS_FOLDER, Status
from stqp.qupath.backends import open_project
from stqp.qupath.interface import Entry
from stqp.qupath.project import PROJECT_NAME
from stqp.slides import is_folder_slide, is_slide

logger = logging.getLogger(__name__)
UNFINISHED = ".unfinished"  # ending of the folder of what is done of a slide


@dataclass(frozen=True)
class Job:
    """One slide to predict, and where its nuclei go.

    Attributes
    ----------
    name : str
    slide : Path or None
        None when the project's image file is not found.
    project : Path or None
        Project that the nuclei go to; None for files alone.
    entry : int or None
        Id of the image in the project; None for a slide that is to be added.
    mpp : float or None
        µm per px that the project, or the manifest, says.
    size : (int, int) or None
        Width and height that the project says.
    boxes : list or None
        Where to look; everywhere when None.
    home : Path
        Folder that the status, and files without a project, are written to.
    stem : str
        Of the names of files there; no other slide's.
    metadata : dict
        Added to the image in the project.
    """

    name: str
    slide: Path | None
    project: Path | None
    entry: int | None = None
    mpp: float | None = None
    size: tuple[int, int] | None = None
    boxes: list[list[float]] | None = None
    home: Path = Path()
    stem: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def unfinished(self) -> Path:
        """Folder for what is finished of it, so that a run that was killed goes on."""
        return self.home / STATUS_FOLDER / f"{self.stem}{UNFINISHED}"

    @property
    def status(self) -> Status:
        """The file that tells how far it is."""
        return Status(self.home / STATUS_FOLDER / f"{self.stem}.json", self.name, self.slide)


@dataclass(frozen=True)
class Selection:
    """Which images of projects are meant; all when nothing is said.

    Attributes
    ----------
    entries : sequence of str
        Names, with ``*`` and ``?``, or ids.
    where : sequence of (str, str)
        Keys and values of the metadata; all must be so.
    tags : sequence of str
        All must be there.
    """

    entries: Sequence[str] = ()
    where: Sequence[tuple[str, str]] = ()
    tags: Sequence[str] = ()

    @classmethod
    def parse(cls, entries: Sequence[str] = (), where: Sequence[str] = (), tags: Sequence[str] = ()) -> Selection:
        """Make one from texts, ``KEY=VALUE`` for the metadata.

        Raises
        ------
        UsageError
            When a text has no ``=``.
        """
        pairs = []
        for text in where:
            key, sign, value = text.partition("=")
            if not sign or not key.strip():
                raise UsageError(f"expected KEY=VALUE of the metadata, as in organ=colon, found {text!r}")
            pairs.append((key.strip(), value.strip()))
        return cls(tuple(map(str, entries)), tuple(pairs), tuple(tags))

    def __bool__(self) -> bool:
        """Whether it chooses."""
        return bool(self.entries or self.where or self.tags)

    def named(self, entry: Entry) -> list[str]:
        """Which of the names and ids mean an image."""
        return [e for e in self.entries if e == str(entry.id) or e == entry.name or fnmatch.fnmatchcase(entry.name, e)]

    def takes(self, entry: Entry) -> bool:
        """Whether an image is meant."""
        if self.entries and not self.named(entry):
            return False
        metadata = entry.metadata if self.where else {}
        tags = entry.tags if self.tags else ()
        return all(metadata.get(key) == value for key, value in self.where) and set(self.tags) <= set(tags)

    def __str__(self) -> str:
        """What is chosen, for messages."""
        parts = [*self.entries, *(f"{k}={v}" for k, v in self.where), *(f"tag {t}" for t in self.tags)]
        return ", ".join(parts)


def plan(
    targets: Sequence[str | Path],
    project: Path | None,
    selection: Selection,
    failed: list[str],
    out: Path | None = None,
    recursive: bool = False,
) -> list[Job]:
    """Make the list of slides to predict; what cannot be opened is added to `failed`.

    Parameters
    ----------
    targets
        Slides, folders, globs and projects.
    project
        For slides that are in none.
    selection
        Images of the projects.
    failed
        Sentences are added.
    out
        For files, and for slides without a project.
    recursive
        Look into folders of folders too.

    Raises
    ------
    UsageError
        When a slide has nowhere to go, or images are chosen and no target is a project.
    InputError
        When a chosen image is in no project, or there is nothing to predict.
    """
    jobs: list[Job] = []
    met: set[str] = set()
    projects: list[Path] = []
    for target in targets:
        try:
            for path in _expanded(target):
                if path.suffix == ".qpproj" or (path / PROJECT_NAME).is_file():
                    projects.append(path)
                    jobs += _entries(path, selection, met)
                    continue
                if project is None and out is None:
                    raise UsageError(
                        f"{path} is no QuPath project; say with --project where its nuclei are to go, or with --out"
                    )
                jobs += [Job(p.name, p, project) for p in _slides(path, recursive)]
        except InputError as error:
            failed.append(f"{target}: {error}")
            logger.error("%s", failed[-1])
    _check_selection(selection, projects, met, [job for job in jobs if job.entry is not None], failed)
    distinct = {(job.slide.resolve() if job.slide else job.name, job.project, job.entry): job for job in jobs}
    if not distinct and not failed:
        raise InputError(f"there is nothing to predict in {', '.join(map(str, targets))}")
    return placed([*distinct.values()], out)


def project_folder(path: str | Path) -> Path:
    """Folder of a project that is named by its folder or its file."""
    path = Path(path)
    return path.parent if path.suffix == ".qpproj" else path


def placed(jobs: Sequence[Job], out: Path | None, others: Sequence[Job] = ()) -> list[Job]:
    """Give each job its folder, and a stem that is no other slide's, of this run or of an earlier one."""
    taken = {(job.home, job.stem.lower()) for job in others}
    result = []
    for job in jobs:
        home = out if out is not None else (job.project or Path()) / "stqp"
        stem, number = map_stem(job.name), 2
        while (home, stem.lower()) in taken or not replace(job, home=home, stem=stem).status.is_free():
            stem, number = f"{map_stem(job.name)}-{number}", number + 1
        taken.add((home, stem.lower()))
        result.append(replace(job, home=home, stem=stem))
    return result


def _expanded(target: str | Path) -> Iterator[Path]:
    """Paths that a target means; globs are expanded here too, as no shell does so on Windows."""
    text = str(target)
    if Path(target).exists() or not glob.has_magic(text):
        yield Path(target)
        return
    found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute pattern)
    if not found:
        raise InputError("no file matches; expected slides, folders of slides or QuPath projects")
    for path in map(Path, found):
        if path.is_dir() or path.suffix == ".qpproj" or is_slide(path):
            yield path


def _entries(path: Path, selection: Selection, met: set[str]) -> list[Job]:
    folder = project_folder(path)
    with open_project(path, "r") as opened:
        for entry in opened.entries:
            met.update(selection.named(entry))
        return [
            Job(entry.name, entry.image_path, folder, entry.id, entry.mpp, entry.size)
            for entry in opened.entries
            if selection.takes(entry)
        ]


def _check_selection(
    selection: Selection, projects: Sequence[Path], met: set[str], jobs: Sequence[Job], failed: Sequence[str]
) -> None:
    if not selection or (failed and not projects):
        return
    if not projects:
        raise UsageError(f"images are chosen ({selection}), but no target is a QuPath project")
    missing = [name for name in selection.entries if name not in met]
    if not missing and jobs:
        return
    names, metadata, tags = set(), set(), set()
    for path in projects:
        with open_project(path, "r") as opened:
            for entry in opened.entries:
                names.add(entry.name)
                metadata |= {f"{k}={v}" for k, v in entry.metadata.items()}
                tags |= set(entry.tags)
    if missing:
        raise InputError(f"no project has the image {', '.join(missing)}; found {_few(names)}")
    raise InputError(
        f"no image of {', '.join(map(str, projects))} is {selection}; "
        f"the metadata are {_few(metadata)}, and the tags {_few(tags)}"
    )


def _few(texts: set[str]) -> str:
    some = sorted(texts)
    return (", ".join(some[:10]) + (", ..." if len(some) > 10 else "")) or "none"


def _slides(target: Path, recursive: bool) -> list[Path]:
    if not target.is_dir() or is_folder_slide(target):
        if not target.exists():
            raise InputError("expected a slide, a folder of slides or a QuPath project, found nothing there")
        return [target]
    slides, deeper = [], False
    for path in sorted(target.iterdir()):
        if path.name.startswith("."):
            continue
        if is_folder_slide(path):
            slides.append(path)
        elif path.is_dir():
            if not recursive:
                deeper = True
            elif (path / PROJECT_NAME).is_file():
                logger.warning("%s is a QuPath project and was not looked into; name it as a target", path)
            else:
                try:
                    slides += _slides(path, recursive)
                except InputError:
                    continue  # a folder of something else
        elif path.is_file() and is_slide(path):
            slides.append(path)
    if not slides:
        more = "; its folders are looked into with --recursive" if deeper else ""
        raise InputError(f"expected a QuPath project or a folder with slides, found neither{more}")
    return slides
