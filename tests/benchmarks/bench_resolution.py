"""Nuclei found in maps without a fault, at several resolutions; run with ``python bench_resolution.py``.

Instance maps of CoNSeP (in the folder that ``STQP_REAL_DATA`` names) are thinned out to coarser pixels, turned into
the maps that a perfect network would give, as they are and blurred with noise, and processed by stqp and by
TIAToolbox. Prints the mean PQ of each and their ratio.
"""

import os
import sys
from pathlib import Path

import cv2
import numpy as np
from tiatoolbox.models.architecture.hovernet import HoVerNet

from stqp.evaluation.scores import score_maps
from stqp.inference import postprocess
from stqp.training.targets import hv_map


def main():
    folder = os.environ.get("STQP_REAL_DATA")
    if not folder:
        sys.exit("set STQP_REAL_DATA to the folder that holds consep_tiles")
    files = [Path(folder) / "consep_tiles" / f"train_{i}.npz" for i in (3, 8, 12, 20, 24)]
    print("µm/px  maps      stqp   TIAToolbox  ratio")
    for step in (1, 2, 4):
        for noisy in (False, True):
            ours, theirs = zip(*(scores(np.load(file)["inst"], step, noisy) for file in files), strict=True)
            a, b = np.mean(ours), np.mean(theirs)
            print(f"{step / 4:5}  {'blurred' if noisy else 'perfect'}  {a:5.3f}  {b:10.3f}  {a / b:5.2f}")


def scores(inst, step, noisy):
    mpp = 0.25 * step
    inst = np.ascontiguousarray(inst[::step, ::step])
    hv = np.moveaxis(hv_map(inst, mpp), 0, -1).copy()
    if noisy:
        hv += np.random.default_rng(0).normal(0, 0.2, hv.shape).astype(np.float32)
        hv = cv2.GaussianBlur(hv, (0, 0), 2 / step)
    np_prob = (inst > 0).astype(np.float32)
    found = postprocess.instances(np_prob, hv, mpp=mpp), HoVerNet._proc_np_hv(np_prob[..., None], hv)
    return [score_maps(inst, None, map_, None, mpp, 1)["pq"] for map_ in found]


if __name__ == "__main__":
    main()
