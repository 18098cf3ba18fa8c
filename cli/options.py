"""Flags made from the options that the library describes."""

from collections.abc import Callable, Collection
from typing import Any

import click

from stqp.training.options import Option
from stqp.training.settings import OPTIONS

SECTIONS = {
    "data": "Data",
    "split": "Split",
    "network": "Network",
    "schedule": "Schedule",
    "loss": "Losses",
    "augmentation": "Augmentation",
    "run": "Machine and run",
}
"""Headings of the help by section of ``train.toml``."""


class SectionedOption(click.Option):
    """An option that stands under a heading in the help.

    Parameters
    ----------
    section
        Key of `SECTIONS`.
    """

    def __init__(self, *args: Any, section: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help lists its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the command's own options first, then each section's."""
        rows: dict[str, list[tuple[str, str]]] = {"": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                rows.setdefault(getattr(param, "section", ""), []).append(record)
        for section in ("", *SECTIONS):
            if rows.get(section):
                with formatter.section(SECTIONS.get(section, "Options")):
                    formatter.write_dl(rows[section])


def click_option(one: Option) -> Callable[[Any], Any]:
    """Flag of an option; its default is None, so that it is known which flags were given."""
    text = one.text
    if one.default not in (None, (), False) and not one.text.startswith("Default"):
        text += f"  [default: {one.default}]"
    if one.kind is bool:
        name = one.spelled.removeprefix("--")
        return click.option(
            f"--{name}/--no-{name}", one.flag, default=None, help=text, cls=SectionedOption, section=one.section
        )
    kind: Any
    if one.choices:
        kind = click.Choice(one.choices)
    elif one.kind is int:
        kind = click.IntRange(_whole(one.low), _whole(one.high))
    elif one.kind is float:
        low = one.above if one.low is None else one.low
        bounded = low is not None or one.high is not None
        kind = click.FloatRange(low, one.high, min_open=one.above is not None) if bounded else float
    else:
        kind = str
    repeated = one.kind is tuple
    return click.option(
        one.spelled, one.flag, type=kind, multiple=repeated, default=None, metavar=one.metavar,
        help=text + (" Repeatable." if repeated else ""), cls=SectionedOption, section=one.section,
    )  # fmt: skip


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def cut_flags(without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for every option of `stqp.patches.options.CutOptions` but some."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed([o for o in OPTIONS if o.section in ("data", "split") and o.name not in without]):
            command = click_option(one)(command)
        return command

    return decorate


def cut_options(values: dict[str, Any], **defaults: Any) -> Any:
    """Take what the flags of `cut_flags` gave out of a command's values, as `CutOptions`."""
    from stqp.patches.options import CutOptions

    given = dict(defaults)
    for one in OPTIONS:
        if one.section in ("data", "split") and one.flag in values:
            value = values.pop(one.flag)
            if value not in (None, ()):
                given[one.name] = value
    return CutOptions(**given)
