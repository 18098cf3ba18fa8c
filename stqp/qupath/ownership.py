"""Which objects stqp wrote, in which run, and what a person has changed since.

Every object that stqp writes notes its source, its run, and what it looked like. A second run replaces
the objects of its source and no others; training sees corrections.
"""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.objects import Mask, Objects, PathObjects, uuid_texts

SOURCE_KEY = "stqp.source"
RUN_KEY = "stqp.run"
WRITTEN_KEY = "stqp.written"
REVIEWED_KEY = "stqp.reviewed"  # set in QuPath, by the script that shows nuclei one by one
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "stqp.qupath.objects")


def stamp(objects: PathObjects, source: str, run: str) -> PathObjects:
    """Mark objects as stqp's own, just before they are written.

    Parameters
    ----------
    objects
        As they will be written.
    source
        What they come from, e.g. ``import-xenium:<sample>``; a later run of the same source replaces them.
    run
        Identifier of this run.

    Returns
    -------
    PathObjects
        The same with metadata ``stqp.source``, ``stqp.run`` and ``stqp.written``.
    """
    n = len(objects)
    several = np.flatnonzero(np.diff(objects.polygons.geom_offsets) > 1)
    if len(several):
        # rings that touch are joined on the way to the file, so that is what is noted
        joined = Polygons.from_shapely(objects.polygons.take(several).to_shapely())
        place = np.arange(n)
        place[several] = n + np.arange(len(several))
        objects = dataclasses.replace(objects, polygons=Polygons.concatenate([objects.polygons, joined]).take(place))
    marks = {
        SOURCE_KEY: np.full(n, source, object),
        RUN_KEY: np.full(n, run, object),
        WRITTEN_KEY: _written(objects),
    }
    return dataclasses.replace(objects, metadata={**objects.metadata, **marks})


def owned(objects: PathObjects, source: str | None = None) -> Mask:
    """Objects that stqp wrote, from one source or (None) any; bool (n,)."""
    column = objects.metadata.get(SOURCE_KEY)
    if column is None:
        return np.zeros(len(objects), bool)
    return np.array([value is not None and source in (None, value) for value in column.tolist()], dtype=bool)


def corrected(objects: PathObjects) -> Mask:
    """Objects of stqp's whose class or shape is no longer what was written; bool (n,)."""
    column = objects.metadata.get(WRITTEN_KEY)
    if column is None:
        return np.zeros(len(objects), bool)
    noted = np.flatnonzero([value is not None for value in column.tolist()])
    result = np.zeros(len(objects), bool)
    result[noted] = _written(objects.take(noted)) != column[noted]
    return result & owned(objects)


def settled(objects: PathObjects) -> Mask:
    """Objects of stqp's that a person corrected, or looked at and accepted; bool (n,)."""
    column = objects.metadata.get(REVIEWED_KEY)
    if column is None:
        return corrected(objects)
    return corrected(objects) | (owned(objects) & np.array([value is not None for value in column.tolist()], bool))


def written_classes(objects: PathObjects) -> Objects:
    """Class that stqp wrote for each object, None for no class and for objects of others; object (n,)."""
    result: Objects = np.full(len(objects), None, object)
    column = objects.metadata.get(WRITTEN_KEY)
    if column is not None:
        result[:] = [None if value is None else value.rsplit("|", 1)[0] or None for value in column.tolist()]
    return result


def replacement(present: PathObjects, new: PathObjects, source: str, keep_corrected: bool = True) -> tuple[Mask, Mask]:
    """Decide what a second run of a source takes out and what it adds.

    Parameters
    ----------
    present
        The objects of the image.
    new
        What the run would write.
    source
        Its source.
    keep_corrected
        Whether objects that a person corrected or accepted stay, in place of the new ones of the same id.

    Returns
    -------
    drop : bool (len(present),)
    add : bool (len(new),)
    """
    drop = owned(present, source)
    if keep_corrected:
        drop &= ~settled(present)
    kept = set(present.ids[~drop].tolist())
    return drop, np.array([i not in kept for i in new.ids.tolist()], dtype=bool)


def object_uuid(sample: str, cell: str, nucleus: str) -> str:
    """Id of a nucleus that is the same in every run."""
    return str(object_uuids(sample, [cell], [nucleus])[0])


def object_uuids(sample: str, cells: Sequence[Any] | NDArray[Any], nuclei: Sequence[Any] | NDArray[Any]) -> Objects:
    """Ids of many nuclei, as `object_uuid` gives them; object (n,).

    Parameters
    ----------
    sample
        Name of the sample.
    cells, nuclei : (n,)
        Identifiers within the sample; together unique.
    """
    # uuid5 by hand: the hash of the common beginning is made once
    begin = hashlib.sha1(_NAMESPACE.bytes + f"{sample}\x1f".encode(), usedforsecurity=False)
    digests = bytearray()
    for cell, nucleus in zip(_plain(cells), _plain(nuclei), strict=True):
        one = begin.copy()
        one.update(f"{cell}\x1f{nucleus}".encode())
        digests += one.digest()[:16]
    return uuid_texts(np.frombuffer(bytes(digests), np.uint8).reshape(-1, 16).copy(), version=5)


def _plain(values: Sequence[Any] | NDArray[Any]) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _written(objects: PathObjects) -> Objects:
    """Class text and checksum of the outline in the precision of the file."""
    polygons = objects.polygons
    # QuPath 0.6 and later round what is stored as WKB, shapes of several rings, to a hundredth of a pixel
    coords = polygons.coords
    several = (np.diff(polygons.geom_offsets) != 1)[polygons.vertex_owner]
    if several.any():
        coords = coords.copy()
        coords[several] = np.floor(coords[several] / 0.01 + 0.5) * 0.01
    starts = polygons.ring_offsets[polygons.geom_offsets]
    raw = _sorted_vertices(coords.astype("<f4"), starts).tobytes()
    ends = starts * 8
    result: Objects = np.empty(len(objects), dtype=object)
    result[:] = [
        f"{name or ''}|{zlib.crc32(raw[a:b]):08x}"
        for name, a, b in zip(objects.classes.tolist(), ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    ]
    return result


def _sorted_vertices(vertices: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Vertices by x, then y, within each polygon.

    Sorted, as the way through a geometry with holes may begin a ring elsewhere; 0.0 and -0.0 are one place.

    Parameters
    ----------
    vertices : (v, 2)
    starts : (n + 1,)
        Where each polygon starts.
    """
    bits = (vertices + np.float32(0)).view(np.uint32)
    # whole numbers in the order of the floats, x above y: one sort of 64 bits a polygon
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    keys = ascending[:, 0] << np.uint64(32) | ascending[:, 1]
    lengths = np.diff(starts)
    for length in np.unique(lengths[lengths > 1]):
        place = starts[:-1][lengths == length][:, None] + np.arange(length)
        keys[place] = np.sort(keys[place], axis=1)
    ascending = np.column_stack([keys >> np.uint64(32), keys & np.uint64(0xFFFFFFFF)]).astype(np.uint32)
    bits = np.where(ascending >> 31, ascending & np.uint32(0x7FFFFFFF), ~ascending)
    return bits.view(np.float32).astype("<f4", copy=False)
