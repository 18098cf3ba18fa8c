"""Spatial blocks of a slide, and which of them are held out."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError

Box = tuple[float, float, float, float]
Ints = NDArray[np.int64]


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


def hold_out(
    counts: NDArray[np.integer], fraction: float, seed: int, draws: int = 500, what: str = "spatial block"
) -> NDArray[np.bool_]:
    """Choose what to hold out: of many random choices the one whose classes are most like the whole.

    Parameters
    ----------
    counts : int (n, classes)
        Nuclei of each class in each block, slide or patient.
    fraction
        Part of the ``n`` that is held out; at least one is, and at least one is not.
    seed
        Same seed, same choice.
    draws
        Random choices.
    what
        The ``n`` are, for the message.

    Returns
    -------
    bool (n,)
        True for what is held out.

    Raises
    ------
    InputError
        When there are fewer than two.
    """
    n = len(counts)
    result = np.zeros(n, bool)
    if fraction <= 0:
        return result
    if n < 2:
        help_ = "a smaller --block" if what == "spatial block" else "--split block, or --validation 0"
        raise InputError(f"the nuclei stand in a single {what}, which cannot be split; use {help_}")
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


def guarded(blocks: list[Block], sides: Ints, gap: list[float], slides: Ints) -> list[Block | None]:
    """Draw blocks back from those that are held out more strictly, so that a band between them is nobody's.

    Parameters
    ----------
    blocks
        That do not overlap.
    sides : int (n,)
        Of each; where two meet, the one with the lower number draws back.
    gap
        Width of the band on each slide, full-resolution px.
    slides : int (n,)
        Slide of each block; two images of a project may be the same slide.

    Returns
    -------
    list
        Blocks, drawn back; None for one of which nothing is left.
    """
    boxes = np.array([b.box for b in blocks], float).reshape(-1, 4)
    result: list[Block | None] = [*blocks]
    for low in np.flatnonzero(sides < sides.max(initial=0)).tolist():
        stricter = boxes[(slides == slides[low]) & (sides > sides[low])]
        band = gap[blocks[low].source]
        reached = stricter + np.array([-band, -band, band, band])
        box = boxes[low].copy()
        while box is not None:
            x0, y0, x1, y1 = box
            hit = (reached[:, 0] < x1) & (reached[:, 2] > x0) & (reached[:, 1] < y1) & (reached[:, 3] > y0)
            if not hit.any():
                break
            # what each way out of the nearest one costs; a neighbour at a corner is passed on the cheaper side
            first = reached[np.flatnonzero(hit)[_order(reached[hit], box)]]
            cuts = np.array(
                [[first[2], y0, x1, y1], [x0, first[3], x1, y1], [x0, y0, first[0], y1], [x0, y0, x1, first[1]]]
            )
            areas = np.maximum(cuts[:, 2] - cuts[:, 0], 0) * np.maximum(cuts[:, 3] - cuts[:, 1], 0)
            best = int(areas.argmax())
            box = cuts[best] if areas[best] > 0 else None
        result[low] = None
        if box is not None:
            left, top, right, bottom = box.tolist()
            result[low] = replace(blocks[low], box=(left, top, right, bottom))
    return result


def _order(reached: NDArray[np.float64], box: NDArray[np.float64]) -> int:
    """Position of the box that shares most with `box`: neighbours along a side before those at a corner."""
    x0, y0, x1, y1 = box
    shared = (np.minimum(reached[:, 2], x1) - np.maximum(reached[:, 0], x0)) * (
        np.minimum(reached[:, 3], y1) - np.maximum(reached[:, 1], y0)
    )
    return int(shared.argmax())
