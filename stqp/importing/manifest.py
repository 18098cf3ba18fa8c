"""Several runs in one call: a table of what would be the arguments of one import each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from stqp.cohorts import read_rows
from stqp.errors import InputError, StqpError
from stqp.importing.typing import Progress
from stqp.importing.xenium import import_xenium
from stqp.record import RunRecord

_FILES = ("outs", "he", "labels", "class_map", "markers", "taxonomy", "reference", "tumour_genes")
_MAYBE_FILES = ("alignment", "region")
_NOT_HERE = ("project", "progress", "backend")
_NEEDED = ("outs", "he", "alignment")
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")
SHORT = {"as": "as_kind"}


def read_manifest(path: str | Path) -> list[dict[str, Any]]:
    """Read a manifest.

    Parameters
    ----------
    path
        csv with a header, a run a row; or toml with a table ``[[run]]`` for each run and, at its top, values for
        all. Columns and keys are the arguments of `import_xenium` (``as`` for what the nuclei become). Paths are
        relative to the manifest.

    Raises
    ------
    InputError
        When it is missing, empty, or holds an argument that there is not.
    """
    path = Path(path)
    rows = read_rows(path, "run")
    return [_arguments(row, path, number) for number, row in enumerate(rows, start=1)]


def import_manifest(
    path: str | Path,
    project: str | Path,
    defaults: dict[str, Any],
    done: Callable[[int, int, RunRecord | StqpError], None] | None = None,
    progress: Progress | None = None,
) -> tuple[list[RunRecord], list[tuple[str, StqpError]]]:
    """Import every run of a manifest into one project; one that fails does not stop the others.

    Parameters
    ----------
    path
        See `read_manifest`.
    project
        The project.
    defaults
        Arguments of `import_xenium` for runs that do not say otherwise.
    done
        Called after each run with its number, how many there are, and its record or error.
    progress
        Called with steps done and in total, over all runs, and what is being done.

    Returns
    -------
    records : list of RunRecord
    failed : list of (str, StqpError)
        The run's folder and what went wrong.
    """
    rows = read_manifest(path)
    records: list[RunRecord] = []
    failed: list[tuple[str, StqpError]] = []
    for number, row in enumerate(rows):

        def step(now: int, of: int, doing: str, before: int = number) -> None:
            if progress is not None:
                progress(before * of + now, len(rows) * of, f"{before + 1} of {len(rows)}: {doing}")

        outcome: RunRecord | StqpError
        try:
            outcome = import_xenium(project=project, progress=step, **{**defaults, **row})
            records.append(outcome)
        except StqpError as error:
            outcome = error
            failed.append((str(row["outs"]), error))
        if done is not None:
            done(number + 1, len(rows), outcome)
    return records, failed


def _arguments(row: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    hints = get_type_hints(import_xenium)
    allowed = [name for name in inspect.signature(import_xenium).parameters if name not in _NOT_HERE]
    result: dict[str, Any] = {}
    for given, value in row.items():
        name = str(given or "").strip().replace("-", "_").lower()
        name = SHORT.get(name, name)
        if name not in allowed:
            raise InputError(
                f"run {number} of {path} has {given!r}, which is no argument; there are {', '.join(allowed)}"
            )
        result[name] = _value(name, value, hints[name], path, number)
    lacking = [name for name in _NEEDED if name not in result]
    if lacking:
        raise InputError(f"run {number} of {path} lacks {' and '.join(lacking)}")
    return result


def _value(name: str, value: Any, hint: Any, path: Path, number: int) -> Any:
    kinds = get_args(hint) or (hint,)
    if name in _FILES or (name in _MAYBE_FILES and (path.parent / str(value)).exists()):
        return path.parent / str(value)
    text = str(value).strip()
    if bool in kinds:
        if text.lower() not in _TRUE + _FALSE:
            raise InputError(f"run {number} of {path} has {text!r} for {name}; expected true or false")
        return text.lower() in _TRUE
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError as error:
                raise InputError(f"run {number} of {path} has {text!r} for {name}; expected a number") from error
    return text
