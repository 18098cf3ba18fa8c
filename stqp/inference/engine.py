"""A slide in, nuclei out: windows for the network, maps, nuclei."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from stqp.errors import InputError
from stqp.inference import fingerprints, tiles
from stqp.inference.batches import choose_batch, fit_windows
from stqp.inference.detections import Detections
from stqp.inference.journal import Journal
from stqp.inference.ledger import Ledger
from stqp.inference.model import Predictor
from stqp.inference.pipeline import Pipeline
from stqp.inference.records import Results
from stqp.inference.store import Cell, MapStore
from stqp.inference.where import Where
from stqp.inference.windows import Grid, Plan
from stqp.polygons import Polygons
from stqp.slides import Slide

logger = logging.getLogger(__name__)
_FAR = 1.1  # the µm/px that is given and that of the file differ by more than this factor
_ENLARGED = 1.5  # times; a network sees little in pixels that were not there

Progress = Callable[[int, int], None]


def slide_mpp(slide: Slide, mpp: float | None = None) -> float:
    """Give the µm per px of a slide, or what the user says it is; a contradiction is said.

    Raises
    ------
    InputError
        When neither says.
    """
    value = mpp or slide.mpp
    if not value:
        raise InputError(f"{slide.path} does not say its µm per pixel; give it with --mpp")
    said = slide.file_mpp
    if said and max(said / value, value / said) > _FAR:
        logger.warning(
            "%s says that it has %.4g µm per pixel, but %.4g was given; nuclei are looked for at the given scale, "
            "and wrongly if the file is right",
            slide.path, said, value,
        )  # fmt: skip
    return value


def predict_slide(
    slide: Slide,
    predictor: Predictor | Sequence[Predictor],
    *,
    mpp: float | None = None,
    batch_size: int | None = None,
    tissue: bool = True,
    boxes: ArrayLike | None = None,
    within: Polygons | None = None,
    tile: int = tiles.TILE,
    margin: int = tiles.MARGIN,
    folder: Path | None = None,
    fresh: bool = False,
    keep: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Detections:
    """Find and type the nuclei of a slide.

    The result is that of post-processing the map of the whole slide at once, nucleus for nucleus, and the same in
    every run. What is finished is kept in `folder`: after a crash, a kill or a power cut the same call goes on
    where the last one was.

    Parameters
    ----------
    slide
        The slide; it is read at the network's µm per px.
    predictor
        The network; several replicas of it, one a device, share the windows. One that takes windows of several
        sizes is given those that leave the least to compute.
    mpp
        µm per px of the slide, in place of what its file says.
    batch_size
        Windows at a time, chosen for the device when None; fewer where its memory is too small for them.
    tissue
        Skip windows without tissue.
    boxes
        Look only here: boxes ``(x0, y0, x1, y1)`` in full-resolution px. Nuclei whose centres lie in one are
        kept.
    within
        Look only in these polygons, in full-resolution px; nuclei whose centres lie in one are kept.
    tile, margin
        As `tiles.find_nuclei`.
    folder
        For what is finished; taken away at the end. A temporary folder when None. It holds the maps that are
        still needed, ``5 + classes + 1`` bytes a pixel, and the nuclei found so far.
    fresh
        Start anew where a folder has something of an earlier run.
    keep
        Leave the folder: the caller takes it away once what was found is written.
    workers
        Threads that post-process; as many as there are cores, up to eight, when None.
    progress
        Called with the steps done and their number.

    Returns
    -------
    Detections
        Ordered by their centres, row by row.

    Raises
    ------
    InputError
        When the µm per px are not known, or the slide cannot be read to its end.
    EnvironmentProblem
        When the disk is full, the device too small, or another process works in the folder.
    """
    mpp = slide_mpp(slide, mpp)
    value = mpp
    where = Where(tissue, boxes, within)

    def windows(of: Predictor) -> list[Cell]:
        return where.windows(Grid.of(slide, value, of), slide, value, margin)

    given = predictor if isinstance(predictor, Sequence) else [predictor]
    predictors = fit_windows(given, lambda p: len(windows(p)))
    one = predictors[0]
    batch = batch_size or choose_batch(one)
    grid, cells = Grid.of(slide, mpp, one), windows(one)
    _warn_if_enlarged(slide, mpp, grid)
    if tissue and not cells:
        logger.warning("no tissue was found on %s; --no-tissue looks everywhere", slide.path)
    tiling = tiles.make_tiling(grid.width, grid.height, tile, margin)
    n_types = len(one.classes) + 1
    fingerprint = _fingerprint(slide, one, grid, cells, [mpp, tile, margin]) if folder else {}
    with Journal(folder, fingerprint, fresh, keep) as journal:
        if journal.differs:
            logger.warning("what an earlier run left of %s is not used: its %s differs",
                           slide.path.name, " and ".join(journal.differs))  # fmt: skip
        plan = Plan.make(grid, cells, batch)
        with MapStore(grid.width, grid.height, grid.output_size, n_types, journal.maps, one.mpp) as store:
            ledger = Ledger(plan, store, journal, tiling)
            counts = ledger.counts
            if counts.resumed_windows:
                logger.info(
                    "%s: going on where an earlier run ended, with %d of %d windows and %d tiles done",
                    slide.path.name, counts.resumed_windows, len(cells), counts.resumed_tiles,
                )  # fmt: skip
            Pipeline(slide, grid, plan, predictors, store, ledger, tiling, workers, progress).run()
        polygons, class_prob = tiles.assemble(Results(journal, ledger.results), n_types, grid.downsample)
    if counts.cut:
        logger.warning(
            "%d tiles cut a clump of foreground too large to be processed whole; nuclei there may be wrong", counts.cut
        )
    found = Detections(
        polygons,
        class_prob,
        [*one.classes],
        mpp,
        grid.downsample,
        {
            "windows": len(cells),
            "px of a window": grid.input_size,
            "windows without tissue": len(grid.cells) - len(cells) if where.everywhere else 0,
            "tiles that cut a clump": counts.cut,
        },
    )
    return found if where.everywhere else found.take(where.holds(polygons.centroid()))


def _warn_if_enlarged(slide: Slide, mpp: float, grid: Grid) -> None:
    if 1 / grid.downsample > _ENLARGED:
        logger.warning(
            "%s has %.3g µm per pixel, and is enlarged %.1f times for a network that was trained at %.3g; "
            "what it finds may be wrong",
            slide.path, mpp, 1 / grid.downsample, mpp * grid.downsample,
        )  # fmt: skip


def _fingerprint(
    slide: Slide, predictor: Predictor, grid: Grid, cells: Sequence[Cell], options: Sequence[float]
) -> dict[str, Any]:
    """What must be the same to go on; the windows stand for all options that say where to look."""
    windows = hashlib.blake2b(np.asarray(cells, np.int64).tobytes(), digest_size=16).hexdigest()
    return {
        "model": fingerprints.of_predictor(predictor),
        "slide": fingerprints.of_slide(slide),
        "options": [grid.input_size, grid.output_size, grid.downsample, windows, *options],
        "code": fingerprints.of_code(),
    }
