"""Shifts of the outlines found on real stain, beside plain phase correlation; ``python bench_alignment.py DATA``.

DATA is a folder with ``outs`` and ``he``. The peer is skimage's ``phase_cross_correlation`` of the mask of all nuclei
with the haematoxylin of skimage's ``rgb2hed``, of the whole image at once at 0.5 µm per px, the usual first attempt;
with and without its normalisation. Errors are distances in µm from the shift that was made.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from stqp.alignment import measure, read_alignment, refine
from stqp.polygons import Polygons
from stqp.slides import open_slide
from stqp.sources.xenium import XeniumBundle

STEP_UM = 0.5


def plain(slide, nuclei, mpp, normalization):
    """Offset of the nuclei by one phase correlation, µm."""
    from skimage.color import rgb2hed
    from skimage.registration import phase_cross_correlation

    scale = STEP_UM / mpp
    size = int(slide.width / scale), int(slide.height / scale)
    stain = rgb2hed(slide.read(0, 0, size, scale))[..., 0]
    mask = np.zeros(size[::-1], np.uint8)
    nuclei.scale(1 / scale).rasterize(mask.shape, np.ones(len(nuclei), np.uint8), mask)
    shift, *_ = phase_cross_correlation(mask.astype(float), stain, upsample_factor=20, normalization=normalization)
    return shift[::-1] * STEP_UM


def warp(nuclei, mpp, amplitude, seed=0):
    """Nuclei displaced by two waves an axis, of 700 to 1500 µm."""
    rng = np.random.default_rng(seed)
    at = nuclei.coords * mpp
    way = np.zeros_like(at)
    for axis in (0, 1):
        for _ in range(2):
            angle, length, phase = rng.uniform(0, 2 * np.pi), rng.uniform(700, 1500), rng.uniform(0, 2 * np.pi)
            way[:, axis] += np.sin(2 * np.pi * (at @ [np.cos(angle), np.sin(angle)]) / length + phase)
    way *= amplitude / np.hypot(*way.T).max()
    return Polygons(nuclei.coords + way / mpp, nuclei.ring_offsets, nuclei.geom_offsets)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    bundle = XeniumBundle.open(arguments.data / "outs")
    aligned = read_alignment(next((arguments.data / "he").glob("*.csv")))
    um = bundle.read_nuclei(bundle.read_cells().ids).polygons
    nuclei = um.transform(aligned.um_to_he(bundle.pixel_size))
    with open_slide(next((arguments.data / "he").glob("*.tif"))) as slide:
        mpp = aligned.mpp(bundle.pixel_size, slide.mpp, slide.path)
        methods = {
            "stqp measure": lambda moved: measure(slide, moved, mpp).offset,
            "phase correlation": lambda moved: plain(slide, moved, mpp, "phase"),
            "cross-correlation": lambda moved: plain(slide, moved, mpp, None),
        }
        errors, seconds = {name: [] for name in methods}, {name: [] for name in methods}
        for length in (2, 4, 8, 15):
            for angle in (20, 110, 245):
                way = length * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
                moved = nuclei.shift(*way / mpp)
                for name, method in methods.items():
                    started = time.monotonic()
                    errors[name].append(float(np.hypot(*(method(moved) - way))))
                    seconds[name].append(time.monotonic() - started)
        own = float(np.median(errors["stqp measure"])), float(np.median(seconds["stqp measure"]))
        print(f"{len(nuclei):,} nuclei shifted by 2 to 15 µm in 12 ways; median and largest error, time")
        for name in methods:
            middle, worst = float(np.median(errors[name])), max(errors[name])
            took = float(np.median(seconds[name]))
            ratio = f"error x {middle / own[0]:.1f}, time x {took / own[1]:.1f} of stqp's"
            print(f"{name:<18} {middle:6.2f} µm {worst:6.2f} µm {took:5.1f} s   {ratio}")
        moved = warp(nuclei, mpp, 6.0)
        print("a smooth warp of 6 µm; median and 95th percentile of what is left")
        for kind in ("off", "shift", "affine", "smooth"):
            started = time.monotonic()
            result = refine(slide, moved, mpp, kind)
            left = np.hypot(*(result.correction.apply(moved.coords) - nuclei.coords).T) * mpp
            took = time.monotonic() - started
            print(f"{kind:<18} {np.median(left):6.2f} µm {np.percentile(left, 95):6.2f} µm {took:5.1f} s")
        left = np.hypot(*((moved.coords - nuclei.coords) + plain(slide, moved, mpp, None) * -1 / mpp).T) * mpp
        print(f"{'cross-correlation':<18} {np.median(left):6.2f} µm {np.percentile(left, 95):6.2f} µm")


if __name__ == "__main__":
    main()
