"""Slides with a planted truth: which groups look alike is known."""

from pathlib import Path

import cv2
import numpy as np

from stqp.separability.groups import SlideNuclei
from stqp.synthetic.drawing import draw
from stqp.synthetic.layout import make_nuclei, make_tissue

MPP = 0.25
TYPES = {"Inflammatory": ("T cells", "B cells"), "Connective": ("Fibroblasts",), "Neoplastic": ("Neoplastic",)}
TYPES |= {"Epithelial": ("Enterocytes",), "Dead": ("Dying",)}


def planted(folder: Path, seed: int, size=(1500, 1400), fade: float = 0.0) -> SlideNuclei:
    """A slide whose Inflammatory nuclei are of two types that look the same; `fade` makes the stain change along x.

    With a fade, the two types lie along it, too: the darker the stain, the more B cells.
    """
    rng = np.random.default_rng(seed)
    tissue = make_tissue(rng, size[0] * MPP, size[1] * MPP)
    nuclei = make_nuclei(rng, tissue)
    image, _ = draw(rng, tissue, nuclei, size, MPP)
    if fade:
        ramp = np.exp(np.linspace(-fade, fade, size[0]))[None, :, None]
        image = np.clip(255 * (np.maximum(image, 1) / 255) ** ramp, 0, 255).astype(np.uint8)
    path = folder / f"slide{seed}.png"
    cv2.imwrite(str(path), image[..., ::-1])
    kind = nuclei.kind.astype(object)
    fine = np.array([rng.choice(TYPES[k]) for k in kind.tolist()], object)
    if fade:
        of = np.flatnonzero(kind == "Inflammatory")
        share = nuclei.center[of, 0] / (size[0] * MPP)
        fine[of] = np.where(rng.random(len(of)) < 0.1 + 0.8 * share, "B cells", "T cells")
    ids = np.array([f"nucleus {i}" for i in range(len(kind))], object)
    cells = np.array([f"cell {i}" for i in range(len(kind))], object)
    return SlideNuclei(path.name, path, MPP, nuclei.polygons.scale(1 / MPP), ids, cells, fine, fine.copy(), kind, None)
