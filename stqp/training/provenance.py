"""Who says what the nuclei are that a network learns from: the import, the typing, and the people who corrected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import StqpError
from stqp.qupath.objects import PathObjects
from stqp.qupath.ownership import REVIEWED_KEY, SOURCE_KEY, corrected, written_classes
from stqp.qupath.project import ProjectEntry, QuPathProject
from stqp.taxonomy import RGB, color_of

BY_HAND = "by hand or another program"
_TYPING = ("method", "markers", "seed", "resolution", "species", "reference", "labels", "class_map")
_IMPORT = ("labels", "label_key", "class_map", "cell_types", "nuclei_source")


def label_provenance(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How the nuclei of each image got their classes, as its project tells now.

    Parameters
    ----------
    sources
        As a file of patches has them: ``entry``, and ``project`` and ``entry_id`` where they come from a project.

    Returns
    -------
    list of dict
        For each image: ``entry``; ``summary``, one sentence; and, where its project is at hand, ``nuclei`` (number by
        who wrote them), ``corrected``, ``accepted`` and ``deleted`` by a person, ``changes`` of class
        (``Old > New``), and what the records of ``import`` and ``typing`` say.
    """
    result = []
    for source in sources:
        found: dict[str, Any] = {"entry": str(source.get("entry", ""))}
        folder = source.get("project")
        if folder is None:
            found["summary"] = "labels that came with the patches"
        else:
            found["project"] = str(folder)
            try:
                with QuPathProject.open(folder, "r") as project:
                    entry = next(e for e in project.entries if e.id == source.get("entry_id"))
                    found |= _of_entry(entry)
            except (StqpError, OSError, StopIteration):
                found["summary"] = "its project is no longer at hand, so nothing is known of its labels"
        result.append(found)
    return result


def project_colors(sources: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, RGB]:
    """Colour of each class: that of the first project which has it, else the taxonomy's."""
    colors: dict[str, RGB] = {}
    for folder in dict.fromkeys(str(s["project"]) for s in sources if s.get("project")):
        try:
            with QuPathProject.open(folder, "r") as project:
                colors = {**project.classes, **colors}
        except (StqpError, OSError):
            continue
    return {name: colors.get(name) or color_of(name) for name in classes}


def _of_entry(entry: ProjectEntry) -> dict[str, Any]:
    objects = entry.read_objects()
    column = objects.metadata.get(SOURCE_KEY)
    writers = np.full(len(objects), None, object) if column is None else column
    mine = np.array([w is not None for w in writers.tolist()], bool)
    others = ~mine & np.array([bool(c) and not str(c).endswith("*") for c in objects.classes.tolist()], bool)
    names, numbers = np.unique(writers[mine].astype(str), return_counts=True)
    nuclei = dict(zip(names.tolist(), numbers.tolist(), strict=True))
    if others.any():
        nuclei[BY_HAND] = int(others.sum())
    changed = corrected(objects)
    reviewed = objects.metadata.get(REVIEWED_KEY)
    accepted = np.zeros(len(objects), bool)
    if reviewed is not None:
        accepted = mine & ~changed & np.array([v is not None for v in reviewed.tolist()], bool)
    folder = entry.stqp_folder
    result = {
        "nuclei": nuclei,
        "corrected": int(changed.sum()),
        "accepted": int(accepted.sum()),
        "deleted": _deleted(folder, objects),
        "changes": _changes(objects, changed),
        "import": _import(folder),
        "typing": [t for path in sorted(folder.glob("typing*.json")) if (t := _typing(path)) is not None],
    }
    return {"summary": _summary(result), **result}


def _changes(objects: PathObjects, changed: NDArray[np.bool_]) -> dict[str, int]:
    """Nuclei by the class they were written with and the one a person gave them."""
    old, new = written_classes(objects)[changed], objects.classes[changed]
    pairs = [f"{a or 'none'} > {b or 'none'}" for a, b in zip(old.tolist(), new.tolist(), strict=True) if a != b]
    names, numbers = np.unique(np.array(pairs, str), return_counts=True)
    return dict(zip(names.tolist(), numbers.tolist(), strict=True))


def _deleted(folder: Path, objects: PathObjects) -> int:
    """Nuclei that an import offered and that are in the image no longer."""
    from stqp.importing.xenium import KNOWN_FILE

    path = folder / KNOWN_FILE
    if not path.is_file():
        return 0
    try:
        with np.load(path, allow_pickle=False) as stored:
            known = np.concatenate([np.ascontiguousarray(stored[key], np.uint8) for key in stored.files])
        here = bytes.fromhex("".join(objects.ids.tolist()).replace("-", ""))
    except (OSError, ValueError, EOFError):
        return 0
    ids = np.frombuffer(here or bytes(16), "V16")
    return int((~np.isin(np.ascontiguousarray(known).view("V16").ravel(), ids)).sum())


def _import(folder: Path) -> dict[str, Any] | None:
    from stqp.importing.xenium import RECORD_FILE

    record = _read(folder / RECORD_FILE)
    if record is None:
        return None
    arguments, results = record.get("arguments", {}), record.get("results", {})
    alignment = results.get("alignment") or {}
    return {
        "command": record.get("command"),
        "run": results.get("run"),
        "data": record.get("counts", {}).get("run"),
        "alignment": alignment.get("text"),
        **{key: arguments[key] for key in _IMPORT if arguments.get(key) is not None},
        "stqp": record.get("versions", {}).get("stqp"),
        "started": record.get("started"),
    }


def _typing(path: Path) -> dict[str, Any] | None:
    content = _read(path)
    if content is None:
        return None
    record = content.get("record", {})
    arguments, parameters = record.get("arguments", {}), content.get("parameters", {})
    confidence = content.get("confidence") or {}
    return {
        "sample": content.get("sample"),
        **{key: value for key in _TYPING if (value := parameters.get(key, arguments.get(key))) is not None},
        "taxonomy": arguments.get("taxonomy") or "of stqp",
        "neoplastic": (content.get("neoplastic") or {}).get("decided_by"),
        "cells": content.get("classes"),
        "expected_calibration_error": confidence.get("expected_calibration_error"),
        "stqp": record.get("versions", {}).get("stqp"),
        "started": record.get("started"),
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _summary(found: Mapping[str, Any]) -> str:
    imported, typed = found["import"], found["typing"]
    if typed:
        ways = {
            f"typed by the method {t.get('method')} with the markers {t.get('markers') or '-'}, "
            f"taxonomy {t['taxonomy']}, seed {t.get('seed')}"
            for t in typed
        }
        text = "; ".join(sorted(ways))
    elif imported and imported.get("labels"):
        text = f"labels of {Path(imported['labels']).name}"
        if imported.get("class_map"):
            text += f" by {Path(imported['class_map']).name}"
    elif imported and imported.get("cell_types"):
        text = f"typed on import by the method {imported['cell_types']}"
    else:
        text = "classes set in QuPath"
    done = {"corrected": found["corrected"], "accepted": found["accepted"], "deleted": found["deleted"]}
    by_person = ", ".join(f"{number:,} {what}" for what, number in done.items() if number)
    return text + (f"; by a person {by_person}" if by_person else "")
