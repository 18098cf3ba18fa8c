"""`stqp train`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, json_option, progress_bar, report, set_up_logging, verbose_option
from stqp_cli.options import SectionedCommand, click_option

from stqp.errors import StqpError
from stqp.record import RunRecord
from stqp.training.settings import OPTIONS

EPILOG = """\b
Examples:
  stqp train slide --out runs/first
  stqp train projects/* --out runs/lite --arch lite --max-time 60
  stqp train slide --init pannuke --recipe official --print-config > train.toml
  stqp train --config train.toml --out runs/second
  stqp train --resume --out runs/second

The run folder gets model.pth (a plain state_dict that TIAToolbox's HoVerNet loads), manifest.json,
ioconfig.yaml, train.toml, metrics.csv, record.json and report.html. Ctrl-C keeps what was learnt: go on
with --resume.
"""


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a flag for every option of training but the projects, which are its arguments."""
    for one in reversed([o for o in OPTIONS if o.name != "projects"]):
        command = click_option(one)(command)
    return command


@click.command(epilog=EPILOG, cls=SectionedCommand)
@click.argument("projects", nargs=-1, type=PATH)
@click.option("--out", type=PATH, help="Folder of the run, made here.")
@click.option("--config", type=PATH, metavar="TOML", help="Settings from a file; flags count more.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with its own settings.")
@click.option("--print-config", is_flag=True, help="Print all settings as train.toml, and do nothing.")
@training_options
@click.option("--report/--no-report", "with_report", default=True, show_default=True,
              help="Write report.html at the end: curves, scores, patches beside their truth.")  # fmt: skip
@json_option
@verbose_option
def command(
    as_json: bool, verbose: bool, projects: tuple[Path, ...], out: Path | None, config: Path | None, resume: bool,
    print_config: bool, with_report: bool, **flags: Any,
) -> None:  # fmt: skip
    """Train a HoVer-Net from the typed nuclei of QuPath PROJECTS.

    Nuclei are read from the projects as they stand, so a correction made in QuPath counts. Patches are
    cut at 0.25 µm per pixel, split by spatial blocks, and kept in the run's folder. Unknown nuclei train
    segmentation, not typing. A file of patches (.h5) may stand in place of the projects.
    """
    set_up_logging(verbose)
    from stqp.training.config import read_config, write_config
    from stqp.training.run import CHECKPOINT, saved_settings, train
    from stqp.training.settings import Settings

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if projects:
        given["projects"] = tuple(map(str, projects))
    if out is None and not print_config:
        raise click.UsageError("Missing option '--out'.")
    if resume and config is not None:
        raise click.UsageError("--resume takes the settings of the run; leave --config out.")
    base = Settings()
    if resume and out is not None:
        base = saved_settings(out)
    elif config is not None:
        base = base.changed(read_config(config))
    settings = base.changed(given)
    if print_config:
        click.echo(write_config(settings.resolved()), nl=False)
        return
    assert out is not None
    bar = _Bar()
    try:
        with progress_bar("Cutting patches", "block") as cut_progress:
            record = train(settings, out, resume=resume, progress=bar.update, cut_progress=cut_progress)
    except KeyboardInterrupt:
        if (out / CHECKPOINT).is_file():
            click.echo(f"\nStopped; what was learnt is kept. Go on with: stqp train --resume --out {out}", err=True)
        raise
    finally:
        bar.close()
    if record is None:
        return
    written = _write_report(out, settings.run.device, record) if with_report else ""
    report(record, as_json, f"run: {out}", written, f"Next: stqp predict {out} SLIDE_OR_PROJECT")


def _write_report(out: Path, device: str, record: RunRecord) -> str:
    """Write the run's report; the run is done, so what hinders it is no more than a warning."""
    from stqp.report.training import report_run

    try:
        with progress_bar("Report", "patch") as progress:
            done = report_run(out, device=device, progress=progress)
    except StqpError as error:
        record.warn(f"there is no report: {error}; write it by stqp model report {out}")
        return ""
    record.warnings += done.warnings
    record.results["report"] = done.results["report"]
    return f"report: {done.results['report']}"


class _Bar:
    """Progress of the phase: loss and its parts, scores, crops a second, time left."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._phase = -1.0
        self._began = (0.0, 0.0)

    def update(self, fraction: float, numbers: dict[str, float]) -> None:
        """Draw where the run stands; the clock starts with the first step."""
        from tqdm import tqdm

        if self._bar is None or numbers["phase"] != self._phase:
            self.close()
            self._phase = numbers["phase"]
            self._began = (numbers["crops"], numbers["seconds"])
            layout = "{desc} {percentage:3.0f}%|{bar:16}| {elapsed}, {remaining} left{postfix}"
            style: dict[str, Any] = {"file": sys.stderr, "disable": None, "leave": False, "bar_format": layout}
            self._bar = tqdm(total=1.0, initial=fraction, desc="Training", dynamic_ncols=True, **style)
        parts = {name: sum(v for k, v in numbers.items() if k.startswith(f"{name}_")) for name in ("np", "hv", "tp")}
        loss = f"loss {numbers['loss']:.2f} (" + " ".join(f"{k} {v:.2f}" for k, v in parts.items()) + ")"
        shown = [f"step {numbers['step']:.0f}", loss]
        shown += [f"{label} {numbers[k]:.3f}" for k, label in (("pq", "PQ"), ("f_d", "F_d")) if k in numbers]
        crops, seconds = (numbers[k] - b for k, b in zip(("crops", "seconds"), self._began, strict=True))
        if seconds > 0:
            shown.append(f"{crops / seconds:.1f} patches/s")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update(fraction - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
