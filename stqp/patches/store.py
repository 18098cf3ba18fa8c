"""The HDF5 file of training patches.

Data sets, one row a patch of ``P x P`` px at one µm/px:

=============  =====================  ==============================================================
``images``     uint8 (N, P, P, 3)     RGB
``instances``  int32 (N, P, P)        nucleus number in the patch, 0 is background
``types``      uint8 (N, P, P)        class number, 0 background, 255 a nucleus of unknown class
``valid``      uint8 (N, P, P)        0 where nothing is known and nothing may be learnt
``weight``     uint8 (N, P, P)        weight of the type loss, 255 is full; background has 255
``counts``     int32 (N, C + 1)       nuclei in the patch: of unknown class, then of each class
``origin``     float64 (N, 2)         x, y of the top left corner, full-resolution px of the slide
``source``     int32 (N,)             position in ``sources``
``side``       uint8 (N,)             0 training, 1 validation, 2 test (never to train on or choose by)
``about``      text                   JSON: ``classes`` (class ``i`` has number ``i + 1``), ``sources`` (project,
                                      entry, image, full-resolution µm/px, metadata), ``split``, ``options``,
                                      ``labels`` (nuclei of each class kept and dropped, by reason)
=============  =====================  ==============================================================

Attributes: ``format`` (2), ``mpp``, ``fingerprint`` of what the patches were cut from.
"""

import json
import os
from collections.abc import Mapping, Sequence
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
_MAPS = {
    "images": (np.uint8, (3,)),
    "instances": (np.int32, ()),
    "types": (np.uint8, ()),
    "valid": (np.uint8, ()),
    "weight": (np.uint8, ()),
}
_COLUMNS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "origin": (np.float64, (2,)),
    "source": (np.int32, ()),
    "side": (np.uint8, ()),
}


def count_classes(instances: NDArray[Any], types: NDArray[Any], n_classes: int) -> NDArray[np.int32]:
    """Nuclei of unknown class and of each class in a patch, int32 (C + 1,)."""
    ids, first = np.unique(instances, return_index=True)
    kinds = types.reshape(-1)[first[ids > 0]].astype(np.int64)
    kinds[kinds == UNKNOWN_TYPE] = 0
    return np.bincount(kinds, minlength=n_classes + 1)[: n_classes + 1].astype(np.int32)


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
    fingerprint
        Of what the patches are cut from.
    """

    def __init__(self, path: Path, size: int, mpp: float, classes: Sequence[str], fingerprint: str = ""):
        self._raw = CarefulFile(path)
        self._file = h5py.File(self._raw, "w")
        self.size, self.classes = size, [*classes]
        self._file.attrs.update({"format": FORMAT, "mpp": mpp, "fingerprint": fingerprint})
        for name, (dtype, rest) in _MAPS.items():
            shape = (size, size, *rest)
            # tissue does not get smaller by what is fast enough to be worth it
            kind = None if name == "images" else "lzf"
            self._file.create_dataset(
                name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(1, *shape), compression=kind
            )
        for name, (dtype, rest) in {**_COLUMNS, "counts": (np.int32, (len(classes) + 1,))}.items():
            self._file.create_dataset(name, (0, *rest), dtype, maxshape=(None, *rest))

    def __len__(self) -> int:
        """Count the patches written."""
        return len(self._file["side"])

    def append(self, origin: tuple[float, float], source: int, side: int, **arrays: NDArray[Any]) -> None:
        """Add one patch: ``images``, ``instances``, ``types``, ``valid`` and, where not full, ``weight`` of it."""
        row: dict[str, Any] = {"weight": np.full((self.size, self.size), FULL, np.uint8), **arrays}
        if "counts" not in row:
            row["counts"] = count_classes(row["instances"], row["types"], len(self.classes))
        self.append_all([{**row, "origin": np.asarray(origin), "source": source, "side": side}])

    def append_all(self, rows: list[dict[str, Any]]) -> None:
        """Add patches with all of their maps and columns: several at once take a fraction of the time."""
        if not rows:
            return
        start = len(self)
        for name, data in self._file.items():
            data.resize(start + len(rows), axis=0)
            data[start:] = np.stack([row[name] for row in rows], dtype=data.dtype, casting="unsafe")
        self._raw.check()

    def extend(self, path: Path) -> int:
        """Add all patches of another file of the same size and classes, as they are stored; how many."""
        start = len(self)
        with h5py.File(path, "r") as other:
            n = len(other["side"])
            for name in (*_COLUMNS, "counts"):
                self._file[name].resize(start + n, axis=0)
                self._file[name][start:] = other[name][:]
            for name in _MAPS:
                self._file[name].resize(start + n, axis=0)
                source, target = other[name].id, self._file[name].id
                rest = (0,) * (source.rank - 1)
                for row in range(n):  # compressed already
                    mask, chunk = source.read_direct_chunk((row, *rest))
                    target.write_direct_chunk((start + row, *rest), chunk, mask)
        self._raw.check()
        return n

    def finish(self, sources: list[dict[str, Any]], **about: Any) -> None:
        """Add the list of the images that the patches come from, and what else is to be known of them."""
        # a data set: attributes hold 64 KB at most
        text = json.dumps({"classes": self.classes, "sources": sources, **about}, ensure_ascii=False)
        self._file.create_dataset("about", data=text, dtype=h5py.string_dtype())

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
    """A file of patches, opened for reading; it can be sent to other processes.

    Attributes
    ----------
    path : Path
    size : int
        Side of a patch in px.
    mpp : float
    classes : list of str
        Class ``i`` has number ``i + 1``.
    sources : list of dict
    about : dict
        All that the file says of itself, see the module.
    fingerprint : str
    side, origin, source, counts : array
        Columns, one row a patch.

    Raises
    ------
    InputError
        When the file is missing, truncated or something else.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._open: h5py.File | None = None
        self._opener = 0
        if not self.path.is_file():
            raise InputError(f"the file of patches {path} does not exist")
        try:
            with h5py.File(self.path, "r") as file:
                if int(file.attrs["format"]) != FORMAT:
                    raise KeyError(f"format {file.attrs['format']}, expected {FORMAT}")
                self.mpp = float(file.attrs["mpp"])
                self.fingerprint = str(file.attrs["fingerprint"])
                self.about: Mapping[str, Any] = json.loads(file["about"].asstr()[()])
                self.classes: list[str] = self.about["classes"]
                self.sources: list[dict[str, Any]] = self.about["sources"]
                self.side: NDArray[np.uint8] = file["side"][:]
                self.origin: NDArray[np.float64] = file["origin"][:]
                self.source: NDArray[np.int32] = file["source"][:]
                self.counts: NDArray[np.int32] = file["counts"][:]
                self.size = int(file["images"].shape[1])
                rows = {name: len(file[name]) for name in (*_MAPS, *_COLUMNS, "counts")}
            if len(set(rows.values())) > 1:
                raise KeyError(f"its columns have {', '.join(f'{n} {name}' for name, n in rows.items())}")
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path} is no whole file of stqp patches ({error}); cut or import them again") from error

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
        try:
            return {name: self._open[name][index] for name in _MAPS}
        except OSError as error:
            raise InputError(f"patch {index} of {self.path} cannot be read ({error}); cut the patches again") from error

    def close(self) -> None:
        """Release the file."""
        if self._open is not None:
            self._open.close()
            self._open = None
