"""Peak memory and time of a training step, stqp beside a plain loop; ``python bench_step.py``.

Each runs in a process of its own: the same network, crops, losses and optimiser, ``--steps`` steps. The aim is at most
10 % more memory than the plain loop.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def patches(path):
    """A file of four synthetic patches of 320 px."""
    from stqp.patches.store import PatchWriter

    rng = np.random.default_rng(0)
    with PatchWriter(path, 320, 0.25, ["a", "b", "c", "d"]) as writer:
        for _ in range(4):
            y, x = np.mgrid[:320, :320]
            instances = np.zeros((320, 320), np.int32)
            for i in range(60):
                cx, cy = rng.uniform(0, 320, 2)
                instances[(x - cx) ** 2 + (y - cy) ** 2 < 81] = i + 1
            types = np.where(instances > 0, instances % 4 + 1, 0).astype(np.uint8)
            image = rng.integers(0, 256, (320, 320, 3), dtype=np.uint8)
            writer.append(
                (0.0, 0.0), 0, 0, images=image, instances=instances, types=types, valid=np.ones_like(types)
            )  # fmt: skip
        writer.finish([{"entry": "made"}])


def plain(path, arch, steps, batch):
    """The loop that anybody would write, with TIAToolbox's network as it comes."""
    import torch

    from stqp.patches.store import PatchFile
    from stqp.training.data import TrainingCrops
    from stqp.training.losses import HoVerNetLoss
    from stqp.training.network import architecture, build_network
    from stqp.training.settings import LossOptions

    geometry = architecture(arch)
    file = PatchFile(path)
    if arch == "lite":
        network = build_network(arch, file.classes)
    else:
        from tiatoolbox.models.architecture.hovernet import HoVerNet

        network = HoVerNet(num_types=len(file.classes) + 1, mode=arch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    crops, loss = (
        TrainingCrops(file, np.arange(4), geometry.input_size, geometry.margin, 0),
        HoVerNetLoss(LossOptions()),
    )
    network.train()
    for step in range(steps):
        items = [crops[step * batch + i] for i in range(batch)]
        data = {k: torch.stack([item[k] for item in items]) for k in items[0]}
        total, _ = loss(network(data["image"].float()), data)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def ours(path, arch, steps, batch, ema):
    """The same by `stqp.training.fit.fit`."""
    from stqp.patches.store import PatchFile
    from stqp.training.distributed import find_place
    from stqp.training.fit import fit
    from stqp.training.settings import Settings

    settings = Settings.of(
        ["x"], arch=arch, max_steps=steps, batch_size=batch, workers=0, device="cpu", select="last", ema=ema
    ).resolved()
    fit(settings, PatchFile(path), Path(path).parent, find_place(), "cpu", resume=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="fast")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--ema", type=float, default=0.0, help="With the moving average, which is a copy of the weights."
    )
    parser.add_argument("--run", nargs=2, metavar=("WHO", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        who, path = arguments.run
        started = time.process_time()
        if who == "plain":
            plain(path, arguments.arch, arguments.steps, arguments.batch)
        else:
            ours(path, arguments.arch, arguments.steps, arguments.batch, arguments.ema)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
        print(f"{peak:.0f} {time.process_time() - started:.1f}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patches.h5"
        patches(path)
        found = {}
        for who in ("plain", "stqp"):
            command = [sys.executable, __file__, "--run", who, str(path), "--arch", arguments.arch]
            command += ["--steps", str(arguments.steps), "--batch", str(arguments.batch), "--ema", str(arguments.ema)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            found[who] = [float(v) for v in output[-2:]]
            print(f"{who}: {found[who][0]:.0f} MB at most, {found[who][1]:.1f} s CPU for {arguments.steps} steps")
    memory, seconds = (found["stqp"][i] / found["plain"][i] for i in (0, 1))
    print(f"stqp / plain loop: {memory:.3f} of the memory (limit 1.10), {seconds:.2f} of the CPU time")


if __name__ == "__main__":
    main()
