"""What typing found: columns by cell, and a table of clusters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.taxonomy import UNKNOWN, ordered

if TYPE_CHECKING:
    from stqp.celltyping.clustering import GeneStatistics

TYPING_FILE, CLUSTERS_FILE, REPORT_FILE = "typing.json", "clusters.csv", "typing.html"
TOP_GENES = 20


@dataclass
class Typing:
    """Types of ``n`` cells.

    Attributes
    ----------
    cell_ids : object (n,)
        Text.
    classes : object (n,)
        Class, or Unknown.
    confidence : float64 (n,)
        Of the class, from 0 to 1; 0 for Unknown.
    cluster : int64 (n,)
        -1 for cells that are in none.
    fine : object (n,)
        Fine type of the cluster, None where there is none.
    clusters : list of dict
        For each cluster: ``cluster``, ``cells``, ``decision``, ``why``, ``fine_type``, ``fine_types``, ``votes``,
        ``margin``, ``classes`` (of its cells) and ``top_genes`` with their statistics; of method stqp also
        ``votes_without_class`` (lineages that no class stands for) and ``tumour`` (the evidence, in words).
    summary : dict
        Method, parameters, reasons for Unknown, notes, reliability, evidence for a tumour.
    """

    cell_ids: NDArray[np.object_]
    classes: NDArray[np.object_]
    confidence: NDArray[np.float64]
    cluster: NDArray[np.int64]
    fine: NDArray[np.object_]
    clusters: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def class_counts(self) -> dict[str, int]:
        """Cells of each class, in the taxonomy's order, Unknown last."""
        counts = Counter(self.classes.tolist())
        return {name: counts[name] for name in [*ordered(counts), UNKNOWN] if name in counts}

    def set_unknown(self, cells: NDArray[np.bool_], reason: str) -> None:
        """Make some cells Unknown, and count them under a reason."""
        if not cells.any():
            return
        self.classes, self.fine = np.where(cells, UNKNOWN, self.classes), self.fine.copy()
        self.fine[cells] = None
        self.confidence = np.where(cells, 0.0, self.confidence)
        reasons = self.summary.setdefault("unknown", {})
        reasons[reason] = reasons.get(reason, 0) + int(cells.sum())
        for row in self.clusters:
            row["classes"] = dict(Counter(self.classes[self.cluster == row["cluster"]].tolist()))

    def to_json(self) -> dict[str, Any]:
        """What `typing.json` says."""
        return {**self.summary, "classes": self.class_counts(), "clusters": self.clusters}

    def write(self, json_file: Path, csv_file: Path) -> None:
        """Write the record, and the clusters as a table, each whole or not at all."""
        files.write_json(json_file, self.to_json())
        files.write_bytes(csv_file, self.clusters_csv().encode())

    def clusters_csv(self) -> str:
        """The clusters, one row each."""
        import csv
        import io

        names = list(dict.fromkeys(name for c in self.clusters for name in c.get("votes", {})))

        def listed(c: dict[str, Any], key: str) -> str:
            return "; ".join(f"{name} {weight:.3g}" for name, weight in c.get(key, {}).items())

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = ["cluster", "cells", "decision", "why", "tumour", "fine_type", "fine_types", "margin"]
        writer.writerow([*columns, *(f"votes {n}" for n in names), "votes_without_class", "top_genes"])
        for c in self.clusters:
            votes = [f"{c['votes'][n]:.5g}" if n in c.get("votes", {}) else "" for n in names]
            margin = c.get("margin")
            top = "; ".join(
                f"{g['gene']} {g['log2_fold']:+.2f} p {g['p_adjusted']:.1g} {g['inside']:.0%}/{g['outside']:.0%}"
                for g in c.get("top_genes", [])[:10]
            )
            said = [c["cluster"], c["cells"], c["decision"], c["why"], c.get("tumour", ""), c.get("fine_type") or ""]
            numbers = [listed(c, "fine_types"), "" if margin is None else f"{margin:.3f}", *votes]
            writer.writerow([*said, *numbers, listed(c, "votes_without_class"), top])
        return text.getvalue()


def top_genes(statistics: GeneStatistics, genes: list[str], cluster: int) -> list[dict[str, Any]]:
    """The most raised genes of a cluster, with their statistics."""
    return [
        {
            "gene": genes[g],
            "log2_fold": float(statistics.log_fold[cluster, g]),
            "p_adjusted": float(statistics.p_adjusted[cluster, g]),
            "inside": float(statistics.inside[cluster, g]),
            "outside": float(statistics.outside[cluster, g]),
        }
        for g in statistics.order(cluster)[:TOP_GENES].tolist()
    ]
