"""Whether what tests a network was seen in its training: slides, patients, overlapping boxes, copied pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.evaluation.projects import Target, is_project_text
from stqp.patches.sources import slide_id
from stqp.patches.store import SIDES, PatchFile
from stqp.qupath.project import QuPathProject
from stqp.slides import is_slide, open_slide

PATIENT_KEYS = ("patient", "patient_id", "case", "case_id", "subject", "donor")
SLIDE, PATIENT, OVERLAP, COPY, ALIKE = (
    "the same slide",
    "the same patient",
    "overlapping boxes",
    "the same pixels",
    "nearly the same pixels",
)
"""Kinds of leaks; the first is no error where a split by blocks is wanted, the others are."""
_HASH = 16  # rows of a difference hash
_NEAR = 10  # bits of 256 that may differ
_FLAT = 4.0  # grey levels that vary less have no content to compare
_CHUNK = 2_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Part:
    """An image, or boxes of it, on one side.

    Attributes
    ----------
    name : str
        Of the image.
    slide : str
        Content id of its file; empty when unknown.
    patient : str
        Empty when unknown.
    boxes : float64 (n, 4)
        x0, y0, x1, y1 in full-resolution px.
    mpp : float
        µm per px.
    """

    name: str
    slide: str
    patient: str
    boxes: NDArray[np.float64]
    mpp: float


@dataclass
class Material:
    """All that is on one side.

    Attributes
    ----------
    name : str
        For messages.
    parts : list of Part
        By image.
    exact : dict
        Name of each picture by the digest of its pixels.
    alike : uint64 (n, 4)
        Difference hashes.
    names : list of str
        Of the pictures of `alike`.
    """

    name: str
    parts: list[Part]
    exact: dict[bytes, str] = field(default_factory=dict)
    alike: NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 4), np.uint64))
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Leak:
    """Something that is on both sides.

    Attributes
    ----------
    kind : str
        One of the kinds above.
    first, second : str
        What it is on either side.
    detail : str
        In words.
    """

    kind: str
    first: str
    second: str
    detail: str


def read_material(text: str, sides: Sequence[str] = SIDES, progress: Progress | None = None) -> Material:
    """Read what a training run, a file of patches, a project (or ``PROJECT::IMAGE``) or a folder of images holds.

    Parameters
    ----------
    text
        What a user wrote.
    sides
        Of a run or a file of patches: which sides of its split.
    progress
        Called with the pictures read and their number.

    Raises
    ------
    InputError
        When it is none of these.
    """
    path = Path(text.partition("::")[0])
    if is_project_text(text):
        return _of_project(text, progress)
    file = path / "patches.h5" if path.is_dir() and (path / "patches.h5").is_file() else path
    if file.suffix.lower() in (".h5", ".hdf5"):
        return _of_patches(PatchFile(file), text, sides, progress)
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.is_file() and is_slide(p))
        if images:
            return _of_images(text, [(p, p.stem, "") for p in images], progress)
    raise InputError(f"expected a training run, a file of patches, a project or a folder of images, found {text}")


def _of_patches(patches: PatchFile, text: str, sides: Sequence[str], progress: Progress | None) -> Material:
    names = [str(s["entry"]) for s in patches.sources]
    chosen = np.flatnonzero(np.isin(patches.side, [SIDES.index(s) for s in sides]))
    parts = []
    for index, source in enumerate(patches.sources):
        mine = chosen[patches.source[chosen] == index]
        if not len(mine):
            continue
        length = patches.size * patches.mpp / float(source["mpp"])
        origin = patches.origin[mine]
        boxes = np.c_[origin, origin + length]
        parts.append(
            Part(names[index], str(source.get("slide") or ""), _patient(source.get("metadata") or {}), boxes,
                 float(source["mpp"]))
        )  # fmt: skip
    result = Material(text, parts)
    _add_pictures(
        result,
        ((f"{names[patches.source[i]]}, patch {i}", patches.read(int(i))["images"]) for i in chosen),
        len(chosen),
        progress,
    )
    patches.close()
    return result


def _of_project(text: str, progress: Progress | None) -> Material:
    target = Target.parse(text)
    images = []
    with QuPathProject.open(target.project, "r") as project:
        entries = [project.entry(target.entry)] if target.entry else [*project.entries]
        for entry in entries:
            if entry.image_path is None or not entry.image_found:
                raise InputError(
                    f"the image {entry.name} of {target.project} is not at {entry.image_path}; stqp project relink "
                    "finds it"
                )
            images.append((entry.image_path, entry.name, _patient(entry.metadata)))
    return _of_images(text, images, progress)


def _of_images(text: str, images: Sequence[tuple[Path, str, str]], progress: Progress | None) -> Material:
    parts = []
    pictures = []
    for path, name, patient in images:
        with open_slide(path) as slide:
            box = np.array([[0, 0, slide.width, slide.height]], np.float64)
            parts.append(Part(name, slide_id(path), patient, box, slide.mpp or 0.25))
            pictures.append((name, slide.thumbnail(512, 512)))
    result = Material(text, parts)
    _add_pictures(result, pictures, len(pictures), progress)
    return result


def _patient(metadata: Mapping[str, Any]) -> str:
    lower = {str(k).lower(): str(v).strip() for k, v in metadata.items()}
    return next((lower[key] for key in PATIENT_KEYS if lower.get(key)), "")


def _add_pictures(
    material: Material, pictures: Iterable[tuple[str, NDArray[np.uint8]]], number: int, progress: Progress | None
) -> None:
    hashes = []
    for done, (name, pixels) in enumerate(pictures, start=1):
        if float(pixels.std()) >= _FLAT:
            material.exact[hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()] = name
            hashes.append(difference_hash(pixels))
            material.names.append(name)
        if progress:
            progress(done, number)
    if hashes:
        material.alike = np.stack(hashes)


def difference_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """256 bits that say where a picture gets brighter from left to right; a copy saved anew has nearly the same.

    Parameters
    ----------
    pixels : uint8 (height, width, 3)

    Returns
    -------
    uint64 (4,)
    """
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_HASH + 1, _HASH), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).view(np.uint64)


def find_leaks(first: Material, second: Material) -> list[Leak]:
    """What is on both sides, the worst kinds first."""
    leaks: list[Leak] = []
    for a in first.parts:
        for b in second.parts:
            same = bool(a.slide) and a.slide == b.slide
            if same:
                leaks.append(Leak(SLIDE, a.name, b.name, "by the content of the file"))
                if found := _overlap(a, b):
                    leaks.append(Leak(OVERLAP, a.name, b.name, found))
            if a.patient and a.patient == b.patient:
                leaks.append(Leak(PATIENT, a.name, b.name, f"patient {a.patient}"))
    for digest in sorted(first.exact.keys() & second.exact.keys()):
        leaks.append(Leak(COPY, first.exact[digest], second.exact[digest], "pixel by pixel"))
    copies = {(leak.first, leak.second) for leak in leaks if leak.kind == COPY}
    for i, j, bits in _near(first.alike, second.alike):
        if (first.names[i], second.names[j]) not in copies:
            leaks.append(Leak(ALIKE, first.names[i], second.names[j], f"{bits} of 256 bits differ"))
    order = (OVERLAP, COPY, ALIKE, PATIENT, SLIDE)
    return sorted(leaks, key=lambda leak: (order.index(leak.kind), leak.first, leak.second))


def _overlap(a: Part, b: Part) -> str:
    """Area that boxes share, in words; empty where they share none."""
    import shapely

    first, second = (shapely.union_all(shapely.box(*p.boxes.T)) for p in (a, b))
    shared = float(shapely.area(shapely.intersection(first, second))) * a.mpp**2
    return f"{shared / 1e6:.4g} mm² of the slide are on both sides" if shared > 0 else ""


def _near(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> list[tuple[int, int, int]]:
    """Pairs of hashes that differ in few bits, and in how many."""
    result = []
    for start in range(0, len(a), _CHUNK):
        for other in range(0, len(b), _CHUNK):
            left, right = a[start : start + _CHUNK], b[other : other + _CHUNK]
            bits = sum(np.bitwise_count(left[:, None, k] ^ right[None, :, k]).astype(np.int16) for k in range(4))
            i, j = np.nonzero(np.asarray(bits) <= _NEAR)
            values = np.asarray(bits)[i, j]
            result += [*zip((i + start).tolist(), (j + other).tolist(), values.tolist(), strict=True)]
    return result
