"""Colours of classes as people write them: in words of six digits, and in files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stqp.errors import InputError, UsageError
from stqp.qupath.codec.layout import unpacked
from stqp.taxonomy import RGB, UNKNOWN, UNKNOWN_COLOR, VISUAL_CLASSES

_HEX = re.compile(r"#?([0-9a-fA-F]{6})")
TAXONOMY = "taxonomy"


def hex_color(rgb: RGB) -> str:
    """Colour as ``#rrggbb``."""
    return f"#{rgb[0]:02x}{rgb[1]:02x}{rgb[2]:02x}"


def parse_color(text: str) -> RGB:
    """Red, green, blue of ``#rrggbb``.

    Raises
    ------
    UsageError
        When it is none.
    """
    found = _HEX.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no colour; give one like #c80000")
    value = int(found[1], 16)
    return value >> 16, (value >> 8) & 255, value & 255


def read_colors(path: str | Path) -> dict[str, RGB]:
    """Read classes and their colours.

    Parameters
    ----------
    path
        A ``classes.json`` of QuPath; a JSON object of name and colour (``#rrggbb``, or a list of red, green and
        blue); or the word ``taxonomy`` for stqp's visual classes.

    Raises
    ------
    InputError
        When the file is neither.
    """
    if str(path) == TAXONOMY:
        return {**{c.name: c.color for c in VISUAL_CLASSES}, UNKNOWN: UNKNOWN_COLOR}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and isinstance(content.get("pathClasses"), list):
            return {str(c["name"]): unpacked(int(c["color"])) for c in content["pathClasses"]}
        return {str(name): _color(value) for name, value in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise InputError(
            f'{path} is no list of classes ({error}); expected QuPath\'s classes.json, or {{"name": "#rrggbb"}}'
        ) from error


def _color(value: Any) -> RGB:
    if isinstance(value, str):
        return parse_color(value)
    red, green, blue = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"{value} is no colour")
    return red, green, blue
