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
_STUDENT = 6.0  # an outlier is so many times the others' scatter away from where they put it
_OUTLIER_PX = 5.0  # and at least so many pixels of the platform's image: a hand places points no better
_FEWEST_LEFT = {"affine": 5, "similarity": 4}  # points, below which the others cannot judge one


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
            points[number] = [float(row[c]) for c in columns]
        except (ValueError, IndexError) as error:
            hint = "; is the decimal sign a comma?" if len(row) > len(header) else ""
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
    kept = np.ones(len(he), bool)
    while kept.sum() >= _FEWEST_LEFT[model]:
        left_out = _left_out(fixed, he, model, kept)
        worst = int(np.argmax(np.where(kept, left_out, -1)))
        others = kept.copy()
        others[worst] = False
        if _on_a_line(he[others]):
            break
        scatter = _scatter(fixed[others], he[others], model)
        if left_out[worst] < max(_STUDENT * scatter, _OUTLIER_PX):
            break
        kept = others
    return KeypointFit(matrix, residuals, np.flatnonzero(~kept), _left_out(fixed, he, model, kept))


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


def _left_out(fixed: Floats, he: Floats, model: str, kept: NDArray[np.bool_]) -> Floats:
    result = np.full(len(he), np.nan)
    for i in range(len(he)):
        others = kept.copy()
        others[i] = False
        if others.sum() >= 3 and not _on_a_line(he[others]):
            result[i] = _miss(_fit(fixed[others], he[others], model), fixed[i : i + 1], he[i : i + 1])[0]
    return np.nan_to_num(result, nan=0.0)


def _scatter(fixed: Floats, he: Floats, model: str) -> float:
    """Standard deviation of the points about their own fit, platform px."""
    miss = _miss(_fit(fixed, he, model), fixed, he)
    free = 2 * len(he) - (6 if model == "affine" else 4)
    return float(np.sqrt((miss**2).sum() / max(free, 1)))


def _on_a_line(points: Floats) -> bool:
    size = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(len(points) < 3 or size[0] == 0 or size[1] / size[0] < 1e-6)
