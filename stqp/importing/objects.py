"""The nuclei of a sample as objects of QuPath."""

from __future__ import annotations

import numpy as np

from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.sample import Objects, SpatialSample
from stqp.taxonomy import UNKNOWN, color_of, ordered

KINDS = {
    "annotations": ObjectKind.ANNOTATION,
    "detections": ObjectKind.DETECTION,
    "cells": ObjectKind.CELL,
}
TRANSCRIPTS = "Transcripts"
NUCLEUS_AREA = "Nucleus: Area µm^2"
CONFIDENCE, CLUSTER = "Label confidence", "Label cluster"


def class_table(sample: SpatialSample) -> dict[str, tuple[int, int, int]]:
    """Colours of the sample's classes, in the order of the taxonomy, Unknown last."""
    names = ordered(sample.nuclei.classes.tolist())
    if (sample.nuclei.classes == UNKNOWN).any():
        names.append(UNKNOWN)
    own = sample.extra.get("class_colors", {})
    return {name: own.get(name) or color_of(name) for name in names}


def to_objects(sample: SpatialSample, as_kind: str, ids: Objects) -> PathObjects:
    """Make one object of each nucleus.

    Parameters
    ----------
    sample
        The sample.
    as_kind
        ``annotations``, ``detections`` or ``cells``; cells also have the outline of their cell, so the two
        nuclei of one cell become two objects with the same outer outline.
    ids : object (n,)
        UUIDs.
    """
    nuclei = sample.nuclei
    kind = KINDS[as_kind]
    measurements = {TRANSCRIPTS: nuclei.transcripts.astype(np.float64), NUCLEUS_AREA: nuclei.area}
    if np.isfinite(nuclei.confidence).any():
        measurements[CONFIDENCE] = nuclei.confidence
    measurements.update(sample.extra.get("measurements", {}))
    outlines, inner = nuclei.polygons, None
    if kind == ObjectKind.CELL:
        inner = outlines
        if sample.cells.polygons is not None:
            outlines = _outer(sample.cells.polygons.take(nuclei.cell), inner)
    return PathObjects.build(
        outlines,
        kind=kind,
        classes=nuclei.classes,
        ids=ids,
        names=nuclei.cell_id,
        nuclei=inner,
        measurements=measurements,
        class_colors=class_table(sample),
    )


def _outer(cells: Polygons, nuclei: Polygons) -> Polygons:
    """Outline of each nucleus's cell; the nucleus itself where the run has none."""
    n = len(nuclei)
    both = Polygons.concatenate([cells, nuclei])
    lacking = np.diff(cells.geom_offsets) == 0
    return both.take(np.where(lacking, np.arange(n) + n, np.arange(n)))
