"""Objects as the GeoJSON that QuPath imports, written in columns.

What QuPath 0.4 to 0.7 read is in their ``QuPathTypeAdapters``, ``ROITypeAdapters`` and ``PathClassTypeAdapter``;
they take no notice of members that they do not know, such as ``classProbability``, which they have no name for.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import UsageError
from stqp.qupath.geo import shapes as geojson_shapes
from stqp.qupath.geo.text import dictionary, joined, listed, number_texts, object_texts, quoted, string_texts
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.taxonomy import color_of

if TYPE_CHECKING:
    from stqp.qupath.geo.text import Texts

SUFFIXES = (".geojson", ".json")
PROBABILITY = "classProbability"
TYPES = {
    ObjectKind.ANNOTATION: "annotation",
    ObjectKind.DETECTION: "detection",
    ObjectKind.CELL: "cell",
    ObjectKind.TILE: "tile",
    ObjectKind.TMA_CORE: "tmaCore",
}
_CHUNK = 8192
_CHUNK_VERTICES = 400_000
_COMPRESSION = 4  # twice as fast as the usual 6, and a tenth larger


class Written(NamedTuple):
    """What became of the objects.

    Attributes
    ----------
    written
        Objects in the file.
    mended
        Of these, whose outline or nucleus was invalid and is written as the nearest valid one; a nucleus of
        which nothing is left is not written.
    left_out
        Objects without a shape, or whose shape has no area (areas) or length (lines) on the grid of the file.
    """

    written: int
    mended: int
    left_out: int


def write_geojson(
    path: Path,
    objects: PathObjects,
    progress: Callable[[int, int], None] | None = None,
    *,
    decimals: int = 3,
    nested: bool | None = None,
) -> Written:
    """Write objects as a FeatureCollection, a feature a line.

    QuPath refuses a whole file for one invalid geometry, so outlines that cross themselves are mended, and
    those without an area are left out and counted. Measurements that are not finite are not written: QuPath 0.4
    fails on their names.

    Parameters
    ----------
    path
        Ends in ``.geojson`` or ``.json``, or QuPath would read nothing; with a further ``.gz`` it is compressed.
        It is replaced atomically.
    objects
        Of any kinds and shapes.
    progress
        Called with objects done and in total.
    decimals
        Digits of coordinates after the point; QuPath 0.6 and later round to 2 as they read.
    nested
        Whether children are written within their parents, as QuPath does for a whole hierarchy. When False,
        all objects stand side by side. When None, they are nested where any has a parent.

    Returns
    -------
    Written
        Numbers of objects written, mended and left out. Children of one that is left out go to its parent.

    Raises
    ------
    UsageError
        When the file name ends otherwise, or a column cannot be written.
    """
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith(SUFFIXES):
        raise UsageError(
            f"QuPath reads GeoJSON only from files that end in .geojson or .json (or these and .gz), not {path.name!r}"
        )
    if not 0 <= decimals <= 9:
        raise UsageError(f"coordinates have 0 to 9 decimals, not {decimals}")
    if nested is None:
        nested = bool((objects.parent >= 0).any())
    order, depth = _nesting(objects, decimals) if nested else (None, np.zeros(len(objects), np.int64))
    writer = _Writer(objects, decimals)
    done = 0
    with files.replacing(path) as temporary, _opened(temporary, path) as file:
        file.write(b'{"type":"FeatureCollection","features":[')
        for start, stop in _chunks(objects, order):
            chosen = np.arange(start, stop) if order is None else order[start:stop]
            for block in writer.chunk(chosen, depth[chosen]):
                file.write(block)
            done += stop - start
            if progress is not None:
                progress(done, len(objects))
        file.write(writer.end())
    return Written(writer.written, writer.mended, len(objects) - writer.written)


@contextmanager
def _opened(temporary: Path, path: Path) -> Iterator[IO[bytes]]:
    with temporary.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # without a name or a time, equal objects give equal files
            with gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as compressed:
                yield compressed  # type: ignore[misc]
        else:
            yield file


def _chunks(objects: PathObjects, order: NDArray[np.int64] | None) -> Iterator[tuple[int, int]]:
    """Bounds of pieces that are small in objects and in vertices."""
    vertices = np.zeros(len(objects), np.int64)
    for shapes in (objects.polygons, objects.nuclei, objects.lines):
        if shapes is not None:
            vertices += np.diff(shapes.ring_offsets[shapes.geom_offsets])
    total = np.cumsum(vertices if order is None else vertices[order])
    start = 0
    while start < len(objects):
        before = total[start - 1] if start else 0
        stop = int(np.searchsorted(total, before + _CHUNK_VERTICES, "right"))
        stop = min(max(stop, start + 1), start + _CHUNK, len(objects))
        yield start, stop
        start = stop


def _nesting(objects: PathObjects, decimals: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order in which each object is followed by its descendants, and the depth of each object.

    Parents that cannot be written are passed over.
    """
    n = len(objects)
    if (objects.parent >= np.arange(n)).any():
        raise UsageError("objects must come after their parents")
    parents = np.unique(objects.parent[objects.parent >= 0])
    absent = np.zeros(n + 1, bool)
    absent[parents] = True
    for start, stop in _chunks(family := objects.take(parents), None):
        some = geojson_shapes.outlines(family.take(np.arange(start, stop)), decimals)
        absent[parents[start + some.chosen]] = False
    parent = objects.parent.copy()
    while (lost := absent[parent]).any():
        parent[lost] = objects.parent[parent[lost]]
    depth = np.zeros(n, np.int64)
    levels = [np.flatnonzero(parent < 0)]
    while len(level := np.flatnonzero(np.isin(parent, levels[-1]))):
        depth[level] = len(levels)
        levels.append(level)
    size = np.ones(n, np.int64)
    for level in levels[:0:-1]:
        np.add.at(size, parent[level], size[level])
    place = np.zeros(n, np.int64)
    for number, level in enumerate(levels):
        siblings = level[np.argsort(parent[level], kind="stable")]
        before = np.cumsum(size[siblings]) - size[siblings]
        eldest = np.append(True, np.diff(parent[siblings]) != 0)[: len(siblings)]
        before -= np.repeat(before[eldest], np.diff(np.append(np.flatnonzero(eldest), len(siblings))))
        place[siblings] = before + (place[parent[siblings]] + 1 if number else 0)
    order = np.empty(n, np.int64)
    order[place] = np.arange(n)
    return order, depth


class _Writer:
    """Turns chunks of objects into text, and counts them."""

    def __init__(self, objects: PathObjects, decimals: int):
        self.objects, self.decimals = objects, decimals
        self.written = self.mended = 0
        self._depth = -1  # of the object before
        self._classes: dict[str, str | None] = {}

    def chunk(self, chosen: NDArray[np.int64], depth: NDArray[np.int64]) -> Iterator[memoryview]:
        """Make the text of some objects; the last one stays open."""
        part = self.objects.take(chosen)
        outlines = geojson_shapes.outlines(part, self.decimals)
        if not len(outlines.chosen):
            return
        mended = outlines.mended[outlines.chosen]
        part, depth = part.take(outlines.chosen), depth[outlines.chosen]
        pieces = [joined('{"type":"Feature","id":', string_texts(part.ids), ',"geometry":', outlines.texts)]
        if part.nuclei is not None:
            nucleus, touched = self._nuclei(part)
            pieces.append(nucleus)
            mended |= touched
        pieces.append(joined(',"properties":{', listed(self._properties(part), ",")))
        features = listed([self._between(depth), *pieces], "")
        self.written += len(part)
        self.mended += int(mended.sum())
        first, last = (np.frombuffer(features.buffers()[1], np.int32)[i + features.offset] for i in (0, len(part)))
        yield memoryview(features.buffers()[2])[first:last]

    def end(self) -> bytes:
        """Make the text that closes all."""
        return f"{self._closing(0)}\n]}}\n".encode() if self._depth >= 0 else b"\n]}\n"

    def _closing(self, depth: int) -> str:
        """Text that closes the object before and those parents of it that are deeper than `depth` - 1."""
        return "}}" + "]}}" * (self._depth - depth)

    def _between(self, depth: NDArray[np.int64]) -> Texts:
        """Text before each object: a child opens a list in its parent, others close the objects before."""
        before = np.concatenate(([self._depth], depth[:-1]))
        steps, inverse = np.unique(depth - before, return_inverse=True)
        texts = [',"childObjects":[\n' if step > 0 else "}}" + "]}}" * -int(step) + ",\n" for step in steps]
        result = dictionary(texts, inverse.reshape(-1))
        if self._depth < 0:
            import pyarrow as pa

            result = pa.concat_arrays([pa.array(["\n"]), result.slice(1)])
        self._depth = int(depth[-1])
        return result

    def _nuclei(self, part: PathObjects) -> tuple[Texts, NDArray[np.bool_]]:
        assert part.nuclei is not None
        cells = np.flatnonzero((part.kind == ObjectKind.CELL) & (np.diff(part.nuclei.geom_offsets) > 0))
        found = geojson_shapes.nuclei(part.nuclei.take(cells), part.plane[cells], self.decimals)
        place = np.full(len(part), -1)
        place[cells[found.chosen]] = np.arange(len(found.chosen))
        changed = np.zeros(len(part), bool)
        changed[cells] = found.mended
        changed[cells[place[cells] < 0]] = True
        import pyarrow as pa

        return joined(',"nucleusGeometry":', found.texts.take(pa.array(place, mask=place < 0))), changed

    def _properties(self, part: PathObjects) -> list[Texts]:
        """Members of the properties of each object, null where it has none."""
        kinds = [f'"objectType":"{TYPES[ObjectKind(k)]}"' for k in range(len(TYPES))]
        locked = dictionary([None, '"isLocked":true'], part.locked.astype(np.int8))
        names = joined('"name":', string_texts(part.names))
        result = [dictionary(kinds, part.kind), names, self._colors(part), self._class_texts(part), locked]
        if (cores := part.kind == ObjectKind.TMA_CORE).any():
            missing = np.zeros(len(part), bool) if part.missing is None else part.missing
            codes = np.where(cores, 1 + missing, 0)
            result.append(dictionary([None, '"isMissing":false', '"isMissing":true'], codes))
        if np.isfinite(part.probability).any():
            result.append(joined(f'"{PROBABILITY}":', number_texts(part.probability)))
        measured = object_texts([(key, number_texts(v)) for key, v in part.measurements.items()])
        noted = object_texts([(key, string_texts(v)) for key, v in part.metadata.items()])
        result += [
            joined(f'"{key}":', texts) for key, texts in (("measurements", measured), ("metadata", noted)) if texts
        ]
        return result

    def _colors(self, part: PathObjects) -> Texts:
        own, inverse = np.unique(part.colors, return_inverse=True)
        texts = [f'"color":[{c >> 16 & 255},{c >> 8 & 255},{c & 255}]' if c >= 0 else None for c in own.tolist()]
        return dictionary(texts, inverse.reshape(-1))

    def _class_texts(self, part: PathObjects) -> Texts:
        number: dict[str | None, int] = {}
        codes = np.array([number.setdefault(name, len(number)) for name in part.classes.tolist()])
        return dictionary([None if name is None else self._class_text(name) for name in number], codes)

    def _class_text(self, name: str) -> str | None:
        if name not in self._classes:
            if "\n" in name:
                raise UsageError(f"{name!r} cannot be a QuPath class: it has two lines")
            # without a colour QuPath refuses the class, and with it the file
            color = self.objects.class_colors.get(name) or color_of(name.encode(errors="replace").decode())
            text = f'"classification":{{"name":{quoted(name)},"color":{list(color)}}}'
            self._classes[name] = text if name.strip() else None
        return self._classes[name]
