"""Parts of a run to import: selections of Xenium Explorer, or outlines on the H&E as GeoJSON."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.polygons import Polygons

_COLUMNS = ("selection", "x", "y")


@dataclass(frozen=True)
class Region:
    """Outlines of the parts to import.

    Attributes
    ----------
    polygons : Polygons
    in_um : bool
        Whether they are in the run's µm; in H&E pixels otherwise.
    names : list of str
    source : str
    """

    polygons: Polygons
    in_um: bool
    names: list[str]
    source: str

    def on_slide(self, um_to_he: NDArray[np.float64]) -> Polygons:
        """Outlines in H&E pixels."""
        return self.polygons.transform(um_to_he) if self.in_um else self.polygons


def contains(polygons: Polygons, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points lie in any of the polygons; bool (n,).

    Parameters
    ----------
    polygons
        Of the region.
    xy : float64 (n, 2)
    """
    import shapely

    shapes = shapely.make_valid(polygons.to_shapely())
    whole = shapely.union_all(shapes)
    shapely.prepare(whole)
    return np.asarray(shapely.contains_xy(whole, xy[:, 0], xy[:, 1]))


def read_region(path: str | Path) -> Region:
    """Read the outlines of a region.

    Parameters
    ----------
    path
        Xenium Explorer's csv of a selection (comment lines, then ``Selection,X,Y`` in µm), or GeoJSON in
        pixels of the H&E, as QuPath exports annotations (also .gz).

    Raises
    ------
    InputError
        When the file is missing or holds no area.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the region {path} does not exist; give Xenium Explorer's csv, or GeoJSON")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"the region {path} cannot be read as text ({error}); expected csv or GeoJSON") from error
    region = _geojson(path, text) if text.lstrip()[:1] in ("{", "[") else _selection(path, text)
    if not len(region.polygons) or not region.polygons.area().max() > 0:
        raise InputError(f"the region {path} holds no area; expected the outline of one")
    return region


def _selection(path: Path, text: str) -> Region:
    rows = list(csv.reader(line for line in text.splitlines() if line.strip() and line[0] != "#"))
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not {"x", "y"} <= set(header):
        raise InputError(
            f"expected the columns Selection,X,Y of a selection of Xenium Explorer in {path}, found "
            f"{', '.join(header) or 'nothing'}"
        )
    place = [header.index(name) if name in header else None for name in _COLUMNS]
    rings: dict[str, list[tuple[float, float]]] = {}
    try:
        for row in rows[1:]:
            name = row[place[0]].strip() if place[0] is not None else path.stem
            rings.setdefault(name, []).append((float(row[place[1] or 0]), float(row[place[2] or 0])))
    except (ValueError, IndexError) as error:
        raise InputError(f"the region {path} holds a row without a place ({error})") from error
    good = {name: np.array(ring) for name, ring in rings.items() if len(ring) >= 3}
    if not all(np.isfinite(ring).all() for ring in good.values()):
        raise InputError(f"the region {path} holds values that are not finite numbers")
    offsets = np.concatenate(([0], np.cumsum([len(ring) for ring in good.values()]))).astype(np.int64)
    coords = np.concatenate([*good.values(), np.empty((0, 2))])
    return Region(Polygons.from_rings(coords, offsets), True, list(good), str(path))


def _geojson(path: Path, text: str) -> Region:
    import shapely

    try:
        content = json.loads(text)
        geometries: list[Any] = []
        names: list[str] = []
        for feature in _features(content):
            geometry = feature.get("geometry", feature)
            if geometry and geometry.get("type") in ("Polygon", "MultiPolygon"):
                geometries.append(shapely.geometry.shape(geometry))
                properties = feature.get("properties") or {}
                names.append(str(properties.get("name") or f"{path.stem} {len(names) + 1}"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, shapely.errors.ShapelyError) as error:
        raise InputError(f"the region {path} is no GeoJSON ({error}); is it whole?") from error
    return Region(Polygons.from_shapely(geometries), False, names, str(path))


def _features(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return list(content["features"]) if content.get("type") == "FeatureCollection" else [content]
