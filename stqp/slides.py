"""One way to open a slide: its size, its µm per pixel, and any region of it at any µm per pixel."""

from __future__ import annotations

import logging
import math
import re
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError

RGBImage = NDArray[np.uint8]

SLIDE_SUFFIXES = frozenset(
    [
        ".svs",
        ".tif",
        ".tiff",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".vms",
        ".vmu",
        ".bif",
        ".svslide",
        ".dcm",
        ".png",
        ".jpg",
        ".jpeg",
        ".btf",
        ".jp2",
    ]
)
_OME_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.btf")
_OTHER_SUFFIXES = frozenset([".jp2", ".dcm", ".zarr"])
_PLAIN_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp"])
_BROKEN_TIFF = re.compile("invalid page offset|invalid value offset|corrupted tag list")
_UNIT_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "inch": 25400.0}


def is_slide(path: Path) -> bool:
    """Whether the file's name is that of a slide or an image stqp opens."""
    return path.suffix.lower() in SLIDE_SUFFIXES


def is_folder_slide(path: Path) -> bool:
    """Whether a path is a folder that is one image: OME-Zarr."""
    return path.suffix.lower() == ".zarr" and path.is_dir()


class Slide:
    """An opened slide; reading is safe from several threads.

    Attributes
    ----------
    path : Path
    width, height : int
        Pixels at full resolution.
    mpp : float or None
        µm per pixel at full resolution, None when nobody says.
    file_mpp : float or None
        The same as the file alone says it.
    downsamples : list of float
        Of each pyramid level, the first is 1.
    backend : {"openslide", "bioformats"}
        What QuPath should open it with.
    """

    path: Path
    width: int
    height: int
    mpp: float | None
    file_mpp: float | None = None
    downsamples: list[float]
    level_sizes: list[tuple[int, int]]
    backend: str

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> RGBImage:
        raise NotImplementedError  # each backend has its own

    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Slide:
        """Open as a context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close at the end of the context."""
        self.close()

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> RGBImage:
        """Read a region in pixels of one level; what lies outside of the slide is white."""
        level_width, level_height = self.level_sizes[level]
        out = np.full((height, width, 3), 255, np.uint8)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, level_width), min(y + height, level_height)
        if x1 > x0 and y1 > y0:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._read_level(level, x0, y0, x1 - x0, y1 - y0)
        return out

    def read(self, x: float, y: float, size: tuple[int, int], downsample: float = 1.0) -> RGBImage:
        """Read a region at any scale.

        Parameters
        ----------
        x, y
            Its top left corner, in full-resolution pixels.
        size
            Width and height of the result in pixels.
        downsample
            Full-resolution pixels per pixel of the result (below 1 enlarges).

        Returns
        -------
        uint8 (height, width, 3)
            RGB; white outside of the slide.
        """
        import cv2

        width, height = size
        level = max((i for i, d in enumerate(self.downsamples) if d <= downsample * 1.001), default=0)
        step = self.downsamples[level]
        ratio = downsample / step
        if abs(ratio - 1) < 1e-3 and abs(x / step - round(x / step)) < 1e-3 and abs(y / step - round(y / step)) < 1e-3:
            return self.read_level(level, round(x / step), round(y / step), width, height)
        left, top = math.floor(x / step) - 2, math.floor(y / step) - 2
        right, bottom = (
            math.ceil((x + width * downsample) / step) + 2,
            math.ceil((y + height * downsample) / step) + 2,
        )
        source = self.read_level(level, left, top, right - left, bottom - top)
        side = max(1, round(ratio))
        if side > 1:  # an area mean before the resampling, or fine texture would alias
            source = cv2.blur(source, (side, side))
        # pixel centres: result (u + 0.5) * downsample + x = (s + 0.5 + left) * step
        shift_x, shift_y = (
            (0.5 * downsample + x) / step - 0.5 - left,
            (0.5 * downsample + y) / step - 0.5 - top,
        )
        if side % 2 == 0:  # a mean of an even number of pixels is centred between two of them
            shift_x, shift_y = shift_x + 0.5, shift_y + 0.5
        matrix = np.array([[ratio, 0, shift_x], [0, ratio, shift_y]])
        result = cv2.warpAffine(
            source,
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return np.asarray(result, dtype=np.uint8)

    def thumbnail(self, max_width: int = 1000, max_height: int = 600) -> RGBImage:
        """Read the whole slide, small enough for the given box."""
        downsample = max(self.width / max_width, self.height / max_height, 1.0)
        size = max(1, int(self.width / downsample)), max(1, int(self.height / downsample))
        return self.read(0, 0, size, downsample)


class _OpenSlideSlide(Slide):
    backend = "openslide"

    def __init__(self, path: Path):
        import openslide

        self.path = path
        self._file = openslide.OpenSlide(str(path))
        self.width, self.height = self._file.dimensions
        self.level_sizes = [(int(w), int(h)) for w, h in self._file.level_dimensions]
        self.downsamples = [float(d) for d in self._file.level_downsamples]
        mpp = [self._file.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        self.mpp = (float(mpp[0]) + float(mpp[1])) / 2 if mpp[0] and mpp[1] else None

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> RGBImage:
        step = self.downsamples[level]
        rgba = np.asarray(self._file.read_region((round(x * step), round(y * step)), level, (width, height)))
        alpha = rgba[..., 3:].astype(np.uint16)
        if (alpha == 255).all():
            return np.ascontiguousarray(rgba[..., :3])
        return ((rgba[..., :3] * alpha + 255 * (255 - alpha)) // 255).astype(np.uint8)

    def close(self) -> None:
        self._file.close()


@contextmanager
def _tiff_breaks(path: Path) -> Iterator[None]:
    """Refuse a TIFF that points beyond its end: tifffile logs that, and gives what is left as the image."""
    found: list[str] = []

    class Listener(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            broken = _BROKEN_TIFF.search(record.getMessage())
            found.extend([broken[0]] if broken else [])
            return broken is None

    logger, listener = logging.getLogger("tifffile"), Listener()
    logger.addFilter(listener)
    try:
        yield
    finally:
        logger.removeFilter(listener)
    if found:
        raise InputError(f"{path} cannot be read as an image (a TIFF with {found[0]}); is it whole?")


class _TiffSlide(Slide):
    backend = "bioformats"

    def __init__(self, path: Path):
        import tifffile
        import zarr

        self.path = path
        self._lock = threading.Lock()
        with _tiff_breaks(path):
            self._file = tifffile.TiffFile(path)
            series = self._file.series[0]
        self._axes = series.axes
        self._levels: list[Any] = []
        for level in range(len(series.levels)):
            self._levels.append(zarr.open(series.aszarr(level=level), mode="r"))
        # each level opened alone is a plain array
        shapes = [dict(zip(self._axes, array.shape, strict=True)) for array in self._levels]
        self.level_sizes = [(s["X"], s["Y"]) for s in shapes]
        self.width, self.height = self.level_sizes[0]
        channels = shapes[0].get("S", shapes[0].get("C", 1))
        if series.dtype != np.uint8 or channels not in (1, 3, 4):
            raise InputError(
                f"expected an 8-bit RGB image, found {channels} channels of {series.dtype} in {path}; "
                "stqp needs the H&E, not a fluorescence image"
            )
        self.downsamples = [(self.width / w + self.height / h) / 2 for w, h in self.level_sizes]
        self.mpp = _ome_mpp(self._file.ome_metadata) or _tiff_mpp(self._file.pages[0])

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> RGBImage:
        index = tuple(
            slice(y, y + height) if a == "Y" else slice(x, x + width) if a == "X" else slice(None) if a in "SC" else 0
            for a in self._axes
        )
        kept = [a for a in self._axes if a in "YXSC"]
        with self._lock:
            region = np.asarray(self._levels[level][index])
        channel = next((i for i, a in enumerate(kept) if a in "SC"), None)
        if channel is None:
            return np.repeat(region[..., None], 3, axis=2)
        region = np.moveaxis(region, channel, -1)
        return np.repeat(region, 3, axis=2) if region.shape[2] == 1 else np.ascontiguousarray(region[..., :3])

    def close(self) -> None:
        self._file.close()


class ArraySlide(Slide):
    """Pixels in memory as a slide.

    Parameters
    ----------
    pixels : uint8 (height, width, 3)
        RGB.
    path
        Where they come from.
    mpp
        µm per pixel, None when it is not known.
    """

    backend = "bioformats"

    def __init__(self, pixels: RGBImage, path: Path, mpp: float | None = None):
        self.path, self._pixels, self.mpp = path, pixels, mpp
        self.height, self.width = pixels.shape[:2]
        self.level_sizes, self.downsamples = [(self.width, self.height)], [1.0]

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> RGBImage:
        return self._pixels[y : y + height, x : x + width]


def _plain_slide(path: Path) -> Slide:
    from PIL import Image

    with Image.open(path) as image:
        return ArraySlide(np.asarray(image.convert("RGB")), path)


def open_slide(path: str | Path, mpp: float | None = None) -> Slide:
    """Open a slide or image.

    Parameters
    ----------
    path
        An OME-TIFF or other TIFF, anything that OpenSlide reads, PNG or JPEG; or what TIAToolbox reads besides.
    mpp
        µm per pixel, in place of what the file says.

    Raises
    ------
    InputError
        When the file is missing, truncated or no image.
    """
    path = Path(path)
    if not path.is_file() and not is_folder_slide(path):
        raise InputError(
            f"the image {path} does not exist" if not path.exists() else f"{path} is a folder, not an image"
        )
    try:
        slide = _opened(path, _reader_of(path))
    except InputError:
        raise
    except Exception as error:  # the readers raise dozens of kinds for a broken file
        raise InputError(
            f"{path} cannot be read as an image ({type(error).__name__}: {error}); is it whole?"
        ) from error
    slide.file_mpp = slide.mpp
    if mpp is not None:
        slide.mpp = mpp
    return slide


def _reader_of(path: Path) -> Callable[[Path], Slide]:
    if path.suffix.lower() in _PLAIN_SUFFIXES:
        return _plain_slide
    other = path.is_dir() or path.suffix.lower() in _OTHER_SUFFIXES
    if not path.is_dir() and not path.name.lower().endswith(_OME_SUFFIXES) and _openslide_reads(path):
        return _OpenSlideSlide
    if not other:
        return _TiffSlide
    from stqp.slides_tiatoolbox import TiatoolboxSlide

    return TiatoolboxSlide


def _opened(path: Path, reader: Callable[[Path], Slide]) -> Slide:
    slide = reader(path)
    # a truncated file often opens well and fails at its last pixels
    slide.read_level(len(slide.level_sizes) - 1, slide.level_sizes[-1][0] - 1, slide.level_sizes[-1][1] - 1, 1, 1)
    slide.read_level(0, slide.width - 1, slide.height - 1, 1, 1)
    return slide


def _openslide_reads(path: Path) -> bool:
    import openslide

    # a generic tiled TIFF loses its µm/px in OpenSlide, and Bio-Formats reads it as well
    return openslide.OpenSlide.detect_format(str(path)) not in (None, "generic-tiff")


def _ome_mpp(xml: str | None) -> float | None:
    """µm per pixel of the first image of OME-XML; the unit's default is µm."""
    if not xml:
        return None
    root = ElementTree.fromstring(xml)
    pixels = next((e for e in root.iter() if e.tag.endswith("}Pixels") or e.tag == "Pixels"), None)
    if pixels is None or "PhysicalSizeX" not in pixels.attrib:
        return None
    sizes = []
    for axis in "XY":
        size = pixels.get(f"PhysicalSize{axis}", pixels.attrib["PhysicalSizeX"])
        unit = _UNIT_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if unit is None:
            return None
        sizes.append(float(size) * unit)
    mean = sum(sizes) / 2
    return mean if mean > 0 and math.isfinite(mean) else None


def _tiff_mpp(page: Any) -> float | None:
    """µm per pixel from the resolution tags, where they have a unit and are no printer's default."""
    tags = page.tags
    if "XResolution" not in tags or "ResolutionUnit" not in tags:
        return None
    unit = {2: 25400.0, 3: 1e4}.get(int(tags["ResolutionUnit"].value))
    numerator, denominator = tags["XResolution"].value
    if unit is None or not numerator or not denominator:
        return None
    mpp = unit * denominator / numerator
    return mpp if 0.05 <= mpp <= 20 else None  # 72 and 300 dpi are 353 and 85 µm
