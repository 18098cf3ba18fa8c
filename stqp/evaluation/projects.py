"""True and predicted nuclei of the images of QuPath projects."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError
from stqp.evaluation.nuclei import Side
from stqp.evaluation.tables import object_probability
from stqp.inference.writing import SOURCE
from stqp.patches.nuclei import Nuclei, read_nuclei
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.project import ProjectEntry, QuPathProject
from stqp.taxonomy import UNKNOWN

logger = logging.getLogger(__name__)
KINDS = ("auto", "annotations", "detections", "cells")
SEPARATOR = "::"


@dataclass(frozen=True)
class Target:
    """A project, or one of its images.

    Attributes
    ----------
    project : Path
    entry : str or None
        Name or id of the image; all images when None.
    """

    project: Path
    entry: str | None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``PROJECT`` or ``PROJECT::ENTRY``."""
        path, _, entry = text.partition(SEPARATOR)
        return cls(Path(path), entry or None)


def is_project_text(text: str) -> bool:
    """Whether a text names a project (or an image of one) rather than a folder of maps."""
    path = Path(text.partition(SEPARATOR)[0])
    return SEPARATOR in text or path.suffix == ".qpproj" or (path.is_dir() and any(path.glob("*.qpproj")))


class ProjectNuclei:
    """The nuclei of a project's images, or of one of them.

    Parameters
    ----------
    text
        ``PROJECT`` or ``PROJECT::ENTRY``.
    kind
        ``annotations``, ``detections``, ``cells``, or ``auto``: for the truth the first of annotations, cells
        and detections that no network wrote; for the prediction what a network wrote, else detections, cells
        and annotations.
    predicted
        Whether these are the predicted nuclei.
    model
        Name of the run whose predictions count, where an image has those of several.
    of_class
        Only objects of this class, or derived from it, count; of ``Truth: Neoplastic`` the class is then
        ``Neoplastic``.
    other
        The truth; where it is the same project and image, annotations are not taken for predictions.
    mpp
        µm per px, for images that do not say.
    """

    def __init__(
        self,
        text: str,
        *,
        kind: str = "auto",
        predicted: bool = False,
        model: str | None = None,
        of_class: str | None = None,
        other: ProjectNuclei | None = None,
        mpp: float | None = None,
    ):
        self.name = text
        self.target = Target.parse(text)
        self._kind, self._predicted, self._model, self._class, self._mpp = kind, predicted, model, of_class, mpp
        self._other = other
        self.project = QuPathProject.open(self.target.project, "r")
        chosen = [self.project.entry(self.target.entry)] if self.target.entry else [*self.project.entries]
        self._entries = {entry.name: entry for entry in chosen}
        self.default_names: Mapping[int, str] | None = None

    def images(self) -> list[str]:
        """Names of the images."""
        return [*self._entries]

    def close(self) -> None:
        """Close the project."""
        self.project.close()

    def read(self, image: str) -> Side:
        """Read the nuclei of an image."""
        entry = self._entries[image]
        beside = None if self._other is None else self._other.mpp_of(image)
        mpp = entry.mpp or beside or self._mpp
        if not mpp:
            raise InputError(f"the image {entry.name} does not say its µm per pixel; give it with --mpp")
        objects = entry.read_objects()
        if self._class is not None:
            objects = _derived(objects, self._class)
        probability = None
        if self._predicted:
            nuclei, probability = self._found(entry, objects, mpp, self._beside_truth())
        else:
            nuclei = read_nuclei(entry, objects, mpp, self._kind)
        return Side(
            source=f"{image} of {self.target.project}",
            classes=nuclei.classes,
            polygons=nuclei.polygons,
            probability=probability,
            mpp=entry.mpp,
            size=entry.size,
            coverage=nuclei.coverage,
            image=entry.image_path if entry.image_found else None,
            about={k.lower(): v for k, v in entry.metadata.items()},
            skipped={} if self._predicted else nuclei.skipped,
        ).check()

    def mpp_of(self, image: str) -> float | None:
        """µm per px that the project says of an image."""
        return self._entries[image].mpp if image in self._entries else None

    def _beside_truth(self) -> bool:
        """Whether the truth is among the same objects."""
        if self._other is None or self._other.target.project != self.target.project:
            return False
        entries = self._other.target.entry, self.target.entry
        return None in entries or entries[0] == entries[1]

    def _found(
        self, entry: ProjectEntry, objects: PathObjects, mpp: float, same: bool
    ) -> tuple[Nuclei, NDArray[np.float64] | None]:
        kind, model = self._kind, self._model
        source = objects.metadata.get("stqp.source", np.full(len(objects), None, object))
        models = sorted({s.removeprefix(SOURCE) for s in source.tolist() if s and s.startswith(SOURCE)})
        if model is not None and model not in models:
            raise InputError(
                f"the image {entry.name} has no nuclei predicted by {model!r}, but by {', '.join(models) or 'none'}"
            )
        if len(models) > 1 and model is None and kind in ("auto", "detections"):
            raise UsageError(
                f"the image {entry.name} has nuclei predicted by {', '.join(models)}; choose one with --model"
            )
        if models and kind in ("auto", "detections"):
            mine = source == SOURCE + (model or models[0])
            chosen = objects.take(mine & np.isin(objects.kind, (ObjectKind.DETECTION, ObjectKind.CELL)))
            classes = np.array([*(UNKNOWN if c is None else c for c in chosen.classes), None], object)[:-1]
            probability = object_probability(chosen.measurements, chosen.probability, classes)
            return Nuclei(chosen.polygons, classes), probability
        if kind != "auto":
            return read_nuclei(entry, objects, mpp, kind), None
        for name in ("detections", "cells") if same else ("detections", "cells", "annotations"):
            found = read_nuclei(entry, objects, mpp, name)
            if len(found.polygons):
                return found, None
        logger.warning("the image %s has no predicted nuclei; all its true nuclei count as missed", entry.name)
        return Nuclei(Polygons.empty(), np.empty(0, object)), None


def _derived(objects: PathObjects, name: str) -> PathObjects:
    """Objects of a class, and of those derived from it, which lose its name."""
    prefix = f"{name}:"
    mine = np.array([c is not None and (c == name or c.startswith(prefix)) for c in objects.classes.tolist()], bool)
    chosen = objects.take(mine)
    bare = [None if c is None else c.removeprefix(prefix).strip() for c in chosen.classes.tolist()]
    return replace(chosen, classes=np.array([*bare, None], object)[:-1])
