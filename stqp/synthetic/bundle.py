"""Write made-up cells the way that each version of Xenium Onboard Analysis writes its output folder."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.polygons import Polygons
from stqp.synthetic.counts import Counts
from stqp.synthetic.layout import LUMEN, OUTSIDE, Nuclei, Tissue
from stqp.synthetic.versions import Made
from stqp.synthetic.zarr_files import id_numbers, write_cells, write_features

EXPANSION_UM = 3.0
CLUSTER_PARTNER_UM = 4.0


@dataclass(frozen=True)
class Cells:
    """The cells of the run.

    Attributes
    ----------
    ids : str (c,)
        As the instrument writes them.
    numbers : uint32 (c,)
        The numbers in the ids.
    of_nucleus : int64 (n,)
        Cell of each nucleus; -1 outside of the run.
    position : int64 (n,)
        0 for the first nucleus of its cell, 1 for the second.
    kind : str (c,)
        Visual class of its nuclei; of a cell without nuclei, what it would have.
    size : float64 (c,)
        Area, relative to the mean of its kind.
    polygons : Polygons
        Outlines of the cells, in µm of the tissue.
    """

    ids: NDArray[np.str_]
    numbers: NDArray[np.uint32]
    of_nucleus: NDArray[np.int64]
    position: NDArray[np.int64]
    kind: NDArray[np.str_]
    size: NDArray[np.float64]
    polygons: Polygons


def cell_id(number: NDArray[np.uint32]) -> NDArray[np.str_]:
    """Ids of the instrument: 32 bits as eight letters a to p, and the segmentation's number."""
    nibbles = (number[:, None] >> np.arange(28, -1, -4, dtype=np.uint32)) & 15
    letters = (nibbles + ord("a")).astype(np.uint32)
    return np.char.add(letters.view("<U8").ravel(), "-1")


def make_cells(
    rng: np.random.Generator,
    nuclei: Nuclei,
    tissue: Tissue,
    covered: float = 1.0,
    several_nuclei: bool = True,
    integers: bool = False,
) -> Cells:
    """Put the nuclei into cells: most alone, a few in pairs, and some cells with none (where `several_nuclei`)."""
    import shapely
    from scipy.spatial import cKDTree

    n = len(nuclei.kind)
    inside = nuclei.polygons.bounds()[:, 2] < covered * tissue.width_um - (0 if covered == 1 else 1)
    geometry = nuclei.polygons.to_shapely()
    # neighbours of one large class fuse into a cell of two nuclei
    large = np.flatnonzero(inside & (nuclei.kind == "Neoplastic"))
    pairs = (
        cKDTree(nuclei.center[large]).query_pairs(16.0, output_type="ndarray") if len(large) else np.empty((0, 2), int)
    )
    pairs = large[pairs][
        shapely.distance(geometry[large[pairs[:, 0]]], geometry[large[pairs[:, 1]]]) < CLUSTER_PARTNER_UM
    ]
    pairs = rng.permutation(pairs)[: max(1, len(large) // 12) if several_nuclei else 0]
    partner = np.full(n, -1)
    for a, b in pairs:
        if partner[a] < 0 and partner[b] < 0:
            partner[max(a, b)], partner[min(a, b)] = min(a, b), n  # n: leads a pair
    leads = inside & ((partner < 0) | (partner == n))
    lead = np.flatnonzero(leads)
    of_nucleus = np.full(n, -1, np.int64)
    of_nucleus[lead] = np.arange(len(lead))
    second = np.flatnonzero(inside & (partner >= 0) & (partner < n))
    of_nucleus[second] = of_nucleus[partner[second]]
    position = np.zeros(n, np.int64)
    position[second] = 1
    shapes = shapely.buffer(geometry[lead], EXPANSION_UM, quad_segs=3)
    if len(second):
        both = shapely.union(geometry[second], geometry[partner[second]])
        shapes[of_nucleus[second]] = shapely.buffer(shapely.convex_hull(both), EXPANSION_UM, quad_segs=3)
    # cells cut above or below their nucleus
    spots = rng.random((len(lead) // 8 + 40, 2)) * [covered * tissue.width_um, tissue.height_um]
    region = tissue.at(tissue.region, spots)
    spots = spots[(region != OUTSIDE) & (region != LUMEN)]
    free = cKDTree(nuclei.center).query(spots)[0] > 9 if n else np.ones(len(spots), bool)
    spots = spots[free][: max(3, len(lead) // 60) if several_nuclei else 0]
    empty = shapely.buffer(shapely.points(spots), rng.uniform(3, 5, len(spots)), quad_segs=4)
    frame = shapely.box(0, 0, covered * tissue.width_um, tissue.height_um)
    polygons = Polygons.from_shapely(shapely.intersection(np.concatenate([shapes, empty]), frame))
    kind = np.concatenate([nuclei.kind[lead], np.full(len(spots), "Connective", nuclei.kind.dtype)])
    area = polygons.area()
    size = np.ones(len(kind))
    for k in np.unique(kind):
        size[kind == k] = area[kind == k] / area[kind == k].mean()
    numbers = rng.choice(2**32 - 1, len(kind), replace=False).astype(np.uint32)
    if integers:
        numbers = np.arange(1, len(kind) + 1, dtype=np.uint32)
        return Cells(numbers.astype(str), numbers, of_nucleus, position, kind, size, polygons)
    return Cells(cell_id(numbers), numbers, of_nucleus, position, kind, size, polygons)


def write_bundle(
    outs: Path,
    nuclei: Polygons,
    cells: Cells,
    of: NDArray[np.int64],
    counts: Counts,
    tissue_to_um: NDArray[np.float64],
    pixel_size: float,
    size: tuple[int, int],
    name: str,
    made: Made,
) -> None:
    """Write the folder.

    Parameters
    ----------
    outs
        The folder.
    nuclei : Polygons
        Of the run, in µm of the tissue; those of a cell follow each other.
    cells
        The cells.
    of : int64 (n,)
        Cell of each nucleus.
    counts
        Of the cells.
    tissue_to_um : (3, 3)
        From µm of the tissue to the run's.
    pixel_size
        µm per pixel of the morphology image.
    size
        Width and height of the morphology image.
    name
        Of the region.
    made
        The version.
    """
    nucleus, cell = nuclei.transform(tissue_to_um), cells.polygons.transform(tissue_to_um)
    text = made.ids != "integers"
    label = made.layout.label_id
    tables = {
        "cells": (cells.ids, _cells_table(cells, cell, nucleus, of, counts, made)),
        "nucleus_boundaries": (cells.ids[of], _boundaries(nucleus, label)),
        "cell_boundaries": (cells.ids, _boundaries(cell, label)),
    }
    for stem, (ids, columns) in tables.items():
        owner = columns.pop("owner", slice(None))
        for suffix in made.tables:
            write_table(outs / (stem + suffix), {"cell_id": _ids(ids[owner], made.ids, suffix), **columns})
    write_matrix(outs / "cell_feature_matrix.h5", cells.ids, counts)
    write_mtx(outs / "cell_feature_matrix", cells.ids, counts)
    numbers = id_numbers(cells.numbers, text)
    write_features(outs / "cell_feature_matrix.zarr.zip", numbers, counts)
    mask = write_cells(outs / "cells.zarr.zip", made.layout, numbers, nucleus, cell, of, size, pixel_size)
    write_dapi(outs / made.layout.morphology, mask, pixel_size)
    files.write_json(
        outs / "experiment.xenium",
        {
            "major_version": 5,
            "minor_version": 2,
            "patch_version": 0,
            "run_name": "made up by stqp",
            "region_name": name,
            "panel_name": "made up",
            "num_cells": len(cells.ids),
            "pixel_size": pixel_size,
            "z_step_size": 3.0,
            "analysis_sw_version": made.software,
            "images": {},
            "xenium_explorer_files": {},
            **made.experiment,
        },
    )


def _cells_table(
    cells: Cells, cell: Polygons, nucleus: Polygons, of: NDArray[np.int64], counts: Counts, made: Made
) -> dict[str, Any]:
    """Columns of the cells table but for the ids."""
    c = len(cells.ids)
    center = cell.centroid()
    nucleus_count = np.bincount(of, minlength=c)
    nucleus_area = np.bincount(of, nucleus.area(), c)
    feature_type = np.array(counts.feature_types)

    def total(*kinds: str) -> NDArray[np.int64]:
        return np.asarray(counts.matrix[:, np.isin(feature_type, kinds).nonzero()[0]].sum(axis=1)).ravel().astype(int)

    columns: dict[str, Any] = {"x_centroid": center[:, 0], "y_centroid": center[:, 1]}
    columns["transcript_counts"] = total("Gene Expression")
    columns["control_probe_counts"] = total("Negative Control Probe")
    if "Genomic Control" in made.layout.controls:
        columns["genomic_control_counts"] = total("Genomic Control")
    columns["control_codeword_counts"] = total("Negative Control Codeword")
    if made.layout.first >= (1, 3):
        columns["unassigned_codeword_counts"] = total("Unassigned Codeword")
        columns["deprecated_codeword_counts"] = total("Deprecated Codeword")
    columns["total_counts"] = total(*(set(counts.feature_types) - {"Protein Expression"}))
    columns["cell_area"] = cell.area()
    columns["nucleus_area"] = np.where(nucleus_count > 0, nucleus_area, np.nan)
    if made.layout.several_nuclei:
        columns["nucleus_count"] = nucleus_count.astype(np.float64)
        columns["segmentation_method"] = np.full(c, f"Segmented by nucleus expansion of {EXPANSION_UM}µm")
    return columns


def _boundaries(polygons: Polygons, label_id: bool) -> dict[str, Any]:
    """Columns of vertices, each ring closed, with the row of its cell's id; `label_id` from 1."""
    lengths = np.diff(polygons.ring_offsets)
    owner = np.repeat(polygons.ring_owner, lengths + 1)
    xy = np.insert(polygons.coords, polygons.ring_offsets[1:], polygons.coords[polygons.ring_offsets[:-1]], axis=0)
    columns = {"owner": owner, "vertex_x": xy[:, 0].astype(np.float32), "vertex_y": xy[:, 1].astype(np.float32)}
    if label_id:
        columns["label_id"] = (owner + 1).astype(np.uint32)
    return columns


def _ids(ids: NDArray[np.str_], kind: str, suffix: str) -> Any:
    """Ids as a column of a table."""
    import pyarrow as pa

    if kind == "integers":
        return pa.array(ids.astype(np.int32))
    return pa.array(ids).cast(pa.binary()) if kind == "bytes" and suffix == ".parquet" else pa.array(ids)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """Write a table atomically, as parquet or compressed csv."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    table = pa.table(columns)
    with files.replacing(path) as temporary:
        if path.suffix == ".parquet":
            pq.write_table(table, temporary)
        else:
            with gzip.GzipFile(temporary, "wb", mtime=0) as file:
                pyarrow.csv.write_csv(table, file)


def write_dapi(path: Path, mask: NDArray[np.int32], pixel_size: float) -> None:
    """Write an image of the DAPI stain: nuclei bright, a little out of focus."""
    import cv2
    import tifffile

    image = cv2.GaussianBlur((mask > 0).astype(np.uint16) * 3000 + 100, (0, 0), 1.5)
    metadata = {"axes": "YX", "Channel": {"Name": "DAPI"}, "PhysicalSizeX": pixel_size, "PhysicalSizeXUnit": "µm"}
    metadata |= {"PhysicalSizeY": pixel_size, "PhysicalSizeYUnit": "µm"}
    with files.replacing(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as tif:
        tif.write(image, tile=(512, 512), compression="zlib", metadata=metadata, maxworkers=1)


def write_mtx(folder: Path, ids: NDArray[np.str_], counts: Counts) -> None:
    """Write counts as 10x's folder: features by cells in the Matrix Market format, and the names of both."""
    import io

    from scipy.io import mmwrite

    text = io.BytesIO()
    mmwrite(text, counts.matrix.T.tocoo(), field="integer", symmetry="general")
    features = zip(counts.ids, counts.names, counts.feature_types, strict=True)
    content = {
        "matrix.mtx.gz": text.getvalue(),
        "barcodes.tsv.gz": "".join(f"{i}\n" for i in ids).encode(),
        "features.tsv.gz": "".join("\t".join(row) + "\n" for row in features).encode(),
    }
    for name, plain in content.items():
        files.write_bytes(folder / name, gzip.compress(plain, 3, mtime=0))


def write_matrix(path: Path, ids: NDArray[np.str_], counts: Counts) -> None:
    """Write counts as 10x's h5: features by cells, compressed by column (cell)."""
    import h5py

    csr = counts.matrix  # (cells, features) by row is (features, cells) by column
    with files.replacing(path) as temporary, h5py.File(temporary, "w") as file:
        if counts.protein_scale is not None:
            file.attrs["protein_scaling_factor"] = counts.protein_scale
        group = file.create_group("matrix")
        group["barcodes"] = np.char.encode(ids)
        group["data"] = csr.data.astype(np.int32)
        group["indices"] = csr.indices.astype(np.int64)
        group["indptr"] = csr.indptr.astype(np.int64)
        group["shape"] = np.array([csr.shape[1], csr.shape[0]], np.int32)
        features = group.create_group("features")
        features["_all_tag_keys"] = np.array([b"genome"])
        features["feature_type"] = np.char.encode(counts.feature_types)
        features["genome"] = np.full(len(counts.ids), b"Unknown")
        features["id"] = np.char.encode(counts.ids)
        features["name"] = np.char.encode(counts.names)
