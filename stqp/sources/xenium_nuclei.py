"""Nuclei from the masks, where they are wanted or where the tables run nuclei together; and are they the run's?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.sources.tables import position_in_group
from stqp.sources.xenium_masks import read_nucleus_masks
from stqp.sources.xenium_matrix import XeniumCounts
from stqp.sources.xenium_tables import Outlines, XeniumCells, rows_of

Objects = NDArray[np.object_]
Floats = NDArray[np.float64]
# nuclei are not this far from the middles of their cells in any tissue
FAR_UM, FAR_RADII, NEAR_UM = 30.0, 2.0, 10.0
SOME = 10_000  # outlines that are looked at
MUCH = 0.2  # of the cells


def from_masks(path: Path, pixel_size: float, cell_ids: Objects) -> Outlines:
    """Outlines of the nuclei around the pixels of their masks.

    Raises
    ------
    InputError
        When the file is broken or of another run.
    """
    masks = read_nucleus_masks(path, pixel_size)
    row = rows_of(masks.cell_ids, cell_ids)
    if len(row) and (row < 0).all():
        raise InputError(
            f"none of the nuclei of {path} belongs to a cell of the run (first cells: "
            f"{masks.cell_ids[0].as_py()!r} and {cell_ids[:1].tolist()}); the files are of different runs"
        )
    keep = row >= 0
    skipped = {
        "nuclei of a cell that the cells table lacks": int((~keep).sum()),
        "numbers of the mask that belong to no cell": masks.homeless,
    }
    return Outlines(
        masks.polygons if keep.all() else masks.polygons.take(keep),
        row[keep],
        masks.label[keep],
        position_in_group(row[keep]),
        {k: v for k, v in skipped.items() if v},
        {"nuclei outlined around the pixels of their masks": int(keep.sum())},
        np.zeros(int(keep.sum()), bool),
    )


def replace_run_together(
    nuclei: Outlines, nucleus_count: Floats | None, masks: Path | None, pixel_size: float, cell_ids: Objects
) -> Outlines:
    """Take from the masks the nuclei of cells whose outlines could not be told apart.

    Parameters
    ----------
    nuclei
        Of a table that does not number its outlines, split where rings close.
    nucleus_count
        What the cells table says, NaN where nothing.
    masks
        ``cells.zarr.zip``, None where there is none.
    pixel_size, cell_ids
        As for `from_masks`.
    """
    found = np.bincount(nuclei.cell, minlength=len(cell_ids))
    tangled = np.zeros(len(cell_ids), bool)
    tangled[nuclei.cell[nuclei.mended]] = True
    if nucleus_count is not None:
        tangled |= (found > 0) & np.isfinite(nucleus_count) & (found != nucleus_count)
    several = int(((found > 1) & ~tangled).sum())
    noted = dict(nuclei.noted)
    if several:
        noted["cells whose nuclei ran together in the table (split where their outlines close)"] = several
    if not tangled.any():
        return replace(nuclei, noted=noted)
    if masks is None:
        said = "cells whose nuclei ran together and could not be told apart (no masks to take them from)"
        return replace(nuclei, noted={**noted, said: int(tangled.sum())})
    own = from_masks(masks, pixel_size, cell_ids)
    there = np.bincount(own.cell, minlength=len(cell_ids)) > 0
    tangled &= there
    old, new = np.flatnonzero(~tangled[nuclei.cell]), np.flatnonzero(tangled[own.cell])
    cell = np.r_[nuclei.cell[old], own.cell[new]]
    order = np.argsort(cell, kind="stable")
    polygons = Polygons.concatenate([nuclei.polygons.take(old), own.polygons.take(new)])
    noted.pop(next((k for k in noted if "crossed itself" in k), ""), None)
    mended = np.r_[nuclei.mended[old], np.zeros(len(new), bool)]
    noted["cells whose nuclei ran together in the table (taken from the masks)"] = int(tangled.sum())
    if mended.any():
        noted["nuclei whose outline crossed itself (mended, the largest part kept)"] = int(mended.sum())
    label = np.r_[nuclei.label_id[old], np.full(len(new), -1, np.int64)]
    return Outlines(
        polygons.take(order),
        cell[order],
        label[order],
        position_in_group(cell[order]),
        nuclei.skipped,
        noted,
        mended[order],
    )


def check_places(outlines: Outlines, cells: XeniumCells, what: str, folder: Path) -> None:
    """Hold outlines against the cells that they belong to: ids of different runs can be the same.

    Raises
    ------
    InputError
        When half of them are far from their cells.
    """
    if not len(outlines.cell):
        return
    some = np.unique(np.linspace(0, len(outlines.cell) - 1, SOME).astype(np.int64))
    there = outlines.polygons.take(some).centroid()
    center = cells.center[outlines.cell[some]]
    with np.errstate(invalid="ignore"):
        away = np.hypot(*(there - center).T)
        swapped = np.hypot(*(there[:, ::-1] - center).T)
    if not np.isfinite(away).any():
        return
    area = cells.area[outlines.cell[some]]
    far = FAR_UM
    if np.isfinite(area).any():
        far = max(NEAR_UM, FAR_RADII * float(np.sqrt(np.nanmedian(area) / np.pi)))
    if np.nanmedian(away) <= far:
        return
    reason = "they are of different runs"
    if np.nanmedian(swapped) <= far:
        reason = "x and y are swapped in one of the two tables"
    raise InputError(
        f"half of the {what} of {folder} lie {np.nanmedian(away):.0f} µm and more from the centres of their cells in "
        f"the cells table; likely {reason}"
    )


def check_counts(counts: XeniumCounts, cells: XeniumCells, folder: Path) -> None:
    """Hold the matrix against the sums that the cells table has.

    Raises
    ------
    InputError
        When many cells have more transcripts in the matrix than the table says, and most disagree.
    """
    total = np.asarray(counts.matrix.sum(axis=1)).ravel()
    said = np.isfinite(cells.transcripts)
    more = int((total[said] > cells.transcripts[said]).sum())
    same = int((total[said] == cells.transcripts[said]).sum())
    if more > MUCH * said.sum() and same < 0.5 * said.sum():
        raise InputError(
            f"{more} of {int(said.sum())} cells have more transcripts in the matrix of {folder} than in its cells "
            "table; they are of different runs"
        )
