"""Spatial blocks of a slide, and which of them are held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Block:
    """A rectangle of a slide, x0, y0, x1, y1 in full-resolution pixels, that stands on one side of a split."""

    source: int
    box: Box


def grid(width: float, height: float, size: float, source: int = 0) -> list[Block]:
    """Divide a slide into equal blocks of about `size` pixels a side, so that none is a sliver."""
    columns, rows = max(1, round(width / size)), max(1, round(height / size))
    x, y = np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1)
    return [
        Block(source, (float(x[i]), float(y[j]), float(x[i + 1]), float(y[j + 1])))
        for j in range(rows)
        for i in range(columns)
    ]


def hold_out(counts: NDArray[np.integer], fraction: float, seed: int, draws: int = 500) -> NDArray[np.bool_]:
    """Choose the blocks to hold out: of many random choices the one whose classes are most like the whole.

    Parameters
    ----------
    counts : int (blocks, classes)
        Nuclei of each class in each block.
    fraction
        Part of the blocks that is held out; at least one is, and at least one is not.
    seed
        Same seed, same choice.

    Returns
    -------
    bool (blocks,)
        True for a held-out block.

    Raises
    ------
    InputError
        When there are fewer than two blocks.
    """
    n = len(counts)
    result = np.zeros(n, bool)
    if fraction <= 0:
        return result
    if n < 2:
        raise InputError("the nuclei stand in a single spatial block, which cannot be split; use a smaller --block")
    k = min(max(1, round(n * fraction)), n - 1)
    rng = np.random.default_rng(seed)
    choices = np.array([rng.permutation(n)[:k] for _ in range(draws)])
    held = counts[choices].sum(axis=1).astype(float)
    total = counts.sum(axis=0)
    wanted = k / n
    # relative error of each class's share, rare classes damped so that they do not decide alone
    error = np.abs(held - wanted * total) / (wanted * total + 10)
    result[choices[int(error.mean(axis=1).argmin())]] = True
    return result


def boxes_by_source(blocks: Sequence[Block], chosen: NDArray[np.bool_]) -> dict[int, list[list[float]]]:
    """Boxes of the chosen blocks, grouped by slide."""
    result: dict[int, list[list[float]]] = {}
    for block, take in zip(blocks, chosen, strict=True):
        if take:
            result.setdefault(block.source, []).append([*block.box])
    return result
