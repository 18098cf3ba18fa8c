"""What a file of patches holds, for people and programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stqp.patches.quality import USED
from stqp.patches.store import SIDES, PatchFile
from stqp.taxonomy import UNKNOWN


def describe(path: Path) -> dict[str, Any]:
    """Say what a file of patches holds.

    Returns
    -------
    dict
        ``patches``, ``size``, ``mpp``, ``classes``, ``fingerprint``; ``sides`` with the patches and, by class, the
        nuclei of each (a nucleus that two patches show counts twice); ``images``; ``labels``, ``options``.

    Raises
    ------
    InputError
        When it is none.
    """
    patches = PatchFile(path)
    sides: dict[str, Any] = {}
    for number, name in enumerate(SIDES):
        mine = patches.side == number
        sums = patches.counts[mine].sum(axis=0).tolist()
        names = [*patches.classes, UNKNOWN]
        sides[name] = {
            "patches": int(mine.sum()),
            "nuclei": dict(zip(names, [*sums[1:], sums[0]], strict=True)),
        }
    images = []
    for number, source in enumerate(patches.sources):
        mine = patches.source == number
        by_side = {name: int((patches.side[mine] == i).sum()) for i, name in enumerate(SIDES)}
        images.append({**source, "patches": by_side, "nuclei": int(patches.counts[mine].sum())})
    return {
        "file": str(path),
        "patches": len(patches),
        "size": patches.size,
        "mpp": patches.mpp,
        "classes": patches.classes,
        "fingerprint": patches.fingerprint,
        "sides": sides,
        "images": images,
        "labels": patches.about.get("labels", {}),
        "options": patches.about.get("options", {}),
    }


def table(found: dict[str, Any], most: int = 20) -> list[str]:
    """Lines for people of what `describe` found, with so many images at most."""
    lines = [f"{found['patches']:,} patches of {found['size']} px at {found['mpp']:g} µm per px"]
    sides = {name: side for name, side in found["sides"].items() if side["patches"]}
    names = [*found["classes"], UNKNOWN]
    width = max(map(len, (*names, "patches")))
    lines.append(" " * (width + 2) + "".join(f"{name:>13}" for name in sides))
    lines.append(f"  {'patches':<{width}}" + "".join(f"{side['patches']:>13,}" for side in sides.values()))
    lines += [f"  {n:<{width}}" + "".join(f"{side['nuclei'][n]:>13,}" for side in sides.values()) for n in names]
    images = found["images"]
    lines.append(f"{len(images):,} image{'s' if len(images) != 1 else ''}")
    for image in images[:most]:
        where = ", ".join(f"{number:,} {name}" for name, number in image["patches"].items() if number)
        about = ", ".join(f"{k}={v}" for k, v in image.get("metadata", {}).items() if not k.startswith("stqp."))
        lines.append(f"  {image['entry']}: {where or 'none'}{f' ({about})' if about else ''}")
    if len(images) > most:
        lines.append(f"  and {len(images) - most:,} more")
    doubted = {
        name: ", ".join(f"{number:,} {reason}" for reason, number in reasons.items() if reason != USED)
        for name, reasons in found["labels"].items()
    }
    lines += [f"{name} nuclei not used as labelled: {text}" for name, text in doubted.items() if text]
    return lines
