"""The networks by name: their geometry, construction, initialisation and cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stqp.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """What the rest of stqp must know of a network.

    Attributes
    ----------
    name : str
    input_size, output_size : int
        Pixels of a square window and of what comes out of its middle.
    fully_convolutional : bool
        Whether larger windows work too, with the same margin.
    learning_rate, batch_size
        Good defaults.
    """

    name: str
    input_size: int
    output_size: int
    fully_convolutional: bool
    learning_rate: float
    batch_size: int

    @property
    def margin(self) -> int:
        """Pixels that the output lacks on each side."""
        return (self.input_size - self.output_size) // 2


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("lite", 256, 164, True, 2e-3, 4),
        Architecture("fast", 256, 164, True, 1e-4, 8),
        Architecture("original", 270, 80, False, 1e-4, 8),
    )
}
MPP = 0.25
"""µm per pixel that HoVer-Net's receptive field and post-processing are made for."""


def architecture(name: str) -> Architecture:
    """Look up an architecture by name.

    Raises
    ------
    UsageError
        When there is none of that name.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"there is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_network(name: str, classes: Sequence[str] | None, tiatoolbox: bool = False) -> "nn.Module":
    """Make a network with PyTorch's default weights.

    Parameters
    ----------
    name
        ``lite``, ``fast`` or ``original``.
    classes
        Names of the classes without background; class ``i`` has the number ``i + 1``. None for a network
        that does not type.
    tiatoolbox
        For ``lite``: make the class that TIAToolbox runs, which takes longer to import. The weights
        are the same.

    Returns
    -------
    torch.nn.Module
        Takes float NCHW images, 0-255, and returns a dict of logits: tp, np, hv.
    """
    architecture(name)
    types = None if classes is None else len(classes) + 1
    names = None if classes is None else {0: "Background", **{i + 1: c for i, c in enumerate(classes)}}
    if name == "lite" and not tiatoolbox:
        from stqp.training.lite import LiteNetwork

        return LiteNetwork(num_types=types)
    if name == "lite":
        from stqp.training.tiatoolbox_lite import HoVerNetLite

        return HoVerNetLite(num_types=types, nuc_type_dict=names)
    from tiatoolbox.models.architecture.hovernet import HoVerNet

    network: Any = HoVerNet(num_input_channels=3, num_types=types, mode=name, nuc_type_dict=names)
    network.upsample2x = nearest_upsampling(network.upsample2x)
    result: nn.Module = network
    return result


def nearest_upsampling(layer: "nn.Module") -> "nn.Module":
    """Upsample as TIAToolbox's layer does, to the same bits, but also in half precision on a CPU, and with less memory.

    Parameters
    ----------
    layer
        TIAToolbox's; its buffer stays, so that the state_dict does not change.
    """
    import torch
    from torch.nn import functional

    class Nearest(type(layer)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")

    return Nearest()


def initialize(network: "nn.Module") -> None:
    """Kaiming initialisation, fan out, as HoVer-Net's authors train from nothing (He et al. 2015).

    The last layer of hv alone starts near zero: distances of the size of Kaiming's noise would be most of
    the loss for the first steps. The same for tp would starve the features that tell classes apart.
    """
    from torch import nn

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
                if name.startswith("decoder.hv"):
                    nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def encoder_layers(network: "nn.Module") -> "list[nn.Module]":
    """The layers that HoVer-Net's first phase freezes."""
    names = ("stem",) if hasattr(network, "stem") else ("conv0",)
    return [getattr(network, name) for name in (*names, "d0", "d1", "d2", "d3")]


def cost(network: "nn.Module", size: int = 256) -> tuple[int, float]:
    """Size and price of a network.

    Returns
    -------
    parameters : int
    gflop : float
        For one forward pass of a ``size`` px window, two operations a multiply-add.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    training = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    network.train(training)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() / 1e9
