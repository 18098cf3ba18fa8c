"""`stqp experiment`."""

from pathlib import Path

import click
from stqp_cli.common import PATH, json_option, report, set_up_logging, step_bar, verbose_option

from stqp.errors import InputError, UsageError

EPILOG = """\b
Examples:
  stqp experiment study.toml --out study
  stqp experiment study.toml --out study --scheduler local --workers 4
  stqp experiment study.toml --out study --only-score

A study is a TOML file: data sets, variants of labels, networks, seeds and tests; examples/experiments has some, and
docs/experiments.md says what may stand there. Every variant is trained with every network and seed, and scored on
every test. What is done is not done again; after Ctrl-C the same command goes on. The folder gets table.md, table.csv,
table.html, the runs, and for each test a QuPath project with what each network found.
"""


@click.command(epilog=EPILOG)
@click.argument("study", type=PATH)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder of the study, made or gone on with.")
@click.option("--device", type=click.Choice(["auto", "cuda", "mps", "cpu"]), default="auto", show_default=True,
              help="auto picks CUDA, then MPS, then CPU.")  # fmt: skip
@click.option("--only-score", is_flag=True, help="Train nothing; make the tables of what is done.")
@click.option("--scheduler", metavar="[local|slurm|ADDRESS]",
              help="Train cells at the same time: here, on SLURM, or on a running Dask scheduler.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Of --scheduler local and slurm.")
@json_option
@verbose_option
def command(
    study: Path,
    out: Path,
    device: str,
    only_score: bool,
    scheduler: str | None,
    workers: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run a whole STUDY: train, predict and score every cell of its table."""
    set_up_logging(verbose)
    if scheduler is None and workers:
        raise UsageError("--workers needs --scheduler")
    from stqp.experiments.study import run_study
    from stqp.experiments.tables import MARKDOWN
    from stqp.inference.scheduling import Scheduler

    where = None if scheduler is None else Scheduler(scheduler, workers)
    with step_bar("Cells") as progress:
        record, _ = run_study(study, out, device=device, scheduler=where, only_score=only_score, progress=progress)
    report(record, as_json, (out / MARKDOWN).read_text(encoding="utf-8"), f"tables: {out}")
    if failed := record.results["failed"]:
        raise InputError(f"{len(failed)} cells failed: " + "; ".join(failed))
