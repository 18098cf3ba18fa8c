"""Read any QuPath project without QuPath: objects of each kind and class, and their mean area (a second).

python examples/count_nuclei.py stqp-demo/project
"""

import argparse
from pathlib import Path

import pandas as pd

from stqp.qupath.objects import ObjectKind
from stqp.qupath.project import QuPathProject


def main() -> None:
    """Print a table for each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    with QuPathProject.open(parser.parse_args().project, "r") as project:
        for entry in project.entries:
            objects = entry.read_objects()
            table = pd.DataFrame(
                {
                    "kind": [ObjectKind(k).name.lower() for k in objects.kind],
                    "class": objects.classes,
                    "area": objects.polygons.area() * (entry.mpp or float("nan")) ** 2,
                }
            )
            print(f"\n{entry.name} ({entry.mpp} µm per pixel)")
            summary = table.groupby(["kind", "class"], dropna=False)["area"].agg(["size", "mean"])
            print(summary.rename(columns={"size": "objects", "mean": "mean area, µm²"}).round(1).to_string())


if __name__ == "__main__":
    main()
