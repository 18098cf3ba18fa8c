"""Move nuclei to where the stain is, when the evidence is good and the result is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.alignment.correction import Correction, Field
from stqp.alignment.fields import FIELD_UM, Grid, Windows, surfaces
from stqp.alignment.quality import AlignmentQuality, fit_affine, measure_in
from stqp.alignment.shifts import Shifts
from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.slides import Slide

Floats = NDArray[np.float64]

KINDS = ("off", "shift", "affine", "smooth")
LIMIT_UM = 15.0
MAX_FIELDS = 512
ENOUGH_UM = 0.3  # an alignment this good in half of the fields is left as it is
_MEASURABLE_UM = 0.1
_GAIN = 1.005  # by which the stain under the nuclei must rise
_ROUNDS = 3
_NODES_UM = 50.0
_FEWEST_SMOOTH = 16
_SMOOTHING = 10.0 ** np.arange(-5.0, 2.0)
_MM = 1000.0


@dataclass(frozen=True)
class Refinement:
    """What was done to an alignment.

    Attributes
    ----------
    kind : {"off", "shift", "affine", "smooth"}
        What was asked for.
    used : {"off", "shift", "affine", "smooth"}
        What was fitted; less than asked for where the fields were too few.
    applied : bool
    reason : str
        Why nothing was applied, or how it went.
    correction : Correction
        Moves nothing when not applied.
    before, after : AlignmentQuality
        The same object when not applied.
    largest_um : float
        Longest way of any nucleus that was found, applied or not.
    """

    kind: str
    used: str
    applied: bool
    reason: str
    correction: Correction
    before: AlignmentQuality
    after: AlignmentQuality
    largest_um: float

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        result = {"kind": self.kind, "used": self.used, "applied": self.applied, "reason": self.reason}
        result["largest_um"] = round(self.largest_um, 3)
        return {**result, "before": self.before.to_dict(), "after": self.after.to_dict()}


def check_refinement(kind: str, limit_um: float) -> None:
    """Refuse a kind or a bound that make no sense.

    Raises
    ------
    UsageError
        Naming what was expected.
    """
    if kind not in KINDS:
        raise UsageError(f"expected one of {', '.join(KINDS)} to refine the alignment by, found {kind!r}")
    if not 0 < limit_um <= 100:
        raise UsageError(f"expected a bound of the refinement between 0 and 100 µm, found {limit_um:g}")


def refine(
    slide: Slide,
    polygons: Polygons,
    mpp: float,
    kind: str = "shift",
    limit_um: float = LIMIT_UM,
    max_fields: int | None = MAX_FIELDS,
) -> Refinement:
    """Find the correction of an alignment that brings the nuclei onto the haematoxylin.

    ``shift`` moves all nuclei alike; ``affine`` also turns, scales and shears; ``smooth`` adds a displacement that
    bends as little as the fields allow (thin-plate splines; how little is chosen by cross-validation). Each is
    measured again after it was applied, up to three times, ``smooth`` in quarters of the fields in the end.

    Parameters
    ----------
    slide, polygons, mpp
        As for `stqp.alignment.quality.measure`.
    kind
        One of `KINDS`.
    limit_um
        No vertex of a nucleus is moved farther.
    max_fields
        As for `measure`; each takes 256 KB of memory.

    Raises
    ------
    InputError
        When the slide cannot be read to its end.
    UsageError
        When `kind` or `limit_um` make no sense.
    """
    check_refinement(kind, limit_um)
    centers = polygons.centroid()
    windows = Windows(slide, mpp, Grid.choose(centers, mpp, (slide.width, slide.height), max_fields), kind != "off")
    before = measure_in(windows, polygons, centers)

    def left(reason: str, largest: float = 0.0, used: str = "off") -> Refinement:
        return Refinement(kind, used, False, reason, Correction.none(), before, before, largest)

    if kind == "off":
        return left("not asked for")
    if before.verdict in ("unknown", "unrelated"):
        return left(f"the evidence is too weak: {before.text()}")
    shifts = before.fields.shift[before.fields.trusted]
    usual = float(np.median(np.hypot(*shifts.T)))
    if usual <= ENOUGH_UM:
        return left(f"the nuclei lie within {usual:.2f} µm of their best places already")
    correction, used = _find(windows, polygons, centers, before.fields, kind, limit_um)
    largest = correction.largest(polygons.coords) * mpp
    if largest > limit_um * (1 + 1e-9):
        return left(f"some nuclei would move by {largest:.1f} µm, beyond the bound of {limit_um:g} µm", largest, used)
    after = measure_in(windows, correction.apply_polygons(polygons))
    problem = _worse(before, after)
    if problem:
        return left(f"the result would not be better: {problem}", largest, used)
    text = f"{_usual(before):.2f} µm off the stain in the middle field before, {_usual(after):.2f} µm after"
    if used != kind:
        text += f"; the fields were too few for {kind}, so {used} was used"
    return Refinement(kind, used, True, text, correction, before, after, largest)


def _usual(quality: AlignmentQuality) -> float:
    return float(np.median(np.hypot(*quality.fields.shift[quality.fields.trusted].T)))


def _worse(before: AlignmentQuality, after: AlignmentQuality) -> str:
    """Why the result is no better; empty when it is."""
    if not after.fields.trusted.any() or _usual(after) >= _usual(before):
        return "the fields' best shifts are no shorter than before"
    # of the same nuclei; some leave the fields that were looked at
    both = np.isfinite(before.contrast) & np.isfinite(after.contrast)
    old, new = float(before.contrast[both].mean()), float(after.contrast[both].mean())
    if new < max(old * _GAIN, old + 1e-4):
        return f"the stain under the nuclei would be {new:.3f} instead of {old:.3f}"
    return ""


def _find(
    windows: Windows, polygons: Polygons, centers: Floats, fields: Shifts, kind: str, limit_um: float
) -> tuple[Correction, str]:
    """Correction in several rounds, and the kind that could be fitted."""
    mpp = windows.mpp
    matrix, used = np.eye(3), "shift"
    correction = Correction(matrix)
    for number in range(_ROUNDS):
        fit = fit_affine(fields, mpp) if kind != "shift" and number else None
        if fit is not None:
            used = "affine"
        step = Correction(_shift(fields, mpp) if fit is None else fit)
        if number and step.largest(fields.centers) * mpp < _MEASURABLE_UM:
            break  # or the grain of the pixels would be followed from round to round
        matrix = step.matrix @ matrix
        correction = Correction(matrix)
        fields = _measure(windows, polygons, correction, centers, 1, False)
    if kind != "smooth":
        return correction, used
    for number in range(_ROUNDS):
        fields = _measure(windows, polygons, correction, centers, 1 if number == 0 else 2, True)
        field = _bend(correction, fields, centers, mpp, limit_um)
        if field is None:
            break
        used, correction = "smooth", Correction(matrix, field)
    return correction, used


def _measure(
    windows: Windows, polygons: Polygons, correction: Correction, centers: Floats, parts: int, original: bool
) -> Shifts:
    """Best shifts of the moved nuclei, at their places after the move, or before it."""
    moved = correction.apply(centers)
    found = []
    for index, members in enumerate(windows.grid.members(moved)):
        nuclei = correction.apply_polygons(polygons.take(members))
        places = centers[members] if original else None
        found += surfaces(windows, index, nuclei, moved[members], parts, places)
    return Shifts.of(found)


def _shift(fields: Shifts, mpp: float) -> Floats:
    """The shift that all fields together prefer; their median, where they do not agree."""
    use = fields.trusted
    matrix = np.eye(3)
    if not use.any():
        return matrix
    shift = np.median(fields.shift[use], axis=0)
    # the sum of all surfaces is the more precise, but blurs when the fields differ
    if fields.together is not None and fields.together.trusted and np.hypot(*(fields.together.shift - shift)) < 0.5:
        shift = fields.together.shift
    matrix[:2, 2] = shift / mpp
    return matrix


def _bend(correction: Correction, fields: Shifts, centers: Floats, mpp: float, limit_um: float) -> Field | None:
    """Displacement on top of the affine part that takes up what the fields still lack."""
    use = np.flatnonzero(fields.trusted)
    if len(use) < _FEWEST_SMOOTH:
        return None
    at = fields.centers[use]
    now = np.zeros((len(at), 2)) if correction.field is None else correction.field.at(at)
    wanted = now * mpp + fields.shift[use]
    places, error = at * mpp / _MM, fields.error[use]
    use = np.arange(len(at))
    smoothing = _choose_smoothing(places, wanted, error)
    for _ in range(2):
        spline = _spline(places[use], wanted[use], error[use], smoothing)
        miss = np.hypot(*(spline(places) - wanted).T)
        kept = np.flatnonzero(miss <= max(4 * float(np.median(miss)), 1.0))
        if len(kept) < _FEWEST_SMOOTH or len(kept) == len(use):
            break
        use = kept
    finite = centers[np.isfinite(centers).all(axis=1)]
    low, high, step = finite.min(axis=0), finite.max(axis=0), _NODES_UM / mpp
    columns, rows = (np.ceil((high - low) / step).astype(int) + 3).tolist()
    empty = Field(low - step, step, np.zeros((rows, columns, 2)))
    nodes = empty.nodes().reshape(-1, 2)
    # beyond the fields a spline runs away; there, what their border has goes on
    bend = spline(_toward(nodes, at[use], FIELD_UM / mpp) * mpp / _MM) / mpp
    ways = Correction(correction.matrix).apply(nodes) - nodes
    total = ways + bend
    length = np.hypot(*total.T)
    bound = limit_um / mpp
    total *= np.minimum(1, bound / np.maximum(length, 1e-9))[:, None]
    return Field(empty.origin, step, (total - ways).reshape(rows, columns, 2))


def _toward(points: Floats, known: Floats, reach: float) -> Floats:
    """Points, those farther than `reach` from any known place pulled to that distance."""
    from scipy.spatial import cKDTree

    distance, nearest = cKDTree(known).query(points)
    share = np.minimum(1, reach / np.maximum(distance, 1e-9))[:, None]
    return np.asarray(known[nearest] + (points - known[nearest]) * share)


def _spline(places: Floats, values: Floats, error: Floats, smoothing: float) -> Any:
    from scipy.interpolate import RBFInterpolator

    weights = smoothing * (error**2 + 0.01) / 0.02
    return RBFInterpolator(places, values, smoothing=weights, kernel="thin_plate_spline", degree=1)


def _choose_smoothing(places: Floats, values: Floats, error: Floats) -> float:
    """Smoothing under which fields that were left out are foretold best."""
    fold = np.random.default_rng(0).permutation(len(places)) % 5
    misses = []
    for smoothing in _SMOOTHING:
        miss = np.empty(len(places))
        for k in range(5):
            out = fold == k
            spline = _spline(places[~out], values[~out], error[~out], float(smoothing))
            miss[out] = np.hypot(*(spline(places[out]) - values[out]).T)
        misses.append(float(np.minimum(miss, 3 * np.median(miss) + 0.1).mean()))
    return float(_SMOOTHING[int(np.argmin(misses))])
