"""A Xenium output folder: one object that answers for every version of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError
from stqp.sources import xenium_tables
from stqp.sources.tables import columns_of
from stqp.sources.xenium_matrix import RawMatrix, XeniumCounts, find_matrix, join_counts, read_matrix
from stqp.sources.xenium_nuclei import from_masks, replace_run_together
from stqp.sources.xenium_tables import Outlines, XeniumCells
from stqp.sources.xenium_versions import (
    CELL_BOUNDARIES,
    CELLS,
    CELLS_ZARR,
    EXPERIMENT,
    FILES,
    LABEL_ID,
    MATRIX,
    MATRIX_H5,
    MATRIX_ZARR,
    MORPHOLOGY,
    NUCLEUS_BOUNDARIES,
    PARTIAL,
    TABLE_SUFFIXES,
    XeniumVersion,
)

__all__ = ["NUCLEI_SOURCES", "MorphologyImage", "Outlines", "XeniumBundle", "XeniumCells", "XeniumCounts", "slug"]

logger = logging.getLogger(__name__)
Objects = NDArray[np.object_]
NUCLEI_SOURCES = ("polygons", "masks")
_WHOLE = "copy the whole output folder of the run, and check that the copy is complete"


@dataclass(frozen=True)
class MorphologyImage:
    """The DAPI image of the run.

    Attributes
    ----------
    path
        Its file; of a layout with a file for each channel, that of DAPI.
    size
        Width and height in px.
    layout
        Which of the layouts of `xenium_versions.MORPHOLOGY` it has.
    """

    path: Path
    size: tuple[int, int]
    layout: str


class XeniumBundle:
    """A Xenium output folder; callers ask it questions and never compare versions.

    Attributes
    ----------
    path : Path
    experiment : dict
        Content of ``experiment.xenium``.
    version : str
        Of the analysis that made the tables, ``xenium-2.0.0.10``.
    pixel_size : float
        µm per pixel of the morphology image; NaN in a folder in part that does not say.
    lacks : list of str
        What the folder has not, and what that means, a line each.
    files_read : list of Path
    """

    def __init__(self, path: Path, experiment: dict[str, Any], partial: bool = False):
        self.path = path
        self.experiment = experiment
        self._version = XeniumVersion(experiment)
        self.version = self._version.text
        here = (path / EXPERIMENT).is_file()
        self.pixel_size = _pixel_size(path / EXPERIMENT, experiment) if here or not partial else float("nan")
        self.files_read: list[Path] = [path / EXPERIMENT] if here else []
        self.lacks = self._missing()

    @classmethod
    def open(cls, outs: str | Path, partial: bool = False) -> XeniumBundle:
        """Open an output folder.

        Parameters
        ----------
        outs
            The folder.
        partial
            Take a folder that lacks files which an import needs; `lacks` says which. What is there can be read.

        Raises
        ------
        InputError
            When it is no folder, or a file that every version has is missing or broken.
        """
        path = Path(outs)
        if not path.is_dir():
            raise InputError(
                f"the Xenium output folder {path} does not exist"
                if not path.exists()
                else f"{path} is a file; give the Xenium output folder that holds {EXPERIMENT}"
            )
        file = path / EXPERIMENT
        if not file.is_file():
            if partial:
                return cls(path, {}, partial)
            inner = path / "outs" / EXPERIMENT
            hint = f"; did you mean {inner.parent}?" if inner.is_file() else f"; {_WHOLE}"
            raise InputError(f"expected {EXPERIMENT} in {path}, found none{hint}")
        try:
            experiment = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} is not the JSON that a Xenium run writes ({error}); {_WHOLE}") from error
        if not isinstance(experiment, dict):
            raise InputError(f"expected a JSON object in {file}, found {type(experiment).__name__}; {_WHOLE}")
        bundle = cls(path, experiment, partial)
        if not partial:
            for stem in (CELLS, NUCLEUS_BOUNDARIES):
                if stem != NUCLEUS_BOUNDARIES or not (path / CELLS_ZARR).is_file():
                    bundle._table_path(stem)
            bundle._matrix_path()
        return bundle

    @property
    def version_numbers(self) -> tuple[int, ...]:
        """Version as numbers, empty when it has none."""
        return self._version.numbers

    @property
    def newer_than_known(self) -> bool:
        """Whether stqp was never tried on such a folder."""
        return self._version.newer_than_known

    @property
    def sample_id(self) -> str:
        """A name of the region that stays the same from one reading to the next."""
        if self.path.resolve().name.startswith("output-"):  # instrument, slide, region and time
            return slug(self.path.resolve().name.removeprefix("output-"))
        parts = [self.experiment.get(key) for key in ("slide_id", "run_name", "region_name")]
        named = [str(part) for part in parts if part and part != "N/A"]
        return slug("-".join(named) or self.path.resolve().name)

    @property
    def name(self) -> str:
        """What people call the region."""
        return str(self.experiment.get("region_name") or self.path.resolve().name)

    def has_label_ids(self, stem: str = NUCLEUS_BOUNDARIES) -> bool:
        """Whether outlines are numbered, so that a cell can have several nuclei."""
        return LABEL_ID in columns_of(self._table_path(stem))

    def cell_ids(self) -> Objects:
        """Ids of the cells, from the first of the files that name them."""
        if self._find(CELLS) is not None:
            return self.read_cells().ids
        if find_matrix(self.path) is not None:
            return np.asarray(self._matrix().barcodes.to_pylist(), dtype=object)
        for stem in (NUCLEUS_BOUNDARIES, CELL_BOUNDARIES):
            if self._find(stem) is not None:
                return xenium_tables.table_ids(self._read(self._table_path(stem)), self.version)
        raise InputError(f"no file in {self.path} names cells: {'; '.join(self.lacks)}")

    def read_cells(self) -> XeniumCells:
        """Read the cells table.

        Raises
        ------
        InputError
            When it is missing, broken, lacks a column, or names a cell twice.
        """
        return xenium_tables.read_cells(self._read(self._table_path(CELLS)), self.version)

    def read_nuclei(
        self, cell_ids: Objects, source: str = "polygons", nucleus_count: NDArray[np.float64] | None = None
    ) -> Outlines:
        """Read the outlines of the nuclei; a cell may have none, one or more.

        Parameters
        ----------
        cell_ids
            The cells; `Outlines.cell` counts along them.
        source : {"polygons", "masks"}
            The simplified outlines of the tables, or those of the segmentation itself, around its pixels. The
            masks also stand in for nuclei that run together in a table without numbers.
        nucleus_count : (c,) or None
            Nuclei of each cell, as the cells table says.

        Raises
        ------
        InputError
            When the file is missing, broken or of another run.
        UsageError
            When there is no such source.
        """
        if source not in NUCLEI_SOURCES:
            raise UsageError(f"expected one of {', '.join(NUCLEI_SOURCES)} as the source of nuclei, found {source!r}")
        masks = self.path / CELLS_ZARR
        if source == "masks":
            if not masks.is_file():
                raise InputError(f"expected {CELLS_ZARR} in {self.path}, found none; without masks take the polygons")
            return from_masks(self._read(masks), self.pixel_size, cell_ids)
        if self._find(NUCLEUS_BOUNDARIES) is None and masks.is_file():
            raise InputError(
                f"expected {NUCLEUS_BOUNDARIES}{TABLE_SUFFIXES[0]} in {self.path}, found none; the masks are there, "
                "take the nuclei from them: --nuclei-source masks"
            )
        path = self._read(self._table_path(NUCLEUS_BOUNDARIES))
        nuclei = xenium_tables.read_outlines(path, cell_ids, "nuclei", self.version)
        if self.has_label_ids() or self._version.one_nucleus_each:
            return nuclei
        return replace_run_together(
            nuclei, nucleus_count, masks if masks.is_file() else None, self.pixel_size, cell_ids
        )

    def read_cell_outlines(self, cell_ids: Objects) -> Outlines | None:
        """Read the outlines of the cells, None where the folder has none."""
        path = self._find(CELL_BOUNDARIES)
        if path is None:
            return None
        return xenium_tables.read_outlines(self._read(path), cell_ids, "cell outlines", self.version)

    def read_counts(self, cell_ids: Objects) -> XeniumCounts:
        """Read the counts of genes, joined to the cells by id.

        Raises
        ------
        InputError
            When the matrix is missing, broken, is none of 10x's, or has none of the cells.
        """
        path = self._matrix_path()
        return join_counts(self._matrix(), cell_ids, path, self._find(CELLS) or self.path)

    def morphology_image(self) -> MorphologyImage | None:
        """Find the DAPI image, None where the folder has none.

        Raises
        ------
        InputError
            When the image is broken.
        """
        import struct

        import tifffile

        found = self._find_morphology()
        if found is None:
            return None
        layout, path = found
        try:
            with tifffile.TiffFile(path) as tif:
                page = tif.pages.first
                return MorphologyImage(path, (int(page.imagewidth), int(page.imagelength)), layout)
        except (OSError, ValueError, IndexError, KeyError, struct.error, tifffile.TiffFileError) as error:
            raise InputError(f"{path} is not a whole TIFF ({error}); {_WHOLE}") from error

    def _find_morphology(self) -> tuple[str, Path] | None:
        for layout, pattern in MORPHOLOGY:
            for path in sorted(self.path.glob(pattern)):
                return layout, path
        return None

    def _missing(self) -> list[str]:
        found = {
            MATRIX: find_matrix(self.path) is not None,
            "DAPI": self._find_morphology() is not None,
            EXPERIMENT: (self.path / EXPERIMENT).is_file(),
            CELLS_ZARR: (self.path / CELLS_ZARR).is_file(),
        }
        lines = []
        for file in FILES:
            name = file.names[0]
            key = next((k for k in (MATRIX, CELLS_ZARR, EXPERIMENT) if name.startswith(k)), None)
            key = "DAPI" if "DAPI" in file.holds else key
            stem = name.removesuffix(TABLE_SUFFIXES[0])
            if not (found[key] if key is not None else self._find(stem) is not None):
                without = file.without or PARTIAL[key or stem]
                lines.append(f"no {_called(file.names)}: {without}")
        return lines

    def _find(self, stem: str) -> Path | None:
        return next((p for suffix in TABLE_SUFFIXES if (p := self.path / (stem + suffix)).is_file()), None)

    def _table_path(self, stem: str) -> Path:
        found = self._find(stem)
        if found is None:
            expected = " or ".join(stem + suffix for suffix in TABLE_SUFFIXES[:2])
            raise InputError(f"expected {expected} in {self.path}, found none; {_WHOLE}")
        return found

    def _matrix_path(self) -> Path:
        path = find_matrix(self.path)
        if path is None:
            expected = f"{MATRIX_H5}, the folder {MATRIX} or {MATRIX_ZARR}"
            raise InputError(f"expected {expected} in {self.path}, found none; {_WHOLE}")
        return path

    def _matrix(self) -> RawMatrix:
        return read_matrix(self._read(self._matrix_path()))

    def _read(self, path: Path) -> Path:
        """Note that a file is read."""
        if path not in self.files_read and path.is_file():
            self.files_read.append(path)
        return path


def _pixel_size(file: Path, experiment: Mapping[str, Any]) -> float:
    """µm per pixel, which every later step hangs on."""
    value = experiment.get("pixel_size")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 100:
        raise InputError(f"expected pixel_size in µm (0.2125 for most runs) in {file}, found {value!r}; {_WHOLE}")
    return float(value)


def _called(names: tuple[str, ...]) -> str:
    """What a file is called, for people."""
    if any("morphology" in name for name in names):
        return "morphology image"
    return names[0] if len(names) == 1 else " or ".join(name for name in names if not name.endswith(".csv"))


def slug(text: str) -> str:
    """Text as it can stand in an id or a file name."""
    return re.sub(r"[^0-9A-Za-z._-]+", "_", text).strip("_.-") or "sample"
