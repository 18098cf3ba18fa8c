"""All that shapes a training run: one tree of frozen dataclasses behind flags, ``train.toml`` and the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stqp.devices import DEVICES
from stqp.errors import UsageError
from stqp.patches.options import OBJECT_KINDS, CutOptions
from stqp.training.network import ARCHITECTURES, architecture
from stqp.training.options import Option, option, options_of

SELECT = ("pq", "mpq", "dice", "aji", "f_d", "f_c_mean", "type_f1_macro", "last")
"""Scores that can choose the best checkpoint; ``last`` takes the last one."""


@dataclass(frozen=True)
class NetworkOptions:
    """The network, and where its weights begin."""

    arch: str = option(
        "fast",
        "TIAToolbox's HoVerNet (fast, original; for a GPU), or lite, its narrow relative, for a CPU.",
        choices=tuple(ARCHITECTURES),
    )
    init: str | None = option(
        None,
        "Begin with the weights of this run, file, or registered model of TIAToolbox (pannuke); else from nothing.",
        metavar="PATH|NAME",
    )
    freeze_encoder: bool = option(False, "Never train the encoder.")
    freeze_norm: bool = option(False, "Keep the running statistics of all BatchNorm layers as they begin.")


@dataclass(frozen=True)
class ScheduleOptions:
    """How long to train, with what steps, and what to keep."""

    recipe: str = option(
        "cosine",
        "Defaults of this section: cosine (one phase), or official (HoVer-Net's: Adam, steps, a phase with the "
        "encoder frozen where there is an --init).",
        choices=("cosine", "official"),
    )
    epochs: int | None = option(
        None, "Passes over the patches (of the phase with all layers). Default 50 when no limit is given.", low=1,
        fixed=False,
    )  # fmt: skip
    max_steps: int | None = option(None, "Optimiser steps in all.", low=1, fixed=False)
    max_time: float | None = option(None, "Minutes of training in all.", above=0, metavar="MINUTES", fixed=False)
    freeze_epochs: int | None = option(None, "Passes of a first phase with the encoder frozen.", low=0)
    freeze_batch_size: int | None = option(None, "Crops a step of each process in that phase.", low=1)
    batch_size: int | None = option(None, "Crops a step of each process.", low=1)
    accumulate: int = option(1, "Batches whose gradients make one step.", low=1)
    optimizer: str | None = option(None, "Optimiser.", choices=("adamw", "adam"))
    lr: float | None = option(None, "Highest learning rate.", above=0)
    weight_decay: float | None = option(None, "Of weights; biases and normalisation never decay.", low=0, high=1)
    decay: str | None = option(None, "How the learning rate falls.", choices=("cosine", "step", "constant"))
    warm_up: float | None = option(None, "Part of each phase in which the learning rate rises.", low=0, high=0.5)
    step_epochs: int = option(25, "Passes after which --decay step lowers the learning rate.", low=1)
    step_factor: float = option(0.1, "What it is then multiplied by.", above=0, high=1)
    clip: float | None = option(None, "Largest norm of the gradient; 0 does not clip.", low=0)
    ema: float | None = option(
        None, "Decay a step of the moving average of the weights, which is scored and kept; 0 for none.", low=0, high=1
    )
    select: str = option("pq", "Validation score that chooses the checkpoint to keep.", choices=SELECT)
    patience: int = option(0, "Stop after this many scorings without a better score; 0 never stops.", low=0)
    score_every: int = option(
        0, "Passes between two scorings; 0 lets scoring take about a twentieth of the arithmetic.", low=0
    )


@dataclass(frozen=True)
class LossOptions:
    """Weights and kinds of the losses; by default as HoVer-Net's authors train."""

    np_ce: float = option(1.0, "Weight of the cross-entropy of nucleus or not.", low=0)
    np_dice: float = option(1.0, "Weight of the Dice loss of nucleus or not.", low=0)
    hv_mse: float = option(1.0, "Weight of the squared error of the distance maps.", low=0)
    hv_msge: float = option(1.0, "Weight of the squared error of their gradients.", low=0)
    tp_ce: float = option(1.0, "Weight of the type loss for each pixel.", low=0)
    tp_dice: float = option(1.0, "Weight of the Dice loss of the types.", low=0)
    type_loss: str = option(
        "ce",
        "The type loss for each pixel: cross-entropy, focal (rare classes), or gce (generalised cross-entropy, "
        "which wrong labels harm less).",
        choices=("ce", "focal", "gce"),
    )
    focal_gamma: float = option(2.0, "Exponent of --type-loss focal.", low=0, high=10)
    gce_q: float = option(0.7, "Exponent of --type-loss gce: near 0 is cross-entropy, 1 is absolute error.", above=0,
                          high=1)  # fmt: skip
    label_smoothing: float = option(0.0, "Share of the type's label that goes to all classes alike.", low=0, high=0.9)
    class_weights: str = option(
        "none", "Weight classes in the type loss by their inverse frequency.", choices=("none", "inverse")
    )
    class_weight_cap: float = option(10.0, "Largest of these weights beside the smallest.", low=1)


@dataclass(frozen=True)
class AugmentationOptions:
    """What is varied in a crop, and how far."""

    strength: float = option(
        1.0, "Multiplies all ranges below; 0 leaves crops as they are but for place.", low=0, high=3
    )
    scale: float = option(0.2, "Largest change of size, of each side on its own.", low=0, high=0.6)
    shear: float = option(5.0, "Largest shear in degrees.", low=0, high=30)
    rotate: bool = option(True, "Turn by any angle.")
    flip: bool = option(True, "Mirror.")
    stain: float = option(0.2, "Largest change of the amounts of haematoxylin and eosin.", low=0, high=0.9)
    light: float = option(0.1, "Largest change of the brightness.", low=0, high=0.5)
    disturb: float = option(0.6, "Share of the crops that are blurred or get noise.", low=0, high=1)
    blur: float = option(1.3, "Largest sigma of the Gaussian blur in px.", low=0, high=5)
    noise: float = option(12.0, "Largest standard deviation of the noise in grey levels.", low=0, high=60)


@dataclass(frozen=True)
class RunOptions:
    """Seed, machine, and what a run leaves on the way."""

    seed: int = option(0, "Of weights, order and augmentation; the split has its own.", low=0)
    device: str = option("auto", "auto picks CUDA, then MPS, then CPU.", choices=DEVICES, fixed=False)
    devices: int = option(1, "Processes of a node, each with a GPU of its own (or cores of the CPU).", low=1)
    nodes: int = option(1, "Machines; start the same command on each with torchrun or SLURM.", low=1)
    precision: str = option(
        "auto", "Bits of the arithmetic: auto is bf16 or 16 on CUDA, 32 else.", choices=("auto", "32", "16", "bf16")
    )
    sync_norm: bool = option(False, "Share the statistics of BatchNorm among the GPUs.")
    workers: int | None = option(
        None, "Processes that prepare crops, for each device. Default: by the machine.", low=0, fixed=False
    )
    save_minutes: float = option(3.0, "Minutes between two saves to resume from.", above=0, fixed=False)
    tensorboard: bool = option(False, "Write TensorBoard's event files too.", fixed=False)


@dataclass(frozen=True)
class Settings:
    """Everything that shapes a run.

    Attributes
    ----------
    projects : tuple of str
        QuPath projects.
    data : CutOptions
        Which nuclei, which pixels, which split; sections ``data`` and ``split`` of ``train.toml``.
    network, schedule, loss, augmentation, run
        See each.
    """

    projects: tuple[str, ...] = option((), "QuPath projects with typed nuclei, or one file of patches.")
    data: CutOptions = field(default_factory=CutOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def of(cls, projects: Sequence[str | Path] = (), **values: Any) -> Settings:
        """Make settings from values by the names of their flags: ``Settings.of([path], arch="lite", epochs=3)``.

        Raises
        ------
        UsageError
            When there is no such option, or its value is none that it may have.
        """
        return cls(projects=tuple(map(str, projects))).changed(values)

    def changed(self, values: Mapping[str, Any]) -> Settings:
        """The same with other values, by the names of their flags."""
        known = {o.flag: o for o in OPTIONS}
        if unknown := set(values) - set(known):
            raise UsageError(f"there is no option {', '.join(sorted(unknown))} of training")
        sections: dict[str, dict[str, Any]] = {}
        for flag, value in values.items():
            one = known[flag]
            sections.setdefault(_HOME.get(one.section, one.section), {})[one.name] = one.check(value)
        result = replace(self, **sections.pop("", {}))
        for section, changes in sections.items():
            result = replace(result, **{section: replace(getattr(result, section), **changes)})
        return result

    def get(self, one: Option) -> Any:
        """Value of an option."""
        holder = getattr(self, _HOME.get(one.section, one.section)) if one.section else self
        return getattr(holder, one.name)

    def resolved(self) -> Settings:
        """The same with all that recipe and architecture decide written out."""
        schedule, geometry = self.schedule, architecture(self.network.arch)
        if schedule.recipe == "official":
            choice: dict[str, Any] = {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "decay": "step"}
            choice |= {"warm_up": 0.0, "clip": 0.0, "ema": 0.0, "batch_size": 8, "freeze_batch_size": 16}
            # a random encoder is not worth keeping
            choice |= {"freeze_epochs": 50 if self.network.init else 0}
        else:
            choice = {"optimizer": "adamw", "lr": geometry.learning_rate, "weight_decay": 0.01, "decay": "cosine"}
            choice |= {"warm_up": 0.03, "clip": 5.0, "ema": 0.999, "batch_size": geometry.batch_size}
            choice |= {"freeze_batch_size": schedule.batch_size or geometry.batch_size, "freeze_epochs": 0}
        if schedule.epochs is None and schedule.max_steps is None and schedule.max_time is None:
            choice["epochs"] = 50
        missing = {k: v for k, v in choice.items() if getattr(schedule, k) is None}
        return replace(self, schedule=replace(schedule, **missing))

    def differences(self, other: Settings) -> list[str]:
        """What a run that goes on may not change, and that differs: ``batch_size was 2 and is 3``."""
        return [
            f"{o.flag} was {_plain(other.get(o))} and is {_plain(self.get(o))}"
            for o in OPTIONS
            if o.fixed and self.get(o) != other.get(o)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All values by section, in JSON's types."""
        result: dict[str, Any] = {}
        for one in OPTIONS:
            holder = result.setdefault(one.section, {}) if one.section else result
            holder[one.name] = _plain(self.get(one))
        return result


def _plain(value: Any) -> Any:
    return [*value] if isinstance(value, tuple) else value


_HOME = {"split": "data"}  # sections of train.toml whose options another dataclass holds
_CUT: dict[str, dict[str, Any]] = {
    "entries": {"text": "Use only these images of the projects.", "spelled": "entry", "metavar": "NAME"},
    "where": {"text": "Use only images with this metadata (or name, project); * stands for anything.",
              "metavar": "KEY=VALUE"},
    "classes": {"text": "Learn these classes, in this order; other nuclei count as Unknown. Default: all.",
                "spelled": "class", "metavar": "NAME"},
    "objects": {"text": "Which objects are the nuclei; auto takes annotations, else cells, else detections.",
                "choices": OBJECT_KINDS},
    "predictions": {"text": "Count nuclei that stqp predicted as nuclei."},
    "min_confidence": {"text": "Nuclei whose label is less sure than this are Unknown.", "low": 0, "high": 1},
    "min_stain": {"text": "Nuclei with less stain contrast than this are masked."},
    "max_misalignment": {"text": "Nuclei farther than this from their best place on the stain are masked.",
                         "low": 0, "high": 1000, "metavar": "UM"},
    "weight_by": {"text": "Weight the type loss of a nucleus by confidence, alignment or stain, joined by +."},
    "size": {"text": "Side of a patch in px.", "low": 16, "flag": "patch_size"},
    "mpp": {"text": "µm per px of the patches.", "low": 0.01, "high": 100},
    "split": {"text": "What is kept on one side: block, slide, metadata:KEY, or file:PATH of an earlier split.json."},
    "block": {"text": "Side of a spatial block of the split.", "low": 1, "metavar": "UM"},
    "guard": {"text": "Width beside a held-out block that nothing is learnt from.", "low": 0, "metavar": "UM"},
    "validation": {"text": "Fraction that is held out to choose by.", "low": 0, "high": 0.9},
    "test": {"text": "Fraction that is held out and only scored at the end.", "low": 0, "high": 0.9},
    "holdout": {"text": "Images with this metadata are for testing.", "metavar": "KEY=VALUE"},
    "validate_on": {"text": "Images with this metadata are all that is held out to choose by.", "metavar": "KEY=VALUE"},
    "seed": {"text": "Of the split.", "low": 0, "flag": "split_seed"},
}  # fmt: skip
OPTIONS: tuple[Option, ...] = tuple(options_of(Settings, _CUT))
"""All options in the order of ``train.toml``."""
