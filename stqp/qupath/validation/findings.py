"""What a check of a project found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from stqp.qupath.versions import QuPathVersion

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
VERSIONS = ("0.4", "0.5", "0.6", "0.7")
PARSED = {text: QuPathVersion.parse(text) for text in VERSIONS}


@dataclass(frozen=True)
class Finding:
    """One thing that QuPath would stumble over.

    Attributes
    ----------
    severity : str
        "error": QuPath refuses, or loses something. "warning": it opens, with a surprise. "note": good to know.
    code : str
        Short name of the sort of finding, for programs.
    versions : tuple of str
        The versions of QuPath that it concerns.
    file : str
        Relative to the project's folder.
    entry : str or None
        Name of the image.
    what, do : str
        One sentence each: what is there, and what to do about it.
    """

    severity: str
    code: str
    versions: tuple[str, ...]
    file: str
    entry: str | None
    what: str
    do: str

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        return {**asdict(self), "versions": list(self.versions)}


@dataclass
class Findings:
    """Collects findings about one file after another.

    Attributes
    ----------
    found : list of Finding
    file : str
        That the next findings are about.
    entry : str or None
    """

    found: list[Finding] = field(default_factory=list)
    file: str = ""
    entry: str | None = None

    def about(self, file: str, entry: str | None = None) -> None:
        """Say what the next findings are about."""
        self.file, self.entry = file, entry

    def add(self, severity: str, code: str, what: str, do: str, versions: Iterable[str] = VERSIONS) -> None:
        """Add a finding."""
        self.found.append(Finding(severity, code, tuple(versions), self.file, self.entry, what, do))

    def error(self, code: str, what: str, do: str, versions: Iterable[str] = VERSIONS) -> None:
        """Add something that QuPath refuses, or loses."""
        self.add(ERROR, code, what, do, versions)

    def warning(self, code: str, what: str, do: str, versions: Iterable[str] = VERSIONS) -> None:
        """Add something that surprises."""
        self.add(WARNING, code, what, do, versions)

    def note(self, code: str, what: str, do: str, versions: Iterable[str] = VERSIONS) -> None:
        """Add something that is good to know."""
        self.add(NOTE, code, what, do, versions)

    def sorted(self) -> list[Finding]:
        """Errors first, otherwise in the order of the project."""
        return sorted(self.found, key=lambda f: SEVERITIES.index(f.severity))


def some(things: Iterable[object], most: int = 3) -> str:
    """First few of many, for a sentence."""
    items = [str(thing) for thing in things]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
