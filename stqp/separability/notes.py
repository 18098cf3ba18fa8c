"""What a reader of the result must know, in sentences."""

from __future__ import annotations

from stqp.celltyping.fine_types import type_key
from stqp.separability.groups import lineage_of
from stqp.separability.result import Separability
from stqp.taxonomy import UNKNOWN


def notes_of(found: Separability, by: str) -> list[str]:
    """What a reader must know, in sentences."""
    return [*_hidden(found, by), *_weak(found), *_confused(found), *_placed(found)]


def _hidden(found: Separability, by: str) -> list[str]:
    """Clusters that look different, and that a taxonomy cannot set apart."""
    if by != "cluster":
        return []
    groups = found.groups
    return [
        f"the clusters {groups[p.a].name} and {groups[p.b].name} seem to look different (AUC {p.auc.value:.2f}, "
        f"{p.auc.low:.2f} to {p.auc.high:.2f}) and have one fine type, by which a taxonomy cannot set them apart; "
        "look at their genes: one of them may be named wrongly, or be the tumour (stqp label --neoplastic-clusters)"
        for p in found.pairs
        if type_key(groups[p.a].type) == type_key(groups[p.b].type)
        and p.auc.value >= found.settings.least
        and p.auc.low > 0.5  # a hint where to look, which need not hold for all pairs at once
    ]


def _weak(found: Separability) -> list[str]:
    """Classes of several lineages, and classes of which little is found."""
    notes = []
    for one, merged in zip(found.proposed, found.merging.classes, strict=True):
        if len(one.lineages) > 1 and found.settings.across:
            notes.append(f"the class {one.name} joins lineages ({', '.join(one.lineages)}), as was asked for")
        if merged.recall.value < 0.5:
            notes.append(
                f"of the class {one.name} the model finds {merged.recall.value:.0%} only: it is set apart from each "
                "other class, but not from all of them together"
            )
    return notes


def _confused(found: Separability) -> list[str]:
    """Classes that stay although they look alike, and those whose place may speak for them."""
    notes = []
    for p in found.merging.pairs:
        both = f"{found.proposed[p.a].name} and {found.proposed[p.b].name}"
        if p.auc.value < found.settings.least:
            notes.append(
                f"{both} cannot be told apart well (AUC {p.auc.value:.2f}) and stay two classes, as they are of "
                "different lineages (--across-lineages merges them)"
            )
        elif p.apart:
            notes.append(
                f"{both} hardly ever stand in one block, so their AUC of {p.auc.value:.2f} may be of the place and "
                "not of the nuclei"
            )
    return notes


def _placed(found: Separability) -> list[str]:
    """Groups that are too small, and where the proposal puts them all the same."""
    notes = []
    shown = {p.name for p in found.proposed}
    for g in found.small:
        line = lineage_of(g)
        listed = next(
            (c for c, types in found.taxonomy.types.items() if type_key(g.type) in map(type_key, types)), None
        )
        name = listed or (line if line in shown else None)
        where = f"the class {name}" if name else f"no class ({UNKNOWN})"
        notes.append(f"{g.name} ({g.nuclei:,} nuclei in {g.blocks} blocks) is too small to judge; it goes to {where}")
    return notes
