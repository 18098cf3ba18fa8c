"""The proposal as a taxonomy: classes with names, colours, parents and fine types, for `stqp label --taxonomy`."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stqp.celltyping.fine_types import type_key
from stqp.celltyping.gene_names import current_symbol
from stqp.celltyping.markers import MarkerTable
from stqp.celltyping.taxonomies import VISUAL, Taxonomy
from stqp.taxonomy import RGB, UNKNOWN, color_of

_NAMED = 2  # fine types that a class's name holds
_COMMON = frozenset(("cell", "of", "and", "the", "in", "like", "precursor", "progenitor"))


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


def companions(proposed: Sequence[Proposed], table: MarkerTable) -> dict[str, list[str]]:
    """Fine types of a marker table that the slide does not show, by the class that they go with.

    Where a lineage is in parts, a type that nobody names would stand against all of them: cytotoxic T cells against T
    cells. It goes with the part of its lineage with which it shares a word of its name (T regulatory cells), else with
    the one with which it shares most markers; without any of either, it stays outside.

    Parameters
    ----------
    proposed
        Classes, the largest of a lineage first.
    table
        Whose fine types are asked for.
    """
    genes: dict[str, set[str]] = {}
    visual = {type_key(fine): lineage for fine, lineage in table.types.items()}
    for row in table.rows:
        genes.setdefault(type_key(row.fine), set()).add(current_symbol(row.gene))
    named = {type_key(t) for p in proposed for t in p.types}
    parts: dict[str, list[Proposed]] = {}
    for p in proposed:
        if len(p.lineages) == 1 and p.name != p.lineages[0]:
            parts.setdefault(p.lineages[0], []).append(p)
    marks = {p.name: set().union(*(genes.get(type_key(t), set()) for t in p.types)) for p in proposed}
    result: dict[str, list[str]] = {}
    for fine in table.types:
        key = type_key(fine)
        there = parts.get(visual[key], [])
        if key in named or not there:
            continue
        named.add(key)
        shared = [(len(_words([fine]) & _words(p.types)), len(genes[key] & marks[p.name])) for p in there]
        if max(shared) > (0, 0):
            result.setdefault(there[shared.index(max(shared))].name, []).append(fine)
    return result


def _words(types: Iterable[str]) -> set[str]:
    """Words of fine types that say which they are."""
    return {word for t in types for word in type_key(t).replace("-", " ").split()} - _COMMON


def to_taxonomy(proposed: Sequence[Proposed], name: str, table: MarkerTable | None = None) -> Taxonomy:
    """Make the taxonomy; with a marker table, its classes also have their `companions`.

    A class that bears a visual class's name also takes the fine types of it that nobody names, as
    `Taxonomy.class_of` has it. Neoplastic has no fine types: evidence makes it, not a marker.
    """
    classes = tuple(p.name for p in proposed)
    parents = {
        p.name: p.lineages[0]
        for p in proposed
        if len(p.lineages) == 1 and p.lineages[0] in VISUAL and p.name != p.lineages[0]
    }
    more = {} if table is None else companions(proposed, table)
    types: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for p in proposed:
        mine = []
        for one in (*p.types, *more.get(p.name, [])):
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
