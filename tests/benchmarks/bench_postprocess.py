"""Post-processing: stqp beside TIAToolbox on the same perfect maps; run with ``python bench_postprocess.py``.

Prints the CPU seconds of each, their ratio, and how far both find the same nuclei. TIAToolbox goes through the
whole map for each nucleus, so that its time grows with the square of the area: it runs on a quarter of the map
unless ``--peer-side`` says otherwise, and that is said beside its time. All with one thread; CPU seconds, so that
other work on the machine does not count.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perfect_maps import grid_of_nuclei, hv_maps

from stqp.evaluation.scores import score_maps
from stqp.inference import postprocess, tiles
from stqp.inference.store import MapStore
from stqp.inference.windows import slide_bounds
from stqp.polygonise import polygonise

PITCH = 40  # px a nucleus has to itself along each side


def timed(function, repeats=1):
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        best = min(best, time.process_time() - start)
    return best, result


def maps_of(side):
    """Perfect maps, laid with a piece of 1000 px."""
    piece = grid_of_nuclei(1000, 1000 // PITCH)
    n = -(-side // 1000)
    number = np.arange(n * n).reshape(n, n).repeat(1000, axis=0).repeat(1000, axis=1) * int(piece.max())
    inst = np.where(np.tile(piece, (n, n)) > 0, np.tile(piece, (n, n)) + number, 0)[:side, :side].astype(np.int32)
    types = np.r_[0, np.arange(inst.max()) % 5 + 1]
    tp = np.eye(6, dtype=np.float32)[types[inst]] * 0.9 + np.float32(0.1 / 6)
    return inst, types[1:], (inst > 0).astype(np.float32), np.tile(hv_maps(piece), (n, n, 1))[:side, :side], tp


def in_store(store, np_prob, hv, tp):
    side, chunk = np_prob.shape[0], store.side
    for row in range(0, side, chunk):
        for column in range(0, side, chunk):
            at = slice(row, row + chunk), slice(column, column + chunk)
            edges = [(0, chunk - np_prob[at].shape[0]), (0, chunk - np_prob[at].shape[1])]
            maps = (np.pad(m[at], edges + [(0, 0)] * (m.ndim - 2)) for m in (np_prob, hv, tp))
            store.write((row // chunk, column // chunk), *maps)


def ours_in_tiles(maps):
    side = maps[0].shape[0]
    with tempfile.TemporaryDirectory() as folder, MapStore(side, side, 420, 6, Path(folder) / "maps") as store:
        in_store(store, *maps)
        regions = [(x, y, min(x + 1000, side), min(y + 1000, side))
                   for y in range(0, side, 1000) for x in range(0, side, 1000)]  # fmt: skip
        return tiles.find_nuclei(store, slide_bounds(store, regions))


def theirs_in(inst, maps):
    from tiatoolbox.models.architecture.hovernet import HoVerNet

    np_prob, hv, tp = maps
    network = HoVerNet(num_input_channels=3, num_types=6, mode="fast")
    argmax = tp.argmax(axis=2)[..., None].astype(np.float32)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        result = network.postproc([np_prob[..., None], hv, argmax])
    return result, HoVerNet._proc_np_hv(np_prob[..., None], hv)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4000, help="px of the square map")
    parser.add_argument("--peer-side", type=int, help="px of TIAToolbox's map")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    import cv2

    cv2.setNumThreads(1)
    side = arguments.side
    peer_side = arguments.peer_side or side // 2
    inst, types, *maps = maps_of(side)
    whole_time, (labels, prob, (polygons, ids)) = timed(lambda: _whole(maps), arguments.repeats)
    tile_time, tiled = timed(lambda: ours_in_tiles(maps), arguments.repeats)
    small = inst[:peer_side, :peer_side]
    small_maps = [np.ascontiguousarray(m[:peer_side, :peer_side]) for m in maps]
    our_small, _ = timed(lambda: _whole(small_maps), arguments.repeats)
    their_small, (_, their_inst) = timed(lambda: theirs_in(small, small_maps))

    print(f"{side} x {side} px, {len(np.unique(inst)) - 1} nuclei, one thread, CPU seconds")
    print(f"stqp, whole map, probabilities and outlines   {whole_time:8.2f}")
    print(f"stqp, in tiles, maps through the disk         {tile_time:8.2f}")
    print(f"{peer_side} x {peer_side} px, {len(np.unique(small)) - 1} nuclei")
    print(f"stqp, whole map                               {our_small:8.2f}")
    print(f"TIAToolbox postproc                           {their_small:8.2f}   {their_small / our_small:.0f} times")
    drawn = tiled.polygons.rasterize((side, side))
    names = [str(i) for i in range(1, 6)]
    scores = score_maps(inst, types, drawn, postprocess.class_of(tiled.class_prob), 0.25, names)
    print(f"nuclei found in tiles: {len(tiled.polygons)}; PQ against the truth {scores['pq']:.4f}, "
          f"type accuracy {scores['type_accuracy']:.4f}")  # fmt: skip
    n = int(their_inst.max())
    ours_small = drawn[:peer_side, :peer_side]
    inner = np.s_[64:-64, 64:-64]  # away from the edge, where the piece cuts nuclei
    theirs, mine = their_inst[inner], ours_small[inner]
    _, theirs = np.unique(theirs, return_inverse=True)
    _, mine = np.unique(mine, return_inverse=True)
    theirs, mine = theirs.reshape(ours_small[inner].shape), mine.reshape(ours_small[inner].shape)
    same = score_maps(theirs, np.ones(theirs.max(), int), mine, np.ones(mine.max(), int), 0.25, ["nucleus"])
    print(f"PQ against TIAToolbox's {n} instances, away from edges: {same['pq']:.4f}")
    assert np.array_equal(polygons.area(), np.bincount(labels.ravel())[ids])
    assert (postprocess.class_of(prob)[ids - 1] > 0).all()


def _whole(maps):
    labels, prob, _ = postprocess.postprocess_maps(*maps)
    return labels, prob, polygonise(labels)


if __name__ == "__main__":
    main()
