"""How a QuPath project says which image an entry shows: URIs, the server's JSON, calibration."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from stqp.slides import Slide

_PROVIDERS = {
    "openslide": "qupath.lib.images.servers.openslide.OpenslideServerBuilder",
    "bioformats": "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder",
}
# OpenSlide's bounds would shift QuPath's pixels against stqp's, which counts from the corner of the scan
_ARGS = {"openslide": ["--no-crop"], "bioformats": ["--series", "0"]}
_MAGNIFICATIONS = (5.0, 10.0, 20.0, 40.0)
_DRIVE = re.compile(r"^/[A-Za-z]:")
MICROMETRE = "µm"


def to_uri(path: PurePath) -> str:
    """``file:`` URI of an absolute path, POSIX or Windows, as Java writes it."""
    text = path.as_posix()
    if isinstance(path, PureWindowsPath):
        text = text if text.startswith("//") else "/" + text
    return ("file:" + quote(text, safe="/:@!$&'()*+,=~")).replace("file:///", "file:/")


def uri_path(uri: str) -> str | None:
    """Path of a ``file:`` URI with forward slashes (``/C:/x`` on a Windows drive); None for others."""
    if "://" not in uri and not uri.startswith("file:"):
        return uri.replace("\\", "/")  # QuPath takes a bare path, with a warning
    parts = urlsplit(uri)
    if parts.scheme.lower() != "file":
        return None
    host = f"//{parts.netloc}" if parts.netloc and parts.netloc != "localhost" else ""
    # a URI that was not encoded may hold ? and #
    rest = parts.path + (f"?{parts.query}" if parts.query else "") + (f"#{parts.fragment}" if parts.fragment else "")
    return host + unquote(rest)


def local_path(path: str) -> Path:
    """Path on this machine of what `uri_path` gives."""
    if os.name == "nt" and _DRIVE.match(path):
        path = path[1:]
    return Path(path)


def resolve(uri: str, recorded_project: str | None, folder: Path) -> Path | None:
    """Find the image of an entry.

    Parameters
    ----------
    uri
        Of the image, as the project has it.
    recorded_project
        URI that the project file has of itself, from where it was saved.
    folder
        Where the project is now.

    Returns
    -------
    Path or None
        The image where the URI says; when it is not there, the same place relative to the project if it is
        there, otherwise what the URI says. None when the URI is not of a file.
    """
    path = uri_path(uri)
    if path is None:
        return None
    said = local_path(path)
    home = uri_path(recorded_project) if recorded_project else None
    if said.exists() or home is None:
        return said
    if _DRIVE.match(path) and _DRIVE.match(home) and path[1].lower() != home[1].lower():
        return said
    moved = Path(os.path.normpath(folder / posixpath.relpath(path, posixpath.dirname(home))))
    return moved if moved.exists() else said


def builder_json(slide: Slide, name: str) -> dict[str, Any]:
    """Make the ``serverBuilder`` of an entry."""
    return {
        "builderType": "uri",
        "providerClassName": _PROVIDERS[slide.backend],
        "uri": to_uri(absolute(slide.path)),
        "args": list(_ARGS[slide.backend]),
        "metadata": _metadata(slide, name),
    }


def absolute(path: Path) -> Path:
    """Absolute path without ``..``, links left as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links


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


def builder_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Find the builder that names the file, within those that rotate, crop or recolour."""
    builder = entry.get("serverBuilder") or {}
    while "uri" not in builder and isinstance(builder.get("builder"), dict):
        builder = builder["builder"]
    return dict(builder)


def metadata_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Find the image's metadata in an entry; an outer builder's before an inner one's."""
    builder = entry.get("serverBuilder") or {}
    while not builder.get("metadata") and isinstance(builder.get("builder"), dict):
        builder = builder["builder"]
    return dict(builder.get("metadata") or {})


def mpp_of(metadata: dict[str, Any]) -> float | None:
    """µm per pixel of an image's metadata."""
    calibration = metadata.get("pixelCalibration") or {}
    sizes = [calibration.get(key) or {} for key in ("pixelWidth", "pixelHeight")]
    if any(size.get("unit") not in (MICROMETRE, "\u03bcm", "um") for size in sizes):
        return None
    mean = sum(float(size["value"]) for size in sizes) / 2
    return mean if 0 < mean < float("inf") else None
