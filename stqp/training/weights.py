"""Files of weights: loaded without running code, unwrapped, told apart, and held against a network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stqp.errors import InputError
from stqp.training.network import build_network

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

WRAPPERS = ("module.", "_orig_mod.", "network.", "model.")
"""What DataParallel, torch.compile and Lightning modules put before the names of weights."""
HEAD = {"lite": "decoder.tp.out", "fast": "decoder.tp.u0.conv", "original": "decoder.tp.u0.conv"}
"""Last layer of the type branch."""
ROWS = {"lite": 4, "fast": 1, "original": 1}
"""Rows of that layer a class; lite makes 2x2 pixels at once."""


def load_safely(path: Path) -> Any:
    """Load a file of torch without running code that it brings.

    Raises
    ------
    InputError
        When the file is no file of torch, is cut short, or holds more than tensors and plain values.
    """
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on TorchScript; said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken or foreign file
        text = str(error)
        foreign = re.search(r"GLOBAL (\S+)", text)
        if foreign:
            raise InputError(
                f"{path} holds {foreign[1]}, which needs code to be read, and stqp never runs code out of a file; save "
                "the model's state_dict() with torch.save and use that"
            ) from error
        if "TorchScript" in text:
            raise InputError(f"{path} is a TorchScript program; expected the weights it was made from") from error
        raise InputError(
            f"{path} is corrupt or no file of torch: {_reason(text) or type(error).__name__}; restore it"
        ) from error


def unwrapped(content: Any, path: Path) -> State:
    """The state_dict in what `load_safely` gave, whatever it is wrapped in, in single precision.

    Raises
    ------
    InputError
        When there is none.
    """
    import torch

    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((content[k] for k in ("desc", "state_dict", "model") if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"expected weights by name in {path}, found {type(content).__name__}; save a state_dict")
    state = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    for _ in range(3):
        prefix = next((p for p in WRAPPERS if state and all(k.startswith(p) for k in state)), None)
        if prefix is None:
            break
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def detect_architecture(state: Mapping[str, Any]) -> str | None:
    """Name of the architecture that a state_dict is of, by its keys and shapes; None for a foreign one."""
    if "stem.conv.weight" in state and "decoder.np.out.weight" in state:
        return "lite"
    first = state.get("decoder.np.u3.conva.weight")
    if first is None or "conv0./.weight" not in state or getattr(first, "ndim", 0) != 4:
        return None
    return {3: "fast", 5: "original"}.get(int(first.shape[-1]))


def check_state(state: State, arch: str, classes: Sequence[str] | None, path: Path) -> None:
    """Hold a state_dict against the network it should fit strictly; counters that it lacks are added.

    Parameters
    ----------
    state
        As `unwrapped` gives.
    arch, classes
        As `stqp.training.network.build_network`.
    path
        Where it was read from.

    Raises
    ------
    InputError
        When it lacks weights, has others, or has some of another shape or not finite.
    """
    import torch

    with torch.device("meta"):
        expected = build_network(arch, classes).state_dict()
    for key in expected:
        if key.endswith("num_batches_tracked"):  # older versions of torch had none
            state.setdefault(key, torch.zeros((), dtype=torch.long))
    missing, more = [k for k in expected if k not in state], [k for k in state if k not in expected]
    if missing:
        raise InputError(
            f"{path} lacks {len(missing)} of the {len(expected)} weights of the {arch} network, such as "
            f"{missing[0]}; it is incomplete"
        )
    if more:
        raise InputError(f"{path} holds {len(more)} weights that the {arch} network does not have, such as {more[0]}")
    for key, value in expected.items():
        if value.shape != state[key].shape:
            shapes = f"expected {_shape(value)}, found {_shape(state[key])}"
            raise InputError(f"the weights {key} in {path} do not fit the {arch} network: {shapes}")
        if state[key].is_floating_point() and not bool(torch.isfinite(state[key]).all()):
            raise InputError(f"the weights {key} in {path} are not finite; the training went astray")


def _shape(value: torch.Tensor) -> str:
    return "x".join(str(n) for n in value.shape) or "a number"


def _reason(text: str) -> str:
    """First words of torch's message that say something of the file."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        inner = re.search(r"WeightsUnpickler error: (.*)", line)
        if inner:
            return inner[1].strip().rstrip(".")
    return re.split(r"\. |;|$", lines[0])[0] if lines else ""
