"""Spatial blocks, folds that hold whole blocks out, and a guard band between what is learnt from and what is judged."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK_UM, GUARD_UM, FOLDS = 256.0, 50.0, 5


def block_of(places: Floats, slide: Ints, side: float) -> Ints:
    """Number of the square block of `side` µm that each place (n, 2), in µm, lies in; slides share none."""
    cell = np.floor(places / side).astype(np.int64)
    _, block = np.unique(np.column_stack([slide, cell]), axis=0, return_inverse=True)
    return np.asarray(block.reshape(-1), np.int64)


def folds(
    places: Floats, slide: Ints, block: Ints, y: Ints, guard: float, seed: int, k: int = FOLDS
) -> list[tuple[Ints, Ints]]:
    """Divide nuclei for cross-validation: whole slides are held out where there are several, else whole blocks.

    Parameters
    ----------
    places : float64 (n, 2)
        µm.
    slide, block, y : int64 (n,)
        Slide, block and group of each nucleus; every fold has about its share of each group.
    guard
        µm around held-out nuclei within which nothing is learnt from.
    seed
        The same seed gives the same folds.
    k
        Folds, at most.

    Returns
    -------
    list of (train, test)
        Positions; every nucleus is in one test.

    Raises
    ------
    InputError
        When there are fewer than two blocks, or the guard band leaves nothing to learn from.
    """
    from scipy.spatial import cKDTree
    from sklearn.model_selection import StratifiedGroupKFold  # type: ignore[import-untyped]

    held = slide if len(np.unique(slide)) > 1 else block
    k = min(k, len(np.unique(held)))
    if k < 2:
        raise InputError("all nuclei stand in one spatial block, so none can be held out; use a smaller --block")
    split = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    result = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a group of fewer nuclei than folds, which is no error here
        parts = list(split.split(places, y, held))
    for train, test in parts:
        if not len(test):
            continue
        near = np.zeros(len(train), bool)
        for one in np.unique(slide[test]):
            there = slide[train] == one
            if guard > 0 and there.any():
                away, _ = cKDTree(places[test[slide[test] == one]]).query(
                    places[train[there]], distance_upper_bound=guard
                )
                near[there] = np.isfinite(away)
        if len(np.unique(y[train[~near]])) < 2:
            raise InputError(
                f"with {guard:g} µm around the held-out blocks fewer than two groups are left to learn from; "
                "use a smaller --guard or --block"
            )
        result.append((train[~near], test))
    return result
