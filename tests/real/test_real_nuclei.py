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


def test_a_painted_tile_comes_back(tile, tmp_path):
    inst, types = tile
    Image.fromarray(paint(inst, types)).save(tmp_path / "tile.png")
    with open_slide(tmp_path / "tile.png") as slide:
        found = predict_slide(slide, ColourNetwork(classes=NAMES), mpp=0.25, tissue=False, tile=400)
    scores = score_maps(inst, types, found.instance_map(1000, 1000), found.class_ids, 0.25, NAMES)
    assert scores["pq"] > 0.9 and scores["f_d"] > 0.95 and scores["type_f1_macro"] > 0.98
