"""Which nuclei are good enough to draw, and which labels good enough to learn from; each reason is counted.

A nucleus that is none (too small, on another, off the tissue) is left out. One that is there but whose cell
was measured badly (few transcripts, many controls) stays and is Unknown: the image still shows a nucleus.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from stqp.errors import UsageError
from stqp.polygons import Polygons

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Filters:
    """Limits; None is no limit.

    Attributes
    ----------
    min_transcripts : int
        A nucleus whose cell has fewer is Unknown.
    max_control_fraction : float
        Controls among all counts of the cell; a nucleus of a cell with more is Unknown.
    min_area, max_area : float
        µm² of the nucleus; one outside is left out.
    max_overlap : float
        Share of the smaller of two nuclei that may lie on the other; beyond, the one whose cell has fewer
        transcripts is left out (then the smaller, then the later).
    min_stain : float
        Contrast of haematoxylin under the nucleus to its surroundings; one with less is left out, as the image
        shows none there. Nuclei whose contrast was not measured stay.
    tissue_only : bool
        Leave out nuclei that lie on the glass.
    """

    min_transcripts: int | None = None
    max_control_fraction: float | None = None
    min_area: float | None = None
    max_area: float | None = None
    max_overlap: float | None = 0.5
    min_stain: float | None = None
    tissue_only: bool = False

    def __post_init__(self) -> None:
        """Refuse limits that nothing or everything meets."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "min_stain":
                continue  # a contrast may be negative
            if value is not None and not 0 <= value < np.inf:
                raise UsageError(f"expected a number from 0 on for {field.name.replace('_', ' ')}, found {value}")
        for name in ("max_control_fraction", "max_overlap"):
            value = getattr(self, name)
            if value is not None and value > 1:
                raise UsageError(f"expected a fraction between 0 and 1 for {name.replace('_', ' ')}, found {value:g}")
        if self.min_area is not None and self.max_area is not None and self.min_area >= self.max_area:
            raise UsageError(f"no nucleus has more than {self.min_area:g} and less than {self.max_area:g} µm²")


@dataclass(frozen=True)
class Filtered:
    """What filters leave.

    Attributes
    ----------
    keep : bool (n,)
        Nuclei to draw.
    untyped : bool (n,)
        Nuclei to draw whose label is not to be trusted.
    skipped : dict
        Reason to number; a nucleus is counted under its first reason alone.
    """

    keep: Mask
    untyped: Mask
    skipped: dict[str, int]


def apply_filters(
    filters: Filters,
    polygons: Polygons,
    area: Floats,
    transcripts: Ints,
    controls: Ints,
    stain: Floats | None = None,
) -> Filtered:
    """Apply limits to nuclei.

    Parameters
    ----------
    filters
        The limits.
    polygons
        ``n`` outlines, in any unit.
    area : float64 (n,)
        µm².
    transcripts, controls : int64 (n,)
        Of the nucleus's cell.
    stain : float64 (n,)
        Contrast of haematoxylin under the nucleus; NaN where it was not measured.

    Raises
    ------
    UsageError
        When a limit of the contrast is asked for and none was measured.
    """
    n = len(polygons)
    keep, untyped = np.ones(n, bool), np.zeros(n, bool)
    skipped: dict[str, int] = {}

    def leave_out(bad: Mask, reason: str) -> None:
        skipped[reason] = int((bad & keep).sum())
        keep[bad] = False

    if filters.min_area is not None:
        leave_out(area < filters.min_area, f"nuclei of less than {filters.min_area:g} µm²")
    if filters.max_area is not None:
        leave_out(area > filters.max_area, f"nuclei of more than {filters.max_area:g} µm²")
    if filters.min_stain is not None:
        if stain is None or not np.isfinite(stain).any():
            raise UsageError("--min-stain needs the measure of the alignment; leave out --no-qc")
        leave_out(stain < filters.min_stain, f"nuclei with a stain contrast below {filters.min_stain:g}")
    if filters.max_overlap is not None:
        lost = np.zeros(n, bool)
        index = np.flatnonzero(keep)
        lost[index] = overlapped(polygons.take(index), transcripts[index], filters.max_overlap)
        reason = f"nuclei that lie to more than {filters.max_overlap:.0%} on one with more transcripts"
        leave_out(lost, reason)

    def distrust(bad: Mask, reason: str) -> None:
        skipped[reason] = int((bad & keep & ~untyped).sum())
        untyped[bad & keep] = True

    if filters.min_transcripts is not None:
        few = transcripts < filters.min_transcripts
        distrust(few, f"labels of cells with fewer than {filters.min_transcripts} transcripts (now Unknown)")
    if filters.max_control_fraction is not None:
        share = controls / np.maximum(transcripts + controls, 1)
        limit = filters.max_control_fraction
        distrust(share > limit, f"labels of cells with more than {limit:.1%} controls among their counts (now Unknown)")
    return Filtered(keep, untyped, {k: v for k, v in skipped.items() if v})


def overlapped(polygons: Polygons, evidence: Ints, limit: float) -> Mask:
    """Nuclei to leave out so that of no two left one lies on the other; bool (n,).

    Parameters
    ----------
    polygons
        Outlines.
    evidence : int64 (n,)
        The nucleus with more of it stays; of equals the larger, then the first.
    limit
        Share of the smaller one's area that may lie on the other.
    """
    import shapely

    lost = np.zeros(len(polygons), bool)
    if not len(polygons):
        return lost
    shapes = polygons.to_shapely()
    broken = ~shapely.is_valid(shapes)
    shapes[broken] = shapely.make_valid(shapes[broken])
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = one < other
    one, other = one[pairs], other[pairs]
    area = shapely.area(shapes)
    common = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    clash = common > limit * np.minimum(area[one], area[other])
    one, other = one[clash], other[clash]
    rank = np.empty(len(polygons), np.int64)
    rank[np.lexsort((np.arange(len(polygons)), -area, -evidence))] = np.arange(len(polygons))
    better, worse = np.where(rank[one] < rank[other], (one, other), (other, one))
    # best first: one that is lost itself takes none with it
    for k in np.argsort(rank[better], kind="stable").tolist():
        if not lost[better[k]]:
            lost[worse[k]] = True
    return lost
