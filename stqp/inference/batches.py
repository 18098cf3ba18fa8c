"""How many windows of which size a device takes at a time."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from stqp.devices import OutOfDeviceMemory
from stqp.inference.model import Maps, Predictor

logger = logging.getLogger(__name__)


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
