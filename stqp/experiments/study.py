"""A study from its file to its table."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

from stqp import files
from stqp.errors import InputError, StqpError
from stqp.experiments.cells import Cell, cells_of, run_cell
from stqp.experiments.data import prepare
from stqp.experiments.manifest import Study, read_study
from stqp.experiments.scoring import Scores, score
from stqp.inference.scheduling import Scheduler
from stqp.record import RunRecord

logger = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]
_BUG = "a worker failed:"
_TOPIC = "stqp-cells"  # of what workers say of their cells


def run_study(
    path: Path,
    out: Path,
    *,
    device: str = "auto",
    scheduler: Scheduler | None = None,
    only_score: bool = False,
    progress: Progress | None = None,
) -> tuple[RunRecord, Scores]:
    """Train, predict and score every cell of a study; what is done already is left as it is.

    Parameters
    ----------
    path
        File of the study, see `stqp.experiments.manifest`.
    out
        Folder that gets ``table.md``, ``table.csv``, ``table.html`` and ``study.json``, the runs, and for each test
        a QuPath project with the detections of all networks.
    device
        As `stqp.devices.pick_device`.
    scheduler
        Where cells are trained at the same time; one after the other when None.
    only_score
        Train nothing.
    progress
        Called with the cells done, their number, and what is done now.

    Returns
    -------
    record, scores
        A cell that fails does not stop the others; ``record.results["failed"]`` tells why.

    Raises
    ------
    InputError
        When the file makes no sense, or no cell is done.
    """
    study = read_study(path)
    cells = cells_of(study)
    record = RunRecord("experiment", {"study": path, "out": out, "device": device, "only_score": only_score})
    record.add_input(path)
    failed: list[str] = []
    if not only_score:
        with files.disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        inputs = prepare(study, out, record)
        _run(study, cells, inputs, out, device, scheduler, failed, progress)
    scores = score(study, cells, out)
    if not scores.rows:
        raise InputError("; ".join(failed) or f"no cell of the study is done in {out}; run it without --only-score")
    from stqp.experiments.tables import write_tables

    write_tables(out, study, scores)
    record.count("cells done", len(cells) - len(scores.missing))
    record.skip("cells that are not done", len(scores.missing))
    record.results["failed"] = failed
    record.results["scores"] = [vars(row) for row in scores.rows]
    record.results["differences"] = [vars(d) for d in scores.differences]
    record.write(out / "study.json")
    return record, scores


def _run(
    study: Study, cells: list[Cell], inputs: dict[str, Path], out: Path, device: str,
    scheduler: Scheduler | None, failed: list[str], progress: Progress | None,
) -> None:  # fmt: skip
    if scheduler is not None and len(cells) > 1:
        _run_on(study, cells, inputs, out, device, scheduler, failed, progress)
        return
    for number, cell in enumerate(cells):

        def say(step: str, fraction: float, number: int = number, cell: Cell = cell) -> None:
            if progress is not None:
                progress(number, len(cells), f"{cell.name}: {step}{f' {fraction:.0%}' if fraction else ''}")

        try:
            run_cell(study, cell, inputs, out, device, say)
        except InputError as error:
            failed.append(f"{cell.name}: {error}")
            logger.error("%s", failed[-1])


def _run_on(
    study: Study, cells: list[Cell], inputs: dict[str, Path], out: Path, device: str,
    scheduler: Scheduler, failed: list[str], progress: Progress | None,
) -> None:  # fmt: skip
    from distributed import as_completed

    from stqp.inference.scheduling import connected

    bugs: list[str] = []
    running: dict[str, str] = {}
    ended: set[str] = set()

    def hear(event: tuple[float, dict[str, str]]) -> None:
        """Show what the workers are at; called by the client's own thread."""
        running[event[1]["cell"]] = event[1]["step"]
        if progress is not None:
            steps = [f"{name}: {step}" for name, step in [*running.items()] if name not in ended]
            progress(len(ended), len(cells), ", ".join(steps))

    with connected(scheduler) as client:
        client.subscribe_topic(_TOPIC, hear)
        tasks = {client.submit(_task, study, cell, inputs, out, device, pure=False, retries=0): cell for cell in cells}
        for task in as_completed([*tasks]):
            cell = tasks[task]
            ended.add(cell.name)
            error = f"the worker is gone ({task.exception()})" if task.status == "error" else task.result()
            if error:
                failed.append(f"{cell.name}: {error}")
                logger.error("%s", failed[-1])
            if error and error.startswith(_BUG):
                bugs.append(failed[-1])
            if progress is not None:
                progress(len(ended), len(cells), cell.name)
    if bugs:  # the other cells are done by now
        raise RuntimeError("\n".join(bugs))


def _task(study: Study, cell: Cell, inputs: dict[str, Path], out: Path, device: str) -> str | None:
    """Run one cell on a worker; errors come back as text."""
    from distributed import get_worker

    last = ""

    def say(step: str, fraction: float) -> None:
        nonlocal last
        now = f"{step} {fraction:.0%}" if fraction else step
        if now != last:
            get_worker().log_event(_TOPIC, {"cell": cell.name, "step": now})
        last = now

    try:
        run_cell(study, cell, inputs, out, device, say)
    except StqpError as error:
        return str(error)
    except Exception:
        return f"{_BUG}\n{traceback.format_exc()}"
    return None
