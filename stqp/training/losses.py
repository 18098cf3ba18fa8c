"""The losses of HoVer-Net (Graham et al. 2019, equations 1-5), with pixels that do not count.

Every loss is a formula of sums over pixels. `HoVerNetLoss.sums` makes the sums of one process, and
`HoVerNetLoss.terms` the losses of them; between the two, the processes of a distributed run add their sums,
so that the loss of a batch does not depend on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from stqp.training.settings import LossOptions

EPSILON = 1e-3
TERMS = ("np_ce", "np_dice", "hv_mse", "hv_msge", "tp_ce", "tp_dice")


class HoVerNetLoss:
    """All terms and their weighted sum.

    Parameters
    ----------
    options
        Weights and kinds; `stqp.training.settings.LossOptions`.
    class_weights
        Weight of background and of each class in the type loss of a pixel; all 1 when None.
    """

    def __init__(self, options: LossOptions, class_weights: Sequence[float] | None = None):
        self.options = options
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)

    def __call__(
        self, output: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch that one process holds.

        Parameters
        ----------
        output
            Logits ``np`` (N, 2, H, W), ``hv`` (N, 2, H, W), ``tp`` (N, classes + 1, H, W).
        target
            ``np`` int64 (N, H, W); ``hv`` float (N, 2, H, W); ``tp`` int64 (N, H, W), 0 for background;
            ``valid`` float (N, H, W), 0 where nothing is known; ``typed`` float (N, H, W), the weight of the
            type loss, 0 where the class is not known.

        Returns
        -------
        total, terms
            The weighted sum, and each term by name.
        """
        return self.total(self.sums(output, target))

    def sums(self, output: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """All sums over pixels that the losses are made of, as one vector."""
        np_logits, hv, tp = (_exact(output[k]) for k in ("np", "hv", "tp"))
        valid = target["valid"].to(hv.dtype)
        typed = valid * target["typed"]
        nuclear = target["np"].to(hv.dtype) * valid
        np_log, tp_log = functional.log_softmax(np_logits, 1), functional.log_softmax(tp, 1)
        parts = [
            torch.stack([_weighted(-_of_class(np_log, target["np"]), valid), valid.sum()]),
            _dice_sums(np_log, target["np"], valid),
            torch.stack([_weighted(((hv - target["hv"]) ** 2).mean(dim=1), valid), valid.sum()]),
            torch.stack([_weighted(_gradient_error(hv, target["hv"]), nuclear), nuclear.sum()]),
            self._type_sums(tp_log, target["tp"], typed),
            _dice_sums(tp_log, target["tp"], typed),
        ]
        return torch.cat(parts)

    def total(self, sums: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Weighted sum and terms of the sums of a batch."""
        classes = (len(sums) - 14) // 3
        means = {"np_ce": sums[0:2], "hv_mse": sums[8:10], "hv_msge": sums[10:12], "tp_ce": sums[12:14]}
        terms = {name: pair[0] / pair[1].clamp_min(1.0) for name, pair in means.items()}
        terms["hv_msge"] = terms["hv_msge"] / 2
        terms["np_dice"] = _dice(sums[2:8].view(3, 2))
        terms["tp_dice"] = _dice(sums[14:].view(3, classes))
        terms = {name: terms[name] for name in TERMS}
        return torch.stack([value * getattr(self.options, name) for name, value in terms.items()]).sum(), terms

    def _type_sums(self, logs: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Sum of the type loss over pixels, and the weight of these pixels."""
        options, log = self.options, _of_class(logs, target)
        if options.type_loss == "focal":  # Lin et al. 2017, equation 4
            loss = -((1 - log.exp()).clamp_min(0) ** options.focal_gamma) * log
        elif options.type_loss == "gce":  # Zhang and Sabuncu 2018, equation 6
            loss = -torch.expm1(options.gce_q * log) / options.gce_q
        else:
            loss = -log
        if options.label_smoothing:  # Szegedy et al. 2016: a share of the label goes to all classes alike
            share = options.label_smoothing
            loss = (1 - share) * loss - share * logs.mean(dim=1)
        if self.class_weights is not None:
            weight = weight * self.class_weights.to(weight)[target]
        return torch.stack([_weighted(loss, weight), weight.sum()])


def _exact(values: torch.Tensor) -> torch.Tensor:
    """At least 32 bits."""
    return values if values.dtype == torch.float64 else values.float()


def _weighted(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (values * weight).sum()


def _of_class(logs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return logs.gather(1, target.unsqueeze(1)).squeeze(1)


def _dice_sums(logs: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """For each class: softmax and truth in common, softmax, truth; 3 x C, flat."""
    probability = logs.exp()
    weight = weight.unsqueeze(1)
    classes = torch.arange(logs.shape[1], device=logs.device).view(1, -1, 1, 1)
    truth = (target.unsqueeze(1) == classes) * weight
    common = (probability * truth).sum(dim=(0, 2, 3))
    return torch.cat([common, (probability * weight).sum(dim=(0, 2, 3)), truth.sum(dim=(0, 2, 3))])


def _dice(sums: torch.Tensor) -> torch.Tensor:
    """Sum over the classes of 1 - Dice of the softmax (equation 4).

    A class without pixels in the batch would score 1 - epsilon whatever the network says; it is left
    out, so that a rare class neither punishes nor distorts the batches it is absent from.
    """
    common, predicted, present = sums
    return ((1 - (2 * common + EPSILON) / (predicted + present + EPSILON)) * (present > 0)).sum()


def _sobel(size: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivative kernels x / (x^2 + y^2), 0 in the middle, for the horizontal and the vertical."""
    ticks = torch.arange(-(size // 2), size // 2 + 1, device=like.device, dtype=like.dtype)
    vertical, horizontal = torch.meshgrid(ticks, ticks, indexing="ij")
    square = horizontal**2 + vertical**2 + 1e-15
    return horizontal / square, vertical / square


def _gradient_error(prediction: torch.Tensor, target: torch.Tensor, size: int = 5) -> torch.Tensor:
    """Squared error of the gradients along each map's own axis, summed over the two (equation 2); (N, H, W)."""
    kernel = torch.stack([*_sobel(size, prediction)]).unsqueeze(1)
    # the convolution is linear: one pass over the difference in place of two over the maps
    with torch.autocast(prediction.device.type, enabled=False):
        difference = functional.conv2d(prediction - target, kernel, padding=size // 2, groups=2)
    return (difference**2).sum(dim=1)


def inverse_frequency(nuclei: Sequence[int], cap: float) -> list[float]:
    """Weights of background (1) and the classes, as one over their nuclei; they are 1 in the mean over the nuclei.

    Parameters
    ----------
    nuclei
        Nuclei of each class in the training patches; a class without any gets the largest weight.
    cap
        Largest weight beside the smallest.
    """
    most = max(max(nuclei, default=0), 1)
    weights = [min(most / max(n, 1), cap) for n in nuclei]
    mean = sum(w * n for w, n in zip(weights, nuclei, strict=True)) / max(sum(nuclei), 1)
    return [1.0, *(w / (mean or 1.0) for w in weights)]
