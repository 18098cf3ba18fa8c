"""Which labels of an ST run are good enough to be learnt from, and how much each counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.alignment.placing import RESIDUAL_SHIFT, STAIN_CONTRAST
from stqp.alignment.quality import GOOD_UM, STAINED, AlignmentQuality
from stqp.importing.objects import CONFIDENCE
from stqp.patches.nuclei import Nuclei
from stqp.patches.options import CutOptions
from stqp.patches.store import FULL
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import owned, settled
from stqp.taxonomy import UNKNOWN

logger = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Measure = Callable[[Polygons], AlignmentQuality]

WIDTH_UM = 4.0
"""Of a small nucleus: what lies so far off has nothing of its nucleus beneath it."""
RIM_UM = 1.0
"""Masked around a nucleus that is in doubt."""
USED = "used"


@dataclass(frozen=True)
class Judged:
    """The nuclei of an image, judged.

    Attributes
    ----------
    polygons : Polygons
        Those that are used.
    classes : object (n,)
        Their classes; Unknown where the label is in doubt.
    weight : uint8 (n,)
        Of their type loss.
    masked : Polygons
        Areas where a nucleus was expected and is in doubt: neither nucleus nor background.
    counts : dict
        For each class as labelled, how many nuclei are used, and how many are not, by reason.
    measured : set of str
        Which of the measurements that the options ask for any nucleus has.
    """

    polygons: Polygons
    classes: NDArray[np.object_]
    weight: NDArray[np.uint8]
    masked: Polygons
    counts: dict[str, dict[str, int]]
    measured: set[str]


def judge(
    nuclei: Nuclei,
    objects: PathObjects,
    options: CutOptions,
    names: Sequence[str],
    mpp: float,
    measure: Measure,
) -> Judged:
    """Decide which nuclei are drawn, typed, or masked.

    A doubtful class makes a nucleus Unknown: it still trains where nuclei are. A doubtful outline (no stain under
    it, off its place) is masked with what lies around it, since the true nucleus may be there: it must not become
    background. What a person corrected, accepted or drew as an annotation is never in doubt.

    Parameters
    ----------
    nuclei
        As selected.
    objects
        All objects of the image, with their measurements.
    options
        The limits.
    names
        Classes that are learnt; empty for all.
    mpp
        µm per full-resolution px.
    measure
        Holds nuclei against the stain of the slide; called when the options need it and the import did not.
    """
    n = len(nuclei.polygons)
    drawn = (objects.kind == ObjectKind.ANNOTATION) & ~owned(objects)
    trusted = (settled(objects) | drawn)[nuclei.index]
    confidence = _column(objects, CONFIDENCE, nuclei)
    needs_stain = options.min_stain is not None or "stain" in options.weights
    needs_place = options.max_misalignment is not None or "alignment" in options.weights
    contrast, residual = _on_stain(objects, nuclei, trusted, needs_stain, needs_place, measure)

    classes = nuclei.classes.copy()
    counts: dict[str, dict[str, int]] = {}
    labels = nuclei.classes.astype(str)
    open_cases = np.ones(n, bool)

    def note(bad: Mask, reason: str) -> Mask:
        """Count a nucleus under its first reason alone."""
        new = bad & open_cases
        for name, number in zip(*np.unique(labels[new], return_counts=True), strict=True):
            counts.setdefault(str(name), {})[reason] = int(number)
        open_cases[new] = False
        return new

    drop, reach = np.zeros(n, bool), np.full(n, RIM_UM)
    if options.max_misalignment is not None:
        far = (residual > options.max_misalignment) & ~trusted
        drop |= note(far, f"more than {options.max_misalignment:g} µm off the stain (masked)")
        reach[far] = np.maximum(residual[far], RIM_UM)
    if options.min_stain is not None:
        pale = (contrast < options.min_stain) & ~trusted
        drop |= note(pale, f"stain contrast below {options.min_stain:g} (masked)")
    if names:
        other = ~np.isin(labels, [*names, UNKNOWN])
        classes[note(other, "of a class that is not learnt (Unknown)")] = UNKNOWN
    if options.min_confidence is not None:
        unsure = (confidence < options.min_confidence) & ~trusted & (labels != UNKNOWN)
        classes[note(unsure, f"label confidence below {options.min_confidence:g} (Unknown)")] = UNKNOWN
    note(np.ones(n, bool), USED)

    weight = np.ones(n)
    factors = {
        "confidence": confidence,
        "alignment": 1 - (residual - GOOD_UM) / (WIDTH_UM - GOOD_UM),
        "stain": contrast / (2 * STAINED),
    }
    for name in options.weights:
        weight *= np.where(np.isfinite(factors[name]), np.clip(factors[name], 0, 1), 1)
    weight[trusted] = 1
    measured = {
        name
        for name, values in (("confidence", confidence), ("stain", contrast), ("alignment", residual))
        if np.isfinite(values).any()
    }
    return Judged(
        nuclei.polygons.take(~drop),
        classes[~drop],
        np.round(weight[~drop] * FULL).astype(np.uint8),
        _grown(nuclei.polygons.take(drop), reach[drop] / mpp),
        counts,
        measured,
    )


def _column(objects: PathObjects, name: str, nuclei: Nuclei) -> Floats:
    values = objects.measurements.get(name)
    return np.full(len(nuclei.index), np.nan) if values is None else values[nuclei.index]


def _on_stain(
    objects: PathObjects, nuclei: Nuclei, trusted: Mask, needs_stain: bool, needs_place: bool, measure: Measure
) -> tuple[Floats, Floats]:
    """Contrast and residual of each nucleus; measured where the import looked at a sample of the slide only."""
    contrast, residual = (_column(objects, name, nuclei) for name in (STAIN_CONTRAST, RESIDUAL_SHIFT))
    lacking = np.zeros(len(contrast), bool)
    if needs_stain:
        lacking |= ~np.isfinite(contrast)
    if needs_place:
        lacking |= ~np.isfinite(residual)
    if (lacking & ~trusted).any():
        logger.info("holding %d nuclei against the stain of their slide", len(contrast))
        quality = measure(nuclei.polygons)
        contrast = np.where(np.isfinite(contrast), contrast, quality.contrast)
        residual = np.where(np.isfinite(residual), residual, quality.residual)
    return contrast, residual


def _grown(polygons: Polygons, reach: Floats) -> Polygons:
    """Polygons with a rim of their own width each."""
    import shapely

    if not len(polygons):
        return polygons
    shapes = shapely.make_valid(polygons.to_shapely())
    return Polygons.from_shapely(shapely.buffer(shapes, reach, quad_segs=4))
