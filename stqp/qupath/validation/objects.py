"""Whether QuPath would take the objects of an entry, and show what somebody expects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.qupath import qpdata, servers
from stqp.qupath.codec.document import backup_of
from stqp.qupath.folders import OBJECTS
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind
from stqp.qupath.pending import is_whole
from stqp.qupath.validation.findings import Findings
from stqp.taxonomy import RGB

MANY_ANNOTATIONS = 100_000
_NO_AREA = (RoiKind.NONE, RoiKind.LINE, RoiKind.POLYLINE, RoiKind.POINTS)


@dataclass
class Seen:
    """What the entries have in common, gathered on the way.

    Attributes
    ----------
    colors : dict
        By class, the colours that objects have for it.
    ids : dict
        By entry, the ids of its objects, sorted.
    """

    colors: dict[str, set[RGB]] = field(default_factory=dict)
    ids: dict[str, NDArray[Any]] = field(default_factory=dict)


def check_data(folder: Path, image: Mapping[str, Any], name: str, findings: Findings, seen: Seen) -> None:
    """Check the files of an entry.

    Parameters
    ----------
    folder
        Of the entry's files.
    image
        The entry in the project file.
    name
        Of the entry.
    findings
        Added to; about the entry already.
    seen
        Added to.
    """
    path, counted = folder / OBJECTS, _counted(folder / "summary.json")
    backup = backup_of(path)
    if not path.exists() and not backup.exists():
        if counted:
            findings.error(
                "objects-gone", f"There is no {OBJECTS}, though summary.json counts {counted:,} objects.",
                "Put the file back from a backup; QuPath shows the image without objects.",
            )  # fmt: skip
        return
    if path.exists() and is_whole(path) and backup.exists():
        findings.note(
            "backup-left", f"{backup.name} was left by a save that was cut short; QuPath does not look at it.",
            "Delete it once the objects are as they should be.",
        )  # fmt: skip
    try:
        objects = qpdata.read_image_data(path).objects
    except InputError as error:
        findings.error(
            "objects-unreadable", f"The objects cannot be read: {_reason(str(error), path)}",
            "Put the file back from a backup; QuPath would show the image without objects, and save it so.",
        )  # fmt: skip
        return
    if backup.exists() and not is_whole(path):
        findings.warning(
            "backup-in-use",
            f"{OBJECTS} is {'broken' if path.exists() else 'not there'}; QuPath and stqp read {backup.name}.",
            f"Open and save the image in QuPath, or rename {backup.name} to {OBJECTS}.",
        )  # fmt: skip
    if counted is not None and counted != len(objects):
        findings.note(
            "summary", f"summary.json counts {counted:,} objects, but there are {len(objects):,}.",
            "Nothing; QuPath does not read it, and writes it anew.",
        )  # fmt: skip
    if len(objects):
        check_objects(objects, dict(image), findings)
        seen.ids[name] = np.unique(objects.ids.astype(str))
        for class_name, color in objects.class_colors.items():
            seen.colors.setdefault(class_name, set()).add(color)


def check_objects(objects: PathObjects, image: dict[str, Any], findings: Findings) -> None:
    """Check objects against each other and against their image."""
    annotations = int((objects.kind == ObjectKind.ANNOTATION).sum())
    if annotations > MANY_ANNOTATIONS:
        findings.warning(
            "many-annotations", f"The image has {annotations:,} annotations; QuPath is slow with more than 100,000.",
            "Import nuclei as detections or cells (--as), unless somebody is to correct them.",
        )  # fmt: skip
    _, first, counts = np.unique(objects.ids.astype(str), return_index=True, return_counts=True)
    if (counts > 1).any():
        _say(
            findings, objects, first[counts > 1], "duplicate-ids", "with an id that other objects have too",
            "Give them new ids in QuPath (Objects, then refresh object IDs); stqp replaces objects by their ids.",
        )  # fmt: skip
    _check_shapes(objects, findings)
    _check_place(objects, servers.metadata_of(image), findings)
    for name, values in objects.measurements.items():
        if np.isnan(values).all():
            findings.note("empty-measurement", f"The measurement {name!r} has no value.", "Nothing.")
        elif np.isinf(values).any():
            findings.note(
                "infinite-measurement", f"The measurement {name!r} is infinite {int(np.isinf(values).sum()):,} times.",
                "Nothing for QuPath; tables and histograms of it look strange.",
            )  # fmt: skip


def _check_shapes(objects: PathObjects, findings: Findings) -> None:
    polygons = objects.polygons
    owner = polygons.vertex_owner
    broken = np.zeros(len(objects), bool)
    broken[owner[~np.isfinite(polygons.coords).all(axis=1)]] = True
    _say(
        findings, objects, broken, "no-place", "with vertices that are no numbers",
        "Delete them; QuPath fails when it measures or draws them.",
    )  # fmt: skip
    filled = ~np.isin(objects.roi_kind, [int(kind) for kind in _NO_AREA])
    flat = filled & ~broken & ~(polygons.area() > 0)
    _say(
        findings, objects, flat, "no-area", "without an area",
        "Delete them; they cannot be seen, and GeoJSON leaves them out.",
    )  # fmt: skip
    drawn = np.isin(objects.roi_kind, [int(RoiKind.POLYGON), int(RoiKind.GEOMETRY)]) & ~broken & ~flat
    invalid = drawn & _crossing(polygons, ~broken)
    _say(
        findings, objects, invalid, "invalid-shape", "with an outline that crosses or touches itself",
        "QuPath draws them; it may refuse to merge or split them. Redraw those that matter.",
    )  # fmt: skip


def _crossing(polygons: Polygons, usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Polygons with a ring that is no valid outline, (n,)."""
    import shapely

    lengths = np.diff(polygons.ring_offsets)
    rings = np.flatnonzero((lengths >= 3) & usable[polygons.ring_owner])
    result = np.zeros(len(polygons), bool)
    if len(rings):
        chosen = np.zeros(len(lengths), bool)
        chosen[rings] = True
        coords = polygons.coords[np.repeat(chosen, lengths)]
        number = np.repeat(np.arange(len(rings)), lengths[rings])
        shapes = shapely.polygons(shapely.linearrings(coords, indices=number))
        result[polygons.ring_owner[rings[~shapely.is_valid(shapes)]]] = True
    return result


def _check_place(objects: PathObjects, metadata: dict[str, Any], findings: Findings) -> None:
    size = servers.size_of(metadata)
    if size is not None:
        bounds = objects.polygons.bounds()
        if objects.lines is not None:
            bounds = np.where(np.isnan(bounds), objects.lines.bounds(), bounds)
        x0, y0, x1, y1 = bounds.T
        outside = (x0 >= size[0]) | (y0 >= size[1]) | (x1 <= 0) | (y1 <= 0)
        _say(
            findings, objects, outside, "outside", f"outside the image of {size[0]} x {size[1]} px",
            "See whether they belong to another image, or to another scale of it.",
        )  # fmt: skip
        over = ~outside & ((x0 < -1) | (y0 < -1) | (x1 > size[0] + 1) | (y1 > size[1] + 1))
        _say(
            findings, objects, over, "over-edge", "partly over the edge of the image", "Nothing.", note=True
        )  # fmt: skip
    channels = metadata.get("channels")
    depth = [len(channels) if isinstance(channels, list) else None, metadata.get("sizeZ"), metadata.get("sizeT")]
    for axis, most in enumerate(depth):
        if isinstance(most, int):
            absent = objects.plane[:, axis] >= most
            _say(
                findings, objects, absent, "no-plane", f"on a {'czt'[axis]} that the image lacks",
                "QuPath cannot show them; see whether they belong to another image.",
            )  # fmt: skip


def _say(
    findings: Findings, objects: PathObjects, which: NDArray[Any], code: str, what: str, do: str, note: bool = False
) -> None:
    """Say of how many objects something is true, and name the first."""
    places = np.flatnonzero(which) if which.dtype == bool else which
    if len(places):
        count = "1 object" if len(places) == 1 else f"{len(places):,} objects"
        first = objects.ids[int(places.min())]
        sentence = f"{count} {what} ({first if len(places) == 1 else f'first {first}'})."
        (findings.note if note else findings.warning)(code, sentence, do)


def _counted(path: Path) -> int | None:
    """Objects that a summary counts; None when there is none, or it does not say."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["hierarchy"]["nObjects"]) - 1
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reason(message: str, path: Path) -> str:
    return message.removeprefix(str(path)).strip().removeprefix("cannot be read as QuPath data: ")
