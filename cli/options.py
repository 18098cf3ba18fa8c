"""Flags made from the options that the library describes."""

from collections.abc import Callable, Collection
from typing import Any

import click

from stqp.training.options import Option
from stqp.training.settings import OPTIONS


def click_option(one: Option) -> Callable[[Any], Any]:
    """Flag of an option; its default is None, so that it is known which flags were given."""
    text = one.text
    if one.default not in (None, (), False) and not one.text.startswith("Default"):
        text += f"  [default: {one.default}]"
    if one.kind is bool:
        name = one.spelled.removeprefix("--")
        return click.option(f"--{name}/--no-{name}", one.flag, default=None, help=text)
    kind: Any
    if one.choices:
        kind = click.Choice(one.choices)
    elif one.kind is int:
        kind = click.IntRange(_whole(one.low), _whole(one.high))
    elif one.kind is float:
        low = one.above if one.low is None else one.low
        kind = click.FloatRange(low, one.high, min_open=one.above is not None)
    else:
        kind = str
    repeated = one.kind is tuple
    return click.option(
        one.spelled, one.flag, type=kind, multiple=repeated, default=None, metavar=one.metavar,
        help=text + (" Repeatable." if repeated else ""),
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
