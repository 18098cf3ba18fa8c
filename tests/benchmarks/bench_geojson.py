"""Objects a second and peak memory of GeoJSON, beside the usual ways; run as a script: bench_geojson.py [objects]."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stqp.polygons import Polygons
from stqp.qupath.geojson import write_geojson
from stqp.qupath.geojson_read import read_geojson
from stqp.qupath.objects import ObjectKind, PathObjects

VERTICES = 20


def nuclei(n: int) -> PathObjects:
    """Make detections as a prediction leaves them: a class, its probability, five measurements."""
    rng = np.random.default_rng(0)
    angle = np.arange(VERTICES) * (2 * np.pi / VERTICES)
    radius = 10 + 3 * rng.random((n, VERTICES))
    coords = rng.random((n, 1, 2)) * 40000 + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    classes = np.array(["Neoplastic", "Inflammatory", "Connective", "Unknown"], object)
    return PathObjects.build(
        Polygons.from_rings(coords, np.arange(0, VERTICES * n + 1, VERTICES)),
        kind=ObjectKind.DETECTION,
        classes=rng.choice(classes, n),
        probability=rng.random(n),
        measurements={name: rng.random(n) * 100 for name in ("Area µm²", "Perimeter µm", "A", "B", "C")},
    )


def features(objects: PathObjects) -> list[dict[str, Any]]:
    """Make a dict for each object, as TIAToolbox and CellViT do."""
    result = []
    rings = np.split(objects.polygons.coords, objects.polygons.ring_offsets[1:-1])
    for i, ring in enumerate(rings):
        xy = np.round(ring, 3).tolist()
        result.append({
            "type": "Feature",
            "id": objects.ids[i],
            "geometry": {"type": "Polygon", "coordinates": [[*xy, xy[0]]]},
            "properties": {
                "objectType": "detection",
                "classification": {"name": objects.classes[i], "color": [200, 0, 0]},
                "measurements": {name: float(values[i]) for name, values in objects.measurements.items()},
            },
        })  # fmt: skip
    return result


def write_dicts(path: Path, objects: PathObjects) -> None:
    """Write with json.dump, without a look at whether a shape is valid."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features(objects)}), encoding="utf-8")


def write_pyogrio(path: Path, objects: PathObjects) -> None:
    """Write with GDAL; measurements are flat columns there, so that QuPath finds none."""
    import geopandas as gpd

    columns = {"id": objects.ids, "objectType": "detection", "classification": objects.classes, **objects.measurements}
    frame = gpd.GeoDataFrame(columns, geometry=objects.polygons.to_shapely())
    frame.to_file(path, driver="GeoJSON", engine="pyogrio", COORDINATE_PRECISION=3)


def read_dicts(path: Path) -> int:
    """Read with json.load and shapely."""
    import shapely.geometry

    content = json.loads(path.read_text(encoding="utf-8"))
    return len([shapely.geometry.shape(f["geometry"]) for f in content["features"]])


def read_pyogrio(path: Path) -> int:
    """Read with GDAL; nested properties are text there."""
    import geopandas as gpd

    return len(gpd.read_file(path, engine="pyogrio"))


WAYS: dict[str, Callable[[Path, PathObjects], Any]] = {
    "write": write_geojson,
    "write .gz": lambda path, objects: write_geojson(path.with_suffix(".geojson.gz"), objects),
    "write, json.dumps of dicts": write_dicts,
    "write, geopandas with pyogrio": write_pyogrio,
    "read": lambda path, _: len(read_geojson(path)),
    "read .gz": lambda path, _: len(read_geojson(path.with_suffix(".geojson.gz"))),
    "read, json.load and shapely": lambda path, _: read_dicts(path),
    "read, geopandas with pyogrio": lambda path, _: read_pyogrio(path),
}


def measured(way: str, path: Path, n: int) -> None:
    """Do one of the ways and print its seconds and the memory it took beyond the objects."""
    import geopandas  # noqa: F401
    import pyarrow.compute  # noqa: F401

    objects = nuclei(n if way.startswith("write") else 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    WAYS[way](path, objects)
    seconds = time.perf_counter() - began
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main() -> None:
    """Print a table; each way runs in a process of its own."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(f"{n:,} detections of {VERTICES} vertices, 5 measurements; MB beyond what was there before")
    with tempfile.TemporaryDirectory() as folder:
        base = {}
        for way in WAYS:
            kind = way.split()[0].rstrip(",")
            path = Path(folder) / ("nuclei.geojson" if way == "write" or kind == "read" else "other.geojson")
            if way.endswith(".gz"):
                path = Path(folder) / "nuclei.geojson"
            command = [sys.executable, __file__, "--one", way, str(path), str(n)]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode:
                print(f"{way:32} not done: {out.stderr.strip().splitlines()[-1]}")
                continue
            seconds, memory = (float(v) for v in out.stdout.split())
            ratio = seconds / base.setdefault(kind, seconds)
            print(
                f"{way:32} {seconds:7.2f} s {n / seconds:10,.0f} objects/s {ratio:6.1f}x {memory / 1e3:8,.0f} MB more"
            )
            if way == "write":
                print(f"{'':32} {path.stat().st_size / 1e6:7.1f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measured(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
