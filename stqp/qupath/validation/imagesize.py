"""Width and height of an image file, also of one that stqp does not train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Size = tuple[int, int]


def image_sizes(path: Path) -> set[Size] | None:
    """Sizes of the images in a file, as one or the other of QuPath's readers may give them.

    Parameters
    ----------
    path
        A slide, TIFF, PNG, JPEG or the like.

    Returns
    -------
    set of (int, int) or None
        Width and height in pixels: of a slide, with and without the empty border of the scan; of each image of a
        TIFF. None when it cannot be read as an image.
    """
    if not path.is_file():
        return None
    readers: list[Callable[[Path], set[Size]]] = [_slide, _tiff, _plain]
    result: set[Size] = set()
    for reader in readers:
        try:
            result |= reader(path)
        except Exception:  # the readers raise dozens of kinds for what they do not know
            continue
    return result or None


def _slide(path: Path) -> set[Size]:
    import openslide

    with openslide.OpenSlide(str(path)) as slide:
        result = {(int(slide.dimensions[0]), int(slide.dimensions[1]))}
        bounds = [slide.properties.get(f"openslide.bounds-{side}") for side in ("width", "height")]
        if bounds[0] and bounds[1]:
            result.add((int(bounds[0]), int(bounds[1])))
        return result


def _tiff(path: Path) -> set[Size]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        shapes = [dict(zip(series.axes, series.shape, strict=True)) for series in file.series]
        return {(int(s["X"]), int(s["Y"])) for s in shapes if "X" in s and "Y" in s}


def _plain(path: Path) -> set[Size]:
    from PIL import Image

    with Image.open(path) as image:
        return {(int(image.width), int(image.height))}
