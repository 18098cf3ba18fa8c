"""Nuclei of one image from wherever they are: a project, a table, GeoJSON, an instance map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError
from stqp.evaluation.projects import Target, is_project_text
from stqp.inference.maps import name_of, read_class_names, read_map
from stqp.inference.table import METADATA_KEY
from stqp.inference.writing import SOURCE
from stqp.polygonise import polygonise
from stqp.polygons import Polygons
from stqp.qupath.exchange_tables import read_parquet
from stqp.qupath.geojson_read import read_geojson
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import SOURCE_KEY
from stqp.qupath.project import ProjectEntry, QuPathProject
from stqp.taxonomy import RGB, UNKNOWN

_GEOJSON = (".geojson", ".json", ".geojson.gz", ".json.gz")
_MAPS = (".npz", ".npy")


@dataclass(frozen=True)
class Prediction:
    """The nuclei that something found on an image.

    Attributes
    ----------
    label : str
        What it is called.
    polygons : Polygons
        Outlines of nuclei in full-resolution px.
    classes : object (n,)
        Names, `UNKNOWN` where there is none.
    ids : object (n,)
        Text.
    mpp : float or None
        µm per px, where it is known.
    slide : Path or None
        The image, where it is known.
    colors : dict
        Of the classes, where they are known.
    """

    label: str
    polygons: Polygons
    classes: NDArray[np.object_]
    ids: NDArray[np.object_]
    mpp: float | None = None
    slide: Path | None = None
    colors: Mapping[str, RGB] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the nuclei."""
        return len(self.polygons)


def read_pair(
    first: str, second: str, models: tuple[str | None, str | None] = (None, None)
) -> tuple[Prediction, Prediction]:
    """Read two predictions of one image.

    Parameters
    ----------
    first, second
        ``PROJECT`` or ``PROJECT::IMAGE``; a parquet table; GeoJSON; or an instance map. One image of a project given
        twice means the two models that wrote there.
    models
        Names of the runs whose nuclei are meant, where an image has those of several.

    Raises
    ------
    InputError
        When there is nothing there, or what is there holds no nuclei of that model.
    UsageError
        When it is not said which image, or which model, is meant.
    """
    if first == second and models == (None, None) and is_project_text(first):
        with QuPathProject.open(Target.parse(first).project, "r") as project:
            entry = _entry(project, Target.parse(first).entry)
            found = models_of(entry.read_objects())
        if len(found) != 2:
            raise UsageError(
                f"the image {entry.name} has nuclei predicted by {', '.join(found) or 'no model'}; "
                "say by --model-a and --model-b which two are compared"
            )
        models = (found[0], found[1])
    return read_prediction(first, models[0]), read_prediction(second, models[1])


def read_prediction(text: str, model: str | None = None) -> Prediction:
    """Read one prediction, see `read_pair`."""
    if is_project_text(text):
        return _from_project(Target.parse(text), model)
    path = Path(text)
    name = path.name.lower()
    if not path.is_file():
        raise InputError(
            f"expected a project, a parquet table, GeoJSON or an instance map, found "
            f"{'a folder without a project' if path.is_dir() else 'nothing'} at {path}"
        )
    if name.endswith(".parquet"):
        return _from_table(path)
    if name.endswith(_GEOJSON):
        return _of_objects(str(path), read_geojson(path))
    if name.endswith(_MAPS):
        return _from_map(path)
    raise InputError(f"expected a project, .parquet, .geojson, .npz or .npy, found {path}")


def models_of(objects: PathObjects) -> list[str]:
    """Names of the runs that predicted objects of an image, in alphabetic order."""
    source = objects.metadata.get(SOURCE_KEY, np.full(len(objects), None, object))
    return sorted({s.removeprefix(SOURCE) for s in source.tolist() if s and s.startswith(SOURCE)})


def _entry(project: QuPathProject, name: str | None) -> ProjectEntry:
    if name is not None:
        return project.entry(name)
    if len(project.entries) != 1:
        names = ", ".join(entry.name for entry in project.entries[:10]) or "none"
        raise UsageError(f"{project.folder} has {len(project.entries)} images ({names}); name one, as PROJECT::IMAGE")
    return project.entries[0]


def _from_project(target: Target, model: str | None) -> Prediction:
    with QuPathProject.open(target.project, "r") as project:
        entry = _entry(project, target.entry)
        objects, colors = entry.read_objects(), project.classes
    there = models_of(objects)
    if model is not None and model not in there:
        raise InputError(f"{entry.name} has no nuclei predicted by {model!r}, but by {', '.join(there) or 'none'}")
    if model is None and len(there) > 1:
        raise UsageError(f"{entry.name} has nuclei predicted by {', '.join(there)}; choose with --model-a or --model-b")
    if there:
        model = model or there[0]
        source = objects.metadata[SOURCE_KEY]
        mine = np.array([s == SOURCE + model for s in source.tolist()], bool)
        label = f"{model} on {entry.name}"
    else:
        mine, label = np.ones(len(objects), bool), entry.name
    found = _of_objects(label, objects.take(mine))
    return Prediction(found.label, found.polygons, found.classes, found.ids, entry.mpp, entry.image_path, colors)


def _of_objects(label: str, objects: PathObjects) -> Prediction:
    """Nuclei of objects: detections and cells, or annotations where there are none of these."""
    for kinds in ((ObjectKind.DETECTION, ObjectKind.CELL), (ObjectKind.ANNOTATION,)):
        chosen = objects.take(np.isin(objects.kind, kinds))
        polygons = chosen.polygons
        if chosen.nuclei is not None:
            both = Polygons.concatenate([polygons, chosen.nuclei])
            inner = np.diff(chosen.nuclei.geom_offsets) > 0
            polygons = both.take(np.arange(len(chosen)) + np.where(inner, len(chosen), 0))
        filled = np.diff(polygons.geom_offsets) > 0
        if filled.any():
            classes = np.array([UNKNOWN if c is None else c for c in chosen.classes.tolist()], object)
            return Prediction(
                label, polygons.take(filled), classes[filled], chosen.ids[filled], colors=objects.class_colors
            )
    return Prediction(label, Polygons.empty(), np.empty(0, object), np.empty(0, object))


def _from_table(path: Path) -> Prediction:
    import pyarrow.parquet as pq

    found = _of_objects(str(path), read_parquet(path))
    told: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {}).get(METADATA_KEY, b"{}"))
    colors = {str(name): (int(r), int(g), int(b)) for name, (r, g, b) in told.get("colors", {}).items()}
    return Prediction(found.label, found.polygons, found.classes, found.ids, told.get("mpp"), colors=colors)


def _from_map(path: Path) -> Prediction:
    read = read_map(path, read_class_names(path.parent))
    polygons, labels = polygonise(read.inst)
    ids = labels if read.ids is None else read.ids
    types = dict(zip(ids.tolist(), [] if read.types is None else read.types.tolist(), strict=False))
    names = [name_of(types.get(label, 0), read.classes) for label in labels.tolist()]
    return Prediction(str(path), polygons, np.array(names, object), labels.astype(str).astype(object))
