"""From an alignment to where the nuclei lie on the slide: direction, checks, quality and refinement in one go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.alignment.checks import DIRECTIONS, check_bounds, check_stain, settle_direction
from stqp.alignment.correction import Correction
from stqp.alignment.matrix import Alignment
from stqp.alignment.quality import MAX_FIELDS, AlignmentQuality, measure
from stqp.alignment.refine import LIMIT_UM, Refinement, check_refinement, refine
from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.record import RunRecord
from stqp.slides import Slide

Floats = NDArray[np.float64]

STAIN_CONTRAST = "Alignment: stain contrast"
RESIDUAL_SHIFT = "Alignment: residual shift µm"


@dataclass(frozen=True)
class Placement:
    """Where things of the run lie on the slide.

    Attributes
    ----------
    aligned : Alignment
        H&E to platform pixels; the affine part of a refinement is in it.
    mpp : float
        µm per px of the slide.
    to_he : float64 (3, 3)
        The run's µm to H&E px, before the refinement.
    correction : Correction
        Of H&E px, after `to_he`.
    quality : AlignmentQuality or None
        After the refinement; None when it was not measured.
    refinement : Refinement or None
    """

    aligned: Alignment
    mpp: float
    to_he: Floats
    correction: Correction
    quality: AlignmentQuality | None
    refinement: Refinement | None

    @property
    def refined_to_he(self) -> Floats:
        """`to_he` with the affine part of the refinement."""
        return np.asarray(self.correction.matrix @ self.to_he)

    def polygons(self, um: Polygons) -> Polygons:
        """Polygons in the run's µm, in H&E px."""
        placed = um.transform(self.to_he)
        return self.correction.apply_polygons(placed) if self.correction.moves else placed

    def points(self, um: Floats) -> Floats:
        """Points in the run's µm, (n, 2), in H&E px."""
        placed = um @ self.to_he[:2, :2].T + self.to_he[:2, 2]
        return self.correction.apply(placed) if self.correction.moves else placed

    def measurements(self) -> dict[str, Floats]:
        """Of each nucleus, by the names that they have in QuPath; empty when nothing was measured."""
        if self.quality is None:
            return {}
        both = {STAIN_CONTRAST: self.quality.contrast, RESIDUAL_SHIFT: self.quality.residual}
        return {name: values for name, values in both.items() if np.isfinite(values).any()}

    def describe(self) -> dict[str, Any]:
        """For the sample's description, so that later steps can place other things of the run alike."""
        return self.correction.to_dict() if self.correction.moves else {}


def check_options(direction: str, refine_by: str, refine_limit: float) -> None:
    """Refuse options that make no sense before the long work.

    Raises
    ------
    UsageError
        Naming what was expected.
    """
    if direction not in DIRECTIONS:
        raise UsageError(f"expected one of {', '.join(DIRECTIONS)} as direction of the alignment, found {direction!r}")
    check_refinement(refine_by, refine_limit)


def place(
    aligned: Alignment,
    pixel_size: float,
    slide: Slide,
    nuclei_um: Polygons,
    record: RunRecord,
    direction: str = "he-to-morphology",
    qc: bool = True,
    refine_by: str = "off",
    refine_limit: float = LIMIT_UM,
    max_fields: int | None = MAX_FIELDS,
) -> Placement:
    """Check an alignment against its slide, measure it, and refine it where that is asked for.

    Parameters
    ----------
    aligned
        As read.
    pixel_size
        µm per pixel of the platform's image.
    slide
        The H&E.
    nuclei_um
        Nuclei in the run's µm.
    record
        Takes counts, warnings and results.
    direction
        One of `stqp.alignment.checks.DIRECTIONS`.
    qc
        Whether to hold the nuclei against the stain; a refinement does so in any case.
    refine_by, refine_limit
        As `kind` and `limit_um` of `stqp.alignment.refine.refine`.
    max_fields
        As for `stqp.alignment.measure`.

    Raises
    ------
    InputError
        When the alignment is not that of the slide.
    UsageError
        When an option makes no sense.
    """
    check_options(direction, refine_by, refine_limit)
    aligned, spoke = settle_direction(aligned, direction, pixel_size, slide, nuclei_um)
    if spoke:
        record.count("alignment's direction", spoke)
    mpp = aligned.mpp(pixel_size, slide.mpp, slide.path)
    for warning in aligned.warnings(pixel_size):
        record.warn(warning)
    warning = check_bounds(aligned, pixel_size, slide, nuclei_um)
    if warning:
        record.warn(warning)
    if len(aligned.residuals):
        residuals = aligned.residuals * pixel_size
        record.count("keypoints", len(residuals))
        record.count("keypoint residual, µm", f"{np.sqrt((residuals**2).mean()):.2f} (largest {residuals.max():.2f})")
        record.results["keypoint_residuals_um"] = residuals
    to_he = aligned.um_to_he(pixel_size)
    placed = Placement(aligned, mpp, to_he, Correction.none(), None, None)
    nuclei = nuclei_um.transform(to_he)
    if refine_by != "off":
        done = refine(slide, nuclei, mpp, refine_by, refine_limit)
        moved = replace(aligned, matrix=np.asarray(aligned.matrix @ np.linalg.inv(done.correction.matrix)))
        placed = Placement(moved, mpp, to_he, done.correction, done.after, done)
        word = f"{done.used}, up to {done.largest_um:.1f} µm: {done.reason}" if done.applied else f"none: {done.reason}"
        record.count("refinement", word)
        record.results["refinement"] = done.to_dict()
        if not done.applied and done.before.is_bad:
            record.warn(f"the alignment was not refined: {done.reason}")
    elif qc:
        placed = replace(placed, quality=measure(slide, nuclei, mpp, max_fields))
    if placed.quality is not None:
        warning = check_stain(placed.quality, aligned, pixel_size, slide, mpp, nuclei_um)
        record.count("alignment", placed.quality.text())
        record.results["alignment"] = placed.quality.to_dict()
        if warning:
            record.warn(warning)
    return placed
