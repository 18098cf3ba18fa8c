"""Where a run stands, when it ends, and how fast it learns until then."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from stqp.training.settings import ScheduleOptions


@dataclass
class State:
    """All but weights that a run needs to go on as if it had never stopped.

    Attributes
    ----------
    phase : int
        Number of the phase.
    step, steps, crops : int
        Optimiser steps of this phase, and in all; crops shown in all.
    seconds : float
        Spent in training.
    began_steps, began_seconds
        What was spent when the phase began.
    sums : list of float
        Sum of the total loss and of each term since the last row of the metrics.
    counted : int
        Batches in them.
    best, best_step, best_file
        Best validation score, its step, and the file of its weights.
    waited : int
        Scorings since then.
    scores : dict
        The latest validation scores.
    best_scores : dict
        Those of the best.
    stopped_early : bool
        Whether patience ended the phase.
    """

    phase: int = 0
    step: int = 0
    steps: int = 0
    crops: int = 0
    seconds: float = 0.0
    began_steps: int = 0
    began_seconds: float = 0.0
    sums: list[float] = field(default_factory=list)
    counted: int = 0
    best: float | None = None
    best_step: int = 0
    best_file: str = ""
    waited: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    best_scores: dict[str, float] = field(default_factory=dict)
    stopped_early: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> State:
        """From `to_dict`."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})

    def begin(self, phase: int) -> None:
        """Start a phase."""
        self.phase, self.step = phase, 0
        self.began_steps, self.began_seconds = self.steps, self.seconds
        self.waited, self.stopped_early = 0, False


@dataclass(frozen=True)
class Phase:
    """A part of a run with one batch size and one set of layers that learn.

    Attributes
    ----------
    frozen : bool
        Whether the encoder stays as it is.
    batch_size : int
        Crops a step of each process.
    epochs : int or None
        Passes over the patches.
    """

    frozen: bool
    batch_size: int
    epochs: int | None


def phases(schedule: ScheduleOptions, freeze_encoder: bool = False) -> list[Phase]:
    """The phases of a resolved schedule."""
    result = []
    if schedule.freeze_epochs:
        result.append(Phase(True, schedule.freeze_batch_size or 1, schedule.freeze_epochs))
    return [*result, Phase(freeze_encoder, schedule.batch_size or 1, schedule.epochs)]


@dataclass(frozen=True)
class Plan:
    """Limits of a phase, and the learning rate that follows from them.

    Attributes
    ----------
    schedule : ScheduleOptions
        Resolved.
    phase : Phase
    steps_per_epoch : int
    """

    schedule: ScheduleOptions
    phase: Phase
    steps_per_epoch: int

    def progress(self, state: State) -> float:
        """Fraction of the phase that is over, 0 to 1; it ends at the first of its limits."""
        parts = [0.0]
        if self.phase.epochs:
            parts.append(state.step / (self.phase.epochs * self.steps_per_epoch))
        if self.schedule.max_steps:
            parts.append(_part(state.steps, state.began_steps, self.schedule.max_steps))
        if self.schedule.max_time:
            parts.append(_part(state.seconds, state.began_seconds, 60 * self.schedule.max_time))
        return min(max(parts), 1.0)

    def over(self, state: State) -> bool:
        """Whether the phase has ended."""
        return self.progress(state) >= 1 or state.stopped_early

    def spent(self, state: State) -> bool:
        """Whether a limit of the whole run is reached, so that no phase follows."""
        schedule = self.schedule
        return bool(
            (schedule.max_steps and state.steps >= schedule.max_steps)
            or (schedule.max_time and state.seconds >= 60 * schedule.max_time)
        )

    def learning_rate(self, state: State) -> float:
        """Rate of the next step: a linear rise, then as ``decay`` says."""
        schedule, progress = self.schedule, self.progress(state)
        peak, warm_up = float(schedule.lr or 0), float(schedule.warm_up or 0)
        if progress < warm_up:
            return peak * (0.05 + 0.95 * progress / warm_up)
        if schedule.decay == "step":
            return peak * schedule.step_factor ** (state.step // (schedule.step_epochs * self.steps_per_epoch))
        if schedule.decay == "constant":
            return peak
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
        return peak * (0.01 + 0.99 * cosine)


def _part(now: float, began: float, end: float) -> float:
    return (now - began) / (end - began) if end > began else 1.0
