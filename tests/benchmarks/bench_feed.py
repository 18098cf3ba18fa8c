"""How many augmented crops of 256 px with targets two workers feed; ``python bench_feed.py``.

The peer makes targets as HoVer-Net's published code does, nucleus by nucleus over the whole crop; reading and
augmentation are the same. The aim is 25 a second.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from stqp.importing.xenium import import_xenium
from stqp.patches.cut import cut_patches
from stqp.patches.options import CutOptions
from stqp.patches.store import PatchFile
from stqp.record import RunRecord
from stqp.synthetic import make_sample
from stqp.training.augment import Crop, augment
from stqp.training.data import CONTEXT, EndlessBatches, TrainingCrops, loader, targets


def loop_targets(instances):
    """Distances of each nucleus, one after the other: a mask of the whole crop, its box, its centre of mass."""
    fixed = np.zeros_like(instances)
    number = 0
    for one in np.unique(instances)[1:]:  # a nucleus cut in two becomes two
        pieces, count = ndimage.label(instances == one)
        for piece in range(1, count + 1):
            number += 1
            fixed[pieces == piece] = number
    result = np.zeros((2, *instances.shape), np.float32)
    for one in range(1, number + 1):
        mask = fixed == one
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        inside = mask[box]
        if inside.sum() < 30:
            continue
        middle = ndimage.center_of_mass(inside)
        y, x = np.mgrid[: inside.shape[0], : inside.shape[1]]
        for channel, distance in ((0, x - int(middle[1] + 0.5)), (1, y - int(middle[0] + 0.5))):
            distance = np.where(inside, distance, 0).astype(np.float32)
            for sign in (-1, 1):
                side = distance * sign > 0
                if side.any():
                    distance[side] /= np.abs(distance[side]).max()
            result[channel][box][inside] = distance[inside]
    return result


class PeerCrops(TrainingCrops):
    """The same crops with targets made in a loop."""

    def __getitem__(self, number):
        rng = np.random.default_rng((self.seed, number))
        patch = self.patches.read(int(self.rows[number % len(self.rows)]))
        field = Crop(patch["images"], patch["instances"], patch["types"], patch["valid"], patch["weight"])
        crop = augment(field, self.size + 2 * CONTEXT, rng, self.options)
        hv = loop_targets(crop.instances)[:, CONTEXT + self.margin :, CONTEXT + self.margin :]
        crop.instances = np.minimum(crop.instances, 1)  # leave nothing to do for ours
        made = targets(crop, self.margin)
        side = made["hv"].shape[-1]
        made["hv"] = torch.from_numpy(np.ascontiguousarray(hv[:, :side, :side]))
        return made


def feed(crops, workers, number, batch=8):
    """Crops a second, and CPU milliseconds of the workers for one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    batches = iter(loader(crops, EndlessBatches(len(crops), batch, 0), workers, False))
    next(batches)
    started = time.perf_counter()
    for _ in range(number // batch):
        next(batches)
    seconds = time.perf_counter() - started
    made = number // batch + 1 + 2 * workers  # what the workers prepared ahead counts in their time
    del batches
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return number / seconds, 1000 * cpu / (made * batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=320, help="Crops to draw.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--arch", choices=["fast", "lite"], default="fast")
    arguments = parser.parse_args()
    margin = {"fast": 46, "lite": 16}[arguments.arch]
    with tempfile.TemporaryDirectory() as folder:
        sample = make_sample(Path(folder) / "sample", seed=0, size=(2048, 2048))
        project = Path(folder) / "project"
        import_xenium(
            sample.outs, sample.he, sample.alignment, project, labels=sample.labels, class_map=sample.class_map
        )
        cut_patches([project], Path(folder) / "p.h5", RunRecord("bench", {}), CutOptions(validation=0.0))
        patches = PatchFile(Path(folder) / "p.h5")
        rows = np.arange(len(patches))
        nuclei = np.mean([len(np.unique(patches.read(int(r))["instances"])) - 1 for r in rows])
        print(f"{len(patches)} patches of {patches.size} px with {nuclei:.0f} nuclei each, {arguments.workers} workers")
        ours, cpu = feed(TrainingCrops(patches, rows, 256, margin, 0), arguments.workers, arguments.number)
        print(f"stqp: {ours:.1f} crops of 256 px a second, {cpu:.1f} ms CPU a crop (aim: 25 a second)")
        peer, peer_cpu = feed(PeerCrops(patches, rows, 256, margin, 0), arguments.workers, arguments.number)
        print(f"targets nucleus by nucleus: {peer:.1f} a second, {peer_cpu:.1f} ms CPU a crop")
        print(f"stqp / nucleus by nucleus: {ours / peer:.1f} times the crops, {peer_cpu / cpu:.1f} times less CPU")
        crop = patches.read(0)["instances"][:304, :304]
        for name, make in (("stqp", hv_only), ("nucleus by nucleus", loop_targets)):
            started = time.process_time()
            for _ in range(10):
                make(crop)
            print(f"distance maps of 304 px alone, {name}: {100 * (time.process_time() - started):.1f} ms CPU")


def hv_only(instances):
    """Ours alone."""
    from stqp.training.targets import hv_map, split_touching_border

    return hv_map(split_touching_border(instances))


if __name__ == "__main__":
    main()
