"""Which nuclei of a run come onto the slide: those on the image, in the region, on tissue, and good enough."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.record import RunRecord
from stqp.slides import Slide
from stqp.sources.filters import Filters, apply_filters
from stqp.sources.regions import contains
from stqp.tissue import find_tissue

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MOST_ON_GLASS = 0.2


def select(
    polygons: Polygons,
    slide: Slide,
    mpp: float,
    record: RunRecord,
    filters: Filters,
    area: Floats,
    transcripts: Ints,
    controls: Ints,
    region: Polygons | None = None,
    stain: Floats | None = None,
) -> tuple[Ints, Mask]:
    """Choose nuclei; what is left out is counted in the record, each under its first reason.

    Parameters
    ----------
    polygons
        ``n`` outlines in H&E pixels.
    slide, mpp
        The H&E, and its µm per pixel.
    record
        Takes the counts.
    filters
        Limits.
    area : float64 (n,)
        µm².
    transcripts, controls : int64 (n,)
        Of the nucleus's cell.
    region
        In H&E pixels; None is the whole run.
    stain : float64 (n,)
        Contrast of haematoxylin under the nucleus.

    Returns
    -------
    kept : int64 (k,)
        Positions of the nuclei that come onto the slide.
    untyped : bool (k,)
        Those whose label is not to be trusted.

    Raises
    ------
    InputError
        When no nucleus is left.
    """
    center = polygons.centroid()
    keep = _on_image(center, slide)
    record.skip("nuclei outside of the image", int((~keep).sum()))
    if region is not None:
        inside = contains(region, np.nan_to_num(center, nan=-1.0))
        record.skip("nuclei outside of the region", int((keep & ~inside).sum()))
        keep &= inside
        if not keep.any():
            raise InputError(f"no nucleus of the run lies in the region on {slide.path}; is it of another slide?")
    if filters.tissue_only and keep.any():
        bare = keep & ~find_tissue(slide, mpp).at(center)
        if bare.sum() > _MOST_ON_GLASS * keep.sum():
            share = bare.sum() / keep.sum()
            record.warn(
                f"{share:.0%} of the nuclei lie where {slide.path.name} looks like glass; they stay, as so many mean "
                "a pale slide or a wrong alignment"
            )
        else:
            record.skip("nuclei off the tissue", int(bare.sum()))
            keep &= ~bare
    kept = np.flatnonzero(keep)
    chosen = polygons if len(kept) == len(polygons) else polygons.take(kept)
    seen = None if stain is None else stain[kept]
    result = apply_filters(filters, chosen, area[kept], transcripts[kept], controls[kept], seen)
    for reason, number in result.skipped.items():
        record.skip(reason, number)
    if len(kept) and not result.keep.any():
        reasons = "; ".join(f"{number} {reason}" for reason, number in result.skipped.items())
        raise InputError(f"the filters leave no nucleus of {len(kept)} ({reasons}); choose wider limits")
    return kept[result.keep], result.untyped[result.keep]


def _on_image(center: Floats, slide: Slide) -> Mask:
    """Whether the centre of each polygon is on the image."""
    x, y = center[:, 0], center[:, 1]
    return np.asarray((x >= 0) & (x < slide.width) & (y >= 0) & (y < slide.height))
