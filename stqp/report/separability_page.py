"""The report on what can be told apart: one HTML page with everything in it, and the tables for programs."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stqp.report.page import Html, escaped, paragraph, picture, section, swatch, table, verdict
from stqp.separability.groups import lineage_of
from stqp.separability.pairs import ALPHA, Estimate, Pair
from stqp.separability.result import Separability
from stqp.slides import RGBImage
from stqp.taxonomy import RGB

_EDGE: RGB = (18, 63, 109)


def statement(found: Separability) -> str:
    """What holds of all pairs together, in a sentence or two."""
    counts = Counter(p.verdict for p in found.pairs)
    chance = sum(p.chance and p.verdict != "not judged" for p in found.pairs)
    least = found.settings.least
    text = (
        f"Of {len(found.pairs)} pairs of {len(found.groups)} groups, {counts['told apart']} are told apart (AUC above "
        f"{least:g}), {counts['not told apart']} are not (below it), and {counts['undecided']} are undecided; "
        f"{chance} are no better than chance as far as these nuclei show."
    )
    if counts["not judged"]:
        text += f" {counts['not judged']} could not be judged."
    return text + f" All claims hold together, with a chance of {ALPHA:.0%} at most that any of one kind is wrong."


def interval(e: Estimate, percent: bool = False) -> str:
    """A value with its interval, for people."""
    if e.value != e.value:
        return "–"
    scale, form, unit = (100, ".0f", " %") if percent else (1, ".2f", "")
    value = f"{e.value * scale:{form}}{unit}"
    return value if e.low != e.low else f"{value} ({e.low * scale:{form}} to {e.high * scale:{form}})"


def estimate_json(e: Estimate) -> dict[str, float]:
    """A value with its interval, for programs."""
    return {"value": float(e.value), "low": float(e.low), "high": float(e.high), "effective_blocks": float(e.blocks)}


def to_json(found: Separability) -> dict[str, Any]:
    """Everything, for programs."""
    names = [g.name for g in found.groups]
    classes = [p.name for p in found.proposed]

    def step(s: Any) -> dict[str, Any]:
        return {"a": [names[g] for g in s.a], "b": [names[g] for g in s.b], "auc": float(s.auc), "proposed": s.merged}

    return {
        "statement": statement(found),
        "notes": found.notes,
        "settings": {
            "block_um": found.settings.block,
            "guard_um": found.settings.guard,
            "least_auc": found.settings.least,
            "across_lineages": found.settings.across,
            "min_nuclei": found.settings.min_nuclei,
            "seed": found.settings.seed,
            "folds": found.folds,
            "held_out": "slides" if found.by_slide else "blocks",
            "blocks": found.n_blocks,
        },
        "calibration_error": found.calibration,
        "groups": [
            {"name": g.name, "type": g.type, "lineage": lineage_of(g), "nuclei": g.nuclei, "blocks": g.blocks,
             "slides": g.slides, "classes": g.classes, "proposed": classes[c]}
            for g, c in zip(found.groups, found.class_of, strict=True)
        ],
        "too_small": [
            {"name": g.name, "type": g.type, "lineage": lineage_of(g), "nuclei": g.nuclei, "blocks": g.blocks}
            for g in found.small
        ],
        "pairs": [{"a": names[p.a], "b": names[p.b], **_pair_json(p)} for p in found.pairs],
        "order": [names[g] for g in found.tree.order],
        "tree": [step(s) for s in found.tree.steps],
        "proposed": {
            "classes": [
                {"name": p.name, "types": list(p.types), "lineages": list(p.lineages),
                 "groups": [names[g] for g in m.members], "recall": estimate_json(m.recall),
                 "recall_as_frequent": m.recall_found, "precision_as_frequent": m.precision_found}
                for p, m in zip(found.proposed, found.merging.classes, strict=True)
            ],
            "pairs": [{"a": classes[p.a], "b": classes[p.b], **_pair_json(p)} for p in found.merging.pairs],
            "steps": [step(s) for s in found.merging.steps if s.merged],
        },
    }  # fmt: skip


def _pair_json(p: Pair) -> dict[str, Any]:
    return {
        "auc": estimate_json(p.auc),
        "auc_over_all": float(p.over_all),
        "compared": "over all nuclei" if p.apart else "side by side",
        "verdict": p.verdict,
        "may_be_chance": p.chance,
    }


def pairs_csv(found: Separability) -> str:
    """The pairs, one a row, the least told apart first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["a", "b", "auc", "low", "high", "verdict", "may_be_chance", "compared", "auc_over_all", "effective_blocks",
         "same_lineage", "proposed_together"]
    )  # fmt: skip
    of = found.class_of
    for p in sorted(found.pairs, key=lambda p: (p.auc.value, p.a, p.b)):
        a, b = found.groups[p.a], found.groups[p.b]
        writer.writerow(
            [a.name, b.name, *(f"{v:.4f}" for v in (p.auc.value, p.auc.low, p.auc.high)), p.verdict,
             "yes" if p.chance else "no", "over all nuclei" if p.apart else "side by side", f"{p.over_all:.4f}",
             f"{p.auc.blocks:.1f}", "yes" if lineage_of(a) == lineage_of(b) else "no",
             "yes" if of[p.a] == of[p.b] else "no"]
        )  # fmt: skip
    return text.getvalue()


def class_map_csv(found: Separability) -> str:
    """Group and proposed class, as `--class-map` reads them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "class"])
    for g, c in zip(found.groups, found.class_of, strict=True):
        writer.writerow([g.name, found.proposed[c].name])
    return text.getvalue()


def parts(
    found: Separability,
    title: str,
    by: str,
    source: str,
    skipped: Mapping[str, int],
    heat_map: RGBImage,
    examples: RGBImage,
) -> list[Html]:
    """Make the parts of the page.

    Parameters
    ----------
    found
        What was found.
    title
        Names of the images.
    by
        What the groups are.
    source
        What the nuclei were judged by: ``40 features of the H&E``.
    skipped
        Nuclei left out, by reason.
    heat_map, examples : uint8 (height, width, 3)
    """
    return [
        paragraph(f"{title} · groups: {by} · judged by {source}", note=True),
        verdict(statement(found), _EDGE),
        section(
            "Proposed classes",
            Html(
                "<p>Groups that the image cannot tell apart are merged. To label the nuclei so: "
                "<code>stqp label PROJECT --taxonomy proposed.toml</code></p>"
            ),
            _classes(found),
            paragraph(
                "Recall: of 100 nuclei of the class, how many the held-out model gives it, with the 95 % interval; "
                "first as if all classes were equally frequent, then as frequent as on these slides. A trained network "
                "may do better: it sees more than these features.",
                note=True,
            ),
        ),
        section("What to look at", _list(found.notes)),
        section(
            "Pairs",
            paragraph(
                "The AUC of a pair: of two nuclei of one block, one of each group, how often the right one is named "
                "(0.5 is chance, 1 is always). Left: the tree of merges. Groups whose names have one colour are of one "
                "visual class."
            ),
            picture(heat_map, "AUC of all pairs of groups", quality=None),
            _doubtful(found),
        ),
        section("Examples", picture(examples, "Example nuclei of each group")),
        section("Left out", _list([f"{number:,} {reason}" for reason, number in skipped.items()])),
        section("How it is measured, and what it cannot say", *(paragraph(t, note=True) for t in _how(found))),
    ]


def _how(found: Separability) -> list[str]:
    held_out = "whole slides are held out"
    if not found.by_slide:
        held_out = (
            f"blocks of {found.settings.block:g} µm are held out, and nothing is learnt from within "
            f"{found.settings.guard:g} µm of them"
        )
    return [
        f"One multinomial logistic model learns all groups; {held_out} ({found.folds} folds, "
        f"{found.n_blocks} blocks). Pairs are compared within blocks, so that a stain that fades over the slide, or "
        "tissue that was fixed otherwise, is no difference between nuclei; pairs that hardly ever meet in a block are "
        "compared over all nuclei and marked. Intervals come of blocks drawn again, not of nuclei. The model's "
        f"probabilities are off by {found.calibration:.1%} on average.",
        "What these features cannot tell apart, a network that sees the whole image may; what they can tell apart on "
        "one slide, another scanner may not show. A group is what the expression made of it: groups that hold wrongly "
        f"named cells look more alike than the types do. {len(found.pairs)} pairs were looked at; single ones are "
        "corrected for that (Holm). Recalls of merged classes are a little too good, as the same nuclei chose the "
        "merges.",
    ]


def _list(items: Sequence[str]) -> Html:
    return Html(f"<ul>{''.join(f'<li>{escaped(i)}</li>' for i in items)}</ul>" if items else "")


def _classes(found: Separability) -> Html:
    rows = []
    for p, m in zip(found.proposed, found.merging.classes, strict=True):
        name = swatch(p.name, found.taxonomy.colors[p.name])
        if len(p.lineages) > 1:
            name = Html(f'{name}<br><b style="color:#b00">joins {escaped(" and ".join(p.lineages))}</b>')
        precision = "–" if m.precision_found != m.precision_found else f"{m.precision_found:.0%}"
        rows.append(
            [name, ", ".join(found.groups[g].name for g in m.members), sum(found.groups[g].nuclei for g in m.members),
             interval(m.recall, True), f"{m.recall_found:.0%}", precision]
        )  # fmt: skip
    return table(["Class", "is made of", "nuclei", "recall", "as frequent as here: recall", "precision"], rows)


def _doubtful(found: Separability) -> Html:
    """Table of the pairs that are not told apart for sure, by falling likeness."""
    rows = []
    for p in sorted(found.pairs, key=lambda p: p.auc.value):
        if p.verdict == "told apart":
            continue
        a, b = found.groups[p.a], found.groups[p.b]
        lines = "one" if lineage_of(a) == lineage_of(b) else Html('<b style="color:#b00">two</b>')
        chance = "may be chance" if p.chance else "more than chance"
        where = "over all nuclei" if p.apart else "side by side"
        rows.append([a.name, b.name, interval(p.auc), p.verdict, chance, where, lines])
    if not rows:
        return paragraph("All pairs are told apart.")
    listed = table(["Group", "and", "AUC", "verdict", "", "compared", "visual classes"], rows)
    return Html(f"<details><summary>{len(rows)} pairs that are not told apart for sure</summary>{listed}</details>")
