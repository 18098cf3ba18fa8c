"""Taxonomies: the visual classes by default, or a user's own from a small TOML file."""

import functools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stqp.celltyping.fine_types import type_key
from stqp.errors import InputError
from stqp.files import replacing
from stqp.taxonomy import RGB, UNKNOWN, VISUAL_CLASSES, color_of

VISUAL = tuple(c.name for c in VISUAL_CLASSES)
_KEYS = {"color", "parent", "fine_types", "markers"}


@dataclass(frozen=True)
class Taxonomy:
    """Classes of nuclei, with colours, parents, and what belongs to them.

    Attributes
    ----------
    name
        What it is called.
    classes
        Names in order; a class's id is its place, from 1. The default's are PanNuke's.
    colors
        RGB of each class.
    parents
        Class to the wider class that it is part of: another of this taxonomy, or a visual class.
    types
        Class to its fine types, as the user names them.
    markers
        Class to its own marker genes.
    """

    name: str
    classes: tuple[str, ...]
    colors: Mapping[str, RGB]
    parents: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    markers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def default(cls) -> "Taxonomy":
        """The visual classes in PanNuke's order."""
        return cls("visual classes", VISUAL, {c.name: c.color for c in VISUAL_CLASSES})

    @classmethod
    def read(cls, path: Path | str) -> "Taxonomy":
        """Read a taxonomy.

        Parameters
        ----------
        path
            A TOML file::

                name = "immune cells"

                [classes.Lymphocyte]
                color = "#28aa3c"            # or [40, 170, 60]; may be left out
                parent = "Inflammatory"      # a visual class, or another class of this file
                fine_types = ["T cells", "B cells", "NK cells"]

                [classes.Macrophage]
                parent = "Inflammatory"
                markers = ["CD68", "CD163", "C1QA"]

        Raises
        ------
        InputError
            For a file that is no TOML or has no classes, an unknown key or parent, a class that is its own
            ancestor, a name that is used twice or reserved, a fine type of two classes, and a bad colour.
        """
        path = Path(path)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"the taxonomy {path} cannot be read: {error}") from error
        return cls.from_dict(content, str(path))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> "Taxonomy":
        """A taxonomy of what a TOML file holds; `where` names it in errors. See `read`."""
        classes = content.get("classes")
        if not isinstance(classes, dict) or not classes:
            raise InputError(f"the taxonomy {where} has no classes; expected a table [classes.NAME] for each")
        _check_names(classes, where)
        for name, entry in classes.items():
            if not isinstance(entry, dict) or set(entry) - _KEYS:
                found = ", ".join(sorted(set(entry) - _KEYS)) if isinstance(entry, dict) else repr(entry)
                raise InputError(
                    f"class {name} of the taxonomy {where} has {found}; expected color, parent, fine_types, markers"
                )
        parents = {name: str(entry["parent"]) for name, entry in classes.items() if entry.get("parent")}
        _check_parents(parents, set(classes), where)
        types = {name: _texts(entry, "fine_types", name, where) for name, entry in classes.items()}
        _check_types(types, where)
        return cls(
            str(content.get("name") or Path(where).stem),
            tuple(classes),
            {name: _color(entry.get("color"), name, where) for name, entry in classes.items()},
            parents,
            {name: t for name, t in types.items() if t},
            {name: m for name, e in classes.items() if (m := _texts(e, "markers", name, where))},
        )

    @property
    def to_visual(self) -> dict[str, str]:
        """Each class's visual class: itself, or the nearest ancestor that is one; `UNKNOWN` without one."""
        return self.mapping_to(Taxonomy.default())

    def mapping_to(self, other: "Taxonomy") -> dict[str, str]:
        """Each class's class in a wider taxonomy: the same name, or the nearest ancestor's; else `UNKNOWN`."""
        there = set(other.classes)
        return {name: next((n for n in self.lineage(name) if n in there), UNKNOWN) for name in self.classes}

    def lineage(self, name: str) -> list[str]:
        """A class and its ancestors, nearest first."""
        line = [name]
        while line[-1] in self.parents and self.parents[line[-1]] not in line:
            line.append(self.parents[line[-1]])
        return line

    def class_of(self, fine: str, visual: str) -> str:
        """Class of a fine type, whose visual class (or a silent word) is `visual`."""
        found = self._by_type.get(type_key(fine))
        if found is not None:
            return found
        return visual if visual in self.classes or visual not in VISUAL else UNKNOWN

    @functools.cached_property
    def _by_type(self) -> dict[str, str]:
        return {type_key(t): name for name, types in self.types.items() for t in types}

    def write(self, path: Path) -> None:
        """Write the taxonomy as a file that `read` reads."""
        lines = [f"name = {_toml(self.name)}"]
        for name in self.classes:
            lines += ["", f"[classes.{_toml(name)}]", f'color = "#{bytes(self.colors[name]).hex()}"']
            lines += [f"parent = {_toml(self.parents[name])}"] if name in self.parents else []
            for key, values in (("fine_types", self.types), ("markers", self.markers)):
                if values.get(name):
                    lines.append(f"{key} = [{', '.join(map(_toml, values[name]))}]")
        with replacing(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # TOML's basic strings have JSON's escapes


def _check_names(classes: Mapping[str, Any], where: str) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        if name.strip().casefold() in ("", UNKNOWN.casefold()) or name.endswith("*") or ":" in name:
            raise InputError(f"the taxonomy {where} has a class {name!r}, a name that is reserved; choose another")
        other = seen.setdefault(name.strip().casefold(), name)
        if other != name:
            raise InputError(f"the taxonomy {where} names a class twice: {other!r} and {name!r}")


def _check_parents(parents: Mapping[str, str], classes: set[str], where: str) -> None:
    for name, parent in parents.items():
        if parent not in classes and parent not in VISUAL:
            raise InputError(
                f"class {name} of the taxonomy {where} has the unknown parent {parent!r}; expected one of its classes, "
                f"or of {', '.join(VISUAL)}"
            )
        line = [name]
        while line[-1] in parents:
            line.append(parents[line[-1]])
            if line[-1] in line[:-1]:
                raise InputError(
                    f"the taxonomy {where} refers to itself: {' is part of '.join(line[line.index(line[-1]) :])}"
                )


def _check_types(types: Mapping[str, tuple[str, ...]], where: str) -> None:
    owner: dict[str, str] = {}
    for name, fines in types.items():
        for fine in fines:
            other = owner.setdefault(type_key(fine), name)
            if other != name:
                raise InputError(f"the taxonomy {where} gives the fine type {fine!r} two classes: {other} and {name}")


def _texts(entry: Mapping[str, Any], key: str, name: str, where: str) -> tuple[str, ...]:
    values = entry.get(key, [])
    if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
        raise InputError(f"{key} of class {name} of the taxonomy {where} is {values!r}; expected a list of names")
    return tuple(dict.fromkeys(v.strip() for v in values))


def _color(value: Any, name: str, where: str) -> RGB:
    if value is None:
        return color_of(name)
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        r, g, b = bytes.fromhex(value[1:])
        return r, g, b
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return value[0], value[1], value[2]
    raise InputError(f'class {name} of the taxonomy {where} has the color {value!r}; expected "#rrggbb" or [r, g, b]')
