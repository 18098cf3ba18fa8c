"""Made-up slides on the real panels of 10x, with what typing does not assume.

Every cell type that the panel annotates with three genes or more is a type of the slide, its class that of the
explicit table of fine types. Some annotated genes are silent in their type, some speak in others of the same class
(more of those that several types share), a few softly in another class; counts scatter beyond Poisson's, gene by
gene; a part of every cell is ambient RNA; counts drop out; cells differ in depth, types too; some cells are two, as
where a segmentation joins neighbours; some types are rare. Types without a class (neurons, erythroid cells) have the
truth Unknown.
"""

import csv
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from stqp.celltyping.fine_types import NONE, SHARED, class_of_fine_type, type_key
from stqp.celltyping.gene_names import to_mouse
from stqp.celltyping.neoplastic import NEOPLASTIC
from stqp.taxonomy import UNKNOWN

COLUMNS = ("Annotation", "Cell types", "cell_type")
FEWEST = 3  # genes of a type that becomes one of the slide
MOST_TYPES = 16
RARE = 0.005
AMBIENT, DOUBLETS, DROPOUT = 0.08, 0.05, 0.15


def panel_types(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Genes of a panel, and the genes of every type that it annotates."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    column = next(c for c in COLUMNS if c in rows[0])
    types: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for row in rows:
        for name in filter(None, (t.strip() for t in (row[column] or "").split(";"))):
            types.setdefault(names.setdefault(type_key(name), name), []).append(row["gene"])
    return [r["gene"] for r in rows], types


def panel_slide(path: Path, seed: int = 0, cells: int = 4_000, depth: float = 90.0, mouse: bool = False) -> Any:
    """AnnData of counts; ``obs`` has ``truth`` (class or Unknown), ``fine`` and ``doublet``; places in ``obsm``."""
    rng = np.random.default_rng(seed)
    genes, types = panel_types(path)
    place = {g: i for i, g in enumerate(genes)}
    classes = {t: class_of_fine_type(t) for t in types}
    fit = [t for t, of in types.items() if len(of) >= FEWEST and classes[t] not in (SHARED, None)]
    chosen = sorted(rng.choice(fit, min(MOST_TYPES, len(fit)), replace=False).tolist())
    truth = np.array([UNKNOWN if classes[t] == NONE else classes[t] for t in chosen], object)
    lineage: dict[str | None, Counter[str]] = defaultdict(Counter)
    for name, of_type in types.items():
        lineage[classes[name]].update(of_type)
    level = rng.lognormal(0.0, 0.8, len(genes))  # genes differ in how much of them is seen
    profiles = np.empty((len(chosen), len(genes)))
    for k, name in enumerate(chosen):
        here = 0.03 * rng.lognormal(0.0, 1.0, len(genes))
        for other in types:
            same = classes[other] == classes[name]
            chance, loud = (0.8, 1.0) if other == name else (0.08, 0.5) if same else (0.01, 0.2)
            of = np.array([place[g] for g in types[other]])
            on = of[rng.random(len(of)) < chance]
            here[on] += loud * rng.lognormal(0.0, 0.6, len(on))
        common = [g for g, n in lineage[classes[name]].items() if n >= 2 and rng.random() < 0.3]
        here[[place[g] for g in common]] += 0.5 * rng.lognormal(0.0, 0.6, len(common))
        profiles[k] = here * level / (here * level).sum()
    share = rng.dirichlet(np.full(len(chosen), 1.5))
    rare = rng.choice(len(chosen), max(1, len(chosen) // 6), replace=False)
    share[rare] = RARE
    others = np.setdiff1d(np.arange(len(chosen)), rare)
    share[others] *= (1 - RARE * len(rare)) / share[others].sum()
    fine = rng.choice(len(chosen), cells, p=share)
    spatial = _places(rng, fine, len(chosen))
    size = rng.lognormal(0.0, 0.3, len(chosen))[fine] * rng.lognormal(0.0, 0.55, cells) * depth
    mixed = profiles[fine]
    double = rng.random(cells) < DOUBLETS
    partner = _neighbour(spatial)
    part = np.where(double, rng.uniform(0.2, 0.6, cells), 0.0)[:, None]
    mixed = (1 - part) * mixed + part * profiles[fine[partner]]
    mixed = (1 - AMBIENT) * mixed + AMBIENT * (share @ profiles)
    scatter = rng.uniform(0.3, 1.0, len(genes))  # variance / mean^2 beyond Poisson's
    mean = mixed * size[:, None] * rng.gamma(1 / scatter, scatter, mixed.shape)
    counts = rng.poisson(mean) * (rng.random(mixed.shape) > DROPOUT)
    names = [to_mouse(g)[0] if mouse and to_mouse(g) else g for g in genes]
    obs = pd.DataFrame(
        {
            "truth": truth[fine],
            "fine": np.array(chosen, object)[fine],
            "doublet": double & (truth[fine] != truth[fine[partner]]),
        },
        index=[f"c{i}" for i in range(cells)],
    )
    made = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names))
    made.var_names_make_unique()
    made.obsm["spatial"] = spatial
    return made


def _places(rng: np.random.Generator, fine: Any, types: int) -> Any:
    """Types lie in patches, a third of their cells anywhere."""
    centres = rng.uniform(0, 2_000, (types * 4, 2))
    places = centres[fine * 4 + rng.integers(0, 4, len(fine))] + rng.normal(0, 120, (len(fine), 2))
    anywhere = rng.random(len(fine)) < 1 / 3
    places[anywhere] = rng.uniform(0, 2_000, (int(anywhere.sum()), 2))
    return places


def _neighbour(spatial: Any) -> Any:
    from scipy.spatial import cKDTree

    return cKDTree(spatial).query(spatial, 2)[1][:, 1]


def scores(truth: Any, found: Any, doublet: Any = None) -> dict[str, float]:
    """What came out, over the classes that the slide has.

    Macro-F1 where Unknown is a miss; the share of typable cells that got a class, and the share of these that got
    the right one; the share of Unknown cells that have no class or are doublets of two classes. Neoplastic counts as
    the epithelium that it comes from: some panels annotate types of tumours, which the truth does not know.
    """
    truth, found = np.asarray(truth, object), np.asarray(found, object)
    found = np.where(found == NEOPLASTIC, "Epithelial", found)
    of = truth != UNKNOWN
    each = []
    for name in sorted(set(truth[of].tolist())):
        both = (truth == name) & (found == name)
        each.append(2 * both.sum() / max(1, (truth == name).sum() + (found == name).sum()))
    typed, unknown = found != UNKNOWN, found == UNKNOWN
    fair = ~of | (np.zeros(len(of), bool) if doublet is None else np.asarray(doublet, bool))
    return {
        "macro_f1": float(np.mean(each)),
        "typed": float(typed[of].mean()),
        "right": float((found == truth)[of & typed].mean()) if (of & typed).any() else float("nan"),
        "unknown_precision": float(fair[unknown].mean()) if unknown.any() else float("nan"),
        "unknown": float(unknown.mean()),
    }
