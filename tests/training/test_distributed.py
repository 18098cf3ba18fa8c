"""Several processes learn what one process with their batches would."""

import csv
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from process_group import worker

from stqp.errors import EnvironmentProblem, UsageError
from stqp.training.distributed import Place, find_place, largest, prepared_by_main, sum_over_processes
from stqp.training.losses import TERMS
from stqp.training.manifest import read_manifest
from stqp.training.network import build_network, initialize
from stqp.training.run import train
from stqp.training.saving import read
from stqp.training.settings import Settings

# BatchNorm keeps its statistics, since those of a half batch are others than those of the whole; all else is exact:
# the losses are formulas of sums over all processes, and the crops of a step are the same however they are shared out
VALUES = {
    "arch": "lite", "max_steps": 12, "workers": 0, "device": "cpu", "freeze_norm": True, "lr": 1e-5,
    "select": "last", "warm_up": 0.0, "seed": 1,
}  # fmt: skip


def launch(arguments, ranks=2, **environment):
    """Start the command under torchrun, which serves as a real launcher of two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [*command, "-m", "stqp_cli.main", *arguments], env=env, capture_output=True, text=True, timeout=600, check=False
    )


def flags(values):
    result = []
    for name, value in values.items():
        name = f"--{name.replace('_', '-')}"
        result += [name] if value is True else [name, str(value)]
    return result


def losses(out):
    with (out / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return np.array([[float(row[name]) for name in ("loss", *TERMS)] for row in csv.DictReader(file)])


def test_two_processes_lose_what_one_with_the_doubled_batch_does(patches, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(Settings.of([patches], batch_size=2, **VALUES), one)
    result = launch(["train", str(patches), "--out", str(two), "--batch-size", "1", *flags(VALUES), "--json"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"command": "train"') == 1  # the first process alone speaks
    assert len(losses(one)) >= 2
    # equal at the first step; later Adam makes whole steps of what rounding leaves of gradients that are zero
    np.testing.assert_allclose(losses(two), losses(one), rtol=5e-4)
    torch.manual_seed(VALUES["seed"])
    network = build_network("lite", read_manifest(one)["classes"])
    initialize(network)
    begun = dict(network.named_parameters())
    ends = [read(out / "model.pth") for out in (one, two)]
    moved, apart = (
        torch.cat([(left[k] - right[k]).detach().flatten() for k in begun]).norm()
        for left, right in ((ends[0], begun), (ends[0], ends[1]))
    )
    assert apart < 0.01 * moved
    manifest = read_manifest(two)["training"]
    assert manifest["processes"] == 2 and manifest["crops"] == read_manifest(one)["training"]["crops"]


def test_when_the_first_process_fails_the_others_end_too(tmp_path):
    result = launch(["train", str(tmp_path / "none"), "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 2 and any(str(tmp_path / "none") in line for line in said)
    assert any("the first process could not prepare the run" in line for line in said)
    assert not (tmp_path / "run").exists()


def test_sums_and_flags_over_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, tmp_path), nprocs=2)
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    loss = (weight * torch.tensor([5.0, 3.0])).prod()
    loss.backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert torch.equal(found["loss"], loss.detach()) and torch.allclose(found["gradient"], weight.grad)
        assert found["most"] == [1.0, 3.5]
    alone = torch.ones(2)
    assert sum_over_processes(alone) is alone and largest([True, 2.5], alone.device) == [1.0, 2.5]


TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "5", "SLURM_JOB_NAME": "x"}


def test_places(monkeypatch):
    for name in {*TORCHRUN, *SLURM}:
        monkeypatch.delenv(name, raising=False)
    assert find_place() == Place(0, 1, 1, "self") and find_place(2) == Place(0, 2, 1, "self")
    with pytest.raises(UsageError, match="torchrun"):
        find_place(2, nodes=2)
    with monkeypatch.context() as patch:
        for name, value in TORCHRUN.items():
            patch.setenv(name, value)
        assert find_place() == Place(3, 2, 2, "torchrun") and not find_place(2, 2).is_main
        with pytest.raises(UsageError, match="--devices 3 was asked for, but torchrun started 2"):
            find_place(3)
    with monkeypatch.context() as patch:
        for name, value in SLURM.items():
            patch.setenv(name, value)
        assert find_place() == Place(5, 4, 2, "slurm")
    monkeypatch.setenv("LOCAL_RANK", "1")  # Lightning's own child
    assert find_place(2) == Place(1, 2, 1, "self") and find_place(1).is_main


def test_the_others_wait_for_the_first(monkeypatch):
    import threading

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port - 1))
    done = []

    def other():
        try:
            with prepared_by_main(Place(1, 2, 1, "torchrun")):
                done.append("prepared" in done)
        except EnvironmentProblem as error:
            done.append(str(error))

    for fails in (False, True):
        done.clear()
        thread = threading.Thread(target=other)
        thread.start()
        try:
            with prepared_by_main(Place(0, 2, 1, "torchrun")):
                done.append("prepared")
                if fails:
                    raise ValueError
        except ValueError:
            pass
        thread.join(timeout=60)
        assert done[1:] == ([True] if not fails else ["the first process could not prepare the run; see what it says"])
