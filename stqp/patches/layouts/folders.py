"""Folders of images with maps beside them: CoNSeP, Kumar, the official HoVer-Net's arrays, and what people make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.patches.layouts.labelled import Item, Labelled, as_image, from_maps, from_table
from stqp.slides import RGBImage, open_slide

_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_MAPS = (".mat", ".npz", ".npy", ".tif", ".tiff", ".png")
_FOLDERS = ("labels", "masks", "maps", "annotations", "ann", "anns", "inst", "instances")
_IMAGE_FOLDERS = ("images", "imgs", "image", "img")
_ENDINGS = ("", "_inst", "_instances", "_mask", "_masks", "_label", "_labels", "_map")
INSTANCE_KEYS = ("inst_map", "inst", "instances", "instance_map", "labels")
TYPE_MAP_KEYS = ("type_map", "class_map")
TYPE_KEYS = ("inst_type", "types", "classes")
ID_KEYS = ("ids", "inst_uid", "id")


@dataclass(frozen=True)
class _Pair:
    """Reads an image and the map beside it."""

    image: Path
    labels: Path

    def __call__(self) -> Labelled:
        image = read_image(self.image)
        return _with_labels(image, read_arrays(self.labels), str(self.labels))


@dataclass(frozen=True)
class _Stack:
    """Reads an array of HoVer-Net's official training: red, green, blue, nucleus and, if there is one, type."""

    path: Path

    def __call__(self) -> Labelled:
        array = read_arrays(self.path)[""]
        if array.ndim != 3 or array.shape[2] not in (4, 5):
            raise InputError(
                f"expected an array of height x width x 5 (red, green, blue, nucleus, type) in {self.path}, found "
                f"{' x '.join(map(str, array.shape))}"
            )
        image = as_image(array[..., :3], str(self.path))
        return from_maps(image, array[..., 3], array[..., 4] if array.shape[2] == 5 else None, str(self.path))


def find_pairs(folder: Path) -> list[Item]:
    """Images with a map of the same name beside them, or in a folder such as ``Labels`` beside theirs.

    Raises
    ------
    InputError
        When there is none, or an image has no map.
    """
    images = [p for p in _files(folder) if p.suffix.lower() in _IMAGES and not _is_map(p)]
    if not images:
        raise InputError(f"there are no images in {folder}; expected {', '.join(_IMAGES)} with maps beside them")
    pairs = [(image, _map_of(image)) for image in images]
    found = [(image, labels) for image, labels in pairs if labels is not None]
    if not found:
        raise InputError(
            f"no image in {folder} has a map of its nuclei; expected e.g. {images[0].stem}.npz, .npy, .mat or .tif "
            f"beside {images[0].name}, or in a folder Labels"
        )
    if len(found) < len(pairs):
        lost = [image.name for image, labels in pairs if labels is None]
        raise InputError(
            f"{len(lost)} of {len(pairs)} images in {folder} have no map of their nuclei, the first is {lost[0]}"
        )
    return [
        Item(name, image, _Pair(image, labels), _about(image, folder), _mpp(image))
        for name, (image, labels) in zip(_names([i for i, _ in found], folder), found, strict=True)
    ]


def find_stacks(folder: Path) -> list[Item]:
    """Arrays of the official HoVer-Net.

    Raises
    ------
    InputError
        When there are none.
    """
    found = [p for p in _files(folder) if p.suffix.lower() == ".npy"]
    if not found:
        raise InputError(f"there are no arrays (.npy) in {folder}")
    return [
        Item(name, path, _Stack(path), _about(path, folder))
        for name, path in zip(_names(found, folder), found, strict=True)
    ]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder" if folder.exists() else f"the folder {folder} does not exist")
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def _is_map(path: Path) -> bool:
    if path.parent.name.lower() in _FOLDERS or path.parent.name.lower() in ("overlay", "valid"):
        return True
    return any(e and path.stem.lower().endswith(e) for e in _ENDINGS)


def _map_of(image: Path) -> Path | None:
    places = [image.parent]
    if image.parent.name.lower() in _IMAGE_FOLDERS:
        places += [p for p in sorted(image.parent.parent.iterdir()) if p.is_dir() and p.name.lower() in _FOLDERS]
    places += [p for p in sorted(image.parent.iterdir()) if p.is_dir() and p.name.lower() in _FOLDERS]
    for place in places:
        for ending in _ENDINGS:
            for suffix in _MAPS:
                path = place / f"{image.stem}{ending}{suffix}"
                if path != image and path.is_file():
                    return path
    return None


def _names(paths: list[Path], folder: Path) -> list[str]:
    """Names of images: their files', with the folders where that is not unique."""
    stems = [p.stem for p in paths]
    if len(set(stems)) == len(stems):
        return stems
    full = ["/".join(p.relative_to(folder).with_suffix("").parts) for p in paths]
    if len(set(full)) < len(full):
        twice = next(n for n in full if full.count(n) > 1)
        raise InputError(f"there are several images {twice} in {folder}, of different endings; keep one")
    return full


def _about(path: Path, folder: Path) -> dict[str, str]:
    """Folder of an image within its set, as ``part``: Train and Test, or a fold."""
    parts = [p for p in path.relative_to(folder).parts[:-1] if p.lower() not in _IMAGE_FOLDERS]
    return {"part": "/".join(parts)} if parts else {}


def _mpp(image: Path) -> float | None:
    if image.suffix.lower() not in (".tif", ".tiff"):
        return None
    with open_slide(image) as slide:
        return slide.mpp


def read_image(path: Path) -> RGBImage:
    """Pixels of a whole image file."""
    with open_slide(path) as slide:
        return slide.read_level(0, 0, 0, slide.width, slide.height)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a file by name; one without names has an empty one.

    Raises
    ------
    InputError
        When it cannot be read, or holds Python objects, which could be any program.
    """
    try:
        return dict(_arrays(path))
    except InputError:
        raise
    except Exception as error:  # the readers raise dozens of kinds
        if "pickle" in str(error):
            raise InputError(
                f"{path} holds Python objects, which stqp does not load, as they can be any program; save its arrays "
                "with numpy.savez"
            ) from error
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}); is it whole?") from error


def _arrays(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    kind = path.suffix.lower()
    if kind == ".npz":
        with np.load(path, allow_pickle=False) as content:
            yield from ((name, content[name]) for name in content.files)
    elif kind == ".npy":
        yield "", np.load(path, allow_pickle=False)
    elif kind == ".mat":
        yield from _matlab(path)
    elif kind in (".tif", ".tiff"):
        import tifffile

        yield "", tifffile.imread(path)
    else:
        from PIL import Image

        with Image.open(path) as image:
            yield "", np.asarray(image)


def _matlab(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except NotImplementedError:  # version 7.3 is HDF5, with the axes turned round
        import h5py

        with h5py.File(path, "r") as file:
            content = {name: np.asarray(data).T for name, data in file.items() if isinstance(data, h5py.Dataset)}
    yield from ((name, value) for name, value in content.items() if not name.startswith("__"))


def _with_labels(image: RGBImage, arrays: dict[str, NDArray[Any]], where: str) -> Labelled:
    """Find the maps among the arrays of a file."""
    instances = _first(arrays, ("", *INSTANCE_KEYS))
    if instances is None:
        raise InputError(
            f"expected a map of nuclei under one of {', '.join(INSTANCE_KEYS)} in {where}, found {', '.join(arrays)}"
        )
    if instances.ndim == 3 and instances.shape[2] == 2:  # as HoVer-Net's datasets stack them
        return from_maps(image, instances[..., 0], instances[..., 1], where)
    types = _first(arrays, TYPE_MAP_KEYS)
    if types is not None:
        return from_maps(image, instances, types, where)
    types, ids = _first(arrays, TYPE_KEYS), _first(arrays, ID_KEYS)
    if types is None:
        return from_maps(image, instances, None, where)
    if types.ndim == 2 and types.shape == image.shape[:2]:
        return from_maps(image, instances, types, where)
    if ids is None:
        present = np.unique(instances)
        ids = present[present > 0]
        if types.size == ids.max(initial=0):
            ids = np.arange(1, types.size + 1)  # one for each number, also where its nucleus has gone
    return from_table(image, instances, ids, types, where)


def _first(arrays: dict[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[Any] | None:
    return next((arrays[name] for name in names if name in arrays), None)
