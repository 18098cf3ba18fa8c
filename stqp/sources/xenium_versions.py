"""All that differs from version to version of the Xenium output folder; readers and docs are made from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# names of files and columns, the same in every version that has them
EXPERIMENT = "experiment.xenium"
CELLS = "cells"
NUCLEUS_BOUNDARIES = "nucleus_boundaries"
CELL_BOUNDARIES = "cell_boundaries"
MATRIX = "cell_feature_matrix"
MATRIX_H5, MATRIX_ZARR = f"{MATRIX}.h5", f"{MATRIX}.zarr.zip"
CELLS_ZARR = "cells.zarr.zip"
TABLE_SUFFIXES = (".parquet", ".csv.gz", ".csv")
CELL_ID, LABEL_ID = "cell_id", "label_id"
VERTEX = ("vertex_x", "vertex_y")
CENTROID = ("x_centroid", "y_centroid")
CELL_AREA, TRANSCRIPT_COUNTS, NUCLEUS_COUNT = "cell_area", "transcript_counts", "nucleus_count"
PROTEIN_SCALE = "protein_scaling_factor"

GENE = "Gene Expression"
PROTEIN = "Protein Expression"  # intensities in fixed point, neither counts nor a control
AGGREGATE = "aggregate"  # sums over other features, in the zarr matrix only
# feature type: what it is called in the h5 and mtx files of any version, and in the zarr file
FEATURE_TYPES: Mapping[str, tuple[str, ...]] = {
    GENE: ("gene expression", "gene", "predesigned gene", "custom gene"),
    PROTEIN: ("protein expression", "protein"),
    "Negative Control Probe": ("negative control probe",),
    "Negative Control Codeword": ("negative control codeword",),
    "Unassigned Codeword": ("unassigned codeword", "blank codeword"),
    "Deprecated Codeword": ("deprecated codeword",),
    "Genomic Control": ("genomic control", "genomic control probe"),
    AGGREGATE: ("aggregate gene", "aggregate"),
}
CONTROLS = tuple(kind for kind in FEATURE_TYPES if kind not in (GENE, PROTEIN, AGGREGATE))
_CANONICAL = {alias: kind for kind, aliases in FEATURE_TYPES.items() for alias in aliases}

# images of the DAPI stain, the sharpest first: name of the layout, pattern below the output folder
MORPHOLOGY = (
    ("one file a channel, by name", "morphology_focus/ch0000_*.ome.tif"),
    ("one file a channel, by number", "morphology_focus/morphology_focus_0000.ome.tif"),
    ("one plane", "morphology_focus.ome.tif"),
    ("projection", "morphology_mip.ome.tif"),
    ("stack", "morphology.ome.tif"),
)

# how a number in a mask leads to its cell
BY_ROW, BY_MASK_VALUE, BY_POLYGON_SET = "row of cell_id + 1", "seg_mask_value", "polygon_sets/*/cell_index"


@dataclass(frozen=True)
class Layout:
    """What the output folder of a range of versions holds.

    Attributes
    ----------
    name
        The range, for people.
    first
        Its first version.
    cell_ids
        How cells are named.
    several_nuclei
        Whether a cell can have none or several nuclei.
    label_id
        Whether the tables of boundaries number their outlines.
    ring
        Vertices of an outline, the repeated first one included.
    masks
        How a number in a mask leads to its cell.
    tables, matrices
        Endings of the tables and kinds of the matrix that the version writes.
    morphology
        Pattern of the DAPI image.
    columns
        Columns of the cells table that a former version lacks.
    controls
        Types of control features.
    """

    name: str
    first: tuple[int, ...]
    cell_ids: str
    several_nuclei: bool
    label_id: bool
    ring: int
    masks: str
    tables: tuple[str, ...]
    matrices: tuple[str, ...]
    morphology: str
    columns: tuple[str, ...]
    controls: tuple[str, ...]


_ALL_MATRICES = ("h5", "mtx", "zarr")
_STRINGS = "text, aaaaaaab-1"
_FOUR = ("Negative Control Probe", "Negative Control Codeword", "Unassigned Codeword", "Deprecated Codeword")
LAYOUTS = (
    Layout(
        "1.0 to 1.2", (1, 0), "integers from 1", False, False, 13, BY_ROW, (".parquet", ".csv.gz"), _ALL_MATRICES,
        "morphology_mip.ome.tif",
        ("transcript_counts", "control_probe_counts", "control_codeword_counts", "total_counts", "cell_area",
         "nucleus_area"),
        ("Negative Control Probe", "Negative Control Codeword", "Blank Codeword"),
    ),
    Layout(
        "1.3 to 1.9", (1, 3), f"{_STRINGS} (bytes in some parquet files)", False, False, 13, BY_MASK_VALUE,
        (".parquet", ".csv.gz"), _ALL_MATRICES, "morphology_focus.ome.tif",
        ("unassigned_codeword_counts", "deprecated_codeword_counts"), _FOUR,
    ),
    Layout(
        "2.0, first builds", (2, 0), _STRINGS, True, False, 25, BY_POLYGON_SET, (".parquet", ".csv.gz"), _ALL_MATRICES,
        "morphology_focus/morphology_focus_0000.ome.tif", ("nucleus_count", "segmentation_method"), _FOUR,
    ),
    Layout(
        "2.0", (2, 0), _STRINGS, True, True, 25, BY_POLYGON_SET, (".parquet", ".csv.gz"), _ALL_MATRICES,
        "morphology_focus/morphology_focus_0000.ome.tif", ("nucleus_count", "segmentation_method"), _FOUR,
    ),
    Layout(
        "3.0 to 3.x", (3, 0), _STRINGS, True, True, 25, BY_POLYGON_SET, (".parquet", ".csv.gz"), _ALL_MATRICES,
        "morphology_focus/morphology_focus_0000.ome.tif", ("genomic_control_counts",), (*_FOUR, "Genomic Control"),
    ),
    Layout(
        "4.0 to 4.x", (4, 0), _STRINGS, True, True, 25, BY_POLYGON_SET, (".parquet",), _ALL_MATRICES,
        "morphology_focus/ch0000_dapi.ome.tif", (), (*_FOUR, "Genomic Control"),
    ),
)  # fmt: skip
NEWEST = 4  # the last major version that stqp was tried on


@dataclass(frozen=True)
class BundleFile:
    """A file of the output folder.

    Attributes
    ----------
    names
        Its names, the preferred first; a trailing slash means a folder.
    holds
        What stqp reads from it.
    without
        What happens without it; None where an import cannot do without.
    """

    names: tuple[str, ...]
    holds: str
    without: str | None = None


def _table(stem: str) -> tuple[str, ...]:
    return tuple(stem + suffix for suffix in TABLE_SUFFIXES)


FILES = (
    BundleFile((EXPERIMENT,), "version, pixel size, name of the region"),
    BundleFile(_table(CELLS), "ids, centres and areas of the cells"),
    BundleFile(_table(NUCLEUS_BOUNDARIES), "outlines of the nuclei"),
    BundleFile(_table(CELL_BOUNDARIES), "outlines of the cells", "cells have no outlines"),
    BundleFile((MATRIX_H5, f"{MATRIX}/", MATRIX_ZARR), "counts by cell and gene"),
    BundleFile((CELLS_ZARR,), "masks of the nuclei", "nuclei come from the polygons only"),
    BundleFile(
        tuple(pattern for _, pattern in MORPHOLOGY),
        "the DAPI image",
        "nothing to hold the alignment against but the H&E",
    ),
)
PARTIAL = {
    EXPERIMENT: "version and pixel size are not known",
    CELLS: "cells have neither centres nor areas",
    NUCLEUS_BOUNDARIES: "no outlines of nuclei",
    MATRIX: "no counts",
}


class XeniumVersion:
    """Version of the analysis that made the tables; callers ask it questions and never compare numbers.

    Parameters
    ----------
    experiment
        Content of ``experiment.xenium``.

    Attributes
    ----------
    text : str
        ``xenium-2.0.0.10``; ``unknown`` where the file says nothing.
    numbers : tuple of int
        Empty where unknown.
    """

    def __init__(self, experiment: Mapping[str, Any]):
        ranger = experiment.get("xenium_ranger")  # a resegmentation rewrites the tables in its own version
        override = ranger.get("version") if isinstance(ranger, Mapping) else None
        self.text = str(override or experiment.get("analysis_sw_version") or "unknown")
        match = re.search(r"\d+(\.\d+)*", self.text)
        self.numbers = tuple(int(part) for part in match.group().split(".")) if match else ()

    @property
    def newer_than_known(self) -> bool:
        """Whether stqp was never tried on such a folder."""
        return self.numbers[:1] > (NEWEST,)

    @property
    def one_nucleus_each(self) -> bool:
        """Whether every cell has exactly one nucleus by construction."""
        return bool(self.numbers) and not self._layout.several_nuclei

    @property
    def _layout(self) -> Layout:
        return next((layout for layout in reversed(LAYOUTS) if self.numbers >= layout.first), LAYOUTS[0])


def feature_type(text: str) -> str:
    """Name of a feature type, whatever its file calls it; an unknown one stays as it is."""
    return _CANONICAL.get(text.strip().lower().replace("_", " "), text)


def versions_document() -> str:
    """Versions and files as the page of the documentation."""
    lines = [
        "# Xenium output folders that stqp reads",
        "",
        "Made from the constants in `stqp/sources/xenium_versions.py` by `python docs/make_xenium_versions.py`.",
        "",
        "## Versions",
        "",
        "The version is `analysis_sw_version` of `experiment.xenium`, or that of Xenium Ranger where the run was",
        f"segmented or relabelled again. A version newer than {NEWEST}.x warns and is read as the newest known one.",
        "",
    ]
    head = ["", *(layout.name for layout in LAYOUTS)]
    rows = [
        ["cell ids", *(layout.cell_ids for layout in LAYOUTS)],
        ["cells with no or several nuclei", *("yes" if layout.several_nuclei else "no" for layout in LAYOUTS)],
        ["`label_id` in the boundaries", *("yes" if layout.label_id else "no" for layout in LAYOUTS)],
        ["rows of an outline", *(_up_to(layout.ring) for layout in LAYOUTS)],
        ["mask to cell", *(f"`{layout.masks}`" for layout in LAYOUTS)],
        ["tables", *(_codes(layout.tables) for layout in LAYOUTS)],
        ["matrix", *(", ".join(layout.matrices) for layout in LAYOUTS)],
        ["DAPI image", *(f"`{layout.morphology}`" for layout in LAYOUTS)],
        ["new columns of `cells`", *(_codes(layout.columns) or "none" for layout in LAYOUTS)],
        ["control features", *(", ".join(layout.controls) for layout in LAYOUTS)],
    ]
    lines += _markdown(head, rows)
    lines += ["", "## Files", "", "Of several names the first that is there is read.", ""]
    lines += _markdown(
        ["file", "what is read", "without it"],
        [[_codes(file.names), file.holds, file.without or "no import"] for file in FILES],
    )
    lines += ["", "## Feature types", "", "Cells are typed on genes only. Controls are summed by type.", ""]
    lines += _markdown(
        ["feature type", "also called", "use"],
        [[kind, ", ".join(aliases), _use(kind)] for kind, aliases in FEATURE_TYPES.items()],
    )
    return "\n".join(lines) + "\n"


def _use(kind: str) -> str:
    if kind == GENE:
        return "counts"
    if kind == PROTEIN:
        return f'`obsm["protein"]`, divided by `{PROTEIN_SCALE}` of the h5'
    return "left out" if kind == AGGREGATE else "control"


def _up_to(rows: int) -> str:
    return f"up to {rows}"


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
