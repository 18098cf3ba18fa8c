"""Detections as an AnnotationStore, the SQLite file that TIAToolbox and its viewer open.

The layout is that of version 1.0.1 of `tiatoolbox.annotation.storage.SQLiteStore`: a row of ``annotations`` and
one of ``rtree`` for each nucleus. It is written in columns, without TIAToolbox.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import EnvironmentProblem
from stqp.inference.detections import Detections
from stqp.qupath.geo.text import dictionary, number_texts, object_texts, quoted
from stqp.taxonomy import UNKNOWN

_ROWS = 20_000  # at a time
_LEVEL = 1  # of compression; the 9 of TIAToolbox takes 3 times as long for files 4 % smaller
_LAYOUT = """
CREATE TABLE metadata (key TEXT UNIQUE, value TEXT);
CREATE VIRTUAL TABLE rtree USING rtree(id, min_x, max_x, min_y, max_y);
CREATE TABLE annotations(
    id INTEGER PRIMARY KEY, key TEXT UNIQUE, objtype TEXT, cx FLOAT NOT NULL, cy FLOAT NOT NULL,
    geometry BLOB, properties TEXT, area FLOAT NOT NULL
);
"""


def write_annotation_store(path: Path, found: Detections, ids: NDArray[np.object_]) -> None:
    """Write the store: atomically, some thousand nuclei at a time.

    Each annotation has the properties ``type`` (the class, which TIAToolbox's viewer colours by), ``prob`` of the
    class, and the measurements by their QuPath names. Of cells the outline is that of the nucleus.

    Parameters
    ----------
    path
        Replaced; ends in ``.db``.
    found
        The nuclei.
    ids : (n,)
        Their UUIDs.

    Raises
    ------
    EnvironmentProblem
        When the disk is full, or this Python's SQLite has no R*Trees.
    """
    with (
        files.replacing(path) as temporary,
        _sqlite_errors(path),
        # a connection's own context would only end the transaction
        contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection,
    ):
        connection.execute("PRAGMA journal_mode = OFF")  # the file is absent until it is whole
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(_LAYOUT)
        connection.execute("BEGIN")
        told = {"version": "1.0.1", "compression": "zlib", "compression_level": _LEVEL}
        connection.executemany(
            "INSERT INTO metadata VALUES (?, ?)", [(key, json.dumps(value)) for key, value in told.items()]
        )
        # neighbours in the slide are neighbours in the file, and the tree is built faster
        order = _along_curve(found.polygons.centroid())
        for start in range(0, len(found), _ROWS):
            _insert(connection, found, order[start : start + _ROWS], ids, start + 1)
        connection.execute("COMMIT")


@contextlib.contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            raise EnvironmentProblem(f"cannot write {path}: the disk is full or refuses ({text})") from error
        if "rtree" in text:
            raise EnvironmentProblem(
                f"cannot write {path}: the SQLite of this Python has no R*Trees, which an AnnotationStore needs"
            ) from error
        raise


def _insert(
    connection: sqlite3.Connection, found: Detections, chosen: NDArray[np.int64], ids: NDArray[np.object_], first: int
) -> None:
    import shapely

    part = found.polygons.take(chosen)
    centre, box = part.centroid(), part.bounds()
    rows = range(first, first + len(chosen))
    shapes = map(zlib.compress, shapely.to_wkb(part.to_shapely()).tolist(), repeat(_LEVEL))
    connection.executemany(
        "INSERT INTO annotations VALUES (?, ?, 'Polygon', ?, ?, ?, ?, ?)",
        zip(
            rows, ids[chosen].tolist(), centre[:, 0].tolist(), centre[:, 1].tolist(), shapes,
            _properties(found, chosen), part.area().tolist(), strict=True,
        ),
    )  # fmt: skip
    columns = (box[:, axis].tolist() for axis in (0, 2, 1, 3))
    connection.executemany("INSERT INTO rtree VALUES (?, ?, ?, ?, ?)", zip(rows, *columns, strict=True))


def _properties(found: Detections, chosen: NDArray[np.int64]) -> list[str]:
    names = dictionary([quoted(name) for name in (UNKNOWN, *found.classes)], found.class_ids[chosen])
    columns = [("type", names), ("prob", number_texts(np.round(found.probability[chosen], 4)))]
    columns += [(name, number_texts(np.round(v[chosen], 4))) for name, v in found.measurements.items()]
    texts = object_texts(columns)
    assert texts is not None
    return list(texts.to_pylist())


def _along_curve(xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order of points along a curve that stays near where it is (Morton 1966)."""
    if not len(xy):
        return np.empty(0, np.int64)
    low = xy.min(axis=0)
    span = max(float((xy - low).max()), 1.0)
    cells = ((xy - low) / span * 0xFFFF).astype(np.uint64)
    code = np.zeros(len(xy), np.uint64)
    for axis in (0, 1):
        bits = cells[:, axis]
        for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
            bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
        code |= bits << np.uint64(axis)
    return np.argsort(code, kind="stable")
