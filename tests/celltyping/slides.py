"""Made-up slides with a known truth: cells of fine types on a panel, with or without a tumour."""

from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

EPITHELIUM = ("EPCAM", "KRT8", "KRT18", "CDH1")
TYPES = {  # fine type -> class, markers
    "gland 1": ("Epithelial", (*EPITHELIUM, "AGR2", "PIGR", "SLPI")),
    "gland 2": ("Epithelial", (*EPITHELIUM, "KRT19", "ELF3", "TFF3")),
    "gland 3": ("Epithelial", (*EPITHELIUM, "MUC1", "LTF", "KRT7")),
    "gland 4": ("Epithelial", (*EPITHELIUM, "CLCA1", "SPDEF", "MUC2")),
    "gland 5": ("Epithelial", (*EPITHELIUM, "SLC26A3", "CA4", "AQP8")),
    "tumour 1": ("Neoplastic", (*EPITHELIUM, "AGR2", "KRT19")),
    "tumour 2": ("Neoplastic", (*EPITHELIUM, "CEACAM6", "KRT7")),
    "tumour 3": ("Neoplastic", (*EPITHELIUM, "TACSTD2", "ELF3")),
    "T cell": ("Inflammatory", ("PTPRC", "CD3D", "CD3E", "CD2", "TRAC", "IL7R")),
    "B cell": ("Inflammatory", ("PTPRC", "MS4A1", "CD79A", "CD79B", "CD19", "BANK1")),
    "macrophage": ("Inflammatory", ("PTPRC", "CD68", "CD163", "CD14", "C1QA", "MRC1")),
    "fibroblast": ("Connective", ("COL1A1", "COL1A2", "DCN", "LUM", "PDGFRA")),
    "endothelial": ("Connective", ("PECAM1", "VWF", "CLDN5", "CDH5", "KDR")),
}
TUMOUR = ("CCND1", "MDM2", "MYC", "FGFR4", "HMGA1", "CDK4", "CCNE1", "EZH2", "TERT", "SOX4")
CYCLING = ("MKI67", "TOP2A", "CENPF", "UBE2C")
SILENT = tuple(f"SILENT{i}" for i in range(60))


def slide(seed: int = 0, tumour: bool = True, per_type: int = 150, depth: float = 120.0) -> Any:
    """AnnData of counts with the truth in ``obs``: class and fine type; places in ``obsm``.

    With a tumour, three of the eight epithelial types have raised tumour genes; without, they have the same
    markers and no more.
    """
    rng = np.random.default_rng(seed)
    genes = list(dict.fromkeys([*(g for _, m in TYPES.values() for g in m), *TUMOUR, *CYCLING, *SILENT]))
    place = {g: i for i, g in enumerate(genes)}
    base = rng.gamma(0.8, 0.25, len(genes))
    profiles = []
    for name, (_, markers) in TYPES.items():
        profile = base * rng.lognormal(0, 0.25, len(genes))  # types differ in genes that mark none
        profile[[place[g] for g in markers]] += rng.gamma(4.0, 1.0, len(markers))
        if tumour and name.startswith("tumour"):
            profile[[place[g] for g in TUMOUR]] += rng.gamma(4.0, 0.4, len(TUMOUR))
            profile[[place[g] for g in CYCLING]] += 0.5
        profiles.append(profile / profile.sum())
    fine = np.repeat(np.arange(len(TYPES)), per_type)
    size = depth * rng.gamma(4.0, 0.25, len(fine))
    counts = rng.poisson(rng.gamma(4.0, 0.25, (len(fine), len(genes))) * np.array(profiles)[fine] * size[:, None])
    names = np.array([*TYPES], object)[fine]
    truth = np.array([TYPES[n][0] for n in names], object)
    if not tumour:
        truth[truth == "Neoplastic"] = "Epithelial"
    obs = pd.DataFrame({"truth": truth, "fine": names}, index=[f"c{i}" for i in range(len(fine))])
    made = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes))
    # types lie in patches, as tissue does
    centres = rng.uniform(0, 4_000, (len(TYPES) * 4, 2))
    at = fine * 4 + rng.integers(0, 4, len(fine))
    made.obsm["spatial"] = centres[at] + rng.normal(0, 150, (len(fine), 2))
    return made[rng.permutation(made.n_obs)].copy()


def macro_f1(truth: Any, found: Any, classes: tuple[str, ...] = ("Epithelial", "Inflammatory", "Connective")) -> float:
    """Macro-F1 over the cells whose truth is one of the classes; Unknown is a miss."""
    truth, found = np.asarray(truth, object), np.asarray(found, object)
    of = np.isin(truth.astype(str), classes)
    scores = []
    for name in classes:
        both = (truth[of] == name) & (found[of] == name)
        scores.append(2 * both.sum() / max(1, (truth[of] == name).sum() + (found[of] == name).sum()))
    return float(np.mean(scores))
