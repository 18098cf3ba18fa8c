"""Several files that take their places together, or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from types import TracebackType

from stqp import files

_LEFT_OVER = re.compile(r"\.(.+)\.\d+\.(part|old)")


class StagedFiles:
    """Writes files beside their places; `place` swaps them in, and an error afterwards swaps them back.

    Parameters
    ----------
    folder
        Written by one process at a time (the project's lock sees to it). Made when the first file is asked
        for, and taken away again after an error when it was not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._new: list[tuple[Path, Path]] = []
        self._old: list[tuple[Path, Path]] = []
        self._placed: list[Path] = []
        self._made: list[Path] = []

    @property
    def names(self) -> list[str]:
        """Of the files that were asked for, in the order of the alphabet."""
        return sorted(final.name for _, final in self._new)

    def path(self, name: str) -> Path:
        """Where to write the file that will be `name`."""
        with files.disk_errors(self.folder):
            for folder in (*reversed(self.folder.parents), self.folder):
                if not folder.exists():
                    folder.mkdir()
                    self._made.append(folder)
        temporary = self.folder / f".{name}.{os.getpid()}.part"
        self._new.append((temporary, self.folder / name))
        return temporary

    def place(self) -> None:
        """Put all files in their places; the old ones are kept until the end of the context."""
        with files.disk_errors(self.folder):
            for temporary, _ in self._new:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            for temporary, final in self._new:
                if final.exists():
                    old = final.with_name(f".{final.name}.{os.getpid()}.old")
                    self._old.append((old, final))
                    final.replace(old)
                self._placed.append(final)
                temporary.replace(final)

    def __enter__(self) -> StagedFiles:
        """Open as a context; what a run that was killed left behind is cleared away first."""
        for left in self.folder.glob(".*") if self.folder.is_dir() else ():
            match = _LEFT_OVER.fullmatch(left.name)
            if match is None:
                continue
            final = self.folder / match[1]
            if match[2] == "old" and not final.exists():
                left.replace(final)
            else:
                left.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget the old files, or after an error the new ones."""
        if kind is not None:
            for final in self._placed:
                final.unlink(missing_ok=True)
            for old, final in self._old:
                if old.exists():
                    old.replace(final)
        for temporary, _ in self._new:
            temporary.unlink(missing_ok=True)
        for old, _ in self._old:
            old.unlink(missing_ok=True)
        if kind is not None:
            for folder in reversed(self._made):
                with contextlib.suppress(OSError):  # not empty: somebody else's
                    folder.rmdir()
