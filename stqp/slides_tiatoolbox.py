"""Slides that TIAToolbox alone reads: JPEG 2000, OME-Zarr, and what else it learns to read."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np

from stqp.slides import RGBImage, Slide


class TiatoolboxSlide(Slide):
    """A slide of a format that neither OpenSlide nor tifffile reads."""

    backend = "bioformats"

    def __init__(self, path: Path):
        chatter = logging.getLogger("tiatoolbox")
        level = chatter.level
        chatter.setLevel(logging.ERROR)
        try:
            from tiatoolbox.wsicore.wsireader import WSIReader

            self._reader: Any = WSIReader.open(path)
            info = self._reader.info
        finally:
            chatter.setLevel(level)
        self.path = path
        self._lock = threading.Lock()
        sizes = [(int(w), int(h)) for w, h in info.level_dimensions]
        # of some formats it lists levels that it does not read
        known = len(info.level_downsamples) == len(sizes)
        self.level_sizes = sizes if known else sizes[:1]
        self.width, self.height = self.level_sizes[0]
        self.downsamples = [(self.width / w + self.height / h) / 2 for w, h in self.level_sizes]
        self.mpp = None if info.mpp is None else float(sum(info.mpp)) / 2

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> RGBImage:
        step = self.downsamples[level]
        with self._lock:
            region = self._reader.read_rect(
                (round(x * step), round(y * step)), (width, height), resolution=level, units="level"
            )
        return np.ascontiguousarray(region[..., :3], dtype=np.uint8)
