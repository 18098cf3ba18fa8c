"""The losses of HoVer-Net (Graham et al. 2019, equations 1-5), with pixels that do not count."""

import torch
from torch.nn import functional

EPSILON = 1e-3


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (values * weight).sum() / weight.sum().clamp_min(1.0)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the pixels that count; 0 where none does."""
    return _mean(functional.cross_entropy(logits, target, reduction="none"), weight)


def dice(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sum over the classes of 1 - Dice of the softmax (equation 4).

    A class without pixels in the batch would score 1 - epsilon whatever the network says; it is left
    out, so that a rare class neither punishes nor distorts the batches it is absent from.
    """
    probability = functional.softmax(logits, dim=1)
    truth = functional.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2).to(probability.dtype)
    weight = weight.unsqueeze(1)
    inside = (probability * truth * weight).sum(dim=(0, 2, 3))
    present = (truth * weight).sum(dim=(0, 2, 3))
    total = (probability * weight).sum(dim=(0, 2, 3)) + present
    return ((1 - (2 * inside + EPSILON) / (total + EPSILON)) * (present > 0)).sum()


def _sobel(size: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivative kernels x / (x^2 + y^2), 0 in the middle, for the horizontal and the vertical."""
    ticks = torch.arange(-(size // 2), size // 2 + 1, device=like.device, dtype=like.dtype)
    vertical, horizontal = torch.meshgrid(ticks, ticks, indexing="ij")
    square = horizontal**2 + vertical**2 + 1e-15
    return horizontal / square, vertical / square


def gradient_error(prediction: torch.Tensor, target: torch.Tensor, focus: torch.Tensor, size: int = 5) -> torch.Tensor:
    """Mean squared error of the gradients along each map's own axis, on nuclear pixels (equation 2)."""
    horizontal, vertical = _sobel(size, prediction)
    kernel = torch.stack([horizontal, vertical]).unsqueeze(1)
    # the convolution is linear: one pass over the difference in place of two over the maps
    difference = functional.conv2d(prediction - target, kernel, padding=size // 2, groups=2)
    return _mean((difference**2).sum(dim=1), focus) / 2


def hovernet_loss(
    output: dict[str, torch.Tensor], target: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """All terms, each with weight 1, as the authors train.

    Parameters
    ----------
    output
        Logits ``np`` (N, 2, H, W), ``hv`` (N, 2, H, W), ``tp`` (N, classes + 1, H, W).
    target
        ``np`` int64 (N, H, W); ``hv`` float (N, 2, H, W); ``tp`` int64 (N, H, W), 0 for background;
        ``valid`` float (N, H, W), 0 where nothing is known; ``typed`` float (N, H, W), 0 where the class
        is not known.

    Returns
    -------
    total, terms
        The sum and each of its terms by name.
    """
    np_logits, hv, tp = (output[k].float() for k in ("np", "hv", "tp"))
    valid, typed = target["valid"], target["valid"] * target["typed"]
    nuclear = target["np"].to(hv.dtype) * valid
    terms = {
        "np_ce": cross_entropy(np_logits, target["np"], valid),
        "np_dice": dice(np_logits, target["np"], valid),
        "hv_mse": _mean(((hv - target["hv"]) ** 2).mean(dim=1), valid),
        "hv_msge": gradient_error(hv, target["hv"], nuclear),
        "tp_ce": cross_entropy(tp, target["tp"], typed),
        "tp_dice": dice(tp, target["tp"], typed),
    }
    return torch.stack([*terms.values()]).sum(), terms
