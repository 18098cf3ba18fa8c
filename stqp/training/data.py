"""Crops and their targets, drawn from a file of patches in an order that a step number decides."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from stqp.patches.store import UNKNOWN_TYPE, PatchFile
from stqp.training.augment import Crop, augment, scaled
from stqp.training.settings import AugmentationOptions
from stqp.training.targets import hv_map, split_touching_border

logger = logging.getLogger(__name__)

CONTEXT = 24
"""Pixels around a crop that its targets are made from, so that a nucleus cut by the crop's border still
has its hv target from its true centre."""


def targets(crop: Crop, margin: int, mpp: float = 0.25) -> dict[str, torch.Tensor]:
    """Image and targets of a crop that is `CONTEXT` px larger than the network's input on each side.

    Parameters
    ----------
    crop
        The crop with its context.
    margin
        Pixels of the input, on each side, that the network has no output for.
    mpp
        µm per px.

    Returns
    -------
    dict of Tensor
        ``image`` uint8 (3, S, S), and the targets that `stqp.training.losses.HoVerNetLoss` takes.
    """
    inner = slice(CONTEXT, crop.image.shape[0] - CONTEXT)
    cut = slice(CONTEXT + margin, crop.image.shape[0] - CONTEXT - margin)
    hv = hv_map(split_touching_border(crop.instances), mpp)[:, cut, cut]
    types = crop.types[cut, cut]
    unknown = types == UNKNOWN_TYPE
    weight = np.where(unknown, 0, crop.weight[cut, cut] * np.float32(1 / 255))
    return {
        "image": torch.from_numpy(np.ascontiguousarray(crop.image[inner, inner].transpose(2, 0, 1))),
        "np": torch.from_numpy((crop.instances[cut, cut] > 0).astype(np.int64)),
        "hv": torch.from_numpy(np.ascontiguousarray(hv)),
        "tp": torch.from_numpy(np.where(unknown, 0, types).astype(np.int64)),
        "valid": torch.from_numpy((crop.valid[cut, cut] > 0).astype(np.float32)),
        "typed": torch.from_numpy(weight.astype(np.float32)),
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
        A crop is drawn from ``(seed, number)``.
    options
        What is varied, and how far.
    """

    def __init__(
        self,
        patches: PatchFile,
        rows: NDArray[np.integer],
        size: int,
        margin: int,
        seed: int,
        options: AugmentationOptions | None = None,
    ):
        self.patches, self.rows, self.size, self.margin, self.seed = patches, rows, size, margin, seed
        self.options = scaled(options or AugmentationOptions())
        # an epoch shows as many pixels as the patches have
        self.repeats = max(1, round((patches.size / size) ** 2))

    def __len__(self) -> int:
        """Crops in an epoch."""
        return len(self.rows) * self.repeats

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Draw one crop; numbers beyond the epoch's length belong to later epochs."""
        rng = np.random.default_rng((self.seed, number))
        patch: dict[str, NDArray[Any]] = self.patches.read(int(self.rows[number % len(self.rows)]))
        field = Crop(patch["images"], patch["instances"], patch["types"], patch["valid"], patch["weight"])
        return targets(augment(field, self.size + 2 * CONTEXT, rng, self.options), self.margin, self.patches.mpp)


class EndlessBatches(Sampler[list[int]]):
    """Batches of crop numbers without end, in a new random order each epoch.

    The order is one for all processes and hangs on the seed alone: batch ``b`` of process ``r`` of ``w`` takes
    every ``w``-th of the crops that one process would have in a batch of ``w`` times the size. So a run can go
    on from any batch.

    Parameters
    ----------
    length
        Crops in an epoch.
    batch_size
        Crops in a batch of one process.
    seed
        Of the order.
    start
        Number of the first batch.
    rank, world
        Which of how many processes.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from `start` on."""
        whole = self.batch_size * self.world

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> NDArray[np.int64]:
            return np.random.default_rng((self.seed, epoch)).permutation(self.length) + epoch * self.length

        for batch in itertools.count(self.start):
            places = range(batch * whole + self.rank, (batch + 1) * whole, self.world)
            yield [int(order(place // self.length)[place % self.length]) for place in places]


def loader(crops: TrainingCrops, batches: EndlessBatches, workers: int, pin: bool) -> DataLoader[Any]:
    """Load batches of crops, in processes of their own where there are `workers`.

    A daemon, such as a worker that a Dask nanny keeps, may have no processes of its own and loads them itself.
    """
    if workers and multiprocessing.current_process().daemon:
        logger.info("this process may start no others, so it loads its crops itself")
        workers = 0
    return DataLoader(
        crops,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_quiet_worker if workers else None,
    )


def _quiet_worker(_: int) -> None:
    """Leave Ctrl-C to the process that trains."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV to one thread while workers begin.

    A process that was forked has the threads of OpenCV's pool on its books but not in it, and would wait for them
    without end; and each worker should have one core.
    """
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
