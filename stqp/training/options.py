"""Options of training as fields of dataclasses: what each means, its flag, and what it may be."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from stqp.errors import UsageError


def option(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
    fixed: bool = True,
) -> Any:
    """Make a field of a dataclass of options.

    Parameters
    ----------
    default
        Its value when nobody sets it; None lets the recipe choose, or stands for "none".
    text
        One sentence: the help of its flag, and the comment in ``train.toml``.
    low, high, above
        Smallest and largest value, and a value that it must exceed.
    choices
        All it may be.
    metavar
        What stands for its value in the help.
    fixed
        Whether a run that goes on must have the value it began with.
    """
    about = {"text": text, "low": low, "high": high, "above": above, "choices": choices}
    return field(default=default, metadata={**about, "metavar": metavar, "fixed": fixed})


@dataclass(frozen=True)
class Option:
    """One option, wherever it stands in the tree.

    Attributes
    ----------
    section, name : str
        Table of ``train.toml`` (empty at the top) and key.
    flag : str
        Its name among all options.
    spelled : str
        What is typed: ``--max-time``.
    kind : type
        int, float, bool, str or tuple (of str).
    optional : bool
        Whether it may be None.
    """

    section: str
    name: str
    flag: str
    spelled: str
    kind: type
    optional: bool
    default: Any
    text: str
    low: float | None
    high: float | None
    above: float | None
    choices: tuple[str, ...]
    metavar: str | None
    fixed: bool

    @property
    def key(self) -> str:
        """Where it stands in ``train.toml``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    def check(self, value: Any) -> Any:
        """Hold a value against type and range, and give it in the option's own type.

        Raises
        ------
        UsageError
            When it is none that the option may have; the sentence begins with what was expected.
        """
        if value is None and self.optional:
            return None
        wanted = self._expected()
        if self.kind is tuple:
            if isinstance(value, str) or not all(isinstance(v, str) for v in _items(value)):
                raise UsageError(f"expected {wanted} for {self.key}, found {value!r}")
            return tuple(value)
        numeric = self.kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.kind is float and numeric:
            value = float(value)
        if type(value) is not self.kind or not self._within(value):
            raise UsageError(f"expected {wanted} for {self.key}, found {value!r}")
        return value

    def _within(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind not in (int, float):
            return True
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and value - value == 0  # neither infinite nor NaN
        )

    def _expected(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        names = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "a text",
            tuple: "a list of texts",
        }
        text = names[self.kind]
        if self.low is not None and self.high is not None:
            return f"{text} from {self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"{text} of at least {self.low:g}"
        if self.above is not None:
            limit = f"{text} above {self.above:g}"
            return limit if self.high is None else f"{limit}, at most {self.high:g}"
        return text


def _items(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (None,)


def options_of(tree: type, others: dict[str, dict[str, Any]] | None = None) -> Iterator[Option]:
    """Options of a dataclass whose fields are options or dataclasses of them (its sections).

    Parameters
    ----------
    tree
        The dataclass.
    others
        Metadata of fields that were not made by `option`, by name; also ``flag`` and ``spelled`` where they differ
        from the name.
    """
    hints = get_type_hints(tree)
    for one in fields(tree):
        hint = hints[one.name]
        if is_dataclass(hint):
            for inner, kind in zip(fields(hint), _hints(hint), strict=True):
                section = str(inner.metadata.get("section", one.name))
                yield _option(section, inner, kind, (others or {}).get(inner.name, {}))
        else:
            yield _option("", one, hint, {})


def _hints(kind: Any) -> list[Any]:
    hints = get_type_hints(kind)
    return [hints[f.name] for f in fields(kind)]


def _option(section: str, one: Any, hint: Any, extra: dict[str, Any]) -> Option:
    about = dict(one.metadata) if "text" in one.metadata else {**one.metadata, **extra}
    optional = get_origin(hint) in (Union, types.UnionType)
    kind = next(k for k in get_args(hint) if k is not type(None)) if optional else hint
    kind = get_origin(kind) or kind
    flag = about.get("flag", one.name)
    return Option(
        section,
        one.name,
        flag,
        "--" + about.get("spelled", flag).replace("_", "-"),
        kind,
        optional,
        one.default,
        about["text"],
        about.get("low"),
        about.get("high"),
        about.get("above"),
        tuple(about.get("choices", ())),
        about.get("metavar"),
        about.get("fixed", True),
    )
