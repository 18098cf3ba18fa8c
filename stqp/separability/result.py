"""What was asked of groups of nuclei, and what was found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.taxonomies import Taxonomy
from stqp.errors import UsageError
from stqp.separability import blocks, pairs
from stqp.separability.groups import Group
from stqp.separability.merging import LEAST_AUC, Merging
from stqp.separability.proposal import Proposed

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MIN_NUCLEI, MIN_BLOCKS = 50, 5


@dataclass(frozen=True)
class Settings:
    """How groups are held against each other.

    Attributes
    ----------
    block, guard : float
        Side of a spatial block, and the band around held-out ones that nothing is learnt from, µm.
    least : float
        AUC from which two classes are told apart.
    across : bool
        Whether groups of different lineages may be merged.
    min_nuclei : int
        Nuclei below which a group is not judged.
    seed : int
    """

    block: float = blocks.BLOCK_UM
    guard: float = blocks.GUARD_UM
    least: float = LEAST_AUC
    across: bool = False
    min_nuclei: int = MIN_NUCLEI
    seed: int = 0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises
        ------
        UsageError
        """
        if not self.block > 0 or not self.guard >= 0:
            raise UsageError(f"expected --block above 0 and --guard from 0, found {self.block:g} and {self.guard:g}")
        if not 0.5 < self.least < 1:
            raise UsageError(f"expected --least-auc between 0.5 and 1, found {self.least:g}")
        if self.min_nuclei < 10:
            raise UsageError(f"expected --min-nuclei from 10, found {self.min_nuclei}")


@dataclass
class Separability:
    """What was found.

    Attributes
    ----------
    groups : list of Group
        Those that were judged.
    small : list of Group
        Those with too few nuclei or blocks.
    slide, row : int64 (m,)
        Which nucleus of which slide each judged one is.
    y, block : int64 (m,)
        Its group and its spatial block.
    scores : float64 (m, groups)
        Its log likelihood under each, out of fold.
    pairs : list of Pair
        Of the groups.
    tree : Merging
        Of the groups one by one: the order of the heat map.
    merging : Merging
        Of what a taxonomy can name; `Merged.members` are groups.
    proposed : list of Proposed
        Its classes.
    taxonomy : Taxonomy
    calibration : float
        Mean distance between promised and kept probabilities.
    folds, n_blocks : int
    by_slide : bool
        Whether whole slides were held out.
    notes : list of str
    """

    groups: list[Group]
    small: list[Group]
    slide: Ints
    row: Ints
    y: Ints
    block: Ints
    scores: Floats
    pairs: list[pairs.Pair]
    tree: Merging
    merging: Merging
    proposed: list[Proposed]
    taxonomy: Taxonomy
    calibration: float
    folds: int
    n_blocks: int
    by_slide: bool
    settings: Settings
    notes: list[str] = field(default_factory=list)

    @property
    def class_of(self) -> list[int]:
        """Class of the proposal of each group."""
        result = [-1] * len(self.groups)
        for i, merged in enumerate(self.merging.classes):
            for g in merged.members:
                result[g] = i
        return result
