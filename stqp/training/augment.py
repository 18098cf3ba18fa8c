"""Augmentation that leaves nuclei nuclei: affine maps, flips, stain, light, blur and noise.

The terms and ranges follow HoVer-Net's recipe (scale 0.8-1.2, any rotation, shear 5 degrees, flips; one of
blur, median or noise); colour is varied where it varies in a laboratory, in the amounts of haematoxylin and
eosin (Tellez et al. 2018).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

# optical density of haematoxylin, eosin and the residual, rows (Ruifrok and Johnston 2001)
_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_HED /= np.linalg.norm(_HED, axis=1, keepdims=True)
_RGB_TO_HED = np.linalg.inv(_HED)
_DENSITY = -np.log10((np.arange(256) + 1.0) / 256.0).astype(np.float32)


@dataclass
class Crop:
    """A training crop: image, instances, types and where they are known.

    Attributes
    ----------
    image : uint8 (S, S, 3)
    instances : int32 (S, S)
    types : uint8 (S, S)
        0 background, 255 unknown class.
    valid : uint8 (S, S)
    """

    image: NDArray[np.uint8]
    instances: NDArray[np.int32]
    types: NDArray[np.uint8]
    valid: NDArray[np.uint8]


def random_affine(rng: np.random.Generator, field: int, size: int) -> NDArray[np.float64]:
    """Draw a 2x3 matrix from crop pixels to field pixels (centres at integers, as OpenCV counts)."""
    angle, shear = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(-5, 5))
    scale = np.diag(rng.uniform(1 / 1.2, 1 / 0.8, 2))
    flip = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, np.tan(shear)], [0, 1]]) @ scale @ flip
    free = max(field - size, 0) / 2
    centre = (field - 1) / 2 + rng.uniform(-free, free, 2)
    middle = np.full(2, (size - 1) / 2)
    return np.column_stack([linear, centre - linear @ middle])


def warp(crop: Crop, matrix: NDArray[np.float64], size: int) -> Crop:
    """Resample a field; what lies outside of it mirrors in the image and is not valid."""
    flags = cv2.WARP_INVERSE_MAP
    shape = (size, size)

    def nearest(array: NDArray[np.generic]) -> NDArray[np.generic]:
        # float32 holds ids below 2^24 exactly, and OpenCV warps no int32
        return cv2.warpAffine(array, matrix, shape, flags=flags | cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)

    return Crop(
        cv2.warpAffine(crop.image, matrix, shape, flags=flags | cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101),
        nearest(crop.instances.astype(np.float32)).astype(np.int32),
        nearest(crop.types).astype(np.uint8),
        nearest(crop.valid).astype(np.uint8),
    )


def jitter_stain(image: NDArray[np.uint8], rng: np.random.Generator, strength: float = 0.2) -> NDArray[np.uint8]:
    """Vary the amounts of haematoxylin and eosin, and the light."""
    factor = rng.uniform(1 - strength, 1 + strength, 3)
    offset = rng.uniform(-0.25, 0.25, 3) * strength * np.array([1.0, 1.0, 0.4])
    mixing = (_RGB_TO_HED @ np.diag(factor) @ _HED).astype(np.float32)
    density = _DENSITY[image] @ mixing + (offset @ _HED).astype(np.float32)
    bright = rng.uniform(0.9, 1.1)
    return np.clip(np.power(10.0, -density, dtype=np.float32) * (256 * bright) - 1, 0, 255).astype(np.uint8)


def disturb(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply one of: nothing, Gaussian blur, median blur, Gaussian noise."""
    kind = rng.integers(5)
    if kind == 0:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.3)), np.uint8)
    if kind == 1:
        return np.asarray(cv2.medianBlur(image, 3), np.uint8)
    if kind == 2:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(2, 12)
        return np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def augment(field: Crop, size: int, rng: np.random.Generator) -> Crop:
    """Draw a random crop of ``size`` px from a field."""
    crop = warp(field, random_affine(rng, field.image.shape[0], size), size)
    crop.image = disturb(jitter_stain(crop.image, rng), rng)
    return crop


def centre(field: Crop, size: int) -> Crop:
    """Cut the middle of a field, without change."""
    start = [(s - size) // 2 for s in field.image.shape[:2]]
    window = slice(start[0], start[0] + size), slice(start[1], start[1] + size)
    return Crop(field.image[window], field.instances[window], field.types[window], field.valid[window])
