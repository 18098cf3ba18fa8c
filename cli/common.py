"""What the commands share: how they log, report and draw progress."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from stqp.errors import UsageError
from stqp.files import without_nan
from stqp.qupath.backends import BACKENDS, DEFAULT_BACKEND
from stqp.record import RunRecord

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the run's record as JSON on stdout (messages go to stderr).",
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Say more about what is done.")
backend_option = click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default=DEFAULT_BACKEND,
    show_default=True,
    help="What writes the project: stqp itself, which needs no Java, or an installed QuPath by paquo.",
)

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)


class _BesideBars(logging.Handler):
    """Writes to stderr, above a progress bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)
        else:
            click.echo(self.format(record), err=True)


def set_up_logging(verbose: bool = False) -> None:
    """Send stqp's messages to stderr, and keep other packages' chatter from stdout."""
    handler = _BesideBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]  # tiatoolbox adds one that writes to stdout where there is none
    root.setLevel(logging.WARNING)
    logging.getLogger("stqp").setLevel(logging.DEBUG if verbose else logging.INFO)


def names_of(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    """Names from a list with commas."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def report(record: RunRecord, as_json: bool, *lines: str) -> None:
    """Print the record for a program, or its summary and some closing lines for a person."""
    if as_json:
        click.echo(json.dumps(without_nan(record.to_dict()), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(line for line in (record.summary(), *lines) if line))


@contextmanager
def progress_bar(label: str, unit: str = "it") -> Iterator[Callable[[int, int], None]]:
    """Give a callback `(done, total)` that draws a bar with the time left on stderr."""
    from tqdm import tqdm

    bar: Any = tqdm(desc=label, unit=unit, file=sys.stderr, disable=None, leave=False)
    try:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        yield update
    finally:
        bar.close()


@contextmanager
def step_bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Give a callback `(done, total, name)` that draws a bar with the name of the step on stderr."""
    from tqdm import tqdm

    bar: Any = tqdm(desc=label, unit="step", file=sys.stderr, disable=None, leave=False)
    try:

        def update(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_description(f"{label}: {name}", refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        yield update
    finally:
        bar.close()


def type_names(texts: tuple[str, ...]) -> dict[int, str]:
    """Names of types by number, of texts such as ``1=Inflammatory``.

    Raises
    ------
    UsageError
        When a text says something else.
    """
    names = {}
    for text in texts:
        number, sign, name = text.partition("=")
        if not sign or not number.strip().isdecimal() or not name.strip():
            raise UsageError(f"expected NUMBER=CLASS, such as 1=Inflammatory, found {text!r}")
        names[int(number)] = name.strip()
    return names
