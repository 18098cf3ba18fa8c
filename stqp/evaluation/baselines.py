"""What needs no learning, so that a score means something.

- ``majority class``: the first prediction's nuclei, all of the commonest class of the truth.
- ``shuffled labels``: the first prediction's nuclei, its classes shuffled among them within each image. What a
  model gets right beyond this it knows of single nuclei, not of the slide.
- ``watershed``: nuclei without classes, by thresholds and the watershed on haematoxylin.
- ``PanNuke HoVer-Net``: the network that TIAToolbox offers, as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, StqpError
from stqp.evaluation.evaluate import Evaluation
from stqp.evaluation.nuclei import MPP, Side
from stqp.evaluation.options import Source
from stqp.inference.detections import Detections
from stqp.polygons import Polygons
from stqp.slides import RGBImage, Slide
from stqp.taxonomy import UNKNOWN

MAJORITY, SHUFFLED, WATERSHED, NETWORK = "majority class", "shuffled labels", "watershed", "PanNuke HoVer-Net"
PANNUKE_MODEL = "hovernet_fast-pannuke"
_TILE, _MARGIN = 1024, 64  # px; a nucleus is found by the tile that holds its centre
_SMALLEST_UM2, _LARGEST_UM2 = 8.0, 400.0


def add_typing_baselines(evaluation: Evaluation) -> list[str]:
    """Add the two baselines of typing to an evaluation; their names.

    Nothing is added where the truth, or the first prediction, has no classes.
    """
    first, k = evaluation.predictions[0], len(evaluation.classes)
    every = [image.matches[first].overlap for image in evaluation.images]
    numbers = np.bincount(np.concatenate([t.true_types for t in every]), minlength=k + 1)[1:]
    if not numbers.sum() or not any((t.pred_types > 0).any() for t in every):
        return []
    rng = np.random.default_rng(evaluation.options.seed)
    commonest = int(numbers.argmax()) + 1
    for image in evaluation.images:
        found = image.matches[first]
        table = replace(found.overlap, pred_probability=None)
        everywhere = np.full(len(table.pred_types), commonest)
        image.matches[MAJORITY] = replace(found, overlap=replace(table, pred_types=everywhere))
        image.matches[SHUFFLED] = replace(found, overlap=replace(table, pred_types=rng.permutation(table.pred_types)))
    evaluation.predictions.extend([MAJORITY, SHUFFLED])
    evaluation.baselines.extend([MAJORITY, SHUFFLED])
    return [MAJORITY, SHUFFLED]


class Found:
    """Predictions that are made as they are read, on the images of another source.

    Parameters
    ----------
    name
        For messages.
    on
        Whose images; they must have pixels.
    find
        Finds nuclei on a slide of some µm/px within a box of full-resolution px.
    mpp
        µm per px of images that do not say.
    """

    def __init__(
        self,
        name: str,
        on: Source,
        find: Callable[[Slide, float, tuple[int, int, int, int]], Side],
        mpp: float | None = None,
    ):
        self.name, self._on, self._find, self._mpp = name, on, find, mpp
        self.default_names: Mapping[int, str] | None = None

    def images(self) -> list[str]:
        """Those of the other source."""
        return self._on.images()

    def close(self) -> None:
        """Nothing is kept open."""

    def read(self, image: str) -> Side:
        """Find the nuclei of an image."""
        truth = self._on.read(image)
        with open_pixels(truth) as slide:
            box = (0, 0, slide.width, slide.height)
            if truth.coverage is not None and len(truth.coverage.coords):
                low, high = truth.coverage.coords.min(axis=0), truth.coverage.coords.max(axis=0)
                box = (
                    max(0, math.floor(low[0])),
                    max(0, math.floor(low[1])),
                    min(slide.width, math.ceil(high[0])),
                    min(slide.height, math.ceil(high[1])),
                )
            found = self._find(slide, truth.mpp or self._mpp or MPP, box)
        return replace(found, source=f"{self.name} on {image}", mpp=truth.mpp, size=truth.size)


class _ArraySlide(Slide):
    """Pixels that are in memory, as a slide."""

    def __init__(self, pixels: RGBImage):
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]
        self.level_sizes, self.downsamples, self.mpp = [(self.width, self.height)], [1.0], None

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> RGBImage:
        return self._pixels[y : y + height, x : x + width]


def open_pixels(side: Side) -> Slide:
    """Open the H&E of an image.

    Raises
    ------
    InputError
        When there is none.
    """
    from stqp.slides import open_slide

    if side.pixels is not None:
        return _ArraySlide(side.pixels)
    if side.image is None:
        raise InputError(f"expected the H&E of {side.source}, found none; name its folder with --images")
    return open_slide(side.image, side.mpp)


def watershed_source(on: Source, mpp: float | None = None) -> Found:
    """The classical baseline on the images of a source."""
    return Found(WATERSHED, on, watershed_slide, mpp)


def watershed_slide(slide: Slide, mpp: float, box: tuple[int, int, int, int]) -> Side:
    """Find nuclei on a slide, or a part of it, tile by tile; see `watershed`."""
    from stqp.polygonise import polygonise

    step = MPP / mpp if mpp > MPP * 1.01 or mpp < MPP * 0.99 else 1.0
    x0, y0, x1, y1 = (v / step for v in box)
    parts = []
    for top in range(int(y0), math.ceil(y1), _TILE):
        for left in range(int(x0), math.ceil(x1), _TILE):
            inner = (left, top, min(left + _TILE, math.ceil(x1)), min(top + _TILE, math.ceil(y1)))
            outer = (max(inner[0] - _MARGIN, int(x0)), max(inner[1] - _MARGIN, int(y0)))
            size = (
                min(inner[2] + _MARGIN, math.ceil(x1)) - outer[0],
                min(inner[3] + _MARGIN, math.ceil(y1)) - outer[1],
            )
            pixels = slide.read(outer[0] * step, outer[1] * step, size, step)
            found = polygonise(watershed(pixels, MPP))[0].shift(*outer)
            centre = found.centroid()
            mine = ((centre >= inner[:2]) & (centre < inner[2:])).all(axis=1)
            parts.append(found.take(mine))
    polygons = Polygons.concatenate(parts).scale(step)
    return Side(WATERSHED, np.full(len(polygons), UNKNOWN, object), polygons=polygons)


def watershed(pixels: RGBImage, mpp: float) -> NDArray[np.int32]:
    """Instance map of nuclei by colour alone.

    Haematoxylin by colour deconvolution (Ruifrok and Johnston 2001), smoothed; foreground above Otsu's
    threshold; seeds at the maxima of the smoothed distance to its edge, at least 3 µm apart; watershed.

    Parameters
    ----------
    pixels : uint8 (height, width, 3)
        H&E.
    mpp
        µm per px.
    """
    from scipy import ndimage
    from skimage.color import rgb2hed
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.measure import label
    from skimage.morphology import remove_small_holes, remove_small_objects
    from skimage.segmentation import watershed as flood

    stain = gaussian(rgb2hed(pixels)[..., 0], 0.5 / mpp)
    if float(np.ptp(stain)) < 1e-6:
        return np.zeros(pixels.shape[:2], np.int32)
    smallest = int(_SMALLEST_UM2 / mpp**2)
    mask = ndimage.binary_opening(stain > threshold_otsu(stain), iterations=max(1, round(0.5 / mpp)))
    mask = remove_small_objects(remove_small_holes(mask, max_size=smallest), max_size=smallest)
    depth = gaussian(ndimage.distance_transform_edt(mask), 0.5 / mpp)
    peaks = peak_local_max(depth, min_distance=max(1, round(3 / mpp)), labels=label(mask), exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    inst = flood(-depth, seeds, mask=mask)
    area = np.bincount(inst.ravel())
    wrong = (area < smallest) | (area > _LARGEST_UM2 / mpp**2)
    inst[wrong[inst]] = 0
    return np.asarray(inst, np.int32)


def network_source(
    on: Source, weights: str = PANNUKE_MODEL, device: str = "auto", mpp: float | None = None
) -> tuple[Found | None, str]:
    """A trained network as it is, on the images of a source; or None, and why.

    Parameters
    ----------
    on
        Whose images.
    weights
        A run, a file of weights, or a model that TIAToolbox has; nothing is fetched.
    device
        As `stqp.devices.pick_device`.
    mpp
        µm per px of images that do not say.
    """
    from stqp.inference.engine import predict_slide
    from stqp.inference.model import load_predictor
    from stqp.training.registered import registered_models, weights_of

    try:
        if weights == PANNUKE_MODEL:
            weights_of(registered_models()[PANNUKE_MODEL], download=False)
        predictor = load_predictor(weights, device)
    except StqpError as error:
        return None, f"the {NETWORK} is left out: {error}"

    def find(slide: Slide, step: float, box: tuple[int, int, int, int]) -> Side:
        found: Detections = predict_slide(slide, predictor, mpp=step, tissue=False, boxes=[box])
        classes = np.array([*(UNKNOWN if c is None else c for c in found.class_names), None], object)[:-1]
        return Side(NETWORK, classes, polygons=found.polygons, probability=found.probability)

    return Found(NETWORK if weights == PANNUKE_MODEL else predictor.name, on, find, mpp), ""
