"""Post-processing, slide prediction and scores on the nuclei of CoNSeP."""

import numpy as np
import pytest
from perfect_maps import ColourNetwork, hv_maps, paint
from PIL import Image

from stqp.evaluation.evaluate import evaluate_maps
from stqp.evaluation.scores import score_maps
from stqp.inference import postprocess
from stqp.inference.engine import predict_slide
from stqp.slides import open_slide
from stqp.training.targets import hv_map

NAMES = ["other", "inflammatory", "epithelial", "spindle"]


@pytest.fixture(scope="module")
def tile(real_data):
    content = np.load(real_data / "consep_tiles" / "train_1.npz")
    return content["inst"], content["types"]


def test_the_truth_scores_one_against_itself(real_data):
    folder = real_data / "consep_tiles"
    found = evaluate_maps(folder, folder, bootstrap=0)
    assert found["images"] == 27 and found["pooled"]["n_true"] == 15_555
    for key in ("dice", "aji", "pq", "f_d", "type_f1_macro", "mpq"):
        assert found["mean"][key] == found["pooled"][key] == 1


def test_real_touching_nuclei_come_apart_as_in_tiatoolbox(tile):
    from tiatoolbox.models.architecture.hovernet import HoVerNet

    inst, _ = tile
    np_prob, hv = (inst > 0).astype(np.float32), hv_maps(inst)
    expected = HoVerNet._proc_np_hv(np_prob[..., None], hv)
    found = postprocess.instances(np_prob, hv)
    np.testing.assert_array_equal(found, np.searchsorted(np.unique(expected), expected))
    assert score_maps(inst, None, found, None, 0.25, 0)["pq"] > 0.9


@pytest.mark.parametrize("mpp", [0.5, 1.0])
def test_real_nuclei_come_apart_at_coarse_resolution(tile, mpp):
    step = round(mpp / 0.25)
    inst = tile[0][::step, ::step]
    np_prob, hv = (inst > 0).astype(np.float32), np.moveaxis(hv_map(inst, mpp), 0, -1)
    pq = [score_maps(inst, None, postprocess.instances(np_prob, hv, mpp=m), None, mpp, 1)["pq"] for m in (mpp, 0.25)]
    assert pq[0] > {0.5: 0.85, 1.0: 0.6}[mpp] and pq[0] > pq[1] + 0.2


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_a_painted_tile_comes_back(tile, mpp, tmp_path):
    step = round(mpp / 0.25)
    ids, inst = np.unique(tile[0][::step, ::step], return_inverse=True)
    types = tile[1][ids[1:] - 1]
    Image.fromarray(paint(inst, types)).save(tmp_path / "tile.png")
    with open_slide(tmp_path / "tile.png") as slide:
        found = predict_slide(slide, ColourNetwork(classes=NAMES, mpp=mpp), mpp=mpp, tissue=False, tile=400)
    height, width = inst.shape
    scores = score_maps(inst, types, found.instance_map(width, height), found.class_ids, mpp, NAMES)
    assert scores["pq"] > 0.85 and scores["f_d"] > 0.95 and scores["type_f1_macro"] > 0.98
