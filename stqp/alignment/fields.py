"""Fields of a slide in which nuclei and haematoxylin are held against each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.alignment.stain import Stains
from stqp.errors import InputError, StqpError
from stqp.polygons import Polygons
from stqp.slides import RGBImage, Slide

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Image = NDArray[np.float32]

STEP_UM = 0.5  # µm per pixel at which the slide is read
SEARCH_UM = 20.0  # shifts are looked for up to here
FIELD_UM = 200.0  # side of a field
RING_UM = (1.0, 3.0)  # of the ring around a nucleus, outside of its outline
MIN_NUCLEI = 12  # of a field, or its shift says nothing
_REACH = round(SEARCH_UM / STEP_UM)
_MARGIN = 56  # px around a field: the search, and what nuclei reach over its edge
_SIDE = round(FIELD_UM / STEP_UM)
WINDOW = _SIDE + 2 * _MARGIN  # px; a power of two
_DARKEST = 0.98  # quantile of the stain beyond which more counts no more: a few black nuclei decide nothing
_AROUND_UM = 1.5  # spread of the surroundings that a nucleus is held against
_BACKGROUND_UM = 25.0
_CODES = 250.0
_CALIBRATION = 24  # fields from which the stains are estimated
_FEWEST_STAINED = 1000  # pixels of a field from which the usual amounts are taken
_FINE = 4  # masks are drawn at so many times the resolution, or small shifts would not be seen in them


@dataclass(frozen=True)
class Grid:
    """Fields of `FIELD_UM` that hold nuclei, and which of them are looked at.

    Attributes
    ----------
    side : float
        Of a field in full-resolution px.
    cells : int64 (k, 2)
        Column and row of each chosen field.
    eligible : int
        Fields with nuclei enough, before the choice.
    """

    side: float
    cells: Ints
    eligible: int

    @classmethod
    def choose(cls, centers: Floats, mpp: float, size: tuple[int, int], limit: int | None) -> Grid:
        """Choose fields on the slide with `MIN_NUCLEI` nuclei or more.

        Of more than `limit` fields, every k-th along a Z-shaped (Morton) path is taken, so the chosen ones
        lie evenly over the tissue.
        """
        side = FIELD_UM / mpp
        on = np.isfinite(centers).all(axis=1) & (centers >= 0).all(axis=1) & (centers < np.array(size)).all(axis=1)
        cells, counts = np.unique(np.floor(centers[on] / side).astype(np.int64), axis=0, return_counts=True)
        cells = cells[counts >= MIN_NUCLEI]
        eligible = len(cells)
        if limit is not None and len(cells) > limit:
            path = np.argsort(_morton(cells), kind="stable")
            cells = cells[np.sort(path[np.linspace(0, len(cells) - 1, limit).round().astype(np.int64)])]
        return cls(side, cells, eligible)

    def members(self, centers: Floats) -> list[Ints]:
        """Nuclei of each chosen field, by their centres."""
        if not len(self.cells):
            return []
        with np.errstate(invalid="ignore"):
            cell = np.floor(centers / self.side)
        known = np.isfinite(cell).all(axis=1) & (np.abs(cell) < 2**30).all(axis=1)
        code = np.full(len(centers), -1, np.int64)
        code[known] = _code(cell[known].astype(np.int64))
        order = np.argsort(code, kind="stable")
        wanted = _code(self.cells)
        starts, stops = (np.searchsorted(code[order], wanted, side) for side in ("left", "right"))
        return [order[a:b] for a, b in zip(starts, stops, strict=True)]


def _code(cells: Ints) -> Ints:
    return np.asarray((cells[:, 0] << 31) + cells[:, 1] + (1 << 30))


def _morton(cells: Ints) -> Ints:
    code = np.zeros(len(cells), np.int64)
    for bit in range(20):
        for axis in (0, 1):
            code |= ((cells[:, axis] >> bit) & 1) << (2 * bit + axis)
    return code


class Windows:
    """Haematoxylin of each field with a margin around it.

    Parameters
    ----------
    slide
        The H&E.
    mpp
        Its µm per px.
    grid
        The fields.
    keep
        Keep what was read, in a byte a pixel (256 KB a field), for those who come back.
    """

    def __init__(self, slide: Slide, mpp: float, grid: Grid, keep: bool = False):
        self.grid, self.mpp = grid, mpp
        self.scale = STEP_UM / mpp  # full-resolution px per pixel of a window
        self._slide = slide
        self._kept: dict[int, NDArray[np.uint8]] | None = {} if keep else None
        first = [self._read(i)[::4, ::4].reshape(-1, 3) for i in _spread(len(grid.cells), _CALIBRATION)]
        self.stains = Stains.estimate(np.concatenate([np.zeros((0, 3), np.uint8), *first]))
        # by field, and then the median: pigment, ink and folds in some fields are no haematoxylin
        found = [amount[amount > 0] for amount in (self.stains.amount(pixels[None]) for pixels in first)]
        usual = [np.quantile(amount, (0.5, _DARKEST)) for amount in found if len(amount) >= _FEWEST_STAINED]
        middle, dark = np.median(usual, axis=0) if usual else (0.0, 1.0)
        self.darkest = max(float(dark), 0.05)
        self.range = max(float(dark - middle), 0.05)

    def _read(self, index: int) -> RGBImage:
        x, y = self.corner(index)
        try:
            return self._slide.read(x, y, (WINDOW, WINDOW), self.scale)
        except StqpError:
            raise
        except Exception as error:  # the readers raise dozens of kinds for a broken file
            raise InputError(
                f"{self._slide.path} cannot be read to its end ({type(error).__name__}: {error}); is it whole?"
            ) from error

    def corner(self, index: int) -> tuple[float, float]:
        """Top left of a window in full-resolution px."""
        x, y = self.grid.cells[index] * self.grid.side - _MARGIN * self.scale
        return float(x), float(y)

    def stain(self, index: int) -> Image:
        """Haematoxylin of a window, in optical density, at most `darkest`."""
        codes = None if self._kept is None else self._kept.get(index)
        if codes is None:
            amount = self.stains.amount(self._read(index))
            codes = (np.minimum(amount / self.darkest, 1.0) * _CODES + 0.5).astype(np.uint8)
            if self._kept is not None:
                self._kept[index] = codes
        return codes.astype(np.float32) * np.float32(self.darkest / _CODES)


@dataclass
class Surface:
    """Contrast of stain under the nuclei against around them, at each shift of the search.

    Attributes
    ----------
    contrast : float32 (2 * reach + 1, 2 * reach + 1)
        Optical density; the middle is no shift, columns are x.
    nuclei : int
    center : float64 (2,)
        Mean place of the nuclei in full-resolution px.
    """

    contrast: Image
    nuclei: int
    center: Floats


def surfaces(
    windows: Windows,
    index: int,
    polygons: Polygons,
    centers: Floats,
    parts: int = 1,
    places: Floats | None = None,
    stain: Image | None = None,
) -> list[Surface]:
    """Cross-correlate the nuclei of a field with its haematoxylin.

    Parameters
    ----------
    windows
        The slide.
    index
        Of the field.
    polygons, centers
        The nuclei of the field, in full-resolution px.
    parts
        The field is split into so many parts a side, each with a surface of its own.
    places : float64 (n, 2)
        Of the nuclei, for `Surface.center`; their centres when None.
    stain
        Of the window, where it is at hand.
    """
    import cv2
    from scipy import fft

    stain = windows.stain(index) if stain is None else stain
    places = centers if places is None else places
    # slow changes of the stain would drag every nucleus toward the darker side
    width = 2 * round(_BACKGROUND_UM / STEP_UM / 2) + 1
    spectrum = fft.rfft2(stain - cv2.blur(stain, (width, width)))
    x, y = windows.corner(index)
    step = windows.grid.side / parts
    part = np.clip(np.floor((centers - windows.grid.cells[index] * windows.grid.side) / step), 0, parts - 1)
    owner = (part[:, 1] * parts + part[:, 0]).astype(np.int64)
    result = []
    for number in range(parts * parts):
        chosen = np.flatnonzero(owner == number)
        if len(chosen) < MIN_NUCLEI:
            continue
        template = _template(polygons.take(chosen).shift(-x, -y).scale(1 / windows.scale))
        correlation = fft.irfft2(spectrum * np.conj(fft.rfft2(template)), s=template.shape)
        middle = np.fft.fftshift(correlation)[
            WINDOW // 2 - _REACH : WINDOW // 2 + _REACH + 1, WINDOW // 2 - _REACH : WINDOW // 2 + _REACH + 1
        ]
        result.append(Surface(middle.astype(np.float32), len(chosen), places[chosen].mean(axis=0)))
    return result


def _template(polygons: Polygons) -> Image:
    """Weights of 1 over the nuclei and -1 over what surrounds them, each in all; polygons in px of the window."""
    import cv2

    result = np.zeros((WINDOW, WINDOW), np.float32)
    if not len(polygons.coords):
        return result
    pad = round(4 * _AROUND_UM / STEP_UM)
    low = np.clip(np.floor(polygons.coords.min(axis=0)) - pad, 0, WINDOW).astype(int)
    high = np.clip(np.ceil(polygons.coords.max(axis=0)) + pad, 0, WINDOW).astype(int)
    width, height = np.maximum(high - low, 0).tolist()
    if not width or not height:
        return result
    fine = np.zeros((height * _FINE, width * _FINE), np.uint8)
    local = polygons.shift(-low[0], -low[1]).scale(_FINE)
    local.rasterize(fine.shape, np.full(len(polygons), 255, np.uint8), fine)
    mask = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    around = cv2.GaussianBlur(mask, (0, 0), _AROUND_UM / STEP_UM) * (1 - mask)
    weights = mask / max(mask.sum(), 1e-6) - around / max(around.sum(), 1e-6)
    result[low[1] : high[1], low[0] : high[0]] = weights
    return result


def nucleus_contrast(windows: Windows, index: int, polygons: Polygons, stain: Image | None = None) -> Floats:
    """Stain inside each nucleus less that in a ring around it, of which other nuclei are no part, (n,).

    In units of the slide's own range of haematoxylin, so about 0 without a relation; NaN where the nucleus has
    no pixel of its own.
    """
    import cv2

    stain = windows.stain(index) if stain is None else stain
    x, y = windows.corner(index)
    n = len(polygons)
    labels = polygons.shift(-x, -y).scale(1 / windows.scale).rasterize((WINDOW, WINDOW))
    distance, nearest = cv2.distanceTransformWithLabels(
        (labels == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_pixel = np.zeros(int(nearest.max()) + 1, np.int64)
    of_pixel[nearest[labels > 0]] = labels[labels > 0]
    ring = (distance > RING_UM[0] / STEP_UM) & (distance <= RING_UM[1] / STEP_UM)
    owner = of_pixel[nearest[ring]]
    flat = labels.ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.bincount(flat, stain.ravel(), n + 1)[1:] / np.bincount(flat, minlength=n + 1)[1:]
        pixels = np.bincount(owner, minlength=n + 1)[1:]
        around = np.bincount(owner, stain[ring], n + 1)[1:] / pixels
    usual = float(np.median(stain[ring])) if ring.any() else 0.0
    around = np.where(pixels >= 4, around, usual)
    return np.asarray((inside - around) / windows.range, dtype=np.float64)


def _spread(n: int, most: int) -> list[int]:
    """At most `most` of 0..n-1, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist() if n else []
