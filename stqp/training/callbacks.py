"""What happens around the steps: the average of the weights, scores, saves, the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from stqp.training.distributed import largest
from stqp.training.interrupts import Interrupted, Interrupts
from stqp.training.losses import TERMS
from stqp.training.metrics import Metrics
from stqp.training.module import HoVerNetModule
from stqp.training.saving import Keeper
from stqp.training.state import Plan, State

logger = logging.getLogger(__name__)
Progress = Callable[[float, dict[str, float]], None]
"""Called with the fraction of the phase that is over, and the latest losses and scores."""
Score = Callable[[nn.Module], dict[str, float]]


class Average:
    """Moving average of all weights and statistics; after few steps its memory is shorter.

    Parameters
    ----------
    network
        What is averaged.
    decay
        Share that stays at each step.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self._model = AveragedModel(network, multi_avg_fn=self._move, use_buffers=True)
        self._model.requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move to where the network is trained."""
        self._model.to(device)

    @property
    def network(self) -> nn.Module:
        """The network with the averaged weights."""
        result: nn.Module = self._model.module
        return result

    @torch.no_grad()
    def _move(self, average: Any, current: Any, count: Any) -> None:
        keep = min(self.decay, (1 + float(count)) / (10 + float(count)))
        if torch.is_floating_point(average[0]):
            torch._foreach_lerp_(average, current, 1 - keep)
        else:  # BatchNorm's counters
            for old, new in zip(average, current, strict=True):
                old.copy_(new)

    def update(self, network: nn.Module) -> None:
        """Take up the weights after a step."""
        self._model.update_parameters(network)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights, statistics and the number of updates."""
        result: dict[str, torch.Tensor] = self._model.state_dict()
        return result

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state_dict`."""
        self._model.load_state_dict(state)


class Course(lightning.Callback):
    """Counts the steps of a phase, scores, chooses the best weights, saves, and ends.

    Everything that decides how the weights go on hangs on the number of the step and on what was saved with it,
    so that a run that was interrupted ends with the weights of one that was not. Only limits in minutes and
    the saves themselves look at the clock.

    Parameters
    ----------
    state
        Where the run stands; it is kept up to date.
    plan
        The phase.
    keeper, metrics
        Write checkpoints and rows; None in all but the main process.
    interrupts
        Tells of Ctrl-C.
    average
        Moving average of the weights; None for none, and in all but the main process.
    score
        Gives the validation scores of a network; None without validation patches.
    score_every
        Epochs between two scorings.
    parts
        Optimiser, scaler and average of a run that goes on.
    save_seconds
        Seconds between two saves.
    progress
        Told after each step.
    """

    def __init__(
        self,
        state: State,
        plan: Plan,
        *,
        keeper: Keeper | None,
        metrics: Metrics | None,
        interrupts: Interrupts,
        average: Average | None = None,
        score: Score | None = None,
        score_every: int = 1,
        parts: Mapping[str, Any] | None = None,
        save_seconds: float = 180.0,
        progress: Progress | None = None,
    ):
        self.state, self.plan, self.keeper, self.metrics = state, plan, keeper, metrics
        self.interrupts, self.average, self.score, self.score_every = interrupts, average, score, score_every
        self.parts, self.save_seconds, self.progress = parts or {}, save_seconds, progress
        self._clock = self._saved = time.monotonic()
        self._before = state.seconds

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Take up what an earlier part of the run saved, and start the clock."""
        if "optimizer" in self.parts:
            trainer.optimizers[0].load_state_dict(self.parts["optimizer"])
        if self.parts.get("scaler"):
            trainer.precision_plugin.load_state_dict(self.parts["scaler"])
        if self.average is not None and self.parts.get("average"):
            self.average.load_state_dict(self.parts["average"])
        self.parts = {}
        self.interrupts.watch()  # after Lightning has set its own handlers
        self._clock = self._saved = time.monotonic()
        self._before = self.state.seconds

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Do what is due after a batch, and after a step."""
        assert isinstance(module, HoVerNetModule)
        state, schedule = self.state, self.plan.schedule
        state.sums = [a + b for a, b in zip(state.sums or [0.0] * (len(TERMS) + 1), module.latest, strict=True)]
        state.counted += 1
        state.crops += self.plan.phase.batch_size * trainer.world_size
        if (batch_idx + 1) % schedule.accumulate:
            return
        state.step += 1
        state.steps += 1
        if self.average is not None:
            self.average.update(module.network)
        # all processes learn at one rate and end at one step, whatever their clocks and signals say
        seconds = self._before + time.monotonic() - self._clock
        state.seconds, stop = largest((seconds, self.interrupts.pending), module.device)
        pending = stop > 0
        over = self.plan.over(state)
        if over or state.step % self.plan.steps_per_epoch == 0:
            if self.metrics is not None:
                self._end_epoch(trainer, module, over)
            (state.stopped_early,) = map(bool, largest((state.stopped_early,), module.device))
            over = self.plan.over(state)
        if self.progress is not None:
            try:
                self.progress(self.plan.progress(state), {**self._numbers(module), **state.scores})
            except KeyboardInterrupt:  # here a step is whole
                self.interrupts.pending = True
                pending = trainer.world_size == 1  # of several, all stop after the next step
        if over:
            trainer.should_stop = True
        due = over or pending or time.monotonic() - self._saved > self.save_seconds
        if due and self.keeper is not None:
            self.save(trainer, module)
        if pending and not over:
            raise Interrupted

    def save(self, trainer: lightning.Trainer, module: HoVerNetModule) -> None:
        """Save all that the run needs to go on."""
        assert self.keeper is not None
        parts = {
            "state_dict": module.network.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "scaler": trainer.precision_plugin.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        self.keeper.save(self.state, parts)
        self._saved = time.monotonic()

    def kept_network(self, module: HoVerNetModule) -> nn.Module:
        """The network whose weights are scored and kept: the average where there is one."""
        return module.network if self.average is None else self.average.network

    def _numbers(self, module: HoVerNetModule) -> dict[str, float]:
        state = self.state
        return {
            **dict(zip(("loss", *TERMS), module.latest, strict=True)),
            "step": float(state.steps),
            "crops": float(state.crops),
            "seconds": state.seconds,
            "phase": float(state.phase),
        }

    def _end_epoch(self, trainer: lightning.Trainer, module: HoVerNetModule, over: bool) -> None:
        """Score where it is due, and write a row of mean losses and scores."""
        state = self.state
        assert self.metrics is not None and self.keeper is not None
        row = dict(zip(("loss", *TERMS), (s / max(state.counted, 1) for s in state.sums), strict=True))
        state.sums, state.counted = [], 0
        epoch = state.step // self.plan.steps_per_epoch
        better = False
        if self.score is not None and (over or epoch % self.score_every == 0):
            network = self.kept_network(module)
            network.eval()
            state.scores = self.score(network)
            row.update({f"validation_{k}": v for k, v in state.scores.items()})
            better = self._choose(network)
        row.update(phase=state.phase, epoch=state.step / self.plan.steps_per_epoch, step=state.steps)
        row.update(minutes=state.seconds / 60, lr=float(trainer.optimizers[0].param_groups[0]["lr"]))
        self.metrics.write(row)
        if better:
            self.save(trainer, module)

    def _choose(self, network: nn.Module) -> bool:
        """Keep the weights if they are the best so far; count how long they have not been."""
        state, schedule = self.state, self.plan.schedule
        assert self.keeper is not None
        if schedule.select == "last":
            return False
        value = state.scores.get(schedule.select)
        if value is not None and value == value and (state.best is None or value > state.best):
            state.best, state.best_step, state.waited = value, state.steps, 0
            state.best_scores = dict(state.scores)
            self.keeper.save_best(state, network.state_dict())
            return True
        state.waited += 1
        if schedule.patience and state.waited >= schedule.patience and not state.stopped_early:
            state.stopped_early = True
            logger.info("no better %s in %d scorings; training ends", schedule.select, state.waited)
        return False
