"""Measure alignments, of imported projects or before any import, and write a map and a report of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stqp.alignment import place, read_alignment
from stqp.alignment.placing import check_options
from stqp.alignment.quality import AlignmentQuality, measure
from stqp.alignment.refine import LIMIT_UM
from stqp.errors import InputError, UsageError
from stqp.importing.xenium import COMMAND as IMPORT
from stqp.polygons import Polygons
from stqp.qupath.ownership import SOURCE_KEY
from stqp.qupath.project import ProjectEntry, QuPathProject
from stqp.record import RunRecord
from stqp.report.alignment import write_alignment_report
from stqp.slides import Slide, open_slide
from stqp.sources.xenium import XeniumBundle

COMMAND = "qc-alignment"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Image:
    name: str
    path: Path
    mpp: float
    polygons: Polygons


def qc_project(
    project: str | Path,
    entry: Sequence[str] = (),
    out: str | Path | None = None,
    fields: int | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Measure how the imported nuclei of a project lie on its images.

    Parameters
    ----------
    project
        Folder of the QuPath project; it is only read.
    entry
        Names or ids of images; all with imported nuclei when empty.
    out
        Folder of the maps and reports; without, ``alignment`` in the project's folder ``stqp``.
    fields
        At most so many fields of a slide; all when None.
    progress
        Called with the images done and their number.

    Returns
    -------
    RunRecord
        ``results["images"]`` has the measures and files of each image.

    Raises
    ------
    InputError
        When an image is missing, or has no imported nuclei.
    UsageError
        When the project has no such image.
    """
    record = RunRecord(COMMAND, {"project": project, "entry": [*entry], "out": out, "fields": fields})
    with QuPathProject.open(project, "r") as opened:
        chosen = [e for e in opened.entries if not entry or e.name in entry or str(e.id) in entry]
        known = {text for e in opened.entries for text in (e.name, str(e.id))}
        for name in entry:
            if name not in known:
                names = ", ".join(e.name for e in opened.entries) or "none"
                raise UsageError(f"{opened.folder} has no image {name!r}; it has {names}")
        folder = Path(out) if out is not None else opened.folder / "stqp" / "alignment"
        taken: dict[str, int] = {}
        done = 0
        for number, one in enumerate(chosen):
            image = _imported(one)
            if image is None:
                if entry:
                    raise InputError(f"{one.name} has no nuclei of {IMPORT}; import it first")
                record.skip("images without imported nuclei", 1)
            else:
                with open_slide(image.path, image.mpp) as slide:
                    quality = measure(slide, image.polygons, image.mpp, fields)
                    _write(record, folder, image, slide, quality, taken)
                done += 1
            if progress is not None:
                progress(number + 1, len(chosen))
        if not done:
            raise InputError(f"no image of {opened.folder} has nuclei of {IMPORT}; import one first")
    record.results["out"] = str(folder)
    return record


def _imported(entry: ProjectEntry) -> _Image | None:
    """Image of an entry and the nuclei that imports wrote on it; None where there are none."""
    objects = entry.read_objects()
    column = objects.metadata.get(SOURCE_KEY)
    if column is None:
        return None
    mine = np.array([str(s or "").startswith(f"{IMPORT}:") for s in column.tolist()], bool)
    if not mine.any():
        return None
    chosen = objects.take(mine)
    nuclei = chosen.nuclei
    # a cell's outline is not what the stain shows
    polygons = chosen.polygons if nuclei is None or not len(nuclei.coords) else nuclei
    path = entry.image_path
    if path is None or not path.is_file():
        raise InputError(f"the image of {entry.name} is not where the project has it ({entry.image_uri})")
    if entry.mpp is None:
        raise InputError(f"the project does not know the µm per pixel of {entry.name}; import it again")
    return _Image(entry.name, path, entry.mpp, polygons)


def qc_bundle(
    outs: str | Path,
    he: str | Path,
    alignment: str | Path,
    out: str | Path,
    alignment_direction: str = "he-to-morphology",
    keypoint_fit: str = "affine",
    refine: str = "off",
    refine_limit: float = LIMIT_UM,
    mpp: float | None = None,
    fields: int | None = None,
) -> RunRecord:
    """Measure an alignment before any import; nothing but the map and the report is written.

    Parameters
    ----------
    outs, he, alignment, alignment_direction, keypoint_fit, refine, refine_limit, mpp
        As for `stqp.importing.xenium.import_xenium`.
    out
        Folder of the map and the report.
    fields
        At most so many fields of the slide; all when None.

    Returns
    -------
    RunRecord
        As from `qc_project`, of one image; with a refinement, of the refined nuclei.

    Raises
    ------
    InputError
        When a file is missing, broken, or does not belong to the others.
    UsageError
        When an option makes no sense.
    """
    record = RunRecord(COMMAND, dict(locals()))
    check_options(alignment_direction, refine, refine_limit)
    bundle = XeniumBundle.open(outs)
    aligned = read_alignment(alignment, keypoint_fit)
    nuclei = bundle.read_nuclei(bundle.read_cells().ids).polygons
    with open_slide(he, mpp) as slide:
        placed = place(
            aligned,
            bundle.pixel_size,
            slide,
            nuclei,
            record,
            alignment_direction,
            refine_by=refine,
            refine_limit=refine_limit,
            max_fields=fields,
        )
        assert placed.quality is not None
        image = _Image(Path(he).name, Path(he), placed.mpp, placed.polygons(nuclei))
        record.counts.pop("alignment", None)  # it comes with the image's name
        record.results.pop("alignment", None)
        warned = [*record.warnings]
        _write(record, Path(out), image, slide, placed.quality, {})
        if any(w.startswith("alignment") for w in warned):
            record.warnings[:] = warned
    record.results["out"] = str(out)
    return record


def _write(
    record: RunRecord, folder: Path, image: _Image, slide: Slide, quality: AlignmentQuality, taken: dict[str, int]
) -> None:
    stem = re.sub(r"[^\w.-]+", "_", image.name).strip("._") or "image"
    taken[stem] = taken.get(stem, 0) + 1
    if taken[stem] > 1:
        stem = f"{stem}-{taken[stem]}"
    folder.mkdir(parents=True, exist_ok=True)
    written = write_alignment_report(folder, stem, slide, image.polygons, quality, image.mpp, image.name)
    record.add_input(image.path)
    record.count(image.name, quality.text())
    if quality.is_bad:
        record.warn(f"{image.name}: {quality.text()}")
    entry = {"name": image.name, **quality.to_dict(), **{k: str(v) for k, v in written.items()}}
    record.results.setdefault("images", []).append(entry)
