"""PanNuke's layout: a fold of images, of masks with a channel a class, and of tissues, each one array (npy)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.patches.layouts.labelled import Item, Labelled, as_image, as_numbers
from stqp.taxonomy import VISUAL_CLASSES

CLASSES = [c.name for c in VISUAL_CLASSES]
CLASSES_FILE = "classes.json"


@dataclass(frozen=True)
class _Tile:
    """Reads one image of a fold; the type of a nucleus is the number of its channel, from 1."""

    images: Path
    masks: Path
    index: int

    def __call__(self) -> Labelled:
        where = f"{self.images} at {self.index}"
        image = as_image(_open(self.images)[self.index], where)
        channels = _open(self.masks)[self.index]
        nuclei = np.zeros(image.shape[:2], np.int32)
        types: list[int] = []
        for channel in range(channels.shape[-1] - 1):  # the last is the background
            numbers = as_numbers(channels[..., channel], f"{self.masks} at {self.index}, channel {channel}")
            ids, inverse = np.unique(numbers, return_inverse=True)
            here = numbers > 0
            rank = inverse.reshape(numbers.shape) + (0 if ids[0] == 0 else 1)
            nuclei[here] = rank[here] + len(types)
            types += [channel + 1] * int((ids > 0).sum())
        # a nucleus that another channel covers wholly is none
        present = np.unique(nuclei)
        present = present[present > 0]
        table = np.zeros(len(types) + 1, np.int32)
        table[present] = np.arange(1, len(present) + 1)
        return Labelled(image, table[nuclei], np.array(types, np.int64)[present - 1])


def find_folds(folder: Path) -> list[Item]:
    """Images of all folds in a folder.

    Raises
    ------
    InputError
        When there are none, or their arrays do not fit together.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder" if folder.exists() else f"the folder {folder} does not exist")
    found = sorted(folder.rglob("images.npy"))
    if not found:
        raise InputError(f"there is no images.npy in {folder}; expected PanNuke's folds as they are published")
    items = []
    for path in found:
        masks = _masks_of(path)
        images, channels = _open(path), _open(masks)
        if images.ndim != 4 or images.shape[3] != 3:
            raise InputError(f"expected images x height x width x 3 in {path}, found {_shape(images)}")
        if channels.ndim != 4 or channels.shape[:3] != images.shape[:3]:
            raise InputError(f"expected {_shape(images[..., 0])} x channels in {masks}, found {_shape(channels)}")
        if channels.shape[3] < 2:
            raise InputError(f"expected a channel for each class and one for the background in {masks}, found one")
        tissues = _tissues(path.with_name("types.npy"), len(images))
        name = _fold(path)
        for index in range(len(images)):
            about = {"fold": name, **({"tissue": tissues[index]} if tissues else {})}
            items.append(Item(f"fold{name}_{index:05d}", path, _Tile(path, masks, index), about))
    return items


def class_names(folder: Path) -> dict[int, str]:
    """Names of the channels of a set: PanNuke's, or those of a ``classes.json`` in it.

    Raises
    ------
    InputError
        When a set of another number of channels has none.
    """
    masks = _open(_masks_of(next(iter(sorted(folder.rglob("images.npy"))))))
    n = masks.shape[-1] - 1
    known = folder / CLASSES_FILE
    if known.is_file():
        try:
            names = [str(name) for name in json.loads(known.read_text(encoding="utf-8"))]
        except (ValueError, TypeError) as error:
            raise InputError(f"{known} is no list of class names ({error})") from error
    elif n == len(CLASSES):
        names = CLASSES
    else:
        return {}
    if len(names) != n:
        raise InputError(f"{known} names {len(names)} classes, the masks have {n}")
    return {i + 1: name for i, name in enumerate(names)}


def _open(path: Path) -> NDArray[Any]:
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an array ({error}); is it whole?") from error


def _masks_of(images: Path) -> Path:
    """Masks that belong to images: beside them, or as published in ``masks/foldN`` beside ``images/foldN``."""
    places = [images.with_name("masks.npy")]
    places += [p / "masks" / images.parent.name / "masks.npy" for p in images.parents[1:3]]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise InputError(f"there is no masks.npy for {images}; expected it at {places[1]}")
    return path


def _tissues(path: Path, n: int) -> list[str]:
    if not path.is_file():
        return []
    try:
        tissues = np.load(path, allow_pickle=False)
    except ValueError:
        return []  # older copies hold Python objects
    if tissues.shape != (n,):
        raise InputError(f"expected {n} tissues in {path}, found {_shape(tissues)}")
    return [str(t) for t in tissues.tolist()]


def _fold(path: Path) -> str:
    for part in reversed(path.parts[:-1]):
        if found := re.fullmatch(r"fold[ _]?(\d+)", part.lower()):
            return found[1]
    return path.parent.name


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape))
