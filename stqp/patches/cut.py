"""Cut training patches from QuPath projects."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import InputError
from stqp.patches.blocks import Block, boxes_by_source, grid, hold_out
from stqp.patches.nuclei import Nuclei, read_nuclei
from stqp.patches.options import CutOptions
from stqp.patches.store import TRAINING, UNKNOWN_TYPE, VALIDATION, PatchWriter
from stqp.qupath.project import ProjectEntry, QuPathProject
from stqp.record import RunRecord
from stqp.slides import open_slide
from stqp.taxonomy import UNKNOWN, ordered

Progress = Callable[[int, int], None]


@dataclass
class _Source:
    """One image with its nuclei."""

    project: Path
    entry: str
    entry_id: int
    image: Path
    mpp: float
    width: int
    height: int
    nuclei: Nuclei

    def describe(self) -> dict[str, Any]:
        return {
            "project": str(self.project.resolve()),
            "entry": self.entry,
            "entry_id": self.entry_id,
            "image": str(self.image),
            "mpp": self.mpp,
        }


@dataclass
class Cut:
    """What was cut.

    Attributes
    ----------
    classes : list of str
        Class ``i`` has the number ``i + 1``.
    split : dict
        ``training``, ``validation`` and ``test``: for each image its boxes in full-resolution px.
    sources : list of dict
        The images.
    """

    classes: list[str]
    split: dict[str, list[dict[str, Any]]]
    sources: list[dict[str, Any]]


def cut_patches(
    projects: Sequence[Path],
    out: Path,
    record: RunRecord,
    options: CutOptions | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Cut:
    """Cut patches with their instance and type maps into an HDF5 file, and split them by spatial block.

    Parameters
    ----------
    projects
        QuPath projects.
    out
        The file to write (`stqp.patches.store` tells its layout).
    record
        Counts and what was skipped go here.
    options
        Which data, labels, pixels and split.
    workers
        Processes that cut; by the machine and the work when None.
    progress
        Called with (blocks done, blocks in all).

    Raises
    ------
    InputError
        When there are no nuclei, no classes, an image is missing or has no µm/px.
    """
    options = options or CutOptions()
    entries, classes, objects = options.entries, options.classes, options.objects
    size, mpp, block, validation, seed = options.size, options.mpp, options.block, options.validation, options.seed
    sources = _read_sources(projects, entries, objects, record)
    names = [*classes] or ordered({str(c) for s in sources for c in np.unique(s.nuclei.classes.astype(str))})
    if not names:
        raise InputError(
            "all nuclei are Unknown, so no class can be learnt; import with --labels, or set classes in QuPath"
        )
    types = [_type_numbers(s.nuclei.classes, names, record) for s in sources]
    blocks, counts, block_um = _blocks(sources, types, len(names), block, validation, mpp)
    held = hold_out(counts, validation, seed)
    blocked = [(b.box[2] - b.box[0]) * sources[b.source].mpp / mpp for b in blocks]
    blocked += [(b.box[3] - b.box[1]) * sources[b.source].mpp / mpp for b in blocks]
    size = min(size, 16 * max(1, math.floor(min(blocked) / 16)))
    order = np.argsort([b.source for b in blocks], kind="stable")
    number = [0, 0]
    with files.replacing(out) as temporary, PatchWriter(temporary, size, mpp, names) as writer:
        for done, index in enumerate(order, start=1):
            block_here, side = blocks[index], int(held[index])
            here = block_here.source
            number[side] += _cut_block(writer, sources[here], types[here], block_here, size, mpp, side == VALIDATION)
            if progress:
                progress(done, len(blocks))
        writer.finish([s.describe() for s in sources])
    for name, value in (("patches for training", number[0]), ("patches for validation", number[1])):
        record.count(name, value)
    record.count("spatial blocks", f"{len(blocks)} of {block_um:.0f} µm, {int(held.sum())} held out")
    for number_of_class, name in enumerate(names):
        here = counts[:, number_of_class]
        record.count(f"nuclei {name}", f"{int(here[~held].sum())} for training, {int(here[held].sum())} for validation")
    split = {
        side: [
            {**sources[i].describe(), "boxes": boxes}
            for i, boxes in boxes_by_source(blocks, held if side == "validation" else ~held).items()
        ]
        for side in ("training", "validation")
    }
    split["test"] = []
    return Cut(names, split, [s.describe() for s in sources])


def _read_sources(projects: Sequence[Path], entries: Sequence[str], objects: str, record: RunRecord) -> list[_Source]:
    sources: list[_Source] = []
    met: set[str] = set()
    for path in projects:
        with QuPathProject.open(path, "r") as project:
            for entry in project.entries:
                met.add(entry.name)
                if entries and entry.name not in entries:
                    continue
                source = _read_source(path, entry, objects, record)
                if source is None:
                    record.skip("images without nuclei", 1)
                else:
                    sources.append(source)
    if missing := set(entries) - met:
        raise InputError(f"no project has the image {', '.join(sorted(missing))}; there are {', '.join(sorted(met))}")
    if not sources:
        raise InputError(f"there are no nuclei in {', '.join(map(str, projects))}; run stqp import-xenium first")
    record.count("images", len(sources))
    record.count("nuclei", sum(len(s.nuclei.polygons) for s in sources))
    return sources


def _read_source(path: Path, entry: ProjectEntry, kind: str, record: RunRecord) -> _Source | None:
    objects = entry.read_objects()
    if not len(objects):  # its image need not be at hand
        return None
    image = entry.image_path
    if image is None:
        raise InputError(f"the image {entry.name} of {path} is at no path of this machine; set it right in QuPath")
    with open_slide(image, entry.mpp) as slide:
        mpp, width, height = slide.mpp, slide.width, slide.height
    if mpp is None:
        raise InputError(f"the image {entry.name} of {path} has no µm per pixel; set its pixel size in QuPath")
    nuclei = read_nuclei(entry, objects, mpp, kind)
    for reason, number in nuclei.skipped.items():
        record.skip(reason, number)
    if not len(nuclei.polygons):
        return None
    record.add_input(image)
    return _Source(path, entry.name, entry.id, image, mpp, width, height, nuclei)


def _type_numbers(classes: NDArray[np.object_], names: Sequence[str], record: RunRecord) -> NDArray[np.uint8]:
    numbers = {name: i + 1 for i, name in enumerate(names)}
    result = np.array([numbers.get(str(c), UNKNOWN_TYPE) for c in classes], np.uint8)
    unknown = result == UNKNOWN_TYPE
    labelled = np.array([c != UNKNOWN for c in classes], bool)
    record.skip("nuclei of other classes from typing (they count as Unknown)", int((unknown & labelled).sum()))
    record.skip("Unknown nuclei from typing (they train segmentation)", int((unknown & ~labelled).sum()))
    return result


def _blocks(
    sources: Sequence[_Source],
    types: Sequence[NDArray[np.uint8]],
    n_classes: int,
    size: float,
    validation: float,
    mpp: float,
) -> tuple[list[Block], NDArray[np.int64], float]:
    """Blocks that hold nuclei, with their nuclei of each class; smaller ones where too few hold any."""
    smallest = 128 * mpp
    while True:
        blocks: list[Block] = []
        rows = []
        for number, (source, kinds) in enumerate(zip(sources, types, strict=True)):
            centres = source.nuclei.polygons.centroid()
            for block in grid(source.width, source.height, size / source.mpp, number):
                x0, y0, x1, y1 = block.box
                inside = (centres[:, 0] >= x0) & (centres[:, 0] < x1) & (centres[:, 1] >= y0) & (centres[:, 1] < y1)
                if inside.any():
                    blocks.append(block)
                    rows.append(np.bincount(kinds[inside], minlength=256)[1 : n_classes + 1])
        enough = validation <= 0 or len(blocks) >= max(2, 1 / validation)
        if enough or size / 2 < smallest:
            return blocks, np.array(rows, dtype=np.int64).reshape(len(blocks), n_classes), size
        size /= 2


def _cut_block(
    writer: PatchWriter,
    source: _Source,
    types: NDArray[np.uint8],
    block: Block,
    size: int,
    mpp: float,
    held: bool,
) -> int:
    step = mpp / source.mpp  # full-resolution pixels per pixel of the patch
    x0, y0, x1, y1 = block.box
    bounds = source.nuclei.polygons.bounds()
    number = 0
    with open_slide(source.image, source.mpp) as slide:
        for top in _starts(y0, y1, size * step):
            for left in _starts(x0, x1, size * step):
                right, bottom = left + size * step, top + size * step
                near = (bounds[:, 0] < right) & (bounds[:, 2] > left) & (bounds[:, 1] < bottom) & (bounds[:, 3] > top)
                valid = np.ones((size, size), np.uint8)
                if source.nuclei.coverage is not None:
                    area = source.nuclei.coverage.shift(-left, -top).scale(1 / step)
                    valid = area.rasterize((size, size), np.ones(len(area)), np.zeros((size, size), np.uint8))
                if not valid.any():
                    continue
                polygons = source.nuclei.polygons.take(near).shift(-left, -top).scale(1 / step)
                instances = polygons.rasterize((size, size))
                kinds = np.concatenate([[0], types[near]]).astype(np.uint8)[instances]
                image = slide.read(left, top, (size, size), step)
                side = VALIDATION if held else TRAINING
                writer.append(
                    (left, top),
                    block.source,
                    side,
                    images=image,
                    instances=instances,
                    types=kinds,
                    valid=valid,
                )
                number += 1
    return number


def _starts(low: float, high: float, length: float) -> list[float]:
    """Evenly spaced starts of the fewest pieces of `length` that cover low..high without leaving it."""
    span = max(high - low - length, 0.0)
    n = math.ceil((high - low) / length - 1e-6)
    # whole pixels, so that a patch at the slide's own µm/px is not resampled
    return [low] if n <= 1 else [float(math.floor(low + span * i / (n - 1))) for i in range(n)]
