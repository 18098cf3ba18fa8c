"""Objects as tables with a geometry column, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.qupath.objects import Mask, ObjectKind, PathObjects, RoiKind, random_ids

if TYPE_CHECKING:
    import pandas as pd

METADATA = "metadata."
# what is no measurement
FIXED = (
    "image", "id", "kind", "class", "probability", "name", "parent", "locked", "plane_c", "plane_z", "plane_t",
    "centroid_x", "centroid_y", "box_x0", "box_y0", "box_x1", "box_y1", "area",
    "centroid_x_um", "centroid_y_um", "area_um2", "geometry", "nucleus",
)  # fmt: skip
_PLANE = ("plane_c", "plane_z", "plane_t")
_KINDS = {kind.name.lower(): int(kind) for kind in ObjectKind}
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# shapely's numbers of types
_POINTS, _LINES, _AREAS = (0, 4), (1, 5), (3, 6)


def shapes(objects: PathObjects) -> NDArray[np.object_]:
    """Shapely geometries of all objects, (n,), of areas, lines and points; valid."""
    import shapely

    result = _areas(objects.polygons)
    if objects.lines is None:
        return result
    runs = np.diff(objects.lines.geom_offsets)
    points = objects.roi_kind == RoiKind.POINTS
    owner = objects.lines.vertex_owner
    marked = np.flatnonzero(points & (runs > 0))
    if len(marked):
        number = np.cumsum(points & (runs > 0)) - 1
        chosen = points[owner]
        every = shapely.points(objects.lines.coords[chosen])
        result[marked] = shapely.multipoints(every, indices=number[owner[chosen]])
    lengths = np.diff(objects.lines.ring_offsets)
    usable = np.flatnonzero((lengths >= 2) & ~points[objects.lines.ring_owner])
    if len(usable):
        chosen = np.isin(np.repeat(np.arange(len(lengths)), lengths), usable)
        parts = np.asarray(
            shapely.linestrings(
                objects.lines.coords[chosen], indices=np.repeat(np.arange(len(usable)), lengths[usable])
            ),
            dtype=object,
        )
        owners, number = np.unique(objects.lines.ring_owner[usable], return_inverse=True)
        joined = np.asarray(shapely.multilinestrings(parts, indices=number), dtype=object)
        single = np.bincount(number) == 1
        joined[single] = parts[single[number]]
        result[owners] = joined
    return result


def _areas(polygons: Polygons) -> NDArray[np.object_]:
    """Valid areas; what crosses itself is mended."""
    import shapely

    try:
        result = polygons.to_shapely()
    except shapely.GEOSException:  # rings of one object that cannot be put together as they are
        result = np.array([_mended(polygons.take([i])) for i in range(len(polygons))], dtype=object)
    bad = ~shapely.is_valid(result)
    result[bad] = [_area_parts(shape) for shape in shapely.make_valid(result[bad])]
    return result


def _mended(polygon: Polygons) -> Any:
    import shapely

    rings = Polygons(polygon.coords, polygon.ring_offsets, np.arange(len(polygon.ring_offsets))).to_shapely()
    return shapely.symmetric_difference_all([_area_parts(shape) for shape in shapely.make_valid(rings)])


def _area_parts(shape: Any) -> Any:
    import shapely

    parts = [q for p in shapely.get_parts(shape) for q in shapely.get_parts(p) if q.geom_type == "Polygon"]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def to_table(objects: PathObjects, image: str, mpp: float | None) -> pd.DataFrame:
    """Make a table of objects, without shapes.

    Parameters
    ----------
    objects
        Of one image.
    image
        Its name.
    mpp
        µm per pixel, None when they are not known; there are no columns in µm then.

    Returns
    -------
    pandas.DataFrame
        One row for each object: the columns of `FIXED` but for the shapes, metadata with ``metadata.`` before the
        key, and measurements by their names (``<name> (measurement)`` where a column is called so).
    """
    import pandas as pd

    centroid = objects.polygons.centroid()
    if objects.lines is not None:
        empty = np.isnan(centroid[:, 0])
        centroid[empty] = objects.lines.take(empty).centroid()
    parents = np.full(len(objects), None, object)
    inner = objects.parent >= 0
    parents[inner] = objects.ids[objects.parent[inner]]
    area = objects.polygons.area()
    kinds = np.array([kind.name.lower() for kind in ObjectKind], object)
    columns: dict[str, Any] = {
        "image": np.full(len(objects), image, object),
        "id": objects.ids,
        "kind": kinds[objects.kind],
        "class": objects.classes,
        "probability": objects.probability,
        "name": objects.names,
        "parent": parents,
        "locked": objects.locked,
        **{name: objects.plane[:, axis] for axis, name in enumerate(_PLANE)},
        "centroid_x": centroid[:, 0],
        "centroid_y": centroid[:, 1],
        "area": area,
    }
    if mpp:
        columns["centroid_x_um"], columns["centroid_y_um"] = centroid[:, 0] * mpp, centroid[:, 1] * mpp
        columns["area_um2"] = area * mpp**2
    columns |= {METADATA + key: texts for key, texts in objects.metadata.items()}
    for name, values in objects.measurements.items():
        columns[name if name not in columns and name not in FIXED else f"{name} (measurement)"] = values
    return pd.DataFrame(columns)


def write_csv(path: Path, objects: PathObjects, image: str, mpp: float | None) -> None:
    """Write the table of `to_table`; compressed where the name ends in ``.gz``."""
    with files.replacing(path) as temporary:
        to_table(objects, image, mpp).to_csv(
            temporary, index=False, compression="gzip" if path.suffix == ".gz" else None, lineterminator="\n"
        )


def write_parquet(path: Path, objects: PathObjects, image: str, mpp: float | None) -> None:
    """Write the table of `to_table` with shapes as GeoParquet: ``geometry``, and for cells ``nucleus``."""
    import geopandas

    frame = geopandas.GeoDataFrame(to_table(objects, image, mpp), geometry=shapes(objects))
    if objects.nuclei is not None:
        nuclei = _areas(objects.nuclei)
        nuclei[np.diff(objects.nuclei.geom_offsets) == 0] = None
        frame["nucleus"] = geopandas.GeoSeries(nuclei)
    with files.replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_parquet(path: Path) -> PathObjects:
    """Read objects from a parquet file with a geometry column, of stqp or of others.

    Parameters
    ----------
    path
        GeoParquet, or parquet with WKB in ``geometry``. Coordinates are full-resolution pixels. Of the columns
        of `FIXED` all but the geometry may be absent; other columns of numbers are measurements, other columns
        of text metadata. Objects are annotations unless ``kind`` says otherwise.

    Raises
    ------
    InputError
        When it cannot be read, or has no geometry.
    """
    import geopandas
    import pandas as pd

    try:
        try:
            frame = pd.DataFrame(geopandas.read_parquet(path))
        except ValueError:  # no metadata of GeoParquet
            frame = pd.read_parquet(path)
        columns: Mapping[str, Any] = {str(name): frame[name] for name in frame.columns}
        if "geometry" not in columns:
            raise InputError(f"{path} has no column geometry; expected GeoParquet, or WKB in a column of that name")
        geometry = _decoded(columns["geometry"])
        nucleus = _decoded(columns["nucleus"]) if "nucleus" in columns else None
    except InputError:
        raise
    except Exception as error:  # pyarrow and shapely raise many kinds
        raise InputError(f"{path} cannot be read as parquet with geometries ({error})") from error
    return _from_columns(path, columns, geometry, nucleus)


def _decoded(column: Any) -> NDArray[np.object_]:
    import shapely

    values = np.asarray(column, dtype=object)
    if any(isinstance(value, (bytes, bytearray)) for value in values.tolist()):
        return np.asarray(shapely.from_wkb(values), dtype=object)
    return values


def _from_columns(
    path: Path, columns: Mapping[str, Any], geometry: NDArray[np.object_], nucleus: NDArray[np.object_] | None
) -> PathObjects:
    import shapely
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    types = shapely.get_type_id(geometry)
    lines, points, areas = np.isin(types, _LINES), np.isin(types, _POINTS), np.isin(types, _AREAS)
    if not (lines | points | areas).all():
        row = int(np.flatnonzero(~(lines | points | areas))[0])
        found = "no geometry" if types[row] < 0 else geometry[row].geom_type
        raise InputError(f"{path} has in row {row + 1} {found}; expected areas, lines or points")
    kinds = [str(k).lower() for k in columns["kind"]] if "kind" in columns else ["annotation"] * len(geometry)
    if unknown := sorted(set(kinds) - set(_KINDS)):
        raise InputError(f"{path} has the kind {unknown[0]!r}; expected one of {', '.join(_KINDS)}")
    measurements, metadata = {}, {}
    for name, column in columns.items():
        if name in FIXED:
            continue
        if name.startswith(METADATA):
            metadata[name.removeprefix(METADATA)] = _texts(column)
        elif is_numeric_dtype(column) and not is_bool_dtype(column):
            measurements[name.removesuffix(" (measurement)")] = column.to_numpy(np.float64, na_value=np.nan)
        else:
            metadata[name] = _texts(column)
    ids = _texts(columns["id"]) if "id" in columns else np.full(len(geometry), None, object)
    other = np.array([i is None or _UUID.fullmatch(i) is None for i in ids.tolist()], bool)
    objects = PathObjects.build(
        Polygons.from_shapely(geometry),
        kind=np.array([_KINDS[k] for k in kinds], np.uint8),
        classes=_texts(columns["class"]) if "class" in columns else None,
        ids=np.where(other, random_ids(len(ids)), ids),
        names=_texts(columns["name"]) if "name" in columns else None,
        probability=columns["probability"].to_numpy(np.float64, na_value=np.nan) if "probability" in columns else None,
        locked=columns["locked"].fillna(False).to_numpy(bool) if "locked" in columns else False,
        nuclei=None if nucleus is None else Polygons.from_shapely(nucleus),
        lines=_line_runs(geometry, lines, points),
        metadata=metadata,
        measurements=measurements,
    )
    named = [name if odd else None for name, odd in zip(ids.tolist(), other.tolist(), strict=True)]
    if any(name is not None for name in named):
        objects.metadata["id"] = _texts(named)
    for axis, name in enumerate(_PLANE):
        if name in columns:
            objects.plane[:, axis] = columns[name].fillna(-1 if axis == 0 else 0).to_numpy(np.int32)
    objects.roi_kind[points] = RoiKind.POINTS
    boxes = (types == shapely.GeometryType.POLYGON) & (shapely.get_num_coordinates(geometry) == 5)
    boxes[boxes] = shapely.equals(geometry[boxes], shapely.envelope(geometry[boxes]))
    objects.roi_kind[boxes] = RoiKind.RECTANGLE
    return _within(objects, ids, _texts(columns["parent"])) if "parent" in columns else objects


def _line_runs(geometry: NDArray[np.object_], lines: Mask, points: Mask) -> Polygons | None:
    """Vertices of lines and points in the ragged layout; all points of one object are one run."""
    import shapely

    if not (lines | points).any():
        return None
    n = len(geometry)
    parts, owner = shapely.get_parts(_only(geometry, lines), return_index=True)
    coords, part = shapely.get_coordinates(parts, return_index=True)
    drawn = Polygons(coords, _ends(np.bincount(part, minlength=len(parts))), _ends(np.bincount(owner, minlength=n)))
    coords, owner = shapely.get_coordinates(_only(geometry, points), return_index=True)
    counts = np.bincount(owner, minlength=n)
    marked = Polygons(coords, _ends(counts[counts > 0]), _ends(counts > 0))
    return Polygons.concatenate([drawn, marked]).take(np.arange(n) + np.where(points, n, 0))


def _only(geometry: NDArray[np.object_], mask: Mask) -> NDArray[np.object_]:
    chosen = geometry.copy()
    chosen[~mask] = None
    return chosen


def _ends(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _within(objects: PathObjects, ids: NDArray[np.object_], parents: NDArray[np.object_]) -> PathObjects:
    """Set parents by their ids, and put them before their children."""
    place = {name: i for i, name in enumerate(ids.tolist()) if name is not None}
    objects.parent[:] = [place.get(name, -1) if name is not None else -1 for name in parents.tolist()]
    depth, above = np.zeros(len(objects), np.int64), objects.parent.copy()
    for _ in range(len(objects)):
        if not (inner := above >= 0).any():
            return objects.take(np.argsort(depth, kind="stable"))
        depth[inner] += 1
        above[inner] = objects.parent[above[inner]]
    raise InputError("objects of the table are each other's parents")


def _texts(column: Any) -> NDArray[np.object_]:
    values = np.asarray(column, dtype=object)
    result = np.empty(len(values), object)
    result[:] = [None if v is None or v != v else str(v) for v in values.tolist()]
    return result
