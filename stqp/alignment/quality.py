"""How well the nuclei lie on the haematoxylin of the slide, field by field and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.alignment.fields import SEARCH_UM, Grid, Windows, nucleus_contrast, surfaces
from stqp.alignment.shifts import Shifts
from stqp.polygons import Polygons
from stqp.slides import Slide

Floats = NDArray[np.float64]

MAX_FIELDS = 256  # looked at in an import
GOOD_UM, FAIR_UM = 1.0, 2.0  # a small nucleus is 4 µm wide
DEFORMED_UM = 1.0  # what a shift of the whole leaves in half of the fields
STAINED = 0.1  # contrast of a nucleus, in units of the slide's range of stain, from which there is stain under it
_FEW_TRUSTED = 0.2  # share of fields with a clear best shift, below which there is no relation
_DIRECTIONS = ["right", "bottom right", "bottom", "bottom left", "left", "top left", "top", "top right"]


@dataclass(frozen=True)
class AlignmentQuality:
    """Nuclei against stain.

    Attributes
    ----------
    verdict : {"good", "fair", "shifted", "deformed", "unrelated", "unknown"}
    offset : float64 (2,)
        By which the nuclei lie off the stain, µm (x to the right, y down): the median of the fields.
    spread : float
        Median distance of the fields' offsets from it, µm.
    affine_residual : float
        Median distance of the fields' offsets from the affine map that fits them best, µm.
    fields : Shifts
        The best shift of each field; an offset is its opposite.
    eligible : int
        Fields with nuclei enough, of which `fields` may be a sample.
    contrast : float64 (n,)
        Stain in each nucleus against the ring around it, in units of the slide's range of stain; NaN where the
        nucleus lies in no field that was looked at.
    residual : float64 (n,)
        Distance of each nucleus from its best place, µm, between the fields; NaN where nothing is known.
    stained : float
        Share of the nuclei looked at with stain under them.
    """

    verdict: str
    offset: Floats
    spread: float
    affine_residual: float
    fields: Shifts
    eligible: int
    contrast: Floats
    residual: Floats
    stained: float

    @property
    def distance(self) -> float:
        """Length of the offset, µm."""
        return float(np.hypot(*self.offset))

    @property
    def is_bad(self) -> bool:
        """Whether a person should look before anything is trained on these nuclei."""
        return self.verdict in ("shifted", "deformed", "unrelated")

    def text(self) -> str:
        """Verdict in words."""
        known = int(self.fields.trusted.sum())
        if self.verdict == "unknown":
            return "not known: too few nuclei on the slide"
        if self.verdict == "unrelated":
            return (
                f"no relation between nuclei and stain ({known} of {len(self.fields)} fields have a clear best shift "
                f"within {SEARCH_UM:g} µm): another image, or an alignment that is far off"
            )
        angle = np.arctan2(self.offset[1], self.offset[0])
        side = _DIRECTIONS[round(float(angle) / (np.pi / 4)) % 8]
        where = f"{self.distance:.1f} µm to the {side}"
        inside = f"{self.stained:.0%} of the nuclei have stain under them"
        if self.verdict == "good":
            return f"good: {self.distance:.2f} µm off the stain, {inside}"
        if self.verdict == "fair":
            return f"fair: the nuclei lie {where} of the stain, {inside}"
        if self.verdict == "shifted":
            return f"shifted: the nuclei lie {where} of the stain, {inside}"
        kind = "turned, scaled or sheared" if self.affine_residual < self.spread / 2 else "locally deformed"
        return (
            f"{kind}: off the stain by {where} in the middle, and elsewhere by another {self.spread:.1f} µm "
            f"({self.affine_residual:.1f} µm after an affine correction), {inside}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but what belongs to single nuclei, for the record."""
        found = self.contrast[np.isfinite(self.contrast)]
        fields = self.fields
        return {
            "verdict": self.verdict,
            "text": self.text(),
            "offset_um": _rounded(self.offset),
            "distance_um": _rounded(self.distance),
            "spread_um": _rounded(self.spread),
            "affine_residual_um": _rounded(self.affine_residual),
            "fields": len(fields),
            "fields_believed": int(fields.trusted.sum()),
            "fields_eligible": self.eligible,
            "nuclei_looked_at": len(found),
            "nuclei_with_stain": _rounded(self.stained),
            "median_contrast": _rounded(float(np.median(found))) if len(found) else None,
            "field_centers_px": _rounded(fields.centers, 1),
            "field_offsets_um": _rounded(-fields.shift),
            "field_errors_um": _rounded(fields.error),
            "field_confidence": _rounded(fields.confidence),
            "thresholds": {"good_um": GOOD_UM, "fair_um": FAIR_UM, "deformed_um": DEFORMED_UM, "stain": STAINED},
        }


def measure(slide: Slide, polygons: Polygons, mpp: float, max_fields: int | None = MAX_FIELDS) -> AlignmentQuality:
    """Hold nuclei against the haematoxylin of their slide.

    The slide is read at 0.5 µm per px in fields of 200 µm. In each, the contrast of the stain under the nuclei
    against around them is computed for all shifts up to 20 µm; the best one is believed when it stands out of the
    surface's noise and no other comes near it.

    Parameters
    ----------
    slide
        The H&E.
    polygons
        Nuclei in its full-resolution px.
    mpp
        Its µm per px.
    max_fields
        Of more fields, so many that lie evenly over the tissue are looked at; all when None. Memory does not
        grow with their number.

    Raises
    ------
    InputError
        When the slide cannot be read to its end.
    """
    centers = polygons.centroid()
    grid = Grid.choose(centers, mpp, (slide.width, slide.height), max_fields)
    return measure_in(Windows(slide, mpp, grid), polygons, centers)


def measure_in(windows: Windows, polygons: Polygons, centers: Floats | None = None) -> AlignmentQuality:
    """`measure`, in windows that are at hand."""
    centers = polygons.centroid() if centers is None else centers
    grid = windows.grid
    contrast = np.full(len(polygons), np.nan)
    found = []
    for index, members in enumerate(grid.members(centers)):
        nuclei, stain = polygons.take(members), windows.stain(index)
        found += surfaces(windows, index, nuclei, centers[members], stain=stain)
        contrast[members] = nucleus_contrast(windows, index, nuclei, stain)
    fields = Shifts.of(found)
    known = contrast[np.isfinite(contrast)]
    offset, spread, affine = _overall(fields, windows.mpp)
    return AlignmentQuality(
        verdict=_verdict(fields, offset, spread),
        offset=offset,
        spread=spread,
        affine_residual=affine,
        fields=fields,
        eligible=grid.eligible,
        contrast=contrast,
        residual=_between(fields, centers),
        stained=float((known > STAINED).mean()) if len(known) else float("nan"),
    )


def fit_affine(fields: Shifts, mpp: float) -> NDArray[np.float64] | None:
    """Affine map of full-resolution px that fits the believed shifts, robustly (Huber); (3, 3).

    None with fewer than 6 of them, or when they lie on one line.
    """
    use = fields.trusted
    if use.sum() < 6:
        return None
    at, to = fields.centers[use], fields.shift[use] / mpp
    middle = at.mean(axis=0)
    scale = max(float(np.abs(at - middle).max()), 1e-9)
    terms = np.c_[(at - middle) / scale, np.ones(len(at))]
    if np.linalg.svd(terms, compute_uv=False)[-1] < 0.1 * np.sqrt(len(at)):
        return None
    base = fields.weights[use]
    weights = base
    for _ in range(20):
        root = np.sqrt(weights)[:, None]
        solution, *_ = np.linalg.lstsq(terms * root, to * root, rcond=None)
        miss = np.hypot(*(to - terms @ solution).T) * mpp
        bound = max(1.5 * float(np.median(miss)), 0.1)
        weights = base * np.minimum(1, bound / np.maximum(miss, 1e-9))
    matrix = np.eye(3)
    matrix[:2, :2] += solution[:2].T / scale
    matrix[:2, 2] = solution[2] - (solution[:2].T / scale) @ middle
    return matrix


def _overall(fields: Shifts, mpp: float) -> tuple[Floats, float, float]:
    use = fields.trusted
    if not use.any():
        return np.full(2, np.nan), float("nan"), float("nan")
    shift = fields.shift[use]
    middle = np.median(shift, axis=0)
    spread = float(np.median(np.hypot(*(shift - middle).T)))
    affine = fit_affine(fields, mpp)
    if affine is None:
        return -middle, spread, spread
    at = fields.centers[use]
    fitted = (at @ affine[:2, :2].T + affine[:2, 2] - at) * mpp
    return -middle, spread, float(np.median(np.hypot(*(shift - fitted).T)))


def _verdict(fields: Shifts, offset: Floats, spread: float) -> str:
    if fields.together is None:
        return "unknown"
    if fields.trusted.mean() < _FEW_TRUSTED:
        return "unrelated"
    if spread > DEFORMED_UM:
        return "deformed"
    distance = float(np.hypot(*offset))
    return "good" if distance <= GOOD_UM else "fair" if distance <= FAIR_UM else "shifted"


def _between(fields: Shifts, places: Floats) -> Floats:
    """Length of the shift at each place, from the nearest believed fields."""
    from scipy.spatial import cKDTree

    use = fields.trusted
    result = np.full(len(places), np.nan)
    known = np.isfinite(places).all(axis=1)
    if fields.together is None or use.mean() < _FEW_TRUSTED or not known.any():
        return result
    k = min(4, int(use.sum()))
    distance, nearest = cKDTree(fields.centers[use]).query(places[known], k=[*range(1, k + 1)])
    weight = fields.weights[use][nearest] / (distance**2 + 1.0)
    shift = (fields.shift[use][nearest] * weight[..., None]).sum(axis=1) / weight.sum(axis=1, keepdims=True)
    result[known] = np.hypot(*shift.T)
    return result


def _rounded(value: Any, digits: int = 3) -> Any:
    """Value of JSON's types; None where not finite."""
    if isinstance(value, float):
        return round(value, digits) if np.isfinite(value) else None
    return [_rounded(v, digits) for v in np.asarray(value).tolist()]
