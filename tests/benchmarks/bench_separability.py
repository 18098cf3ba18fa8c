"""Features of nuclei beside scikit-image, and the whole of `stqp separability`.

python tests/benchmarks/bench_separability.py FOLDER [--peer 1500]

FOLDER is the sample consep_xenium. The peer measures with regionprops, one nucleus at a time, what it has of the same
features: shape, mean and quantiles of the stain, and co-occurrence; no ring, rim, spots or neighbours.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from stqp.importing.xenium import import_xenium
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord
from stqp.report.separability import separability
from stqp.separability import features, pixels
from stqp.separability.groups import read_slide
from stqp.slides import open_slide


def timed(work):
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor


def by_regionprops(opened, polygons, stain, number):
    """The first nuclei, one at a time."""
    from skimage.feature import graycomatrix, graycoprops
    from skimage.measure import regionprops

    image = opened.read(0, 0, (opened.width, opened.height))
    blue = stain.stains.amount(image) / stain.haematoxylin
    labels = polygons.rasterize(image.shape[:2])
    rows = []
    for one in regionprops(labels, intensity_image=blue)[:number]:
        values = blue[one.slice][one.image]
        codes = np.where(one.image, pixels.grey_levels(blue[one.slice]) + 1, 0).astype(np.uint8)
        counts = graycomatrix(codes, [2, 4], np.arange(4) * np.pi / 4, 65, symmetric=True)[1:, 1:].astype(float)
        texture = [graycoprops(counts, name) for name in ("contrast", "homogeneity", "correlation")]
        rows.append(
            [one.area, one.perimeter, one.eccentricity, one.solidity, one.axis_major_length, one.axis_minor_length,
             values.mean(), values.std(), *np.quantile(values, (0.1, 0.5, 0.9)), *np.ravel(texture)]
        )  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", type=int, default=1500, help="Nuclei that scikit-image measures.")
    options = parser.parse_args()
    he, alignment = (options.folder / "he" / f"region_he_image{end}" for end in (".ome.tif", "alignment.csv"))
    with tempfile.TemporaryDirectory() as place:
        project = Path(place) / "project"
        import_xenium(options.folder / "outs", he, alignment, project, cell_types="stqp")
        with QuPathProject.open(project, "r") as opened:
            nuclei = read_slide(opened.entries[0], "fine", RunRecord("bench", {}))
        with open_slide(nuclei.image, nuclei.mpp) as slide:
            n = len(nuclei.polygons)
            found, wall, ours = timed(lambda: features.measure(slide, nuclei.polygons, nuclei.mpp, nuclei.coverage))
            print(
                f"{n:,} nuclei, {found.values.shape[1]} features: {wall:.1f} s, {ours:.1f} s of processor, "
                f"{n / ours:,.0f} nuclei and {found.values.size / ours:,.0f} features a second"
            )
            stain = pixels.SlideStain.of(slide, nuclei.polygons.centroid(), 1.0)
            rows, wall, peer = timed(lambda: by_regionprops(slide, nuclei.polygons, stain, options.peer))
            print(
                f"scikit-image, {len(rows):,} nuclei one at a time: {wall:.1f} s, {len(rows) / peer:,.0f} nuclei a "
                f"second of processor; ours {(n / ours) / (len(rows) / peer):.1f} times as fast"
            )
        for by in ("fine", "cluster"):
            record, wall, processor = timed(lambda by=by: separability(project, by=by))
            print(
                f"stqp separability --by {by}: {wall:.1f} s, {processor:.1f} s of processor, "
                f"{record.counts['groups judged']} groups"
            )
            print(f"  {record.results['statement']}")


if __name__ == "__main__":
    main()
