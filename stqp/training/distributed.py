"""Several processes that train one network: who is who, who waits for whom, and sums over all."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stqp.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    import torch

_READY = "stqp/prepared"
_PATIENCE, _MOMENT = datetime.timedelta(days=7), datetime.timedelta(seconds=60)


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes
    ----------
    rank : int
        0 is the one that cuts, writes and scores.
    devices, nodes : int
        Processes a node, and nodes.
    launcher : str
        ``torchrun``, ``slurm``, or ``self`` where Lightning starts the other processes of this machine.
    """

    rank: int
    devices: int
    nodes: int
    launcher: str

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.devices * self.nodes

    @property
    def is_main(self) -> bool:
        """Whether this process cuts, writes and scores."""
        return self.rank == 0


def find_place(devices: int = 1, nodes: int = 1) -> Place:
    """Read from the environment which process this is.

    Parameters
    ----------
    devices, nodes
        What was asked for; 1 and 1 take what the launcher says.

    Raises
    ------
    UsageError
        When the launcher started other numbers, or several nodes are asked for without a launcher.
    """
    env = os.environ
    if {"RANK", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"} <= set(env):
        local = int(env["LOCAL_WORLD_SIZE"])
        place = Place(int(env["RANK"]), local, int(env["WORLD_SIZE"]) // local, "torchrun")
    elif "SLURM_STEP_ID" in env and int(env.get("SLURM_NTASKS", 1)) > 1 and env.get("SLURM_JOB_NAME") != "bash":
        count = int(env.get("SLURM_NNODES", 1))
        place = Place(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]) // count, count, "slurm")
    elif nodes > 1:
        raise UsageError(
            f"--nodes {nodes} needs a launcher: torchrun --nnodes {nodes} --nproc-per-node {devices} -m stqp_cli.main "
            "train ..., or srun"
        )
    else:
        return Place(int(env.get("LOCAL_RANK", 0)) if devices > 1 else 0, devices, 1, "self")
    for name, asked, found in (("devices", devices, place.devices), ("nodes", nodes, place.nodes)):
        if asked not in (1, found):
            raise UsageError(f"--{name} {asked} was asked for, but {place.launcher} started {found}")
    return place


@contextlib.contextmanager
def prepared_by_main(place: Place) -> Iterator[None]:
    """Let the main process do what the block holds; the others pass it when that is done.

    Raises
    ------
    EnvironmentProblem
        In the other processes, when the main one failed.
    """
    if place.world == 1 or place.launcher == "self":  # Lightning starts the others only after this
        yield
        return
    store = _store(place)
    if place.is_main:
        result = "failed"
        try:
            yield
            result = "done"
        finally:
            store.set(_READY, result)
            with contextlib.suppress(RuntimeError):  # of one that died meanwhile, the launcher knows
                store.wait([f"{_READY}/{rank}" for rank in range(1, place.world)], _MOMENT)  # the store ends with us
        return
    store.wait([_READY], _PATIENCE)
    result = store.get(_READY).decode()
    store.set(f"{_READY}/{place.rank}", "seen")
    if result != "done":
        raise EnvironmentProblem("the first process could not prepare the run; see what it says")
    yield


def _store(place: Place) -> Any:
    """Something that all processes can write to and wait on, before there is a process group."""
    from torch.distributed import PrefixStore, TCPStore

    if place.launcher == "torchrun":
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    else:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        cluster = SLURMEnvironment()
        address, port, hosted = cluster.main_address, cluster.main_port, False
    # torchrun's agent keeps a store at that port; elsewhere it belongs to the process group that follows
    store = TCPStore(address, port if hosted else port + 1, place.world, place.is_main and not hosted, _PATIENCE)
    return PrefixStore(f"stqp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, such that gradients averaged over them are those of the sum."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return values

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, mine: torch.Tensor) -> torch.Tensor:
            total = mine.clone()
            distributed.all_reduce(total)
            return total

        @staticmethod
        def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
            # all processes have the same loss of the sum; DDP divides by their number what this multiplies
            return gradients[0] * distributed.get_world_size()

    result: torch.Tensor = Sum.apply(values)
    return result


def largest(values: Sequence[float], device: torch.device) -> list[float]:
    """Largest of each value over all processes."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return [float(v) for v in values]
    shared = torch.tensor([float(v) for v in values], device=device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    result: list[float] = shared.tolist()
    return result
