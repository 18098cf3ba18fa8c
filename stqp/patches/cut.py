"""Cut training patches from QuPath projects."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.patches.drawing import Batch, Shape, batches, patches_in
from stqp.patches.joining import is_patch_file, join_digest, join_files
from stqp.patches.options import CutOptions
from stqp.patches.parts import default_workers, draw_batches, is_done, keeping_parts, part_path
from stqp.patches.quality import USED
from stqp.patches.sources import (
    Source,
    chosen_entries,
    class_names,
    fingerprint,
    read_sources,
    type_numbers,
)
from stqp.patches.split import Split, split_sources
from stqp.patches.store import SIDES, TRAINING, PatchFile, PatchWriter
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord
from stqp.taxonomy import UNKNOWN

Progress = Callable[[int, int], None]
_BATCH = 8 * 1024 * 1024  # px that are lost when a process is killed, and 80 MB of its memory


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
    fingerprint : str
        Of all that was cut from.
    reused : bool
        Whether the file was there already, and nothing had changed since.
    """

    classes: list[str]
    split: dict[str, list[dict[str, Any]]]
    sources: list[dict[str, Any]]
    fingerprint: str = ""
    reused: bool = False


def cut_patches(
    projects: Sequence[Path],
    out: Path,
    record: RunRecord,
    options: CutOptions | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Cut:
    """Cut patches with their instance and type maps into an HDF5 file, and split them into sides.

    A file that was cut from the same objects and images with the same options is left as it is. A cut that was
    stopped goes on where it was.

    Parameters
    ----------
    projects
        QuPath projects, and files of patches (``.h5``), whose patches stay on their sides.
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
        When there are no nuclei, no classes, too little to split, an image is missing or has no µm/px.
    EnvironmentProblem
        When the disk is full, or another process cuts to the same file.
    """
    options = options or CutOptions()
    if out.is_dir():
        raise UsageError(f"{out} is a folder; the patches need the name of a file, such as {out / 'patches.h5'}")
    ready = [path for path in projects if is_patch_file(path)]
    rest = [path for path in projects if not is_patch_file(path)]
    if ready:
        return _join(ready, rest, out, record, options, workers, progress)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(QuPathProject.open(path, "r")) for path in rest]
        chosen = chosen_entries(opened, options)
        if not chosen:
            raise InputError(f"there are no images in {', '.join(map(str, projects)) or 'no project'}")
        digest = fingerprint(chosen, options)
        if present := unchanged(out, digest, record):
            return present
        sources, labels = read_sources(chosen, options, record)
    return cut_sources(sources, out, record, options, digest, labels, workers=workers, progress=progress)


def _join(
    ready: Sequence[Path], rest: Sequence[Path], out: Path, record: RunRecord, options: CutOptions,
    workers: int | None, progress: Progress | None,
) -> Cut:  # fmt: skip
    """Patches of files, and of projects that are cut first."""
    inputs = [PatchFile(path) for path in ready]
    beside = out.with_name(f".{out.name}.projects.h5")
    if rest:
        alone = replace(options, size=inputs[0].size)
        cut_patches(rest, beside, record, alone, workers=workers, progress=progress)
        inputs.append(PatchFile(beside))
    for path in ready:
        record.add_input(path)
    digest = join_digest(inputs, options)
    present = unchanged(out, digest, record)
    if present is None:
        join_files(inputs, out, record, options, digest)
    for patches in inputs:
        patches.close()
    made = present or _read(out, digest, record, reused=False)
    beside.unlink(missing_ok=True)
    return made


def unchanged(out: Path, digest: str, record: RunRecord) -> Cut | None:
    """The cut that is at `out` already, when it is whole and of this fingerprint."""
    if not out.is_file():
        return None
    try:
        patches = PatchFile(out)
    except InputError:
        return None
    if patches.fingerprint != digest:
        return None
    record.count("patches", f"{len(patches):,}, cut before from the same data: left as they are")
    return _read(out, digest, record, reused=True)


def _read(out: Path, digest: str, record: RunRecord, reused: bool) -> Cut:
    """The cut of a file, its counts noted."""
    patches = PatchFile(out)
    about = patches.about
    for name, value in about["summary"].items():
        record.count(name, value)
    record.results["labels"] = about["labels"]
    return Cut(patches.classes, about["split"], patches.sources, digest, reused)


def cut_sources(
    sources: Sequence[Source],
    out: Path,
    record: RunRecord,
    options: CutOptions,
    digest: str,
    labels: dict[str, dict[str, int]],
    *,
    untyped: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Cut:
    """Cut patches from images whose nuclei are read; see `cut_patches`.

    Parameters
    ----------
    sources
        The images.
    out, record, options, workers, progress
        As for `cut_patches`.
    digest
        Fingerprint.
    labels
        Nuclei of each class, by what became of them.
    untyped
        Whether it is known that the nuclei have no types.
    """
    names = class_names(sources, options, record, labels, untyped)
    record.count("nuclei", sum(len(s.classes) for s in sources))
    record.skip("Unknown nuclei from typing (they train segmentation)", labels.get(UNKNOWN, {}).get(USED, 0))
    types = [type_numbers(s.classes, names) for s in sources]
    split = split_sources(sources, types, len(names), options, record)
    if not (split.sides == TRAINING).any():
        raise InputError("nothing is left to learn from; hold out less, or use a smaller --block or --guard")
    shape = Shape(_size(split, sources, options), options.mpp, names)
    steps = [shape.mpp / s.mpp for s in sources]
    plan = batches(split.blocks, steps, shape.size, max(1, _BATCH // shape.size**2))
    if not plan:
        raise InputError("no block is as large as a pixel of the patches; see --mpp and --block")

    def make(number: int) -> Batch:
        return _batch(number, plan, split, sources, types)

    expected = sum(patches_in(b, steps[b.source], shape.size) for b in split.blocks)
    finished = 0
    total = sum(len(blocks) for _, blocks in plan)

    def done(number: int) -> None:
        nonlocal finished
        finished += len(plan[number][1])
        if progress:
            progress(finished, total)

    described, boxes = [s.describe() for s in sources], split.boxes(sources)
    with keeping_parts(out, digest) as folder:
        missing = []
        for number in range(len(plan)):
            if is_done(part_path(folder, number)):
                done(number)
            else:
                missing.append(number)
        if finished:
            record.count("blocks that were cut before the last cut stopped", finished)
        draw_batches(folder, missing, make, shape, workers or default_workers(expected), done)
        with (
            files.replacing(out) as temporary,
            PatchWriter(temporary, shape.size, shape.mpp, names, digest) as writer,
        ):
            sides = []
            for number in range(len(plan)):
                part = part_path(folder, number)
                writer.extend(part)
                sides.append(PatchFile(part).side)
            summary = _summary(np.concatenate(sides), split, names, options)
            writer.finish(
                described, split=boxes, options=options.to_dict(), labels=labels, summary=summary
            )  # fmt: skip
    for name, value in summary.items():
        record.count(name, value)
    record.results["labels"] = labels
    for name, reasons in labels.items():
        for reason, number in reasons.items():
            if reason != USED:
                record.skip(f"{name} nuclei, {reason}", number)
    return Cut(names, boxes, described, digest)


def _size(split: Split, sources: Sequence[Source], options: CutOptions) -> int:
    """Side of a patch: as asked for, or smaller where blocks are."""
    return min(options.size, 16 * max(1, int(split.block_um / options.mpp / 16 + 1e-6)))


def _batch(
    number: int, plan: list[tuple[int, list[int]]], split: Split, sources: Sequence[Source],
    types: Sequence[NDArray[np.uint8]],
) -> Batch:  # fmt: skip
    index, members = plan[number]
    source = sources[index]
    boxes = [split.blocks[i].box for i in members]
    low, high = np.min([b[:2] for b in boxes], axis=0), np.max([b[2:] for b in boxes], axis=0)
    canvas, nuclei = source.canvas.near((*low.tolist(), *high.tolist()))
    sides = [int(split.sides[i]) for i in members]
    return Batch(canvas, index, source.mpp, boxes, sides, types[index][nuclei], source.weight[nuclei])


def _summary(sides: NDArray[np.uint8], split: Split, names: Sequence[str], options: CutOptions) -> dict[str, Any]:
    """Counts of patches, blocks and nuclei by side, in words."""
    words = ("for training", "for validation", "for testing")
    used = [n for n in range(len(SIDES)) if n < 2 or (split.sides == n).any()]
    result: dict[str, Any] = {f"patches {words[n]}": int((sides == n).sum()) for n in used}
    held = [f"{int((split.sides == n).sum())} {words[n]}" for n in used if n != TRAINING]
    result["spatial blocks"] = f"{len(split.blocks)} of {split.block_um:.0f} µm, {', '.join(held)}"
    for number, name in enumerate(names):
        here = [f"{int(split.counts[split.sides == n, number].sum())} {words[n]}" for n in used]
        result[f"nuclei {name}"] = ", ".join(here)
    return result
