"""Opens everything of a project and says what QuPath would stumble over."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stqp.errors import InputError
from stqp.qupath import uris
from stqp.qupath.classes import ClassList
from stqp.qupath.colors import hex_color
from stqp.qupath.folders import OBJECTS
from stqp.qupath.project import PROJECT_NAME
from stqp.qupath.validation.files import check_folders, json_or_reason, network
from stqp.qupath.validation.findings import Finding, Findings, some
from stqp.qupath.validation.images import check_image
from stqp.qupath.validation.objects import Seen, check_data

_TOO_OLD = ("v0.2.0-m1", "v0.2.0-m2")


def validate_project(path: str | Path, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Check a project; nothing of it is changed.

    Parameters
    ----------
    path
        The project's folder, or its ``project.qpproj``.
    progress
        Called with images done and in total.

    Returns
    -------
    list of Finding
        Errors first; empty when QuPath 0.4 to 0.7 will open everything as it is meant.

    Raises
    ------
    InputError
        When there is no project.
    """
    path = uris.absolute(Path(path))
    file = path if path.suffix == ".qpproj" else path / PROJECT_NAME
    if not file.is_file():
        raise InputError(f"there is no QuPath project {file}; name a folder that holds {PROJECT_NAME}")
    folder, findings, seen = file.parent, Findings(), Seen()
    content = _check_project(file, findings)
    if content is None:
        return findings.sorted()
    images = _images(content, findings)
    names = {number: str(image.get("imageName") or number) for number, image in images}
    _check_names(names, [image for _, image in images], findings)
    classes = _check_classes(folder / "classifiers" / "classes.json", findings)
    check_folders(folder, file, names, findings)
    recorded = content.get("uri")
    for done, (number, image) in enumerate(images):
        findings.about(file.name, names[number])
        check_image(image, recorded if isinstance(recorded, str) else None, folder, findings)
        findings.about(f"data/{number}/{OBJECTS}", names[number])
        check_data(folder / "data" / str(number), image, f"{number}", findings, seen)
        if progress is not None:
            progress(done + 1, len(images))
    _check_seen(seen, classes, names, findings)
    return findings.sorted()


def _check_project(file: Path, findings: Findings) -> dict[str, Any] | None:
    """Check the project file's own keys; its content, None when it cannot be read."""
    findings.about(file.name)
    content = json_or_reason(file)
    if isinstance(content, str):
        backup = file.with_name(f"{file.name}.backup")
        findings.error(
            "project-unreadable", f"The project file cannot be read: {content}.",
            f"Put {backup.name} in its place." if backup.is_file() else "Put it back from a backup.",
        )  # fmt: skip
        return None
    for key in ("createTimestamp", "modifyTimestamp"):
        if not isinstance(content.get(key), (int, float)):
            findings.error(
                "timestamp", f"The project file has no {key}; QuPath refuses the project.",
                f'Add "{key}": a number, the ms since 1970.',
            )  # fmt: skip
    if content.get("version") in _TOO_OLD:
        findings.error("too-old", "The project is of QuPath 0.2.0-m1 or -m2.", "Make it anew; later ones refuse it.")
    if content.get("version") is None and "lastID" not in content:
        findings.error(
            "no-version", "The project file has neither version nor lastID; QuPath refuses the project.",
            'Add a version, as "0.5.1".',
        )  # fmt: skip
    home = uris.uri_path(str(content.get("uri") or ""))
    if home and uris.local_path(home) != file:
        findings.note(
            "moved", f"The project was last saved as {home}.", "Nothing; images are looked for from here as well."
        )
    if kind := network(file.parent):
        findings.note(
            "network", f"The project is on a network drive ({kind}).",
            "Nothing, while one person at a time has it open: QuPath locks nothing.",
        )  # fmt: skip
    return content


def _images(content: dict[str, Any], findings: Findings) -> list[tuple[int, dict[str, Any]]]:
    """Check the list of entries; those that have an id."""
    listed = content.get("images", [])
    if not isinstance(listed, list) or not all(isinstance(image, dict) for image in listed):
        findings.error("images", "The images of the project file are no list of entries.", "Put back a backup.")
        return []
    result: list[tuple[int, dict[str, Any]]] = []
    for place, image in enumerate(listed, start=1):
        number = image.get("entryID")
        findings.entry = str(image.get("imageName") or number or f"number {place}")
        if not isinstance(number, int) and not str(number).isdecimal():
            findings.error(
                "no-id", "The entry has no entryID that is a number; QuPath gives it 0, or refuses the project.",
                "Give it a number that no other entry has.",
            )  # fmt: skip
            continue
        if int(number) in dict(result):
            findings.error(
                "duplicate-entry", f"The entryID {number} is that of another entry; they share one file of objects.",
                "Remove one of them; what is saved of one is lost for the other.",
            )  # fmt: skip
            continue
        if not isinstance(image.get("metadata"), dict):
            findings.error(
                "no-entry-metadata", "The metadata of the entry are missing; QuPath fails when it shows or saves them.",
                'Add "metadata": {}.', ("0.4", "0.5"),
            )  # fmt: skip
        result.append((int(number), image))
    findings.entry = None
    last = content.get("lastID")
    most = max((number for number, _ in result), default=0)
    if isinstance(last, (int, float)) and last < most:
        findings.note("last-id", f"The lastID is {last}, but an entry has {most}.", "Nothing; QuPath raises it.")
    return result


def _check_names(names: dict[int, str], images: list[dict[str, Any]], findings: Findings) -> None:
    counts = Counter(names.values())
    for name, number in counts.items():
        if number > 1:
            findings.note(
                "same-name", f"{number} entries are named {name!r}.", "Rename them, or name them to stqp by their ids."
            )
    places = {str((image.get("serverBuilder") or {}).get("uri") or "") for image in images} - {""}
    for what, given in (("entries", counts.keys()), ("image files", places)):
        groups: dict[str, list[str]] = {}
        for name in sorted(given):
            groups.setdefault(name.casefold(), []).append(name)
        for group in groups.values():
            if len(group) > 1:
                findings.warning(
                    "only-case", f"The names of {what} differ in capitals only: {some(group)}.",
                    "Rename one; on Windows and macOS they are one file.",
                )  # fmt: skip


def _check_classes(path: Path, findings: Findings) -> dict[str, Any]:
    """Check the list of classes; colours by class."""
    findings.about("classifiers/classes.json")
    if not path.is_file():
        return {}
    content = json_or_reason(path)
    if isinstance(content, str):
        findings.error(
            "classes-unreadable", f"The list of classes cannot be read: {content}; QuPath refuses the whole project.",
            "Delete the file, and let stqp project classes --set write it anew.",
        )  # fmt: skip
        return {}
    listed = content.get("pathClasses")
    if not isinstance(listed, list):
        findings.warning("no-classes", "The file has no list pathClasses; QuPath takes no class.", "Delete it.")
        return {}
    names = [item.get("name") for item in listed if isinstance(item, dict)]
    for item in listed:
        color = item.get("color") if isinstance(item, dict) else None
        if not isinstance(item, dict) or (color is not None and type(color) not in (int, float)):
            findings.error(
                "class-entry", f"{json.dumps(item, ensure_ascii=False)[:80]} is no class with a number as its colour; "
                "QuPath refuses the whole project.", "Correct it, or take it out.",
            )  # fmt: skip
    for name, number in Counter(str(name) for name in names if name is not None).items():
        plain = as_qupath_reads(name)
        if plain is None:
            findings.error(
                "class-name", f"QuPath has no class of the name {name!r}, and refuses the whole project.",
                "Rename it with stqp project classes --rename.",
            )  # fmt: skip
        elif plain != name:
            findings.warning(
                "class-name", f"QuPath reads the class {name!r} as {plain!r}.",
                "Rename it with stqp project classes --rename.",
            )  # fmt: skip
        if number > 1:
            findings.warning(
                "class-twice", f"The class {name!r} is listed {number} times.", "QuPath takes the last colour."
            )
    return dict(ClassList(content).colors)


def as_qupath_reads(name: str) -> str | None:
    """Text of the class that QuPath makes of a name; None where it refuses it."""
    parts = name.split(":")
    while parts and not parts[-1]:
        parts.pop()
    parts = [part.strip() for part in parts]
    if not parts:
        return ""
    return None if any(not p or "\n" in p or "\r" in p for p in parts) else ": ".join(parts)


def _check_seen(seen: Seen, classes: dict[str, Any], names: dict[int, str], findings: Findings) -> None:
    """Compare what entries have in common."""
    findings.about("classifiers/classes.json")
    for name, colors in sorted(seen.colors.items()):
        if name in classes and colors - {classes[name]}:
            others = some(sorted(hex_color(c) for c in colors - {classes[name]}))
            findings.note(
                "class-color", f"{name!r} is {hex_color(classes[name])} in the project and {others} in objects.",
                "Nothing; the project's colour is shown.",
            )  # fmt: skip
    absent = sorted(set(seen.colors) - set(classes))
    if absent:
        findings.note(
            "class-not-listed", f"Classes of objects that the project does not list: {some(absent, 6)}.",
            "Nothing; QuPath shows them, but not in its list of classes. stqp project classes --set lists them.",
        )  # fmt: skip
    shared = _shared(seen.ids.values())
    if len(shared):
        holders = [names[int(key)] for key, ids in seen.ids.items() if np.isin(shared, ids).any()]
        findings.about("data")
        findings.warning(
            "shared-ids", f"{len(shared):,} object ids occur in several images ({some(holders)}).",
            "Nothing for QuPath, which looks within an image; tables of several images need both, image and id.",
        )  # fmt: skip


def _shared(columns: Iterable[Any]) -> Any:
    parts = [*columns]
    if not parts:
        return np.empty(0, str)
    values, counts = np.unique(np.concatenate(parts), return_counts=True)
    return values[counts > 1]
