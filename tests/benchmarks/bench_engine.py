"""The engine around a network that knows the answer; run with ``python bench_engine.py``.

The stub reads perfect maps from the colours of the slide, so that all time that is not its own is the engine's.
Each case runs in a process of its own and prints what it found, its seconds, those spent in the stub, and its
largest memory with all it loaded. TIAToolbox's engine runs on the same stub and the same slide of 2000 x 2000 px.

``--sides 2000 20000 40000`` for more; a slide of 20,000 px takes two minutes to write, once, and 5 GB of disk
while it is predicted. ``--fast`` measures the share of time outside of the real `fast` network.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perfect_maps import CLASSES, ColourNetwork, grid_of_nuclei, paint

PATTERN, NUCLEI = 2000, 50  # px of the piece that slides are laid with, and nuclei along its side


class Timed:
    """A network that knows how long it was asked."""

    def __init__(self, network):
        self.network, self.wall, self.cpu, self.windows = network, 0.0, 0.0, 0

    def __getattr__(self, name):
        return getattr(self.network, name)

    def predict(self, batch):
        wall, cpu = time.perf_counter(), time.thread_time()
        result = self.network.predict(batch)
        self.wall += time.perf_counter() - wall
        self.cpu += time.thread_time() - cpu
        self.windows += len(batch)
        return result


def pattern():
    inst = grid_of_nuclei(PATTERN, NUCLEI)
    return inst, np.arange(inst.max()) % 3 + 1


def slide_of(side, folder):
    """A slide laid with the pattern, as a tiled TIFF without loss."""
    import tifffile

    path = folder / f"painted-{side}.tif"
    if path.is_file():
        return path
    image = paint(*pattern())

    def tiles():
        for y in range(0, side, 512):
            for x in range(0, side, 512):
                rows, columns = (np.arange(v, v + 512) % PATTERN for v in (y, x))
                yield image[np.ix_(rows, columns)]

    temporary = path.with_suffix(".part")
    with tifffile.TiffWriter(temporary, bigtiff=True) as file:
        file.write(
            tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(512, 512), compression="zlib",
            photometric="rgb", resolution=(40000, 40000), resolutionunit="CENTIMETER",
        )  # fmt: skip
    temporary.rename(path)
    return path


def judge(centres, classes):
    """Nuclei found, found twice, and of a wrong class."""
    inst, types = pattern()
    x, y = np.floor(centres).astype(int).T
    block = y // PATTERN * 10_000 + x // PATTERN
    nucleus = inst[y % PATTERN, x % PATTERN]
    keys, counts = np.unique(block[nucleus > 0] * 10_000 + nucleus[nucleus > 0], return_counts=True)
    wrong = types[nucleus[nucleus > 0] - 1] != np.asarray(classes)[nucleus > 0]
    return {"found": len(keys), "twice": int((counts - 1).sum() + (nucleus == 0).sum()), "wrong type": int(wrong.sum())}


def ours(path, window, batch, tile):
    from stqp.inference.engine import predict_slide
    from stqp.slides import open_slide

    network = Timed(ColourNetwork(window, window - 92))
    with open_slide(path) as slide:
        predict_slide(slide, network, tissue=False, boxes=[[0, 0, 300, 300]])  # what is imported once
        network.wall = network.cpu = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        found = predict_slide(slide, network, tissue=False, batch_size=batch, tile=tile)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {**judge(found.polygons.centroid(), found.class_ids), "wall": wall, "cpu": cpu,
            "network wall": network.wall, "network cpu": network.cpu}  # fmt: skip


def theirs(path):
    import logging

    logging.getLogger().addHandler(logging.NullHandler())
    import torch
    from tiatoolbox.models.architecture.hovernet import HoVerNet
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.multi_task_segmentor import MultiTaskSegmentor

    stub = ColourNetwork(256, 164)
    spent = [0.0, 0.0]

    class Stub(HoVerNet):
        @staticmethod
        def infer_batch(_model, batch_data, *, device):
            wall, cpu = time.perf_counter(), time.thread_time()
            maps = stub.predict(np.asarray(batch_data, np.uint8))
            argmax = maps["tp"].argmax(axis=-1)[..., None].astype(np.float32)
            spent[0] += time.perf_counter() - wall
            spent[1] += time.thread_time() - cpu
            return maps["np"][..., None], maps["hv"].astype(np.float32), argmax

    torch.set_num_threads(1)
    names = {0: "Background", **dict(enumerate(CLASSES, start=1))}
    model = Stub(num_types=len(CLASSES) + 1, mode="fast", nuc_type_dict=names)
    config = IOSegmentorConfig(
        input_resolutions=[{"units": "mpp", "resolution": 0.25}],
        output_resolutions=[{"units": "mpp", "resolution": 0.25}] * 3,
        patch_input_shape=[256, 256], patch_output_shape=[164, 164], stride_shape=[164, 164],
        save_resolution={"units": "mpp", "resolution": 0.25}, tile_shape=(1024, 1024), margin=128,
    )  # fmt: skip
    engine = MultiTaskSegmentor(model=model, batch_size=8, num_workers=0, device="cpu", verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        result = engine.run(
            [path], patch_mode=False, ioconfig=config, save_dir=Path(folder) / "out", output_type="zarr",
            auto_get_mask=False, device="cpu",
        )  # fmt: skip
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        import zarr

        place = next(iter(result.values())) if isinstance(result, dict) else result
        group = zarr.open(str(place[0] if isinstance(place, list) else place), mode="r")
        while "centroids" not in group and "centroid" not in group:
            group = next(group[name] for name in group if hasattr(group[name], "keys"))
        key = "centroid" if "centroid" in group else "centroids"
        centres, types = np.asarray(group[key]).reshape(-1, 2), np.asarray(group["type"]).reshape(-1)
    return {**judge(centres, types), "wall": wall, "cpu": cpu, "network wall": spent[0], "network cpu": spent[1]}


def fast(windows, window):
    """The real network, untrained, on a handful of windows."""
    import torch

    from stqp.inference.engine import predict_slide
    from stqp.inference.model import TorchPredictor
    from stqp.slides import open_slide
    from stqp.training.network import build_network

    torch.manual_seed(0)
    network = Timed(TorchPredictor(
        build_network("fast", CLASSES), name="fast", classes=CLASSES, mpp=0.25,
        input_size=window, output_size=window - 92, device="cpu",
    ))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        side = (window - 92) * windows
        path = slide_of(side, Path(folder))
        with open_slide(path) as slide:
            wall, cpu = time.perf_counter(), time.process_time()
            predict_slide(slide, network, tissue=False, batch_size=1)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"windows": network.windows, "wall": wall, "cpu": cpu, "network wall": network.wall}


def apart(arguments, *case):
    """Run a case in a process of its own."""
    script = [sys.executable, __file__, "--folder", str(arguments.folder), "--case", *map(str, case)]
    quiet = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run(script, capture_output=True, text=True, env=quiet)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[2000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "stqp-bench")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--no-peer", action="store_true", help="without TIAToolbox")
    parser.add_argument("--fast", action="store_true", help="the share of time outside of the real network")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.case:
        import resource

        name, *rest = arguments.case
        if name == "ours":
            side, window, batch, tile = map(int, rest)
            result = ours(slide_of(side, arguments.folder), window, batch, tile)
        elif name == "theirs":
            result = theirs(slide_of(int(rest[0]), arguments.folder))
        else:
            result = fast(*map(int, rest))
        result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(result))
        return
    if arguments.fast:
        got = apart(arguments, "fast", 2, 512)
        outside = got["wall"] - got["network wall"]
        print(f"fast, {got['windows']} windows of 512 px: {got['wall']:.1f} s, outside of the network {outside:.2f} s, "
              f"{outside / got['wall']:.1%}; {got['memory']:.1f} GB")  # fmt: skip
        return
    print(f"{'':24}{'found':>9}{'twice':>7}{'wrong':>7}{'wall s':>9}{'CPU s':>9}{'around':>14}{'CPU':>8}{'GB':>7}")
    rows = {}
    for side in arguments.sides:
        slide_of(side, arguments.folder)
        window = min(arguments.window, 512) if side <= 2000 else arguments.window
        rows[side] = row(f"stqp {side} px", apart(arguments, "ours", side, window, arguments.batch, arguments.tile))
        speed = (side / 164) ** 2 / rows[side]["wall"]
        print(f"{'':24}of {side * side // 1600}; {speed:.0f} windows of 256 px a second")
    if not arguments.no_peer:
        peer = row("TIAToolbox 2000 px", apart(arguments, "theirs", 2000))
        if 2000 in rows:
            around = [r["wall"] - r["network wall"] for r in (peer, rows[2000])]
            cpu = [r["cpu"] - r["network cpu"] for r in (peer, rows[2000])]
            print(f"around the network stqp is {around[0] / around[1]:.1f} times as fast, "
                  f"and takes {cpu[0] / cpu[1]:.1f} times less CPU")  # fmt: skip


def row(name, r):
    around = r["wall"] - r["network wall"], r["cpu"] - r["network cpu"]
    print(f"{name:24}{r['found']:9}{r['twice']:7}{r['wrong type']:7}{r['wall']:9.2f}{r['cpu']:9.2f}"
          f"{around[0]:14.2f}{around[1]:8.2f}{r['memory']:7.2f}", flush=True)  # fmt: skip
    return r


if __name__ == "__main__":
    main()
