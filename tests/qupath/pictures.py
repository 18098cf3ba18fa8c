"""Small images and folders for tests of projects."""

import numpy as np
from PIL import Image


def picture(path, size=(97, 61)):
    """Write an image of noise; `size` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def contents(folder):
    """All files of a folder with their bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
