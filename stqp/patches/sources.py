"""The images that patches are cut from: of QuPath projects, with what is known of their nuclei."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.alignment import measure
from stqp.errors import InputError
from stqp.patches.canvas import Canvas, SlideCanvas
from stqp.patches.nuclei import read_nuclei
from stqp.patches.options import CutOptions, matches
from stqp.patches.quality import Judged, judge
from stqp.patches.store import FORMAT, UNKNOWN_TYPE
from stqp.polygons import Polygons
from stqp.qupath.project import ProjectEntry, QuPathProject
from stqp.record import RunRecord
from stqp.slides import open_slide
from stqp.taxonomy import ordered

_CHUNK = 256 * 1024
_VERSION = 2  # of what is cut from the same input; raised when that changes


@dataclass
class Source:
    """One image with its nuclei.

    Attributes
    ----------
    entry : str
        Its name.
    slide : str
        The same for the same image, wherever its file lies.
    about : dict
        Its metadata, with its ``name`` and ``project``.
    mpp : float
        µm per full-resolution px.
    width, height : int
        Full-resolution px.
    canvas : Canvas
    classes : object (n,)
        Of its nuclei.
    weight : uint8 (n,)
    centres : float64 (n, 2)
        Full-resolution px.
    counted : bool (n,)
        Nuclei whose centre is in the area that is used: of the ST run, and within what a person drew.
    place : dict
        Where it comes from, for the manifest.
    complete : bool
        Whether a part of it without nuclei is known to have none, and not just one that nobody labelled.
    """

    entry: str
    slide: str
    about: dict[str, str]
    mpp: float
    width: int
    height: int
    canvas: Canvas
    classes: NDArray[np.object_]
    weight: NDArray[np.uint8]
    centres: NDArray[np.float64]
    counted: NDArray[np.bool_]
    place: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    def describe(self) -> dict[str, Any]:
        """For the manifest and the file of patches."""
        return {
            "entry": self.entry,
            **self.place,
            "slide": self.slide,
            "mpp": self.mpp,
            "metadata": {k: v for k, v in self.about.items() if k not in ("name", "project")},
        }


def slide_id(path: Path) -> str:
    """Identify an image by its size and parts of its content, so that a copy elsewhere is the same."""
    digest = hashlib.blake2b(digest_size=12)
    with path.open("rb") as file:
        size = path.stat().st_size
        digest.update(str(size).encode())
        for start in (0, size // 2, max(0, size - _CHUNK)):
            file.seek(start)
            digest.update(file.read(_CHUNK))
    return digest.hexdigest()


def chosen_entries(projects: Sequence[QuPathProject], options: CutOptions) -> list[tuple[QuPathProject, ProjectEntry]]:
    """Images that the options ask for.

    Raises
    ------
    InputError
        When one that is named is in no project, or none is what was asked for.
    """
    every = [(project, entry) for project in projects for entry in project.entries]
    met = {entry.name for _, entry in every}
    if missing := set(options.entries) - met:
        raise InputError(f"no project has the image {', '.join(sorted(missing))}; there are {', '.join(sorted(met))}")
    named = [(p, e) for p, e in every if not options.entries or e.name in options.entries]
    result = [(p, e) for p, e in named if matches(options.where, about(p, e))]
    if named and not result:
        keys = sorted({key for p, e in named for key in about(p, e)})
        raise InputError(f"no image has {' and '.join(options.where)}; their metadata are {', '.join(keys)}")
    return result


def about(project: QuPathProject, entry: ProjectEntry) -> dict[str, str]:
    """Metadata of an image, its name and its project's."""
    return {**entry.metadata, "name": entry.name, "project": project.folder.name}


def fingerprint(chosen: Sequence[tuple[QuPathProject, ProjectEntry]], options: CutOptions) -> str:
    """Digest of all that decides what is cut: objects, metadata and images, by content, and options."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\0")

    add([FORMAT, _VERSION, options.to_dict()])
    if options.split_file is not None and options.split_file.is_file():
        digest.update(options.split_file.read_bytes())
    for project, entry in chosen:
        image = entry.image_path
        found = slide_id(image) if image is not None and image.is_file() else None
        add([entry.name, entry.id, about(project, entry), entry.mpp, entry.size, found])
        for path in (entry.folder / "data.qpdata", entry.stqp_folder / "sample.json"):
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "blake2b").digest())
            digest.update(b"\0")
    return digest.hexdigest()


def read_sources(
    chosen: Sequence[tuple[QuPathProject, ProjectEntry]], options: CutOptions, record: RunRecord
) -> tuple[list[Source], dict[str, dict[str, int]]]:
    """Read the nuclei of images; and count them by class and by what became of them.

    Raises
    ------
    InputError
        When there are none, an image is missing or has no µm/px, or a limit asks for what was not measured.
    """
    sources: list[Source] = []
    counts: dict[str, dict[str, int]] = {}
    measured: set[str] = set()
    for project, entry in chosen:
        found = _read_source(project, entry, options, record)
        if found is None:
            record.skip("images without nuclei", 1)
            continue
        source, judged = found
        sources.append(source)
        measured |= judged.measured
        for name, reasons in judged.counts.items():
            for reason, number in reasons.items():
                counts.setdefault(name, {})[reason] = counts.get(name, {}).get(reason, 0) + number
    if not sources:
        names = ", ".join(sorted({str(project.folder) for project, _ in chosen}))
        raise InputError(f"there are no nuclei in {names or 'the projects'}; run stqp import-xenium first")
    _check_measured(options, measured)
    record.count("images", len(sources))
    return sources, counts


def _check_measured(options: CutOptions, measured: set[str]) -> None:
    asked = {
        "confidence": (options.min_confidence is not None, "have a Label confidence; run stqp label first"),
        "stain": (options.min_stain is not None, "could be held against the stain of their slide"),
        "alignment": (options.max_misalignment is not None, "could be held against the stain of their slide"),
    }
    for name, (limited, words) in asked.items():
        if (limited or name in options.weights) and name not in measured:
            raise InputError(f"no nuclei {words}, so they cannot be filtered or weighted by {name}")


def _read_source(
    project: QuPathProject, entry: ProjectEntry, options: CutOptions, record: RunRecord
) -> tuple[Source, Judged] | None:
    objects = entry.read_objects()
    if not len(objects):  # its image need not be at hand
        return None
    image = entry.image_path
    if image is None or not image.is_file():
        where = "is at no path of this machine" if image is None else f"is not at {image}"
        raise InputError(
            f"the image {entry.name} of {project.folder} {where}; set it right in QuPath, or by stqp project relink"
        )
    with open_slide(image, entry.mpp) as slide:
        if slide.mpp is None:
            raise InputError(
                f"the image {entry.name} of {project.folder} has no µm per pixel; set its pixel size in QuPath"
            )
        mpp, width, height = slide.mpp, slide.width, slide.height
        nuclei = read_nuclei(entry, objects, mpp, options.objects, options.predictions)
        for reason, number in nuclei.skipped.items():
            record.skip(reason, number)
        if not len(nuclei.polygons):
            return None
        judged = judge(
            nuclei, objects, options, options.classes, mpp, lambda polygons: measure(slide, polygons, mpp, None)
        )
    if mpp > 1.5 * options.mpp:
        record.warn(
            f"the image {entry.name} has {mpp:g} µm per pixel; its patches at {options.mpp:g} are enlarged "
            "and show no more than it does"
        )
    record.add_input(image)
    centres = judged.polygons.centroid()
    source = Source(
        entry.name,
        slide_id(image),
        about(project, entry),
        mpp,
        width,
        height,
        SlideCanvas(image, mpp, judged.polygons, nuclei.coverage, judged.masked),
        judged.classes,
        judged.weight,
        centres,
        _within(centres, nuclei.coverage),
        {"project": str(project.folder.resolve()), "entry_id": entry.id, "image": str(image)},
    )
    return source, judged


def _within(points: NDArray[np.float64], area: Polygons | None) -> NDArray[np.bool_]:
    """Whether each point is in an area; without one, all are."""
    import shapely

    if area is None:
        return np.ones(len(points), bool)
    whole = shapely.union_all(shapely.make_valid(area.to_shapely()))
    shapely.prepare(whole)
    return np.asarray(shapely.contains_xy(whole, points[:, 0], points[:, 1]), bool)


def class_names(
    sources: Sequence[Source],
    options: CutOptions,
    record: RunRecord,
    labelled: Iterable[str],
    untyped: bool = False,
) -> list[str]:
    """Names of the classes that are learnt, in the order of their numbers.

    Parameters
    ----------
    sources, options, record
        As for `stqp.patches.cut.cut_sources`.
    labelled
        Classes that nuclei have, whether they are learnt or not.
    untyped
        Whether it is known that the nuclei have no types.

    Raises
    ------
    InputError
        When no nucleus has a class, or none has one of those asked for.
    """
    present = set(ordered({str(c) for s in sources for c in np.unique(s.classes.astype(str))}))
    names = [*options.classes] or ordered(present)
    if not names and any(ordered(labelled)):
        raise InputError(
            f"no nucleus of the class {', '.join(ordered(labelled))} is left; the limits of confidence, stain or "
            "alignment leave all of them out"
        )
    if not names:
        raise InputError(
            "all nuclei are Unknown, so no class can be learnt; run stqp label, import with --labels, or set "
            "classes in QuPath"
        )
    if not present.intersection(names) and not untyped:
        there = ", ".join(ordered(labelled)) or "Unknown alone"
        raise InputError(f"no nucleus is of the class {', '.join(names)}; there are {there}")
    if absent := [n for n in names if n not in present]:
        record.warn(f"no nucleus is of the class {', '.join(absent)}, which the network will not learn")
    if len(names) == 1:
        record.warn(f"{names[0]} is the only class: the network will learn where nuclei are, and nothing of their kind")
    return names


def type_numbers(classes: NDArray[np.object_], names: Sequence[str]) -> NDArray[np.uint8]:
    """Number of each nucleus's class; `UNKNOWN_TYPE` for others; uint8 (n,)."""
    numbers = {name: i + 1 for i, name in enumerate(names)}
    kinds, inverse = np.unique(classes.astype(str), return_inverse=True)
    table = np.array([numbers.get(c, UNKNOWN_TYPE) for c in kinds.tolist()], np.uint8)
    return table[inverse] if len(classes) else np.empty(0, np.uint8)
