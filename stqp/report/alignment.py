"""How well nuclei lie on their slide, as a map and as one HTML file that needs nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.alignment.fields import FIELD_UM
from stqp.alignment.quality import DEFORMED_UM, FAIR_UM, GOOD_UM, STAINED, AlignmentQuality
from stqp.polygons import Polygons
from stqp.report import page
from stqp.slides import RGBImage, Slide
from stqp.taxonomy import RGB

WORST = 6  # fields that are shown at full resolution
CROP_UM = 80.0
_MAP_SIDE = 1400
_LEGEND = 64
_ARROW = 0.25  # length, in sides of a field, of the arrow of `FAIR_UM`
_INK, _PAPER, _GRAY = (30, 30, 30), (255, 255, 255), (140, 140, 140)
_GREEN, _YELLOW, _RED = (34, 139, 60), (224, 168, 0), (200, 30, 40)
_HERE, _THERE = (0, 200, 255), (255, 214, 10)
_WHERE = f"""Each square is a field of {FIELD_UM:g} µm. An arrow points from the stain to where the nuclei lie, much
longer than it is on the slide; its length is given below the map. A cross marks a field whose best shift is not
clear, as where there is little stain or few nuclei."""
_FIELDS = """The middle of the fields that are farthest off, at full resolution. Cyan: the outlines as they lie. Thin
yellow: where the haematoxylin would have them."""
_HOW = f"""The slide is read at 0.5 µm per pixel and haematoxylin is told from eosin by optical density. In each field,
the stain under the outlines is held against the stain around them for all shifts up to 20 µm; the best one is believed
when it stands out of the noise and no other comes near it. Good is up to {GOOD_UM:g} µm, fair up to {FAIR_UM:g} µm,
deformed where half of the fields differ from the whole by more than {DEFORMED_UM:g} µm. A nucleus has stain under it
when it is darker than the ring of 1 to 3 µm around it by {STAINED:g} of the slide's range of haematoxylin."""


def color_of_shift(um: float) -> RGB:
    """Green where good, over yellow to red where a nucleus is missed."""
    if um <= GOOD_UM:
        return _GREEN
    return _YELLOW if um <= FAIR_UM else _RED


def draw_map(slide: Slide, quality: AlignmentQuality, mpp: float) -> RGBImage:
    """Draw the fields over the slide: their colour is the distance of the nuclei from the stain, arrows its way.

    Parameters
    ----------
    slide
        The H&E.
    quality
        As measured.
    mpp
        µm per px of the slide.

    Returns
    -------
    uint8 (height, width, 3)
    """
    import cv2

    fields = quality.fields
    thumbnail = slide.thumbnail(_MAP_SIDE, _MAP_SIDE)
    scale = thumbnail.shape[1] / slide.width
    # a small slide is drawn larger, or letters would not fit
    zoom = max(1.0, 700 / thumbnail.shape[1])
    size = round(thumbnail.shape[1] * zoom), round(thumbnail.shape[0] * zoom)
    scale *= zoom
    pale = cv2.addWeighted(cv2.resize(thumbnail, size), 0.7, np.full((size[1], size[0], 3), 255, np.uint8), 0.3, 0)
    tint = pale.copy()
    side = FIELD_UM / mpp * scale
    offsets, trusted = -fields.shift, fields.trusted
    boxes = []
    for center, offset, known in zip(fields.centers, offsets, trusted, strict=True):
        # fields lie on a grid from the slide's corner
        x, y = np.floor(center / (FIELD_UM / mpp)) * side
        color = color_of_shift(float(np.hypot(*offset))) if known else _GRAY
        corners = (round(x) + 1, round(y) + 1), (round(x + side) - 1, round(y + side) - 1)
        boxes.append((corners, color))
        cv2.rectangle(tint, *corners, color, -1)
    image = cv2.addWeighted(tint, 0.3, pale, 0.7, 0)
    thick = max(1, round(side / 60))
    for corners, color in boxes:
        cv2.rectangle(image, *corners, color, 1, cv2.LINE_AA)
    factor = _ARROW * side / FAIR_UM
    for center, offset, known in zip(fields.centers, offsets, trusted, strict=True):
        start = (np.floor(center / (FIELD_UM / mpp)) + 0.5) * side
        if not known:
            arm = side * 0.12
            for sign in (1, -1):
                half = np.array([arm, sign * arm])
                cv2.line(image, _point(start - half), _point(start + half), _GRAY, thick, cv2.LINE_AA)
            continue
        way = offset * factor
        way *= min(1.0, side / max(float(np.hypot(*way)), 1e-9))
        if np.hypot(*way) < 2 * thick + 2:
            cv2.circle(image, _point(start), thick + 1, _INK, -1, cv2.LINE_AA)
        else:
            cv2.arrowedLine(image, _point(start), _point(start + way), _INK, thick, cv2.LINE_AA, tipLength=0.3)
    return _with_legend(image, scale, mpp, factor)


def _point(place: NDArray[np.float64]) -> tuple[int, int]:
    return round(float(place[0])), round(float(place[1]))


def _with_legend(image: RGBImage, scale: float, mpp: float, factor: float) -> RGBImage:
    """Add a bar with the scale, the colours, and what an arrow's length means."""
    import cv2

    height, width = image.shape[:2]
    canvas = np.full((height + _LEGEND, width, 3), 255, np.uint8)
    canvas[:height] = image
    font, y = cv2.FONT_HERSHEY_SIMPLEX, height + 22
    bar_um = _round_length(0.2 * width / scale * mpp)
    length = round(bar_um / mpp * scale)
    cv2.rectangle(canvas, (10, y - 6), (10 + length, y), _INK, -1)
    label = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um:g} um"
    cv2.putText(canvas, label, (16 + length, y), font, 0.45, _INK, 1, cv2.LINE_AA)
    x = 40 + length + cv2.getTextSize(label, font, 0.45, 1)[0][0]
    arrow = round(FAIR_UM * factor)
    cv2.arrowedLine(canvas, (x, y - 4), (x + arrow, y - 4), _INK, 2, cv2.LINE_AA, tipLength=0.3)
    cv2.putText(
        canvas, f"nuclei lie {FAIR_UM:g} um off the stain", (x + arrow + 8, y), font, 0.45, _INK, 1, cv2.LINE_AA
    )
    x, y = 10, height + 50
    words = [(_GREEN, f"up to {GOOD_UM:g} um"), (_YELLOW, f"up to {FAIR_UM:g} um"), (_RED, "more")]
    for color, word in [*words, (_GRAY, "no clear best shift")]:
        cv2.rectangle(canvas, (x, y - 11), (x + 12, y + 1), color, -1)
        cv2.putText(canvas, word, (x + 18, y), font, 0.45, _INK, 1, cv2.LINE_AA)
        x += 18 + cv2.getTextSize(word, font, 0.45, 1)[0][0] + 20
    return canvas


def _round_length(um: float) -> float:
    power = 10.0 ** math.floor(math.log10(max(um, 1e-3)))
    return max(step * power for step in (1, 2, 5) if step * power <= um * (1 + 1e-9))


def worst_fields(quality: AlignmentQuality, most: int = WORST) -> list[int]:
    """Fields to look at: those farthest from the stain, then those without a clear best shift, no two alike."""
    far = np.hypot(*quality.fields.shift.T)
    trusted = quality.fields.trusted
    order = np.lexsort((-far, ~trusted)).tolist()
    unclear = [i for i in order if not trusted[i]]
    known = [i for i in order if trusted[i]]
    kept = min(len(unclear), max(most // 3, most - len(known)))
    return known[: most - kept] + unclear[:kept]


def draw_field(slide: Slide, polygons: Polygons, quality: AlignmentQuality, field: int, mpp: float) -> RGBImage:
    """Draw the middle of a field at full resolution: outlines as they lie, and thin where the stain would have them.

    Parameters
    ----------
    slide, polygons, mpp
        The H&E, the nuclei in its px, its µm per px.
    quality
        As measured.
    field
        Position in `quality.fields`.
    """
    import cv2

    center = quality.fields.centers[field]
    half = CROP_UM / 2 / mpp
    zoom = max(1, round(480 / (2 * half)))
    size = (round(2 * half), round(2 * half))
    left, top = np.round(center - half)
    image = np.ascontiguousarray(slide.read(left, top, size))
    image = cv2.resize(image, (size[0] * zoom, size[1] * zoom), interpolation=cv2.INTER_CUBIC)
    bounds = polygons.bounds()
    reach = 25 / mpp
    with np.errstate(invalid="ignore"):
        near = (bounds[:, 2] > left - reach) & (bounds[:, 0] < left + size[0] + reach)
        near &= (bounds[:, 3] > top - reach) & (bounds[:, 1] < top + size[1] + reach)
    here = polygons.take(np.flatnonzero(near)).shift(-left, -top)
    if quality.fields.trusted[field]:
        x, y = quality.fields.shift[field] / mpp
        _outlines(image, here.shift(x, y).scale(zoom), _THERE, 1)
    _outlines(image, here.scale(zoom), _HERE, 2)
    bar = round(10 / mpp * zoom)
    bottom = image.shape[0] - 12
    cv2.rectangle(image, (8, bottom - 22), (bar + 70, bottom + 8), _PAPER, -1)
    cv2.rectangle(image, (14, bottom - 5), (14 + bar, bottom), _INK, -1)
    cv2.putText(image, "10 um", (20 + bar, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
    return np.asarray(image, dtype=np.uint8)


def _outlines(image: RGBImage, polygons: Polygons, color: RGB, width: int) -> None:
    import cv2

    points = np.round((polygons.coords - 0.5) * 16).astype(np.int32)
    rings = [points[a:b] for a, b in zip(polygons.ring_offsets[:-1], polygons.ring_offsets[1:], strict=True)]
    cv2.polylines(image, rings, True, color, width, cv2.LINE_AA, shift=4)


def alignment_html(
    slide: Slide, polygons: Polygons, quality: AlignmentQuality, mpp: float, title: str, picture: RGBImage
) -> str:
    """Make one HTML page with everything in it.

    Parameters
    ----------
    slide, polygons, mpp
        The H&E, the nuclei in its px, its µm per px.
    quality
        As measured.
    title
        Name of the image.
    picture
        From `draw_map`.
    """
    fields = quality.fields
    trusted = int(fields.trusted.sum())
    colors = {"good": _GREEN, "fair": _YELLOW, "unknown": _GRAY}
    looked = int(np.isfinite(quality.contrast).sum())
    rows = [
        ("Verdict", quality.text()),
        ("Nuclei off the stain", f"{_um(quality.distance)} (x {_um(quality.offset[0])}, y {_um(quality.offset[1])})"),
        ("Fields differ from it by", f"{_um(quality.spread)}; {_um(quality.affine_residual)} after an affine fit"),
        ("Nuclei with stain under them", f"{quality.stained:.1%} of the {looked:,} looked at" if looked else "-"),
        ("Fields", f"{len(fields):,} of {quality.eligible:,} looked at, {trusted:,} with a clear best shift"),
        ("Slide", f"{slide.path.name}, {slide.width} x {slide.height} px at {mpp:.4g} µm"),
    ]
    shown = []
    for i in worst_fields(quality):
        away = float(np.hypot(*fields.shift[i]))
        words = f"{away:.1f} µm off" if fields.trusted[i] else "no clear best shift"
        x, y = fields.centers[i]
        drawn = page.picture(draw_field(slide, polygons, quality, i, mpp), "a field of the slide with outlines")
        shown.append(page.captioned(drawn, f"x {x:.0f}, y {y:.0f} px: {words}, {fields.nuclei[i]} nuclei"))
    return page.page(
        f"Alignment of {title}",
        page.verdict(quality.text(), colors.get(quality.verdict, _RED)),
        page.facts(rows),
        page.section("Where", page.picture(picture, "map of the fields over the slide"), page.paragraph(_WHERE, True)),
        page.section("Fields to look at", page.grid(shown), page.paragraph(_FIELDS, True)),
        page.section("How it is measured", page.paragraph(_HOW, True)),
    )


def _um(value: float) -> str:
    return f"{value:.2f} µm" if np.isfinite(value) else "not known"


def write_alignment_report(
    folder: Path, stem: str, slide: Slide, polygons: Polygons, quality: AlignmentQuality, mpp: float, title: str
) -> dict[str, Path]:
    """Write ``<stem>_alignment.png`` and ``<stem>_alignment.html`` into a folder.

    Returns
    -------
    dict
        ``map`` and ``report``, the files written.
    """
    picture = draw_map(slide, quality, mpp)
    paths = {"map": folder / f"{stem}_alignment.png", "report": folder / f"{stem}_alignment.html"}
    files.write_bytes(paths["map"], page.png_bytes(picture))
    text = alignment_html(slide, polygons, quality, mpp, title, picture)
    files.write_bytes(paths["report"], text.encode("utf-8"))
    return paths
