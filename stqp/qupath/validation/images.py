"""Whether QuPath would open the image of an entry: its builder, its URI, its metadata, the file itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stqp.errors import InputError
from stqp.qupath import servers, uris
from stqp.qupath.validation.findings import PARSED, VERSIONS, Findings
from stqp.qupath.validation.imagesize import image_sizes
from stqp.slides import open_slide

_PROVIDERS = (
    "qupath.lib.images.servers.openslide.OpenslideServerBuilder",
    "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder",
    "qupath.imagej.images.servers.ImageJServerBuilder",
    "qupath.lib.images.servers.JsonImageServerBuilder",
)
_NEEDED = ("width", "height", "pixelType", "levels", "channels", "pixelCalibration")
_USUAL = ("sizeZ", "sizeT", "isRGB", "preferredTileWidth", "preferredTileHeight")
_PIXEL_TYPES = {
    "uint8": "UINT8", "int8": "INT8", "uint16": "UINT16", "int16": "INT16", "uint32": "UINT32", "int32": "INT32",
    "float32": "FLOAT32", "float64": "FLOAT64",
}  # fmt: skip
# what java.net.URI refuses
_ILLEGAL = re.compile(r"[\x00-\x20\"<>\\^`{|}\[\]\x7f]|%(?![0-9A-Fa-f]{2})")
_PLAIN = (".png", ".jpg", ".jpeg")
_MPP_TOLERANCE = 0.01


@dataclass(frozen=True)
class Probe:
    """What a file itself says; None where that is not known for sure."""

    channels: int | None = None
    pixel_type: str | None = None
    size_z: int | None = None
    size_t: int | None = None


def check_image(image: Mapping[str, Any], recorded: str | None, folder: Path, findings: Findings) -> None:
    """Check the image of an entry.

    Parameters
    ----------
    image
        The entry in the project file.
    recorded
        URI that the project file has of itself.
    folder
        The project's.
    findings
        Added to; about the entry already.
    """
    builder = image.get("serverBuilder")
    if not isinstance(builder, dict):
        findings.error(
            "no-builder", "The entry has no serverBuilder, so QuPath cannot tell which image it shows.",
            "Remove the entry from the project file, or add the image again.",
        )  # fmt: skip
        return
    if not _check_types(builder, findings):
        return
    named = list(servers.uri_builders(builder))
    metadata = servers.metadata_of(dict(image))
    _check_metadata(metadata, findings)
    if not named and builder["builderType"] == "uri":
        findings.error("no-uri", "The entry names no image file.", "Set its uri, or add the image again.")
    for one in named:
        _check_args(one, findings)
        path = _check_uri(one["uri"], recorded, folder, findings)
        if path is not None and one is builder:
            _check_file(path, builder, metadata, findings)


def _check_types(builder: dict[str, Any], findings: Findings) -> bool:
    if "builderType" not in builder:
        findings.error(
            "no-builder-type", "The serverBuilder has no builderType; QuPath then refuses the whole project.",
            'Set "builderType": "uri".',
        )  # fmt: skip
        return False
    unknown = {text: v.unknown_builder(builder) for text, v in PARSED.items()}
    refused = [text for text in VERSIONS if unknown[text]]
    if refused:
        findings.error(
            "builder-type",
            f"The builderType {unknown[refused[0]]!r} is unknown to QuPath {', '.join(refused)}, which then refuses "
            "the whole project.",
            "Open the project with a later QuPath, or remove the image." if len(refused) < len(VERSIONS)
            else "Correct the builderType, or remove the image.",
            refused,
        )  # fmt: skip
    return True


def _check_args(builder: Mapping[str, Any], findings: Findings) -> None:
    args = builder.get("args")
    if args is None:
        findings.error("no-args", "The serverBuilder has no args; the image does not open.", 'Add "args": [].')
    elif not isinstance(args, list):
        findings.error(
            "args", "The args of the serverBuilder are no list; QuPath then refuses the whole project.",
            "Make them a list of text.",
        )  # fmt: skip
    provider = builder.get("providerClassName")
    if provider is not None and provider not in _PROVIDERS:
        findings.warning(
            "provider", f"The image is to be read by {provider}, which no QuPath has by itself.",
            "Install the extension that brings it, or add the image again.",
        )  # fmt: skip


def _check_uri(uri: str, recorded: str | None, folder: Path, findings: Findings) -> Path | None:
    """Check a URI; the file when it is there."""
    if bad := _ILLEGAL.search(uri):
        findings.error(
            "uri-not-encoded",
            f"The uri {uri!r} has {bad[0]!r}, which is to be percent-encoded; QuPath refuses the whole project.",
            "Encode it (a space is %20), or add the image again.",
        )
    elif uris.uri_path(uri) is not None and re.search(r"[#?]", uri):
        findings.error(
            "uri-not-encoded", f"The uri {uri!r} has a # or ? that is not percent-encoded; the image does not open.",
            "Encode it (# is %23, ? is %3F), or add the image again.",
        )  # fmt: skip
    said = uris.uri_path(uri)
    if said is None:
        findings.note("remote-image", f"The image is on a server, {uri}; it was not looked at.", "Nothing.")
        return None
    if not uri.lower().startswith("file:"):
        findings.warning(
            "bare-path", f"The image is named by a path, {uri}, not by a URI; QuPath warns about it.",
            "stqp project relink --map writes a URI.",
        )  # fmt: skip
    path = uris.resolve(uri, recorded, folder)
    if path is None or not uris.exists(path):
        findings.error(
            "image-missing", f"The image {said} is not there; QuPath cannot open it.",
            "Find it with stqp project relink --search FOLDER, or when QuPath asks.",
        )  # fmt: skip
        return None
    if not uris.exists(uris.local_path(said)):
        findings.warning(
            "image-moved", f"The image {said} is not there, but is where the project moved to, {path}; QuPath asks.",
            "Say yes, or run stqp project relink once.",
        )  # fmt: skip
    return path


def _check_metadata(metadata: Mapping[str, Any], findings: Findings) -> None:
    if not metadata:
        findings.note(
            "no-metadata", "The project has no metadata of the image; QuPath reads them from the file.",
            "Nothing for QuPath; stqp cannot check that the image is the right one.",
        )  # fmt: skip
        return
    lacking = [key for key in _NEEDED if not metadata.get(key)]
    if lacking:
        findings.error(
            "partial-metadata", f"The metadata of the image lack {', '.join(lacking)}; QuPath needs all or none.",
            "Take the metadata out of the serverBuilder, or add the image again.",
        )  # fmt: skip
        return
    unusual = [key for key in _USUAL if key not in metadata]
    if unusual:
        findings.warning(
            "partial-metadata", f"The metadata of the image lack {', '.join(unusual)}; QuPath takes 0, 1 or false.",
            "Take the metadata out of the serverBuilder, or add the image again.",
        )  # fmt: skip
    if servers.mpp_of(dict(metadata)) is None:
        findings.note(
            "no-pixel-size", "The image has no µm per pixel in the project; lengths and areas are in pixels.",
            "Set the pixel width and height in QuPath's Image tab, if it matters.",
        )  # fmt: skip


def _check_file(path: Path, builder: Mapping[str, Any], metadata: Mapping[str, Any], findings: Findings) -> None:
    """Check that the file fits the metadata, which QuPath takes in place of the file's own."""
    sizes = image_sizes(path)
    if sizes is None:
        findings.warning(
            "image-unreadable", f"{path} cannot be read as an image by OpenSlide, as TIFF, PNG or JPEG.",
            "See whether QuPath opens it; it may be broken, or of a format that stqp does not know.",
        )  # fmt: skip
        return
    size = servers.size_of(dict(metadata))
    if size is not None and size not in sizes:
        others = " or ".join(f"{w} x {h}" for w, h in sorted(sizes, reverse=True)[:2])
        findings.warning(
            "image-size",
            f"The project says {size[0]} x {size[1]} px, but {path} has {others}; objects will not lie right.",
            "Put the right image there, or relink to it.",
        )
        return
    series = servers.series_of(dict(builder)) if builder.get("args") else 0
    probe = probe_image(path, str(builder.get("providerClassName") or ""), series)
    channels = metadata.get("channels")
    said = {
        "channels": len(channels) if isinstance(channels, list) and channels else None,
        "pixelType": metadata.get("pixelType"), "sizeZ": metadata.get("sizeZ"), "sizeT": metadata.get("sizeT"),
    }  # fmt: skip
    has = {
        "channels": probe.channels, "pixelType": probe.pixel_type, "sizeZ": probe.size_z, "sizeT": probe.size_t,
    }  # fmt: skip
    for key, value in has.items():
        if value is not None and said[key] is not None and said[key] != value:
            findings.error(
                "incompatible-metadata",
                f"The project says {key} {said[key]}, but {path} has {value}; QuPath refuses to open the image.",
                "Take the metadata out of the serverBuilder, or add the image again.",
            )
    _check_calibration(path, servers.mpp_of(dict(metadata)), findings)


def _check_calibration(path: Path, mpp: float | None, findings: Findings) -> None:
    if path.suffix.lower() in _PLAIN:
        return
    try:
        with open_slide(path) as slide:
            own = slide.mpp
    except InputError:  # a fluorescence image, or one that only QuPath reads
        return
    if mpp and own and not math.isclose(mpp, own, rel_tol=_MPP_TOLERANCE):
        findings.warning(
            "pixel-size",
            f"The project has {mpp:.4g} µm per pixel, the image itself {own:.4g}; QuPath takes the project's.",
            "Correct it in QuPath's Image tab, unless somebody set it so.",
        )  # fmt: skip


def probe_image(path: Path, provider: str, series: int) -> Probe:
    """Ask a file for its channels and pixels, as far as QuPath's reader is sure to see the same.

    Parameters
    ----------
    path
        The image.
    provider
        QuPath's reader.
    series
        Number of the image in the file.
    """
    try:
        if provider.endswith("OpenslideServerBuilder"):
            return Probe(3, "UINT8", 1, 1)
        if path.suffix.lower() in _PLAIN:
            from PIL import Image

            with Image.open(path) as image:
                channels = {"RGB": 3, "L": 1}.get(image.mode)
            return Probe(channels, "UINT8", 1, 1) if channels else Probe()
        if series == 0 and path.name.lower().endswith((".tif", ".tiff", ".btf")):
            import tifffile

            with tifffile.TiffFile(path) as file:
                first = file.series[0]
                shape = dict(zip(first.axes, first.shape, strict=True))
                if not set(shape) <= set("TZCYXS"):
                    return Probe()
                channels = shape.get("C", 1) * shape.get("S", 1)
                return Probe(channels, _PIXEL_TYPES.get(first.dtype.name), shape.get("Z", 1), shape.get("T", 1))
    except Exception:  # the readers raise dozens of kinds for what they do not know
        return Probe()
    return Probe()
