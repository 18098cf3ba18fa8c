import numpy as np
import pytest
from perfect_maps import CLASSES, grid_of_nuclei
from PIL import Image

from stqp.errors import InputError
from stqp.evaluation import baselines
from stqp.evaluation.evaluate import evaluate
from stqp.evaluation.map_files import MapFolder
from stqp.evaluation.options import Options
from stqp.evaluation.summary import summary

PURPLE, PINK = (90, 60, 150), (235, 190, 215)


def stained(inst, seed=0):
    """H&E as it is in a book: purple nuclei on pink."""
    rng = np.random.default_rng(seed)
    image = np.where((inst > 0)[..., None], PURPLE, PINK) + rng.normal(0, 6, (*inst.shape, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    for seed in (1, 2):
        inst = grid_of_nuclei(300, 7, seed, (9, 14))
        types = np.arange(inst.max()) % 7 // 3 + 1  # more of class 1 and 2 than of 3
        np.savez(tmp_path / f"i{seed}.npz", inst=inst, types=types[np.unique(inst)[1:] - 1], classes=np.array(CLASSES))
        Image.fromarray(stained(inst)).save(tmp_path / f"i{seed}.png")
    return tmp_path


def test_a_watershed_finds_purple_on_pink():
    inst = grid_of_nuclei(300, 7, 5, (9, 14))
    from stqp.evaluation.scores import score_maps

    found = score_maps(inst, None, baselines.watershed(stained(inst), 0.25), None, 0.25, 0)
    assert found["f_d"] > 0.95 and found["pq"] > 0.8
    assert not baselines.watershed(np.full((60, 60, 3), 230, np.uint8), 0.25).any()


def test_tiles_leave_no_seam(monkeypatch, tmp_path):
    inst = grid_of_nuclei(300, 7, 5, (9, 14))
    Image.fromarray(stained(inst)).save(tmp_path / "a.png")
    from stqp.slides import open_slide

    with open_slide(tmp_path / "a.png") as slide:
        whole = baselines.watershed_slide(slide, 0.25, (0, 0, 300, 300))
        monkeypatch.setattr(baselines, "_TILE", 100)
        tiled = baselines.watershed_slide(slide, 0.25, (0, 0, 300, 300))
        part = baselines.watershed_slide(slide, 0.25, (100, 50, 220, 300))
    assert abs(len(tiled) - len(whole)) <= 3
    x = part.polygons.centroid()
    assert len(part) and (x >= (100, 50)).all() and (x < (220, 300)).all()


def test_at_other_um_per_px_nuclei_keep_their_place(tmp_path):
    inst = grid_of_nuclei(300, 7, 5, (9, 14))
    image = Image.fromarray(stained(inst)).resize((150, 150), Image.Resampling.BOX)
    image.save(tmp_path / "half.png")
    from stqp.slides import open_slide

    with open_slide(tmp_path / "half.png") as slide:
        found = baselines.watershed_slide(slide, 0.5, (0, 0, 150, 150))
    from stqp.evaluation.matching import pair_centres

    centres = np.array([np.argwhere(inst == i).mean(axis=0)[::-1] + 0.5 for i in np.unique(inst)[1:]])
    assert len(pair_centres(centres, found.polygons.centroid() * 2, 6)[0]) > 0.9 * len(centres)


def test_all_baselines_beside_a_perfect_prediction(folder):
    truth = MapFolder(folder)
    pred = {"perfect": MapFolder(folder), baselines.WATERSHED: baselines.watershed_source(truth)}
    evaluation = evaluate(truth, pred, Options(bootstrap=50))
    evaluation.baselines = [baselines.WATERSHED]
    assert baselines.add_typing_baselines(evaluation) == [baselines.MAJORITY, baselines.SHUFFLED]
    result = summary(evaluation)
    assert result["pooled"]["type_accuracy"] == 1
    others = result["others"]
    majority = others[baselines.MAJORITY]["pooled"]
    largest = max(c["n_true"] for c in result["pooled"]["per_class"].values())
    assert majority["type_accuracy"] == pytest.approx(largest / result["pooled"]["n_true"])
    assert majority["pq"] == result["pooled"]["pq"] == 1
    shuffled = others[baselines.SHUFFLED]["pooled"]
    assert (
        shuffled["type_accuracy"] < 0.6
        and shuffled["per_class"][CLASSES[0]]["n_pred"] == (result["pooled"]["per_class"][CLASSES[0]]["n_pred"])
    )
    watershed = others[baselines.WATERSHED]["pooled"]
    assert watershed["f_d"] > 0.9 and np.isnan(watershed["type_accuracy"]) and np.isnan(watershed["f_c_mean"])
    assert [c["baseline"] for c in result["comparisons"]] == [True, True, True]
    for one in result["comparisons"][1:]:
        assert one["pooled"]["pq"]["difference"] == 0 and one["pooled"]["type_accuracy"]["difference"] < 0


def test_labels_are_shuffled_within_an_image(folder):
    evaluation = evaluate(MapFolder(folder), {"p": MapFolder(folder)}, Options(bootstrap=0))
    baselines.add_typing_baselines(evaluation)
    for image in evaluation.images:
        before, after = (image.matches[n].overlap.pred_types for n in ("p", baselines.SHUFFLED))
        assert sorted(before) == sorted(after) and (before != after).any()


def test_without_pixels_or_weights_a_sentence_says_so(folder, monkeypatch, tmp_path):
    for path in folder.glob("*.png"):
        path.unlink()
    truth = MapFolder(folder)
    with pytest.raises(InputError, match=r"expected the H&E of .*--images"):
        evaluate(truth, {"w": baselines.watershed_source(truth)}, Options(bootstrap=0))
    from tiatoolbox import rcParam

    monkeypatch.setitem(rcParam, "TIATOOLBOX_HOME", tmp_path / "nothing")
    monkeypatch.delenv("STQP_MODELS", raising=False)
    source, why = baselines.network_source(truth)
    assert source is None and "left out" in why and "hovernet_fast-pannuke" in why


def test_a_network_is_scored_where_it_lies(folder, monkeypatch):
    from perfect_maps import ColourNetwork, paint

    import stqp.inference.model as model

    for path in folder.glob("*.npz"):
        content = np.load(path)
        inst = content["inst"]
        types = np.zeros(inst.max(), int)
        types[np.unique(inst)[1:] - 1] = content["types"]
        Image.fromarray(paint(inst, types)).save(path.with_suffix(".png"))
    monkeypatch.setattr(model, "load_predictor", lambda *_: ColourNetwork())
    truth = MapFolder(folder)
    source, why = baselines.network_source(truth, "some-run")
    assert source is not None and not why
    found = summary(evaluate(truth, {"net": source}, Options(bootstrap=0)))
    assert found["pooled"]["f_d"] > 0.98 and found["pooled"]["type_accuracy"] > 0.98
    assert found["calibration"]["ece"] >= 0
