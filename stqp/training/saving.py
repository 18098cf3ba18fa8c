"""What a run saves on the way: all it needs to go on, and its best weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from stqp import files
from stqp.errors import EnvironmentProblem, InputError
from stqp.hdf5 import CarefulFile
from stqp.training.state import State
from stqp.training.weights import load_safely

CHECKPOINT = "last.ckpt"
FORMAT = 1


class Keeper:
    """Writes the files of one run, each whole or not at all.

    Parameters
    ----------
    out
        Folder of the run.
    classes
        Class names, kept with the weights.
    patches
        Fingerprint of the patches, which a run that goes on must find again.
    """

    def __init__(self, out: Path, classes: list[str], patches: str = ""):
        self.out, self.about = out, {"stqp_training": FORMAT, "stqp_classes": classes, "patches": patches}
        self.saved_step: int | None = None

    def save(self, state: State, parts: Mapping[str, Any]) -> None:
        """Save all that the run needs to go on; then weights that are the best no longer may go.

        Raises
        ------
        EnvironmentProblem
            When the disk is full; what was saved before stays.
        """
        path = self.out / CHECKPOINT
        content = {**self.about, "state": state.to_dict(), **parts}
        try:
            write(path, content)
        except EnvironmentProblem as error:
            if not path.is_file():
                raise EnvironmentProblem(f"{error}; nothing of the run was saved before") from error
            kept = "" if self.saved_step is None else f" of step {self.saved_step}"
            raise EnvironmentProblem(
                f"{error}; the last checkpoint{kept} stays: make room, and go on with --resume"
            ) from error
        self.saved_step = state.steps
        for old in self.out.glob("best-*.pth"):
            if old.name != state.best_file:
                old.unlink(missing_ok=True)

    def save_best(self, state: State, weights: Mapping[str, torch.Tensor]) -> None:
        """Save the weights of a better score under a name of their own; `save` makes them the ones that count."""
        state.best_file = f"best-{state.steps:08d}.pth"
        write(self.out / state.best_file, dict(weights))

    def best(self, state: State) -> dict[str, torch.Tensor]:
        """Weights of the best score."""
        weights: dict[str, torch.Tensor] = read(self.out / state.best_file)
        return weights


def write(path: Path, content: Any) -> None:
    """Save with torch, atomically; a disk that is full is an `EnvironmentProblem`."""
    with files.replacing(path) as temporary, CarefulFile(temporary) as raw:
        torch.save(content, cast("IO[bytes]", raw))
        raw.check()


def read(path: Path) -> Any:
    """Load what `write` saved; never runs code that a file brings.

    Raises
    ------
    InputError
        When the file is not there, cut short, or not one of ours.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there, but the run needs it to go on; restore it, or train again")
    return load_safely(path)


def read_checkpoint(path: Path) -> tuple[State, dict[str, Any]]:
    """State and parts of a run that goes on.

    Raises
    ------
    InputError
        When the file is broken or no checkpoint of `stqp train`.
    """
    content = read(path)
    if not isinstance(content, dict) or content.get("stqp_training") != FORMAT:
        raise InputError(f"{path} is no checkpoint of a run of stqp train that this version can go on with")
    return State.from_dict(content["state"]), content
