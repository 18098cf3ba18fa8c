"""How a QuPath project says which image an entry shows: its server builder, metadata, calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from stqp.errors import InputError, UsageError
from stqp.qupath.uris import absolute, to_uri
from stqp.slides import Slide

_PROVIDERS = {
    "openslide": "qupath.lib.images.servers.openslide.OpenslideServerBuilder",
    "bioformats": "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder",
}
# OpenSlide's bounds would shift QuPath's pixels against stqp's, which counts from the corner of the scan
_ARGS = {"openslide": ["--no-crop"], "bioformats": ["--series", "0"]}
_MAGNIFICATIONS = (5.0, 10.0, 20.0, 40.0)
MICROMETRE = "µm"


def builder_json(slide: Slide, name: str) -> dict[str, Any]:
    """Make the ``serverBuilder`` of an entry."""
    return {
        "builderType": "uri",
        "providerClassName": _PROVIDERS[slide.backend],
        "uri": to_uri(absolute(slide.path)),
        "args": list(_ARGS[slide.backend]),
        "metadata": _metadata(slide, name),
    }


def _metadata(slide: Slide, name: str) -> dict[str, Any]:
    unit, value = (MICROMETRE, float(slide.mpp)) if slide.mpp else ("px", 1.0)
    levels = [
        {"downsample": float(d), "width": int(w), "height": int(h)}
        for d, (w, h) in zip(slide.downsamples, slide.level_sizes, strict=True)
    ]
    colors = {"Red": -65536, "Green": -16711936, "Blue": -16776961}
    result: dict[str, Any] = {
        "name": name,
        "width": int(slide.width),
        "height": int(slide.height),
        "sizeZ": 1,
        "sizeT": 1,
        "channelType": "DEFAULT",
        "isRGB": True,
        "pixelType": "UINT8",
        "levels": levels,
        "channels": [{"name": channel, "color": color} for channel, color in colors.items()],
        "pixelCalibration": {
            "pixelWidth": {"value": value, "unit": unit},
            "pixelHeight": {"value": value, "unit": unit},
            "zSpacing": {"value": 1.0, "unit": "z-slice"},
            "timeUnit": "SECONDS",
            "timepoints": [],
        },
        "preferredTileWidth": min(512, int(slide.width)),
        "preferredTileHeight": min(512, int(slide.height)),
    }
    magnification = magnification_of(slide.mpp)
    if magnification is not None:
        result["magnification"] = magnification
    return result


def magnification_of(mpp: float | None) -> float | None:
    """Objective's magnification, about ``10 / mpp``; None when no usual one is near."""
    if not mpp:
        return None
    near = min(_MAGNIFICATIONS, key=lambda m: abs(m * mpp / 10 - 1))
    return near if abs(near * mpp / 10 - 1) <= 0.15 else None


def uri_builders(content: Any) -> Iterator[dict[str, Any]]:
    """Find the builders that name a file, at any depth within those that rotate, crop, recolour or join.

    Parameters
    ----------
    content
        A ``serverBuilder``.

    Yields
    ------
    dict
        Itself, not a copy; the image that is shown first comes first.
    """
    if isinstance(content, dict):
        if isinstance(content.get("uri"), str) and ("providerClassName" in content or "builderType" in content):
            yield content
        for key, value in content.items():
            if key != "metadata":
                yield from uri_builders(value)
    elif isinstance(content, list):
        for value in content:
            yield from uri_builders(value)


def series_of(builder: dict[str, Any]) -> int:
    """Number of the image within its file, 0 for the first and where nothing is said."""
    args = [str(a) for a in builder.get("args") or []]
    for flag, value in zip(args, [*args[1:], ""], strict=False):
        if flag == "--series" and value.isdigit():
            return int(value)
        if flag.startswith("--series=") and flag[9:].isdigit():
            return int(flag[9:])
    return 0


def metadata_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Find the image's metadata in an entry; an outer builder's before an inner one's."""
    builder = entry.get("serverBuilder") or {}
    while not builder.get("metadata") and isinstance(builder.get("builder"), dict):
        builder = builder["builder"]
    metadata = builder.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def size_of(metadata: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height of an image's metadata, None when they are not said."""
    try:
        return int(metadata["width"]), int(metadata["height"])
    except (KeyError, TypeError, ValueError):
        return None


def mpp_of(metadata: dict[str, Any]) -> float | None:
    """µm per pixel of an image's metadata."""
    calibration = metadata.get("pixelCalibration") or {}
    sizes = [calibration.get(key) or {} for key in ("pixelWidth", "pixelHeight")]
    if any(size.get("unit") not in (MICROMETRE, "\u03bcm", "um") for size in sizes):
        return None
    mean = sum(float(size["value"]) for size in sizes) / 2
    return mean if 0 < mean < math.inf else None


def set_mpp(entry: dict[str, Any], mpp: float) -> None:
    """Set the µm per pixel of an entry's image, as a person does in QuPath.

    Raises
    ------
    UsageError
        When they are not above 0.
    InputError
        When the project has no metadata of the image; QuPath takes all of them or none.
    """
    if not 0 < mpp < math.inf:
        raise UsageError(f"the µm per pixel of an image are above 0, not {mpp}")
    metadata = metadata_of(entry)
    if not metadata:
        raise InputError(
            f"the project has no metadata of the image {entry.get('imageName')!r}, so its pixel size cannot be set; "
            "open and save it in QuPath once"
        )
    size = {"value": float(mpp), "unit": MICROMETRE}
    rest = {"zSpacing": {"value": 1.0, "unit": "z-slice"}, "timeUnit": "SECONDS", "timepoints": []}
    present = metadata.get("pixelCalibration") or rest
    metadata["pixelCalibration"] = {**present, "pixelWidth": size, "pixelHeight": dict(size)}
