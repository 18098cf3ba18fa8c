"""`stqp predict` as a function: slides, folders, projects or a cohort in, detections in projects and files out."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stqp.errors import InputError, StqpError, UsageError
from stqp.inference.held_out import held_out_boxes
from stqp.inference.one import ENGINES, Settings, open_when_free
from stqp.inference.scheduling import Bar, Model, Outcome, Scheduler, as_predictors, mark_of, run_here, run_on
from stqp.inference.targets import UNFINISHED, Job, Selection, plan, project_folder
from stqp.qupath.backends import DEFAULT_BACKEND, check_backend
from stqp.qupath.folders import STQP_FOLDER
from stqp.qupath.project import PROJECT_NAME
from stqp.record import RunRecord

logger = logging.getLogger(__name__)


def predict_targets(
    model: Model,
    targets: Sequence[str | Path] = (),
    settings: Settings | None = None,
    *,
    manifest: Path | None = None,
    project: str | Path | None = None,
    selection: Selection | None = None,
    recursive: bool = False,
    held_out: Path | None = None,
    resume: bool = False,
    scheduler: Scheduler | None = None,
    bar: Bar | None = None,
    record: RunRecord | None = None,
) -> tuple[RunRecord, list[str]]:
    """Predict slides; one that fails does not stop the others.

    Parameters
    ----------
    model
        The network, or a function without arguments that makes it, as workers of a scheduler need it.
    targets
        Slides, folders of slides, globs, and projects.
    settings
        How, and what is written.
    manifest
        A table of further slides, see `stqp.inference.cohort.read_manifest`.
    project
        Project for the slides; made when it does not exist. Targets that are projects get their own.
    selection
        Images of the projects to predict; all when None.
    recursive
        Look into folders of folders too.
    held_out
        A training run: look only where it held out, with a margin around.
    resume
        Leave out slides that the same model has done with the same settings.
    scheduler
        Where slides are predicted at the same time; one after the other when None.
    bar
        Makes a progress callback for a named slide.
    record
        Added to when given.

    Returns
    -------
    record : RunRecord
        ``results["images"]`` tells of each image.
    failed : list of str
        What went wrong, one sentence for each failed target.

    Raises
    ------
    InputError
        When there is nothing to predict.
    UsageError
        When an option makes no sense.
    EnvironmentProblem
        When the machine lacks something; the slides done before stay written.
    """
    settings, selection = settings or Settings(), selection or Selection()
    _check(settings)
    record = record or RunRecord("predict", {"targets": [*targets]})
    project = None if project is None else project_folder(project)
    mark = mark_of(model)
    if scheduler is None:  # a model that is none is said before anything is made
        model = as_predictors(model)
    failed: list[str] = []
    jobs: list[Job] = []
    if targets:
        jobs = plan(targets, project, selection, failed, settings.out, recursive)
    if manifest is not None:
        from stqp.inference.cohort import read_manifest

        jobs += read_manifest(manifest, project, settings.out, failed, jobs)
    if not jobs and not failed:
        raise UsageError("there is nothing to predict; name slides, folders or projects, or a --manifest")
    if held_out is not None:
        jobs = _held_out(jobs, held_out, record)
    if resume:
        left = [job for job in jobs if not job.status.is_done(settings.fingerprint(mark, job))]
        record.skip("slides that were done before", len(jobs) - len(left))
        jobs = left
    made = _make_projects(jobs, settings.backend)
    results: list[dict[str, Any]] = []
    try:
        for job in jobs:
            job.status.waiting()
        for outcome in _outcomes(jobs, model, settings, mark, scheduler, bar):
            if outcome.result is None:
                failed.append(f"{outcome.job.name}: {outcome.error}")
                logger.error("%s", failed[-1])
            else:
                results.append(outcome.result)
                logger.info("%s: %d nuclei", outcome.job.name, outcome.result["nuclei"])
    finally:
        for folder in made:
            _drop_empty(folder)
    places = {(str(job.slide), job.name): number for number, job in enumerate(jobs)}
    results.sort(key=lambda one: places[one["slide"], one["image"]])
    _tell(record, results, failed)
    return record, failed


def _check(settings: Settings) -> None:
    check_backend(settings.backend)
    if settings.engine not in ENGINES:
        raise UsageError(f"there is no engine {settings.engine!r}; it is one of {', '.join(ENGINES)}")
    if settings.out is not None and not settings.writes_files:
        raise UsageError(
            "--out is where files go, but none is asked for; add --table, --geojson, --annotation-store or --overlay"
        )


def _outcomes(
    jobs: Sequence[Job], model: Model, settings: Settings, mark: str, scheduler: Scheduler | None, bar: Bar | None
) -> list[Outcome] | Any:
    if not jobs:
        return []
    if scheduler is None:
        return run_here(jobs, as_predictors(model), settings, mark, bar)
    return _with_one_bar(scheduler, jobs, model, settings, mark, bar)


def _with_one_bar(
    scheduler: Scheduler, jobs: Sequence[Job], model: Model, settings: Settings, mark: str, bar: Bar | None
) -> Any:
    if bar is None:
        yield from run_on(scheduler, jobs, model, settings, mark, None)
        return
    with bar("slides") as shown:
        yield from run_on(scheduler, jobs, model, settings, mark, shown)


def _make_projects(jobs: Sequence[Job], backend: str) -> list[Path]:
    """Make the projects that are not there, before anything else writes into their folders."""
    made = []
    for folder in dict.fromkeys(job.project for job in jobs if job.entry is None and job.project is not None):
        if not (folder / PROJECT_NAME).is_file():
            open_when_free(folder, "a", backend).close()
            made.append(folder)
    return made


def _drop_empty(folder: Path) -> None:
    """Take away a project that was made for nothing, as every slide failed, and left nothing to go on with."""
    file = folder / PROJECT_NAME
    if any((folder / STQP_FOLDER).rglob(f"*{UNFINISHED}")):
        return
    with contextlib.suppress(StqpError, OSError):
        with open_when_free(folder, "r+", DEFAULT_BACKEND) as project:
            if project.entries:
                return
            for path in (file, file.with_name(f"{file.name}.backup")):
                path.unlink(missing_ok=True)
            for name in ("data", "classifiers", STQP_FOLDER):
                shutil.rmtree(folder / name, ignore_errors=True)
            project.abort()
        folder.rmdir()


def _held_out(jobs: Sequence[Job], run: Path, record: RunRecord) -> list[Job]:
    boxes = held_out_boxes(run)
    kept = [replace(job, boxes=boxes[job.name]) for job in jobs if job.name in boxes]
    record.skip("images that the run did not hold out", len(jobs) - len(kept))
    if not kept and jobs:
        raise InputError(f"none of the images was held out by {run}; it held out {', '.join(sorted(boxes))}")
    return kept


def _tell(record: RunRecord, results: Sequence[Mapping[str, Any]], failed: Sequence[str]) -> None:
    """Add up what was done."""
    record.count("images predicted", len(results))
    record.count("nuclei", sum(one["nuclei"] for one in results))
    classes: dict[str, int] = {}
    for one in results:
        for name, number in one["classes"].items():
            classes[name] = classes.get(name, 0) + number
        record.skip("windows without tissue", one["counts"].get("windows without tissue", 0))
        for sentence in one["warnings"]:
            if sentence not in record.warnings:
                record.warn(sentence)
    for name, number in classes.items():
        record.count(f"nuclei {name}", number)
    record.skip("targets that failed", len(failed))
    record.results["images"] = [*results]
    record.results["failed"] = [*failed]
