"""Cutting patches from a JPEG pyramid, stqp beside a plain loop; ``python bench_patches.py [--data consep_xenium]``.

Prints patches per second of the clock, and CPU seconds a patch, of all processes: other work on the machine slows the
clock and not the CPU. The plain loop reads each patch alone, fills it polygon by polygon with OpenCV, and appends to an
HDF5 file, as most pipelines do it; which polygons touch a patch it asks a tree of shapely's. It is given the nuclei as
they were read, so that reading the project counts on stqp's side alone.

Without ``--data`` the slide is drawn (JPEG tiles of 256 px, three levels). The aim: 150 patches of 256 px a second with
2 workers.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import h5py
import numpy as np
import shapely
import tifffile

from stqp.patches.cut import cut_patches
from stqp.patches.options import CutOptions
from stqp.patches.store import PatchFile
from stqp.polygons import Polygons
from stqp.qupath.objects import PathObjects
from stqp.qupath.ownership import stamp
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord
from stqp.slides import open_slide

AIM = 150


def drawn_project(folder, side, seed=0):
    """A project of one drawn slide, a nucleus for each 50 µm²."""
    rng = np.random.default_rng(seed)
    n = side * side // 800
    centres, radii = rng.uniform(0, side, (n, 2)), rng.uniform(8, 18, n)
    image = np.kron(rng.integers(180, 240, (side // 8, side // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    for (x, y), r in zip(centres.astype(int), radii.astype(int), strict=True):
        cv2.circle(image, (int(x), int(y)), int(r), (90, 60, 140), -1)
    path = folder / "slide.tif"
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "jpeg", "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image, subifds=2, resolution=(40000, 40000), **options)
        for level in (2, 4):
            small = np.ascontiguousarray(image[::level, ::level])
            tiff.write(small, subfiletype=1, resolution=(40000 / level,) * 2, **options)
    nuclei = Polygons.from_shapely(shapely.buffer(shapely.points(centres), radii, quad_segs=6))
    classes = np.array(["Neoplastic", "Inflammatory", "Connective"], object)[rng.integers(0, 3, n)]
    with QuPathProject.open(folder / "project", "w") as project:
        with open_slide(path) as slide:
            entry = project.add_image(slide)
        entry.write_objects(stamp(PathObjects.build(nuclei, classes=classes), "import-test:s", "run"))
    return folder / "project"


def imported_project(folder, data):
    """CoNSeP's tiles as a Xenium run."""
    import pandas as pd

    from stqp.importing.xenium import import_xenium

    truth = pd.read_parquet(data / "truth" / "nuclei.parquet")[["cell_id", "class"]].drop_duplicates()
    truth.columns = ["cell_id", "label"]
    truth.to_csv(folder / "labels.csv", index=False)
    he = data / "he" / "region_he_image.ome.tif"
    alignment = data / "he" / "region_he_imagealignment.csv"
    import_xenium(data / "outs", he, alignment, folder / "project", labels=folder / "labels.csv")
    return folder / "project"


def plain_loop(project, out, origins, size):
    """The nuclei of a project in the given patches, one after the other."""
    with QuPathProject.open(project, "r") as opened:
        entry = opened.entries[0]
        objects, image = entry.read_objects(), entry.image_path
    kinds = {name: i + 1 for i, name in enumerate(sorted(set(objects.classes.tolist())))}
    rings = [objects.polygons.take([i]).coords for i in range(len(objects))]
    tree = shapely.STRtree(objects.polygons.to_shapely())
    began = time.perf_counter(), time.process_time()
    with h5py.File(out, "w") as file, open_slide(image) as slide:
        for name, rest, dtype in (("images", (3,), np.uint8), ("instances", (), np.int32), ("types", (), np.uint8)):
            shape = (size, size, *rest)
            file.create_dataset(
                name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(1, *shape), compression="lzf"
            )
        for x, y in origins:
            instances, types = np.zeros((size, size), np.int32), np.zeros((size, size), np.uint8)
            found = np.sort(tree.query(shapely.box(x, y, x + size, y + size)))
            for number, i in enumerate(found.tolist(), start=1):
                corners = np.round(rings[i] - (x, y) - 0.5).astype(np.int32)
                cv2.fillPoly(instances, [corners], number)
                cv2.fillPoly(types, [corners], kinds[objects.classes[i]])
            row = {"images": slide.read(x, y, (size, size)), "instances": instances, "types": types}
            for name, value in row.items():
                data = file[name]
                data.resize(len(data) + 1, axis=0)
                data[-1] = value
    return time.perf_counter() - began[0], time.process_time() - began[1]


def cpu():
    """CPU seconds of this process and of those that it has ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with outs, he and truth, in place of a drawn slide")
    parser.add_argument("--side", type=int, default=8192, help="px of the drawn slide")
    parser.add_argument("--size", type=int, default=256, help="px of a patch")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = imported_project(folder, arguments.data) if arguments.data else drawn_project(folder, arguments.side)
        options = CutOptions(size=arguments.size)
        results = {}
        for workers in sorted({1, arguments.workers}):
            began = time.perf_counter(), cpu()
            steps: list[tuple[float, float]] = []

            def note(done, total, steps=steps):
                steps.append((time.perf_counter(), done / total))

            out = folder / f"{workers}.h5"
            cut_patches([project], out, RunRecord("bench", {}), options, workers=workers, progress=note)
            results[workers] = time.perf_counter() - began[0], cpu() - began[1], steps
        patches = PatchFile(folder / f"{arguments.workers}.h5")
        n = len(patches)
        loop, loop_cpu = plain_loop(project, folder / "loop.h5", patches.origin.tolist(), arguments.size)
        megabytes = (folder / f"{arguments.workers}.h5").stat().st_size / 2**20
        loop_megabytes = (folder / "loop.h5").stat().st_size / 2**20
        print(f"{n} patches of {arguments.size} px, {int(patches.counts.sum())} nuclei")
        for workers, (seconds, used, steps) in results.items():
            text = f"stqp, {workers} worker{'s' if workers > 1 else ''}"
            line = f"{text:<16} {n / seconds:7.0f} patches/s   {1000 * used / n:6.2f} ms CPU a patch"
            rate = (steps[-1][1] - steps[0][1]) * n / max(steps[-1][0] - steps[0][0], 1e-9)
            print(f"{line}   {megabytes:6.0f} MB   ({rate:.0f} patches/s while batches are cut)")
        used = f"{1000 * loop_cpu / n:6.2f} ms CPU a patch   {loop_megabytes:6.0f} MB"
        print(f"{'plain loop':<16} {n / loop:7.0f} patches/s   {used}")
        seconds, used, _ = results[arguments.workers]
        print(f"stqp with {arguments.workers} workers / plain loop: {loop / seconds:.2f} times as fast by the clock, "
              f"{used / loop_cpu:.2f} times the CPU")  # fmt: skip
        at_most = min(arguments.workers, os.cpu_count() or 1) * n / used
        print(f"aim {AIM} patches/s; on {arguments.workers} idle cores the CPU seconds allow {at_most:.0f}")


if __name__ == "__main__":
    main()
