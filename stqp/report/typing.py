"""What typing found, for people: one page with the classes, the map, the clusters, the doubt and the tumour."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stqp.report.page import (
    Html,
    captioned,
    facts,
    figure,
    grid,
    legend,
    page,
    paragraph,
    picture,
    section,
    swatch,
    table,
)
from stqp.slides import RGBImage
from stqp.taxonomy import RGB, UNKNOWN, color_of

if TYPE_CHECKING:
    from stqp.celltyping.result import Typing

MAP_SIDE = 720  # px
_GENES = 10
_STYLE = Html(
    "<style>.wide{overflow-x:auto}.bar{display:inline-block;height:.7em;vertical-align:-.02em;margin-right:.3em}"
    "details summary{cursor:pointer;color:#555}details table{font-size:.88em}"
    "td>span{white-space:nowrap}td>span.genes,td>span.why{white-space:normal;display:inline-block}"
    ".genes{font-size:.9em;max-width:16em}.why{max-width:20em}</style>"
)
_MEANING = {
    "stqp": "the share of cells with this score that get the right class, measured on simulated cells of this slide, "
    "times how often clusters named by such a margin are named right",
    "paper": "the share of its cluster's votes that went to its class; not calibrated",
    "reference": "the model's probability of the type",
    "labels": "what the labels say; 1 where they say nothing",
}


def typing_html(typed: Typing, spatial: Any = None, title: str = "") -> str:
    """Make the page of a typing.

    Parameters
    ----------
    typed
        What came out.
    spatial : float64 (n, 2), optional
        Places of its cells, x and y with y down.
    title
        Name of the sample.
    """
    summary = typed.summary
    colors = _class_colors(typed)
    parameters = summary.get("parameters", {})
    method = str(parameters.get("method", ""))
    return page(
        f"Types of cells: {title}" if title else "Types of cells",
        _STYLE,
        section("Classes", _classes(typed, colors), _map(typed, spatial, colors)),
        section("Why cells are Unknown", _reasons(summary.get("unknown", {}))),
        section("Clusters", _clusters(typed, colors)),
        section("Is there a tumour?", _tumour(summary.get("neoplastic", {}))),
        section("How sure is a label?", _confidence(typed, method, summary.get("confidence", {}))),
        section("How it was done", facts(_parameters(summary)), *map(paragraph, summary.get("notes", []))),
    )


def _class_colors(typed: Typing) -> dict[str, RGB]:
    own = typed.summary.get("taxonomy", {}).get("colors", {})
    return {n: tuple(own[n]) if n in own else color_of(n) for n in typed.class_counts()}


def _classes(typed: Typing, colors: dict[str, RGB]) -> Html:
    rows = []
    for name, number in typed.class_counts().items():
        sure = typed.confidence[typed.classes == name]
        share = Html(f"{number / max(1, len(typed.classes)):.1%}")
        mean = Html("–" if name == UNKNOWN else f"{float(sure.mean()):.2f}")
        rows.append([swatch(name, colors[name]), number, share, mean])
    return table(["class", "cells", "share", "mean confidence"], rows)


def _map(typed: Typing, spatial: Any, colors: dict[str, RGB]) -> Html:
    if spatial is None or not len(typed.classes):
        return Html("")
    places = np.asarray(spatial, np.float64)[:, :2]
    of_class = np.array([colors[c] for c in typed.classes.tolist()], np.uint8)
    k = int(typed.cluster.max(initial=-1)) + 1
    of_cluster = np.array([*cluster_colors(k), color_of(UNKNOWN)], np.uint8)[typed.cluster]
    images = [
        captioned(picture(draw_cells(places, of_class), "map of the cells by class", None), "By class"),
        captioned(picture(draw_cells(places, of_cluster), "map of the cells by cluster", None), "By cluster"),
    ]
    return Html(legend(colors) + grid(images))


def cluster_colors(k: int) -> list[RGB]:
    """Colours that differ for many clusters."""
    import colorsys

    result = []
    for i in range(k):
        r, g, b = colorsys.hls_to_rgb((i * 0.618034) % 1, (0.42, 0.58, 0.34)[i % 3], 0.7)
        result.append((round(r * 255), round(g * 255), round(b * 255)))
    return result


def draw_cells(places: NDArray[np.float64], colors: NDArray[np.uint8], side: int = MAP_SIDE) -> RGBImage:
    """Draw cells as squares of their colours, as large as there is room for.

    Parameters
    ----------
    places : float64 (n, 2)
        x and y, y down; cells whose place is no number are left out.
    colors : uint8 (n, 3)
    side
        Longer side of the picture in px.
    """
    good = np.isfinite(places).all(axis=1)
    places, colors = places[good], colors[good]
    if not len(places):
        return np.full((1, 1, 3), 255, np.uint8)
    low, extent = places.min(axis=0), np.maximum(np.ptp(places, axis=0), 1e-9)
    scale = (side - 8) / extent.max()
    width, height = (np.ceil(extent * scale).astype(int) + 8).tolist()
    dot = int(np.clip(round(0.7 * np.sqrt(width * height / len(places))), 1, 6))
    image = np.full((height, width, 3), 255, np.uint8)
    x, y = ((places - low) * scale + 1).astype(int).T
    for dx in range(dot):
        for dy in range(dot):
            image[np.minimum(y + dy, height - 1), np.minimum(x + dx, width - 1)] = colors
    return image


def _reasons(reasons: dict[str, int]) -> Html:
    return table(["reason", "cells"], [[reason, number] for reason, number in reasons.items() if number])


def _clusters(typed: Typing, colors: dict[str, RGB]) -> Html:
    rows = []
    shown = {c["decision"] for c in typed.clusters}
    palette = {**{name: color_of(name) for name in shown}, **colors}
    names = list(dict.fromkeys(n for c in typed.clusters for n in c.get("votes", {})))
    palette = {**{name: color_of(name) for name in names}, **palette}
    ids = cluster_colors(len(typed.clusters))
    for c in typed.clusters:
        why = Html(f'<span class="why">{html.escape(c["why"])}</span>')
        row = [swatch(str(c["cluster"]), ids[c["cluster"]]), c["cells"], swatch(c["decision"], palette[c["decision"]])]
        margin = Html("–" if c.get("margin") is None else f"{c['margin']:.2f}")
        rows.append([*row, c.get("fine_type"), why, _votes(c, palette), margin, _genes(c)])
    header = ["cluster", "cells", "decision", "fine type", "why", "votes", "margin", "top genes"]
    note = paragraph(
        "Votes are measured against what the panel offers each class; the margin is the distance of the best to the "
        "second as a share of the best. Of a gene: its log2 fold change, adjusted p, and the share of cells with it "
        "inside and outside of the cluster.",
        note=True,
    )
    return Html(f'<div class="wide">{table(header, rows)}</div>{note}' if rows else "")


def _votes(c: dict[str, Any], palette: dict[str, RGB]) -> Html:
    votes = {**c.get("votes", {}), **c.get("votes_without_class", {})}
    most = max(votes.values(), default=0.0)
    if not most > 0:
        return Html("–")
    lines = []
    for name, vote in sorted(votes.items(), key=lambda item: -item[1]):
        if vote > 0:
            r, g, b = palette.get(name, color_of(UNKNOWN))
            style = f"width:{5 * vote / most:.2f}em;background:rgb({r},{g},{b})"
            lines.append(f'<span><span class="bar" style="{style}"></span>{html.escape(name)} {vote:.3g}</span>')
    return Html("<br>".join(lines[:5]))


def _genes(c: dict[str, Any]) -> Html:
    genes = c.get("top_genes", [])
    if not genes:
        return Html("–")
    first = html.escape(", ".join(g["gene"] for g in genes[:_GENES]))
    rows = [
        [g["gene"], Html(f"{g['log2_fold']:+.2f}"), Html(f"{g['p_adjusted']:.1g}"),
         Html(f"{g['inside']:.0%}"), Html(f"{g['outside']:.0%}")]
        for g in genes
    ]  # fmt: skip
    numbers = table(["gene", "log2 fold", "adjusted p", "inside", "outside"], rows)
    types = facts((name, Html(f"{weight:.3g}")) for name, weight in c.get("fine_types", {}).items())
    more = f"<details><summary>more</summary>{numbers}{types}</details>"
    return Html(f'<span class="genes">{first}</span>{more}')


def _tumour(found: dict[str, Any]) -> Html:
    if not found:
        return Html("")
    said = {
        "decided by": found.get("decided_by"),
        "origin": found.get("origin"),
        "clusters named as the tumour": found.get("tumour_clusters"),
        "clusters named as normal": found.get("normal_clusters"),
        "cells in the tumour region": found.get("tumour_cells"),
        "cells in the normal region": found.get("normal_cells"),
        "tumour genes on the panel": ", ".join(found.get("tumour_genes_on_panel", [])) or None,
    }
    rows = [
        [e["cluster"], "yes" if e["neoplastic"] else "no", Html(f"{e['tumour']:+.2f}"), Html(f"{e['p']:.2g}"),
         Html(f"{e['proliferation']:+.2f}"), Html(f"{e['p_proliferation']:.2g}"), ", ".join(e["raised"]) or None,
         e["against"]]
        for e in found.get("evidence", [])
    ]  # fmt: skip
    header = ["cluster", "evidence", "tumour genes (log2)", "p", "proliferation (log2)", "p", "doubled", "against"]
    note = paragraph(
        "How much more the tumour genes are raised than genes of the same panel that are expressed as strongly, and "
        "how often chance does as well, for all clusters together.",
        note=True,
    )
    text = facts((name, _text(value)) for name, value in said.items() if value is not None)
    return Html(text + (f'<div class="wide">{table(header, rows)}</div>{note}' if rows else ""))


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _confidence(typed: Typing, method: str, found: dict[str, Any]) -> Html:
    parts = [paragraph(f"A label's confidence is {_MEANING.get(method, 'from 0 to 1')}. It is 0 for Unknown.")]
    bins = found.get("held_out", [])
    if bins:
        parts.append(figure(reliability_figure(bins, typed.confidence[typed.classes != UNKNOWN]), "reliability plot"))
        parts.append(
            paragraph(
                f"Left: held-out {found.get('of', 'simulated cells of this slide')}, "
                f"{sum(b['cells'] for b in bins):,} in all, by their score alone; the number of cells stands at each "
                "point, and on the line a confidence of 0.8 is right 8 times of 10. Expected calibration error "
                f"{found['expected_calibration_error']:.4f}.",
                note=True,
            )
        )
    elif (typed.classes != UNKNOWN).any():
        parts.append(figure(reliability_figure([], typed.confidence[typed.classes != UNKNOWN]), "confidence of labels"))
    return Html("".join(parts))


def reliability_figure(bins: list[dict[str, float]], confidence: NDArray[np.float64]) -> Any:
    """Confidence against the share that was right, with counts, beside how sure the labels are."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 4) if bins else (4.6, 3.6), layout="constrained")
    axes = list(drawn.subplots(1, 2, squeeze=False)[0]) if bins else [drawn.subplots()]
    if bins:
        plot = axes[0]
        plot.plot([0, 1], [0, 1], color="#aaa", linewidth=1)
        x, y = [b["confidence"] for b in bins], [b["right"] for b in bins]
        plot.plot(x, y, "o-", color="#1f5fa8", markersize=5)
        for b in bins:
            where = (-6, 6) if b["confidence"] > 0.5 else (6, -12)
            plot.annotate(
                f"{b['cells']:,}", (b["confidence"], b["right"]), xytext=where, textcoords="offset points", fontsize=8,
                ha="right" if where[0] < 0 else "left",
            )  # fmt: skip
        plot.set(xlim=(0, 1.02), ylim=(0, 1.05), xlabel="confidence", ylabel="share that is right")
        plot.set_title("Held-out truth", fontsize=10)
    plot = axes[-1]
    plot.hist(confidence, bins=[i / 20 for i in range(21)], color="#7a9cc6")
    plot.set(xlim=(0, 1), xlabel="Label confidence", ylabel="cells with a class")
    plot.set_title("Labels of this sample", fontsize=10)
    return drawn


def _parameters(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    rows = [(k, v) for k, v in summary.get("parameters", {}).items() if not isinstance(v, dict) and v is not None]
    rows += [(f"gate: {k}", Html(f"{v:g}")) for k, v in summary.get("parameters", {}).get("gates", {}).items()]
    if summary.get("offers"):
        rows.append(("markers on the panel", ", ".join(f"{n}: {v}" for n, v in summary["offers"].items())))
    if "leaked_share" in summary:
        rows.append(("counts that leaked in from neighbours", Html(f"{summary['leaked_share']:.1%}")))
    if "cells_moved" in summary:
        rows.append(("cells that left the class of their first cluster", summary["cells_moved"]))
    return rows
