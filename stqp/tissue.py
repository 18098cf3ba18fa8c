"""Where there is tissue on a slide, so that glass costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, StqpError
from stqp.slides import Slide

_SIDE = 2048  # px of the overview, at most
_STEP_UM = 4.0  # of a pixel of the overview, at least
_BLOCK = 4096  # full-resolution px that are read at a time, for slides without a pyramid
_REACH_UM = 40.0  # gaps closed and rim added; more than the largest nucleus
_SATURATION = (10, 25)  # glass stays below, stained tissue above


@dataclass(frozen=True)
class TissueMask:
    """A coarse mask of a slide.

    Attributes
    ----------
    mask : bool (height, width)
    step : float
        Full-resolution pixels per pixel of the mask.
    """

    mask: NDArray[np.bool_]
    step: float

    def touches(self, x0: float, y0: float, x1: float, y1: float) -> bool:
        """Whether there is tissue in a box in full-resolution px."""
        left, top = max(int(x0 / self.step), 0), max(int(y0 / self.step), 0)
        right, bottom = int(np.ceil(x1 / self.step)), int(np.ceil(y1 / self.step))
        return bool(self.mask[top:bottom, left:right].any())

    def at(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether there is tissue at places in full-resolution px; bool (n,)."""
        height, width = self.mask.shape
        column = np.clip(xy[:, 0] / self.step, 0, width - 1).astype(np.int64)
        row = np.clip(xy[:, 1] / self.step, 0, height - 1).astype(np.int64)
        return np.asarray(self.mask[row, column])


@contextmanager
def broken_file(slide: Slide) -> Iterator[None]:
    """Turn what the readers raise in the middle of a broken file into `InputError`."""
    try:
        yield
    except StqpError:
        raise
    except Exception as error:  # the readers raise dozens of kinds
        raise InputError(
            f"{slide.path} cannot be read to its end ({type(error).__name__}: {error}); is it whole?"
        ) from error


def find_tissue(slide: Slide, mpp: float) -> TissueMask:
    """Find stained tissue by its colour saturation.

    The threshold is Otsu's, held between what glass never reaches and what stained tissue always does: a
    slide that is all tissue must not be split in two.

    Parameters
    ----------
    slide
        The slide.
    mpp
        Its µm per px.
    """
    import cv2

    step = max(slide.width / _SIDE, slide.height / _SIDE, _STEP_UM / mpp)
    rgb = _overview(slide, step)
    saturation = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], (5, 5), 0)
    otsu, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    # a dark pixel's saturation is noise, and so is that of a nearly white one
    value = rgb.max(axis=2)
    mask = (saturation > np.clip(otsu, *_SATURATION)) & (value > 20)
    reach = 2 * max(1, round(_REACH_UM / (mpp * step))) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    return TissueMask(cv2.dilate(closed, kernel) > 0, step)


def _overview(slide: Slide, step: float) -> NDArray[np.uint8]:
    width, height = max(1, int(np.ceil(slide.width / step))), max(1, int(np.ceil(slide.height / step)))
    block = max(1, int(_BLOCK / step)) if len(slide.downsamples) == 1 else max(width, height)
    result = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, block):
        for x in range(0, width, block):
            size = min(block, width - x), min(block, height - y)
            with broken_file(slide):
                result[y : y + size[1], x : x + size[0]] = slide.read(x * step, y * step, size, step)
    return result
