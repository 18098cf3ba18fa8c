"""Detections as a parquet table, a row a nucleus, with outlines that GeoParquet's readers read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.inference.detections import Detections
from stqp.polygons import Polygons
from stqp.taxonomy import RGB, UNKNOWN

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY = b"stqp"
BOX = ("box_x0", "box_y0", "box_x1", "box_y1")
_ROWS = 100_000  # of a row group


def write_table(
    path: Path, found: Detections, ids: NDArray[np.object_], image: str, run_name: str, colors: Mapping[str, RGB]
) -> None:
    """Write the table: atomically, a row group at a time.

    Columns: ``image``, ``id``, ``kind``, ``class`` (`UNKNOWN` where there is none), ``probability`` of the class,
    ``centroid_x``, ``centroid_y`` and the box ``box_x0`` ... ``box_y1`` in full-resolution px, ``centroid_x_um``,
    ``centroid_y_um``, the measurements by their QuPath names, and the outline in ``geometry`` (WKB); of cells the
    nucleus in ``nucleus``.

    Parameters
    ----------
    path
        Replaced.
    found
        The nuclei.
    ids : (n,)
        Their UUIDs.
    image, run_name
        Names of the image and of the model.
    colors
        Of the classes.
    """
    import pyarrow.parquet as pq

    schema: pa.Schema | None = None
    with files.replacing(path) as temporary:
        writer: Any = None
        try:
            for start in range(0, max(len(found), 1), _ROWS):
                chosen = np.arange(start, min(start + _ROWS, len(found)))
                table = _rows(found, chosen, ids, image)
                if writer is None:
                    schema = table.schema.with_metadata(_metadata(found, image, run_name, colors))
                    writer = pq.ParquetWriter(temporary, schema, compression="zstd")
                writer.write_table(table.cast(schema))
            writer.close()
        except BaseException:
            if writer is not None:
                _give_up(writer)
            raise


def _give_up(writer: Any) -> None:
    import contextlib

    with contextlib.suppress(Exception):  # the disk that refused the rows refuses the end of the file too
        writer.close()


def _rows(found: Detections, chosen: NDArray[np.int64], ids: NDArray[np.object_], image: str) -> pa.Table:
    import pyarrow as pa

    nuclei = found.polygons.take(chosen)
    outlines = nuclei if found.cells is None else found.cells.take(chosen)
    centre, box = nuclei.centroid(), nuclei.bounds()
    names = pa.array([UNKNOWN, *found.classes], pa.string())
    columns: dict[str, Any] = {
        "image": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(chosen), np.int32)), pa.array([image])),
        "id": pa.array(ids[chosen], pa.string()),
        "kind": pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(len(chosen), np.int32)), pa.array(["detection" if found.cells is None else "cell"])
        ),
        "class": pa.DictionaryArray.from_arrays(pa.array(found.class_ids[chosen].astype(np.int32)), names),
        "probability": pa.array(found.probability[chosen], from_pandas=True),
        "centroid_x": centre[:, 0],
        "centroid_y": centre[:, 1],
        "centroid_x_um": centre[:, 0] * found.mpp,
        "centroid_y_um": centre[:, 1] * found.mpp,
        **{name: box[:, axis] for axis, name in enumerate(BOX)},
        **{name: pa.array(v[chosen], from_pandas=True) for name, v in found.measurements.items()},
        "geometry": _wkb(outlines),
    }
    if found.cells is not None:
        columns["nucleus"] = _wkb(nuclei)
    return pa.table(columns)


def _wkb(polygons: Polygons) -> pa.Array:
    import pyarrow as pa
    import shapely

    return pa.array(shapely.to_wkb(polygons.to_shapely()), pa.binary())


def _metadata(found: Detections, image: str, run_name: str, colors: Mapping[str, RGB]) -> dict[bytes, bytes]:
    outlines = ["geometry"] if found.cells is None else ["geometry", "nucleus"]
    geo = {
        "version": "1.0.0",
        "primary_column": "geometry",
        "columns": {name: {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None} for name in outlines},
    }
    own = {
        "image": image,
        "model": run_name,
        "mpp": found.mpp,
        "classes": [*found.classes],
        "colors": {name: [*color] for name, color in colors.items()},
    }
    return {
        b"geo": json.dumps(geo).encode(),
        METADATA_KEY: json.dumps(own, ensure_ascii=False).encode(),
    }
