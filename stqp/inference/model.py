"""A trained network as something that turns pixels into maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stqp.devices import pick_device
from stqp.errors import EnvironmentProblem, InputError, UsageError

Maps = dict[str, NDArray[np.float32]]
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
        self.name, self.mpp = name, mpp
        self.classes: Sequence[str] = [*classes]
        self.input_size, self.output_size = input_size, output_size

    def predict(self, batch: NDArray[np.uint8]) -> Maps:
        """As `Predictor.predict`; mixed precision on CUDA."""
        import torch

        try:
            with torch.inference_mode(), torch.autocast("cuda", enabled=self.device.startswith("cuda")):
                images = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device).permute(0, 3, 1, 2).float()
                out = self.network(images)
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(
                f"the memory of {self.device} is too small for {len(batch)} windows of {self.input_size} px; "
                "use a smaller --batch-size or --window"
            ) from error
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

    from stqp.training.manifest import read_manifest
    from stqp.training.network import architecture, build_network

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
    geometry = architecture(manifest["architecture"])
    native, margin = geometry.input_size, geometry.input_size - geometry.output_size
    side = native + 256 * geometry.fully_convolutional if window is None else window
    if side != native and (side < native or not geometry.fully_convolutional or (side - native) % 256):
        more = ", or 256 px and multiples of it more" if geometry.fully_convolutional else ""
        raise UsageError(f"expected a window of {native} px{more} for the {geometry.name} network, found {window} px")
    return TorchPredictor(
        network,
        name=str(manifest.get("name") or run.resolve().name),
        classes=classes,
        mpp=float(manifest["mpp"]),
        input_size=side,
        output_size=side - margin,
        device=device,
    )


def downsample_of(model_mpp: float, slide_mpp: float) -> float:
    """Full-resolution pixels per model pixel; 1 where they differ by less than 1 %."""
    ratio = model_mpp / slide_mpp
    return 1.0 if math.isclose(ratio, 1.0, rel_tol=0.01) else ratio
