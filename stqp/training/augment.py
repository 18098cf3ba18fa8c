"""Augmentation that leaves nuclei nuclei: affine maps, flips, stain, light, blur and noise.

The terms and ranges follow HoVer-Net's recipe (scale 0.8-1.2, any rotation, shear 5 degrees, flips; one of
blur, median or noise); colour is varied where it varies in a laboratory, in the amounts of haematoxylin and
eosin (Tellez et al. 2018). OpenCV does the work: torchvision's transforms take some ten times as long for the same
warp and blur on a core, kornia warps by the same routine as torchvision, albumentations is no longer maintained
and its successor is under another licence; and none knows maps that must not mirror with their image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from stqp.training.settings import AugmentationOptions

# optical density of haematoxylin, eosin and the residual, rows (Ruifrok and Johnston 2001)
_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_HED /= np.linalg.norm(_HED, axis=1, keepdims=True)
_RGB_TO_HED = np.linalg.inv(_HED)
_DENSITY = -np.log10((np.arange(256) + 1.0) / 256.0).astype(np.float32)


@dataclass
class Crop:
    """A training crop: image, instances, types, where they are known, and how much the types weigh.

    Attributes
    ----------
    image : uint8 (S, S, 3)
    instances : int32 (S, S)
    types : uint8 (S, S)
        0 background, 255 unknown class.
    valid, weight : uint8 (S, S)
        Weight of the type loss; 255 is all of it.
    """

    image: NDArray[np.uint8]
    instances: NDArray[np.int32]
    types: NDArray[np.uint8]
    valid: NDArray[np.uint8]
    weight: NDArray[np.uint8]


def scaled(options: AugmentationOptions) -> AugmentationOptions:
    """Ranges times the strength."""
    ranges = {name: getattr(options, name) * options.strength for name in ("scale", "shear", "stain", "light")}
    ranges |= {name: getattr(options, name) * options.strength for name in ("blur", "noise")}
    ranges |= {
        "scale": min(ranges["scale"], 0.6),
        "stain": min(ranges["stain"], 0.9),
        "light": min(ranges["light"], 0.5),
    }
    return replace(options, strength=1.0, disturb=min(options.disturb * options.strength, 1.0), **ranges)


def random_affine(rng: np.random.Generator, field: int, size: int, options: AugmentationOptions) -> NDArray[np.float64]:
    """Draw a 2x3 matrix from crop pixels to field pixels (centres at integers, as OpenCV counts)."""
    angle, shear = rng.uniform(0, 2 * np.pi) * options.rotate, np.deg2rad(rng.uniform(-1, 1) * options.shear)
    scale = np.diag(rng.uniform(1 / (1 + options.scale), 1 / (1 - options.scale), 2))
    flip = np.diag([rng.choice([-1.0, 1.0]) if options.flip else 1.0, 1.0])
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
        nearest(crop.weight).astype(np.uint8),
    )


def jitter_stain(image: NDArray[np.uint8], rng: np.random.Generator, options: AugmentationOptions) -> NDArray[np.uint8]:
    """Vary the amounts of haematoxylin and eosin, and the light."""
    factor = rng.uniform(-1, 1, 3) * options.stain + 1
    offset = rng.uniform(-0.25, 0.25, 3) * options.stain * np.array([1.0, 1.0, 0.4])
    mixing = (_RGB_TO_HED @ np.diag(factor) @ _HED).astype(np.float32)
    density = _DENSITY[image] @ mixing + (offset @ _HED).astype(np.float32)
    bright = 1 + rng.uniform(-1, 1) * options.light
    return np.clip(np.power(10.0, -density, dtype=np.float32) * (256 * bright) - 1, 0, 255).astype(np.uint8)


def disturb(image: NDArray[np.uint8], rng: np.random.Generator, options: AugmentationOptions) -> NDArray[np.uint8]:
    """Apply one of: nothing, Gaussian blur, median blur, Gaussian noise."""
    chosen, kind, amount = rng.random() < options.disturb, rng.integers(3), rng.uniform(0.2, 1)
    if not chosen:
        return image
    if kind == 0 and options.blur:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), amount * options.blur), np.uint8)
    if kind == 1 and options.blur:
        return np.asarray(cv2.medianBlur(image, 3), np.uint8)
    if kind == 2 and options.noise:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * (amount * options.noise)
        return np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def augment(field: Crop, size: int, rng: np.random.Generator, options: AugmentationOptions) -> Crop:
    """Draw a random crop of ``size`` px from a field; ranges as `scaled` gives them."""
    crop = warp(field, random_affine(rng, field.image.shape[0], size, options), size)
    if options.stain or options.light:
        crop.image = jitter_stain(crop.image, rng, options)
    crop.image = disturb(crop.image, rng, options)
    return crop
