"""An image's ``summary.json``: how many objects of which sort; QuPath writes it and never reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stqp.qupath.objects import ObjectKind, PathObjects

_KIND_NAMES = {
    ObjectKind.ANNOTATION: "Annotations",
    ObjectKind.DETECTION: "Detections",
    ObjectKind.CELL: "Cells",
    ObjectKind.TILE: "Tiles",
    ObjectKind.TMA_CORE: "TMA cores",
}


def summary(path: Path, objects: PathObjects, data: Path, size: tuple[int, int] | None) -> bytes:
    """Make the content of a summary.

    Parameters
    ----------
    path
        The present summary; what it says of the image stays.
    objects
        The image's objects.
    data
        File that holds them, for its time.
    size
        Width and height of the image.
    """
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        content = {"timestamp": 0, "imageType": "BRIGHTFIELD_H_E"}
        if size is not None:
            content["server"] = {"width": size[0], "height": size[1], "sizeC": 3, "sizeZ": 1, "sizeT": 1}
    content["timestamp"] = int(data.stat().st_mtime * 1000)
    counts = {"Root objects": 1}
    for kind, name in _KIND_NAMES.items():
        number = int((objects.kind == kind).sum())
        if number:
            counts[name] = number
    annotation = objects.kind == ObjectKind.ANNOTATION
    detection = ~annotation & (objects.kind != ObjectKind.TMA_CORE)
    content["hierarchy"] = {
        "nObjects": len(objects) + 1,
        "objectTypeCounts": counts,
        "annotationClassificationCounts": _class_counts(objects, annotation),
        "detectionClassificationCounts": _class_counts(objects, detection),
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _class_counts(objects: PathObjects, mask: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in objects.classes[mask].tolist():
        counts[name or "Unclassified"] = counts.get(name or "Unclassified", 0) + 1
    return counts
