"""The phases of a run: network, crops, Lightning's trainer, and what a trainer's errors mean."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from stqp.errors import EnvironmentProblem, InputError
from stqp.patches.store import TEST, TRAINING, VALIDATION, PatchFile
from stqp.training.callbacks import Average, Course, Progress, Score
from stqp.training.data import EndlessBatches, TrainingCrops, loader, one_opencv_thread
from stqp.training.distributed import Place
from stqp.training.interrupts import Interrupted, Interrupts
from stqp.training.lite import RIM
from stqp.training.losses import HoVerNetLoss, inverse_frequency
from stqp.training.machine import default_workers, precision
from stqp.training.memory import explain, is_out_of_memory
from stqp.training.metrics import Metrics
from stqp.training.module import HoVerNetModule
from stqp.training.network import architecture, build_network, cost, initialize
from stqp.training.saving import CHECKPOINT, Keeper, read_checkpoint
from stqp.training.settings import Settings
from stqp.training.state import Phase, Plan, State, phases
from stqp.training.validation import chosen_rows, score_network

logger = logging.getLogger(__name__)
_Parts = dict[str, Any]
_HOURS = 6  # that the other processes wait while the first one scores


@dataclass
class Fitted:
    """What came of the phases.

    Attributes
    ----------
    network : Module
        With the weights to keep, on the CPU.
    state : State
    parameters, gflop
        Size and price of the network.
    steps_per_epoch : int
        Of the last phase.
    initial : dict
        What the network began with; empty for nothing.
    test : dict
        Scores of the patches that are for testing, and ``patches``, how many were scored; empty without any.
    """

    network: nn.Module
    state: State
    parameters: int
    gflop: float
    steps_per_epoch: int
    initial: dict[str, Any]
    test: dict[str, float]


def fit(
    settings: Settings, patches: PatchFile, out: Path, place: Place, device: str, *, resume: bool,
    progress: Progress | None = None,
) -> Fitted:  # fmt: skip
    """Train a network on the patches of a run.

    Parameters
    ----------
    settings
        Resolved.
    patches
        What to learn from.
    out
        Folder of the run.
    place
        Which of how many processes this is.
    device
        As `stqp.devices.pick_device` gives it.
    resume
        Whether to go on from the run's checkpoint where it has one.
    progress
        Told after each step.

    Raises
    ------
    InputError
        When nothing is left to learn from, when the loss is no number, or a checkpoint is broken.
    EnvironmentProblem
        When memory or disk are full.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after all was saved.
    """
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    arch = architecture(settings.network.arch)
    torch.manual_seed(settings.run.seed)
    network = build_network(arch.name, patches.classes)
    initialize(network)
    parameters, gflop = cost(network, arch.input_size)
    state, parts, initial = State(), _Parts(), _Parts()
    checkpoint = out / CHECKPOINT
    if resume and checkpoint.is_file():
        state, parts = read_checkpoint(checkpoint)
        if parts["patches"] != patches.fingerprint:
            raise InputError(
                f"{patches.path} is not the file of patches that the run in {out} began with; restore it, or start "
                "a new run"
            )
        network.load_state_dict(parts["state_dict"])
    elif settings.network.init is not None:
        from stqp.training.checkpoints import load_initial

        initial = load_initial(network, settings.network.init, patches.classes)
        logger.info("%s", initial["summary"])
    if resume and not parts:
        logger.info("the run stopped before its first checkpoint; it starts anew from its patches")
    rows = np.flatnonzero(patches.side == TRAINING)
    if not len(rows):
        raise InputError(f"no patches are left for training in {patches.path}; use a smaller --block or --validation 0")
    weights = None
    if settings.loss.class_weights == "inverse":
        weights = inverse_frequency(patches.counts[rows, 1:].sum(axis=0).tolist(), settings.loss.class_weight_cap)
    job = _Job(settings, patches, rows, out, place, device, gflop, HoVerNetLoss(settings.loss, weights), progress)
    plan = job.plan(phases(settings.schedule)[0])
    todo = phases(settings.schedule, settings.network.freeze_encoder)
    for number, phase in enumerate(todo):
        plan = job.plan(phase)
        if number < state.phase:
            continue
        if number > state.phase:
            if plan.spent(state):
                break
            state.begin(number)
            parts = {}
        if not plan.over(state):
            job.run(network, plan, state, parts)
        parts = {}
    kept = job.kept(network, state)
    return Fitted(kept, state, parameters, gflop, plan.steps_per_epoch, initial, job.test(kept, gflop))


class _Job:
    """What all phases share."""

    def __init__(
        self, settings: Settings, patches: PatchFile, rows: Any, out: Path, place: Place, device: str, gflop: float,
        loss: HoVerNetLoss, progress: Progress | None,
    ):  # fmt: skip
        self.settings, self.patches, self.out, self.place, self.device = settings, patches, out, place, device
        self.arch, self.loss, self.progress = architecture(settings.network.arch), loss, progress
        self.keeper = Keeper(out, patches.classes, patches.fingerprint) if place.is_main else None
        held = np.flatnonzero(patches.side == VALIDATION)
        self.scored = chosen_rows(held, gflop, device) if len(held) else held
        self.margin = RIM if self.arch.name == "lite" else self.arch.margin
        self.rows = rows
        crops = len(self.crops(0))
        windows = 4 * len(self.scored)
        # a step costs three passes; scoring may cost a twentieth of what training does
        self.score_every = settings.schedule.score_every or max(1, math.ceil(20 * windows / (3 * crops)))

    def crops(self, phase: int) -> TrainingCrops:
        """Crops of a phase; each phase draws its own."""
        settings = self.settings
        return TrainingCrops(
            self.patches, self.rows, self.arch.input_size, self.margin, self._seed(phase), settings.augmentation
        )

    def plan(self, phase: Phase) -> Plan:
        """Limits of a phase."""
        whole = phase.batch_size * self.place.world * self.settings.schedule.accumulate
        return Plan(self.settings.schedule, phase, max(1, round(len(self.crops(0)) / whole)))

    def run(self, network: nn.Module, plan: Plan, state: State, parts: Mapping[str, Any]) -> None:
        """Run one phase to its end."""
        settings, schedule, place = self.settings, self.settings.schedule, self.place
        crops = self.crops(state.phase)
        batches = EndlessBatches(
            len(crops), plan.phase.batch_size, self._seed(state.phase), state.step * schedule.accumulate, place.rank,
            place.world,
        )  # fmt: skip
        workers = settings.run.workers if settings.run.workers is not None else default_workers(place.devices)
        module = HoVerNetModule(network, self.loss, plan, state, settings.network.freeze_norm)
        average = Average(network, schedule.ema) if schedule.ema and place.is_main else None
        if average is not None:
            average.to(torch.device(self.device))
        metrics = Metrics(self.out, state.steps, settings.run.tensorboard) if place.is_main else None
        with Interrupts() as interrupts, one_opencv_thread():
            course = Course(
                state,
                plan,
                keeper=self.keeper,
                metrics=metrics,
                interrupts=interrupts,
                average=average,
                score=self._score if len(self.scored) else None,
                score_every=self.score_every,
                parts=parts,
                save_seconds=60 * settings.run.save_minutes,
                progress=self.progress if place.is_main else None,
            )
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Lightning's advice on workers and logging intervals
                    trainer = self._trainer(course)
                    trainer.fit(module, loader(crops, batches, workers, self.device == "cuda"))
            except Interrupted:
                raise KeyboardInterrupt from None
            except SystemExit:  # what Lightning makes of a second Ctrl-C
                raise KeyboardInterrupt from None
            except FloatingPointError as error:
                raise InputError(f"{error}; what was saved before stays in {self.out}") from error
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    begun, first = (self.out / CHECKPOINT).is_file(), bool(schedule.freeze_epochs and not state.phase)
                    problem = explain(module, crops, schedule.accumulate, self.device, first=first, begun=begun)
                    raise EnvironmentProblem(problem) from error
                raise
            finally:
                if metrics is not None:
                    metrics.close()

    def kept(self, network: nn.Module, state: State) -> nn.Module:
        """The network with the weights that the run ends with."""
        if self.keeper is not None:
            if state.best_file:
                network.load_state_dict(self.keeper.best(state))
            else:
                _, parts = read_checkpoint(self.out / CHECKPOINT)
                network.load_state_dict(kept_weights(parts))
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        return network.cpu().eval()

    def test(self, network: nn.Module, gflop: float) -> dict[str, float]:
        """Scores of the patches that nothing was learnt from or chosen by; on a CPU, of what takes some minutes."""
        rows: Any = np.flatnonzero(self.patches.side == TEST)
        if not len(rows) or not self.place.is_main:
            return {}
        rows = chosen_rows(rows, gflop, self.device, 8)
        logger.info("scoring %d patches that are for testing", len(rows))
        scores = score_network(network.to(self.device), self.arch, self.patches, rows, self.device)
        network.cpu()
        return {**scores, "patches": len(rows)}

    def _seed(self, phase: int) -> int:
        return self.settings.run.seed + 7919 * phase

    @property
    def _score(self) -> Score:
        return lambda network: score_network(network, self.arch, self.patches, self.scored, self.device)

    def _trainer(self, course: Course) -> lightning.Trainer:
        settings, place = self.settings, self.place
        strategy: Any = "auto"
        if place.world > 1:
            import datetime

            strategy = DDPStrategy(timeout=datetime.timedelta(hours=_HOURS), gradient_as_bucket_view=True)
        return lightning.Trainer(
            accelerator={"cuda": "gpu"}.get(self.device, self.device),
            devices=place.devices,
            num_nodes=place.nodes,
            strategy=strategy,
            precision=precision(settings.run.precision, self.device),
            sync_batchnorm=settings.run.sync_norm and self.device == "cuda",
            max_epochs=-1,
            max_steps=-1,
            accumulate_grad_batches=settings.schedule.accumulate,
            gradient_clip_val=settings.schedule.clip or None,
            callbacks=[course],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )


def kept_weights(parts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint that are scored and kept: the average where there is one."""
    average = parts.get("average")
    if average is None:
        state: dict[str, torch.Tensor] = parts["state_dict"]
        return state
    return {k.removeprefix("module."): v for k, v in average.items() if k.startswith("module.")}
