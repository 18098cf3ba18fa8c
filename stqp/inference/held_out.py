"""Where a training run held out, so that it can be judged on what it did not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stqp.errors import InputError

Boxes = list[list[float]]


def held_out_boxes(run: Path) -> dict[str, Boxes]:
    """Held-out boxes of a training run by image name, ``[x0, y0, x1, y1]`` in full-resolution px.

    Those for testing where there are any, else those for validation.

    Raises
    ------
    InputError
        When the folder is no run, or the run held nothing out.
    """
    from stqp.training.manifest import read_manifest

    split = read_manifest(run)["split"]
    # what is for testing was neither learnt from nor chosen by
    items: list[dict[str, Any]] = split.get("test") or split.get("validation", [])
    boxes: dict[str, Boxes] = {}
    for item in items:
        if item.get("boxes"):
            boxes.setdefault(str(item["entry"]), []).extend(item["boxes"])
    if not boxes:
        raise InputError(f"the run {run} held nothing out (its manifest has no boxes for testing or validation)")
    return boxes
