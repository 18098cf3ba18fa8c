"""The classes of a project and their colours: ``classifiers/classes.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stqp.qupath.codec.layout import packed, unpacked
from stqp.qupath.objects import PathObjects
from stqp.taxonomy import RGB, color_of

_KEY = "pathClasses"


class ClassList:
    """Classes in the project's order; what is in the file besides stays.

    Parameters
    ----------
    content
        Of the file, None when there is none.

    Attributes
    ----------
    changed : bool
        Since it was made or saved.
    """

    def __init__(self, content: dict[str, Any] | None = None):
        self._content = content or {}
        listed = self._content.get(_KEY)
        self._listed: list[Any] = list(listed) if isinstance(listed, list) else []
        self.changed = False

    @property
    def content(self) -> dict[str, Any]:
        """What the file is to hold."""
        return {**self._content, _KEY: self._listed}

    @property
    def colors(self) -> dict[str, RGB]:
        """Colour by class; of a class that is listed twice, the last, as QuPath takes it."""
        return {name: _color(listed) for listed in self._listed if (name := _name(listed)) is not None}

    def add(self, colors: Mapping[str, RGB]) -> None:
        """Add classes that are not there; those that are keep their colours."""
        present = self.colors
        for name, color in colors.items():
            if name not in present:
                self._listed.append({"name": name, "color": packed(color)})
                self.changed = True

    def replace(self, colors: Mapping[str, RGB]) -> None:
        """Have these classes and no others; of those that stay, only the colour changes."""
        before = {name: listed for listed in self._listed if (name := _name(listed)) is not None}
        result: list[Any] = []
        for name, color in colors.items():
            listed = before.get(name, {"name": name})
            same = name in before and _color(listed) == tuple(color)
            result.append(listed if same else {**listed, "color": packed(color)})
        result += [listed for listed in self._listed if _name(listed) is None]
        if result != self._listed:
            self._listed = result
            self.changed = True


def _name(listed: Any) -> str | None:
    name = listed.get("name") if isinstance(listed, dict) else None
    return name if isinstance(name, str) else None


def _color(listed: dict[str, Any]) -> RGB:
    color = listed.get("color")
    return unpacked(int(color)) if isinstance(color, (int, float)) else color_of(listed["name"])


def colors_in_use(objects: PathObjects) -> dict[str, RGB]:
    """Colours of the classes that objects have."""
    names = dict.fromkeys(name for name in objects.classes.tolist() if name is not None)
    return {name: objects.class_colors.get(name) or color_of(name) for name in names}
