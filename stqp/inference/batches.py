"""How many windows of which size a device takes at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.devices import OutOfDeviceMemory, memory_of
from stqp.inference.model import Maps, Predictor

logger = logging.getLogger(__name__)
_MEMORY = 6000.0  # bytes for a px of a window, where a predictor does not say
_SHARE = {"cpu": 0.25, "cuda": 0.6, "mps": 0.25}  # of a device's memory that windows may take
_PIXELS = {"cpu": 1024**2, "cuda": 8 * 1024**2, "mps": 2 * 1024**2}  # of a batch; more is no faster
_MOST = {"cpu": 4, "cuda": 32, "mps": 8}  # windows


def fit_windows(predictors: Sequence[Predictor], count: Callable[[Predictor], int]) -> list[Predictor]:
    """Have predictors take windows of the size that leaves the least to compute.

    The outputs of a network are smaller than its windows by a margin, of which large windows waste less: for
    HoVer-Net 59 % of what is computed at 256 px, and 17 % at 1024. At the slide's edges, and around little
    tissue, they waste more. It hangs on the slide and the machine, not on how much memory is free just now.

    Parameters
    ----------
    predictors
        Replicas; those with ``sizes`` (px) and ``resized(size)`` can be changed.
    count
        Gives the number of windows that a predictor needs.
    """
    one: Any = predictors[0]
    sizes = sorted(getattr(one, "sizes", ()))
    if len(sizes) < 2:
        return list(predictors)
    room = _room(one)
    fitting = [size for size in sizes if size**2 * _memory(one) <= room] or sizes[:1]
    best = min(fitting, key=lambda size: (count(one.resized(size)) * size**2, size))
    return [p.resized(best) for p in predictors]  # type: ignore[attr-defined]


def choose_batch(predictor: Predictor) -> int:
    """Choose how many windows a device takes at a time; `predict_in_parts` halves them if they are too many."""
    kind = _kind(predictor)
    pixels = predictor.input_size**2
    fitting = int(_room(predictor) // (pixels * _memory(predictor)))
    return max(1, min(_MOST[kind], _PIXELS[kind] // pixels, fitting))


def _kind(predictor: Predictor) -> str:
    kind = str(getattr(predictor, "device", "cpu")).partition(":")[0]
    return kind if kind in _SHARE else "cpu"


def _room(predictor: Predictor) -> float:
    """Bytes that windows may take on a predictor's device."""
    return memory_of(str(getattr(predictor, "device", "cpu"))) * _SHARE[_kind(predictor)]


def _memory(predictor: Predictor) -> float:
    return float(getattr(predictor, "memory", _MEMORY))


def predict_in_parts(predictor: Predictor, images: NDArray[np.uint8], largest: int) -> tuple[Maps, int]:
    """Predict a batch, in smaller parts where the device's memory asks for it.

    Parameters
    ----------
    predictor
        The network.
    images : uint8 (N, side, side, 3)
    largest
        Windows at a time, as far as is known.

    Returns
    -------
    maps : dict
    largest : int
        Windows at a time that fitted.

    Raises
    ------
    OutOfDeviceMemory
        When a single window is too large.
    """
    parts: list[Maps] = []
    done = 0
    while done < len(images):
        try:
            parts.append(predictor.predict(images[done : done + largest]))
        except OutOfDeviceMemory:
            size = min(largest, len(images) - done)
            if size == 1:
                raise
            largest = size // 2
            logger.warning("the device's memory is too small for %d windows at a time; going on with %d", size, largest)
            continue
        done += largest
    if len(parts) == 1:
        return parts[0], largest
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, largest
