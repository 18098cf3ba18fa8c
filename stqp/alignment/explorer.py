"""The zip of Xenium Explorer's alignment: a matrix and the keypoints that it was made from."""

from __future__ import annotations

import zipfile
from pathlib import Path

from stqp.errors import InputError

MATRIX_FILE, KEYPOINTS_FILE = "matrix.csv", "keypoints.csv"
_LARGEST = 10_000_000  # bytes of a csv of either kind


def read_zip(path: Path) -> dict[str, bytes]:
    """Bytes of `MATRIX_FILE` and `KEYPOINTS_FILE`, as far as the zip has them, in any of its folders.

    Raises
    ------
    InputError
        When the file is no zip, is broken, or holds neither.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info for info in archive.infolist() if not info.is_dir() and not _is_shadow(info.filename)]
            found: dict[str, bytes] = {}
            for wanted in (MATRIX_FILE, KEYPOINTS_FILE):
                ending = wanted.split(".")[0]
                matching = [i for i in names if Path(i.filename).name.lower().removesuffix(".csv").endswith(ending)]
                if len(matching) > 1:
                    listed = ", ".join(i.filename for i in matching)
                    raise InputError(f"the alignment {path} holds several {wanted} ({listed}); give one as a csv")
                if matching:
                    if matching[0].file_size > _LARGEST:
                        raise InputError(f"{matching[0].filename} in the alignment {path} is too large for a {wanted}")
                    found[wanted] = archive.read(matching[0])
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise InputError(f"the alignment {path} cannot be read as a zip ({error})") from error
    if not found:
        held = ", ".join(i.filename for i in names[:5]) or "nothing"
        raise InputError(f"expected {MATRIX_FILE} or {KEYPOINTS_FILE} in the alignment {path}, found {held}")
    return found


def _is_shadow(name: str) -> bool:
    """Whether macOS put it there."""
    return name.startswith("__MACOSX/") or Path(name).name.startswith("._")
