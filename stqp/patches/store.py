"""The HDF5 file of training patches.

Data sets, one row a patch of ``P x P`` px at one µm/px:

=============  =====================  ==============================================================
``images``     uint8 (N, P, P, 3)     RGB
``instances``  int32 (N, P, P)        nucleus number in the patch, 0 is background
``types``      uint8 (N, P, P)        class number, 0 background, 255 a nucleus of unknown class
``valid``      uint8 (N, P, P)        0 where nothing is known and nothing may be learnt
``weight``     uint8 (N, P, P)        weight of the type loss, 255 is full; background has 255
``origin``     float64 (N, 2)         x, y of the top left corner, full-resolution px of the slide
``source``     int32 (N,)             position in the attribute ``sources``
``side``       uint8 (N,)             0 training, 1 validation, 2 test (never to train on or choose by)
=============  =====================  ==============================================================

Attributes: ``format`` (2), ``mpp``, and as JSON ``classes`` (class ``i`` has number ``i + 1``) and
``sources`` (project, entry, image, full-resolution µm/px).
"""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.hdf5 import CarefulFile

UNKNOWN_TYPE = 255
TRAINING, VALIDATION, TEST = 0, 1, 2
SIDES = ("training", "validation", "test")
FORMAT = 2
FULL = 255
"""Weight of a nucleus that is not doubted, and of background."""
_IMAGES = {
    "images": (np.uint8, (3,)),
    "instances": (np.int32, ()),
    "types": (np.uint8, ()),
    "valid": (np.uint8, ()),
    "weight": (np.uint8, ()),
}


class PatchWriter:
    """Appends patches to a new file.

    Parameters
    ----------
    path
        The file; it is overwritten.
    size
        Side of a patch in px.
    mpp
        µm per pixel of the patches.
    classes
        Class names.
    """

    def __init__(self, path: Path, size: int, mpp: float, classes: list[str]):
        self._raw = CarefulFile(path)
        self._file = h5py.File(self._raw, "w")
        self.size = size
        self._file.attrs.update({"format": FORMAT, "mpp": mpp, "classes": json.dumps(classes)})
        for name, (dtype, rest) in _IMAGES.items():
            shape = (size, size, *rest)
            self._file.create_dataset(
                name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(1, *shape), compression="lzf"
            )
        self._file.create_dataset("origin", (0, 2), np.float64, maxshape=(None, 2))
        self._file.create_dataset("source", (0,), np.int32, maxshape=(None,))
        self._file.create_dataset("side", (0,), np.uint8, maxshape=(None,))

    def append(self, origin: tuple[float, float], source: int, side: int, **arrays: NDArray[Any]) -> None:
        """Add one patch: ``images``, ``instances``, ``types``, ``valid`` and, where not full, ``weight`` of it."""
        full = np.full((self.size, self.size), FULL, np.uint8)
        row = {
            "weight": full,
            **arrays,
            "origin": np.asarray(origin),
            "source": np.int32(source),
            "side": np.uint8(side),
        }
        for name, value in row.items():
            data = self._file[name]
            data.resize(len(data) + 1, axis=0)
            data[-1] = value
        self._raw.check()

    def finish(self, sources: list[dict[str, Any]]) -> None:
        """Add the list of the images that the patches come from."""
        self._file.attrs["sources"] = json.dumps(sources)

    def __enter__(self) -> "PatchWriter":
        """Open as a context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; raises the first write that the disk refused."""
        try:
            self._file.close()
        finally:
            self._raw.close()
            self._raw.check()


class PatchFile:
    """A file of patches, opened for reading; it can be sent to other processes."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._open: h5py.File | None = None
        self._opener = 0
        try:
            with h5py.File(self.path, "r") as file:
                if file.attrs["format"] != FORMAT:
                    raise KeyError(f"format {file.attrs['format']}, expected {FORMAT}")
                self.mpp = float(file.attrs["mpp"])
                self.classes: list[str] = json.loads(file.attrs["classes"])
                self.sources: list[dict[str, Any]] = json.loads(file.attrs["sources"])
                self.side: NDArray[np.uint8] = file["side"][:]
                self.origin: NDArray[np.float64] = file["origin"][:]
                self.source: NDArray[np.int32] = file["source"][:]
                self.size = int(file["images"].shape[1])
        except (OSError, KeyError) as error:
            raise InputError(f"{path} is no whole file of stqp patches ({error}); delete it and run again") from error

    def __len__(self) -> int:
        """Count the patches."""
        return len(self.side)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind: each process opens its own."""
        return {**self.__dict__, "_open": None}

    def read(self, index: int) -> dict[str, NDArray[Any]]:
        """One patch: its ``images``, ``instances``, ``types``, ``valid`` and ``weight``."""
        if self._open is None or self._opener != os.getpid():  # a forked process must not share the file
            self._open, self._opener = h5py.File(self.path, "r"), os.getpid()
        return {name: self._open[name][index] for name in _IMAGES}

    def close(self) -> None:
        """Release the file."""
        if self._open is not None:
            self._open.close()
            self._open = None
