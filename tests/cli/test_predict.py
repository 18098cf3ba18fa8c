import json

import numpy as np
import pytest
from click.testing import CliRunner
from perfect_maps import CLASSES
from PIL import Image
from stqp_cli.predict import command

from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.inference.model import load_predictor
from stqp.qupath.project import QuPathProject


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of an untrained network."""
    import torch

    from stqp.training.network import build_network

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "untrained"
    folder.mkdir()
    network = build_network("lite", CLASSES)
    torch.save(network.state_dict(), folder / "model.pth")
    manifest = {
        "name": "untrained", "architecture": "lite", "classes": CLASSES, "mpp": 0.25,
        "patch_input_shape": [256, 256], "patch_output_shape": [164, 164], "split": {"validation": []},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "slide.png"
    Image.fromarray(np.random.default_rng(0).integers(60, 200, (190, 230, 3), dtype=np.uint8)).save(path)
    return path


def invoke(*args):
    return CliRunner().invoke(command, [str(a) for a in args])


def test_a_slide_into_a_new_project(run_folder, slide, tmp_path):
    project = tmp_path / "project"
    result = invoke(
        run_folder, slide, "--project", project, "--mpp", 0.25, "--device", "cpu", "--window", 256, "--no-tissue",
        "--maps", tmp_path / "maps", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    record = json.loads(result.stdout)
    assert record["counts"]["images predicted"] == 1 and record["results"]["failed"] == []
    with QuPathProject.open(project, "r") as opened:
        objects = opened.entry("slide.png").read_objects()
    assert len(objects) == record["counts"]["nuclei"]
    assert (tmp_path / "maps" / "slide.npz").is_file()


def test_larger_windows_agree_with_the_native_one(run_folder):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (512, 512, 3), dtype=np.uint8)
    small, large = load_predictor(run_folder, "cpu", 256), load_predictor(run_folder, "cpu")
    assert (small.input_size, small.output_size) == (256, 164)
    assert (large.input_size, large.output_size) == (512, 420)
    a = small.predict(image[None, :256, :256])
    b = large.predict(image[None])
    for name in ("np", "hv", "tp"):
        np.testing.assert_allclose(a[name], b[name][:, :164, :164], atol=1e-4)
    np.testing.assert_allclose(a["tp"].sum(axis=-1), 1, atol=1e-5)
    assert a["tp"].shape == (1, 164, 164, 4)


def test_what_cannot_be_predicted_is_said(run_folder, slide, tmp_path):
    def error_of(*args):
        return invoke(*args).exception

    assert isinstance(error_of(tmp_path, slide, "--project", tmp_path / "p"), InputError)  # no run
    assert isinstance(error_of(run_folder, slide, "--device", "cpu"), UsageError)  # no project
    assert isinstance(
        error_of(run_folder, slide, "--project", tmp_path / "p", "--device", "cpu", "--window", 300), UsageError
    )
    problem = error_of(run_folder, slide, "--project", tmp_path / "p", "--device", "cpu", "--no-tissue")
    assert isinstance(problem, InputError) and "--mpp" in str(problem)
    absent = error_of(run_folder, tmp_path / "absent.svs", "--project", tmp_path / "p", "--device", "cpu")
    assert isinstance(absent, InputError) and "absent.svs" in str(absent)
    import torch

    if not torch.cuda.is_available():
        cuda = error_of(run_folder, slide, "--project", tmp_path / "p", "--device", "cuda")
        assert isinstance(cuda, EnvironmentProblem)
    held = error_of(run_folder, slide, "--project", tmp_path / "p", "--device", "cpu", "--held-out")
    assert isinstance(held, InputError) and "held nothing out" in str(held)


def test_weights_without_names(run_folder, slide, tmp_path):
    weights = tmp_path / "official.pth"
    import torch

    torch.save({"desc": torch.load(run_folder / "model.pth", weights_only=True)}, weights)
    with pytest.raises(UsageError, match="3 classes; give them by --classes"):
        load_predictor(weights, "cpu")
    result = invoke(
        weights, slide, "--project", tmp_path / "p", "--mpp", 0.25, "--device", "cpu", "--window", 256, "--no-tissue",
        "--classes", "One, Two,Three", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    assert {*json.loads(result.stdout)["results"]["images"][0]["classes"]} <= {"One", "Two", "Three", "Unknown"}


def test_weights_that_do_not_type(tmp_path):
    import torch

    from stqp.training.network import build_network

    torch.save(build_network("lite", None).state_dict(), tmp_path / "w.pth")
    predictor = load_predictor(tmp_path / "w.pth", "cpu", 256)
    maps = predictor.predict(np.zeros((1, 256, 256, 3), np.uint8))
    assert predictor.classes == [] and maps["tp"].shape == (1, 164, 164, 1)


def test_weights_that_do_not_fit(run_folder, tmp_path):
    for name in ("manifest.json", "model.pth"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "classes": ["One"]}))
    with pytest.raises(InputError, match="does not fit 1 names"):
        load_predictor(tmp_path, "cpu")
    (tmp_path / "model.pth").write_bytes(b"broken")
    with pytest.raises(InputError, match="corrupt"):
        load_predictor(tmp_path, "cpu")
    (tmp_path / "model.pth").unlink()
    with pytest.raises(InputError, match=r"model\.pth"):
        load_predictor(tmp_path, "cpu")


def test_files_and_cells_without_a_project(run_folder, slide, tmp_path):
    out = tmp_path / "out"
    asked = (
        run_folder, slide, "--out", out, "--mpp", 0.25, "--device", "cpu", "--window", 256, "--no-tissue", "--table",
        "--geojson", "--annotation-store", "--overlay", 1, "--cell-expansion", 2,
    )  # fmt: skip
    result = invoke(*asked)
    assert result.exit_code == 0, result.exception
    assert f"written to {out}" in result.output
    names = {p.name for p in out.iterdir()}
    assert {"slide.parquet", "slide.geojson", "slide.db", "slide.overlay.ome.tif", "slide.json"} <= names
    again = invoke(*asked, "--resume", "--json")
    assert json.loads(again.stdout)["skipped"] == {"slides that were done before": 1}


def test_options_that_do_not_go_together(run_folder, slide, tmp_path):
    def error_of(*args):
        return invoke(run_folder, *args, "--device", "cpu").exception

    project = ("--project", tmp_path / "p")
    for args, part in (
        ((slide, "--workers", 2, *project), "--scheduler"),
        ((slide, "--where", "organ", *project), "KEY=VALUE"),
        ((slide, "--tag", "a", *project), "no target is a QuPath project"),
        ((slide, "--out", tmp_path / "o"), "none is asked for"),
        ((slide, *project, "--scheduler", "slurm", "--slurm", "queue"), "--slurm"),
        ((), "nothing to predict"),
    ):
        error = error_of(*args)
        assert isinstance(error, UsageError) and part in str(error), (args, error)
    nowhere = error_of(slide, *project, "--scheduler", "nowhere")
    assert isinstance(nowhere, EnvironmentProblem) and "no Dask scheduler answers" in str(nowhere)
    within = error_of(slide, *project, "--within", "Region", "--mpp", 0.25)
    assert isinstance(within, InputError) and "in no project" in str(within)


def test_devices_that_share_the_work(monkeypatch):
    import torch

    from stqp.devices import pick_devices

    assert pick_devices("cpu") == ["cpu"]
    with pytest.raises(UsageError, match="different devices"):
        pick_devices("cpu,cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert pick_devices("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    assert pick_devices("cuda:0, cuda:2") == ["cuda:0", "cuda:2"]
    with pytest.raises(EnvironmentProblem, match="finds 3 GPUs"):
        pick_devices("cuda:3")
