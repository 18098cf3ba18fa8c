"""Score a network in training on held-out patches, by nuclei found and typed, not by pixels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stqp.patches.store import UNKNOWN_TYPE, PatchFile
from stqp.training.network import Architecture

if TYPE_CHECKING:
    from stqp.evaluation.counts import Counts

SCORES = ("dice", "aji", "pq", "f_d", "f_c_mean", "type_f1_macro", "mpq")
LARGEST_NUMBER = 64
"""Patches that are scored, evenly chosen; the scores guide, `stqp evaluate` measures."""


def predict_maps(
    network: nn.Module, arch: Architecture, image: NDArray[np.uint8], device: str
) -> dict[str, NDArray[Any]]:
    """Maps of the middle of an image, all but the network's margin.

    Parameters
    ----------
    network
        In evaluation mode, on `device`.
    arch
        Its geometry.
    image : uint8 (S, S, 3)
    device
        Name of the device.

    Returns
    -------
    dict
        ``np`` (s, s), ``hv`` (s, s, 2), ``tp`` (s, s, C): probabilities, and distances.
    """
    with torch.inference_mode():
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float()
        if arch.fully_convolutional:
            output = network(pixels)
        else:
            n = (image.shape[0] - 2 * arch.margin) // arch.output_size
            o, s = arch.output_size, arch.input_size
            rows = [[network(pixels[..., y * o : y * o + s, x * o : x * o + s]) for x in range(n)] for y in range(n)]
            output = {k: torch.cat([torch.cat([c[k] for c in row], 3) for row in rows], 2) for k in rows[0][0]}
        return {
            "np": torch.softmax(output["np"].float(), 1)[0, 1].cpu().numpy(),
            "hv": output["hv"].float()[0].permute(1, 2, 0).cpu().numpy(),
            "tp": torch.softmax(output["tp"].float(), 1)[0].permute(1, 2, 0).cpu().numpy(),
        }


def chosen_rows(rows: NDArray[np.integer], gflop: float, device: str, times: int = 1) -> NDArray[np.integer]:
    """Choose the patches to score: at most `LARGEST_NUMBER`, and on a CPU only what takes some 20 seconds.

    Parameters
    ----------
    rows
        All held-out patches.
    gflop
        Of one window; a patch is about four.
    device
        Name of the device.
    times
        Multiplies both limits.
    """
    number = times * LARGEST_NUMBER
    if device == "cpu":
        number = int(np.clip(times * 2000 / (4 * gflop), 1, number))
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), number)).astype(int))]


@dataclass(frozen=True)
class Judged:
    """What a network found on one patch, within its margin, beside the truth.

    Attributes
    ----------
    true, predicted : int (s, s)
        Nuclei by number, 0 is background.
    true_types, predicted_types : int (n,), (m,)
        Class of each nucleus in the order of the numbers, 0 is Unknown.
    valid : bool (s, s)
        Where the truth is known; nothing counts elsewhere.
    counts : Counts
        What the scores are made of.
    """

    true: NDArray[np.integer]
    true_types: NDArray[np.integer]
    predicted: NDArray[np.integer]
    predicted_types: NDArray[np.integer]
    valid: NDArray[np.bool_]
    counts: "Counts"


def judge_patch(network: nn.Module, arch: Architecture, patches: PatchFile, row: int, device: str) -> Judged:
    """Find the nuclei of a patch and count what is right."""
    from stqp.evaluation.overlap import from_maps
    from stqp.evaluation.scores import count
    from stqp.inference.postprocess import class_of, postprocess_maps

    patch = patches.read(row)
    maps = predict_maps(network, arch, patch["images"], device)
    cut = slice(arch.margin, arch.margin + maps["np"].shape[0])
    valid = patch["valid"][cut, cut] > 0
    true, kinds = patch["instances"][cut, cut] * valid, patch["types"][cut, cut]
    ids, first = np.unique(true, return_index=True)
    types = kinds.reshape(-1)[first][ids > 0]
    inst, probability, _ = postprocess_maps(maps["np"] * valid, maps["hv"], maps["tp"], mpp=patches.mpp)
    predicted = class_of(probability, background=True) if len(probability) else np.empty(0, int)
    true_types = np.where(types == UNKNOWN_TYPE, 0, types).astype(np.int64)
    counts = count(from_maps(true, inst, true_types, predicted), patches.mpp, len(patches.classes))
    return Judged(true, true_types, inst, predicted, valid, counts)


def score_network(
    network: nn.Module, arch: Architecture, patches: PatchFile, rows: NDArray[np.integer], device: str
) -> dict[str, float]:
    """Pooled scores over the given patches.

    Returns
    -------
    dict
        `SCORES`, as `stqp.evaluation` defines them.
    """
    from stqp.evaluation.scores import summarise

    counts = {str(row): judge_patch(network, arch, patches, int(row), device).counts for row in rows}
    pooled: dict[str, Any] = summarise(counts, patches.classes, bootstrap=0)["pooled"]
    return {name: float(pooled[name]) for name in SCORES if pooled.get(name) is not None}
