"""What a machine can do of what the settings ask for; all is looked at before anything is cut."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

from stqp.errors import EnvironmentProblem
from stqp.training.distributed import Place
from stqp.training.settings import RunOptions


def check_machine(options: RunOptions, place: Place, device: str) -> None:
    """Refuse what this machine cannot do.

    Parameters
    ----------
    options
        What was asked for.
    place
        Which of how many processes this is.
    device
        As `stqp.devices.pick_device` gives it.

    Raises
    ------
    EnvironmentProblem
        When GPUs, a precision or TensorBoard are missing.
    """
    precision(options.precision, device)
    if options.tensorboard and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise EnvironmentProblem(
            "--tensorboard needs the package tensorboard: pip install tensorboard, or go without it; metrics.csv has "
            "the same numbers"
        )
    if place.devices > 1 and device != "cpu":
        import torch

        there = torch.cuda.device_count() if device == "cuda" else 1
        if place.devices > there:
            raise EnvironmentProblem(
                f"--devices {place.devices} was asked for, but this machine has {there} of {device}"
            )


def precision(asked: str, device: str) -> Any:
    """Lightning's name of a precision.

    Raises
    ------
    EnvironmentProblem
        When the device cannot do it.
    """
    if asked == "auto":
        asked = "32"
        if device == "cuda":
            import torch

            asked = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"
    if asked == "16" and device == "cpu":
        raise EnvironmentProblem("a CPU does not train in 16 bits; use --precision bf16 or 32")
    return {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}[asked]


def default_workers(devices: int = 1) -> int:
    """Processes that prepare crops for each of some devices of this machine."""
    if sys.platform != "linux":
        return 0  # processes start slowly where they do not fork, and a crop takes 20 ms
    return max(1, min(8, ((os.cpu_count() or 2) - 1) // devices))
