"""`stqp status`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, set_up_logging

EPILOG = """\b
Examples:
  stqp status results
  stqp status slide-project --watch 5
  stqp status results --json

A slide is waiting, running, done, failed, or stopped when its process was interrupted or is gone.
"""


@click.command(epilog=EPILOG)
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--watch", type=click.FloatRange(0.1), metavar="SECONDS", help="Look again and again until all is over.")
@click.option("--json", "as_json", is_flag=True, help="Print the slides as JSON, one list for each look.")
def command(folder: Path, watch: float | None, as_json: bool) -> None:
    """Show how far stqp predict is with each slide; DIR is its --out folder or its project."""
    set_up_logging()
    from stqp.inference.status import read_status

    while True:
        slides = read_status(folder)
        over = all(s["state"] not in ("running", "waiting") for s in slides)
        if as_json:
            click.echo(json.dumps(slides, ensure_ascii=False, indent=None if watch else 2))
        else:
            click.echo("\n".join(lines(slides)))
        if not watch or over:
            return
        time.sleep(watch)
        if not as_json:
            click.echo("")


def lines(slides: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for a person: one a slide, and a sum."""
    width = max(len(s["image"]) for s in slides)
    result = [f"{s['image']:<{width}}  {s['state']:<8} {_more(s)}".rstrip() for s in slides]
    number: dict[str, int] = {}
    for slide in slides:
        number[slide["state"]] = number.get(slide["state"], 0) + 1
    told = ", ".join(f"{n} {state}" for state, n in number.items())
    found = sum(s.get("nuclei", 0) for s in slides)
    return [*result, f"{len(slides)} slide{'s' if len(slides) > 1 else ''}: {told}; {found:,} nuclei"]


def _more(slide: dict[str, Any]) -> str:
    state = slide["state"]
    if state == "done":
        return f"{slide['nuclei']:,} nuclei in {_duration(slide['seconds'])}"
    if state == "failed":
        return str(slide.get("error", ""))
    if state in ("running", "stopped") and slide.get("total"):
        share = f"{slide['done']:,} of {slide['total']:,} steps ({slide['done'] / slide['total']:.0%})"
        return f"{share}, {_duration(slide['left'])} left" if "left" in slide else share
    return ""


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"
