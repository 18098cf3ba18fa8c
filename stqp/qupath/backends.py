"""The ways to read and write a project: stqp's own, and QuPath itself by paquo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stqp.errors import UsageError

if TYPE_CHECKING:
    from stqp.qupath.project import QuPathProject
    from stqp.qupath.versions import QuPathVersion

BACKENDS = ("native", "paquo")
DEFAULT_BACKEND = "native"


def check_backend(backend: str) -> None:
    """Refuse a backend that cannot be used here, before work that is to end with it.

    Raises
    ------
    EnvironmentProblem
        When the backend is paquo and there is no QuPath.
    UsageError
        When there is no such backend.
    """
    if backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r} for projects; it is one of {', '.join(BACKENDS)}")
    if backend == "paquo":
        from stqp.qupath.paquo.jvm import find

        find()


def open_project(
    path: str | Path, mode: str = "r", backend: str = DEFAULT_BACKEND, version: str | QuPathVersion | None = None
) -> QuPathProject:
    """Open a project by one of the backends; `stqp.qupath.interface.Project` says what it offers.

    Parameters
    ----------
    path, mode, version
        As `QuPathProject.open` has them.
    backend : {"native", "paquo"}
        Native needs neither Java nor QuPath. Of paquo, everything is read and written by the QuPath that it finds
        (``PAQUO_QUPATH_DIR``), whose JVM starts in this process and stays.

    Raises
    ------
    EnvironmentProblem
        When the backend is paquo and there is no QuPath.
    UsageError
        When there is no such backend, or mode, or version.
    InputError
        When there is no project to read, one where none should be, or something that is no project.
    """
    check_backend(backend)
    if backend == "native":
        from stqp.qupath.project import QuPathProject

        return QuPathProject.open(path, mode, version)
    from stqp.qupath.paquo.backend import PaquoProject

    return PaquoProject.open(path, mode, version)
