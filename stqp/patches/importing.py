"""Patches from sets of labelled images of other programs, so that a manual set trains by the same code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stqp.errors import InputError, UsageError
from stqp.patches.canvas import MapCanvas
from stqp.patches.cut import Cut, Progress, cut_sources, unchanged
from stqp.patches.layouts import folders, pannuke
from stqp.patches.layouts.labelled import UNTYPED, Item, Labelled
from stqp.patches.options import CutOptions, matches
from stqp.patches.quality import USED
from stqp.patches.sources import Source, slide_id
from stqp.patches.store import FORMAT, FULL
from stqp.record import RunRecord
from stqp.slides import RGBImage
from stqp.taxonomy import UNKNOWN

Finder = Callable[[Path], list[Item]]
LAYOUTS: dict[str, Finder] = {
    "pannuke": pannuke.find_folds,
    "consep": folders.find_pairs,
    "kumar": folders.find_pairs,
    "hovernet": folders.find_stacks,
    "image+map": folders.find_pairs,
}
"""What finds the images of a set; the layouts differ otherwise in their classes alone."""
UNTYPED_NAME = "Nucleus"
"""Class of the nuclei of a set without types: a network needs one."""
_MPP = {"pannuke": 0.25, "consep": 0.25, "kumar": 0.25, "hovernet": 0.25}  # as published, at 40x
# CoNSeP's seven types as published; its authors merge 3 and 4, and 5 to 7, and number the four so
_CONSEP = {1: "Other", 2: "Inflammatory", 3: "Epithelial", 4: "Epithelial"} | dict.fromkeys((5, 6, 7), "Connective")
_CONSEP_MERGED = {1: "Other", 2: "Inflammatory", 3: "Epithelial", 4: "Connective"}


@dataclass(frozen=True)
class _Load:
    """Loads an image for `MapCanvas`."""

    load: Callable[[], Labelled]

    def __call__(self) -> tuple[RGBImage, NDArray[np.int32]]:
        found = self.load()
        return found.image, found.nuclei


def import_patches(
    source: Path,
    layout: str,
    out: Path,
    record: RunRecord,
    options: CutOptions | None = None,
    *,
    image_mpp: float | None = None,
    type_names: Mapping[int, str] | None = None,
    untyped_as: str = UNTYPED_NAME,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Cut:
    """Cut patches from a set of labelled images, as `stqp.patches.cut.cut_patches` does from projects.

    Images have the metadata ``name``, and where they lie in the set: ``fold`` and ``tissue`` (PanNuke) or ``part``
    (the folder within the set), by which they can be split and held out.

    Parameters
    ----------
    source
        Folder of the set.
    layout
        One of `LAYOUTS`.
    out, record, options, workers, progress
        As for `cut_patches`; what concerns objects of QuPath has no effect.
    image_mpp
        µm per px of the images; else what their files say, or what the set is known for.
    type_names
        Class of each number of a type; `UNKNOWN` for none. By default those of the layout.
    untyped_as
        Class of nuclei without a type.

    Raises
    ------
    InputError
        When the set is not of that layout, a map is none, a number has no class, or µm per px are not known.
    """
    options = options or CutOptions(split="slide")
    if out.is_dir():
        raise UsageError(f"{out} is a folder; the patches need the name of a file, such as {out / 'patches.h5'}")
    if layout not in LAYOUTS:
        raise UsageError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    items = LAYOUTS[layout](source)
    about = {item.name: {**item.about, "name": item.name, "project": source.name} for item in items}
    if missing := set(options.entries) - set(about):
        raise InputError(f"{source} has no image {', '.join(sorted(missing)[:5])}")
    items = [
        i for i in items if (not options.entries or i.name in options.entries) and matches(options.where, about[i.name])
    ]
    if not items:
        raise InputError(f"no image of {source} has {' and '.join(options.where)}")
    given = {"image_mpp": image_mpp, "types": {str(k): v for k, v in (type_names or {}).items()}, "as": untyped_as}
    digest = _fingerprint(source, layout, items, options, given)
    if present := unchanged(out, digest, record):
        return present
    found = [_scan(item) for item in items]
    names = dict(type_names) if type_names else _names(layout, source, {int(t) for f in found for t in np.unique(f[0])})
    sources = [
        _source(item, about[item.name], f, names, untyped_as, image_mpp or item.mpp or _MPP.get(layout), source)
        for item, f in zip(items, found, strict=True)
    ]
    if not any(len(s.classes) for s in sources):
        raise InputError(f"there are no nuclei in {source}")
    record.count("images", len(sources))
    if empty := sum(not len(s.classes) for s in sources):
        record.count("of these, images without nuclei", empty)
    untyped = all((kinds == UNTYPED).all() for kinds, *_ in found)
    if untyped and untyped_as != UNKNOWN:
        record.warn(f"the set has no types; all of its nuclei are of the class {untyped_as}")
    values, counts = np.unique(np.concatenate([s.classes for s in sources]).astype(str), return_counts=True)
    labels = {name: {USED: number} for name, number in zip(values.tolist(), counts.tolist(), strict=True)}
    return cut_sources(
        sources, out, record, options, digest, labels, untyped=untyped, workers=workers, progress=progress
    )  # fmt: skip


def _scan(item: Item) -> tuple[NDArray[np.int64], NDArray[np.float64], tuple[int, int]]:
    """Types and centres of the nuclei of an image, and its height and width."""
    found = item.load()
    n = len(found.types)
    centres = np.array(ndimage.center_of_mass(found.nuclei > 0, found.nuclei, np.arange(1, n + 1))).reshape(n, 2)
    return found.types, centres[:, ::-1] + 0.5, found.nuclei.shape


def _names(layout: str, source: Path, numbers: set[int]) -> dict[int, str]:
    """Class of each number, where the layout tells it."""
    numbers -= {UNTYPED}
    if layout == "pannuke":
        return pannuke.class_names(source)
    known = source / pannuke.CLASSES_FILE
    if known.is_file():
        try:
            names = json.loads(known.read_text(encoding="utf-8"))
            return {i + 1: str(name) for i, name in enumerate(names)}
        except (ValueError, TypeError) as error:
            raise InputError(f"{known} is no list of class names ({error})") from error
    if layout == "consep":
        return _CONSEP if max(numbers, default=0) > 4 else _CONSEP_MERGED
    return {}


def _source(
    item: Item,
    about: dict[str, str],
    found: tuple[NDArray[np.int64], NDArray[np.float64], tuple[int, int]],
    names: Mapping[int, str],
    untyped_as: str,
    mpp: float | None,
    folder: Path,
) -> Source:
    types, centres, (height, width) = found
    if mpp is None:
        raise InputError(f"{item.path} does not say its µm per pixel; give it with --image-mpp")
    # 0 is background in a map of types: a nucleus there has none
    table = {UNTYPED: untyped_as, 0: UNKNOWN, **names}
    if lacking := sorted({int(t) for t in np.unique(types)} - set(table)):
        known = ", ".join(f"{k}={v}" for k, v in sorted(names.items())) or "none is"
        raise InputError(
            f"the type {', '.join(map(str, lacking[:5]))} of nuclei in {item.name} has no class (known: {known}); "
            "name it by --type, such as --type 1=Inflammatory"
        )
    classes = np.array([table[t] for t in types.tolist()], object)
    return Source(
        item.name,
        f"{slide_id(item.path)}/{item.name}",
        about,
        mpp,
        width,
        height,
        MapCanvas(_Load(item.load), item.path, len(types)),
        classes,
        np.full(len(types), FULL, np.uint8),
        centres,
        np.ones(len(types), bool),
        {"project": str(folder.resolve()), "image": str(item.path)},
        complete=True,
    )


def _fingerprint(
    folder: Path, layout: str, items: Sequence[Item], options: CutOptions, given: Mapping[str, object]
) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([FORMAT, layout, options.to_dict(), given], sort_keys=True).encode())
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{slide_id(path)}\0".encode())
    digest.update("\0".join(item.name for item in items).encode())
    if options.split_file is not None and options.split_file.is_file():
        digest.update(options.split_file.read_bytes())
    return digest.hexdigest()
