"""Objects as the GeoJSON that QuPath imports."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.taxonomy import color_of

SUFFIXES = (".geojson", ".json")
_DECIMALS = 3
_TYPES = {
    ObjectKind.ANNOTATION: "annotation",
    ObjectKind.DETECTION: "detection",
    ObjectKind.CELL: "cell",
    ObjectKind.TILE: "tile",
    ObjectKind.TMA_CORE: "tmaCore",
}
_CHUNK = 4096


def write_geojson(path: Path, objects: PathObjects, progress: Callable[[int, int], None] | None = None) -> int:
    """Write objects as a FeatureCollection, a feature a line.

    QuPath refuses a whole file for one invalid geometry, so outlines that cross themselves are repaired
    and those without an area (lines, points) are left out.

    Parameters
    ----------
    path
        Ends in ``.geojson`` or ``.json``, or QuPath would read nothing.
    objects
        The objects; parents are not kept.
    progress
        Called with objects done and in total.

    Returns
    -------
    int
        Number of objects that were left out.

    Raises
    ------
    UsageError
        When the file name ends otherwise.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"QuPath reads GeoJSON only from files that end in .geojson or .json, not {path.name!r}")
    written = 0
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for start in range(0, len(objects), _CHUNK):
            part = objects.take(np.arange(start, min(start + _CHUNK, len(objects))))
            for feature in features(part):
                file.write(",\n" if written else "\n")
                file.write(json.dumps(feature, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
                written += 1
            if progress is not None:
                progress(start + len(part), len(objects))
        file.write("\n]}\n")
    return len(objects) - written


def features(objects: PathObjects) -> Iterator[dict[str, Any]]:
    """Make the GeoJSON features of objects, in order, without those that have no area."""
    outlines = _geometries(objects.polygons)
    nuclei = _geometries(objects.nuclei) if objects.nuclei is not None else [None] * len(objects)
    planes = objects.plane.tolist()
    names = list(objects.measurements)
    values = [column.tolist() for column in objects.measurements.values()]
    keys = list(objects.metadata)
    texts = [column.tolist() for column in objects.metadata.values()]
    for i, outline in enumerate(outlines):
        if outline is None:
            continue
        c, z, t = planes[i]
        if planes[i] != [-1, 0, 0]:
            outline["plane"] = {"c": c, "z": z, "t": t}
        kind = ObjectKind(int(objects.kind[i]))
        feature: dict[str, Any] = {"type": "Feature", "id": objects.ids[i], "geometry": outline}
        if kind == ObjectKind.CELL and nuclei[i] is not None:
            feature["nucleusGeometry"] = nuclei[i]
        properties: dict[str, Any] = {"objectType": _TYPES[kind]}
        if objects.names[i] is not None:
            properties["name"] = objects.names[i]
        if objects.locked[i]:
            properties["isLocked"] = True
        name = objects.classes[i]
        if name is not None:
            color = objects.class_colors.get(name) or color_of(name)
            properties["classification"] = {"name": name, "color": list(color)}
        measured = {n: column[i] for n, column in zip(names, values, strict=True) if np.isfinite(column[i])}
        if measured:
            properties["measurements"] = measured
        noted = {k: column[i] for k, column in zip(keys, texts, strict=True) if column[i] is not None}
        if noted:
            properties["metadata"] = noted
        feature["properties"] = properties
        yield feature


def _geometries(polygons: Polygons) -> list[dict[str, Any] | None]:
    """GeoJSON geometry of each polygon, rounded, closed and valid; None where nothing is left."""
    import shapely

    # rounded first: rounding may make an outline invalid
    rounded = Polygons(np.round(polygons.coords, _DECIMALS), polygons.ring_offsets, polygons.geom_offsets)
    shapes = rounded.to_shapely()
    bad = ~shapely.is_valid(shapes)
    for i in np.flatnonzero(bad).tolist():
        shapes[i] = _repaired(shapes[i])
    areas = shapely.area(shapes)
    kinds = shapely.get_type_id(shapes)
    single = np.diff(rounded.geom_offsets) == 1
    result: list[dict[str, Any] | None] = []
    coords, offsets = rounded.coords.tolist(), rounded.ring_offsets.tolist()
    first_ring = rounded.geom_offsets.tolist()
    for i, shape in enumerate(shapes):
        if areas[i] <= 0 or kinds[i] not in (3, 6):
            result.append(None)
        elif single[i] and not bad[i]:
            ring = coords[offsets[first_ring[i]] : offsets[first_ring[i] + 1]]
            result.append({"type": "Polygon", "coordinates": [[*ring, ring[0]]]})
        else:
            result.append(_mapping(shape))
    return result


def _repaired(shape: Any) -> Any:
    """Valid polygons near a shape that crosses itself, on the grid of the file."""
    import shapely

    return _areas_only(shapely.set_precision(_areas_only(shapely.make_valid(shape)), 10.0**-_DECIMALS))


def _areas_only(shape: Any) -> Any:
    import shapely

    parts = [p for p in shapely.get_parts(shape, return_index=False) if p.geom_type in ("Polygon", "MultiPolygon")]
    polygons = [q for p in parts for q in shapely.get_parts(p) if q.area > 0]
    if not polygons:
        return shapely.Polygon()
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


def _mapping(shape: Any) -> dict[str, Any]:
    import shapely

    parts = [
        [_rounded(shapely.get_coordinates(ring)) for ring in itertools.chain([part.exterior], part.interiors)]
        for part in shapely.get_parts(shape)
    ]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _rounded(coords: NDArray[np.float64]) -> list[list[float]]:
    rows: list[list[float]] = np.round(coords, _DECIMALS).tolist()
    return rows
