"""The record of a run: what was asked, with what, on what, what came out, what was skipped and why."""

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stqp import __version__, files

_PACKAGES = (
    "numpy",
    "torch",
    "tiatoolbox",
    "shapely",
    "scanpy",
    "anndata",
    "tifffile",
    "openslide-python",
    "lightning",
)


class RunRecord:
    """Collects what a run did, for people (`summary`) and for programs (`to_dict`).

    Parameters
    ----------
    command
        Name of the command or function.
    arguments
        What it was called with; paths become text.
    """

    def __init__(self, command: str, arguments: Mapping[str, Any]):
        self.command = command
        self.arguments = {k: _plain(v) for k, v in arguments.items()}
        self.started = time.time()
        self.inputs: list[dict[str, Any]] = []
        self.counts: dict[str, int | float | str] = {}
        self.skipped: dict[str, int] = {}
        self.warnings: list[str] = []
        self.results: dict[str, Any] = {}

    def add_input(self, path: Path) -> None:
        """Note an input file with its size and time, which tell whether it changed since."""
        stat = path.stat()
        self.inputs.append({"path": str(path), "bytes": stat.st_size, "modified": stat.st_mtime})

    def count(self, name: str, value: int | float | str) -> None:
        """Note a number under a name that a person can read."""
        self.counts[name] = _plain(value)

    def skip(self, reason: str, number: int) -> None:
        """Add to what was skipped, by reason; nothing disappears silently."""
        if number:
            self.skipped[reason] = self.skipped.get(reason, 0) + int(number)

    def warn(self, message: str) -> None:
        """Note something the user should look at."""
        self.warnings.append(message)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        versions = {"stqp": __version__, "python": platform.python_version()}
        for name in _PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return {
            "command": self.command,
            "arguments": self.arguments,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 3),
            "versions": versions,
            "platform": platform.platform(),
            "inputs": self.inputs,
            "counts": self.counts,
            "skipped": self.skipped,
            "warnings": self.warnings,
            "results": _plain(self.results),
        }

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        files.write_json(path, self.to_dict())

    def summary(self) -> str:
        """Counts, what was skipped and warnings, one a line."""
        lines = [
            f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}"
            for name, value in self.counts.items()
        ]
        lines += [f"skipped: {number:,} {reason}" for reason, number in self.skipped.items()]
        lines += [f"warning: {message}" for message in self.warnings]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    return value
