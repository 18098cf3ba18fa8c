import json

import numpy as np
import pytest
from click.testing import CliRunner
from perfect_maps import grid_of_nuclei
from stqp_cli.evaluate import command

from stqp.errors import InputError, UsageError
from stqp.evaluation.evaluate import evaluate_maps

NAMES = {"1": "Neoplastic", "2": "Inflammatory"}


def save(folder, name, inst, types=None, **more):
    folder.mkdir(exist_ok=True)
    ids = np.unique(inst)[1:]
    if types is None:
        np.save(folder / f"{name}.npy", inst)
    else:
        np.savez(folder / f"{name}.npz", inst=inst, ids=ids, types=np.asarray(types)[: len(ids)], **more)


@pytest.fixture
def folders(tmp_path):
    true, pred = tmp_path / "true", tmp_path / "pred"
    for seed in (1, 2, 3):
        inst = grid_of_nuclei(150, 6, seed)
        types = np.arange(36) % 2 + 1
        save(true, f"image{seed}", inst, types)
        wrong = types.copy()
        wrong[:6] = 3 - wrong[:6]
        save(pred, f"image{seed}", np.roll(inst, 1, 0), wrong, classes=np.array([*NAMES.values()]))
    (true / "classes.json").write_text(json.dumps(NAMES))
    return true, pred


def run(*args):
    return CliRunner().invoke(command, [str(a) for a in args], catch_exceptions=False)


def test_table_and_json(folders, tmp_path):
    result = run("--true", folders[0], "--pred", folders[1], "--json", tmp_path / "scores.json")
    assert result.exit_code == 0
    assert "mean over images" in result.output and "pooled" in result.output and "Inflammatory" in result.output
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == 3 and scores["classes"] == ["Neoplastic", "Inflammatory"]
    assert scores["pooled"]["f_d"] == 1 and scores["pooled"]["type_accuracy"] == pytest.approx(30 / 36)
    assert np.trace(np.array(scores["confusion"]["rows_true_columns_predicted"])) == 90
    assert set(scores["per_image"]) == {"image1", "image2", "image3"}
    assert scores["record"]["command"] == "evaluate"
    printed = run("--true", folders[0], "--pred", folders[1], "--json", "-").output
    assert json.loads(printed[printed.index("{") :])["pooled"] == scores["pooled"]


def test_numbers_of_types_are_not_guessed(folders, tmp_path):
    """CoNSeP's 1 is another class than the 1 of a network."""
    (folders[0] / "classes.json").unlink()
    asked = ("--true", folders[0], "--pred", folders[1])
    with pytest.raises(InputError, match=r"image1.npz are numbers and those in .*image1.npz are names; .*--type 1="):
        run(*asked)
    names = ("--type", "1=Inflammatory", "--type", "2 = Neoplastic")  # the other way round
    result = run(*asked, *names, "--json", tmp_path / "s.json")
    scores = json.loads((tmp_path / "s.json").read_text())
    assert result.exit_code == 0 and scores["pooled"]["type_accuracy"] == pytest.approx(6 / 36)
    assert scores["classes"] == ["Neoplastic", "Inflammatory"]
    (tmp_path / "map.csv").write_text(
        "label,class\n1,Neoplastic\n2,Inflammatory\n" + "".join(f"{name},{name}\n" for name in NAMES.values())
    )
    run(*asked, "--class-map", tmp_path / "map.csv", "--json", tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["pooled"]["type_accuracy"] == pytest.approx(30 / 36)
    with pytest.raises(UsageError, match="expected NUMBER=CLASS"):
        run(*asked, "--type", "Neoplastic")


def test_untyped_maps_have_no_typing_scores(tmp_path):
    inst = grid_of_nuclei(150, 6)
    save(tmp_path / "a", "one", inst)
    save(tmp_path / "b", "one", inst)
    result = run("--true", tmp_path / "a", "--pred", tmp_path / "b", "--json", tmp_path / "s.json")
    assert "not typed" in result.output
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["pooled"]["pq"] == 1 and scores["pooled"]["f_c_mean"] is None


def test_empty_maps_are_no_error(tmp_path):
    empty = np.zeros((50, 50), int)
    for side in "ab":
        save(tmp_path / side, "one", empty, [])
    result = run("--true", tmp_path / "a", "--pred", tmp_path / "b", "--json", tmp_path / "s.json")
    assert result.exit_code == 0
    assert json.loads((tmp_path / "s.json").read_text())["pooled"]["pq"] is None


def test_names_without_a_partner_are_listed(folders):
    (folders[1] / "image2.npz").unlink()
    with pytest.raises(InputError, match="image2"):
        evaluate_maps(*folders)
    (folders[0] / "image2.npz").unlink()
    (folders[0] / "image3.npz").unlink()
    with pytest.raises(InputError, match="image3"):
        evaluate_maps(*folders)


def test_numbers_are_names_where_nobody_names_them(tmp_path):
    inst = grid_of_nuclei(150, 6)
    types = np.arange(36) % 11 + 1
    for side in "ab":
        save(tmp_path / side, "one", inst, types)
    found = evaluate_maps(tmp_path / "a", tmp_path / "b")
    assert found["classes"] == [str(i) for i in range(1, 12)]
    assert found["pooled"]["type_f1_macro"] == 1


def test_classes_are_matched_by_name_not_by_number(tmp_path):
    inst = grid_of_nuclei(150, 6)
    types = np.arange(36) % 2 + 1
    save(tmp_path / "a", "one", inst, types, classes=np.array(["X", "Y"]))
    save(tmp_path / "b", "one", inst, 3 - types, classes=np.array(["Y", "X"]))
    found = evaluate_maps(tmp_path / "a", tmp_path / "b")
    assert found["classes"] == ["X", "Y"] and found["pooled"]["type_accuracy"] == 1


def test_a_class_absent_from_the_truth(tmp_path):
    inst = grid_of_nuclei(150, 6)
    save(tmp_path / "a", "one", inst, np.ones(36, int), classes=np.array(["X"]))
    save(tmp_path / "b", "one", inst, [1] * 18 + [2] * 18, classes=np.array(["X", "New"]))
    found = evaluate_maps(tmp_path / "a", tmp_path / "b")
    assert found["classes"] == ["X", "New"]
    assert found["pooled"]["per_class"]["X"]["recall"] == 0.5
    assert found["pooled"]["type_f1_macro"] == pytest.approx(2 / 3)


def test_held_out_boxes_of_a_run(folders, tmp_path):
    boxes = [[0, 0, 75, 75]]
    split = {"training": [], "validation": [{"entry": "image2.svs", "project": "p", "boxes": boxes}]}
    manifest = {"architecture": "lite", "classes": [], "mpp": 0.25, "split": split}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found = evaluate_maps(*folders, held_out=tmp_path)
    assert [*found["per_image"]] == ["image2"]
    assert 6 <= found["pooled"]["n_true"] <= 12


def test_wrong_arguments(folders, tmp_path):
    with pytest.raises(InputError, match="there is nothing at"):
        run("--true", tmp_path / "absent", "--pred", folders[1])
    with pytest.raises(UsageError, match="two predictions are called pred"):
        run("--true", folders[0], "--pred", folders[1], "--pred", folders[1])
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="found none"):
        run("--true", tmp_path / "none", "--pred", folders[1])
    with pytest.raises(InputError, match="maps of one image"):
        save(tmp_path / "a", "one", np.zeros((5, 5), int))
        save(tmp_path / "b", "one", np.zeros((5, 6), int))
        evaluate_maps(tmp_path / "a", tmp_path / "b")


def test_two_predictions_and_baselines(folders, tmp_path, monkeypatch):
    from PIL import Image
    from tiatoolbox import rcParam

    monkeypatch.setitem(rcParam, "TIATOOLBOX_HOME", tmp_path / "nothing")
    monkeypatch.delenv("STQP_MODELS", raising=False)
    (tmp_path / "images").mkdir()
    for seed in (1, 2, 3):
        inst = np.load(folders[0] / f"image{seed}.npz")["inst"]
        pixels = np.where((inst > 0)[..., None], (90, 60, 150), (235, 190, 215)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"image{seed}.png")
    result = run(
        "--true", folders[0], "--pred", f"mine={folders[1]}", "--pred", f"perfect={folders[0]}", "--baselines",
        "--images", tmp_path / "images", "--bootstrap", 100, "--interval", "percentile", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "perfect minus mine" in result.output and "watershed minus mine" not in result.output
    assert "the PanNuke HoVer-Net is left out" in result.output and "percentile bootstrap over" in result.output
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["prediction"] == "mine"
    assert [*scores["others"]] == ["perfect", "watershed", "majority class", "shuffled labels"]
    accuracy = scores["comparisons"][0]["pooled"]["type_accuracy"]
    assert accuracy["second"] == 1 and accuracy["difference"] == pytest.approx(6 / 36)
    assert scores["comparisons"][0]["common"]["nuclei"] == 108
    assert scores["others"]["watershed"]["pooled"]["type_accuracy"] is None
    assert scores["record"]["arguments"]["baselines"] is True
