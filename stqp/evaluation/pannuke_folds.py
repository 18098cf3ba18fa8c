"""PanNuke as it is published: folds beside each other, whose images have a fold and a tissue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stqp.errors import InputError
from stqp.evaluation.nuclei import Side
from stqp.patches.layouts.pannuke import class_names, find_folds


class PanNukeFolds:
    """True nuclei of all folds in a folder, named as `stqp.patches.importing.import_patches` names them.

    Parameters
    ----------
    folder
        Holds ``images.npy``, ``masks.npy`` and, where tissues are known, ``types.npy`` of each fold.

    Raises
    ------
    InputError
        When there are none, their arrays do not fit together, or two folds have the same name.
    """

    def __init__(self, folder: Path):
        self.name = str(folder)
        items = find_folds(folder)
        self._items = {item.name: item for item in items}
        if len(self._items) < len(items):
            folds = sorted({str(item.path.parent) for item in items})
            raise InputError(f"{folder} holds several masks.npy of one fold; name one: {', '.join(folds[:5])}")
        self._names = class_names(folder)
        self.default_names: Mapping[int, str] | None = None

    def images(self) -> list[str]:
        """Names such as ``fold1_00000``."""
        return [*self._items]

    def about(self, image: str) -> dict[str, str]:
        """Fold and tissue of an image, without reading it; the tissue is its organ too."""
        known = dict(self._items[image].about)
        return {**known, "organ": known["tissue"]} if "tissue" in known else known

    def close(self) -> None:
        """Nothing is kept open."""

    def read(self, image: str) -> Side:
        """Read the nuclei of an image."""
        found = self._items[image].load()
        names = self._names or self.default_names or {}
        classes = [names.get(t, str(t)) for t in found.types.tolist()]
        return Side(
            source=f"{self.name}, image {image}",
            classes=np.array([*classes, None], object)[:-1],
            inst=found.nuclei,
            size=(found.nuclei.shape[1], found.nuclei.shape[0]),
            about=self.about(image),
            pixels=found.image,
        )
