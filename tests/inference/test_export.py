"""Exported networks give what the network gives, in other programs, and an export overwrites nothing."""

import errno
import json
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from stqp_cli.model import command

from stqp.errors import EnvironmentProblem, InputError, StqpError, UsageError
from stqp.inference import export
from stqp.inference.export import export_model
from stqp.inference.model_info import model_info
from stqp.training.network import build_network

CLASSES = ["Neoplastic", "Inflammatory", "Connective"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained `lite` whose statistics differ from layer to layer."""
    torch.manual_seed(0)
    network = build_network("lite", CLASSES)
    network.train()
    with torch.no_grad():
        network(torch.rand(2, 3, 256, 256) * 255)
    path = tmp_path_factory.mktemp("weights") / "trained.pth"
    torch.save(network.state_dict(), path)
    return path


def outputs(weights, images):
    network = build_network("lite", CLASSES).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        return network(images)


def invoke(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_tiatoolbox_without_stqp(weights, tmp_path):
    from PIL import Image

    out = tmp_path / "out"
    result = invoke("export", weights, "--to", "tiatoolbox", "--out", out, "--classes", ",".join(CLASSES), "--json")
    assert result.exit_code == 0, result.exception
    record = json.loads(result.stdout)
    names = {"model.pth", "manifest.json", "ioconfig.yaml", "hovernet_lite.py", "run_tiatoolbox.py"}
    assert {p.name for p in out.iterdir()} == names == {*record["results"]["files"]}
    assert record["results"]["difference"] == 0
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(tmp_path / "patch.png")
    # a process in which stqp cannot be imported
    code = (
        "import runpy, sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('stqp', 'stqp_cli'):\n"
        "            raise ImportError('no stqp here')\n"
        "sys.meta_path.insert(0, Gone())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments = [
        out / "run_tiatoolbox.py",
        tmp_path / "patch.png",
        "--patches",
        "--device",
        "cpu",
        "--output-type",
        "zarr",
    ]
    arguments += ["--out", tmp_path / "r"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [*(tmp_path / "r").rglob("*.zarr")]


def test_the_script_of_lite_loads_the_same_network(weights, tmp_path, monkeypatch):
    from tiatoolbox.models.engine.io_config import IOInstanceSegmentorConfig

    export_model(weights, "tiatoolbox", tmp_path / "out", CLASSES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = runpy.run_path(str(tmp_path / "out" / "run_tiatoolbox.py"))
    model = module["load_model"]()
    assert type(model).__module__ == "hovernet_lite" and model.nuc_type_dict[3] == "Connective"
    images = torch.rand(1, 3, 256, 256) * 255
    with torch.no_grad():
        theirs = model(images)
    assert all(torch.equal(theirs[k], v) for k, v in outputs(weights, images).items())
    ioconfig = module["load_ioconfig"]()
    assert isinstance(ioconfig, IOInstanceSegmentorConfig)
    assert ioconfig.patch_output_shape == [164, 164] and ioconfig.highest_input_resolution["resolution"] == 0.25


def test_torchscript(weights, tmp_path):
    record = export_model(weights, "torchscript", tmp_path / "out", CLASSES)
    extra = {"manifest.json": ""}
    scripted = torch.jit.load(tmp_path / "out" / "model.pt", _extra_files=extra)
    assert json.loads(extra["manifest.json"])["classes"] == CLASSES and record.results["difference"] < 1e-6
    images = torch.rand(3, 3, 288, 320) * 255
    with torch.no_grad():
        theirs = scripted(images)
    for name, value in zip(("np", "hv", "tp"), theirs, strict=True):
        assert torch.allclose(outputs(weights, images)[name], value, atol=1e-5)


def test_onnx(weights, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    record = export_model(weights, "onnx", tmp_path / "out", CLASSES)
    assert record.results["difference"] < 1e-4 and record.counts["checked with"] == "onnxruntime"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    images = torch.rand(3, 3, 256, 304) * 255
    found = dict(zip(("np", "hv", "tp"), session.run(["np", "hv", "tp"], {"images": images.numpy()}), strict=True))
    for name, value in outputs(weights, images).items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-4)


def test_onnx_without_its_packages(weights, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else find(name, *a))
    with pytest.raises(EnvironmentProblem, match=r"onnxscript cannot be found; pip install 'stqp\[export\]'"):
        export_model(weights, "onnx", tmp_path / "out", CLASSES)
    assert not (tmp_path / "out").exists()


def test_what_stands_in_the_folder_stays(weights, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.pt").write_text("old")
    (out / "thesis.txt").write_text("precious")
    result = invoke("export", weights, "--to", "torchscript", "--out", out, "--classes", "A,B,C")
    assert isinstance(result.exception, UsageError) and "--force" in str(result.exception)
    assert (out / "model.pt").read_text() == "old"
    result = invoke("export", weights, "--to", "torchscript", "--out", out, "--classes", "A,B,C", "--force")
    assert result.exit_code == 0, result.exception
    assert (out / "thesis.txt").read_text() == "precious" and (out / "model.pt").stat().st_size > 1e6
    with pytest.raises(UsageError, match="is a file"):
        export_model(weights, "torchscript", out / "thesis.txt", CLASSES)


def test_a_full_disk_or_another_output_leaves_nothing(weights, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "no space")

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(EnvironmentProblem, match="disk is full"):
            export_model(weights, "torchscript", out, CLASSES)
    assert not out.exists()
    monkeypatch.setattr(export, "_difference", lambda *_, **__: 0.5)
    with pytest.raises(StqpError, match="other outputs"):
        export_model(weights, "torchscript", out, CLASSES)
    assert not out.exists()


def test_models_that_cannot_be_exported(weights, tmp_path):
    with pytest.raises(UsageError, match="--classes"):
        export_model(weights, "onnx", tmp_path / "out")
    with pytest.raises(UsageError, match="types 3 classes"):
        export_model(weights, "onnx", tmp_path / "out", ["A"])
    with pytest.raises(InputError, match="there is no"):
        export_model(tmp_path / "nothing", "onnx", tmp_path / "out")
    with pytest.raises(UsageError, match="choose one of tiatoolbox"):
        export_model(weights, "keras", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_info(weights):
    result = invoke("info", weights)
    assert result.exit_code == 0, result.exception
    assert "lite, 2." in result.stdout and "3, whose names it does not say" in result.stdout
    results = model_info(weights, CLASSES).results
    assert results["classes"] == CLASSES and results["source"] == "state_dict" and results["num_types"] == 4
    assert results["parameters"] == sum(p.numel() for p in build_network("lite", CLASSES).parameters())
    assert 4 < results["gflop"] < 8
    assert isinstance(invoke("info", weights, "--classes", "A,B").exception, UsageError)
