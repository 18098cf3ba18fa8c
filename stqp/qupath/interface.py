"""What a QuPath project and its images offer, whoever reads and writes the files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from numpy.typing import ArrayLike

from stqp.qupath.objects import PathObjects
from stqp.qupath.versions import QuPathVersion
from stqp.slides import Slide
from stqp.taxonomy import RGB

# makes a mask, bool (n,), of the n objects present: True for those to take out
Replace = Callable[[PathObjects], ArrayLike]


class Entry(Protocol):
    """One image of a project.

    What is set here is kept when the project is saved, and forgotten when it is aborted.
    """

    @property
    def id(self) -> int:
        """Number of the image in the project; never used again for another."""

    @property
    def name(self) -> str:
        """Name as QuPath lists it."""

    def rename(self, name: str) -> None:
        """Give the image another name; what stqp noted of it goes with it.

        Raises
        ------
        UsageError
            When the name is empty.
        """

    @property
    def description(self) -> str | None:
        """Text that QuPath shows with the image, None when there is none."""

    @description.setter
    def description(self, text: str | None) -> None: ...

    @property
    def tags(self) -> list[str]:
        """Tags of the image, a copy; QuPath 0.6 and later show them."""

    @tags.setter
    def tags(self, tags: Iterable[str]) -> None: ...

    @property
    def metadata(self) -> dict[str, str]:
        """Text by key, a copy."""

    @metadata.setter
    def metadata(self, metadata: Mapping[str, str]) -> None: ...

    def add_metadata(self, metadata: Mapping[str, str]) -> None:
        """Set keys of the metadata; others stay."""

    def remove_metadata(self, keys: Iterable[str]) -> None:
        """Take keys out of the metadata; those that are not there do no harm."""

    @property
    def image_uri(self) -> str | None:
        """URI of the image as the project has it, None when it names none."""

    @property
    def image_path(self) -> Path | None:
        """Image file: where the URI says, or at the same place relative to the project; None if no file.

        The file need not exist.
        """

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels, None when the project does not say."""

    @property
    def mpp(self) -> float | None:
        """µm per pixel as set in the project, None when it is not."""

    @property
    def folder(self) -> Path:
        """Folder of the image's files in the project; need not exist."""

    @property
    def stqp_folder(self) -> Path:
        """Folder for what stqp notes of the image; need not exist."""

    def read_objects(self) -> PathObjects:
        """Read the image's objects, with those that will be saved; none when none were ever saved.

        Raises
        ------
        InputError
            When the file is broken.
        """

    def write_objects(self, new: PathObjects, replace: Replace | None = None) -> None:
        """Add objects; those for which `replace` gives True are dropped, all others stay.

        Parameters
        ----------
        new
            Appended.
        replace
            None keeps all.

        Raises
        ------
        InputError
            When something in the file cannot be carried over; nothing has changed then.
        UsageError
            When the new objects cannot be written, or the project is open for reading only.
        """


class Project(Protocol):
    """A project, open; also a context manager that saves at its end, or takes everything back after an error.

    Every method that changes something raises `UsageError` when the project is open for reading only, or closed.
    """

    @property
    def folder(self) -> Path:
        """Folder of the project."""

    @property
    def file(self) -> Path:
        """Its ``project.qpproj``."""

    @property
    def mode(self) -> str:
        """How it was opened: r, r+, w, x or a."""

    @property
    def version(self) -> QuPathVersion:
        """The QuPath that last wrote it, or that a new one is written for."""

    @property
    def metadata(self) -> dict[str, str]:
        """Text by key that belongs to the whole project, a copy; QuPath 0.6 and later keep it."""

    @metadata.setter
    def metadata(self, metadata: Mapping[str, str]) -> None: ...

    @property
    def entries(self) -> Sequence[Entry]:
        """The images, in the project's order."""

    def entry(self, name_or_id: str | int) -> Entry:
        """Find an image by its name or id.

        Raises
        ------
        InputError
            When there is none of that name, or several.
        """

    @property
    def classes(self) -> dict[str, RGB]:
        """Colours of the project's classes, a copy, in the project's order."""

    def add_classes(self, colors: Mapping[str, RGB]) -> None:
        """Add classes that the project lacks; those it has keep their colours."""

    def set_classes(self, colors: Mapping[str, RGB]) -> None:
        """Have these classes, in this order and these colours, and no others."""

    def add_image(self, slide: Slide, name: str | None = None, metadata: Mapping[str, str] | None = None) -> Entry:
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

    def remove(self, entry: Entry, keep_files: bool = False) -> None:
        """Take an image out of the project.

        Parameters
        ----------
        entry
            One of `entries`.
        keep_files
            Whether its objects and what stqp noted of it stay on the disk. The image itself always does.

        Raises
        ------
        UsageError
            When the entry is not of this project.
        """

    def save(self) -> None:
        """Write what has changed: objects first, the project file last.

        Raises
        ------
        EnvironmentProblem
            When the disk is full or refuses.
        """

    def close(self) -> None:
        """Save, unless opened for reading, and let others in."""

    def abort(self) -> None:
        """Take back what was done since the last save, and let others in."""

    def __enter__(self) -> Project:
        """Open as a context."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save and close, or take everything back after an error."""
