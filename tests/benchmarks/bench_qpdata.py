"""Objects a second for writing, reading and changing a .qpdata, and memory; bench_qpdata.py [objects] [--peers N].

Beside it, in the same run and on ``--peers`` of the same objects: one object after the other by the code for single
ones, GeoJSON by the standard library and shapely as most tools write it, and QuPath by paquo where PAQUO_QUPATH_DIR is
set. CPU seconds count beside those of the clock, as other work on the machine changes the latter only.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from stqp.polygons import Polygons
from stqp.qupath.codec import pack, runs
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import object_uuids, owned, stamp
from stqp.qupath.qpdata import read_objects, rewrite, update, write_new


def nuclei(n: int, kind: ObjectKind) -> PathObjects:
    """Make objects as an import of spatial transcriptomics writes them."""
    rng = np.random.default_rng(0)
    objects = PathObjects.build(
        outlines(n, 10, rng),
        kind=kind,
        classes=rng.choice(np.array(["Neoplastic", "Inflammatory", "Connective", "Unknown"], object), n),
        ids=object_uuids("S", np.arange(n), np.zeros(n, int)),
        metadata={"cell": [f"cell-{i}" for i in range(n)]},
        measurements={"Area µm²": rng.random(n), "Counts": rng.random(n), "Confidence": rng.random(n)},
    )
    return stamp(objects, "import:S", "run")


def plain(n: int) -> PathObjects:
    """Make detections of 20 to 25 vertices with class, id and 5 measurements."""
    rng = np.random.default_rng(0)
    return PathObjects.build(
        outlines(n, 20, rng),
        kind=ObjectKind.DETECTION,
        classes=rng.choice(np.array(["Neoplastic", "Inflammatory", "Connective", "Unknown"], object), n),
        measurements={name: rng.random(n) for name in ("Area", "Perimeter", "Mean", "Max", "Min")},
    )


def outlines(n: int, fewest: int, rng: np.random.Generator) -> Polygons:
    """Make stars of up to 25 vertices."""
    offsets = np.concatenate(([0], np.cumsum(rng.integers(fewest, 26, n))))
    owner = np.repeat(np.arange(n), np.diff(offsets))
    angle = rng.random(offsets[-1]) * 2 * np.pi
    coords = (rng.random((n, 2)) * 40000)[owner]
    coords[:, 0] += 12 * np.cos(angle)
    coords[:, 1] += 12 * np.sin(angle)
    return Polygons.from_rings(coords, offsets)


class Cost(NamedTuple):
    """What some work took: seconds, CPU seconds, and MB of memory above what there was (None: unknown)."""

    wall: float
    cpu: float
    memory: float | None


def memory(name: str) -> float | None:
    """Resident memory in MB, now (VmRSS) or at most (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1e3


def timed(work: Callable[[], Any]) -> Cost:
    """Do the work."""
    before = memory("VmRSS")
    if before is not None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the highest use is counted from here on
        except OSError:
            before = None
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = memory("VmHWM")
    del result
    return Cost(wall, cpu, None if before is None or peak is None else peak - before)


def report(what: str, n: int, cost: Cost, size: float) -> None:
    """Print a line."""
    taken = "" if cost.memory is None else f"  memory +{cost.memory:7.0f} MB = {cost.memory / size:4.2f} x the file"
    print(f"  {what:30} {n / cost.wall:11,.0f} objects/s {n / cost.cpu:11,.0f} per CPU second{taken}")


def measure(objects: PathObjects, path: Path) -> dict[str, Cost]:
    """Write, read and change; prints a table."""
    n = len(objects)
    costs = {"write": timed(lambda: write_new(path, objects, "{}"))}
    size = path.stat().st_size / 1e6
    print(f"  {size:.1f} MB, {path.stat().st_size / n:.0f} bytes an object")
    costs["read (its columns counted)"] = timed(lambda: read_objects(path))
    third = np.flatnonzero(np.random.default_rng(1).random(n) < 0.3)
    part = objects.take(third)
    costs["replace 30 % in their places"] = timed(lambda: update(path, third, part))
    costs["drop a tenth, add as many"] = timed(
        lambda: rewrite(path, np.arange(n) % 10 == 0, objects.take(np.arange(0, n, 10)))
    )
    write_new(path, objects, "{}")
    if objects.metadata:
        costs["replace all of a source"] = timed(lambda: rewrite(path, lambda p: owned(p, "import:S"), objects))
    for what, cost in costs.items():
        report(what, n, cost, size)
    return costs


def singly(objects: PathObjects, path: Path) -> tuple[Cost, Cost]:
    """Write and read, one object after the other."""
    with mock.patch.object(pack.Fresh, "_singly", lambda self: np.ones(len(self), bool)):
        write = timed(lambda: write_new(path, objects, "{}"))
    with mock.patch.object(runs.RunReader, "take_run", lambda self, contents: False):
        return write, timed(lambda: read_objects(path))


def geojson(objects: PathObjects, path: Path) -> tuple[Cost, Cost]:
    """Write and read a feature for each object, with shapely and json."""
    import shapely

    def write() -> None:
        features = []
        shapes = objects.polygons.to_shapely()
        for i, shape in enumerate(shapes):
            measured = {name: float(values[i]) for name, values in objects.measurements.items()}
            properties = {
                "objectType": ObjectKind(int(objects.kind[i])).name.lower(),
                "classification": {"name": objects.classes[i], "color": [255, 0, 0]},
                "measurements": measured,
                "metadata": {key: texts[i] for key, texts in objects.metadata.items()},
            }
            feature = {"type": "Feature", "id": objects.ids[i], "geometry": shapely.geometry.mapping(shape)}
            features.append({**feature, "properties": properties})
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))

    def read() -> list[Any]:
        features = json.loads(path.read_text())["features"]
        return [(shapely.geometry.shape(f["geometry"]), f["properties"], f["id"]) for f in features]

    return timed(write), timed(read)


def peers(objects: PathObjects, costs: dict[str, Cost], n: int, folder: Path) -> None:
    """Print how much faster the costs of `n` objects are than what others need for these."""
    few = len(objects)
    for name, pair in (
        ("one object after the other", singly(objects, folder / "one.qpdata")),
        ("GeoJSON by json and shapely", geojson(objects, folder / "one.geojson")),
    ):
        for what, ours, theirs in zip(("write", "read"), list(costs.values())[:2], pair, strict=True):
            ratio = (theirs.cpu / few) / (ours.cpu / n)
            print(f"  {what:5} {name:27} {few / theirs.cpu:9,.0f} per CPU second; this is {ratio:5.1f} times as fast")
    if not os.environ.get("PAQUO_QUPATH_DIR"):
        print("  paquo: PAQUO_QUPATH_DIR is not set; 2,000 to 6,000 objects/s were measured with QuPath 0.5.1")
        return
    from bench_backends import one_by_one
    from PIL import Image

    image = folder / "image.png"
    Image.fromarray(np.full((500, 500, 3), 230, np.uint8)).save(image)
    small = objects.take(np.arange(min(few, 3000)))
    theirs = len(small) / one_by_one(folder / "paquo", image, small)
    ratio = n / costs["write"].wall / theirs
    print(f"  write paquo, one by one {theirs:9,.0f} objects/s; this is {ratio:.0f} times as fast")


def main() -> None:
    """Print a table for each kind of objects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("objects", nargs="?", type=int, default=100_000)
    parser.add_argument("--peers", type=int, default=10_000, help="objects that the others are measured with")
    arguments = parser.parse_args()
    n = arguments.objects
    for title, make in (
        ("detections of 20 to 25 vertices, class, 5 measurements", plain),
        ("annotations of an import: 10 to 25 vertices, 3 measurements, 4 texts", lambda n: nuclei(n, ObjectKind(0))),
        ("detections of an import", lambda n: nuclei(n, ObjectKind(1))),
    ):
        with tempfile.TemporaryDirectory() as name:
            write_new(Path(name) / "data.qpdata", make(100), "{}")  # whatever is imported late
            read_objects(Path(name) / "data.qpdata")
            objects = make(n)
            print(f"{n:,} {title}")
            costs = measure(objects, Path(name) / "data.qpdata")
            peers(objects.take(np.arange(min(n, arguments.peers))), costs, n, Path(name))
            del objects
    print(f"highest memory of the whole run {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
