"""Files of a project that take their places one after another, and go back when one of them cannot."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stqp import files
from stqp.errors import InputError

logger = logging.getLogger(__name__)


@dataclass
class _Step:
    staged: Path
    path: Path
    keep: bool = False
    backup: Path | None = None
    old: Path | None = None
    moved: bool = False
    made: list[Path] = field(default_factory=list)


class Saving:
    """Collects new files, complete and beside their places, and then puts them there in order.

    What needs space on the disk is done before the first file is replaced. Each file is replaced at one moment;
    a process that is killed in between leaves some files new and some old, in the order of the calls. Any error
    puts all old files back.
    """

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def write(self, path: Path, content: bytes) -> None:
        """Have a file hold `content`."""
        step = _Step(path.with_name(f".{path.name}.new.part"), path)
        self._steps.append(step)
        with files.disk_errors(path):
            for folder in reversed([f for f in path.parents if not f.exists()]):
                folder.mkdir()
                step.made.append(folder)
            step.staged.write_bytes(content)
            files.sync_file(step.staged)
            if path.exists():
                step.staged.chmod(path.stat().st_mode & 0o777)

    def place(self, staged: Path, path: Path, backup: Path | None) -> None:
        """Have a file that is written already take a place.

        Parameters
        ----------
        staged
            Complete, and there again after an error.
        path
            Its place.
        backup
            Where the old file is kept until the end, under a name that QuPath looks for. None where the old file
            is broken.
        """
        self._steps.append(_Step(staged, path, keep=True, backup=backup))

    def commit(self) -> None:
        """Replace all files.

        Raises
        ------
        EnvironmentProblem
            When the disk refuses; all old files are back then.
        """
        try:
            for i, step in enumerate(self._steps):
                with files.disk_errors(step.path):
                    self._replace(step)
                    if i + 1 == len(self._steps) or self._steps[i + 1].path.parent != step.path.parent:
                        files.sync_folder(step.path.parent)
        except BaseException:
            self.undo()
            raise
        for step in self._steps:
            if step.old is not None:
                drop(step.old)
        self._steps = []

    def undo(self) -> None:
        """Put the old files back, and forget the new ones."""
        for step in reversed(self._steps):
            with _reported(step.path):
                if step.keep and step.moved:
                    with contextlib.suppress(OSError):
                        os.link(step.path, step.staged)
                if step.moved and step.old is not None:
                    files.move(step.old, step.path)
                elif step.moved:
                    step.path.unlink(missing_ok=True)
                if step.old is not None:
                    step.old.unlink(missing_ok=True)  # still there when it and the file are one
            if not step.keep:
                drop(step.staged)
            for folder in reversed(step.made):
                with contextlib.suppress(OSError):  # not empty: somebody else's
                    folder.rmdir()
        self._steps = []

    @staticmethod
    def _replace(step: _Step) -> None:
        if step.path.exists():
            step.old = step.backup or step.path.with_name(f".{step.path.name}.old.part")
            step.old.unlink(missing_ok=True)
            try:
                os.link(step.path, step.old)
            except OSError:  # not every file system has links
                try:
                    shutil.copy2(step.path, step.old)
                except BaseException:
                    drop(step.old)
                    raise
        # noted before: when it is cut short by Ctrl-C, going back does no harm
        step.moved = True
        try:
            files.move(step.staged, step.path)
        except OSError:
            step.moved = False
            raise


@contextlib.contextmanager
def _reported(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        logger.warning("%s could not be put back as it was (%s)", path, error)


def drop(path: Path) -> None:
    """Delete a file that nobody needs any more; where the system refuses, it stays."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s could not be deleted (%s)", path, error)


def read_json(path: Path) -> dict[str, Any]:
    """Read one of QuPath's JSON files.

    Raises
    ------
    InputError
        When it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as QuPath's JSON ({error}); is it whole?") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object, as QuPath writes it")
    return content


def json_bytes(content: Any, indent: int | None = 2) -> bytes:
    """Make the bytes of one of QuPath's JSON files; NaN stays, as QuPath writes and reads it."""
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(content, indent=indent, ensure_ascii=False, separators=separators).encode()
    except UnicodeEncodeError:  # half a character, which JSON can hold and UTF-8 cannot
        return json.dumps(content, indent=indent, separators=separators).encode()
