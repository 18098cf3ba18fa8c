"""How much haematoxylin the nuclei of a slide hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stqp.alignment.stain import Stains
from stqp.inference.detections import Detections
from stqp.pixels import pixel_means
from stqp.slides import RGBImage, Slide
from stqp.tissue import broken_file

_CALIBRATION, _CALIBRATION_SIDE = 24, 256  # windows around nuclei, from which the stains are estimated


def with_haematoxylin(found: Detections, slide: Slide) -> tuple[Detections, Stains]:
    """Measure the mean optical density of haematoxylin over each nucleus, at the network's pixels.

    The stains are estimated from windows around nuclei all over the slide.
    """
    centre = found.polygons.centroid()
    some = np.unique(np.linspace(0, len(found) - 1, min(_CALIBRATION, len(found))).astype(int))
    half = _CALIBRATION_SIDE / 2 * found.pixel
    pixels: list[RGBImage] = []
    with broken_file(slide):
        for x, y in centre[some].tolist():
            side = min(_CALIBRATION_SIDE, slide.width, slide.height)
            left = min(max(x - half, 0), max(slide.width - side * found.pixel, 0))
            top = min(max(y - half, 0), max(slide.height - side * found.pixel, 0))
            pixels.append(slide.read(left, top, (side, side), found.pixel)[::2, ::2].reshape(-1, 3))
    stains = Stains.estimate(np.concatenate(pixels))
    return replace(found, haematoxylin=pixel_means(slide, found.polygons, stains.amount, found.pixel)), stains
