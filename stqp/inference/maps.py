"""Instance maps in folders: one file an image, in the layout that `stqp predict --maps` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import InputError
from stqp.slides import SLIDE_SUFFIXES
from stqp.taxonomy import UNKNOWN

CLASSES_FILE = "classes.json"
_SUFFIXES = (".npz", ".npy")


@dataclass(frozen=True)
class InstanceMap:
    """The nuclei of one image.

    Attributes
    ----------
    inst : integer (height, width)
        0 is background.
    ids : int64 (n,) or None
        Ids that the types belong to; the map's ids in ascending order when None.
    types : int64 (n,) or None
        None when the file has no types.
    classes : dict or None
        Name of each type; None when the file does not name them.
    """

    inst: NDArray[np.integer]
    ids: NDArray[np.int64] | None
    types: NDArray[np.int64] | None
    classes: dict[int, str] | None


def list_maps(folder: Path) -> dict[str, Path]:
    """Files of instance maps in a folder by their stems.

    Raises
    ------
    InputError
        When there are none, or two of one stem.
    """
    if not folder.is_dir():
        raise InputError(
            f"expected a folder of instance maps, found {'a file' if folder.exists() else 'nothing'} at {folder}"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise InputError(f"{folder} has both {found[path.stem].name} and {path.name}; remove one")
            found[path.stem] = path
    if not found:
        raise InputError(f"expected instance maps (.npz or .npy) in {folder}, found none")
    return found


def read_map(path: Path, classes: Mapping[int, str] | None = None) -> InstanceMap:
    """Read one instance map.

    Parameters
    ----------
    path
        A ``.npy`` with the instances, or a ``.npz`` with ``inst`` (height, width) and, optionally, ``types``
        (n,), ``ids`` (n,) and ``classes`` (names of the types 1, 2, ...).
    classes
        Names of the types where the file gives none.

    Raises
    ------
    InputError
        When the file holds something else.
    """
    try:
        content = np.load(path, allow_pickle=False)
        arrays: dict[str, NDArray[Any]] = dict(content) if path.suffix.lower() == ".npz" else {"inst": content}
    except Exception as error:  # numpy raises many kinds for a broken or foreign file
        raise InputError(f"{path} cannot be read as an instance map: {error}") from error
    if "inst" not in arrays:
        raise InputError(f"expected an array 'inst' in {path}, found {', '.join(sorted(arrays)) or 'nothing'}")
    inst = np.squeeze(arrays["inst"])
    if inst.ndim != 2:
        raise InputError(f"expected an instance map of height x width in {path}, found shape {arrays['inst'].shape}")
    if not np.issubdtype(inst.dtype, np.integer):
        if inst.dtype != bool and not np.array_equal(inst, np.rint(inst)):
            raise InputError(f"expected whole numbers as instance ids in {path}, found {inst.dtype} with fractions")
        inst = inst.astype(np.int64)
    ids, types = (np.asarray(arrays[k]).reshape(-1).astype(np.int64) if k in arrays else None for k in ("ids", "types"))
    if ids is not None and types is not None and len(ids) != len(types):
        raise InputError(f"expected as many types as ids in {path}, found {len(types)} types and {len(ids)} ids")
    named = {i: str(n) for i, n in enumerate(arrays["classes"], start=1)} if "classes" in arrays else None
    return InstanceMap(inst, ids, types, named or (dict(classes) if classes else None))


def read_class_names(folder: Path) -> dict[int, str] | None:
    """Names of the types from the folder's ``classes.json``, ``{"1": "Neoplastic", ...}``; None without it."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list):
            return {i: str(n) for i, n in enumerate(content, start=1)}
        return {int(k): str(v) for k, v in content.items()}
    except (ValueError, AttributeError) as error:
        raise InputError(
            f'expected class names by type, {{"1": "Neoplastic", ...}}, in {path}, found something else: {error}'
        ) from error


def write_map(
    path: Path,
    inst: NDArray[np.integer],
    types: NDArray[np.integer],
    classes: Sequence[str],
    probability: NDArray[np.floating] | None = None,
    mpp: float | None = None,
) -> None:
    """Write an instance map with the ids 1..n as `read_map` reads it.

    Parameters
    ----------
    path
        A ``.npz``.
    inst : (height, width)
    types : (n,)
        Class id of each nucleus, 0 for none.
    classes
        Names of the classes 1, 2, ...
    probability : (n,)
        Of each nucleus's type, where it is known.
    mpp
        µm per px, where it is known.
    """
    ids = np.arange(1, len(types) + 1, dtype=np.int32)
    seen = np.bincount(inst.ravel(), minlength=len(types) + 1)[1:] > 0
    extra: dict[str, Any] = {} if mpp is None else {"mpp": np.float64(mpp)}
    if probability is not None:
        extra["probability"] = np.asarray(probability, np.float32)[seen]
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            inst=inst.astype(np.int32),
            ids=ids[seen],
            types=np.asarray(types, np.uint8)[seen],
            classes=np.array([*classes], dtype=np.str_),
            **extra,
        )


def map_stem(name: str) -> str:
    """Stem of the map file of an image: its name without the ending of a slide."""
    path = Path(name)
    stem = path.stem if path.suffix.lower() in SLIDE_SUFFIXES else path.name
    if stem.lower().endswith(".ome"):
        stem = stem[:-4]
    return re.sub(r"[^\w.+-]+", "_", stem) or "image"


def name_of(type_id: int, classes: Mapping[int, str] | None) -> str:
    """Name of a type: `UNKNOWN` for 0 and below, the number itself where no name is known."""
    if type_id <= 0:
        return UNKNOWN
    return (classes or {}).get(type_id, str(type_id))
