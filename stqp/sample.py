"""A spatial sample: the nuclei, cells and counts of one ST region, in the pixels of its slide."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons

Objects = NDArray[np.object_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class NucleusTable:
    """``n`` nuclei by columns.

    Attributes
    ----------
    polygons : Polygons
        Outlines in full-resolution H&E pixels.
    cell : int64 (n,)
        Row of its cell in the cells table.
    cell_id : object (n,)
        Text.
    position : int64 (n,)
        0 for the first nucleus of its cell, 1 for the second, ...
    area : float64 (n,)
        µm².
    transcripts : int64 (n,)
        Transcripts of genes in its cell.
    labels : object (n,)
        What the label file says of its cell; None where it says nothing.
    classes : object (n,)
        Class, ``Unknown`` where there is none.
    confidence : float64 (n,)
        Of the label; NaN where there is none.
    """

    polygons: Polygons
    cell: Ints
    cell_id: Objects
    position: Ints
    area: Floats
    transcripts: Ints
    labels: Objects
    classes: Objects
    confidence: Floats

    def __len__(self) -> int:
        """Count the nuclei."""
        return len(self.cell)


@dataclass
class CellTable:
    """``c`` cells by columns; a cell has none, one or more nuclei.

    Attributes
    ----------
    ids : object (c,)
        Text.
    center : float64 (c, 2)
        Full-resolution H&E pixels.
    transcripts, controls : int64 (c,)
        Counts of genes, and of everything else that the panel holds.
    n_nuclei : int64 (c,)
        Nuclei of the cell that are in the nucleus table.
    area : float64 (c,)
        µm²; NaN where unknown.
    labels, classes : object (c,)
        As for the nuclei.
    polygons : Polygons or None
        Outlines in H&E pixels, where the source has them.
    """

    ids: Objects
    center: Floats
    transcripts: Ints
    controls: Ints
    n_nuclei: Ints
    area: Floats
    labels: Objects
    classes: Objects
    polygons: Polygons | None = None

    def __len__(self) -> int:
        """Count the cells."""
        return len(self.ids)


@dataclass
class SpatialSample:
    """One ST region on its slide.

    Attributes
    ----------
    id
        Steady from one import to the next; the ids of the objects in QuPath are made from it.
    name
        For people.
    source
        Platform and version, ``Xenium xenium-2.0.0.10``.
    slide
        The H&E image.
    size
        Width and height of the slide in px.
    mpp
        µm per pixel of the slide.
    alignment : float64 (3, 3)
        H&E pixels to the pixels of the source's own image.
    to_he : float64 (3, 3)
        The source's µm to H&E pixels.
    coverage : list of float64 (k, 2)
        Rings in H&E pixels around what the run covered.
    counts
        scipy CSR (cells, genes) of integers.
    genes, gene_ids : object (genes,)
        Names and ids.
    extra : dict
        ``control_kinds``: counts of each type of control, int64 (c,). ``untyped_cells``: cells that a filter found
        badly measured, bool (c,); their nuclei are Unknown whatever types them. ``proteins``, float32
        (c, proteins), and ``protein_names``: intensities, where the run has them.
    """

    id: str
    name: str
    source: str
    slide: Path
    size: tuple[int, int]
    mpp: float
    alignment: Floats
    to_he: Floats
    coverage: list[Floats]
    nuclei: NucleusTable
    cells: CellTable
    counts: Any
    genes: Objects
    gene_ids: Objects
    extra: dict[str, Any] = field(default_factory=dict)

    def expression(self) -> Any:
        """Make an AnnData: counts by cell and gene, with the cells' places, labels and classes.

        ``obs`` has the cell ids as index and the controls, also by type; ``obsm["spatial"]`` is in H&E pixels;
        proteins are ``obsm["protein"]`` with their names in ``uns["protein"]``; ``uns["stqp"]`` says where everything
        comes from.
        """
        import anndata
        import pandas as pd

        cells = self.cells
        obs = pd.DataFrame(
            {
                "transcript_counts": cells.transcripts,
                "control_counts": cells.controls,
                "n_nuclei": cells.n_nuclei,
                "cell_area": cells.area,
                "label": pd.Categorical(cells.labels),
                "class": pd.Categorical(cells.classes),
            },
            index=pd.Index(cells.ids, name="cell_id", dtype=object),
        )
        if np.any(self.extra.get("untyped_cells", False)):
            obs["untyped"] = self.extra["untyped_cells"]
        for kind, number in self.extra.get("control_kinds", {}).items():
            obs[f"{kind.lower().replace(' ', '_')}_counts"] = number
        names = pd.Index(self.genes, dtype=object)
        if not names.is_unique:
            names = anndata.utils.make_index_unique(names)
        var = pd.DataFrame({"gene_ids": self.gene_ids}, index=names)
        result = anndata.AnnData(self.counts, obs=obs, var=var)
        result.obsm["spatial"] = cells.center
        if len(self.extra.get("protein_names", ())):
            result.obsm["protein"] = self.extra["proteins"]
            result.uns["protein"] = np.asarray(self.extra["protein_names"], dtype=str)
        result.uns["stqp"] = {
            "sample": self.id,
            "name": self.name,
            "source": self.source,
            "slide": str(self.slide),
            "mpp": self.mpp,
            "alignment": self.alignment,
        }
        return result
