"""Nuclei a second of what `stqp predict` writes, beside its peers on the same nuclei in the same run.

    python tests/benchmarks/bench_outputs.py [nuclei]

Times are those of one processor. The peers are TIAToolbox's `SQLiteStore.append_many`, geopandas' `to_parquet`,
shapely one nucleus at a time for cells, and the same loop with OpenCV for the overlay.
"""

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import geopandas
import numpy as np
import shapely
import tifffile
from perfect_maps import CLASSES, grid_of_nuclei

from stqp.inference.annotation_store import write_annotation_store
from stqp.inference.cells import expand
from stqp.inference.class_overlay import write_overlay
from stqp.inference.detections import Detections
from stqp.inference.table import write_table
from stqp.inference.writing import to_objects
from stqp.polygonise import polygonise
from stqp.polygons import Polygons
from stqp.taxonomy import color_of

SIDE, COUNT = 2000, 50
PEER = 5000  # nuclei that the peers are given; they take as long for each


def nuclei(n: int) -> tuple[Detections, tuple[int, int]]:
    """`n` nuclei, or a few more, in a square."""
    tile, _ = polygonise(grid_of_nuclei(SIDE, COUNT))
    across = int(np.ceil(np.sqrt(n / len(tile))))
    places = [(x, y) for y in range(across) for x in range(across)][: -(-n // len(tile))]
    polygons = Polygons.concatenate(tile.shift(SIDE * x, SIDE * y) for x, y in places)
    prob = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES) + 1), len(polygons))
    return Detections(polygons, prob, CLASSES, 0.25), (across * SIDE, across * SIDE)


def rate(do: Callable[[], Any], n: int) -> float:
    began = time.process_time()
    do()
    return n / (time.process_time() - began)


def tiatoolbox_store(path: Path, found: Detections) -> None:
    from tiatoolbox.annotation.storage import Annotation, SQLiteStore

    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        options = [o for (o,) in sqlite3.connect(":memory:").execute("pragma compile_options")]
        SQLiteStore.compile_options = staticmethod(lambda: options)
    shapes, names, columns = found.polygons.to_shapely(), found.class_names, found.measurements
    probability = found.probability
    store = SQLiteStore(path)
    store.append_many(
        [
            Annotation(shapes[i], {"type": names[i], "prob": probability[i], **{k: v[i] for k, v in columns.items()}})
            for i in range(len(found))
        ]
    )
    store.close()


def geopandas_table(path: Path, found: Detections) -> None:
    frame = geopandas.GeoDataFrame(
        {"class": found.class_names, "probability": found.probability, **found.measurements},
        geometry=found.polygons.to_shapely(),
    )
    frame["x"], frame["y"] = frame.geometry.centroid.x, frame.geometry.centroid.y
    frame.to_parquet(path)


def one_by_one(polygons: Polygons, distance: float) -> list[Any]:
    """Each nucleus grown, and cut where a neighbour is nearer, as the field's scripts do."""
    shapes = geopandas.GeoSeries(polygons.to_shapely())
    grown = [shape.buffer(distance) for shape in shapes]
    tree = shapely.STRtree(grown)
    points = [shapely.get_coordinates(shapely.segmentize(shape, 2.0)) for shape in shapes]
    result = []
    for i, cell in enumerate(grown):
        near = [j for j in tree.query(cell) if j != i]
        if near:
            every = np.concatenate([points[i], *(points[j] for j in near)])
            cells = shapely.get_parts(shapely.voronoi_polygons(shapely.MultiPoint(every), extend_to=cell))
            own = shapely.STRtree(cells).query(shapely.points(points[i]), predicate="intersects")[1]
            cell = cell.intersection(shapely.union_all(cells[np.unique(own)]))
        result.append(cell)
    return result


def opencv_overlay(path: Path, found: Detections, size: tuple[int, int], mpp: float) -> None:
    """The whole picture in memory, a nucleus at a time."""
    step = mpp / found.mpp
    image = np.zeros((int(size[1] / step), int(size[0] / step), 4), np.uint8)
    points = np.rint(found.polygons.coords / step).astype(np.int32)
    offsets = found.polygons.ring_offsets
    for i, name in enumerate(found.class_names):
        cv2.fillPoly(image, [points[offsets[i] : offsets[i + 1]]], (*color_of(name), 255))
    levels = [image]
    while max(levels[-1].shape) > 512:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level, pixels in enumerate(levels):
            writer.write(
                pixels, tile=(512, 512), compression="deflate", photometric="rgb", extrasamples=["unassalpha"],
                subifds=len(levels) - 1 if level == 0 else None, subfiletype=int(level > 0), maxworkers=1,
            )  # fmt: skip


def main() -> None:
    cv2.setNumThreads(1)
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    found, size = nuclei(n)
    few = replace(found.take(np.arange(PEER)))
    corner = tuple(int(v) for v in np.ceil(few.polygons.bounds()[:, 2:].max(axis=0)))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.process_time()
        measured = found.measurements
        print(f"{len(found):,} nuclei, {len(measured)} measurements: {time.process_time() - began:.2f} s")
        few.measurements  # noqa: B018  (measured before, as ours are)
        ids = to_objects(found, "s", "m").ids
        rows.append((
            "AnnotationStore", rate(lambda: write_annotation_store(folder / "a.db", found, ids), len(found)),
            "TIAToolbox append_many", rate(lambda: tiatoolbox_store(folder / "b.db", few), PEER),
        ))  # fmt: skip
        rows.append((
            "table", rate(lambda: write_table(folder / "a.parquet", found, ids, "s", "m", {}), len(found)),
            "geopandas to_parquet", rate(lambda: geopandas_table(folder / "b.parquet", found), len(found)),
        ))  # fmt: skip
        rows.append((
            "cells, 5 µm", rate(lambda: expand(found.polygons, 20, 1.0, size), len(found)),
            "shapely, one by one", rate(lambda: one_by_one(few.polygons, 20), PEER),
        ))  # fmt: skip
        rows.append((
            "overlay, 0.5 µm/px", rate(lambda: write_overlay(folder / "a.ome.tif", found, size, {}), len(found)),
            "OpenCV, one by one", rate(lambda: opencv_overlay(folder / "b.tif", few, corner, 0.5), PEER),
        ))  # fmt: skip
        print(f"bytes a nucleus: store {(folder / 'a.db').stat().st_size / len(found):.0f} "
              f"(TIAToolbox {(folder / 'b.db').stat().st_size / PEER:.0f}), "
              f"table {(folder / 'a.parquet').stat().st_size / len(found):.0f}, "
              f"overlay {(folder / 'a.ome.tif').stat().st_size / len(found):.0f}")  # fmt: skip
    for what, ours, peer, theirs in rows:
        print(f"{what:<20}{ours:>10,.0f} nuclei/s   {peer:<24}{theirs:>10,.0f} nuclei/s   ratio {ours / theirs:.1f}")


if __name__ == "__main__":
    main()
