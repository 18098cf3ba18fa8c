"""Read an alignment, and hold it against what the slide says of itself.

Xenium Explorer exports a 3x3 csv without a header that maps full-resolution H&E pixels to morphology
pixels, as column vectors (x, y, 1); keypoints, which are told apart by their header; and a zip of both. In all,
pixel (i, j) covers [i, i + 1) x [j, j + 1), as everywhere in stqp.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.alignment.explorer import KEYPOINTS_FILE, MATRIX_FILE, read_zip
from stqp.alignment.keypoints import COLUMNS, KeypointFit, fit_keypoints, is_keypoints, parse_keypoints
from stqp.errors import InputError

IDENTITY = "identity"
SCALE_TOLERANCE = 0.05
_SHEAR_WARNING = 1.1
_DISAGREE_UM = 5.0
_NUMBERS = re.compile(r"[\s,;\[\]()]+")
_JAVA_KEYS = ("m00", "m01", "m02", "m10", "m11", "m12")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """An affine map from H&E pixels to the pixels of the platform's own image.

    Attributes
    ----------
    matrix : float64 (3, 3)
        Acts on column vectors (x, y, 1).
    source
        The file's path, ``identity``, or the numbers as they were given.
    residuals : float64 (k,)
        Distance of each keypoint from where the fit puts it, in pixels of the platform's image; empty for
        a matrix.
    keypoints : KeypointFit or None
        The fit, where keypoints were given, be it beside a matrix.
    disagreement : float
        Of a zip: the farthest that the matrix puts a keypoint from where the keypoints' own fit does, platform
        pixels.
    is_file : bool
        Whether `source` is a file.
    """

    matrix: Floats
    source: str
    residuals: Floats = field(default_factory=lambda: np.empty(0))
    keypoints: KeypointFit | None = None
    disagreement: float = 0.0
    is_file: bool = False

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

    def inverse(self) -> Alignment:
        """The map of a matrix that was given the other way round."""
        return replace(self, matrix=np.asarray(np.linalg.inv(self.matrix)))

    def warnings(self, pixel_size: float = 1.0) -> list[str]:
        """What is legal and unlikely; `pixel_size` is in µm per platform pixel."""
        found = []
        big, small = np.linalg.svd(self.matrix[:2, :2], compute_uv=False)
        if big / small > _SHEAR_WARNING:
            found.append(f"the alignment {self.source} stretches one axis {big / small:.2f} times as much as the other")
        if self.keypoints is not None:
            for i in self.keypoints.outliers.tolist():
                away = self.keypoints.left_out[i] * pixel_size
                found.append(f"keypoint {i + 1} of {self.source} lies {away:.1f} µm from where the others put it")
        if self.disagreement * pixel_size > _DISAGREE_UM:
            found.append(
                f"{MATRIX_FILE} and {KEYPOINTS_FILE} of {self.source} are up to {self.disagreement * pixel_size:.1f} "
                "µm apart; took the matrix"
            )
        return found

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
            reason = "the matrix is inverted: it must map H&E pixels to morphology pixels (--alignment-direction)"
        elif level != 1 and abs(ratio / level - 1) <= SCALE_TOLERANCE:
            reason = f"the alignment was made on a level of the pyramid whose pixels are {level:g} times as large"
        else:
            reason = "this is the alignment of another image, or the slide states a wrong pixel size (--mpp)"
        raise InputError(
            f"the alignment {self.source} implies {implied:.4g} µm per H&E pixel, but {slide} has "
            f"{slide_mpp:.4g}; likely {reason}"
        )


def read_alignment(source: str | Path, model: str = "affine") -> Alignment:
    """Read an alignment.

    Parameters
    ----------
    source
        A csv with a 3x3 matrix, a csv of keypoints, Explorer's zip of both, a ``.json`` or ``.npy`` of 2x3, 3x3, 6
        or 9 numbers row by row, such numbers as text, or ``identity`` for an H&E that lies in the frame of the
        platform's image already.
    model : {"affine", "similarity"}
        What is fitted to keypoints.

    Raises
    ------
    InputError
        When the file is missing, has another shape, or its matrix cannot be undone.
    """
    if str(source) == IDENTITY:
        return Alignment(np.eye(3), IDENTITY)
    path = Path(source)
    given = _given_numbers(str(source))
    if given is not None:
        return Alignment(_checked(_square(given, f"the alignment {source}"), str(source)), str(source))
    if not path.is_file():
        raise InputError(
            f"the alignment {path} does not exist; give a csv, a zip of Xenium Explorer, six numbers, or the word "
            f"{IDENTITY}"
        )
    kind = path.suffix.lower()
    if kind == ".zip":
        return _from_zip(path, model)
    if kind in (".json", ".npy"):
        values = _json_numbers(path) if kind == ".json" else _npy_numbers(path)
        return Alignment(_checked(_square(values, f"the alignment {path}"), path), str(path), is_file=True)
    try:
        return _from_csv(str(path), path.read_bytes(), model)
    except OSError as error:
        raise InputError(f"the alignment {path} cannot be read ({error})") from error


def _from_zip(path: Path, model: str) -> Alignment:
    found = read_zip(path)
    read = {name: _from_csv(f"{path} ({name})", data, model) for name, data in found.items()}
    if len(read) == 1:
        return replace(*read.values(), source=str(path))
    matrix, points = read[MATRIX_FILE], read[KEYPOINTS_FILE]
    if points.keypoints is None:
        raise InputError(f"{KEYPOINTS_FILE} in the alignment {path} lacks the header {','.join(COLUMNS)}")
    _, he = parse_keypoints(path, _rows(str(path), found[KEYPOINTS_FILE]))
    apart = he @ (matrix.matrix - points.matrix)[:2, :2].T + (matrix.matrix - points.matrix)[:2, 2]
    return replace(points, matrix=matrix.matrix, source=str(path), disagreement=float(np.hypot(*apart.T).max()))


def _rows(name: str, data: bytes) -> list[list[str]]:
    try:
        if b"\0" in data:
            raise ValueError("it holds bytes of 0")
        text = data.decode("utf-8-sig")
    except ValueError as error:
        raise InputError(f"the alignment {name} cannot be read as text ({error}); expected a csv") from error
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if ";" in line:
            raise InputError(
                f"row {number + 1} of the alignment {name} has semicolons; save it with commas between the columns and "
                "points in the numbers"
            )
    return [[cell.strip() for cell in row] for row in csv.reader(lines)]


def _from_csv(name: str, data: bytes, model: str) -> Alignment:
    rows = _rows(name, data)
    if rows and is_keypoints(rows[0]):
        fixed, he = parse_keypoints(name, rows)
        fit = fit_keypoints(fixed, he, name, model)
        return Alignment(_checked(fit.matrix, name), name, fit.residuals, fit, is_file=True)
    try:
        matrix = np.array([[float(cell) for cell in row] for row in rows], dtype=np.float64)
    except ValueError as error:
        hint = ""
        if len(rows) == 4 and all(_is_numbers(row) for row in rows[1:]):
            hint = "; delete its first row, which is a header"
        raise InputError(
            f"the alignment {name} is neither a 3x3 matrix of numbers without a header nor keypoints with the "
            f"header {','.join(COLUMNS)} ({error}){hint}"
        ) from error
    if matrix.shape != (3, 3):
        found = "x".join(str(n) for n in matrix.shape) if matrix.size else "nothing"
        hint = "; are its decimal signs commas?" if matrix.ndim == 2 and matrix.shape[1] in (5, 6) else ""
        raise InputError(f"expected a 3x3 matrix, found {found}, in the alignment {name}{hint}")
    return Alignment(_checked(matrix, name), name, is_file=True)


def _is_numbers(row: list[str]) -> bool:
    try:
        return [float(cell) for cell in row] != []
    except ValueError:
        return False


def _given_numbers(text: str) -> Floats | None:
    """Numbers of a text that holds nothing else, None for any other text."""
    parts = [part for part in _NUMBERS.split(text) if part]
    return np.array([float(part) for part in parts]) if len(parts) > 1 and _is_numbers(parts) else None


def _json_numbers(path: Path) -> Floats:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(found, dict):
            inner = next((found[k] for k in ("matrix", "transform") if k in found), found)
            found = [inner[k] for k in _JAVA_KEYS] if isinstance(inner, dict) else inner
        return np.array(found, dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"expected 2x3 or 3x3 numbers, row by row, or the keys {', '.join(_JAVA_KEYS)} in the alignment {path} "
            f"({type(error).__name__}: {error})"
        ) from error


def _npy_numbers(path: Path) -> Floats:
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"the alignment {path} cannot be read as an array of numpy ({error})") from error


def _square(values: Floats, what: str) -> Floats:
    """3x3 matrix from 6 or 9 numbers row by row."""
    if values.size == 6 and values.shape in ((6,), (2, 3)):
        return np.vstack([values.reshape(2, 3), [0.0, 0.0, 1.0]])
    if values.size == 9 and values.shape in ((9,), (3, 3)):
        return values.reshape(3, 3)
    found = "x".join(str(n) for n in values.shape) or "one number"
    raise InputError(f"expected 2x3 or 3x3 numbers, found {found}, in {what}")


def _checked(matrix: Floats, path: Path | str) -> Floats:
    if not np.isfinite(matrix).all():
        raise InputError(f"the alignment {path} holds values that are not finite numbers")
    if not np.allclose(matrix[2], [0, 0, 1], atol=1e-9):
        last = ",".join(f"{v:g}" for v in matrix[2])
        raise InputError(f"expected 0,0,1 as the last row of an affine matrix, found {last}, in the alignment {path}")
    big, small = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if big == 0 or small / big < 1e-6:
        raise InputError(f"the matrix of the alignment {path} is singular: it maps the slide onto a line")
    return matrix
