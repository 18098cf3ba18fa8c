"""Smooth random fields."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def grf(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> NDArray[np.float32]:
    """Make a smooth random field of mean 0 and spread 1.

    Parameters
    ----------
    rng
        Source of the randomness.
    shape
        Height and width.
    sigma
        Size of its features, in pixels of the field.
    """
    import cv2

    step = max(1.0, sigma / 3)
    small = int(np.ceil(shape[0] / step)) + 8, int(np.ceil(shape[1] / step)) + 8
    field = rng.standard_normal(small, dtype=np.float32)
    field = cv2.GaussianBlur(field, (0, 0), sigma / step) if sigma / step > 0.3 else field
    if step > 1:
        size = int(np.ceil(small[1] * step)), int(np.ceil(small[0] * step))
        field = cv2.resize(field, size, interpolation=cv2.INTER_CUBIC)
    field = field[: shape[0], : shape[1]]
    return np.asarray((field - field.mean()) / (field.std() + 1e-9), dtype=np.float32)
