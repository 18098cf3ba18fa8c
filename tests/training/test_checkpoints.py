"""Weights of any origin are read, taken over by the names of their classes, and never run."""

import json
import os
import pickle
from collections import OrderedDict

import pytest
import torch

from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.training.checkpoints import load_initial, load_network, read_checkpoint
from stqp.training.network import build_network
from stqp.training.registered import registered_models
from stqp.training.weights import detect_architecture

CLASSES = ["Neoplastic", "Inflammatory", "Connective"]


def lite(classes=CLASSES, seed=0):
    torch.manual_seed(seed)
    return build_network("lite", classes).eval()


def write_run(folder, network, classes=CLASSES, **more):
    folder.mkdir()
    torch.save(network.state_dict(), folder / "model.pth")
    manifest = {"name": "first", "architecture": "lite", "classes": classes, "mpp": 0.25, "split": {}, **more}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def typed():
    return lite().state_dict()


def test_a_run_knows_its_classes(tmp_path):
    network = lite()
    folder = write_run(tmp_path / "run", network, mpp=0.5)
    for where in (folder, folder / "model.pth", str(folder)):
        found = read_checkpoint(where)
        assert (found.architecture, found.num_types, found.source) == ("lite", 4, "stqp run")
        assert found.classes == (*CLASSES,) and found.mpp == 0.5 and found.name == "first"
        assert same(load_network(found).state_dict(), network.state_dict())


@pytest.mark.parametrize(
    ("wrap", "source"),
    [
        (lambda s: s, "state_dict"),
        (lambda s: OrderedDict((f"module.{k}", v) for k, v in s.items()), "state_dict"),
        (lambda s: {"desc": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"lr": 0.1}}, "official checkpoint"),
        (lambda s: {"desc": dict(s)}, "official checkpoint"),
        (lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}, "state_dict"),
        (
            lambda s: {
                "stqp_training": 1, "stqp_classes": CLASSES, "state_dict": dict(s),
            },
            "stqp checkpoint",
        ),
    ],
)  # fmt: skip
def test_wrapped_weights(typed, tmp_path, wrap, source):
    torch.save(wrap(typed), tmp_path / "w.tar")
    found = read_checkpoint(tmp_path / "w.tar")
    assert found.source == source and found.num_types == 4 and found.state.keys() == typed.keys()
    assert found.classes == ((*CLASSES,) if source == "stqp checkpoint" else None)
    named = read_checkpoint(tmp_path / "w.tar", ["A", "B", "C"])
    assert named.classes == ("A", "B", "C")
    load_network(named)


def test_the_old_file_format_of_torch(typed, tmp_path):
    torch.save(typed, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "old.tar").state, typed)


def test_counters_that_old_versions_of_torch_lacked(typed, tmp_path):
    torch.save({k: v for k, v in typed.items() if not k.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    loaded = load_network(read_checkpoint(tmp_path / "w.pth")).state_dict()
    assert {*loaded} == {*typed} and all(torch.equal(loaded[k], v) for k, v in typed.items() if v.ndim)


def test_a_network_that_does_not_type(tmp_path):
    torch.save(lite(None).state_dict(), tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")
    assert found.num_types is None and found.classes is None
    assert {*load_network(found)(torch.zeros(1, 3, 256, 256))} == {"np", "hv"}
    with pytest.raises(UsageError, match="types 0 classes"):
        read_checkpoint(tmp_path / "w.pth", ["A"])


@pytest.mark.parametrize("arch", ["fast", "original"])
def test_tiatoolbox_networks(arch, tmp_path):
    hovernet = pytest.importorskip("tiatoolbox.models.architecture.hovernet").HoVerNet
    for types in (None, 6):
        with torch.device("meta"):
            shapes = hovernet(num_types=types, mode=arch).state_dict()
        assert detect_architecture(shapes) == arch
    state = hovernet(num_types=6, mode=arch).state_dict()
    torch.save({"desc": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "official.tar")
    found = read_checkpoint(tmp_path / "official.tar")
    assert (found.architecture, found.num_types) == (arch, 6)
    assert same(load_network(found).state_dict(), state)


class Attack:
    """Unpickled with code, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "old", "pickle", "within weights"])
def test_code_in_a_file_is_not_run(typed, tmp_path, form):
    mark, file = tmp_path / "ran", tmp_path / "w.pth"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Attack(mark)))
    elif form == "within weights":
        torch.save({**typed, "more": Attack(mark)}, file)
    else:
        torch.save(Attack(mark), file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match=r"never runs code|corrupt") as error:
        read_checkpoint(file)
    assert not mark.exists()
    if form != "pickle":
        assert "mkdir" in str(error.value)


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(lite(), tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"LiteNetwork.*state_dict\(\)"):
        read_checkpoint(tmp_path / "whole.pth")


def test_broken_and_foreign_files(typed, tmp_path):
    file = tmp_path / "w.pth"
    torch.save(typed, file)
    whole = file.read_bytes()
    for content in (b"", b"broken", whole[: len(whole) // 2], whole[:100], b"\x89PNG\r\n" + bytes(100)):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"w\.pth is corrupt or no file of torch"):
            read_checkpoint(file)
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="found list"):
        read_checkpoint(file)
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="no HoVer-Net that stqp knows"):
        read_checkpoint(file)
    torch.save({k: v for k, v in typed.items() if not k.startswith("d2")}, file)
    with pytest.raises(InputError, match=r"lacks \d+ of the \d+ weights of the lite network, such as d2"):
        read_checkpoint(file)
    torch.save({**typed, "extra": torch.zeros(2)}, file)
    with pytest.raises(InputError, match="does not have, such as extra"):
        read_checkpoint(file)
    torch.save({**typed, "up3.weight": torch.zeros(1, 2, 3, 3)}, file)
    with pytest.raises(InputError, match=r"up3.weight.*found 1x2x3x3"):
        read_checkpoint(file)
    torch.save({**typed, "up3.weight": typed["up3.weight"] * torch.nan}, file)
    with pytest.raises(InputError, match="not finite"):
        read_checkpoint(file)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), file)
    with pytest.raises(InputError, match="TorchScript program"):
        read_checkpoint(file)


def test_runs_that_do_not_fit(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "train.toml").write_text("{}")
    with pytest.raises(InputError, match="has not ended"):
        read_checkpoint(tmp_path / "begun")
    folder = write_run(tmp_path / "run", lite(), ["One"])
    with pytest.raises(InputError, match=r"types 3 classes.*does not fit 1 names \(One\)"):
        read_checkpoint(folder)
    (folder / "model.pth").unlink()
    with pytest.raises(InputError, match=r"model\.pth beside the manifest"):
        read_checkpoint(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"folder without a run.*hovernet_fast-pannuke"):
        read_checkpoint(tmp_path / "empty")
    with pytest.raises(InputError, match=r"there is no .*hovernet_fast-cats"):
        read_checkpoint("hovernet_fast-cats")


def test_the_best_weights_of_a_run_that_has_not_ended(typed, tmp_path):
    torch.save(typed, tmp_path / "best-00000012.pth")
    (tmp_path / "train.toml").write_text("")
    found = read_checkpoint(tmp_path / "best-00000012.pth")
    assert found.source == "stqp checkpoint" and found.classes is None  # its patches are gone
    averaged = {f"module.{k}": v + 1 if v.is_floating_point() else v for k, v in typed.items()}
    content = {
        "stqp_training": 1,
        "stqp_classes": CLASSES,
        "state_dict": typed,
        "average": {**averaged, "n_averaged": 3},
    }
    torch.save(content, tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(found.state["up3.weight"], typed["up3.weight"] + 1)


def test_class_names_must_be_as_many_and_differ(typed, tmp_path):
    torch.save(typed, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"types 3 classes and background.*2 names \(A, B\)"):
        read_checkpoint(tmp_path / "w.pth", ["A", "B"])
    with pytest.raises(UsageError, match="each class once"):
        read_checkpoint(tmp_path / "w.pth", ["A", "B", "A"])


def test_starting_from_a_run_takes_classes_by_name(tmp_path):
    source = lite(seed=1)
    folder = write_run(tmp_path / "run", source)
    target = lite(["Connective", "Plasma", "neoplastic"], seed=2)
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    report = load_initial(target, folder, ["Connective", "Plasma", "neoplastic"])
    assert report["classes"] == {"Connective": "Connective", "Plasma": None, "neoplastic": "Neoplastic"}
    assert "new: Plasma" in report["summary"] and report["new"] == 0 and report["ignored"] == 0
    images = torch.rand(1, 3, 256, 256) * 255
    with torch.no_grad():
        old, new = source(images), target.eval()(images)
    for ours, theirs in ((0, 0), (1, 3), (3, 1)):
        assert torch.equal(new["tp"][:, ours], old["tp"][:, theirs])
    assert torch.equal(new["np"], old["np"]) and torch.equal(new["hv"], old["hv"])
    rows = slice(8, 12)  # of Plasma: four a class
    assert torch.equal(target.state_dict()["decoder.tp.out.weight"][rows], fresh["decoder.tp.out.weight"][rows])


def test_starting_from_weights_without_names(tmp_path):
    source = lite(seed=1)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    target = lite(["A", "B", "C"], seed=2)
    report = load_initial(target, tmp_path / "w.pth", ["A", "B", "C"])
    assert same(target.state_dict(), source.state_dict()) and "in their order" in report["summary"]
    other = lite(["A", "B"], seed=2)
    fresh = other.state_dict()["decoder.tp.out.bias"].clone()
    report = load_initial(other, tmp_path / "w.pth", ["A", "B"])
    assert report["classes"] == {"A": None, "B": None}
    bias = other.state_dict()["decoder.tp.out.bias"]
    assert torch.equal(bias[:4], source.state_dict()["decoder.tp.out.bias"][:4]) and torch.equal(bias[4:], fresh[4:])


def test_starting_from_a_network_that_does_not_type(tmp_path):
    torch.save(lite(None, seed=1).state_dict(), tmp_path / "w.pth")
    report = load_initial(lite(seed=2), tmp_path / "w.pth", CLASSES)
    assert report["new"] > 0 and "starts anew" in report["summary"]


def test_another_architecture_is_no_start(tmp_path):
    torch.save(lite().state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="expected weights of the fast network, found the lite one"):
        load_initial(build_network("fast", CLASSES), tmp_path / "w.pth", CLASSES)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """TIAToolbox's folder, and no network."""
    import huggingface_hub
    from tiatoolbox import rcParam

    def offline(**_):
        raise OSError("no route to host")

    monkeypatch.setitem(rcParam, "TIATOOLBOX_HOME", tmp_path / "home")
    monkeypatch.delenv("STQP_MODELS", raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    return tmp_path / "home" / "models"


def test_registered_models(home, tmp_path, monkeypatch):
    models = registered_models()
    assert models["pannuke"] is models["hovernet_fast-pannuke"] and models["kumar"].classes is None
    assert models["pannuke"].classes == ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
    assert not any("plus" in m.name for m in models.values())
    with pytest.raises(EnvironmentProblem, match=r"put hovernet_fast-pannuke\.pth from https://.* into .*models") as e:
        read_checkpoint("pannuke")
    assert "no route to host" in str(e.value) and e.value.exit_code == 4
    with pytest.raises(EnvironmentProblem, match="not asked for"):
        read_checkpoint("pannuke", download=False)
    names = ["Neoplastic", "Inflammatory", "Connective", "Dead", "Non-Neoplastic Epithelial"]
    torch.save(build_network("fast", names).state_dict(), tmp_path / "hovernet_fast-pannuke.pth")
    found = read_checkpoint("pannuke", folder=tmp_path)
    assert (found.source, found.name) == ("registered model", "hovernet_fast-pannuke")
    assert found.classes == models["pannuke"].classes
    monkeypatch.setenv("STQP_MODELS", str(tmp_path))
    assert read_checkpoint("hovernet_fast-pannuke").path == tmp_path / "hovernet_fast-pannuke.pth"
    target = build_network("fast", ["Epithelial", "Necrotic"])
    report = load_initial(target, "pannuke", ["Epithelial", "Necrotic"])
    assert report["classes"] == {"Epithelial": "Epithelial", "Necrotic": "Dead"}
    theirs, ours = found.state["decoder.tp.u0.conv.weight"], target.state_dict()["decoder.tp.u0.conv.weight"]
    assert torch.equal(ours, theirs[[0, 5, 4]])
