"""Objects a second of the native backend beside QuPath itself, by paquo; ``python bench_backends.py [objects]``.

Needs PAQUO_QUPATH_DIR. Measured are writing into a new project, reading, and a second run that replaces all; QuPath's
JVM is started, and has compiled what it needs, before. Last, what paquo takes to add the outlines one by one, without
events in between.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_qpdata import nuclei
from PIL import Image

from stqp.qupath.backends import BACKENDS, open_project
from stqp.qupath.objects import ObjectKind
from stqp.qupath.ownership import owned
from stqp.qupath.paquo.jvm import start
from stqp.slides import open_slide


def timed(work):
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def measure(folder, image, objects, backend):
    def write():
        with open_slide(image, mpp=0.25) as slide, open_project(folder, "x", backend) as project:
            project.add_image(slide).write_objects(objects)

    def read():
        with open_project(folder, "r", backend) as project:
            return project.entries[0].read_objects()

    def replace():
        with open_project(folder, "r+", backend) as project:
            project.entries[0].write_objects(objects, lambda present: owned(present, "import:S"))

    seconds = {"write": timed(write)[0]}
    seconds["read"], found = timed(read)
    seconds["replace all"] = timed(replace)[0]
    assert len(found) == len(objects)
    return seconds


def one_by_one(folder, image, objects):
    """Seconds in which paquo adds the same outlines and classes, one by one."""
    from paquo.classes import QuPathPathClass
    from paquo.projects import QuPathProject

    start().LogManager.setWarn()  # paquo has it say everything
    shapes = objects.polygons.to_shapely()
    classes = {name: QuPathPathClass(name) for name in set(objects.classes.tolist())}

    def write():
        with QuPathProject(folder, "x") as project:
            entry = project.add_image(image)
            with entry.hierarchy.no_autoflush():
                for shape, name in zip(shapes, objects.classes.tolist(), strict=True):
                    entry.hierarchy.add_detection(roi=shape, path_class=classes[name])

    return timed(write)[0]


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 15_546
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "image.png"
        Image.fromarray(np.full((500, 500, 3), 230, np.uint8)).save(image)
        print(f"start of QuPath's JVM: {timed(start)[0]:.2f} s")
        for kind in (ObjectKind.ANNOTATION, ObjectKind.DETECTION):
            objects = nuclei(n, kind)
            measure(folder / f"warm-{kind}", image, objects.take(np.arange(2000)), "paquo")
            seconds = {b: measure(folder / f"{b}-{kind}", image, objects, b) for b in BACKENDS}
            print(f"{n:,} {kind.name.lower()}s of 10 to 25 vertices, 3 measurements, 4 metadata texts")
            for what in seconds["native"]:
                a, b = seconds["native"][what], seconds["paquo"][what]
                print(f"  {what:12} native {n / a:9,.0f}/s, paquo {n / b:9,.0f}/s; native is {b / a:.1f} times as fast")
        few = objects.take(np.arange(min(n, 3000)))
        theirs = len(few) / one_by_one(folder / "one-by-one", image, few)
        ours = n / seconds["native"]["write"]
        print(f"paquo adding detections one by one, outline and class only: {theirs:,.0f}/s; "
              f"native is {ours / theirs:.0f} times as fast")  # fmt: skip


if __name__ == "__main__":
    main()
