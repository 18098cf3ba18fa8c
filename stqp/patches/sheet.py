"""A contact sheet of patches: outlines in the colours of the classes, what is masked dimmed and hatched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError
from stqp.patches.store import FULL, SIDES, UNKNOWN_TYPE, PatchFile
from stqp.slides import RGBImage
from stqp.taxonomy import RGB, UNKNOWN, UNKNOWN_COLOR, color_of

_GAP, _BAR, _INK = 10, 26, (40, 40, 40)
_NARROWEST = 480  # px of a sheet, so that its legend has room


def class_colors(patches: PatchFile) -> dict[str, RGB]:
    """Colours of the classes of a file, Unknown last."""
    return {**{name: color_of(name) for name in patches.classes}, UNKNOWN: UNKNOWN_COLOR}


def chosen(patches: PatchFile, number: int, side: str | None = None, seed: int = 0) -> list[int]:
    """Patches for a sheet: of all classes, the rarest first, then any.

    Parameters
    ----------
    patches
        The file.
    number
        How many, at most.
    side : {"training", "validation", "test"}, optional
        Of which side.
    seed
        Of the choice.

    Raises
    ------
    UsageError
        When there is no such side.
    InputError
        When there are no patches.
    """
    if side is not None and side not in SIDES:
        raise UsageError(f"there is no side {side!r}; choose one of {', '.join(SIDES)}")
    rows = np.arange(len(patches)) if side is None else np.flatnonzero(patches.side == SIDES.index(side))
    if not len(rows):
        raise InputError(f"there are no patches{f' for {side}' if side else ''} in {patches.path}")
    rows = np.random.default_rng(seed).permutation(rows)
    counts = patches.counts[rows][:, 1:]
    order: list[int] = []
    for name in np.argsort(counts.sum(axis=0), kind="stable").tolist():
        best = np.argsort(-counts[:, name], kind="stable")[: max(1, number // max(1, 2 * counts.shape[1]))]
        order += [int(i) for i in best if counts[i, name] and i not in order]
    order += [i for i in range(len(rows)) if i not in set(order)][: max(0, number - len(order))]
    return sorted(rows[order[:number]].tolist())


def outlined(patch: Mapping[str, NDArray[Any]], classes: Sequence[str], scale: int = 1) -> RGBImage:
    """A patch with the outlines of its nuclei; a nucleus whose label counts less has a thinner one.

    Parameters
    ----------
    patch
        As `PatchFile.read` gives it.
    classes
        Names of the classes.
    scale
        Pixels of the picture per px of the patch.

    Returns
    -------
    uint8 (P * scale, P * scale, 3)
    """

    def large(array: NDArray[Any]) -> NDArray[Any]:
        return array.repeat(scale, axis=0).repeat(scale, axis=1)

    image = large(patch["images"]).astype(np.uint8)
    masked = large(patch["valid"]) == 0
    rows, columns = np.indices(masked.shape)
    image[masked] = image[masked] // 3 + 150
    image[masked & ((rows + columns) // 2 % 8 == 0)] = (120, 120, 120)
    nuclei, types, weight = (large(patch[name]) for name in ("instances", "types", "weight"))
    full = (weight >= FULL // 2) | (types == UNKNOWN_TYPE)
    ring = np.zeros(nuclei.shape, bool)
    for width in range(scale + 1):
        inside = (nuclei > 0) & ~ring
        ring |= _rim(nuclei, inside if width < scale else inside & full)
    table = np.full((256, 3), UNKNOWN_COLOR, np.uint8)
    for number, name in enumerate(classes, start=1):
        table[number] = color_of(name)
    table[UNKNOWN_TYPE] = UNKNOWN_COLOR
    image[ring] = table[types[ring]]
    return image


def _rim(nuclei: NDArray[Any], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a set that touch, by an edge, one of another nucleus or outside of the set."""
    shown = np.where(inside, nuclei, 0)
    framed = np.pad(shown, 1, mode="edge")
    middle = framed[1:-1, 1:-1]
    rim = np.zeros(nuclei.shape, bool)
    for neighbour in (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]):
        rim |= neighbour != middle
    return rim & inside


def contact_sheet(patches: PatchFile, rows: Sequence[int], columns: int | None = None) -> RGBImage:
    """Draw patches beside each other, the name and side of each above it, a legend of the classes below.

    Parameters
    ----------
    patches
        The file.
    rows
        Which of its patches.
    columns
        How many beside each other.

    Returns
    -------
    uint8 (height, width, 3)
    """
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    columns = min(columns or max(1, round(len(rows) ** 0.5 * 1.2)), len(rows))
    scale = 2 if patches.size <= 300 else 1
    side = patches.size * scale
    lines = -(-len(rows) // columns)
    width = max(columns * (side + _GAP) + _GAP, _NARROWEST)
    legend = _legend(class_colors(patches), patches.counts[list(rows)].sum(axis=0), width)
    sheet = np.full((lines * (side + _BAR) + _GAP + legend.shape[0], width, 3), 255, np.uint8)
    for place, row in enumerate(rows):
        top, left = place // columns * (side + _BAR) + _BAR, place % columns * (side + _GAP) + _GAP
        sheet[top : top + side, left : left + side] = outlined(patches.read(row), patches.classes, scale)
        entry = patches.sources[patches.source[row]]["entry"]
        x, y = patches.origin[row]
        title = _short(f"{row}  {SIDES[patches.side[row]]}  {entry} at {x:.0f}, {y:.0f}", side, font)
        cv2.putText(sheet, title, (left, top - 8), font, 0.42, _INK, 1, cv2.LINE_AA)
    sheet[-legend.shape[0] :] = legend
    return sheet


def _short(text: str, width: int, font: int) -> str:
    import cv2

    text = text.encode("ascii", "replace").decode()  # OpenCV has no other letters
    while len(text) > 4 and cv2.getTextSize(text, font, 0.42, 1)[0][0] > width:
        text = text[:-4] + "..."
    return text


def _legend(colors: Mapping[str, RGB], counts: NDArray[np.integer], width: int) -> RGBImage:
    """Classes with their colours and their numbers of nuclei, in as many lines as they need."""
    import cv2

    font, places = cv2.FONT_HERSHEY_SIMPLEX, []
    left, line = _GAP, 0
    numbers = [*counts[1:].tolist(), int(counts[0])]
    words = [*zip(colors, colors.values(), numbers, strict=True), ("masked", None, None)]
    for name, color, number in words:
        text = str(name) if number is None else f"{name} {number:,}"
        text = text.encode("ascii", "replace").decode()
        length = 22 + cv2.getTextSize(text, font, 0.5, 1)[0][0] + 24
        if left > _GAP and left + length > width:
            left, line = _GAP, line + 1
        places.append((left, line, text, color))
        left += length
    image = np.full((26 * (line + 1) + 6, width, 3), 255, np.uint8)
    for left, line, text, color in places:
        base = 26 * line + 20
        if color is None:
            cv2.rectangle(image, (left, base - 12), (left + 13, base + 1), (200, 200, 200), -1)
            for shift in (0, 7):
                cv2.line(image, (left, base + 1 - shift), (left + 13 - shift, base - 12), (120, 120, 120), 1)
        else:
            cv2.rectangle(image, (left, base - 12), (left + 13, base + 1), color, -1)
        cv2.putText(image, text, (left + 20, base), font, 0.5, _INK, 1, cv2.LINE_AA)
    return image
