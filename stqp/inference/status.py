"""How far each slide of a run is, in small files that another process can read at any time."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stqp import files
from stqp.errors import InputError, StqpError
from stqp.locking import is_running

logger = logging.getLogger(__name__)
STATUS_FOLDER = ".status"
STATES = ("running", "waiting", "stopped", "failed", "done")
_EVERY = 1.0  # s between two writings of the same state


class Status:
    """The status file of one slide.

    Parameters
    ----------
    path
        The file.
    name
        Of the slide.
    slide
        Its file.
    """

    def __init__(self, path: Path, name: str, slide: Path | None):
        self.path = path
        self._about = {"image": name, "slide": None if slide is None else str(slide.absolute())}
        self._began = time.time()
        self._written = 0.0

    def read(self) -> dict[str, Any]:
        """What the file says, ``{}`` when there is none or it is broken."""
        return _read(self.path)

    def is_free(self) -> bool:
        """Whether the file is not there, or of the same slide."""
        said = self.read().get("slide")
        return said is None or said == self._about["slide"]

    def waiting(self) -> None:
        """Note that its turn has not come."""
        self._write("waiting")

    def running(self, done: int, total: int) -> None:
        """Note how much is done; at most once a second."""
        if not self._written:
            self._began = time.time()
        if time.time() - self._written >= _EVERY:
            self._write("running", done=done, total=total)

    def done(self, result: Mapping[str, Any], of: str) -> None:
        """Note the end and what was found; `of` says by which model and settings."""
        self._write("done", nuclei=result["nuclei"], classes=result["classes"], of=of)

    def stopped(self) -> None:
        """Note that it was interrupted."""
        self._write("stopped")

    def failed(self, sentence: str) -> None:
        """Note what went wrong."""
        self._write("failed", error=sentence)

    def is_done(self, of: str) -> bool:
        """Whether the same model and settings have done the slide, and the slide is what it was."""
        said = self.read()
        return said.get("state") == "done" and said.get("of") == of and said.get("stamp") == self._stamp()

    def _stamp(self) -> list[float] | None:
        try:
            stat = Path(str(self._about["slide"])).stat()
        except OSError:
            return None
        return [stat.st_size, stat.st_mtime]

    def _write(self, state: str, **more: Any) -> None:
        now = time.time()
        self._written = now
        content = {
            "state": state, **self._about, "stamp": self._stamp(), "began": self._began, "updated": now,
            "seconds": round(now - self._began, 1), "host": platform.node(), "pid": os.getpid(), **more,
        }  # fmt: skip
        try:
            files.write_json(self.path, content)
        except (OSError, StqpError) as error:  # no reason to lose a slide
            logger.debug("%s was not written: %s", self.path, error)


def read_status(folder: Path) -> list[dict[str, Any]]:
    """Read how far the slides of a run are.

    Parameters
    ----------
    folder
        The run's ``--out``, or a QuPath project.

    Returns
    -------
    list of dict
        One for each slide: ``state`` (one of `STATES`; a slide is stopped when its process is gone), ``image``,
        ``slide``, ``seconds`` since it began; ``done``, ``total`` and ``left``, the seconds it will still take, of
        a running one; ``nuclei`` and ``classes`` of one that is done; ``error`` of one that failed.

    Raises
    ------
    InputError
        When nothing was predicted into the folder.
    """
    folder = folder.parent if folder.suffix == ".qpproj" else folder
    found = [p for base in (folder, folder / "stqp") for p in sorted((base / STATUS_FOLDER).glob("*.json"))]
    slides = [_judged(content) for path in found if (content := _read(path))]
    if not slides:
        raise InputError(
            f"expected the --out folder or the project of stqp predict, found no status of any slide in {folder}"
        )
    return sorted(slides, key=lambda s: (STATES.index(s["state"]), s["image"]))


def _judged(content: dict[str, Any]) -> dict[str, Any]:
    state = content.get("state")
    if state in ("running", "waiting") and content.get("host") == platform.node() and not is_running(content["pid"]):
        content["state"] = "stopped"
    if content["state"] == "running":
        content["seconds"] = round(time.time() - content["began"], 1)
        if content.get("done"):
            passed = content["updated"] - content["began"]
            content["left"] = round(passed / content["done"] * (content["total"] - content["done"]), 1)
    return content


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("state") in STATES else {}
