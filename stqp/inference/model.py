"""A trained network as something that turns pixels into maps."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stqp.devices import OutOfDeviceMemory, pick_device
from stqp.errors import UsageError
from stqp.taxonomy import RGB

Maps = dict[str, NDArray[np.float32]]
_MEMORY = {"lite": 400.0, "fast": 6000.0}  # measured on a CPU in float32


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
    """A HoVer-Net of torch; one that does not type gives background as the only type.

    Parameters
    ----------
    network
        The module.
    name, classes, mpp, input_size, output_size
        As `Predictor`.
    device
        Name of the torch device.
    sizes
        Windows that the network may be given instead, px; the margin stays.
    memory
        Bytes that a px of a window takes while the network works.
    """

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
        colors: Mapping[str, RGB] | None = None,
        origin: tuple[str | Path, Sequence[str] | None] | None = None,
        sizes: Sequence[int] = (),
        memory: float = 6000.0,
    ):
        self.network, self.device = network.to(device).eval(), device
        self.sizes, self.memory = tuple(sizes), memory
        self.name, self.mpp = name, mpp
        self.classes: Sequence[str] = [*classes]
        self.input_size, self.output_size = input_size, output_size
        self.colors = dict(colors or {})
        self.origin = origin  # what `load_predictor` was asked for

    def resized(self, size: int) -> TorchPredictor:
        """Give the same network for windows of another size."""
        other = copy.copy(self)
        other.input_size, other.output_size = size, size - (self.input_size - self.output_size)
        return other

    def predict(self, batch: NDArray[np.uint8]) -> Maps:
        """As `Predictor.predict`; mixed precision on CUDA, in bfloat16 where the GPU has it."""
        import torch

        cuda = self.device.startswith("cuda")
        # bfloat16 has the range of float32: nothing overflows in a deep network
        half = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        try:
            with torch.inference_mode(), torch.autocast("cuda", dtype=half, enabled=cuda):
                images = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device).permute(0, 3, 1, 2).float()
                out = self.network(images)
        except torch.OutOfMemoryError as error:
            raise OutOfDeviceMemory(
                f"the memory of {self.device} is too small for {len(batch)} windows of {self.input_size} px; "
                "use a smaller --batch-size or --window"
            ) from error
        types = out["tp"].float() if "tp" in out else torch.zeros_like(out["np"][:, :1], dtype=torch.float32)
        result = {
            "np": torch.softmax(out["np"].float(), 1)[:, 1],
            "hv": out["hv"].float().permute(0, 2, 3, 1),
            "tp": torch.softmax(types, 1).permute(0, 2, 3, 1),
        }
        side = result["np"].shape[-1]
        if side != self.output_size:
            raise UsageError(
                f"a window of {self.input_size} px gives {side} px with this network, expected "
                f"{self.output_size}; choose another --window"
            )
        return {key: value.cpu().numpy() for key, value in result.items()}

    def tiatoolbox_network(self) -> Any:
        """Load the network anew, as TIAToolbox's engine runs it.

        Raises
        ------
        UsageError
            When it did not come from `load_predictor`.
        """
        from stqp.training.checkpoints import load_network, read_checkpoint

        if self.origin is None:
            raise UsageError(f"the model {self.name} came from no file that TIAToolbox's engine could load")
        return load_network(read_checkpoint(*self.origin), tiatoolbox=True)


def load_predictor(
    model: str | Path,
    device: str = "auto",
    window: int | None = None,
    classes: Sequence[str] | None = None,
) -> TorchPredictor:
    """Load a network that finds nuclei.

    Parameters
    ----------
    model
        Folder of a run, file of weights, or name of a model that TIAToolbox has, as
        `stqp.training.checkpoints.read_checkpoint`.
    device
        As `pick_device`.
    window
        Side of the input in px; the network is fully convolutional, and larger windows waste less on
        margins. By default the engine chooses among 256, 512 and 1024 px, where the network allows it.
    classes
        Names of the classes 1, 2, ...; needed where the weights come without.

    Raises
    ------
    InputError
        When there is no such model, or its weights fit no network.
    UsageError
        When the network does not take the window, or has other classes.
    EnvironmentProblem
        When the device, or the file of a registered model, is not there.
    """
    from stqp.training.checkpoints import load_network, read_checkpoint
    from stqp.training.network import architecture

    device = pick_device(device)
    checkpoint = read_checkpoint(model, classes)
    if checkpoint.num_types is not None and checkpoint.classes is None:
        number = checkpoint.num_types - 1
        raise UsageError(
            f"{checkpoint.path} does not say the names of its {number} classes; give them by --classes, in their order"
        )
    geometry = architecture(checkpoint.architecture)
    native, margin = geometry.input_size, geometry.input_size - geometry.output_size
    side = native + 256 * geometry.fully_convolutional if window is None else window
    if side != native and (side < native or not geometry.fully_convolutional or (side - native) % 256):
        more = ", or 256 px and multiples of it more" if geometry.fully_convolutional else ""
        raise UsageError(f"expected a window of {native} px{more} for the {geometry.name} network, found {window} px")
    return TorchPredictor(
        load_network(checkpoint),
        name=checkpoint.name,
        classes=checkpoint.classes or (),
        mpp=checkpoint.mpp,
        input_size=side,
        output_size=side - margin,
        device=device,
        colors=(checkpoint.manifest or {}).get("colors"),
        origin=(model, classes),
        sizes=[native, native + 256, native + 768] if window is None and geometry.fully_convolutional else (),
        memory=_MEMORY.get(checkpoint.architecture, 6000.0),
    )


def downsample_of(model_mpp: float, slide_mpp: float) -> float:
    """Full-resolution pixels per model pixel; 1 where they differ by less than 1 %."""
    ratio = model_mpp / slide_mpp
    return 1.0 if math.isclose(ratio, 1.0, rel_tol=0.01) else ratio
