"""Crops and their targets, drawn from a file of patches."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from stqp.patches.store import UNKNOWN_TYPE, PatchFile
from stqp.training.augment import Crop, augment
from stqp.training.targets import hv_map, split_touching_border

CONTEXT = 24
"""Pixels around a crop that its targets are made from, so that a nucleus cut by the crop's border still
has its hv target from its true centre."""


def targets(crop: Crop, margin: int) -> dict[str, torch.Tensor]:
    """Image and targets of a crop that is `CONTEXT` px larger than the network's input on each side.

    Parameters
    ----------
    crop
        The crop with its context.
    margin
        Pixels of the input, on each side, that the network has no output for.

    Returns
    -------
    dict of Tensor
        ``image`` uint8 (3, S, S), and the targets that `stqp.training.losses.hovernet_loss` takes.
    """
    inner = slice(CONTEXT, crop.image.shape[0] - CONTEXT)
    cut = slice(CONTEXT + margin, crop.image.shape[0] - CONTEXT - margin)
    hv = hv_map(split_touching_border(crop.instances))[:, cut, cut]
    types = crop.types[cut, cut]
    unknown = types == UNKNOWN_TYPE
    return {
        "image": torch.from_numpy(np.ascontiguousarray(crop.image[inner, inner].transpose(2, 0, 1))),
        "np": torch.from_numpy((crop.instances[cut, cut] > 0).astype(np.int64)),
        "hv": torch.from_numpy(np.ascontiguousarray(hv)),
        "tp": torch.from_numpy(np.where(unknown, 0, types).astype(np.int64)),
        "valid": torch.from_numpy((crop.valid[cut, cut] > 0).astype(np.float32)),
        "typed": torch.from_numpy((~unknown).astype(np.float32)),
    }


class TrainingCrops(Dataset[dict[str, torch.Tensor]]):
    """Random crops of the training patches; each number gives the same crop for the same seed.

    Parameters
    ----------
    patches
        The file of patches.
    rows
        Which of its patches to draw from.
    size
        Side of the network's input in px.
    margin
        Pixels of the input, on each side, without output.
    seed
        The draw of epoch ``e`` is made from ``(seed, e, number)``.
    """

    def __init__(self, patches: PatchFile, rows: NDArray[np.integer], size: int, margin: int, seed: int):
        self.patches, self.rows, self.size, self.margin, self.seed = patches, rows, size, margin, seed
        # an epoch shows as many pixels as the patches have
        self.repeats = max(1, round((patches.size / size) ** 2))

    def __len__(self) -> int:
        """Crops in an epoch."""
        return len(self.rows) * self.repeats

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Draw one crop; numbers beyond the epoch's length belong to later epochs."""
        rng = np.random.default_rng((self.seed, number))
        patch: dict[str, NDArray[Any]] = self.patches.read(int(self.rows[number % len(self.rows)]))
        field = Crop(patch["images"], patch["instances"], patch["types"], patch["valid"])
        return targets(augment(field, self.size + 2 * CONTEXT, rng), self.margin)


class EndlessSampler(torch.utils.data.Sampler[int]):
    """A new random order each epoch, the same for the same seed, whatever epoch a resumed run starts at."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        """Crops in an epoch."""
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Any:
        """Numbers of this epoch's crops."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter((order + self.epoch * self.length).tolist())
