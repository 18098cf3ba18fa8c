"""Keypoints of Xenium Explorer: the best map over all of them, and those that do not fit the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError

Floats = NDArray[np.float64]

COLUMNS = ("fixedX", "fixedY", "alignmentX", "alignmentY")
MODELS = ("affine", "similarity")
_OUTLIER_PX = 5.0  # of the platform's image: a hand places points no better
_CHANCE = 0.0005  # that a set of good points has one that is called an outlier, about
_FEWEST_TO_JUDGE = 5
_SUBSETS = 300
_FLAT = 0.05  # a triangle flatter than this says too little


@dataclass(frozen=True)
class KeypointFit:
    """A map from H&E pixels to the platform's pixels, by least squares.

    Attributes
    ----------
    matrix : float64 (3, 3)
    residuals : float64 (k,)
        Distance of each point from where the fit puts it, platform px.
    outliers : int64 (m,)
        Positions of points that the others contradict; they are part of the fit all the same.
    left_out : float64 (k,)
        Distance of each point from where a fit without it, and without the outliers, puts it.
    """

    matrix: Floats
    residuals: Floats
    outliers: NDArray[np.int64]
    left_out: Floats


def is_keypoints(header: list[str]) -> bool:
    """Whether a row of cells is the header of a keypoints file."""
    return {name.lower() for name in COLUMNS} <= {cell.strip().lower() for cell in header}


def parse_keypoints(path: Path | str, rows: list[list[str]]) -> tuple[Floats, Floats]:
    """Points of the platform's image and of the H&E, (k, 2) each, from the rows of a csv with its header."""
    header = [cell.strip().lower() for cell in rows[0]]
    columns = [header.index(name.lower()) for name in COLUMNS]
    points = np.empty((len(rows) - 1, 4))
    for number, row in enumerate(rows[1:]):
        try:
            if len(row) > len(header):
                raise ValueError("more cells than the header has")
            points[number] = [float(row[c]) for c in columns]
        except (ValueError, IndexError) as error:
            hint = "; is the decimal sign a comma?" if len(row) == 2 * len(header) else ""
            raise InputError(
                f"expected four numbers, found {','.join(row)!r} in row {number + 2} of the keypoints {path}{hint}"
            ) from error
    if not np.isfinite(points).all():
        first = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise InputError(f"row {first + 2} of the keypoints {path} holds values that are not finite numbers")
    return points[:, :2], points[:, 2:]


def fit_keypoints(fixed: Floats, he: Floats, path: Path | str, model: str = "affine") -> KeypointFit:
    """Fit a map from the H&E to the platform's image over all keypoints.

    Parameters
    ----------
    fixed, he : float64 (k, 2)
        The same places in the platform's image and in the H&E, px.
    path
        For messages.
    model : {"affine", "similarity"}
        A similarity turns, scales, moves and, where that fits better, mirrors.

    Raises
    ------
    InputError
        With fewer than three points, or when all lie on one line.
    UsageError
        For another model.
    """
    if model not in MODELS:
        raise UsageError(f"expected one of {', '.join(MODELS)} to fit keypoints by, found {model!r}")
    if len(he) < 3 or _on_a_line(he) or _on_a_line(fixed):
        found = f"{len(he)}" if len(he) < 3 else f"{len(he)} on one line"
        raise InputError(f"expected at least three keypoints that are not on one line, found {found}, in {path}")
    matrix = _fit(fixed, he, model)
    residuals = _miss(matrix, fixed, he)
    agreeing = _agreeing(fixed, he, model)
    return KeypointFit(matrix, residuals, np.flatnonzero(~agreeing), _left_out(fixed, he, model, agreeing)[0])


def _agreeing(fixed: Floats, he: Floats, model: str) -> NDArray[np.bool_]:
    """Points that do not contradict the others; all, where there are too few to judge.

    Begins with the better half by the fit of a few points that most others are nearest to (least median of
    squares), since outliers bend a fit over all points and hide behind each other; then lets every point join that
    the chosen ones foretell within their scatter.
    """
    from scipy.stats import t

    n = len(he)
    everything = np.ones(n, bool)
    if n < _FEWEST_TO_JUDGE:
        return everything
    rng = np.random.default_rng(0)
    best, chosen = np.inf, everything
    for _ in range(_SUBSETS):
        few = rng.choice(n, 3, replace=False)
        if _on_a_line(he[few], _FLAT) or _on_a_line(fixed[few], _FLAT):
            continue
        miss = _miss(_fit(fixed[few], he[few], model), fixed, he)
        half = np.sort(miss)[(n + 3) // 2]
        if half < best:
            best, chosen = half, miss <= half
    for _ in range(20):
        miss, error, free = _left_out(fixed, he, model, chosen)
        bound = t.ppf(1 - _CHANCE / n, np.maximum(free, 1)) * np.sqrt(2) * error
        passing = (miss <= np.maximum(bound, _OUTLIER_PX)) | (free < 1)
        if (passing == chosen).all():
            break
        if passing.sum() < 4 or _on_a_line(he[passing]):
            return everything
        chosen = passing
    return chosen


def _fit(fixed: Floats, he: Floats, model: str) -> Floats:
    matrix = np.eye(3)
    if model == "affine":
        # about the centre: products of large coordinates would cost digits
        middle = he.mean(axis=0)
        solution, *_ = np.linalg.lstsq(np.c_[he - middle, np.ones(len(he))], fixed, rcond=None)
        matrix[:2, :2] = solution[:2].T
        matrix[:2, 2] = solution[2] - matrix[:2, :2] @ middle
        return matrix
    best = np.inf
    for mirror in (1.0, -1.0):
        # complex numbers turn and scale by one product; a mirrored slide is the conjugate
        source = he[:, 0] + 1j * mirror * he[:, 1]
        target = fixed[:, 0] + 1j * fixed[:, 1]
        s, t = source - source.mean(), target - target.mean()
        factor = (np.conj(s) @ t) / (np.conj(s) @ s).real
        offset = target.mean() - factor * source.mean()
        tried = np.eye(3)
        tried[:2, :2] = np.array([[factor.real, -factor.imag * mirror], [factor.imag, factor.real * mirror]])
        tried[:2, 2] = offset.real, offset.imag
        error = float((_miss(tried, fixed, he) ** 2).sum())
        if error < best:
            best, matrix = error, tried
    return matrix


def _miss(matrix: Floats, fixed: Floats, he: Floats) -> Floats:
    return np.asarray(np.linalg.norm(he @ matrix[:2, :2].T + matrix[:2, 2] - fixed, axis=1))


def _left_out(
    fixed: Floats, he: Floats, model: str, chosen: NDArray[np.bool_]
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Of each point, by a fit over the chosen ones without it: its distance, the standard error, the freedom."""
    miss, error, free = np.zeros(len(he)), np.full(len(he), np.inf), np.zeros(len(he), np.int64)
    for i in range(len(he)):
        others = chosen.copy()
        others[i] = False
        if others.sum() < 3 or _on_a_line(he[others]):
            continue
        matrix = _fit(fixed[others], he[others], model)
        miss[i] = _miss(matrix, fixed[i : i + 1], he[i : i + 1])[0]
        free[i] = 2 * others.sum() - (6 if model == "affine" else 4)
        scatter = np.sqrt((_miss(matrix, fixed[others], he[others]) ** 2).sum() / max(free[i], 1))
        middle = he[others].mean(axis=0)
        around, own = he[others] - middle, he[i] - middle
        # how far a fit can be off at a place depends on how far that is from its points
        lever = own @ np.linalg.solve(around.T @ around, own)
        error[i] = scatter * np.sqrt(1 + 1 / others.sum() + lever)
    return miss, error, free


def _on_a_line(points: Floats, flat: float = 1e-6) -> bool:
    size = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(len(points) < 3 or size[0] == 0 or size[1] / size[0] < flat)
