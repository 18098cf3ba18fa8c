"""``train.toml``: the settings of a run as a file that a person reads and edits."""

from __future__ import annotations

import difflib
import json
import textwrap
import tomllib
from pathlib import Path
from typing import Any

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.training.options import Option
from stqp.training.settings import OPTIONS, Settings

CONFIG = "train.toml"
_TITLES = {
    "": "stqp train --config THIS --out RUN; flags count more than this file.",
    "data": "Which nuclei and pixels.",
    "split": "What is learnt from, chosen by, and tested on.",
    "network": "The network, and where its weights begin.",
    "schedule": "How long, with what steps, and what to keep.",
    "loss": "Weights and kinds of the losses.",
    "augmentation": "What is varied in a crop, and how far.",
    "run": "Seed and machine.",
}


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``train.toml``.

    Parameters
    ----------
    path
        The file. Paths in it are relative to it; what it does not name keeps its default.

    Returns
    -------
    dict
        Values by the names of their flags, for `Settings.changed`.

    Raises
    ------
    InputError
        When it is no TOML, or has a key or a value that no option has.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}; write one with stqp train --print-config > {path.name}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    keys = {o.key: o for o in OPTIONS}
    sections = {o.section for o in OPTIONS if o.section}
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name in sections:
            if not isinstance(value, dict):
                raise InputError(f"{path}: expected a table [{name}], found {name} = {value!r}")
            found = {f"{name}.{k}": v for k, v in value.items()}
        else:
            found = {name: value}
        for key, one in found.items():
            if key not in keys:
                raise InputError(f"{path}: there is no key {key}{_nearest(key, [*keys, *sections])}")
            try:
                values[keys[key].flag] = _absolute(keys[key], keys[key].check(one), path.parent)
            except UsageError as error:
                raise InputError(f"{path}: {error}") from error
    return values


def load_settings(path: Path) -> Settings:
    """Settings of a ``train.toml``.

    Raises
    ------
    InputError
        As `read_config`, and when values contradict each other.
    """
    try:
        return Settings().changed(read_config(path))
    except UsageError as error:
        raise InputError(f"{path}: {error}") from error


def write_config(settings: Settings) -> str:
    """Text of a complete ``train.toml``, with what each value means; it reads back to the same settings."""
    lines: list[str] = []
    section = None
    for one in OPTIONS:
        if one.section != section:
            section = one.section
            lines += ["", f"# {_TITLES[section]}", *([f"[{section}]"] if section else [])]
        lines += textwrap.wrap(one.text + _range(one), 110, initial_indent="# ", subsequent_indent="#   ")
        value = settings.get(one)
        lines.append(f"# {one.name} =" if value is None else f"{one.name} = {_toml(value)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def anchored(settings: Settings) -> Settings:
    """The same with paths that hold wherever they are read."""
    here = Path.cwd()
    return settings.changed({o.flag: _absolute(o, settings.get(o), here) for o in OPTIONS})


def save_config(settings: Settings, path: Path) -> None:
    """Write a ``train.toml`` atomically."""
    files.write_bytes(path, write_config(settings).encode())


def _absolute(one: Option, value: Any, folder: Path) -> Any:
    """Paths of a file, or of a command, from the folder that they are relative to."""
    if one.name == "projects":
        return tuple(str((folder / p).resolve()) for p in value)
    if one.name == "split" and value.startswith("file:"):
        return f"file:{(folder / value.removeprefix('file:')).resolve()}"
    if one.name == "init" and value is not None and (folder / value).exists():
        return str((folder / value).resolve())
    return value


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1) or [k for k in known if k.rpartition(".")[2] == key][:1]
    return f"; is {near[0]} meant?" if near else ""


def _range(one: Option) -> str:
    parts = [", ".join(one.choices)] if one.choices else []
    if one.low is not None or one.high is not None or one.above is not None:
        low = f"{one.low:g}" if one.low is not None else f"above {one.above:g}" if one.above is not None else ""
        parts.append(
            f"{low} to {one.high:g}" if one.high is not None else f"{low} or more" if one.low is not None else low
        )
    return f" ({'; '.join(parts)})" if parts else ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
