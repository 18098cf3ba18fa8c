"""Import as a whole process, beside what paquo needs for the same objects; ``python bench_import.py DATA``.

DATA is a folder with ``outs``, ``he`` and, if there, ``truth`` as examples/consep_xenium.py describes. paquo
needs an installed QuPath (``PAQUO_QUPATH_DIR``); where there is none, the line says so and nothing is made up.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def paquo_seconds(objects, folder):
    """Seconds in which paquo adds the same annotations to a project."""
    from paquo.projects import QuPathProject as PaquoProject

    geometries = objects.polygons.to_shapely()
    started = time.monotonic()
    with PaquoProject(folder, mode="w") as project:
        entry = project.add_image(os.environ["STQP_BENCH_IMAGE"])
        for geometry in geometries:
            entry.hierarchy.add_annotation(roi=geometry)
    return time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    he = next((arguments.data / "he").glob("*.tif"))
    alignment = next((arguments.data / "he").glob("*.csv"))
    os.environ["STQP_BENCH_IMAGE"] = str(he)
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for repeat in range(arguments.repeats):
            project = Path(folder) / f"project{repeat}"
            command = [sys.executable, "-m", "stqp_cli.main", "import-xenium", str(arguments.data / "outs")]
            command += ["--he", str(he), "--alignment", str(alignment), "--project", str(project)]
            started = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.monotonic() - started)
        from stqp.qupath.project import QuPathProject

        with QuPathProject.open(project, "r") as opened:
            objects = opened.entries[0].read_objects()
        ours = min(seconds)
        print(f"stqp import-xenium, whole process: {ours:.2f} s for {len(objects):,} nuclei (limit 10 s)")
        try:
            theirs = paquo_seconds(objects, Path(folder) / "paquo")
        except ValueError as error:
            print(f"paquo: not measured ({error}); ratio not known")
        else:
            print(f"paquo, adding the same outlines only: {theirs:.2f} s; ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
