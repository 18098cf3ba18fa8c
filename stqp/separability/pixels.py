"""Stain and texture of nuclei, read from the slide in tiles; every number comes of sums over a tile's pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.alignment.stain import Stains
from stqp.polygons import Polygons
from stqp.slides import RGBImage, Slide
from stqp.tissue import broken_file

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Image = NDArray[np.float32]

PIXEL_UM = 0.25  # at which slides are read, where they have as much
RING_UM = (1.0, 3.0)  # around a nucleus
LEVELS, TOP = 64, 1.5  # grey levels, from 0 to so many times the slide's dark stain
OFFSETS_UM = (0.5, 1.0)  # between the two pixels of a co-occurrence
SPOT_UM = (0.5, 1.0)  # of the spots that a Laplacian of a Gaussian answers to
_CORE = 2048  # px of a tile
_MARGIN_UM = 8.0  # around its nuclei: their rings, and the nuclei that these belong to as well
_EDGE_UM, _DEEP_UM = 0.5, 1.0  # distance to the outline of what is rim, and of what is middle
_FEWEST, _FEWEST_RING = 12, 8  # pixels from which something is said
_SAMPLED, _SAMPLE_SIDE = 24, 512  # tiles from which the stains are estimated, and their side
_DARK = 0.98
_LEAST_SEEN = 0.5

PIXELS = (
    "haematoxylin mean",
    "haematoxylin sd",
    "haematoxylin 10 %",
    "haematoxylin 50 %",
    "haematoxylin 90 %",
    "haematoxylin entropy",
    "haematoxylin against ring",
    "haematoxylin in all",
    "haematoxylin rim against middle",
    "haematoxylin of ring",
    "eosin mean",
    "eosin sd",
    "eosin against ring",
    "eosin of ring",
    "gradient inside",
    "gradient at rim",
    *(f"spots of {um:g} µm" for um in SPOT_UM),
    *(f"co-occurrence {what} at {um:g} µm" for um in OFFSETS_UM for what in ("contrast", "homogeneity", "correlation")),
)


@dataclass(frozen=True)
class SlideStain:
    """A slide's stains, and what is dark on it.

    Attributes
    ----------
    stains : Stains
    haematoxylin, eosin : float
        Optical density below which 98 % of the stained pixels are: the unit of the features, so that they carry
        over to a slide that is stained more or less.
    """

    stains: Stains
    haematoxylin: float
    eosin: float

    @classmethod
    def of(cls, slide: Slide, places: Floats, downsample: float) -> SlideStain:
        """Estimate from windows that lie evenly over the nuclei; `places` in full-resolution px, (n, 2)."""
        side = _SAMPLE_SIDE * downsample
        cells = np.unique(np.floor(places[np.isfinite(places).all(axis=1)] / side).astype(np.int64), axis=0)
        chosen = np.unique(np.linspace(0, len(cells) - 1, min(len(cells), _SAMPLED)).round().astype(np.int64))
        with broken_file(slide):
            corners = [cells[i] * side for i in chosen]
            windows = [slide.read(x, y, (_SAMPLE_SIDE, _SAMPLE_SIDE), downsample) for x, y in corners]
        pixels = [w[::3, ::3].reshape(-1, 3) for w in windows]
        stains = Stains.estimate(np.concatenate([np.zeros((0, 3), np.uint8), *pixels]))
        dark = []
        for amount in (stains.amount, stains.eosin_amount):
            found = [a[a > 0] for a in (amount(p[None]) for p in pixels)]
            # the median of windows: pigment, ink and folds in some of them are no stain
            high = [np.quantile(a, _DARK) for a in found if len(a) >= 1000]
            dark.append(max(float(np.median(high)) if high else 1.0, 0.05))
        return cls(stains, *dark)


def pixel_features(
    slide: Slide,
    polygons: Polygons,
    mpp: float,
    work_mpp: float,
    stain: SlideStain | None = None,
    progress: Callable[[int, int], None] | None = None,
    core: int = _CORE,
) -> Floats:
    """Measure stain and texture of each nucleus.

    Parameters
    ----------
    slide
        The H&E.
    polygons
        Nuclei in its full-resolution px.
    mpp
        Its µm per px.
    work_mpp
        µm per px at which it is read.
    stain
        Of the slide; estimated when None.
    progress
        Called with tiles done and their number.
    core
        Side of a tile in px as read; it changes speed and memory, not the result.

    Returns
    -------
    float64 (n, len(PIXELS))
        NaN where a nucleus has too few pixels, or less than half of it lies on the slide.

    Raises
    ------
    InputError
        When the slide cannot be read to its end.
    """
    downsample = work_mpp / mpp
    centers = polygons.centroid()
    stain = SlideStain.of(slide, centers, downsample) if stain is None else stain
    result = np.full((len(polygons), len(PIXELS)), np.nan)
    bounds = polygons.bounds()
    known = np.flatnonzero(np.isfinite(centers).all(axis=1))
    side = core * downsample
    tile = np.floor(centers[known] / side).astype(np.int64)
    cells, owner = np.unique(tile, axis=0, return_inverse=True)
    margin = _MARGIN_UM / mpp
    order = np.argsort(owner.reshape(-1), kind="stable")
    members = np.split(known[order], np.cumsum(np.bincount(owner.reshape(-1), minlength=len(cells)))[:-1])
    for number, mine in enumerate(members):
        # on one grid for all tiles, so that the tiles change nothing
        low = np.floor((bounds[mine, :2].min(axis=0) - margin) / downsample)
        high = np.ceil((bounds[mine, 2:].max(axis=0) + margin) / downsample)
        (x, y), (width, height) = low * downsample, (high - low).astype(np.int64)
        right, bottom = high * downsample
        near = np.flatnonzero(
            (bounds[:, 2] > x) & (bounds[:, 0] < right) & (bounds[:, 3] > y) & (bounds[:, 1] < bottom)
        )
        with broken_file(slide):
            image = slide.read(x, y, (int(width), int(height)), downsample)
        # a pixel is on the slide when its centre is
        columns, rows = (np.arange(n) * downsample + start for n, start in ((width, x), (height, y)))
        half = downsample / 2
        on_x = (columns + half > 0) & (columns + half < slide.width)
        on_y = (rows + half > 0) & (rows + half < slide.height)
        local = polygons.take(near).shift(-x, -y).scale(1 / downsample)
        found = measure_window(image, local, on_y[:, None] & on_x, stain, work_mpp)
        result[mine] = found[np.searchsorted(near, mine)]
        if progress is not None:
            progress(number + 1, len(cells))
    return result


def measure_window(
    image: RGBImage, polygons: Polygons, seen: NDArray[np.bool_], stain: SlideStain, mpp: float
) -> Floats:
    """Measure the nuclei of one window.

    Parameters
    ----------
    image : uint8 (h, w, 3)
    polygons
        ``n`` nuclei in px of the window; where two overlap, the pixels are the later one's.
    seen : bool (h, w)
        What lies on the slide.
    stain
        Of the slide.
    mpp
        µm per px of the window.

    Returns
    -------
    float64 (n, len(PIXELS))
    """
    import cv2

    n = len(polygons)
    all_labels = polygons.rasterize(seen.shape)
    labels = np.where(seen, all_labels, 0).astype(np.int32)
    blue = stain.stains.amount(image) * np.float32(1 / stain.haematoxylin)
    pink = stain.stains.eosin_amount(image) * np.float32(1 / stain.eosin)
    inside = np.flatnonzero(labels.reshape(-1))
    who = labels.reshape(-1)[inside].astype(np.int64) - 1
    pixels = np.bincount(who, minlength=n)
    whole = np.bincount(all_labels.reshape(-1), minlength=n + 1)[1:]
    h, e = blue.reshape(-1)[inside], pink.reshape(-1)[inside]
    column: dict[str, Floats] = {}
    area = pixels * mpp**2
    column["haematoxylin mean"], column["haematoxylin sd"] = _mean_sd(who, h, n)
    column["eosin mean"], column["eosin sd"] = _mean_sd(who, e, n)
    column["haematoxylin in all"] = column["haematoxylin mean"] * area
    codes = grey_levels(blue)
    counts = np.bincount(who * LEVELS + codes.reshape(-1)[inside], minlength=n * LEVELS).reshape(n, LEVELS)
    for share in (0.1, 0.5, 0.9):
        column[f"haematoxylin {100 * share:g} %"] = _quantile(counts, share) * (TOP / LEVELS)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = counts / pixels[:, None]
        column["haematoxylin entropy"] = -(p * np.log2(np.where(p > 0, p, 1))).sum(axis=1)
    _ring(column, all_labels, seen, blue, pink, mpp)
    depth = _depth(all_labels).reshape(-1)[inside] * mpp
    rim, middle, inner = depth <= _EDGE_UM, depth > _DEEP_UM, depth > _EDGE_UM
    column["haematoxylin rim against middle"] = _mean(who[rim], h[rim], n) - _mean(who[middle], h[middle], n)
    smooth = cv2.GaussianBlur(blue, (0, 0), 0.3 / mpp)
    dx, dy = (cv2.Scharr(smooth, cv2.CV_32F, *way) / np.float32(32 * mpp) for way in ((1, 0), (0, 1)))
    slope = np.hypot(dx, dy).reshape(-1)[inside]
    column["gradient inside"] = _mean(who[inner], slope[inner], n)
    column["gradient at rim"] = _mean(who[rim], slope[rim], n)
    for um in SPOT_UM:
        answer = spots(blue, um, mpp).reshape(-1)[inside]
        column[f"spots of {um:g} µm"] = np.sqrt(_mean(who[inner], answer[inner] ** 2, n))
    for um in OFFSETS_UM:
        found = co_occurrence(codes, labels, n, max(1, round(um / mpp)))
        for name, values in zip(("contrast", "homogeneity", "correlation"), found, strict=True):
            column[f"co-occurrence {name} at {um:g} µm"] = values
    result = np.stack([column[name] for name in PIXELS], axis=1)
    result[(pixels < _FEWEST) | (pixels < _LEAST_SEEN * whole)] = np.nan
    return result


def grey_levels(blue: Image) -> NDArray[np.uint8]:
    """Haematoxylin in `LEVELS` steps up to `TOP`."""
    return np.minimum(blue * np.float32(LEVELS / TOP), LEVELS - 1).astype(np.uint8)


def spots(blue: Image, um: float, mpp: float) -> Image:
    """Laplacian of a Gaussian of so many µm, normalised by its scale: above 0 on what is darker than around it."""
    import cv2

    sigma = um / mpp
    return np.asarray(-(sigma**2) * cv2.Laplacian(cv2.GaussianBlur(blue, (0, 0), sigma), cv2.CV_32F), np.float32)


def co_occurrence(
    codes: NDArray[np.uint8], labels: NDArray[np.int32], n: int, offset: int
) -> tuple[Floats, Floats, Floats]:
    """Haralick's contrast, homogeneity and correlation of each nucleus.

    Of the symmetric matrix of pixel pairs within the nucleus at a distance, over the four directions together, so
    that a turned nucleus gives the same (Haralick et al. 1973).

    Parameters
    ----------
    codes : uint8 (h, w)
        Grey levels.
    labels : int32 (h, w)
        1..n.
    n
        Nuclei.
    offset
        Distance in px along the rows; across, its diagonal is rounded to the same length.

    Returns
    -------
    contrast, homogeneity, correlation : float64 (n,)
        NaN without pairs; the correlation of a nucleus of one grey level is 1.
    """
    sums = np.zeros((6, n))
    slant = max(1, round(offset / np.sqrt(2)))
    height, width = labels.shape
    for down, right in ((0, offset), (slant, slant), (offset, 0), (slant, -slant)):
        a = slice(0, height - down), slice(max(0, -right), width - max(0, right))
        b = slice(down, height), slice(max(0, right), width - max(0, -right))
        same = (labels[a] == labels[b]) & (labels[a] > 0)
        who = labels[a][same].astype(np.int64) - 1
        i, j = codes[a][same].astype(np.float64), codes[b][same].astype(np.float64)
        difference = (i - j) ** 2
        for row, values in enumerate((None, difference, 1 / (1 + difference), (i + j) / 2, (i * i + j * j) / 2, i * j)):
            sums[row] += np.bincount(who, values, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        contrast, homogeneity, mean, square, product = sums[1:] / sums[0]
        variance = square - mean**2
        correlation = (product - mean**2) / variance
    correlation = np.where((sums[0] > 0) & (variance < 1e-9), 1.0, correlation)
    return contrast, homogeneity, correlation


def _ring(
    column: dict[str, Floats],
    labels: NDArray[np.int32],
    seen: NDArray[np.bool_],
    blue: Image,
    pink: Image,
    mpp: float,
) -> None:
    """Stain around each nucleus: pixels of the ring that are nearest to it and of no other nucleus."""
    import cv2

    n = len(column["haematoxylin mean"])
    distance, nearest = cv2.distanceTransformWithLabels(
        (labels == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_pixel = np.zeros(int(nearest.max()) + 1, np.int64)
    of_pixel[nearest[labels > 0]] = labels[labels > 0]
    ring = (distance > RING_UM[0] / mpp) & (distance <= RING_UM[1] / mpp) & seen
    owner = of_pixel[nearest[ring]]
    ring_owner = owner[owner > 0] - 1
    enough = np.bincount(ring_owner, minlength=n) >= _FEWEST_RING
    for name, amount in (("haematoxylin", blue), ("eosin", pink)):
        around = _mean(ring_owner, amount[ring][owner > 0], n)
        around[~enough] = np.nan
        column[f"{name} of ring"] = around
        column[f"{name} against ring"] = column[f"{name} mean"] - around


def _depth(labels: NDArray[np.int32]) -> Image:
    """Distance of each pixel to the outline of its own nucleus, in px, also where two nuclei touch."""
    import cv2

    alone = labels > 0
    alone[:, 1:] &= labels[:, 1:] == labels[:, :-1]
    alone[1:] &= labels[1:] == labels[:-1]
    return np.asarray(cv2.distanceTransform(alone.astype(np.uint8), cv2.DIST_L2, 3), np.float32)


def _mean(who: Ints, values: NDArray[np.floating], n: int) -> Floats:
    total: Floats = np.bincount(who, values, n).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(total / np.bincount(who, minlength=n), np.float64)


def _mean_sd(who: Ints, values: NDArray[np.floating], n: int) -> tuple[Floats, Floats]:
    mean = _mean(who, values, n)
    return mean, np.sqrt(_mean(who, (values - mean[who]) ** 2, n))


def _quantile(counts: NDArray[np.int64], share: float) -> Floats:
    """Quantile of each row of a histogram, in bins, evenly within its bin."""
    total = np.cumsum(counts, axis=1)
    wanted = share * total[:, -1:]
    bin_ = (total < wanted).sum(axis=1).clip(max=counts.shape[1] - 1)
    rows = np.arange(len(counts))
    within = counts[rows, bin_]
    with np.errstate(divide="ignore", invalid="ignore"):
        return bin_ + (wanted[:, 0] - (total[rows, bin_] - within)) / within
