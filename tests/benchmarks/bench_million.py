"""Import of a large bundle, whole process; ``python bench_million.py [--nuclei 10000 100000 1000000] [--peer PYTHON]``.

A small bundle (that of ``--data``, a folder with ``outs`` as examples/consep_xenium.py describes, or a synthetic one)
is repeated side by side, on a slide drawn to it, until it has so many nuclei. Printed: seconds, CPU seconds and memory
of ``stqp import-xenium`` without typing, and of the reading alone; how time grows; and what spatialdata-io's reader
needs to read the same tables (cells, both boundaries, matrix; no images, no transcripts) when ``--peer`` names a
Python that has it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MPP = 0.25
READ = """
import sys
from stqp.sources.xenium import XeniumBundle
bundle = XeniumBundle.open(sys.argv[1])
cells = bundle.read_cells()
bundle.read_nuclei(cells.ids, "polygons", cells.nucleus_count)
bundle.read_cell_outlines(cells.ids)
bundle.read_counts(cells.ids)
"""
PEER = """
import sys, warnings
warnings.filterwarnings("ignore")
from spatialdata_io import xenium
xenium(sys.argv[1], cells_labels=False, nucleus_labels=False, transcripts=False, morphology_mip=False,
       morphology_focus=False, aligned_images=False, cells_as_circles=False)
"""


def repeat(source, outs, nuclei):
    """Write a bundle of at least so many nuclei; return their number, those of one tile, its sides, tiles in a row."""
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stqp.polygons import Polygons
    from stqp.sources.xenium_versions import LAYOUTS
    from stqp.synthetic.bundle import cell_id
    from stqp.synthetic.zarr_files import id_numbers, write_cells

    outs.mkdir(parents=True)
    tables = {s: pq.read_table(source / f"{s}.parquet") for s in ("cells", "nucleus_boundaries", "cell_boundaries")}
    row = {cell: i for i, cell in enumerate(tables["cells"]["cell_id"].to_pylist())}
    in_one = int(tables["nucleus_boundaries"]["label_id"].to_numpy().max())
    times = -(-nuclei // in_one)
    side = int(np.ceil(np.sqrt(times)))
    period = 1024 * MPP  # of the slide's tiles, so that all repetitions are the same few encoded tiles
    step = [-(-float(tables["cell_boundaries"][f"vertex_{a}"].to_numpy().max() + 5) // period) * period for a in "xy"]
    numbers = np.random.default_rng(0).choice(2**32 - 1, len(row) * times, replace=False).astype(np.uint32)
    ids = cell_id(numbers).reshape(times, -1)
    for stem, table in tables.items():
        owner = np.array([row[cell] for cell in table["cell_id"].to_pylist()])
        columns = {"cell_id": pa.array(ids[:, owner].ravel())}
        for name in table.column_names[1:]:
            values = table[name].to_numpy()
            columns[name] = np.tile(values, times)
            if name.endswith(("_centroid", "vertex_x", "vertex_y")):
                axis = 0 if "x" in name.replace("vertex", "") else 1
                tile = np.arange(times) % side if axis == 0 else np.arange(times) // side
                columns[name] += np.repeat(tile * step[axis], len(values)).astype(values.dtype)
            elif name == "label_id":
                columns[name] += np.repeat(np.arange(times, dtype=values.dtype) * values.max(), len(values))
        pq.write_table(pa.table(columns), outs / f"{stem}.parquet")
    with h5py.File(source / "cell_feature_matrix.h5") as old, h5py.File(outs / "cell_feature_matrix.h5", "w") as new:
        matrix, group = old["matrix"], new.create_group("matrix")
        group["barcodes"] = np.char.encode(ids[:, [row[cell] for cell in matrix["barcodes"][:].astype(str)]].ravel())
        for name in ("data", "indices"):
            group.create_dataset(name, data=np.tile(matrix[name][:], times), compression=1, chunks=(1 << 16,))
        group["indptr"] = np.r_[0, np.cumsum(np.tile(np.diff(matrix["indptr"][:]), times))]
        group["shape"] = np.array([matrix["shape"][0], ids.size], np.int32)
        old.copy("matrix/features", group)
    (outs / "experiment.xenium").write_bytes((source / "experiment.xenium").read_bytes())
    # spatialdata-io wants the zarr file to be there; the masks in it are empty, as nobody reads them here
    label = tables["nucleus_boundaries"]["label_id"].to_numpy()
    first = np.unique(label, return_index=True)[1]
    of = np.array([row[tables["nucleus_boundaries"]["cell_id"][int(i)].as_py()] for i in first])
    of = (np.arange(times)[:, None] * len(row) + of).ravel()
    dot = [[0, 0], [1, 0], [0, 1]]
    dots = [Polygons.from_rings(np.tile(dot, (n, 1)), np.arange(n + 1) * 3) for n in (len(of), ids.size)]
    layout = next(layout for layout in LAYOUTS if layout.name == "2.0")
    write_cells(outs / "cells.zarr.zip", layout, id_numbers(numbers, True), dots[0], dots[1], of, (8, 8), 0.2125)
    ring = np.r_[np.sort(first), len(label)]
    xy = np.column_stack([tables["nucleus_boundaries"][f"vertex_{axis}"].to_numpy() for axis in "xy"])
    return in_one * times, Polygons.from_rings(xy, ring), [round(s / MPP) for s in step], side


def write_slide(path, nuclei, step, side):
    """Write a pyramid on which the nuclei of one tile, in µm, are repeated; steps in px."""
    import cv2
    import imagecodecs
    import tifffile

    image = np.full((step[1], step[0], 3), (238, 222, 232), np.uint8)
    image[nuclei.scale(1 / MPP).rasterize(image.shape[:2]) > 0] = (90, 60, 140)
    unit = {"PhysicalSizeX": MPP, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": MPP, "PhysicalSizeYUnit": "µm"}
    levels = 6
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as tif:
        for level in range(levels):
            tile = 1024 >> level  # a smaller tile on each level: a step is always as many tiles
            encoded = [
                [
                    imagecodecs.jpeg8_encode(np.ascontiguousarray(part), 90)
                    for part in np.split(row, row.shape[1] // tile, 1)
                ]
                for row in np.split(image, image.shape[0] // tile)
            ]
            tiles = (one for _ in range(side) for row in encoded for _ in range(side) for one in row)
            more = {"subifds": levels - 1, "metadata": {"axes": "YXS", **unit}} if not level else {"subfiletype": 1}
            shape = (image.shape[0] * side, image.shape[1] * side, 3)
            tif.write(
                tiles, shape=shape, dtype="uint8", photometric="rgb", tile=(tile, tile), compression="jpeg", **more
            )
            image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def measure(command):
    """Seconds, CPU seconds and GB of a process; None where it fails."""
    from resource import RUSAGE_CHILDREN, getrusage  # not on Windows

    before = getrusage(RUSAGE_CHILDREN)
    started = time.monotonic()
    watcher = "import resource, subprocess, sys, json; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)"
    watcher += (
        ".returncode; use = resource.getrusage(resource.RUSAGE_CHILDREN); print(json.dumps([code, use.ru_maxrss]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", watcher, *map(str, command)], capture_output=True, text=True, check=True
    )
    seconds = time.monotonic() - started
    code, memory = json.loads(done.stdout)
    after = getrusage(RUSAGE_CHILDREN)
    if code:
        print(done.stderr)
        return None
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, memory / (2**30 if sys.platform == "darwin" else 2**20)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--nuclei", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--peer", help="a Python with spatialdata-io")
    arguments = parser.parse_args()
    peer = arguments.peer
    if peer is None or subprocess.run([peer, "-c", "import spatialdata_io"], capture_output=True).returncode:
        print("spatialdata-io is not there: nothing to compare with")
        peer = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = arguments.data / "outs" if arguments.data else None
        if source is None:
            from stqp.synthetic import make_sample

            source = make_sample(folder / "sample").outs
        rates = []
        for wanted in arguments.nuclei:
            outs = folder / f"outs{wanted}"
            nuclei, one, step, side = repeat(source, outs, wanted)
            slide = folder / f"slide{wanted}.ome.tif"
            write_slide(slide, one, step, side)
            (folder / "alignment.csv").write_text(f"{MPP / 0.2125!r},0,0\n0,{MPP / 0.2125!r},0\n0,0,1\n")
            command = [sys.executable, "-m", "stqp_cli.main", "import-xenium", outs, "--he", slide, "--project"]
            command += [folder / f"project{wanted}", "--alignment", folder / "alignment.csv"]
            seconds, cpu, memory = measure(command)
            rates.append(cpu / nuclei)
            print(
                f"import-xenium, {nuclei:,} nuclei: {seconds:.1f} s, CPU {cpu:.1f} s, {memory:.2f} GB "
                f"(limits for 1,000,000: 120 s, 6 GB); load of the machine {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            command[command.index("--project") + 1] = folder / f"project{wanted}-no-qc"
            seconds, cpu, memory = measure([*command, "--no-qc"])
            print(f"  without the look at the alignment: {seconds:.1f} s, CPU {cpu:.1f} s, {memory:.2f} GB", flush=True)
            ours = measure([sys.executable, "-c", READ, outs])
            print(f"  reading alone: {ours[0]:.1f} s, CPU {ours[1]:.1f} s, {ours[2]:.2f} GB")
            theirs = measure([peer, "-c", PEER, outs]) if peer else None
            if theirs:
                print(
                    f"  spatialdata-io, reading: {theirs[0]:.1f} s, CPU {theirs[1]:.1f} s, {theirs[2]:.2f} GB; "
                    f"ratio of CPU {theirs[1] / ours[1]:.1f}, of memory {theirs[2] / ours[2]:.1f}"
                )
        print(f"CPU time a nucleus, against the smallest: {', '.join(f'{rate / rates[0]:.2f}' for rate in rates)}")


if __name__ == "__main__":
    main()
