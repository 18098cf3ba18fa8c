"""Labelled images of other programs: an image, a map of its nuclei, a number for the type of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.slides import RGBImage

UNTYPED = -1
"""Number of a nucleus for which its set has no type."""


@dataclass(frozen=True)
class Labelled:
    """An image with its nuclei.

    Attributes
    ----------
    image : uint8 (h, w, 3)
    nuclei : int32 (h, w)
        1..n, 0 where there is none.
    types : int64 (n,)
        Number of the type of each, `UNTYPED` where there is none.
    """

    image: RGBImage
    nuclei: NDArray[np.int32]
    types: NDArray[np.int64]


@dataclass(frozen=True)
class Item:
    """One image of a set, before it is read.

    Attributes
    ----------
    name : str
        Unique in its set.
    path : Path
        Of the image.
    load : callable
        Reads it; goes to other processes.
    about : dict
        What is known of it, e.g. its fold.
    mpp : float or None
        µm per px that its file says.
    """

    name: str
    path: Path
    load: Callable[[], Labelled]
    about: Mapping[str, str] = field(default_factory=dict)
    mpp: float | None = None


def as_image(pixels: NDArray[Any], where: str) -> RGBImage:
    """Pixels as 8-bit RGB.

    Raises
    ------
    InputError
        When they are none.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[..., :3]
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype.kind not in "uif":
        raise InputError(f"expected an RGB image in {where}, found {_kind(pixels)}")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    low, high = (float(f(pixels)) for f in (np.min, np.max))
    if not (low >= 0 and high <= 255):
        raise InputError(f"expected colours from 0 to 255 in {where}, found {low:g} to {high:g}")
    if pixels.dtype.kind == "f" and high <= 1 and high > 0:
        raise InputError(f"the colours of {where} go from 0 to 1; expected 0 to 255")
    return np.ascontiguousarray(np.round(pixels).astype(np.uint8))


def as_numbers(values: NDArray[Any], where: str, shape: tuple[int, int] | None = None) -> NDArray[np.int64]:
    """A map of whole numbers from 0 on, of any type of numbers.

    Raises
    ------
    InputError
        When it has several channels, fractions, negative numbers, or another shape than its image.
    """
    values = np.asarray(values)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise InputError(f"expected a map with one number a pixel in {where}, found {_kind(values)}")
    if shape is not None and values.shape != shape:
        raise InputError(
            f"the map in {where} has {values.shape[1]} x {values.shape[0]} px, its image {shape[1]} x {shape[0]}"
        )
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise InputError(f"expected whole numbers in the map in {where}, found fractions; is it a probability?")
    numbers = values.astype(np.int64)
    if numbers.size and numbers.min() < 0:
        raise InputError(f"expected numbers from 0 on in the map in {where}, found {numbers.min()}")
    return numbers


def _kind(values: NDArray[Any]) -> str:
    return f"{' x '.join(map(str, values.shape)) or 'a single'} {values.dtype}"


def compact(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Ids of a map as 1..n, the ids that there were, and where each is met first in the flat map."""
    ids, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    background = int(len(ids) > 0 and ids[0] == 0)
    nuclei = (inverse.reshape(numbers.shape) + 1 - background).astype(np.int32)
    return nuclei, ids[background:], first[background:]


def from_maps(image: RGBImage, instances: NDArray[Any], types: NDArray[Any] | None, where: str) -> Labelled:
    """An image with a map of nuclei and, where there is one, a map of their types.

    Raises
    ------
    InputError
        When a map is none, or one number stands for many nuclei.
    """
    numbers = as_numbers(instances, where, image.shape[:2])
    nuclei, ids, first = compact(numbers)
    if len(ids) == 1 and _pieces(numbers) > 1:
        raise InputError(
            f"all nuclei have the number {ids[0]} in {where}; expected a map of instances, a number for each nucleus"
        )
    if types is None:
        return Labelled(image, nuclei, np.full(len(ids), UNTYPED, np.int64))
    kinds = as_numbers(types, f"{where} (types)", image.shape[:2])
    return Labelled(image, nuclei, majority(nuclei, kinds, len(ids), first))


def majority(
    nuclei: NDArray[np.int32], kinds: NDArray[np.int64], n: int, first: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Type that most pixels of each nucleus have; int64 (n,)."""
    result = kinds.reshape(-1)[first]
    inside = nuclei > 0
    mixed = np.zeros(n + 1, bool)
    mixed[nuclei[inside][result[nuclei[inside] - 1] != kinds[inside]]] = True
    for number in np.flatnonzero(mixed).tolist():  # maps of people are rarely quite clean
        values, counts = np.unique(kinds[nuclei == number], return_counts=True)
        result[number - 1] = values[counts.argmax()]
    return result


def _pieces(numbers: NDArray[np.int64]) -> int:
    from skimage.measure import label

    return int(label(numbers > 0, connectivity=2).max())


def from_table(
    image: RGBImage, instances: NDArray[Any], ids: NDArray[Any], types: NDArray[Any], where: str
) -> Labelled:
    """An image with a map of nuclei and a type for each id.

    Raises
    ------
    InputError
        When an id has no type.
    """
    nuclei, present, _ = compact(as_numbers(instances, where, image.shape[:2]))
    ids, types = np.asarray(ids).reshape(-1), np.asarray(types).reshape(-1)
    if len(ids) != len(types):
        raise InputError(f"expected a type for each id in {where}, found {len(ids)} ids and {len(types)} types")
    table = dict(zip(ids.astype(np.int64).tolist(), types.astype(np.int64).tolist(), strict=True))
    if lacking := [int(i) for i in present if int(i) not in table]:
        raise InputError(f"expected a type for each nucleus in {where}, found none for {len(lacking)}: {lacking[:5]}")
    return Labelled(image, nuclei, np.array([table[int(i)] for i in present], np.int64))
