"""A run that was interrupted, at any moment and in any way, ends as one that was not."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from stqp.errors import EnvironmentProblem, InputError
from stqp.training.run import train
from stqp.training.saving import CHECKPOINT, read
from stqp.training.settings import Settings

STEPS = 40
# two phases, accumulation, an average, scorings and patience: all that has a memory
VALUES = {
    "arch": "lite", "batch_size": 1, "accumulate": 2, "freeze_epochs": 1, "freeze_batch_size": 2,
    "max_steps": STEPS, "workers": 0, "device": "cpu", "ema": 0.9, "score_every": 1, "patience": 50, "seed": 3,
}  # fmt: skip
RUN = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from stqp.training.lite import LiteLayers
LiteLayers._build.__defaults__ = ((16, 16, 16, 16), 16)
from stqp_cli.main import main
sys.argv = ["stqp", *sys.argv[1:]]
main()
"""


def start(project, out, **changes):
    return train(Settings.of([project], **{**VALUES, **changes}), out)


@pytest.fixture(scope="module")
def whole(patches, tmp_path_factory):
    """The run that nobody interrupts, in a process like the others."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = launch([str(patches), "--out", str(out), *flags()])
    assert process.wait() == 0
    return out


def flags():
    result = []
    for name, value in VALUES.items():
        result += [f"--{name.replace('_', '-')}", str(value)]
    return [*result, "--save-minutes", "0.002"]


def launch(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "train", *arguments], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def rows(out):
    with (out / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)]


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[k], right[k]) for k in left)


def equal_runs(one, other):
    assert same(read(one / "model.pth"), read(other / "model.pth"))
    a, b = read(one / CHECKPOINT), read(other / CHECKPOINT)
    assert same(a["state_dict"], b["state_dict"]) and same(a["average"], b["average"])
    for left, right in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert same(left, right)
    for name in ("step", "steps", "crops", "best", "best_step", "waited", "scores", "best_scores"):
        np.testing.assert_equal(a["state"][name], b["state"][name])
    assert rows(one) == rows(other)


@pytest.mark.skipif(os.name == "nt", reason="a process of Windows gets no Ctrl-C of its own, and no SIGKILL")
def test_interrupted_and_killed_at_random_moments(patches, whole, tmp_path):
    out, rng = tmp_path / "run", np.random.default_rng(0)
    arguments, stopped = [str(patches), "--out", str(out), *flags()], []
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, None):
        process = launch(arguments)
        began = steps(out)
        while number is not None and process.poll() is None and steps(out) <= began:
            time.sleep(0.02)  # until a step was saved; then stop at a random moment of those that follow
        if number is not None:
            time.sleep(float(rng.uniform(0, 0.15)))
            process.send_signal(number)
        _, errors = process.communicate(timeout=600)
        if number == signal.SIGINT and process.returncode:
            assert process.returncode == 130 and "--resume" in errors
        else:
            assert process.returncode in ({0, -signal.SIGKILL} if number else {0}), errors
        stopped.append(process.returncode)
        arguments = ["--resume", "--out", str(out)]
    assert len([code for code in stopped if code]) >= 2
    equal_runs(whole, out)


def steps(out):
    """Step of the last save."""
    try:
        return read(out / CHECKPOINT)["state"]["steps"]
    except InputError:
        return -1


@pytest.mark.usefixtures("narrow")
def test_a_full_disk_keeps_the_last_good_checkpoint(patches, tmp_path, monkeypatch):
    from stqp import hdf5

    out, real = tmp_path / "run", hdf5.CarefulFile.write
    full = []

    def write(self, data):
        if full and self._file.tell() > 50_000:
            self._error = self._error or OSError(28, "No space left on device")
            return memoryview(data).nbytes
        return real(self, data)

    def progress(fraction, numbers):
        if numbers["step"] == 2:
            full.append(True)

    monkeypatch.setattr(hdf5.CarefulFile, "write", write)
    settings = Settings.of([patches], **{**VALUES, "max_steps": 4, "freeze_epochs": 0, "save_minutes": 1e-4})
    with pytest.raises(EnvironmentProblem, match=r"disk is full; the last checkpoint of step 1 stays.*--resume"):
        train(settings, out, progress=progress)
    assert steps(out) == 1 and not [*out.glob(".*.part")] and not (out / "model.pth").exists()
    full.clear()
    monkeypatch.setattr(hdf5.CarefulFile, "write", real)
    assert train(settings, out, resume=True).results["training"]["steps"] == 4


@pytest.mark.usefixtures("narrow")
def test_a_checkpoint_that_is_broken_or_brings_code(patches, tmp_path):
    out = tmp_path / "run"
    start(patches, out, max_steps=1, freeze_epochs=0)
    good = (out / CHECKPOINT).read_bytes()

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    for content in (good[: len(good) // 2], b"nonsense", b""):
        (out / CHECKPOINT).write_bytes(content)
        with pytest.raises(InputError, match=r"last\.ckpt"):
            train(None, out, resume=True)
    torch.save({"stqp_training": 1, "state": Evil()}, out / CHECKPOINT)
    with pytest.raises(InputError, match=r"last\.ckpt"):
        train(None, out, resume=True)
    assert not (tmp_path / "owned").exists()
    torch.save({"a": torch.zeros(1)}, out / CHECKPOINT)
    with pytest.raises(InputError, match="no checkpoint of a run"):
        train(None, out, resume=True)
