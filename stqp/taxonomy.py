"""The visual classes: what an H&E image can show of a nucleus, with ids and QuPath colours.

The order is that of PanNuke and of TIAToolbox's PanNuke models (0 is background), so that heads and
scores can be compared. Unknown is a label, not a class: it has no id, trains detection and is ignored
by typing.
"""

import csv
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stqp.errors import InputError

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class VisualClass:
    """A class of nuclei that an H&E image can show."""

    id: int
    name: str
    color: RGB


VISUAL_CLASSES: tuple[VisualClass, ...] = (
    VisualClass(1, "Neoplastic", (220, 30, 40)),
    VisualClass(2, "Inflammatory", (40, 170, 60)),
    VisualClass(3, "Connective", (40, 90, 220)),
    VisualClass(4, "Dead", (240, 200, 20)),
    VisualClass(5, "Epithelial", (250, 130, 30)),
)
UNKNOWN = "Unknown"
UNKNOWN_COLOR: RGB = (140, 140, 140)
_BY_NAME = {c.name: c for c in VISUAL_CLASSES}


def color_of(name: str | None) -> RGB:
    """Colour of a class; a class outside the taxonomy gets a steady colour made from its name."""
    if name is None or name == UNKNOWN:
        return UNKNOWN_COLOR
    if name in _BY_NAME:
        return _BY_NAME[name].color
    hue = zlib.crc32(name.encode()) % 360
    import colorsys

    r, g, b = colorsys.hls_to_rgb(hue / 360, 0.45, 0.75)
    return round(r * 255), round(g * 255), round(b * 255)


def ordered(names: Iterable[str]) -> list[str]:
    """Class names in the order of their ids: the taxonomy's first, then any others by name; no Unknown.

    QuPath's own convention holds: a name that ends with ``*`` (``Ignore*``, ``Region*``) is no class.
    """
    present = {n for n in names if n and n != UNKNOWN and not n.endswith("*")}
    known = [c.name for c in VISUAL_CLASSES if c.name in present]
    return known + sorted(present.difference(known))


def read_class_map(path: Path) -> dict[str, str]:
    """Read a map from label to visual class.

    Parameters
    ----------
    path
        A csv or tsv with two columns: label, class. The header may be any two names, and is recognised
        by ``class`` (in any case) in its second column; without one, every row is data.

    Returns
    -------
    dict
        Label to class name. An empty class, and ``Unknown`` in any case, mean Unknown.

    Raises
    ------
    InputError
        When the file is not a two-column table, or gives one label two classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the class map {path} cannot be read: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"the class map {path} is empty; expected two columns, label and class")
    delimiter = "\t" if "\t" in lines[0] else ","
    result: dict[str, str] = {}
    for number, row in enumerate(csv.reader(lines, delimiter=delimiter), start=1):
        if len(row) < 2:
            raise InputError(f"the class map {path} has one column in line {number}; expected label,class")
        label, name = row[0].strip(), row[1].strip()
        if number == 1 and "class" in name.lower():
            continue
        if not name or name.lower() == UNKNOWN.lower():
            name = UNKNOWN
        if result.setdefault(label, name) != name:
            raise InputError(f"the class map {path} gives label {label!r} two classes: {result[label]!r} and {name!r}")
    return result


def map_labels(labels: Iterable[str], class_map: Mapping[str, str]) -> list[str]:
    """Visual class of each label; a label that the map lacks is Unknown."""
    return [class_map.get(label, UNKNOWN) for label in labels]
