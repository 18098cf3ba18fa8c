"""The proposal as a taxonomy: classes with names, colours, parents and fine types, for `stqp label --taxonomy`."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from stqp.celltyping.fine_types import type_key
from stqp.celltyping.taxonomies import VISUAL, Taxonomy
from stqp.taxonomy import RGB, UNKNOWN, color_of

_NAMED = 2  # fine types that a class's name holds


@dataclass(frozen=True)
class Proposed:
    """A class of the proposal.

    Attributes
    ----------
    name
    types : tuple of str
        Fine types, the most frequent first.
    lineages : tuple of str
        Visual classes of its groups; more than one only where they were merged on demand.
    """

    name: str
    types: tuple[str, ...]
    lineages: tuple[str, ...]


def name_classes(types: Sequence[Sequence[str]], lineages: Sequence[Sequence[str]]) -> list[Proposed]:
    """Name classes: by the visual class where one of them is all of it, else by their most frequent fine types.

    Parameters
    ----------
    types
        Fine types of each class, the most frequent first.
    lineages
        Visual classes of each.
    """
    alone = [len(mine) == 1 and sum(mine[0] in other for other in lineages) == 1 for mine in map(list, lineages)]
    result: list[Proposed] = []
    taken: set[str] = set()
    for mine, lines, whole in zip(types, lineages, alone, strict=True):
        if whole and lines[0] != UNKNOWN:
            name = lines[0]
        else:
            rest = len(mine) - _NAMED
            name = " + ".join(_plain(t) for t in mine[:_NAMED]) + (f" + {rest} more" if rest > 0 else "")
        base, number = name or "Class", 2
        while name.casefold() in taken or name.casefold() == UNKNOWN.casefold() or not name:
            name, number = f"{base} {number}", number + 1
        taken.add(name.casefold())
        result.append(Proposed(name, tuple(mine), tuple(lines)))
    return result


def _plain(name: str) -> str:
    """A fine type as part of a class's name: QuPath gives a colon and a last star a meaning."""
    return name.replace(":", " ").rstrip("*").strip()


def to_taxonomy(proposed: Sequence[Proposed], name: str) -> Taxonomy:
    """Make the taxonomy.

    A class that bears a visual class's name also takes the fine types of it that nobody names, as
    `Taxonomy.class_of` has it. Neoplastic has no fine types: evidence makes it, not a marker.
    """
    classes = tuple(p.name for p in proposed)
    parents = {
        p.name: p.lineages[0]
        for p in proposed
        if len(p.lineages) == 1 and p.lineages[0] in VISUAL and p.name != p.lineages[0]
    }
    types: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for p in proposed:
        mine = []
        for one in p.types:
            key = type_key(one)
            if key not in seen and one not in VISUAL:
                seen.add(key)
                mine.append(one)
        if mine:
            types[p.name] = tuple(mine)
    return Taxonomy(name, classes, _colors(proposed), parents, types)


def _colors(proposed: Sequence[Proposed]) -> dict[str, RGB]:
    """The lineage's colour for its largest class, and lighter and turned ones for the others."""
    used: dict[str, int] = {}
    result = {}
    for p in proposed:
        line = p.lineages[0] if len(p.lineages) == 1 else ""
        if line not in VISUAL:
            result[p.name] = color_of(p.name)
            continue
        number = used.get(line, 0)
        used[line] = number + 1
        hue, light, sat = colorsys.rgb_to_hls(*(v / 255 for v in color_of(line)))
        turned = (hue + 0.045 * number) % 1, min(0.85, light + 0.11 * number), sat * 0.9**number
        r, g, b = colorsys.hls_to_rgb(*turned)
        result[p.name] = (round(r * 255), round(g * 255), round(b * 255))
    return result
