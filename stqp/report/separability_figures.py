"""Pictures of what can be told apart: a heat map with its tree, and example nuclei of each group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stqp.separability.features import Features
from stqp.separability.groups import SlideNuclei, lineage_of
from stqp.separability.result import Separability
from stqp.slides import RGBImage, open_slide
from stqp.taxonomy import color_of

EXAMPLES = 6  # typical nuclei of a group, and as many at random
_SIDE_PX, _GAP, _LABEL_PX, _HEAD_PX = 112, 4, 330, 58
_SIDES_UM = (16.0, 20.0, 24.0, 32.0, 40.0, 48.0, 64.0)
_MAJOR = "major axis (µm)"


def heat_map(found: Separability) -> RGBImage:
    """Draw the AUC of all pairs: below the diagonal the value, above it the decision, beside it the tree.

    Returns
    -------
    uint8 (height, width, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    order = found.tree.order
    n = len(order)
    place = {g: i for i, g in enumerate(order)}
    matrix = np.full((n, n), np.nan)
    marks: dict[tuple[int, int], str] = {}
    for p in found.pairs:
        i, j = place[p.a], place[p.b]
        matrix[i, j] = matrix[j, i] = max(0.5, p.auc.value) if np.isfinite(p.auc.value) else np.nan
        marks[min(i, j), max(i, j)] = {"told apart": "", "not told apart": "×", "undecided": "?"}.get(p.verdict, "–")
    cell = float(np.clip(12.0 / n, 0.38, 0.62))
    names = [found.groups[g].name for g in order]
    text_in = 0.085 * max(map(len, names)) + 0.2
    width, height = cell * n + text_in + 1.6 + 1.1, cell * n + text_in + 0.9
    figure = Figure(figsize=(width, height), dpi=110)
    canvas = FigureCanvasAgg(figure)
    left, bottom = (1.6 + text_in) / width, text_in / height
    axes = figure.add_axes((left, bottom, cell * n / width, cell * n / height))
    colors = LinearSegmentedColormap.from_list("apart", ["#f7f4ef", "#c7d9e8", "#5a93c0", "#123f6d"])
    shown = axes.imshow(matrix, cmap=colors, vmin=0.5, vmax=1.0)
    size = float(np.clip(cell * 17, 6, 9))
    for (i, j), mark in marks.items():
        value = matrix[i, j]
        ink = "white" if value > 0.8 else "#222"
        if np.isfinite(value):
            axes.text(i, j, f"{value:.2f}"[1:] if value < 0.995 else "1", ha="center", va="center", fontsize=size,
                      color=ink)  # fmt: skip
        axes.text(j, i, mark, ha="center", va="center", fontsize=size + 2, color=ink)
    axes.set_xticks(range(n), names, rotation=90, fontsize=8)
    axes.set_yticks(range(n), names, fontsize=8)
    for label, g in zip(axes.get_yticklabels(), order, strict=True):
        label.set_color(tuple(v / 255 * 0.8 for v in color_of(lineage_of(found.groups[g]))))
    for label, g in zip(axes.get_xticklabels(), order, strict=True):
        label.set_color(tuple(v / 255 * 0.8 for v in color_of(lineage_of(found.groups[g]))))
    axes.tick_params(length=0)
    for merged in found.tree.classes:
        at = sorted(place[g] for g in merged.members)
        first, last = at[0] - 0.5, at[-1] + 0.5
        axes.plot([first, last, last, first, first], [first, first, last, last, first], color="#d9480f", lw=1.8)
    axes.set_title(
        f"How well two groups of nuclei can be told apart (AUC); framed: below {found.settings.least:g}, to be merged\n"
        "× not told apart   ? undecided   no mark: told apart   – not judged",
        fontsize=9, loc="left",
    )  # fmt: skip
    _tree(figure.add_axes((0.15 / width, bottom, 1.35 / width, cell * n / height)), found, place)
    bar = figure.colorbar(shown, cax=figure.add_axes((left + (cell * n + 0.25) / width, bottom, 0.16 / width,
                                                      min(2.5, cell * n) / height)))  # fmt: skip
    bar.ax.tick_params(labelsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _tree(axes: Any, found: Separability, place: dict[int, int]) -> None:
    """Draw the merges beside the rows; what the proposal merges in orange."""
    height: dict[tuple[int, ...], float] = {(g,): 0.5 for g in place}
    middle: dict[tuple[int, ...], float] = {(g,): float(i) for g, i in place.items()}
    for step in found.tree.steps:
        new = tuple(sorted(step.a + step.b))
        auc = step.auc if np.isfinite(step.auc) else 1.0
        at = max(auc, height[step.a], height[step.b])
        color = "#d9480f" if step.merged else "#888"
        a, b = middle[step.a], middle[step.b]
        axes.plot([height[step.a], at, at, height[step.b]], [a, a, b, b], color=color, lw=1.2)
        height[new], middle[new] = at, (a + b) / 2
    axes.axvline(found.settings.least, color="#d9480f", lw=0.8, ls=":")
    axes.set_xlim(1.02, 0.48)
    axes.set_ylim(len(place) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([1.0, 0.75, 0.5], ["1", ".75", ".5"], fontsize=7)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)


def choose_examples(found: Separability, seed: int, number: int = EXAMPLES) -> list[tuple[list[int], list[int]]]:
    """For each group positions of typical nuclei, each of another block where there are enough, and random ones."""
    rng = np.random.default_rng(seed)
    shifted = found.scores - found.scores.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(found.y)), found.y] - np.log(np.exp(shifted).sum(axis=1))
    result = []
    for g in range(len(found.groups)):
        rows = np.flatnonzero(found.y == g)
        best = rows[np.argsort(-own[rows], kind="stable")]
        _, first = np.unique(found.block[best], return_index=True)
        spread = [*best[np.sort(first)][:number].tolist()]
        spread += [r for r in best[: 2 * number].tolist() if r not in spread][: number - len(spread)]
        result.append((spread, rng.permutation(rows)[:number].tolist()))
    return result


def side_um(found: Separability, features: Sequence[Features]) -> float:
    """Side of the crops in µm: one for all groups, such that a large nucleus fills half of it."""
    if _MAJOR not in features[0].names:
        return 32.0
    column = features[0].names.index(_MAJOR)
    major = np.concatenate([f.values[found.row[found.slide == i], column] for i, f in enumerate(features)])
    wanted = 2 * float(np.nanpercentile(major, 90)) if np.isfinite(major).any() else 32.0
    return next((s for s in _SIDES_UM if s >= wanted), _SIDES_UM[-1])


def example_sheet(
    found: Separability, slides: Sequence[SlideNuclei], side: float, seed: int, number: int = EXAMPLES
) -> RGBImage:
    """Draw a row of example nuclei for each group, in the order of the tree; uint8 (height, width, 3)."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    examples = choose_examples(found, seed, number)
    step = _SIDE_PX + _GAP
    width = _LABEL_PX + 2 * number * step + 3 * _GAP
    sheet = Image.new("RGB", (width, _HEAD_PX + len(found.groups) * step + 8), "white")
    pen = ImageDraw.Draw(sheet)
    font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    large, small = ImageFont.truetype(str(font_file), 14), ImageFont.truetype(str(font_file), 11)
    pen.text((_LABEL_PX, 8), "most typical, as the model sees them out of fold", fill="#222", font=small)
    pen.text((_LABEL_PX + number * step + 3 * _GAP, 8), "at random", fill="#222", font=small)
    bar = _SIDE_PX * 10 / side
    pen.rectangle((8, 30, 8 + bar, 34), fill="#222")
    pen.text((14 + bar, 23), f"10 µm; each picture is {side:g} µm wide", fill="#222", font=small)
    pen.text((_LABEL_PX, 30), "cyan: the outline", fill="#555", font=small)
    opened = [open_slide(s.image, s.mpp) for s in slides]
    try:
        classes = found.class_of
        for i, g in enumerate(found.tree.order):
            top = _HEAD_PX + i * step
            group = found.groups[g]
            pen.rectangle((0, top, 5, top + _SIDE_PX - 1), fill=color_of(lineage_of(group)))
            for line, (text, font) in enumerate(
                [(w, large) for w in _wrapped(group.name, 36)]
                + [(f"{group.nuclei:,} nuclei", small), (f"→ {found.proposed[classes[g]].name}", small)]
            ):
                pen.text((14, top + 14 + 20 * line), text, fill="#222", font=font)
            typical, drawn = examples[g]
            for column, position in enumerate([*typical, *[None] * (number - len(typical)), *drawn]):
                if position is None:
                    continue
                one = int(found.slide[position])
                crop = _crop(opened[one], slides[one], int(found.row[position]), side)
                left = _LABEL_PX + column * step + (3 * _GAP if column >= number else 0)
                sheet.paste(Image.fromarray(crop), (left, top))
    finally:
        for slide in opened:
            slide.close()
    return np.asarray(sheet)


def _wrapped(text: str, length: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, length)[:2]


def _crop(slide: Any, nuclei: SlideNuclei, row: int, side: float) -> RGBImage:
    import cv2

    one = nuclei.polygons.take([row])
    x, y = one.centroid()[0]
    downsample = side / nuclei.mpp / _SIDE_PX
    left, top = x - side / nuclei.mpp / 2, y - side / nuclei.mpp / 2
    native = max(downsample, 1.0)
    size = round(side / nuclei.mpp / native)
    image = slide.read(left, top, (size, size), native)
    image = cv2.resize(image, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_CUBIC)
    points = np.round((one.shift(-left, -top).scale(1 / downsample).coords - 0.5) * 16).astype(np.int32)
    rings = [points[a:b] for a, b in zip(one.ring_offsets[:-1], one.ring_offsets[1:], strict=True)]
    cv2.polylines(image, rings, True, (0, 200, 255), 1, cv2.LINE_AA, shift=4)
    return np.asarray(image, np.uint8)


def file_names(folder: Path) -> dict[str, Path]:
    """Where everything goes."""
    return {
        "json": folder / "separability.json",
        "pairs": folder / "pairs.csv",
        "taxonomy": folder / "proposed.toml",
        "class_map": folder / "class_map.csv",
        "heat_map": folder / "heat_map.png",
        "examples": folder / "examples.png",
        "report": folder / "separability.html",
    }
