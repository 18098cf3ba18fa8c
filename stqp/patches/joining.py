"""Files of patches as input: a manual set, or one cut before, alone or beside QuPath projects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import InputError
from stqp.patches.options import CutOptions, matches
from stqp.patches.store import SIDES, TEST, TRAINING, UNKNOWN_TYPE, VALIDATION, PatchFile, PatchWriter
from stqp.record import RunRecord
from stqp.taxonomy import ordered

SUFFIXES = (".h5", ".hdf5")
_ROWS = 16  # read and written at a time


def is_patch_file(path: Path) -> bool:
    """Whether a path is that of a file of patches, by its ending."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def join_digest(inputs: Sequence[PatchFile], options: CutOptions) -> str:
    """Fingerprint of what files of patches give together; of one alone that is taken whole, its own."""
    asked = [options.classes, options.entries, options.where, options.holdout, options.validate_on]
    if len(inputs) == 1 and not any(asked) and inputs[0].fingerprint:
        return inputs[0].fingerprint
    content = [[p.fingerprint for p in inputs], [p.path.stat().st_size for p in inputs], asked]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def join_files(inputs: Sequence[PatchFile], out: Path, record: RunRecord, options: CutOptions, digest: str) -> None:
    """Put the patches of several files into one.

    Patches stay on the side on which they are, but for images that `holdout` or `validate_on` name.

    Parameters
    ----------
    inputs
        The files.
    out
        The file to write.
    record
        Takes counts.
    options
        Of which ``entries``, ``where``, ``classes``, ``holdout`` and ``validate_on`` have an effect.
    digest
        Fingerprint for the new file.

    Raises
    ------
    InputError
        When the files do not go together, or a slide would stand on two sides.
    """
    _check_alike(inputs, options)
    if len(inputs) == 1 and digest == inputs[0].fingerprint:
        files.copy(inputs[0].path, out)
        return
    names = [*options.classes] or ordered({c for p in inputs for c in p.classes})
    chosen = [_sides(patches, options) for patches in inputs]
    _check_named(inputs, options)
    _check_apart(inputs, chosen)
    if not any((sides == TRAINING).any() for sides in chosen):
        raise InputError("nothing is left to learn from; hold out less")
    sources: list[dict[str, Any]] = []
    labels: dict[str, dict[str, int]] = {}
    boxes: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    counts = np.zeros((len(SIDES), len(names) + 1), np.int64)
    with (
        files.replacing(out) as temporary,
        PatchWriter(temporary, inputs[0].size, inputs[0].mpp, names, digest) as writer,
    ):
        for patches, sides in zip(inputs, chosen, strict=True):
            table = np.full(256, UNKNOWN_TYPE, np.uint8)
            table[0] = 0
            for number, name in enumerate(patches.classes, start=1):
                if name in names:
                    table[number] = names.index(name) + 1
            rows = np.flatnonzero(sides >= 0)
            for start in range(0, len(rows), _ROWS):
                part = [_row(patches, row, table, int(sides[row]), len(sources), len(names))
                        for row in rows[start : start + _ROWS].tolist()]  # fmt: skip
                writer.append_all(part)
                for row in part:
                    counts[row["side"]] += row["counts"]
            _add_boxes(boxes, patches, sides)
            sources += patches.sources
            for name, reasons in patches.about.get("labels", {}).items():
                for reason, number in reasons.items():
                    labels.setdefault(name, {})[reason] = labels.get(name, {}).get(reason, 0) + number
        totals = {f"patches, {side}": int(sum((s == n).sum() for s in chosen)) for n, side in enumerate(SIDES)}
        summary: dict[str, Any] = {"files of patches": len(inputs), **totals}
        for number, name in enumerate(names, start=1):
            held = ", ".join(f"{counts[n, number]} {side}" for n, side in enumerate(SIDES) if counts[n].any())
            summary[f"nuclei {name}"] = held
        writer.finish(sources, split=boxes, options=options.to_dict(), labels=labels, summary=summary)


def _row(
    patches: PatchFile, row: int, table: NDArray[np.uint8], side: int, before: int, n_classes: int
) -> dict[str, Any]:
    found = patches.read(row)
    counts = np.zeros(n_classes + 1, np.int32)
    numbers = table[np.r_[UNKNOWN_TYPE, 1 : len(patches.classes) + 1]]
    np.add.at(counts, np.where(numbers == UNKNOWN_TYPE, 0, numbers), patches.counts[row])
    return {
        **found, "types": table[found["types"]], "counts": counts, "origin": patches.origin[row],
        "source": before + int(patches.source[row]), "side": side,
    }  # fmt: skip


def _check_alike(inputs: Sequence[PatchFile], options: CutOptions) -> None:
    for patches in inputs:
        if abs(patches.mpp / options.mpp - 1) > 0.01:
            raise InputError(
                f"the patches of {patches.path} have {patches.mpp:g} µm per px, {options.mpp:g} are asked for; cut or "
                "import them again with another --mpp"
            )
        if patches.size != inputs[0].size:
            raise InputError(
                f"patches of {inputs[0].size} px ({inputs[0].path}) and of {patches.size} px ({patches.path}) do not "
                "go into one file; cut or import them again with one --patch-size"
            )


def _about(source: dict[str, Any]) -> dict[str, str]:
    project = Path(str(source.get("project", ""))).name
    return {**source.get("metadata", {}), "name": str(source["entry"]), "project": project}


def _sides(patches: PatchFile, options: CutOptions) -> NDArray[np.int64]:
    """Side of each patch, -1 for one that is not wanted."""
    sides = patches.side.astype(np.int64)
    for number, source in enumerate(patches.sources):
        about, mine = _about(source), patches.source == number
        if (options.entries and about["name"] not in options.entries) or not matches(options.where, about):
            sides[mine] = -1
        elif any(matches([text], about) for text in options.holdout):
            sides[mine] = TEST
        elif any(matches([text], about) for text in options.validate_on):
            sides[mine] = VALIDATION
        elif options.validate_on:
            sides[mine & (sides == VALIDATION)] = TRAINING
    return sides


def _check_named(inputs: Sequence[PatchFile], options: CutOptions) -> None:
    every = [_about(source) for patches in inputs for source in patches.sources]
    for text in (*options.where, *options.holdout, *options.validate_on):
        if not any(matches([text], about) for about in every):
            raise InputError(f"no image of {', '.join(str(p.path) for p in inputs)} has {text}")
    if missing := set(options.entries) - {about["name"] for about in every}:
        raise InputError(f"no file of patches has the image {', '.join(sorted(missing))}")


def _check_apart(inputs: Sequence[PatchFile], chosen: Sequence[NDArray[np.int64]]) -> None:
    """Refuse a slide that several files have, on more than one side."""
    met: dict[str, tuple[set[int], set[Path]]] = {}
    for patches, sides in zip(inputs, chosen, strict=True):
        for number, source in enumerate(patches.sources):
            if slide := source.get("slide"):
                seen, where = met.setdefault(str(slide), (set(), set()))
                seen |= {int(s) for s in np.unique(sides[patches.source == number]) if s >= 0}
                where.add(patches.path)
                if len(seen) > 1 and len(where) > 1:
                    raise InputError(
                        f"the slide {source['entry']} is in {' and '.join(sorted(map(str, where)))}, and would stand "
                        "on two sides of the split; hold out all of it or none"
                    )


def _add_boxes(boxes: dict[str, list[dict[str, Any]]], patches: PatchFile, sides: NDArray[np.int64]) -> None:
    """Boxes of each side, of images that moved to another side with them."""
    for number, source in enumerate(patches.sources):
        now = {int(s) for s in np.unique(sides[patches.source == number]) if s >= 0}
        mine = {
            side: [item for item in patches.about.get("split", {}).get(side, []) if _same(item, source)]
            for side in SIDES
        }
        for side, items in mine.items():
            target = SIDES[now.copy().pop()] if len(now) == 1 else side
            if now:
                boxes[target] += items


def _same(item: dict[str, Any], source: dict[str, Any]) -> bool:
    keys = ("entry", "project", "slide", "entry_id")
    return all(item.get(key) == source.get(key) for key in keys)
