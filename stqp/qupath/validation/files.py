"""What lies in a project's folder: files that are broken, belong to no image, or were left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stqp import files
from stqp.locking import LOCK_NAME, is_stale, read_lock
from stqp.qupath.folders import OBJECTS, STAGED, STQP_FOLDER, folder_names
from stqp.qupath.pending import NEW_MARK, PENDING_NAME, ids_elsewhere
from stqp.qupath.validation.findings import Findings

_NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "afs", "lustre", "davfs")


def check_folders(folder: Path, file: Path, names: dict[int, str], findings: Findings) -> None:
    """Look for what belongs to no image, and for what was left behind.

    Parameters
    ----------
    folder, file
        Of the project.
    names
        Of its entries, by id.
    findings
        Added to.
    """
    findings.about("data")
    known = {*names, *ids_elsewhere(folder, file)}
    numbered = [p for p in sorted((folder / "data").glob("*")) if p.name.isdigit() and p.is_dir()]
    for place in numbered:
        if int(place.name) not in known:
            full = (place / OBJECTS).exists()
            findings.about(f"data/{place.name}")
            (findings.warning if full else findings.note)(
                "orphan",
                f"No entry of the project has the id {place.name}{', whose objects are here' if full else ''}.",
                "Delete the folder, unless the entry was removed by mistake.",
            )  # fmt: skip
    metadata = folder / "data" / "metadata.json"
    if metadata.is_file() and isinstance(reason := json_or_reason(metadata), str):
        findings.about("data/metadata.json")
        findings.error(
            "metadata-unreadable", f"The project's metadata cannot be read: {reason}; QuPath refuses the project.",
            "Delete the file.", ("0.6", "0.7"),
        )  # fmt: skip
    homes = {name.lower() for name in folder_names(names.items()).values()}
    root = folder / STQP_FOLDER
    for place in sorted(root.iterdir()) if root.is_dir() else ():
        hidden = place.name.startswith(".")  # how far a run is
        if place.is_dir() and not hidden and place.name.lower() not in homes and not (folder / PENDING_NAME).exists():
            findings.about(f"{STQP_FOLDER}/{place.name}")
            findings.note("stqp-orphan", "What stqp noted here is of no image of the project.", "Delete the folder.")
    left = [p for p in (folder, folder / "classifiers", *numbered) for p in p.glob(".*") if _left_over(p)]
    lock = read_lock(folder)
    if lock is not None and not is_stale(lock, folder / LOCK_NAME):
        findings.about(LOCK_NAME)
        findings.note("in-use", f"Process {lock.get('pid')} on {lock.get('host')} writes the project.", "Wait for it.")
    elif lock is not None or left:
        findings.about(LOCK_NAME if lock is not None else left[0].relative_to(folder).as_posix())
        findings.note(
            "left-over", "A run of stqp was killed here; its unfinished files are harmless.",
            "Nothing; the next run that writes clears them away.",
        )  # fmt: skip


def _left_over(path: Path) -> bool:
    return files.is_temporary(path) or path.name.startswith(STAGED) or path.name in (NEW_MARK, PENDING_NAME)


def json_or_reason(path: Path) -> dict[str, Any] | str:
    """Content of a JSON file, or why there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return str(error)
    return content if isinstance(content, dict) else "it holds no JSON object"


def network(folder: Path) -> str | None:
    """Name of the network file system that a folder is on; None when it is on none that is known."""
    text = folder.as_posix()
    if text.startswith("//"):
        return "share"
    if sys.platform == "win32":
        import ctypes

        return "share" if ctypes.windll.kernel32.GetDriveTypeW(folder.anchor) == 4 else None
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mounts = [(fields[1].replace("\\040", " "), fields[2]) for line in lines if len(fields := line.split()) > 2]
    over = [(place, kind) for place, kind in mounts if text == place or text.startswith(place.rstrip("/") + "/")]
    kind = max(over, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return kind if kind.startswith(_NETWORK) else None
