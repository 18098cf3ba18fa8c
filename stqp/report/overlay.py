"""Outlines of nuclei over the H&E, in the colours of their classes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.slides import RGBImage, Slide
from stqp.taxonomy import RGB, color_of


def overlay(
    slide: Slide,
    polygons: Polygons,
    classes: Sequence[str | None] | NDArray[np.object_],
    box: tuple[float, float, float, float],
    downsample: float = 1.0,
    width: float = 1.5,
    colors: Mapping[str, RGB] | None = None,
) -> RGBImage:
    """Draw outlines over a region of a slide.

    Parameters
    ----------
    slide
        The slide.
    polygons
        Outlines in full-resolution pixels.
    classes : (n,)
        Class of each, which gives its colour.
    box
        x0, y0, x1, y1 in full-resolution pixels.
    downsample
        Full-resolution pixels per pixel of the picture.
    width
        Of the lines, in pixels of the picture.
    colors
        In place of the taxonomy's.

    Returns
    -------
    uint8 (height, width, 3)
    """
    import cv2

    x0, y0, x1, y1 = box
    size = round((x1 - x0) / downsample), round((y1 - y0) / downsample)
    image = np.ascontiguousarray(slide.read(x0, y0, size, downsample))
    bounds = polygons.bounds()
    near = np.flatnonzero((bounds[:, 2] > x0) & (bounds[:, 0] < x1) & (bounds[:, 3] > y0) & (bounds[:, 1] < y1))
    chosen = polygons.take(near).shift(-x0, -y0).scale(1 / downsample)
    # OpenCV draws at pixel centres, and in 1/16 px with shift 4
    points = np.round((chosen.coords - 0.5) * 16).astype(np.int32)
    owner = chosen.ring_owner
    for ring, (start, stop) in enumerate(zip(chosen.ring_offsets[:-1], chosen.ring_offsets[1:], strict=True)):
        name = classes[near[owner[ring]]]
        color = (colors or {}).get(str(name), color_of(name))
        cv2.polylines(image, [points[start:stop]], True, color, max(1, round(width)), cv2.LINE_AA, shift=4)
    return image


def panels(images: Sequence[RGBImage], titles: Sequence[str], colors: Mapping[str, RGB], gap: int = 12) -> RGBImage:
    """Pictures of one height beside each other, with titles above and a legend of the classes below."""
    import cv2

    font, ink, bar = cv2.FONT_HERSHEY_SIMPLEX, (40, 40, 40), 34
    height = images[0].shape[0]
    width = sum(i.shape[1] for i in images) + gap * (len(images) - 1)
    canvas = np.full((height + 2 * bar, width, 3), 255, np.uint8)
    left = 0
    for image, title in zip(images, titles, strict=True):
        canvas[bar : bar + height, left : left + image.shape[1]] = image
        cv2.putText(canvas, title, (left + 2, bar - 11), font, 0.6, ink, 1, cv2.LINE_AA)
        left += image.shape[1] + gap
    left = 2
    for name, color in colors.items():
        baseline = bar + height + 23
        cv2.rectangle(canvas, (left, baseline - 13), (left + 13, baseline), color, -1)
        cv2.putText(canvas, name, (left + 20, baseline), font, 0.55, ink, 1, cv2.LINE_AA)
        left += 20 + cv2.getTextSize(name, font, 0.55, 1)[0][0] + 24
    return canvas


def save_png(path: "object", image: RGBImage) -> None:
    """Write a picture atomically."""
    from pathlib import Path

    from stqp import files
    from stqp.report.page import png_bytes

    files.write_bytes(Path(str(path)), png_bytes(image))
