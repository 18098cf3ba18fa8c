"""Made-up transcript counts: fine types with marker genes, negative binomial, sparse, with controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# fine type -> (visual class, share within the class, markers)
FINE_TYPES: dict[str, tuple[str, float, tuple[str, ...]]] = {
    "tumor": ("Neoplastic", 0.8, ("EPCAM", "KRT8", "KRT18", "ERBB2", "MUC1", "CCND1", "CEACAM6", "TACSTD2")),
    "cycling tumor": (
        "Neoplastic",
        0.2,
        ("EPCAM", "KRT8", "KRT18", "MKI67", "TOP2A", "CENPF", "PCLAF", "STMN1"),
    ),
    "T cell": (
        "Inflammatory",
        0.45,
        ("CD3D", "CD3E", "CD2", "TRAC", "IL7R", "CCL5", "CD8A", "GZMK", "PTPRC"),
    ),
    "B cell": ("Inflammatory", 0.3, ("MS4A1", "CD79A", "CD79B", "CD19", "BANK1", "TCL1A", "PTPRC")),
    "macrophage": (
        "Inflammatory",
        0.25,
        ("CD68", "CD163", "CD14", "C1QA", "C1QC", "FCGR3A", "MRC1", "PTPRC"),
    ),
    "fibroblast": ("Connective", 0.6, ("COL1A1", "COL1A2", "DCN", "LUM", "PDGFRA", "FBLN1", "POSTN")),
    "endothelial": ("Connective", 0.2, ("PECAM1", "VWF", "CLDN5", "CDH5", "KDR", "PLVAP", "EGFL7")),
    "smooth muscle": ("Connective", 0.2, ("ACTA2", "MYH11", "TAGLN", "DES", "CNN1", "MYLK")),
    "glandular": (
        "Epithelial",
        1.0,
        ("EPCAM", "KRT8", "KRT19", "ELF3", "AGR2", "PIGR", "TFF3", "LTF", "SLPI"),
    ),
    "dying": ("Dead", 1.0, ("HSPA1A", "DDIT3", "BAX", "FAS", "BBC3", "GADD45B")),
}
HOUSEKEEPING = (
    "ACTB", "B2M", "GAPDH", "RPLP0", "EEF1A1", "TPT1", "FTL", "HSP90AB1", "PPIA", "UBC", "YWHAZ", "TBP",
    "VIM", "CD44", "LGALS1", "S100A6", "ANXA1", "TIMP1", "JUN", "FOS", "MYC", "STAT1", "HIF1A", "VEGFA",
)  # fmt: skip
CONTROLS = {
    "Negative Control Probe": [f"NegControlProbe_{i:05d}" for i in range(8)],
    "Negative Control Codeword": [f"NegControlCodeword_{i:04d}" for i in range(8)],
    "Unassigned Codeword": [f"UnassignedCodeword_{i:04d}" for i in range(12)],
}
LATER_CONTROLS = {
    "Deprecated Codeword": [f"DeprecatedCodeword_{i:04d}" for i in range(3)],
    "Genomic Control": [f"Intergenic_Region_{i:04d}" for i in range(5)],
}
PROTEINS = ("CD3E", "CD8A", "CD20", "PanCK", "Vimentin")
PROTEIN_SCALE = 100.0  # intensities are written as whole hundredths
UNASSIGNED = "unassigned"  # the label of cells that a clustering could not name
_SIZE = {"Neoplastic": 190, "Inflammatory": 80, "Connective": 95, "Epithelial": 150, "Dead": 22}


@dataclass(frozen=True)
class Counts:
    """Counts of each cell: `matrix` is a scipy CSR (cells, features) of int32.

    Values of proteins are intensities times `protein_scale`, which is None without proteins.
    """

    matrix: Any
    names: list[str]
    ids: list[str]
    feature_types: list[str]
    protein_scale: float | None = None


def choose_fine_types(rng: np.random.Generator, kinds: NDArray[np.str_]) -> NDArray[np.str_]:
    """Draw a fine type for each cell of the given visual classes."""
    fine = np.full(len(kinds), "", dtype="<U16")
    for kind in np.unique(kinds):
        names = [name for name, (visual, *_) in FINE_TYPES.items() if visual == kind]
        share = [FINE_TYPES[name][1] for name in names]
        of = kinds == kind
        fine[of] = rng.choice(names, int(of.sum()), p=share)
    return fine


def make_counts(
    rng: np.random.Generator,
    fine: NDArray[np.str_],
    size: NDArray[np.float64],
    controls: tuple[str, ...] = tuple(CONTROLS),
    proteins: bool = False,
) -> Counts:
    """Draw counts.

    Parameters
    ----------
    rng
        Source of the randomness.
    fine : str (n,)
        Fine type of each cell; an empty one makes a mixture of all.
    size : float (n,)
        Relative size of each cell; large ones hold more transcripts.
    controls
        Types of control features.
    proteins
        Whether proteins are measured, too.
    """
    from scipy import sparse

    markers = [gene for *_, genes in FINE_TYPES.values() for gene in genes]
    genes = list(dict.fromkeys([*markers, *HOUSEKEEPING]))
    column = {gene: i for i, gene in enumerate(genes)}
    kinds = [*FINE_TYPES, ""]
    profile = np.zeros((len(kinds), len(genes)))
    base = rng.gamma(1.2, 0.006, len(genes))
    base[[column[g] for g in HOUSEKEEPING]] = rng.gamma(2.0, 0.9, len(HOUSEKEEPING))
    for i, kind in enumerate(kinds[:-1]):
        profile[i] = base
        strong = [column[g] for g in FINE_TYPES[kind][2]]
        profile[i, strong] += rng.gamma(4.0, 1.1, len(strong))
    profile[-1] = profile[:-1].mean(axis=0)
    profile /= profile.sum(axis=1, keepdims=True)
    row = np.array([kinds.index(str(f)) for f in fine], dtype=np.int64)
    visual = [FINE_TYPES[k][0] if k else "Connective" for k in kinds]
    mean = np.array([_SIZE[v] for v in visual])[row] * size * rng.gamma(4.0, 0.25, len(fine))
    expected = profile[row] * mean[:, None]
    blocks = [rng.poisson(rng.gamma(1.5, 1 / 1.5, expected.shape) * expected).astype(np.int32)]
    names, ids = [*genes], [f"ENSG{99000000000 + i:011d}" for i in range(len(genes))]  # no real gene's number
    types = ["Gene Expression"] * len(genes)
    lists = {**CONTROLS, "Blank Codeword": CONTROLS["Unassigned Codeword"], **LATER_CONTROLS}
    for feature_type in controls:
        features = lists[feature_type]
        blocks.append(rng.poisson(0.004, (len(fine), len(features))).astype(np.int32))
        names += features
        ids += features
        types += [feature_type] * len(features)
    if proteins:
        blocks.append((rng.gamma(2.0, 6.0, (len(fine), len(PROTEINS))) * PROTEIN_SCALE).astype(np.int32))
        names += PROTEINS
        ids += PROTEINS
        types += ["Protein Expression"] * len(PROTEINS)
    matrix = sparse.csr_matrix(np.hstack(blocks))
    return Counts(matrix, names, ids, types, PROTEIN_SCALE if proteins else None)
