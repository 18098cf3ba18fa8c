"""A trained network as something that turns pixels into maps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError
from stqp.inference.device import pick_device

Maps = dict[str, NDArray[np.float32]]
MANIFEST = "manifest.json"
WEIGHTS = "model.pth"


class Predictor(Protocol):
    """What `stqp.inference.engine` needs of a network.

    Attributes
    ----------
    name : str
        Of the run; detections carry it.
    classes : sequence of str
        Names of the classes 1, 2, ...
    mpp : float
        µm per px of its input.
    input_size, output_size : int
        Sides of the square windows in px; the output lies in the middle of the input.
    """

    name: str
    classes: Sequence[str]
    mpp: float
    input_size: int
    output_size: int

    def predict(self, batch: NDArray[np.uint8]) -> Maps:
        """Maps of a batch of RGB windows.

        Parameters
        ----------
        batch : uint8 (N, input, input, 3)

        Returns
        -------
        dict
            ``np`` (N, output, output), probability of nucleus; ``hv`` (N, output, output, 2); ``tp``
            (N, output, output, C), probability of background and each class; all float32.
        """
        ...


class TorchPredictor:
    """The network of an stqp run."""

    def __init__(
        self,
        network: Any,
        *,
        name: str,
        classes: Sequence[str],
        mpp: float,
        input_size: int,
        output_size: int,
        device: str,
    ):
        self.network, self.device = network.to(device).eval(), device
        self.name, self.classes, self.mpp = name, [*classes], mpp
        self.input_size, self.output_size = input_size, output_size

    def predict(self, batch: NDArray[np.uint8]) -> Maps:
        """As `Predictor.predict`; mixed precision on CUDA."""
        import torch

        with torch.inference_mode(), torch.autocast("cuda", enabled=self.device.startswith("cuda")):
            images = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device).permute(0, 3, 1, 2).float()
            out = self.network(images)
        result = {
            "np": torch.softmax(out["np"].float(), 1)[:, 1],
            "hv": out["hv"].float().permute(0, 2, 3, 1),
            "tp": torch.softmax(out["tp"].float(), 1).permute(0, 2, 3, 1),
        }
        side = result["np"].shape[-1]
        if side != self.output_size:
            raise UsageError(
                f"a window of {self.input_size} px gives {side} px with this network, expected "
                f"{self.output_size}; choose another --window"
            )
        return {key: value.cpu().numpy() for key, value in result.items()}


def read_manifest(run: Path) -> dict[str, Any]:
    """Read the manifest of a training run.

    Raises
    ------
    InputError
        When there is none, or it lacks what prediction needs.
    """
    path = run / MANIFEST
    if not path.is_file():
        raise InputError(f"expected a training run with {MANIFEST} and {WEIGHTS}, found no {MANIFEST} in {run}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the manifest {path} cannot be read as JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise InputError(f"expected a JSON object in the manifest {path}, found a {type(manifest).__name__}")
    needed = ("architecture", "classes", "mpp", "patch_input_shape", "patch_output_shape")
    missing = [key for key in needed if key not in manifest]
    if missing:
        raise InputError(f"the manifest {path} lacks {', '.join(missing)}; was it written by stqp train?")
    return manifest


def load_predictor(run: Path, device: str = "auto", window: int | None = None) -> TorchPredictor:
    """Load the network of an stqp run.

    Parameters
    ----------
    run
        Folder with ``manifest.json`` and ``model.pth``.
    device
        As `pick_device`.
    window
        Side of the input in px; the network is fully convolutional, and larger windows waste less on
        margins. By default 256 px more than the training patches, where the network allows it.

    Raises
    ------
    InputError
        When the folder is no run, or its weights do not fit the network.
    UsageError
        When the network does not take the window.
    EnvironmentProblem
        When the device is not there.
    """
    import torch

    from stqp.training.network import build_network

    manifest = read_manifest(run)
    device = pick_device(device)
    weights = run / WEIGHTS
    if not weights.is_file():
        raise InputError(f"expected the weights {WEIGHTS} beside the manifest, found none in {run}")
    classes = [str(c) for c in manifest["classes"]]
    network = build_network(manifest["architecture"], classes)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    except Exception as error:  # torch raises many kinds for a broken or foreign file
        first = str(error).strip().splitlines()[0]
        raise InputError(f"the weights {weights} do not fit the network of the manifest: {first}") from error
    native, native_output = _side(manifest["patch_input_shape"]), _side(manifest["patch_output_shape"])
    margin = native - native_output
    if window is not None and window < native:
        raise UsageError(f"expected a window of at least {native} px for this network, found {window}")
    side = native + 256 if window is None else window
    if side != native and _output_side(manifest["architecture"], classes, side) != side - margin:
        if window is not None:
            raise UsageError(f"the network takes no window of {window} px; {native} px and multiples of 256 px more do")
        side = native
    return TorchPredictor(
        network,
        name=str(manifest.get("name") or run.resolve().name),
        classes=classes,
        mpp=float(manifest["mpp"]),
        input_size=side,
        output_size=side - margin,
        device=device,
    )


def _side(shape: Any) -> int:
    sides = [int(s) for s in np.atleast_1d(shape)]
    if len(set(sides)) != 1:
        raise InputError(f"expected square patches in the manifest, found {sides}")
    return sides[0]


def _output_side(architecture: str, classes: Sequence[str], side: int) -> int:
    """Output side for an input side, from shapes alone; 0 when the network does not take it."""
    import torch

    from stqp.training.network import build_network

    try:
        with torch.device("meta"), torch.inference_mode():
            out = build_network(architecture, classes).eval()(torch.zeros(1, 3, side, side))
    except Exception:  # a shape that does not fit fails anywhere inside
        return 0
    return int(out["np"].shape[-1])


def downsample_of(model_mpp: float, slide_mpp: float) -> float:
    """Full-resolution pixels per model pixel; 1 where they differ by less than 1 %."""
    ratio = model_mpp / slide_mpp
    return 1.0 if math.isclose(ratio, 1.0, rel_tol=0.01) else ratio
