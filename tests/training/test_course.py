"""The course of a run: averages, scores that choose, patience, frozen layers, and what goes wrong on the way."""

import csv
import importlib.util
import logging
import math
import sys
import types

import pytest
import torch

import stqp.training.fit
from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.patches.cut import cut_patches
from stqp.patches.options import CutOptions
from stqp.record import RunRecord
from stqp.training.callbacks import Average
from stqp.training.distributed import Place
from stqp.training.lite import LiteLayers
from stqp.training.losses import HoVerNetLoss
from stqp.training.machine import check_machine, default_workers, precision
from stqp.training.manifest import read_manifest
from stqp.training.metrics import Metrics, read_metrics
from stqp.training.network import build_network, encoder_layers, initialize
from stqp.training.run import train
from stqp.training.saving import CHECKPOINT, read
from stqp.training.settings import Settings

pytestmark = pytest.mark.usefixtures("narrow")
QUICK = {"arch": "lite", "batch_size": 1, "workers": 0, "device": "cpu", "max_steps": 2}


def start(project, out, **values):
    return train(Settings.of([project], **{**QUICK, **values}), out)


def test_the_average_follows_the_formula():
    network = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.BatchNorm1d(1))
    average = Average(network, 0.9)
    expected = variance = None
    for step in range(30):
        with torch.no_grad():
            network[0].weight.fill_(float(step))
            network[1].running_var.fill_(float(step) ** 2)
            network[1].num_batches_tracked.fill_(step)
        average.update(network)
        keep = 0.0 if step == 0 else min(0.9, (1 + step) / (10 + step))
        expected = step if expected is None else keep * expected + (1 - keep) * step
        variance = step**2 if variance is None else keep * variance + (1 - keep) * step**2
    mean = average.network
    assert float(mean[0].weight[0, 0]) == pytest.approx(expected, rel=1e-5)
    assert float(mean[1].running_var) == pytest.approx(variance, rel=1e-5)
    assert int(mean[1].num_batches_tracked) == 29
    other = Average(torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.BatchNorm1d(1)), 0.9)
    other.load_state_dict(average.state_dict())
    for one in (average, other):
        one.update(network)
    assert torch.equal(mean[0].weight, other.network[0].weight)


@pytest.fixture
def scripted(monkeypatch):
    """Scores of a run that come from a list, and the networks that were scored."""
    values, seen = [], []

    def score(network, *_):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        value = values[len(seen) - 1]
        return {"pq": value, "f_d": -value, "dice": math.nan}

    monkeypatch.setattr(stqp.training.fit, "score_network", score)
    return values, seen


def test_the_best_score_chooses_the_weights(patches, tmp_path, scripted):
    values, seen = scripted
    values += [0.1, 0.4, 0.2, 0.3]
    start(patches, tmp_path / "run", epochs=4, max_steps=None, batch_size=2, score_every=1)
    kept = read(tmp_path / "run" / "model.pth")
    assert len(seen) == 4 and all(torch.equal(kept[k], v) for k, v in seen[1].items())
    about = read_manifest(tmp_path / "run")["training"]
    assert about["selected_by"] == "pq" and about["selected_step"] == about["steps"] // 2
    assert read_manifest(tmp_path / "run")["validation"]["pq"] == 0.4
    assert len([*(tmp_path / "run").glob("best-*.pth")]) == 1


def test_another_score_or_none_chooses(patches, tmp_path, scripted):
    values, seen = scripted
    values += [0.1, 0.4, 0.1, 0.4, 0.1, 0.4]
    common = {"epochs": 2, "max_steps": None, "batch_size": 4, "score_every": 1}
    for number, (select, best) in enumerate((("f_d", 0), ("last", 1), ("dice", 1))):
        out = tmp_path / select
        start(patches, out, select=select, **common)
        kept = read(out / "model.pth")
        assert all(torch.equal(kept[k], v) for k, v in seen[2 * number + best].items()), select
        assert bool([*out.glob("best-*.pth")]) == (select == "f_d")  # a score without a number chooses nothing


def test_patience_ends_a_run(patches, tmp_path, scripted):
    values, seen = scripted
    values += [0.3, 0.2, 0.1, 0.9, 0.9]
    record = start(patches, tmp_path / "run", epochs=5, max_steps=None, batch_size=4, score_every=1, patience=2)
    about = record.results["training"]
    assert len(seen) == 3 and about["stopped_early"] and about["epochs"] == 3
    assert read_manifest(tmp_path / "run")["validation"]["pq"] == 0.3


def test_the_encoder_stays_in_its_phase_and_learns_in_the_next(patches, tmp_path):
    def begin(out, **values):
        start(patches, out, ema=0.0, select="last", **values)
        return read_manifest(out)["classes"], read(out / "model.pth")

    classes, after = begin(tmp_path / "a", freeze_epochs=5, batch_size=2)
    torch.manual_seed(0)
    first = build_network("lite", classes)
    initialize(first)
    begun = first.state_dict()
    frozen = {
        f"{name}.{k}" for name in ("stem", "d0", "d1", "d2", "d3") for k, _ in getattr(first, name).named_parameters()
    }
    assert len([*encoder_layers(first)]) == 5
    for name, _ in first.named_parameters():
        assert torch.equal(begun[name], after[name]) == (name in frozen), name
    _, both = begin(tmp_path / "b", freeze_epochs=1, epochs=1, max_steps=None, batch_size=4, freeze_batch_size=4)
    assert all(not torch.equal(begun[name], both[name]) for name, _ in first.named_parameters())
    with (tmp_path / "b" / "metrics.csv").open() as file:
        assert [row["phase"] for row in csv.DictReader(file)] == ["0", "1"]


def test_freeze_norm_keeps_statistics_and_accumulation_is_one_step(patches, tmp_path):
    start(patches, tmp_path / "run", freeze_norm=True, accumulate=2, max_steps=1)
    state = read(tmp_path / "run" / "model.pth")
    assert all((v == (1 if k.endswith("var") else 0)).all() for k, v in state.items() if "running" in k)
    assert read(tmp_path / "run" / CHECKPOINT)["state"]["crops"] == 2


def test_a_run_begins_with_the_weights_of_another(small, tmp_path):
    start(small, tmp_path / "old", block=64.0, classes=("Neoplastic", "Inflammatory"), max_steps=1, validation=0.0)
    record = start(
        small, tmp_path / "new", init=str(tmp_path / "old"), classes=("Inflammatory", "Connective", "Neoplastic"),
        max_steps=1, lr=1e-12, ema=0.0, validation=0.0, block=64.0,
    )  # fmt: skip
    old, new = read(tmp_path / "old" / "model.pth"), read(tmp_path / "new" / "model.pth")
    assert torch.allclose(old["d3.0.conv2.weight"], new["d3.0.conv2.weight"], atol=1e-9)
    head = "decoder.tp.out.weight"
    assert torch.allclose(old[head][8:12], new[head][4:8], atol=1e-9) and len(new[head]) == 16
    initial = record.results["training"]["initial"]
    assert initial["classes"] == {"Inflammatory": "Inflammatory", "Connective": None, "Neoplastic": "Neoplastic"}
    with pytest.raises(InputError, match="lite"):
        start(small, tmp_path / "fast", arch="fast", init=str(tmp_path / "old"))
    with pytest.raises(InputError, match="nowhere"):
        start(small, tmp_path / "none", init=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("classes", [("Neoplastic",), ("Neoplastic", "Plasma", "Dead")])
def test_one_class_and_absent_classes_are_no_nan(small, tmp_path, classes):
    record = start(
        small,
        tmp_path / "run",
        block=64.0,
        classes=classes,
        class_weights="inverse",
        type_loss="focal",
        label_smoothing=0.1,
    )
    row = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    assert all(math.isfinite(float(row[k])) for k in ("loss", "tp_ce", "tp_dice"))
    state = read(tmp_path / "run" / "model.pth")
    assert all(torch.isfinite(v).all() for v in state.values())
    assert any("one class" in w for w in record.warnings) == (len(classes) == 1)


def test_a_full_memory_says_which_batch_fits(patches, tmp_path, monkeypatch):
    real = LiteLayers.features

    def features(self, images, limit=3):
        if self.training and len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, images)

    monkeypatch.setattr(LiteLayers, "features", features)
    for folder, values, flag in (
        ("run", {"batch_size": 8}, "--batch-size"),
        ("frozen", {"batch_size": 1, "freeze_epochs": 1, "freeze_batch_size": 8}, "--freeze-batch-size"),
    ):
        message = f"batches of 8 crops, 2 would fit: go on with --resume {flag} 2 --accumulate 4"
        with pytest.raises(EnvironmentProblem, match=message):
            start(patches, tmp_path / folder, **values)
    # nothing was learnt, so the same folder takes other settings
    settings = Settings.of([patches], **{**QUICK, "batch_size": 2, "accumulate": 4, "max_steps": 1})
    train(settings, tmp_path / "run", resume=True)
    monkeypatch.setattr(LiteLayers, "features", lambda self, images: features(self, images, 1))
    with pytest.raises(EnvironmentProblem, match=r"1 would fit: go on with --resume as it is .* --batch-size 1"):
        train(Settings.of([patches], **{**QUICK, "batch_size": 2, "accumulate": 4}), tmp_path / "run", resume=True)
    monkeypatch.setattr(LiteLayers, "features", lambda self, images: features(self, images, 0))
    with pytest.raises(EnvironmentProblem, match="even with one crop"):
        start(patches, tmp_path / "other", batch_size=2)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(patches, tmp_path, monkeypatch):
    real, calls = HoVerNetLoss.sums, []

    def sums(self, output, target):
        calls.append(1)
        result = real(self, output, target)
        if len(calls) == 3:
            mask = torch.zeros_like(result)
            mask[8] = torch.nan  # the error of the distances
            return result + mask
        return result

    monkeypatch.setattr(HoVerNetLoss, "sums", sums)
    with pytest.raises(
        InputError, match=r"hv_mse is no finite number at step 3; try a lower --lr than 0\.002"
    ) as error:
        start(patches, tmp_path / "run", max_steps=5, save_minutes=1e-4)
    assert str(tmp_path / "run") in str(error.value)
    content = read(tmp_path / "run" / CHECKPOINT)
    assert content["state"]["steps"] == 2 and all(torch.isfinite(v).all() for v in content["state_dict"].values())


def test_half_precision(patches, tmp_path):
    start(patches, tmp_path / "run", precision="bf16", max_steps=1)
    assert read(tmp_path / "run" / "model.pth")["stem.conv.weight"].dtype == torch.float32
    with pytest.raises(EnvironmentProblem, match="--precision bf16"):
        precision("16", "cpu")
    assert precision("auto", "cpu") == "32-true" and precision("16", "cuda") == "16-mixed" and default_workers() >= 0


def test_metrics_drop_rows_that_were_written_after_the_last_save(tmp_path):
    metrics = Metrics(tmp_path)
    for step in (5, 10, 15):
        metrics.write({"phase": 0, "epoch": step / 5, "step": step, "minutes": 0.5, "loss": 1.0 / step})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("0,4,20,0.7")  # a kill in the middle of a row
    Metrics(tmp_path, step=10).write({"phase": 0, "epoch": 3, "step": 15, "minutes": 0.9, "loss": 0.25})
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(row["step"], row["loss"]) for row in rows] == [("5", "0.2"), ("10", "0.1"), ("15", "0.25")]


def test_what_the_machine_lacks_is_said_before_anything_is_cut(patches, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="pip install tensorboard"):
        start(patches, tmp_path / "run", tensorboard=True)
    with pytest.raises(EnvironmentProblem, match="--precision bf16"):
        start(patches, tmp_path / "run", precision="16")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    options = Settings.of(["x"], precision="32").run
    with pytest.raises(EnvironmentProblem, match="--devices 4 was asked for, but this machine has 2 of cuda"):
        check_machine(options, Place(0, 4, 1, "self"), "cuda")
    check_machine(options, Place(0, 2, 1, "self"), "cuda")
    check_machine(options, Place(0, 4, 1, "self"), "cpu")
    assert not (tmp_path / "run").exists()


def test_tensorboard(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

        close = flush

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    metrics = Metrics(tmp_path, step=4, tensorboard=True)
    with caplog.at_level(logging.INFO, logger="stqp"):
        metrics.write({"phase": 0, "epoch": 2, "step": 8, "minutes": 1.0, "lr": 0.1, "loss": 2.0, "validation_pq": 0.5})
    metrics.close()
    assert written[0] == (str(tmp_path / "tensorboard"), 5)
    assert {("training/loss", 2.0, 8), ("validation/pq", 0.5, 8), ("training/lr", 0.1, 8)} <= set(written[1:])
    assert "PQ 0.500" in caplog.text


def test_no_projects(tmp_path):
    with pytest.raises(UsageError, match="at least one QuPath project"):
        train(Settings(), tmp_path / "run")


def test_a_file_of_patches_in_place_of_projects(small, tmp_path):
    file = tmp_path / "some.h5"
    cut_patches([small], file, RunRecord("test", {}), CutOptions(block=64.0))
    train(Settings.of([file], **{**QUICK, "max_steps": 1}), tmp_path / "run")
    assert not (tmp_path / "run" / "patches.h5").exists()
    assert read_manifest(tmp_path / "run")["split"]["validation"]
    assert train(Settings.of([file], **QUICK), tmp_path / "run", resume=True).results["training"]["steps"] == 2
    with pytest.raises(UsageError, match="split already"):
        train(Settings.of([file], block=64.0, **QUICK), tmp_path / "b")
    with pytest.raises(UsageError, match="one file of patches"):
        train(Settings.of([file, small], **QUICK), tmp_path / "b")
    with pytest.raises(InputError, match=r"none\.h5 does not exist"):
        train(Settings.of([tmp_path / "none.h5"], **QUICK), tmp_path / "b")
    cut_patches([small], file, RunRecord("test", {}), CutOptions(block=80.0))
    with pytest.raises(InputError, match="not the file of patches"):
        train(Settings.of([file], **{**QUICK, "max_steps": 3}), tmp_path / "run", resume=True)
