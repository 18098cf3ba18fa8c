"""The objects of a QuPath image as columns: any number of annotations, detections, cells, tiles."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.taxonomy import RGB

if TYPE_CHECKING:
    import pandas as pd

Objects = NDArray[np.object_]
Mask = NDArray[np.bool_]


class ObjectKind(enum.IntEnum):
    """What QuPath calls the type of an object."""

    ANNOTATION = 0
    DETECTION = 1
    CELL = 2
    TILE = 3
    TMA_CORE = 4


class RoiKind(enum.IntEnum):
    """The shape an object was drawn as; all but lines and points have rings."""

    NONE = 0
    POLYGON = 1
    RECTANGLE = 2
    ELLIPSE = 3
    GEOMETRY = 4
    LINE = 5
    POLYLINE = 6
    POINTS = 7


@dataclass
class PathObjects:
    """``n`` objects of one image, in full-resolution pixels, parents before their children.

    Attributes
    ----------
    kind : uint8 (n,)
        `ObjectKind`.
    polygons : Polygons
        Outlines; no rings for lines and points, whose vertices are in `lines`. Ellipses are polygons of 128 vertices.
    ids : object (n,)
        UUID as text.
    names, classes : object (n,)
        Text or None; a class is its full text, ``Tumor: Positive``.
    probability : float64 (n,)
        Of the class; NaN where there is none.
    locked : bool (n,)
    parent : int64 (n,)
        Position of the parent object, -1 for the root.
    nuclei : Polygons or None
        Nucleus outlines of cells (``n`` polygons, without rings for others).
    roi_kind : uint8 (n,)
        `RoiKind`.
    plane : int32 (n, 3)
        Channel (-1: all), z, t.
    colors : int64 (n,)
        Colour of an object's own, ``0xAARRGGBB``; -1 for the usual one, that of its class.
    lines : Polygons or None
        Vertices of lines, polylines and points in the same ragged layout (a run of vertices, not closed, in
        place of a ring; several for a geometry of several lines). None where no object has any.
    missing : bool (n,) or None
        TMA cores that a person marked as missing.
    metadata : dict of object (n,)
        Text by key, None where absent.
    measurements : dict of float64 (n,)
        Values by name, NaN where absent.
    class_colors : dict
        Red, green, blue of the classes.
    """

    kind: NDArray[np.uint8]
    polygons: Polygons
    ids: Objects
    names: Objects
    classes: Objects
    probability: NDArray[np.float64]
    locked: Mask
    parent: NDArray[np.int64]
    roi_kind: NDArray[np.uint8]
    plane: NDArray[np.int32]
    colors: NDArray[np.int64]
    nuclei: Polygons | None = None
    lines: Polygons | None = None
    missing: Mask | None = None
    metadata: dict[str, Objects] = field(default_factory=dict)
    measurements: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    class_colors: dict[str, RGB] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        polygons: Polygons,
        *,
        kind: ObjectKind | ArrayLike = ObjectKind.ANNOTATION,
        classes: str | Sequence[str | None] | Objects | None = None,
        ids: Sequence[str] | Objects | None = None,
        names: Sequence[str | None] | Objects | None = None,
        probability: ArrayLike | None = None,
        locked: bool | ArrayLike = False,
        parent: ArrayLike | None = None,
        nuclei: Polygons | None = None,
        lines: Polygons | None = None,
        roi_kind: ArrayLike | None = None,
        plane: ArrayLike | None = None,
        colors: ArrayLike | None = None,
        missing: ArrayLike | None = None,
        metadata: Mapping[str, str | Sequence[str | None] | Objects] | None = None,
        measurements: Mapping[str, ArrayLike] | None = None,
        class_colors: Mapping[str, RGB] | None = None,
    ) -> PathObjects:
        """Make objects from columns; single values go to all, and ids are random unless given.

        Without `roi_kind`, one ring is a polygon, two vertices of `lines` are a line, more a polyline, and
        several rings or lines a geometry.

        Raises
        ------
        UsageError
            When a column has not one value for each polygon.
        """
        n = len(polygons)
        result = cls(
            kind=np.full(n, kind, np.uint8) if np.ndim(kind) == 0 else np.asarray(kind, np.uint8),
            polygons=polygons,
            ids=random_ids(n) if ids is None else _texts(ids, n),
            names=_texts(names, n),
            classes=_texts(classes, n),
            probability=np.full(n, np.nan) if probability is None else np.array(probability, np.float64),
            locked=np.full(n, locked, bool) if np.ndim(locked) == 0 else np.asarray(locked, bool),
            parent=np.full(n, -1, np.int64) if parent is None else np.asarray(parent, np.int64),
            roi_kind=_roi_kinds(polygons, lines) if roi_kind is None else np.asarray(roi_kind, np.uint8),
            plane=np.tile(np.array([-1, 0, 0], np.int32), (n, 1)) if plane is None else np.asarray(plane, np.int32),
            colors=np.full(n, -1, np.int64) if colors is None else np.array(colors, np.int64),
            nuclei=nuclei,
            lines=lines,
            missing=None if missing is None else np.asarray(missing, bool),
            metadata={key: _texts(value, n) for key, value in (metadata or {}).items()},
            measurements={name: np.asarray(v, np.float64) for name, v in (measurements or {}).items()},
            class_colors=dict(class_colors or {}),
        )
        result.check()
        return result

    @classmethod
    def empty(cls) -> PathObjects:
        """No objects."""
        return cls.build(Polygons.empty())

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.kind)

    def check(self) -> None:
        """Raise `UsageError` when a column has the wrong length."""
        n = len(self)
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        lengths = {
            **{k: len(v) for k, v in columns.items() if not isinstance(v, dict) and v is not None},
            **{f"metadata {k!r}": len(v) for k, v in self.metadata.items()},
            **{f"measurement {k!r}": len(v) for k, v in self.measurements.items()},
        }
        for name, length in lengths.items():
            if length != n:
                raise UsageError(f"{n} objects need {n} values in every column, but {name} has {length}")

    def take(self, index: ArrayLike) -> PathObjects:
        """Objects at the given positions (integers, or a boolean mask), in that order.

        A parent that is not taken is replaced by the nearest ancestor that is, or the root.
        """
        chosen = np.asarray(index)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64)
        place = np.full(len(self) + 1, -1, np.int64)
        place[chosen] = np.arange(len(chosen))
        parent = self.parent[chosen]
        while (lost := (parent >= 0) & (place[parent] < 0)).any():
            parent = np.where(lost, self.parent[parent], parent)
        used = set(self.classes[chosen].tolist())
        return PathObjects(
            kind=self.kind[chosen],
            polygons=self.polygons.take(chosen),
            ids=self.ids[chosen],
            names=self.names[chosen],
            classes=self.classes[chosen],
            probability=self.probability[chosen],
            locked=self.locked[chosen],
            parent=np.where(parent >= 0, place[parent], -1),
            roi_kind=self.roi_kind[chosen],
            plane=self.plane[chosen],
            colors=self.colors[chosen],
            nuclei=None if self.nuclei is None else self.nuclei.take(chosen),
            lines=None if self.lines is None else self.lines.take(chosen),
            missing=None if self.missing is None else self.missing[chosen],
            metadata={k: v[chosen] for k, v in self.metadata.items()},
            measurements={k: v[chosen] for k, v in self.measurements.items()},
            class_colors={k: v for k, v in self.class_colors.items() if k in used},
        )

    @staticmethod
    def concatenate(parts: Iterable[PathObjects]) -> PathObjects:
        """Put several sets of objects behind each other; a column absent from one is empty there."""
        items = [*parts]
        if not items:
            return PathObjects.empty()
        starts = np.concatenate(([0], np.cumsum([len(p) for p in items])))
        n = int(starts[-1])
        metadata: dict[str, Objects] = {}
        measurements: dict[str, NDArray[np.float64]] = {}
        colors: dict[str, RGB] = {}
        for start, part in zip(starts, items, strict=False):
            stop = start + len(part)
            for key, texts in part.metadata.items():
                metadata.setdefault(key, np.full(n, None, object))[start:stop] = texts
            for key, values in part.measurements.items():
                measurements.setdefault(key, np.full(n, np.nan))[start:stop] = values
            colors = {**part.class_colors, **colors}
        missing = None
        if any(p.missing is not None for p in items):
            missing = np.concatenate([np.zeros(len(p), bool) if p.missing is None else p.missing for p in items])
        return PathObjects(
            kind=np.concatenate([p.kind for p in items]),
            polygons=Polygons.concatenate(p.polygons for p in items),
            ids=np.concatenate([p.ids for p in items]),
            names=np.concatenate([p.names for p in items]),
            classes=np.concatenate([p.classes for p in items]),
            probability=np.concatenate([p.probability for p in items]),
            locked=np.concatenate([p.locked for p in items]),
            parent=np.concatenate(
                [np.where(p.parent >= 0, p.parent + s, -1) for s, p in zip(starts, items, strict=False)]
            ),
            roi_kind=np.concatenate([p.roi_kind for p in items]),
            plane=np.concatenate([p.plane for p in items]),
            colors=np.concatenate([p.colors for p in items]),
            nuclei=_concatenated([p.nuclei for p in items], [len(p) for p in items]),
            lines=_concatenated([p.lines for p in items], [len(p) for p in items]),
            missing=missing,
            metadata=metadata,
            measurements=measurements,
            class_colors=colors,
        )

    def class_counts(self) -> dict[str | None, int]:
        """Objects of each class, None for those without."""
        counts: dict[str | None, int] = {}
        for name in self.classes.tolist():
            counts[name] = counts.get(name, 0) + 1
        return counts

    def to_frame(self) -> pd.DataFrame:
        """Make a table of ids, kinds, classes, metadata and measurements (no shapes)."""
        import pandas as pd

        kinds = np.array([k.name.lower() for k in ObjectKind], dtype=object)
        columns = {"id": self.ids, "kind": kinds[self.kind], "class": self.classes}
        columns["probability"] = self.probability
        return pd.DataFrame({**columns, **self.metadata, **self.measurements})


def _concatenated(parts: Sequence[Polygons | None], lengths: Sequence[int]) -> Polygons | None:
    if all(part is None for part in parts):
        return None
    return Polygons.concatenate(
        Polygons.empty(n) if part is None else part for part, n in zip(parts, lengths, strict=True)
    )


def _roi_kinds(polygons: Polygons, lines: Polygons | None) -> NDArray[np.uint8]:
    """Kinds of shapes by their numbers of rings, lines and vertices."""
    rings = np.diff(polygons.geom_offsets)
    kinds = np.where(rings == 1, int(RoiKind.POLYGON), int(RoiKind.GEOMETRY))
    if lines is not None:
        several = np.diff(lines.geom_offsets)
        vertices = np.diff(lines.ring_offsets[lines.geom_offsets])
        single = np.where(vertices == 2, int(RoiKind.LINE), int(RoiKind.POLYLINE))
        kinds = np.where((rings == 0) & (several == 1), single, kinds)
    return kinds.astype(np.uint8)


def random_ids(n: int) -> Objects:
    """Make ``n`` random UUIDs (version 4) as text."""
    raw = np.frombuffer(os.urandom(16 * n), np.uint8).reshape(n, 16).copy()
    return uuid_texts(raw, version=4)


def uuid_texts(raw: NDArray[np.uint8], version: int) -> Objects:
    """Text of UUIDs of the given version from 16 bytes each, (n, 16); `raw` is changed."""
    raw[:, 6] = (raw[:, 6] & 0x0F) | (version << 4)
    raw[:, 8] = (raw[:, 8] & 0x3F) | 0x80
    digits = np.frombuffer(raw.tobytes().hex().encode(), "S1").reshape(len(raw), 32)
    text = np.full((len(raw), 36), b"-", "S1")
    for start, stop, dashes in ((0, 8, 0), (8, 12, 1), (12, 16, 2), (16, 20, 3), (20, 32, 4)):
        text[:, start + dashes : stop + dashes] = digits[:, start:stop]
    return text.view("S36").reshape(-1).astype("U36").astype(object)


def _texts(values: str | Sequence[str | None] | Objects | None, n: int) -> Objects:
    """Column of text: one value for all, or one each; missing values of any sort become None."""
    if values is None or isinstance(values, str):
        return np.full(n, values, dtype=object)
    items = values.tolist() if hasattr(values, "tolist") else list(values)
    result = np.empty(len(items), dtype=object)
    result[:] = [None if v is None or v != v else str(v) for v in items]
    return result
