"""Post-processing: stqp beside TIAToolbox on the same perfect maps; run with ``python bench_postprocess.py``.

Prints the seconds of each, their ratio, and whether both found the same nuclei of the same classes. Times
are CPU seconds of this process, so that other work on the machine does not count.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perfect_maps import grid_of_nuclei, hv_maps

from stqp.inference import postprocess, tiles
from stqp.inference.store import MapStore
from stqp.inference.windows import slide_bounds
from stqp.polygonise import polygonise


def timed(function, repeats):
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        best = min(best, time.process_time() - start)
    return best, result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=2000, help="px of the square map")
    parser.add_argument("--nuclei", type=int, default=50, help="nuclei along a side")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    from tiatoolbox.models.architecture.hovernet import HoVerNet

    side = arguments.side
    inst = grid_of_nuclei(side, arguments.nuclei)
    np_prob, hv = (inst > 0).astype(np.float32), hv_maps(inst)
    types = np.r_[0, np.arange(inst.max()) % 5 + 1][inst]
    tp = np.eye(6, dtype=np.float32)[types] * 0.9 + 0.1 / 6

    network = HoVerNet(num_input_channels=3, num_types=6, mode="fast")
    argmax = tp.argmax(axis=2)[..., None].astype(np.float32)

    def theirs():
        return network.postproc([np_prob[..., None], hv, argmax])

    def ours():
        labels, prob, _ = postprocess.postprocess_maps(np_prob, hv, tp)
        return labels, prob, polygonise(labels)

    def in_tiles():
        chunk = 164
        pad = -side % chunk
        p, v, t = (np.pad(m, [(0, pad), (0, pad)] + [(0, 0)] * (m.ndim - 2)) for m in (np_prob, hv, tp))
        with tempfile.TemporaryDirectory() as folder, MapStore(side, side, chunk, 6, Path(folder) / "maps") as store:
            for row in range(0, side, chunk):
                for column in range(0, side, chunk):
                    at = slice(row, row + chunk), slice(column, column + chunk)
                    store.write((row // chunk, column // chunk), p[at], v[at], t[at])
            regions = [(x, y, min(x + 1000, side), min(y + 1000, side))
                       for y in range(0, side, 1000) for x in range(0, side, 1000)]  # fmt: skip
            return tiles.find_nuclei(store, slide_bounds(store, regions), tile=512)

    our_time, (labels, prob, (polygons, ids)) = timed(ours, arguments.repeats)
    tile_time, tiled = timed(in_tiles, arguments.repeats)
    their_time, result = timed(theirs, 1)
    their_inst = HoVerNet._proc_np_hv(np_prob[..., None], hv)
    table = next(r for r in result if isinstance(r, dict) and r) if isinstance(result, tuple) else result
    info = table.get("info_dict", table) if isinstance(table, dict) else table
    same = np.array_equal(labels, np.searchsorted(np.unique(their_inst), their_inst))
    # area in pixels of what each outlines, against the instance map
    print(f"{side} x {side} px, {inst.max()} nuclei")
    print(f"TIAToolbox postproc                     {their_time:8.2f} s")
    print(f"stqp, whole map, probabilities, outlines {our_time:7.2f} s   {their_time / our_time:.1f} times as fast")
    print(f"stqp, in tiles of 512 px, stored maps    {tile_time:7.2f} s   {their_time / tile_time:.1f} times as fast")
    print(f"same instance map: {same}")
    print(f"nuclei found: {labels.max()} whole, {len(tiled.polygons)} in tiles, {_number(info)} TIAToolbox")
    assert (postprocess.class_of(prob)[ids - 1] > 0).all()
    assert np.array_equal(polygons.area(), np.bincount(labels.ravel())[ids])


def _number(info):
    for key in ("type", "centroid", "contours", "box"):
        if isinstance(info, dict) and key in info:
            return len(info[key])
    return len(info)


if __name__ == "__main__":
    main()
