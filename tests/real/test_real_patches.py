"""Patches of real tissue: CoNSeP's tiles as a manual set, and as a Xenium run."""

import numpy as np
import pandas as pd

from stqp.importing.xenium import import_xenium
from stqp.patches.cut import cut_patches
from stqp.patches.importing import import_patches
from stqp.patches.options import CutOptions
from stqp.patches.store import TEST, TRAINING, PatchFile
from stqp.record import RunRecord

HELD = ("train_3", "train_8", "train_12", "train_20", "train_24")
NAMES = {1: "Other", 2: "Inflammatory", 3: "Epithelial", 4: "Connective"}


def test_consep_tiles_as_a_manual_set(real_data, tmp_path):
    options = CutOptions(size=512, split="slide", validation=0.0, holdout=[f"name={n}" for n in HELD])
    record = RunRecord("t", {})
    folder = real_data / "consep_tiles"
    import_patches(folder, "image+map", tmp_path / "p.h5", record, options, image_mpp=0.25, type_names=NAMES, workers=1)
    patches = PatchFile(tmp_path / "p.h5")
    assert len(patches) == 27 * 4 and record.counts["images"] == 27
    by = {s["entry"]: {*patches.side[patches.source == i].tolist()} for i, s in enumerate(patches.sources)}
    assert all(sides == {TEST if name in HELD else TRAINING} for name, sides in by.items())
    for name in ("train_1", "train_8"):
        truth = np.load(folder / f"{name}.npz")
        kinds = np.zeros(truth["inst"].max() + 1, int)
        kinds[truth["ids"]] = truth["types"]
        classes = np.array([0, *[patches.classes.index(NAMES[i]) + 1 for i in NAMES]])
        number = next(i for i, s in enumerate(patches.sources) if s["entry"] == name)
        for row in np.flatnonzero(patches.source == number):
            x, y = patches.origin[row].astype(int)
            at = truth["inst"][y : y + 512, x : x + 512]
            patch = patches.read(int(row))
            pairs = np.unique(np.column_stack([at.ravel(), patch["instances"].ravel()]), axis=0)
            assert len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))
            assert (classes[kinds[at]] == patch["types"]).all() and patch["valid"].all()


def test_patches_of_a_xenium_run_show_its_nuclei(real_data, tmp_path):
    data = real_data / "consep_xenium"
    labels = pd.read_parquet(data / "truth" / "nuclei.parquet")[["cell_id", "class"]].drop_duplicates()
    labels.columns = ["cell_id", "label"]
    labels.to_csv(tmp_path / "labels.csv", index=False)
    he = data / "he" / "region_he_image.ome.tif"
    alignment = data / "he" / "region_he_imagealignment.csv"
    import_xenium(data / "outs", he, alignment, tmp_path / "project", labels=tmp_path / "labels.csv")
    options = CutOptions(size=256, block=250.0, validation=0.2, test=0.1, min_stain=0.0)
    record = RunRecord("t", {})
    cut_patches([tmp_path / "project"], tmp_path / "p.h5", record, options)
    patches = PatchFile(tmp_path / "p.h5")
    truth = np.load(data / "truth" / "he_instances.npz")["inst"]
    agree, nuclei = 0, 0
    for row in range(0, len(patches), 7):
        x, y = patches.origin[row].astype(int)
        patch = patches.read(row)
        at = np.zeros((256, 256), bool)
        part = truth[y : y + 256, x : x + 256] > 0
        at[: part.shape[0], : part.shape[1]] = part
        known = patch["valid"] > 0
        agree += ((patch["instances"] > 0) & at)[known].sum() / max(1, ((patch["instances"] > 0) | at)[known].sum())
        nuclei += 1
    # outlines of a bundle are simplified; what the cut loses would be far more
    assert agree / nuclei > 0.85
    lost = sum(number for reasons in record.results["labels"].values() for r, number in reasons.items() if "stain" in r)
    total = sum(number for reasons in record.results["labels"].values() for number in reasons.values())
    assert total == 15546 and 0 < lost < 0.05 * total
