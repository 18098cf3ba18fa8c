"""Many slides in one call: a table with a slide a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stqp.cohorts import read_rows
from stqp.errors import InputError, StqpError
from stqp.inference.targets import Job, Selection, placed, plan, project_folder

COLUMNS = ("slide", "project", "entry", "name", "mpp")
_SHOWN = 5  # wrong rows in a message


def read_manifest(
    path: str | Path, project: Path | None, out: Path | None, failed: list[str], others: Sequence[Job] = ()
) -> list[Job]:
    """Read which slides are to be predicted.

    Parameters
    ----------
    path
        csv with a header, a slide a row; or toml with a table ``[[slide]]`` for each and, at its top, values for
        all. ``slide`` is a file, or ``project`` and ``entry`` name an image of a project; ``name`` is what a new
        project's image is called, ``mpp`` its µm per px. Other columns become metadata of the image. Paths are
        relative to the manifest.
    project
        For slides whose row names none.
    out
        For files, and for slides without a project.
    failed
        Sentences on rows that cannot be planned are added.
    others
        Jobs of the same run.

    Raises
    ------
    InputError
        When it is missing or empty, or a row lacks something or holds something wrong; all such rows are named.
    """
    path = Path(path)
    jobs: list[Job] = []
    wrong: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(read_rows(path, "slide"), start=1):
        try:
            fields = {str(k or "").strip().lower(): str(v).strip() for k, v in row.items()}
            found = _jobs(fields, row, path, project, out)
        except StqpError as error:
            wrong.append(f"row {number}: {error}")
            continue
        for job in found:
            key = (str(job.slide), str(job.project))
            if key in seen:
                wrong.append(f"row {number}: {job.name} is that of row {seen[key]}")
            seen[key] = number
        jobs += found
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(f"the manifest {path} has wrong rows: {'; '.join(wrong[:_SHOWN])}{more}")
    there = {(str(job.slide), str(job.project)) for job in others}
    return placed([job for job in jobs if (str(job.slide), str(job.project)) not in there], out, others)


def _jobs(
    fields: Mapping[str, str], row: Mapping[str, Any], path: Path, project: Path | None, out: Path | None
) -> list[Job]:
    folder = path.parent
    if None in row:
        raise InputError("it has more values than the header has columns")
    mpp = None
    if "mpp" in fields:
        try:
            mpp = float(fields["mpp"])
        except ValueError:
            mpp = math.nan
        if not (0 < mpp < math.inf):
            raise InputError(f"expected µm per px above 0 as mpp, found {fields['mpp']!r}")
    own = project_folder(folder / fields["project"]) if "project" in fields else project
    if "entry" in fields:
        if own is None:
            raise InputError("it names an entry, but no project")
        failed: list[str] = []
        jobs = plan([own], None, Selection((fields["entry"],)), failed)
        if failed:
            raise InputError(failed[0])
        return [_with(job, mpp) for job in jobs]
    if "slide" not in fields:
        raise InputError(f"it lacks slide; there are {', '.join(fields) or 'no columns'}")
    if own is None and out is None:
        raise InputError("it names no project; add a column project, or give --project or --out")
    slide = folder / fields["slide"]
    metadata = {str(k).strip(): str(v).strip() for k, v in row.items() if str(k).strip().lower() not in COLUMNS}
    return [Job(fields.get("name", slide.name), slide, own, mpp=mpp, metadata=metadata)]


def _with(job: Job, mpp: float | None) -> Job:
    return job if mpp is None else replace(job, mpp=mpp)
