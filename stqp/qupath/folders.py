"""Names of files and folders of a project's images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

STQP_FOLDER = "stqp"
OBJECTS = "data.qpdata"
STAGED = ".data.qpdata.staged"
_RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}


def safe_name(name: str) -> str:
    """Name for a folder that is allowed on Windows, macOS and Linux."""
    text = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name).strip().rstrip(". ")[:100].rstrip(". ")
    if not text or text.split(".")[0].strip().lower() in _RESERVED:
        text = f"_{text}"
    return text


def folder_names(images: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Name of each image's folder, from the ids and names of all; no two are equal, capitals aside."""
    safe = [(number, safe_name(name)) for number, name in images]
    counts = Counter(name.lower() for _, name in safe)
    result = {}
    for number, name in safe:
        unique = name
        if counts[name.lower()] > 1:
            unique = f"{name}-{number}"
            while unique.lower() in counts:  # another image is called so
                unique += "_"
        result[number] = unique
    return result
