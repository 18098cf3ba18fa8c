"""Objects a second for writing, reading and changing a .qpdata; run as a script: bench_qpdata.py [objects]."""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stqp.polygons import Polygons
from stqp.qupath.javareader import Reader
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import object_uuids, owned, stamp
from stqp.qupath.qpdata import read_objects, rewrite, write_new


def nuclei(n: int, kind: ObjectKind) -> PathObjects:
    """Make objects as an import of spatial transcriptomics writes them."""
    rng = np.random.default_rng(0)
    counts = rng.integers(10, 26, n)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    owner = np.repeat(np.arange(n), counts)
    angle = rng.random(offsets[-1]) * 2 * np.pi
    coords = (rng.random((n, 2)) * 40000)[owner] + 12 * np.column_stack([np.cos(angle), np.sin(angle)])
    classes = np.array(["Neoplastic", "Inflammatory", "Connective", "Unknown"], object)
    objects = PathObjects.build(
        Polygons.from_rings(coords, offsets),
        kind=kind,
        classes=rng.choice(classes, n),
        ids=object_uuids("S", np.arange(n), np.zeros(n, int)),
        metadata={"cell": [f"cell-{i}" for i in range(n)]},
        measurements={"Area µm²": rng.random(n), "Counts": rng.random(n), "Confidence": rng.random(n)},
    )
    return stamp(objects, "import:S", "run")


def timed(what: str, n: int, work: Callable[[], Any]) -> Any:
    """Do the work and print how fast it was."""
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    print(f"{what:28} {seconds:7.2f} s {n / seconds:12,.0f} objects/s")
    return result


def main() -> None:
    """Print a table."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 15_546
    with tempfile.TemporaryDirectory() as folder:
        for kind in (ObjectKind.ANNOTATION, ObjectKind.DETECTION):
            objects = nuclei(n, kind)
            path = Path(folder) / "data.qpdata"
            print(f"{n:,} {kind.name.lower()}s of 10 to 25 vertices, 3 measurements, 4 metadata texts")
            timed("write", n, lambda objects=objects, path=path: write_new(path, objects, "{}"))
            print(f"{'':28} {path.stat().st_size / 1e6:7.1f} MB")
            timed("read", n, lambda path=path: read_objects(path))
            timed(
                "replace all",
                n,
                lambda objects=objects, path=path: rewrite(path, lambda p: owned(p, "import:S"), objects),
            )
            timed(
                "drop a tenth, keep the rest",
                n,
                lambda n=n, path=path: rewrite(path, np.arange(n) % 10 == 0, PathObjects.empty()),
            )
            if n <= 50_000:
                timed("read as nodes", n, lambda path=path: Reader(path.read_bytes()).read())
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
