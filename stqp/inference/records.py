"""What is finished, as records of the journal, and read back from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from stqp.inference.clumps import Border, Part
from stqp.inference.journal import Journal, unpack
from stqp.inference.tiles import Found, Seen

Record = tuple[dict[str, Any], dict[str, NDArray[Any]]]


def tile_record(number: int, seen: Seen) -> Record:
    """What a tile gave, as numbers and arrays."""
    arrays: dict[str, NDArray[Any]] = {**vars(seen.found)}
    arrays["parts"] = np.array([(p.label, *p.box, *p.first) for p in seen.parts], np.int64).reshape(-1, 7)
    if seen.border is not None:
        arrays |= vars(seen.border)
    return {"tile": number}, arrays


def parts_of(meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> tuple[list[Part], Border | None]:
    """Read back what a tile saw of clumps that reach into others."""
    parts = [
        Part(meta["tile"], label, (x0, y0, x1, y1), (x, y)) for label, x0, y0, x1, y1, x, y in arrays["parts"].tolist()
    ]
    names = ("inner", "inner_labels", "outer", "outer_labels")
    # copies, or they would hold on to the nuclei that were read with them
    return parts, Border(*(arrays[name].copy() for name in names)) if names[0] in arrays else None


def found_of(arrays: dict[str, NDArray[Any]]) -> Found:
    """Read back the nuclei of a tile or a clump."""
    return Found(arrays["coords"], arrays["counts"], arrays["centres"], arrays["class_prob"])


class Results(Sequence[Found]):
    """The nuclei of tiles and clumps in a journal, read when they are asked for.

    Parameters
    ----------
    journal
        Open.
    places
        Position and length of each record.
    """

    def __init__(self, journal: Journal, places: Sequence[tuple[int, int]]):
        self._journal, self._places = journal, places

    def __len__(self) -> int:
        """Count the records."""
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Found: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Found]: ...
    def __getitem__(self, index: int | slice) -> Found | Sequence[Found]:
        """Read one."""
        if isinstance(index, slice):
            return Results(self._journal, self._places[index])
        return found_of(unpack(self._journal.read(*self._places[index]))[1])
