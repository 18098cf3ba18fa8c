"""Shapes as GeoJSON geometries that QuPath's strict reader takes: rounded, closed, valid, or none at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stqp.polygons import Polygons
from stqp.qupath.codec.build import is_ellipse
from stqp.qupath.geo.text import Runs, coordinate_texts, dictionary, joined
from stqp.qupath.objects import PathObjects, RoiKind

if TYPE_CHECKING:
    from stqp.qupath.geo.text import Texts

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
_DEPTHS = {"Point": 1, "MultiPoint": 2, "LineString": 2, "Polygon": 3, "MultiLineString": 3, "MultiPolygon": 4}
_TYPES = list(_DEPTHS)
_LARGEST = 1e15  # beyond, the digits after the point are not those of the number


class Pieces(NamedTuple):
    """Closed rings or lines of several objects, in any order.

    Attributes
    ----------
    coords : float64 (positions, 2)
    lengths, owner, level : int64 (runs,)
        As in `Runs`; runs of one owner are in their order.
    """

    coords: NDArray[np.float64]
    lengths: Ints
    owner: Ints
    level: Ints


class Geometries(NamedTuple):
    """Text of the geometries of ``n`` objects.

    Attributes
    ----------
    chosen : int64 (m,)
        The objects that have one, ascending.
    texts
        (m,) GeoJSON geometries.
    mended : bool (n,)
        Objects whose shape had to be changed.
    """

    chosen: Ints
    texts: Texts
    mended: Mask


def outlines(objects: PathObjects, decimals: int) -> Geometries:
    """Make the geometries of the objects; those without a shape, or without an area or length, have none."""
    n = len(objects)
    areas, mended = _area_pieces(objects.polygons, decimals)
    has_area = np.zeros(n, bool)
    has_area[areas.owner] = True
    parts = np.bincount(areas.owner, areas.level != 1, n)
    types = np.where(parts > 1, _TYPES.index("MultiPolygon"), _TYPES.index("Polygon"))
    pieces = areas
    if objects.lines is not None:
        lines, line_types, shortened = _line_pieces(objects.lines, objects.roi_kind, decimals)
        mended |= shortened
        mixed = has_area[lines.owner]  # QuPath keeps the areas alone of a mixture, and from 0.6 on refuses it
        mended[lines.owner[mixed]] = True
        keep = ~mixed
        types[lines.owner[keep]] = line_types[lines.owner[keep]]
        pieces = _concatenated(areas, _selected(lines, keep))
    ellipses = np.zeros(n, bool)
    for i in np.flatnonzero((objects.roi_kind == RoiKind.ELLIPSE) & has_area & ~mended).tolist():
        first, stop = objects.polygons.geom_offsets[i : i + 2]
        if stop - first == 1:  # a turned one is a polygon: QuPath makes an ellipse of the bounds
            ellipses[i] = is_ellipse(objects.polygons.coords[slice(*objects.polygons.ring_offsets[first : stop + 1])])
    return _geometries(pieces, types, objects.plane, ellipses, mended, decimals)


def nuclei(polygons: Polygons, plane: NDArray[np.int32], decimals: int) -> Geometries:
    """Make the geometries of the nuclei of cells."""
    pieces, mended = _area_pieces(polygons, decimals)
    parts = np.bincount(pieces.owner, pieces.level != 1, len(polygons))
    types = np.where(parts > 1, _TYPES.index("MultiPolygon"), _TYPES.index("Polygon"))
    return _geometries(pieces, types, plane, np.zeros(len(polygons), bool), mended, decimals)


def _geometries(
    pieces: Pieces, types: Ints, plane: NDArray[np.int32], ellipses: Mask, mended: Mask, decimals: int
) -> Geometries:
    order = np.argsort(pieces.owner, kind="stable")
    starts = np.cumsum(pieces.lengths) - pieces.lengths
    lengths = pieces.lengths[order]
    places = np.cumsum(lengths) - lengths
    coords = pieces.coords[np.repeat(starts[order] - places, lengths) + np.arange(lengths.sum())]
    owner = pieces.owner[order]
    first = np.append(True, owner[1:] != owner[:-1])[: len(owner)]
    index = owner[first]
    depths = np.array(list(_DEPTHS.values()))[types[index]]
    texts = coordinate_texts(Runs(coords, places, np.where(first, 0, pieces.level[order]), depths), decimals)
    planes, plane_codes = np.unique(plane[index], axis=0, return_inverse=True)
    codes = (plane_codes.reshape(-1) * 2 + ellipses[index]) * len(_TYPES) + types[index]
    used, inverse = np.unique(codes, return_inverse=True)
    heads = [_head(_TYPES[c % len(_TYPES)], bool(c // len(_TYPES) % 2), planes[c // len(_TYPES) // 2]) for c in used]
    return Geometries(index, joined(dictionary(heads, inverse.reshape(-1)), texts), mended)


def _head(kind: str, is_ellipse: bool, plane: NDArray[np.int32]) -> str:
    c, z, t = plane.tolist()
    extra = "" if (c, z, t) == (-1, 0, 0) else f'"plane":{{"c":{c},"z":{z},"t":{t}}},'
    extra += '"isEllipse":true,' if is_ellipse else ""
    return f'{{"type":"{kind}",{extra}"coordinates":'


def _area_pieces(polygons: Polygons, decimals: int) -> tuple[Pieces, Mask]:
    """Rings of the valid areas nearest to the polygons on the grid of the file, and what had to be changed."""
    import shapely

    n = len(polygons)
    # rounded first: rounding may make an outline invalid
    rounded, finite = _rounded(polygons, decimals)
    shapes = rounded.to_shapely()
    rings = np.diff(rounded.geom_offsets)
    good = shapely.is_valid(shapes) & ~shapely.is_empty(shapes) & finite
    simple = good & (rings == 1)
    one = rounded.take(simple)
    lengths = np.diff(one.ring_offsets)
    closing = np.concatenate([one.coords, one.coords[one.ring_offsets[:-1]]])
    order = np.insert(np.arange(len(one.coords)), one.ring_offsets[1:], len(one.coords) + np.arange(len(one)))
    pieces = Pieces(closing[order], lengths + 1, np.flatnonzero(simple), np.zeros(len(one), np.int64))
    mended = np.zeros(n, bool)
    rest = np.flatnonzero(~simple & finite & (rings > 0))
    if not len(rest):
        return pieces, mended
    step = 10.0**-decimals
    for i in rest.tolist():
        if good[i]:
            xy = shapely.get_coordinates(shapes[i])
            off_grid = (np.round(xy, decimals) != xy).any()  # rings of one polygon crossed
            repaired = shapely.set_precision(shapes[i], step) if off_grid else shapes[i]
        else:
            repaired = areas_only(shapely.set_precision(areas_only(shapely.make_valid(shapes[i])), step))
        mended[i] = repaired is not shapes[i] and not repaired.is_empty
        shapes[i] = repaired
    rest = rest[~shapely.is_empty(shapes[rest])]
    return _concatenated(pieces, _shape_pieces(shapes[rest], rest, decimals)), mended


def _rounded(polygons: Polygons, decimals: int) -> tuple[Polygons, Mask]:
    """Polygons on the grid of the file, and which of them have numbers only."""
    coords = np.round(polygons.coords, decimals)
    odd = ~(np.abs(coords) < _LARGEST).all(axis=1)
    finite = np.ones(len(polygons), bool)
    if odd.any():
        finite[polygons.vertex_owner[odd]] = False
        coords[odd] = 0
    return Polygons(coords, polygons.ring_offsets, polygons.geom_offsets), finite


def _shape_pieces(shapes: NDArray[np.object_], owner: Ints, decimals: int) -> Pieces:
    """Rings of shapely's polygons, outer rings before their holes."""
    import shapely

    parts, shape_of_part = shapely.get_parts(shapes, return_index=True)
    rings, part_of_ring = shapely.get_rings(parts, return_index=True)
    xy, ring_of_position = shapely.get_coordinates(rings, return_index=True)
    outer = np.append(True, part_of_ring[1:] != part_of_ring[:-1])[: len(part_of_ring)]
    lengths = np.bincount(ring_of_position, minlength=len(rings)).astype(np.int64)
    return Pieces(np.round(xy, decimals), lengths, owner[shape_of_part[part_of_ring]], np.where(outer, 2, 1))


def _line_pieces(lines: Polygons, kinds: NDArray[np.uint8], decimals: int) -> tuple[Pieces, Ints, Mask]:
    """Runs of lines that have a length, and points; the type of each object; those that lost a run."""
    n = len(lines)
    rounded, finite = _rounded(lines, decimals)
    owner = rounded.ring_owner
    lengths = np.diff(rounded.ring_offsets)
    run_of_vertex = np.repeat(np.arange(len(owner)), lengths)
    points = kinds[owner] == RoiKind.POINTS
    moves = np.zeros(len(owner), bool)
    same_run = run_of_vertex[1:] == run_of_vertex[:-1]
    moves[run_of_vertex[1:][same_run & (rounded.coords[1:] != rounded.coords[:-1]).any(axis=1)]] = True
    keep = finite[owner] & np.where(points, lengths > 0, moves)
    number = np.bincount(owner[keep], minlength=n)
    vertices = np.bincount(owner[keep], lengths[keep], n)
    is_points = kinds == RoiKind.POINTS
    types = np.where(number > 1, _TYPES.index("MultiLineString"), _TYPES.index("LineString"))
    types[is_points] = _TYPES.index("MultiPoint")
    types[is_points & (vertices == 1)] = _TYPES.index("Point")
    level = np.ones(len(owner), np.int64)
    pieces = _selected(Pieces(rounded.coords, lengths, owner, level), keep)
    lost = np.zeros(n, bool)
    lost[owner[~keep & (lengths > 0)]] = True
    return pieces, types, lost & (number > 0)


def _selected(pieces: Pieces, keep: Mask) -> Pieces:
    positions = np.repeat(keep, pieces.lengths)
    return Pieces(pieces.coords[positions], pieces.lengths[keep], pieces.owner[keep], pieces.level[keep])


def _concatenated(a: Pieces, b: Pieces) -> Pieces:
    return Pieces(*(np.concatenate(columns) for columns in zip(a, b, strict=True)))


def areas_only(shape: Any) -> Any:
    """Keep the polygons of a shape; what has no area goes."""
    import shapely

    parts = [p for p in shapely.get_parts(shape) if p.geom_type in ("Polygon", "MultiPolygon")]
    polygons = [q for p in parts for q in shapely.get_parts(p) if q.area > 0]
    if not polygons:
        return shapely.Polygon()
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
