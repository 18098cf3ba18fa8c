"""Write made-up cells the way Xenium Onboard Analysis 2.0 writes its output folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.polygons import Polygons
from stqp.synthetic.counts import Counts
from stqp.synthetic.layout import LUMEN, OUTSIDE, Nuclei, Tissue

EXPANSION_UM = 3.0
CLUSTER_PARTNER_UM = 4.0


@dataclass(frozen=True)
class Cells:
    """The cells of the run.

    Attributes
    ----------
    ids : str (c,)
        As the instrument writes them.
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


def make_cells(rng: np.random.Generator, nuclei: Nuclei, tissue: Tissue, covered: float = 1.0) -> Cells:
    """Put the nuclei into cells: most alone, a few in pairs; and some cells with none."""
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
    pairs = rng.permutation(pairs)[: max(1, len(large) // 12)]
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
    spots = spots[free][: max(3, len(lead) // 60)]
    empty = shapely.buffer(shapely.points(spots), rng.uniform(3, 5, len(spots)), quad_segs=4)
    frame = shapely.box(0, 0, covered * tissue.width_um, tissue.height_um)
    polygons = Polygons.from_shapely(shapely.intersection(np.concatenate([shapes, empty]), frame))
    kind = np.concatenate([nuclei.kind[lead], np.full(len(spots), "Connective", nuclei.kind.dtype)])
    area = polygons.area()
    size = np.ones(len(kind))
    for k in np.unique(kind):
        size[kind == k] = area[kind == k] / area[kind == k].mean()
    numbers = rng.choice(2**32 - 1, len(kind), replace=False).astype(np.uint32)
    return Cells(cell_id(numbers), of_nucleus, position, kind, size, polygons)


def write_bundle(
    outs: Path,
    nuclei: Nuclei,
    cells: Cells,
    counts: Counts,
    he_to_um: NDArray[np.float64],
    mpp: float,
    pixel_size: float,
    name: str,
) -> None:
    """Write the folder; tissue µm become the run's µm by way of H&E pixels."""
    matrix = he_to_um @ np.diag([1 / mpp, 1 / mpp, 1.0])
    own = np.flatnonzero(cells.of_nucleus >= 0)
    own = own[np.lexsort((cells.position[own], cells.of_nucleus[own]))]  # nuclei of a cell follow each other
    nucleus = nuclei.polygons.take(own).transform(matrix)
    cell = cells.polygons.transform(matrix)
    of = cells.of_nucleus[own]
    c = len(cells.ids)
    center = cell.centroid()
    nucleus_count = np.bincount(of, minlength=c)
    nucleus_area = np.bincount(of, nucleus.area(), c)
    import pyarrow as pa

    feature_type = np.array(counts.feature_types)

    def total(kind: str) -> NDArray[np.int64]:
        return np.asarray(counts.matrix[:, np.flatnonzero(feature_type == kind)].sum(axis=1)).ravel().astype(np.int64)

    table = pa.table(
        {
            "cell_id": cells.ids,
            "x_centroid": center[:, 0],
            "y_centroid": center[:, 1],
            "transcript_counts": total("Gene Expression"),
            "control_probe_counts": total("Negative Control Probe"),
            "control_codeword_counts": total("Negative Control Codeword"),
            "unassigned_codeword_counts": total("Unassigned Codeword"),
            "deprecated_codeword_counts": np.zeros(c, np.int64),
            "total_counts": np.asarray(counts.matrix.sum(axis=1)).ravel().astype(np.int64),
            "cell_area": cell.area(),
            "nucleus_area": np.where(nucleus_count > 0, nucleus_area, np.nan),
            "nucleus_count": nucleus_count.astype(np.float64),
            "segmentation_method": np.full(c, f"Segmented by nucleus expansion of {EXPANSION_UM}µm"),
        }
    )
    write_parquet(outs / "cells.parquet", table)
    write_parquet(outs / "nucleus_boundaries.parquet", _boundaries(nucleus, cells.ids[of]))
    write_parquet(outs / "cell_boundaries.parquet", _boundaries(cell, cells.ids))
    write_matrix(outs / "cell_feature_matrix.h5", cells.ids, counts)
    files.write_json(
        outs / "experiment.xenium",
        {
            "major_version": 5,
            "minor_version": 2,
            "patch_version": 0,
            "run_name": "made up by stqp",
            "region_name": name,
            "panel_name": "made up",
            "num_cells": c,
            "pixel_size": pixel_size,
            "z_step_size": 3.0,
            "analysis_sw_version": "xenium-2.0.0.10",
            "images": {},
            "xenium_explorer_files": {},
        },
    )


def _boundaries(polygons: Polygons, ids: NDArray[np.str_]) -> Any:
    """Table of vertices, each ring closed, `label_id` from 1."""
    import pyarrow as pa

    lengths = np.diff(polygons.ring_offsets)
    owner = np.repeat(polygons.ring_owner, lengths + 1)
    stops = np.cumsum(lengths + 1)
    xy = np.insert(polygons.coords, polygons.ring_offsets[1:], polygons.coords[polygons.ring_offsets[:-1]], axis=0)
    assert len(xy) == stops[-1]
    return pa.table(
        {
            "cell_id": ids[owner],
            "vertex_x": xy[:, 0].astype(np.float32),
            "vertex_y": xy[:, 1].astype(np.float32),
            "label_id": (owner + 1).astype(np.uint32),
        }
    )


def write_parquet(path: Path, table: Any) -> None:
    """Write a table atomically."""
    import pyarrow.parquet as pq

    with files.replacing(path) as temporary:
        pq.write_table(table, temporary)


def write_matrix(path: Path, ids: NDArray[np.str_], counts: Counts) -> None:
    """Write counts as 10x's h5: features by cells, compressed by column (cell)."""
    import h5py

    csr = counts.matrix  # (cells, features) by row is (features, cells) by column
    with files.replacing(path) as temporary, h5py.File(temporary, "w") as file:
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
