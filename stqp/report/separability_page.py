"""The report on what can be told apart: one HTML page with everything in it, and the tables for programs."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections import Counter
from typing import Any

from stqp import __version__
from stqp.separability.groups import lineage_of
from stqp.separability.pairs import ALPHA, Estimate, Pair
from stqp.separability.result import Separability

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1200px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em}
.verdict{padding:.7em 1em;border-left:6px solid #123f6d;background:#f4f6f8;font-size:1.05em}
table{border-collapse:collapse}td,th{padding:.3em .9em .3em 0;text-align:left;vertical-align:top}
th{font-weight:600;border-bottom:1px solid #ccc}td.n,th.n{text-align:right}
td.n{white-space:nowrap}img{max-width:100%;height:auto}
.note{color:#555;font-size:.92em}.swatch{display:inline-block;width:.9em;height:.9em;margin-right:.4em;
vertical-align:-.1em;border-radius:2px}code{background:#f1f1f1;padding:.1em .3em}ul{padding-left:1.2em}
"""


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
    scale, form = (100, ".0f") if percent else (1, ".2f")
    if e.value != e.value:
        return "–"
    end = "&nbsp;%" if percent else ""
    if e.low != e.low:
        return f"{e.value * scale:{form}}{end}"
    return f"{e.value * scale:{form}}{end} ({e.low * scale:{form}} to {e.high * scale:{form}})"


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


def page(
    found: Separability, title: str, by: str, source: str, skipped: dict[str, int], heat_map: bytes, examples: bytes
) -> str:
    """Make the page.

    Parameters
    ----------
    found
        What was found.
    title
        Names of the images.
    by
        What the groups are.
    source
        What the nuclei were judged by: ``44 features of the H&E``.
    skipped
        Nuclei left out, by reason.
    heat_map
        PNG.
    examples
        JPEG.
    """
    say = html.escape
    classes = "".join(_class_row(found, i) for i in range(len(found.proposed)))
    notes = "".join(f"<li>{say(n)}</li>" for n in found.notes)
    notes = f"<h2>What to look at</h2><ul>{notes}</ul>" if notes else ""
    left = "".join(f"<li>{number:,} {say(reason)}</li>" for reason, number in skipped.items())
    left = f"<h2>Left out</h2><ul>{left}</ul>" if left else ""
    how = "whole slides are held out" if found.by_slide else (
        f"blocks of {found.settings.block:g} µm are held out, and nothing is learnt from within "
        f"{found.settings.guard:g} µm of them"
    )  # fmt: skip
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>What can be told apart: {say(title)}</title>
<style>{_STYLE}</style></head><body>
<h1>What can an image tell apart?</h1>
<p class="note">{say(title)} · groups: {say(by)} · judged by {say(source)}</p>
<p class="verdict">{say(statement(found))}</p>
<h2>Proposed classes</h2>
<p>Groups that the image cannot tell apart are merged. To label the nuclei so:
<code>stqp label PROJECT --taxonomy proposed.toml</code></p>
<table><tr><th>Class</th><th>is made of</th><th class="n">nuclei</th><th class="n">recall</th>
<th class="n">recall, as frequent as here</th><th class="n">precision, as frequent as here</th></tr>{classes}</table>
<p class="note">Recall: of 100 nuclei of the class, how many the held-out model gives it, with the 95 % interval;
first as if all classes were equally frequent, then as frequent as on these slides. A trained network may do better: it
sees more than these features.</p>
{notes}
<h2>Pairs</h2>
<p>The AUC of a pair: of two nuclei of one block, one of each group, how often the right one is named (0.5 is
chance, 1 is always). Left: the tree of merges. Groups whose names have one colour are of one visual class.</p>
<p><img alt="AUC of all pairs of groups" src="data:image/png;base64,{base64.b64encode(heat_map).decode()}"></p>
{_doubtful(found)}
<h2>Examples</h2>
<p><img alt="Example nuclei of each group" src="data:image/jpeg;base64,{base64.b64encode(examples).decode()}"></p>
{left}
<h2>How it is measured, and what it cannot say</h2>
<p class="note">One multinomial logistic model learns all groups; {how} ({found.folds} folds, {found.n_blocks}
blocks). Pairs are compared within blocks, so that a stain that fades over the slide, or tissue that was fixed
otherwise, is no difference between nuclei; pairs that hardly ever meet in a block are compared over all nuclei and
marked. Intervals come of blocks drawn again, not of nuclei. The probabilities of the model are off by
{found.calibration:.1%} on average.</p>
<p class="note">What these features cannot tell apart, a network that sees the whole image may; what they can tell apart
on one slide, another scanner may not show. A group is what the expression made of it: groups that hold wrongly named
cells look more alike than the types do. {len(found.pairs)} pairs were looked at; single ones are
corrected for that (Holm). Recalls of merged classes are a little too good, as the same nuclei chose the merges.</p>
<p class="note">stqp {__version__}</p></body></html>
"""


def _class_row(found: Separability, i: int) -> str:
    p, m = found.proposed[i], found.merging.classes[i]
    r, g, b = found.taxonomy.colors[p.name]
    mark = ""
    if len(p.lineages) > 1:
        mark = f'<br><b style="color:#b00">joins {html.escape(" and ".join(p.lineages))}</b>'
    nuclei = sum(found.groups[x].nuclei for x in m.members)
    members = ", ".join(html.escape(found.groups[x].name) for x in m.members)
    precision = "–" if m.precision_found != m.precision_found else f"{m.precision_found:.0%}"
    return (
        f'<tr><td style="min-width:9em"><span class="swatch" style="background:rgb({r},{g},{b})"></span>{html.escape(p.name)}{mark}</td>'
        f'<td>{members}</td><td class="n">{nuclei:,}</td><td class="n">{interval(m.recall, True)}</td>'
        f'<td class="n">{m.recall_found:.0%}</td><td class="n">{precision}</td></tr>'
    )


def _doubtful(found: Separability) -> str:
    """Table of the pairs of one lineage, and of those that are not told apart, by falling likeness."""
    rows = []
    for p in sorted(found.pairs, key=lambda p: p.auc.value):
        a, b = found.groups[p.a], found.groups[p.b]
        if p.verdict == "told apart":
            continue
        cells = [html.escape(a.name), html.escape(b.name), interval(p.auc), p.verdict,
                 "may be chance" if p.chance else "more than chance",
                 "over all nuclei" if p.apart else "side by side"]  # fmt: skip
        color = "" if lineage_of(a) == lineage_of(b) else ' style="color:#b00"'
        rows.append(f"<tr{color}>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    if not rows:
        return "<p>All pairs are told apart.</p>"
    head = "<tr><th>Group</th><th>and</th><th>AUC</th><th></th><th></th><th>compared</th></tr>"
    return (
        f"<details><summary>{len(rows)} pairs that are not told apart for sure (red: of different visual "
        f"classes)</summary><table>{head}{''.join(rows)}</table></details>"
    )
