"""Nuclei in tables: GeoJSON, GeoParquet, and csv or parquet with outlines as WKT, as vertices, or with centres."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.evaluation.nuclei import Side
from stqp.inference.maps import map_stem
from stqp.inference.table import METADATA_KEY
from stqp.polygons import Polygons
from stqp.taxonomy import UNKNOWN

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".parquet", ".geoparquet", ".csv", ".tsv", ".geojson", ".json")
_PROBABILITY = "Probability: "
# the first name that a table has
_COLUMNS = {
    "image": ("image", "slide", "file_name", "filename"),
    "class": ("class", "classification", "label", "cell_type", "type"),
    "id": ("id", "nucleus_id", "label_id", "cell_id"),
    "x": ("x", "centroid_x", "x_centroid"),
    "y": ("y", "centroid_y", "y_centroid"),
    "vertex_x": ("vertex_x",),
    "vertex_y": ("vertex_y",),
    "geometry": ("geometry", "wkt", "polygon"),
    "probability": ("probability",),
    "mpp": ("mpp",),
}


def is_table(path: Path) -> bool:
    """Whether a path names a table of nuclei, or a folder that holds only such."""
    if path.is_dir():
        inner = [p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES and p.name != "classes.json"]
        return bool(inner) and not (path / "project.qpproj").exists()
    return path.name.lower().endswith((*SUFFIXES, ".csv.gz", ".geojson.gz"))


class NucleiTable:
    """One table of the nuclei of one or more images, or a folder with a table for each image.

    Coordinates are pixels of the image. A column ``image`` tells the images of one table apart; without it, the
    name of the file is the image.

    Parameters
    ----------
    path
        The table, or the folder.
    images
        Folder of the H&E.
    """

    def __init__(self, path: Path, images: Path | None = None):
        from stqp.evaluation.map_files import pictures

        self.name = str(path)
        files = [path] if path.is_file() else sorted(p for p in path.iterdir() if is_table(p) and p.is_file())
        self._tables: dict[str, tuple[Path, Any]] = {}
        for file in files:
            for image, content in _by_image(file).items():
                if image in self._tables:
                    raise InputError(f"{self._tables[image][0]} and {file} both have nuclei of the image {image}")
                self._tables[image] = file, content
        if not self._tables:
            raise InputError(f"expected a table of nuclei in {path}, found none")
        self._pictures = pictures(images)
        self.default_names: Mapping[int, str] | None = None

    def images(self) -> list[str]:
        """Names of the images."""
        return [*self._tables]

    def close(self) -> None:
        """Nothing is kept open."""

    def read(self, image: str) -> Side:
        """Read the nuclei of an image."""
        file, content = self._tables[image]
        side = _of_objects(file, content) if not hasattr(content, "columns") else _of_frame(file, content)
        return replace(side, image=self._pictures.get(map_stem(image))).check()


def _by_image(file: Path) -> dict[str, Any]:
    import pandas as pd

    name = file.name.lower()
    if name.endswith((".geojson", ".json", ".geojson.gz")):
        from stqp.qupath.geojson_read import read_geojson

        return {file.name.split(".")[0]: read_geojson(file)}
    try:
        if name.endswith((".parquet", ".geoparquet")):
            frame = pd.read_parquet(file)
            frame.attrs["mpp"] = _said_mpp(file)
        else:
            frame = pd.read_csv(file, sep="\t" if name.endswith(".tsv") else ",", low_memory=False)
    except Exception as error:  # pyarrow and pandas raise many kinds
        raise InputError(f"{file} cannot be read as a table: {error}") from error
    column = _column(frame, "image")
    if column is None:
        return {file.stem: frame}
    if frame[column].isna().any():
        raise InputError(
            f"expected an image in each row of {file}, found {int(frame[column].isna().sum())} rows without"
        )
    return {str(image): part.copy(deep=False) for image, part in frame.groupby(column, sort=True)}


def _said_mpp(file: Path) -> list[float]:
    """µm per px in the metadata of a table that stqp predict wrote."""
    import pyarrow.parquet as pq

    found = (pq.read_schema(file).metadata or {}).get(METADATA_KEY)
    mpp = json.loads(found).get("mpp") if found else None
    return [float(mpp)] if mpp else []


def _column(frame: pd.DataFrame, what: str) -> str | None:
    lower = {str(c).lower(): str(c) for c in frame.columns}
    return next((lower[name] for name in _COLUMNS[what] if name in lower), None)


def _of_frame(file: Path, frame: pd.DataFrame) -> Side:
    polygons: Polygons | None = None
    points: NDArray[np.float64] | None = None
    vertex = [_column(frame, c) for c in ("vertex_x", "vertex_y", "id")]
    if (geometry := _column(frame, "geometry")) is not None:
        nucleus = "nucleus" if "nucleus" in frame and frame["nucleus"].notna().all() else geometry
        polygons, points = _shapes(file, frame[nucleus])
    elif all(v is not None for v in vertex):
        frame, polygons = _of_vertices(file, frame, *(str(v) for v in vertex))
    else:
        xy = [_column(frame, c) for c in ("x", "y")]
        if None in xy:
            raise InputError(
                f"expected a column geometry (WKT or WKB), or vertex_x, vertex_y and id, or x and y in {file}, found "
                f"{', '.join(map(str, frame.columns[:12]))}"
            )
        points = frame[xy].to_numpy(np.float64)
    for name, values in (("points", points), ("outlines", None if polygons is None else polygons.coords)):
        if values is not None and not np.isfinite(values).all():
            raise InputError(f"expected numbers as the coordinates of {name} in {file}, found NaN or infinity")
    of_class = _column(frame, "class")
    classes = np.full(len(frame), UNKNOWN, object)
    if of_class is not None:
        texts = frame[of_class].astype(object).where(frame[of_class].notna(), UNKNOWN)
        classes = np.array([*map(str, texts.tolist()), None], object)[:-1]
        classes[classes == ""] = UNKNOWN
    mpp = _column(frame, "mpp")
    said = sorted({float(v) for v in frame[mpp].dropna()}) if mpp else frame.attrs.get("mpp", [])
    if len(said) > 1:
        raise InputError(f"expected one µm per px for an image in {file}, found {said[0]:g} to {said[-1]:g}")
    return Side(
        source=str(file),
        classes=classes,
        polygons=polygons,
        points=points,
        probability=_probability(file, frame, classes),
        mpp=said[0] if said else None,
    )


def _probability(file: Path, frame: pd.DataFrame, classes: NDArray[np.object_]) -> NDArray[np.float64] | None:
    """Probability of the class of each nucleus, of one column for all or one a class."""
    of_class = [str(c) for c in frame.columns if str(c).startswith(_PROBABILITY)]
    one = _column(frame, "probability")
    if of_class:
        names = [c.removeprefix(_PROBABILITY) for c in of_class]
        table = frame[of_class].to_numpy(np.float64)
        place = {name: i for i, name in enumerate(names)}
        index = np.array([place.get(c, -1) for c in classes.tolist()], np.int64)
        values = np.where(index >= 0, table[np.arange(len(index)), index], np.nan)
        bad = np.isnan(table).any(axis=1) & (index >= 0)
    elif one is not None:
        values = frame[one].to_numpy(np.float64)
        bad = np.isnan(values) & (classes != UNKNOWN)
    else:
        return None
    if np.isnan(values).all():  # a column that nobody filled, as of annotations
        return None
    if number := int(bad.sum()):
        raise InputError(
            f"expected a probability for each typed nucleus in {file}, found NaN for {number} of {len(bad)}"
        )
    return values


def _shapes(file: Path, column: Any) -> tuple[Polygons | None, NDArray[np.float64] | None]:
    import shapely

    values = np.asarray(column, dtype=object)
    first = next((v for v in values.tolist() if v is not None and v == v), None)
    try:
        if isinstance(first, (bytes, bytearray)):
            values = np.asarray(shapely.from_wkb(values), dtype=object)
        elif isinstance(first, str):
            values = np.asarray(shapely.from_wkt(values), dtype=object)
    except shapely.GEOSException as error:
        raise InputError(f"{file} has a geometry that is none: {error}") from error
    kinds = shapely.get_type_id(values)
    if len(values) and (kinds == 0).all():
        return None, shapely.get_coordinates(values)
    wrong = ~np.isin(kinds, (3, 6))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        found = "nothing" if kinds[row] < 0 else values[row].geom_type
        raise InputError(f"expected a polygon (or a point) in each row of {file}, found {found} in row {row + 1}")
    return Polygons.from_shapely(values), None


def _of_vertices(file: Path, frame: pd.DataFrame, x: str, y: str, name: str) -> tuple[pd.DataFrame, Polygons]:
    """Polygons from rows of vertices, those of a nucleus behind each other as in Xenium's boundaries."""
    ids = frame[name].to_numpy()
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    if len(np.unique(ids[starts])) < len(starts):
        raise InputError(f"expected the vertices of each nucleus behind each other in {file}, found {name} mixed")
    polygons = Polygons.from_rings(frame[[x, y]].to_numpy(np.float64), np.r_[starts, len(ids)])
    return frame.iloc[starts], polygons


def _of_objects(file: Path, objects: Any) -> Side:
    """Nuclei of GeoJSON: what has an area, or points; not regions, nor classes that end with ``*``."""
    from stqp.patches.nuclei import marks
    from stqp.qupath.objects import RoiKind

    included, ignored = marks(objects)
    other = np.array([str(c).endswith("*") for c in objects.classes.tolist()], bool) | included | ignored
    outlined = (np.diff(objects.polygons.geom_offsets) > 0) & ~other
    pointed = (objects.roi_kind == RoiKind.POINTS) & ~other
    if not outlined.any() and pointed.any():
        lines = objects.lines.take(pointed)
        owner = lines.vertex_owner
        names = _names(objects.classes[pointed])[owner]
        return Side(source=str(file), classes=names, points=lines.coords)
    chosen = objects.take(outlined)
    polygons = chosen.polygons
    if chosen.nuclei is not None and (np.diff(chosen.nuclei.geom_offsets) > 0).all():
        polygons = chosen.nuclei
    classes = _names(chosen.classes)
    probability = object_probability(chosen.measurements, chosen.probability, classes)
    return Side(source=str(file), classes=classes, polygons=polygons, probability=probability)


def _names(classes: NDArray[np.object_]) -> NDArray[np.object_]:
    return np.array([*(UNKNOWN if c is None else c for c in classes.tolist()), None], object)[:-1]


def object_probability(
    measurements: Mapping[str, NDArray[np.float64]], fallback: NDArray[np.float64], classes: Sequence[str] | Any
) -> NDArray[np.float64] | None:
    """Probability of the class of each object: of its measurements, else its own; None where none has any."""
    values = np.array(fallback, np.float64)
    names = np.asarray(classes).astype(str)
    for key, column in measurements.items():
        if key.startswith(_PROBABILITY):
            mine = (names == key.removeprefix(_PROBABILITY)) & ~np.isnan(column)
            values[mine] = column[mine]
    return None if np.isnan(values).all() else values
