"""Is this the alignment of this slide? The slide's pixel size, its bounds and its stain are asked, in this order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp.alignment.matrix import IDENTITY, SCALE_TOLERANCE, Alignment
from stqp.alignment.quality import AlignmentQuality, measure
from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.slides import Slide

Floats = NDArray[np.float64]

DIRECTIONS = ("he-to-morphology", "morphology-to-he", "auto")
FEW_INSIDE = 0.5  # share of the nuclei on the slide below which a person is told
_CLEARLY = 0.9  # share of the nuclei that a likely remedy puts on the slide
_FIELDS = 16  # enough to tell a relation from none
_LEVELS = (2, 4, 8, 16, 32, 64)
_WITH_RELATION = ("good", "fair", "shifted", "deformed")


def settle_direction(
    aligned: Alignment, direction: str, pixel_size: float, slide: Slide, nuclei_um: Polygons
) -> tuple[Alignment, str]:
    """The alignment from H&E to morphology pixels, and which evidence chose its direction.

    Parameters
    ----------
    aligned
        As read.
    direction
        One of `DIRECTIONS`: what the matrix maps. Keypoints name their columns, and are never turned round.
    pixel_size
        µm per pixel of the morphology image.
    slide
        The H&E.
    nuclei_um
        Nuclei in the run's µm.

    Raises
    ------
    UsageError
        For a direction that contradicts the kind of alignment.
    """
    if direction == DIRECTIONS[0] or aligned.source == IDENTITY:
        return aligned, ""
    if aligned.keypoints is not None:
        if direction == "auto":
            return aligned, ""
        raise UsageError(f"the keypoints {aligned.source} name their columns; leave out --alignment-direction")
    turned = aligned.inverse()
    if direction == DIRECTIONS[1]:
        return turned, ""
    choices = {DIRECTIONS[0]: aligned, DIRECTIONS[1]: turned}
    if slide.mpp is not None:
        fits = [d for d, a in choices.items() if abs(a.scale * pixel_size / slide.mpp - 1) <= SCALE_TOLERANCE]
        if len(fits) == 1:
            return choices[fits[0]], f"{fits[0]}, by the slide's pixel size"
    shares = {d: share_inside(nuclei_um.transform(a.um_to_he(pixel_size)), slide) for d, a in choices.items()}
    if max(shares.values()) > 2 * min(shares.values()):
        best = max(shares, key=lambda d: shares[d])
        return choices[best], f"{best}, by the slide's bounds"
    stained = {d: _relation(nuclei_um.transform(a.um_to_he(pixel_size)), slide, a, pixel_size)
               for d, a in choices.items()}  # fmt: skip
    best = max(stained, key=lambda d: stained[d])
    return choices[best], f"{best}, by the stain"


def _relation(polygons: Polygons, slide: Slide, aligned: Alignment, pixel_size: float) -> float:
    """Share of a few fields in which nuclei and stain belong together."""
    fields = measure(slide, polygons, slide.mpp or aligned.scale * pixel_size, _FIELDS).fields
    return float(fields.trusted.mean()) if len(fields) else 0.0


def share_inside(polygons: Polygons, slide: Slide) -> float:
    """Share of the nuclei whose centre is on the slide."""
    center = polygons.centroid()
    with np.errstate(invalid="ignore"):
        inside = ((center >= 0) & (center < np.array([slide.width, slide.height]))).all(axis=1)
    return float(inside.mean()) if len(center) else 0.0


def check_bounds(aligned: Alignment, pixel_size: float, slide: Slide, nuclei_um: Polygons) -> str:
    """Hold the nuclei against the bounds of the slide.

    Returns
    -------
    str
        A warning when few nuclei lie on it, else empty.

    Raises
    ------
    InputError
        When none does; the message names what would put them there.
    """
    polygons = nuclei_um.transform(aligned.um_to_he(pixel_size))
    share = share_inside(polygons, slide)
    if share >= FEW_INSIDE:
        return ""
    remedies = [
        name
        for name, moved in _remedies(aligned, pixel_size, slide, nuclei_um, polygons)
        if share_inside(moved, slide) >= _CLEARLY
    ]
    likely = f"likely {remedies[0]}" if remedies else "likely it is of another image"
    (x0, y0), (x1, y1) = np.nanmin(polygons.coords, axis=0), np.nanmax(polygons.coords, axis=0)
    where = f"x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} px"
    of = f"{slide.path} ({slide.width} x {slide.height} px)"
    if share == 0:
        raise InputError(
            f"all {len(polygons)} nuclei lie outside of {of}: the alignment {aligned.source} puts them at {where}; "
            f"{likely}"
        )
    hint = f"; {likely}" if remedies else ""
    return f"only {share:.0%} of the nuclei lie on {of}: the alignment {aligned.source} puts them at {where}{hint}"


def check_stain(
    quality: AlignmentQuality, aligned: Alignment, pixel_size: float, slide: Slide, mpp: float, nuclei_um: Polygons
) -> str:
    """Look for the reason when nuclei and stain have no relation.

    Returns
    -------
    str
        A warning when no reason was found, or nuclei lie off the stain; else empty.

    Raises
    ------
    InputError
        When another reading of the alignment puts the nuclei on the stain; the message names it.
    """
    if quality.verdict != "unrelated":
        return f"alignment {quality.text()}" if quality.is_bad else ""
    polygons = nuclei_um.transform(aligned.um_to_he(pixel_size))
    for name, moved in _remedies(aligned, pixel_size, slide, nuclei_um, polygons):
        if share_inside(moved, slide) >= FEW_INSIDE and measure(slide, moved, mpp, _FIELDS).verdict in _WITH_RELATION:
            raise InputError(
                f"with the alignment {aligned.source} the nuclei have no relation to the haematoxylin of {slide.path}; "
                f"likely {name}, for so they lie on it"
            )
    return f"alignment: {quality.text()} ({Path(slide.path).name} with {aligned.source})"


def _remedies(
    aligned: Alignment, pixel_size: float, slide: Slide, nuclei_um: Polygons, polygons: Polygons
) -> Iterator[tuple[str, Polygons]]:
    """Other readings of an alignment, in words, and where they put the nuclei."""
    if aligned.keypoints is None and aligned.source != IDENTITY:
        yield (
            "the matrix is inverted (--alignment-direction morphology-to-he)",
            nuclei_um.transform(aligned.inverse().um_to_he(pixel_size)),
        )
    width, height = slide.width, slide.height
    for name, matrix in {
        "the slide is mirrored left to right": [[-1, 0, width], [0, 1, 0], [0, 0, 1]],
        "the slide is mirrored top to bottom": [[1, 0, 0], [0, -1, height], [0, 0, 1]],
        "the slide is turned by 180 degrees": [[-1, 0, width], [0, -1, height], [0, 0, 1]],
        "the columns x and y are swapped": [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
    }.items():
        yield name, polygons.transform(matrix)
    for level in _LEVELS:
        word = f"the alignment was made on a level of the pyramid whose pixels are {level} times as large"
        yield word, polygons.scale(level)
