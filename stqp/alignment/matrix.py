"""Read an alignment, and hold it against what the slide says of itself.

Xenium Explorer exports a 3x3 csv without a header that maps full-resolution H&E pixels to morphology
pixels, as column vectors (x, y, 1); and keypoints, which are told apart by their header. In both, pixel
(i, j) covers [i, i + 1) x [j, j + 1), as everywhere in stqp.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError

IDENTITY = "identity"
KEYPOINT_COLUMNS = ("fixedX", "fixedY", "alignmentX", "alignmentY")
SCALE_TOLERANCE = 0.05
_SHEAR_WARNING = 1.1
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """An affine map from H&E pixels to the pixels of the platform's own image.

    Attributes
    ----------
    matrix : float64 (3, 3)
        Acts on column vectors (x, y, 1).
    source
        The file's path, or ``identity``.
    residuals : float64 (k,)
        Distance of each keypoint from where the fit puts it, in pixels of the platform's image; empty for
        a matrix.
    """

    matrix: Floats
    source: str
    residuals: Floats = field(default_factory=lambda: np.empty(0))

    @property
    def scale(self) -> float:
        """Platform pixels per H&E pixel."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))

    @property
    def mirrored(self) -> bool:
        """Whether the slide lies face down, which is legal."""
        return bool(np.linalg.det(self.matrix[:2, :2]) < 0)

    def um_to_he(self, pixel_size: float) -> Floats:
        """3x3 matrix from the platform's µm to H&E pixels."""
        return np.asarray(np.linalg.inv(self.matrix) @ np.diag([1 / pixel_size, 1 / pixel_size, 1.0]))

    def warnings(self) -> list[str]:
        """What is legal and unlikely."""
        big, small = np.linalg.svd(self.matrix[:2, :2], compute_uv=False)
        if big / small > _SHEAR_WARNING:
            return [f"the alignment {self.source} stretches one axis {big / small:.2f} times as much as the other"]
        return []

    def mpp(self, pixel_size: float, slide_mpp: float | None, slide: Path | str) -> float:
        """µm per pixel of the slide; its own where it has one that agrees with the alignment.

        Parameters
        ----------
        pixel_size
            µm per pixel of the platform's image.
        slide_mpp
            What the slide says, None where it says nothing.
        slide
            For the message.

        Raises
        ------
        InputError
            When the two differ by more than 5 %.
        """
        implied = self.scale * pixel_size
        if slide_mpp is None:
            return implied
        if abs(implied / slide_mpp - 1) <= SCALE_TOLERANCE:
            return slide_mpp
        ratio = implied / slide_mpp
        inverse = pixel_size / self.scale
        level = 2.0 ** round(np.log2(ratio))
        if self.source == IDENTITY:
            reason = "the H&E is not in the frame of the morphology image; give the alignment's csv"
        elif abs(inverse / slide_mpp - 1) <= SCALE_TOLERANCE:
            reason = "the matrix is inverted: it must map H&E pixels to morphology pixels"
        elif level != 1 and abs(ratio / level - 1) <= SCALE_TOLERANCE:
            reason = f"the alignment was made on a level of the pyramid whose pixels are {level:g} times as large"
        else:
            reason = "this is the alignment of another image, or the slide states a wrong pixel size (--mpp)"
        raise InputError(
            f"the alignment {self.source} implies {implied:.4g} µm per H&E pixel, but {slide} has "
            f"{slide_mpp:.4g}; likely {reason}"
        )


def read_alignment(source: str | Path) -> Alignment:
    """Read an alignment.

    Parameters
    ----------
    source
        A csv with a 3x3 matrix, a csv of keypoints, or ``identity`` for an H&E that lies in the frame of the
        platform's image already.

    Raises
    ------
    InputError
        When the file is missing, has another shape, or its matrix cannot be undone.
    """
    if str(source) == IDENTITY:
        return Alignment(np.eye(3), IDENTITY)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"the alignment {path} does not exist; give a csv, or the word {IDENTITY}")
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the alignment {path} cannot be read as text ({error}); expected a csv") from error
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    if rows and {name.lower() for name in KEYPOINT_COLUMNS} <= {cell.lower() for cell in rows[0]}:
        return _from_keypoints(path, rows)
    try:
        matrix = np.array([[float(cell) for cell in row] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise InputError(
            f"the alignment {path} is neither a 3x3 matrix of numbers without a header nor keypoints with the "
            f"header {','.join(KEYPOINT_COLUMNS)} ({error})"
        ) from error
    if matrix.shape != (3, 3):
        found = "x".join(str(n) for n in matrix.shape) if matrix.size else "nothing"
        raise InputError(f"expected a 3x3 matrix, found {found}, in the alignment {path}")
    return Alignment(_checked(matrix, path), str(path))


def _checked(matrix: Floats, path: Path) -> Floats:
    if not np.isfinite(matrix).all():
        raise InputError(f"the alignment {path} holds values that are not finite numbers")
    if not np.allclose(matrix[2], [0, 0, 1], atol=1e-9):
        last = ",".join(f"{v:g}" for v in matrix[2])
        raise InputError(f"expected 0,0,1 as the last row of an affine matrix, found {last}, in the alignment {path}")
    big, small = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if big == 0 or small / big < 1e-6:
        raise InputError(f"the matrix of the alignment {path} is singular: it maps the slide onto a line")
    return matrix


def _from_keypoints(path: Path, rows: list[list[str]]) -> Alignment:
    """Affine map by least squares over all points, H&E (alignment) to platform (fixed)."""
    header = [cell.lower() for cell in rows[0]]
    columns = [header.index(name.lower()) for name in KEYPOINT_COLUMNS]
    try:
        points = np.array([[float(row[c]) for c in columns] for row in rows[1:]], dtype=np.float64).reshape(-1, 4)
    except (ValueError, IndexError) as error:
        raise InputError(f"the keypoints {path} hold a row without four numbers ({error})") from error
    fixed, moving = points[:, :2], np.c_[points[:, 2:], np.ones(len(points))]
    if (
        len(points) < 3
        or not np.isfinite(points).all()
        or np.linalg.matrix_rank(moving / np.abs(moving).max(axis=0)) < 3
    ):
        raise InputError(f"expected at least three keypoints that are not on one line, found {len(points)}, in {path}")
    solution, *_ = np.linalg.lstsq(moving, fixed, rcond=None)
    matrix = np.vstack([solution.T, [0, 0, 1]])
    residuals = np.linalg.norm(moving @ solution - fixed, axis=1)
    return Alignment(_checked(matrix, path), str(path), residuals)
