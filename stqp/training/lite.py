"""`lite`: a narrow HoVer-Net that learns on a CPU.

The same three heads (np, hv, tp), the same geometry as `fast` (256 -> 164 px, and any larger multiple of
16), the same post-processing; about 2.4 M parameters in place of 38 M, and a fortieth of the arithmetic.
Three things make the difference: the image enters as 2x2 blocks of pixels, so that no layer works at full
resolution; the encoder is narrow; the heads share all of the decoder but its last two stages. The way
back to full resolution is a sub-pixel convolution (Shi et al. 2016), as cheap as a 1x1 layer.

This module needs only torch; `stqp.training.tiatoolbox_lite` makes of it the class that TIAToolbox runs.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

MARGIN = 46
"""Pixels that the output lacks on each side of the input, as in HoVer-Net's `fast` mode."""
RIM = 16
"""Pixels on each side of the input that training leaves out; what padding blurs more than a little."""


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
            bn=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(inplace=True),
        )
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride=stride)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn2(self.conv2(self.conv1(x))) + self.shortcut(x), inplace=True)


class _Head(nn.Module):
    """The last two stages, from a quarter of the resolution to all of it, for one output."""

    def __init__(self, inputs: int, skip: int, width: int, outputs: int):
        super().__init__()
        self.conva = _conv(inputs, width)
        self.lateral = nn.Conv2d(skip, width, 1, bias=False)
        self.convb = _conv(width, width)
        self.convf = _conv(width, width)
        self.out = nn.Conv2d(width, 4 * outputs, 1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = functional.interpolate(self.conva(x), scale_factor=2.0) + self.lateral(skip)
        return functional.pixel_shuffle(self.out(self.convf(self.convb(x))), 2)


class LiteLayers:
    """Layers and forward pass of `lite`, to be mixed into a torch module."""

    def _build(
        self, num_types: int | None, widths: tuple[int, int, int, int] = (32, 64, 128, 192), head: int = 32
    ) -> None:
        w1, w2, w3, w4 = widths
        self.stem = _conv(12, w1)
        self.d0 = _Residual(w1, w1)
        self.d1 = nn.Sequential(_Residual(w1, w2, 2), _Residual(w2, w2))
        self.d2 = nn.Sequential(_Residual(w2, w3, 2), _Residual(w3, w3))
        self.d3 = nn.Sequential(_Residual(w3, w4, 2), _Residual(w4, w4))
        self.up3 = nn.Conv2d(w4, w3, 1, bias=False)
        self.u3 = _conv(w3, w3)
        self.up2 = nn.Conv2d(w3, w2, 1, bias=False)
        self.u2 = _conv(w2, w2)
        outputs = OrderedDict() if num_types is None else OrderedDict(tp=num_types)
        outputs.update(np=2, hv=2)
        self.decoder = nn.ModuleDict({name: _Head(w2, w1, head, n) for name, n in outputs.items()})

    def features(self, images: torch.Tensor) -> "OrderedDict[str, torch.Tensor]":
        """Outputs of all heads at the size of the input, margin included."""
        x = self.stem(functional.pixel_unshuffle(images / 255.0, 2))
        d0 = self.d0(x)
        d1 = self.d1(d0)
        d2 = self.d2(d1)
        d3 = self.d3(d2)
        u3 = self.u3(functional.interpolate(self.up3(d3), scale_factor=2.0) + d2)
        u2 = self.u2(functional.interpolate(self.up2(u3), scale_factor=2.0) + d1)
        return OrderedDict((name, head(u2, d0)) for name, head in self.decoder.items())

    def forward(self, input_tensor: torch.Tensor) -> "OrderedDict[str, torch.Tensor]":
        """Logits of each head.

        Parameters
        ----------
        input_tensor : float (N, 3, H, W)
            RGB, 0-255; H and W multiples of 16.

        Returns
        -------
        dict of float (N, channels, H - 92, W - 92)
            ``tp`` (classes with background), ``np`` (background, nucleus), ``hv`` (horizontal, vertical).
        """
        m = MARGIN
        return OrderedDict((name, x[..., m:-m, m:-m]) for name, x in self.features(input_tensor).items())


class LiteNetwork(LiteLayers, nn.Module):
    """`lite` as a plain torch module; its `state_dict` fits `HoVerNetLite` and the other way round."""

    def __init__(self, num_types: int | None = None):
        nn.Module.__init__(self)
        self._build(num_types)
