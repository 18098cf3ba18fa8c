"""What a pathologist says about a tumour, which decides where evidence would: clusters, regions, and its origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.fine_types import type_key
from stqp.celltyping.neoplastic import NEOPLASTIC
from stqp.celltyping.taxonomies import Taxonomy
from stqp.errors import InputError, UsageError
from stqp.taxonomy import UNKNOWN

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Objects = NDArray[np.object_]

# the visual class that a tumour comes from, and the fine types where not all of the class
ORIGINS: dict[str, tuple[str, tuple[str, ...]]] = {
    "epithelial": ("Epithelial", ()),
    "melanocytic": ("Epithelial", ("Melanocytes", "Melanoma")),
    "stromal": ("Connective", ()),
    "haematopoietic": ("Inflammatory", ()),
}
FEWEST_NORMAL = 20  # cells of a normal region that evidence is held against


@dataclass(frozen=True)
class Said:
    """What somebody said.

    Attributes
    ----------
    tumour_clusters, normal_clusters : list of int, or None
        Numbers, as ``clusters.csv`` has them.
    tumour_cells, normal_cells : bool (n,), or None
        Cells in regions that were drawn.
    origin
        One of `ORIGINS`.
    taxonomy
        Classes; the visual ones when None.
    """

    tumour_clusters: list[int] | None = None
    tumour_cells: Bools | None = None
    normal_clusters: list[int] | None = None
    normal_cells: Bools | None = None
    origin: str = "epithelial"
    taxonomy: Taxonomy | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises
        ------
        UsageError
            For an origin that is none, and a cluster that is named normal and a tumour.
        """
        if self.origin not in ORIGINS:
            raise UsageError(f"expected a tumour of {', '.join(ORIGINS)} origin, found {self.origin!r}")
        both = sorted(set(self.tumour_clusters or ()) & set(self.normal_clusters or ()))
        if both:
            raise UsageError(f"the cluster {both[0]} is named as the tumour and as normal; leave out one of them")
        if self.decides and self.tumour_class is None:
            raise UsageError(
                "the taxonomy has no class for a tumour; add [classes.Neoplastic], or a class whose parent it is"
            )

    @property
    def decides(self) -> bool:
        """Whether somebody said where the tumour is, so that evidence is recorded and does not decide."""
        return self.tumour_clusters is not None or self.tumour_cells is not None

    @property
    def by(self) -> str:
        """Who decides."""
        if self.tumour_clusters is not None:
            both = " in the region that was drawn" if self.tumour_cells is not None else ""
            return f"the clusters that were named{both}"
        return "the region that was drawn" if self.tumour_cells is not None else "evidence"

    @property
    def tumour_class(self) -> str | None:
        """The class of a tumour: Neoplastic, or the first class of the taxonomy that is part of it; None without."""
        if self.taxonomy is None:
            return NEOPLASTIC
        return next((n for n, visual in self.taxonomy.to_visual.items() if visual == NEOPLASTIC), None)

    def from_origin(self, classes: Objects, fine: Objects | None = None) -> Bools:
        """Which of some classes, with their fine types, a tumour may come from; bool (n,)."""
        visual, types = ORIGINS[self.origin]
        names = [visual] if self.taxonomy is None else [n for n, v in self.taxonomy.to_visual.items() if v == visual]
        found = np.isin(classes.astype(str), names)
        if types and fine is not None:
            keys = {type_key(t) for t in types}
            found &= np.array([f is not None and type_key(f) in keys for f in fine.tolist()], bool)
        return found

    def check(self, clusters: int) -> None:
        """Refuse clusters that there are not.

        Raises
        ------
        UsageError
            With the numbers that there are.
        """
        for number in (*(self.tumour_clusters or ()), *(self.normal_clusters or ())):
            if not 0 <= number < clusters:
                raise UsageError(
                    f"there is no cluster {number}; clusters are 0 to {clusters - 1} (clusters.csv lists them)"
                )

    def tumour(self, labels: Ints, classes: Objects, fine: Objects, found: list[int]) -> Bools:
        """Which cells are the tumour; bool (n,).

        Parameters
        ----------
        labels : int64 (n,)
            Cluster of each cell.
        classes, fine : object (n,)
            Class and fine type of each cell.
        found
            Clusters that evidence speaks for.
        """
        if self.tumour_clusters is not None:
            self.check(int(labels.max(initial=-1)) + 1)
            result = np.isin(labels, self.tumour_clusters) & (classes != UNKNOWN)
            return result if self.tumour_cells is None else result & self.tumour_cells
        if self.tumour_cells is not None:
            return self.tumour_cells & self.from_origin(classes, fine)
        result = np.isin(labels, found) & self.from_origin(classes, fine)
        return result if self.normal_cells is None else result & ~self.normal_cells

    def decide(self, labels: Ints, classes: Objects, fine: Objects, rows: list[dict[str, Any]]) -> Objects:
        """Classes and the table of clusters after what somebody said, where a method has no evidence of its own."""
        named = self.tumour_class
        if not self.decides or named is None:
            return classes
        changed = self.tumour(labels, classes, fine, [])
        for number in self.tumour_clusters or ():
            rows[number]["why"] += f"; {self.by} decide"
            if self.tumour_cells is None:
                rows[number]["decision"] = named
        result = np.where(changed, named, classes)
        for row in rows:
            names, numbers = np.unique(result[labels == row["cluster"]].astype(str), return_counts=True)
            row["classes"] = dict(zip(names.tolist(), numbers.tolist(), strict=True))
        return result

    def normal_profile(
        self, profiles: NDArray[np.float64], weights: NDArray[np.float64], counts: Any, classes: Objects, fine: Objects
    ) -> tuple[NDArray[np.float64] | None, str]:
        """Share of each gene in the epithelium (or other origin) that is named as normal, and what it is.

        Parameters
        ----------
        profiles, weights : float64 (k, g), (k,)
            Of the clusters.
        counts
            scipy CSR (n, g).
        classes, fine : object (n,)
            Of the cells.

        Raises
        ------
        InputError
            When a region holds fewer than `FEWEST_NORMAL` cells of the origin.
        """
        if self.normal_clusters:
            of = np.array(sorted(set(self.normal_clusters)), np.int64)
            said = f"the clusters named as normal ({', '.join(map(str, of.tolist()))})"
            return weights[of] @ profiles[of] / weights[of].sum(), said
        if self.normal_cells is None:
            return None, ""
        chosen = self.normal_cells & self.from_origin(classes, fine)
        if chosen.sum() < FEWEST_NORMAL:
            raise InputError(
                f"the normal region holds {int(chosen.sum())} cells of {self.origin} origin, and {FEWEST_NORMAL} are "
                "needed to hold a tumour against; draw a larger one"
            )
        held = np.asarray(counts[np.flatnonzero(chosen)].sum(axis=0), np.float64).ravel()
        return held / max(held.sum(), 1.0), f"the normal region that was drawn ({int(chosen.sum()):,} cells)"

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        drawn = {
            name: None if cells is None else int(cells.sum())
            for name, cells in (("tumour_cells", self.tumour_cells), ("normal_cells", self.normal_cells))
        }
        return {
            "origin": self.origin,
            "tumour_clusters": self.tumour_clusters,
            "normal_clusters": self.normal_clusters,
            **drawn,
        }
