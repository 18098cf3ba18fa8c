"""Sets of other programs: read, written, read again; and what they may not be."""

import csv
import errno
import json

import numpy as np
import pytest
import tifffile
from patches.projects import make_project
from PIL import Image
from scipy.io import savemat

from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.patches.cut import cut_patches
from stqp.patches.importing import import_patches
from stqp.patches.layouts.coco import run_lengths
from stqp.patches.layouts.export import LAYOUTS, export_patches
from stqp.patches.options import CutOptions
from stqp.patches.store import SIDES, TEST, TRAINING, UNKNOWN_TYPE, VALIDATION, PatchFile
from stqp.polygons import Polygons
from stqp.record import RunRecord

NAMES = {1: "a", 2: "b"}


@pytest.fixture(scope="module")
def cut_file(tmp_path_factory):
    """Patches of all three sides, nuclei of three classes and of none, some area masked."""
    folder = tmp_path_factory.mktemp("layouts")
    classes = ("Neoplastic", "Inflammatory", "Dead", "Unknown")
    project = make_project(folder / "project", ((500, 400),), [{"organ": "colon"}], classes=classes)
    options = CutOptions(size=64, block=24.0, guard=8.0, validation=0.2, test=0.2)
    cut_patches([project], folder / "p.h5", RunRecord("t", {}), options, workers=1)
    return folder / "p.h5"


def exported(file, layout, folder):
    record = RunRecord("t", {})
    export_patches(file, layout, folder, record)
    with (folder / "patches.csv").open() as lines:
        return record, [*csv.DictReader(lines)]


def rows_of(patches):
    """Patches by what they show."""
    return {patches.read(i)["images"].tobytes(): i for i in range(len(patches))}


def same_maps(one, other):
    """Whether two maps have the same nuclei, whatever their numbers."""
    pairs = np.unique(np.column_stack([one.ravel(), other.ravel()]), axis=0)
    return ((one > 0) == (other > 0)).all() and len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))


@pytest.mark.parametrize(("layout", "key", "sides"), [
    ("pannuke", "fold", "123"), ("hovernet", "part", SIDES), ("consep", "part", [s.capitalize() for s in SIDES]),
])  # fmt: skip
def test_what_is_exported_is_imported_again(cut_file, tmp_path, layout, key, sides):
    record, index = exported(cut_file, layout, tmp_path / "set")
    first = PatchFile(cut_file)
    assert len(index) == len(first) and record.counts["patches, training"] == (first.side == TRAINING).sum()
    assert sum(record.skipped.values()) == first.counts[:, 0].sum() > 0 and "nothing is known" in record.warnings[0]
    options = CutOptions(size=64, split="slide", validate_on=[f"{key}={sides[1]}"], holdout=[f"{key}={sides[2]}"])
    import_patches(tmp_path / "set", layout, tmp_path / "again.h5", RunRecord("t", {}), options, workers=1)
    second = PatchFile(tmp_path / "again.h5")
    there = rows_of(second)
    names = {name: i + 1 for i, name in enumerate(second.classes)}
    table = np.array([0, *[names[c] for c in first.classes]])
    found = 0
    for row in range(len(first)):
        a = first.read(row)
        found += 1
        b = second.read(there[a["images"].tobytes()])
        known = a["types"] != UNKNOWN_TYPE
        assert first.side[row] == second.side[there[a["images"].tobytes()]]
        if layout == "pannuke":  # which has no place for a nucleus without a class
            assert same_maps(np.where(known, a["instances"], 0), b["instances"])
            assert (table[np.where(known, a["types"], 0)] == b["types"]).all()
        else:
            assert same_maps(a["instances"], b["instances"])
            assert (table[a["types"][known]] == b["types"][known]).all() and (b["types"][~known] == UNKNOWN_TYPE).all()
    assert found == len(second) > 20
    assert (first.counts.sum(axis=1) == 0).any()  # an image without nuclei is in the set as well


def test_pannuke_as_published(cut_file, tmp_path):
    exported(cut_file, "pannuke", tmp_path / "set")
    fold = tmp_path / "set" / "Fold 1"
    images = np.load(fold / "images" / "fold1" / "images.npy", allow_pickle=False)
    masks = np.load(fold / "masks" / "fold1" / "masks.npy", allow_pickle=False)
    tissues = np.load(fold / "images" / "fold1" / "types.npy", allow_pickle=False)
    patches = PatchFile(cut_file)
    n = int((patches.side == TRAINING).sum())
    assert images.shape == (n, 64, 64, 3) and masks.shape == (n, 64, 64, 6) and [*tissues] == ["colon"] * n
    assert patches.classes == ["Neoplastic", "Inflammatory", "Dead"]
    assert masks[..., 3].any() and not masks[..., 2].any() and not masks[..., 4].any()  # Dead is channel 3
    row = patches.read(int(np.flatnonzero(patches.side == TRAINING)[0]))
    assert (masks[0][..., 5] == (row["instances"] == 0)).all()
    # the published arrays are float64
    np.save(fold / "masks" / "fold1" / "masks.npy", masks.astype(np.float64))
    np.save(fold / "images" / "fold1" / "images.npy", images.astype(np.float64))
    options = CutOptions(size=64, split="metadata:fold", validation=0.3)
    import_patches(tmp_path / "set", "pannuke", tmp_path / "again.h5", RunRecord("t", {}), options, workers=1)
    again = PatchFile(tmp_path / "again.h5")
    assert again.classes == ["Neoplastic", "Inflammatory", "Dead"]
    assert {s["metadata"]["tissue"] for s in again.sources} == {"colon"}


def test_classes_that_pannuke_lacks(tmp_path):
    project = make_project(tmp_path / "project", ((300, 300),), classes=("Plasma", "Dead"))
    options = CutOptions(size=64, block=24.0, validation=0.0)
    cut_patches([project], tmp_path / "p.h5", RunRecord("t", {}), options, workers=1)
    record, _ = exported(tmp_path / "p.h5", "pannuke", tmp_path / "set")
    assert any("no class Plasma" in w for w in record.warnings)
    options = CutOptions(size=64, split="slide", validation=0.0)
    import_patches(tmp_path / "set", "pannuke", tmp_path / "q.h5", RunRecord("t", {}), options, workers=1)
    assert PatchFile(tmp_path / "q.h5").classes == ["Dead", "Plasma"]
    (tmp_path / "set" / "classes.json").unlink()
    with pytest.raises(InputError, match="--type 1="):
        import_patches(tmp_path / "set", "pannuke", tmp_path / "r.h5", RunRecord("t", {}), options)


def decode(segmentation, shape):
    """Mask of a segmentation of COCO, slowly."""
    if isinstance(segmentation, list):
        rings = [np.array(part).reshape(-1, 2) for part in segmentation]
        polygons = Polygons.from_rings(np.concatenate(rings), np.cumsum([0, *map(len, rings)]))
        return polygons.rasterize(shape) > 0
    flat, value = [], 0
    for count in segmentation["counts"]:
        flat += [value] * count
        value = 1 - value
    return np.array(flat, bool).reshape(shape, order="F")


def test_coco_says_each_nucleus(cut_file, tmp_path):
    _, index = exported(cut_file, "coco", tmp_path / "set")
    patches = PatchFile(cut_file)
    whole = 0
    for side in SIDES:
        table = json.loads((tmp_path / "set" / "annotations" / f"instances_{side}.json").read_text())
        assert {c["id"]: c["name"] for c in table["categories"]} == dict(enumerate(["Unknown", *patches.classes]))
        assert len({a["id"] for a in table["annotations"]}) == len(table["annotations"])
        for image in table["images"]:
            row = next(i for i, line in enumerate(index) if f"{line['name']}.png" == image["file_name"])
            assert (
                np.asarray(Image.open(tmp_path / "set" / side / image["file_name"])).tobytes()
                == patches.read(row)["images"].tobytes()
            )
            found = np.zeros((64, 64), int)
            patch = patches.read(row)
            for a in (a for a in table["annotations"] if a["image_id"] == image["id"]):
                mask = decode(a["segmentation"], (64, 64))
                assert mask.sum() == a["area"] and not found[mask].any()
                found[mask] = a["id"]
                kinds = np.unique(patch["types"][mask])
                assert len(kinds) == 1 and kinds[0] == (a["category_id"] or UNKNOWN_TYPE)
                ys, xs = np.nonzero(mask)
                assert a["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                whole += isinstance(a["segmentation"], list)
            assert same_maps(found, patch["instances"])
    assert whole > 50


def test_run_lengths():
    rng = np.random.default_rng(0)
    for mask in (np.zeros((4, 3), bool), np.ones((4, 3), bool), *(rng.random((20, 7, 5)) < 0.5)):
        assert (decode(run_lengths(mask), mask.shape) == mask).all()


def test_cellvit_reads_its_folds(cut_file, tmp_path):
    """As CellViT's own code opens a fold."""
    exported(cut_file, "cellvit", tmp_path / "set")
    patches = PatchFile(cut_file)
    for side in (TRAINING, VALIDATION, TEST):
        fold = tmp_path / "set" / f"fold{side}"
        with (fold / "types.csv").open() as lines:
            tissues = {line["img"]: line["type"] for line in csv.DictReader(lines)}
        with (fold / "cell_count.csv").open() as lines:
            cells = {line["Image"]: line for line in csv.DictReader(lines)}
        images = sorted((fold / "images").glob("*.png"), key=lambda p: int(p.stem.split("_")[1]))
        assert len(images) == (patches.side == side).sum() and {*tissues} == {p.name for p in images} == {*cells}
        for path, row in zip(images, np.flatnonzero(patches.side == side), strict=True):
            labels = np.load(fold / "labels" / f"{path.stem}.npy", allow_pickle=True)[()]
            patch = patches.read(int(row))
            assert (labels["inst_map"] == patch["instances"]).all()
            assert (labels["type_map"] == np.where(patch["types"] == UNKNOWN_TYPE, 0, patch["types"])).all()
            assert [int(cells[path.name][c]) for c in patches.classes] == patches.counts[row, 1:].tolist()
    config = (tmp_path / "set" / "dataset_config.yaml").read_text()
    assert config == ('tissue_types:\n  "colon": 0\nnuclei_types:\n  "Background": 0\n  "Neoplastic": 1\n'
                      '  "Inflammatory": 2\n  "Dead": 3\n')  # fmt: skip
    assert f'"colon": {len(patches)}' in (tmp_path / "set" / "weight_config.yaml").read_text()


def tile(seed=0, shape=(80, 96)):
    """An image with a map of 12 nuclei with odd numbers, and a type for each number."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    instances = np.zeros(shape, np.int32)
    ids = rng.permutation(np.arange(3, 60))[:12]
    for k, number in enumerate(ids):
        y, x = 4 + k // 4 * 26, 4 + k % 4 * 24
        instances[y : y + 10 + k % 3, x : x + 12] = number
    kinds = rng.integers(1, 3, 12)
    types = np.zeros(100, np.int64)
    types[ids] = kinds
    return image, instances, types


def save(folder, layout, image, instances, types, stem="tile"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{stem}.png")
    present = np.unique(instances)[1:]
    if layout == "npz ids":
        np.savez(folder / f"{stem}.npz", inst=instances, ids=present, types=types[present])
    elif layout == "npz map":
        np.savez(folder / f"{stem}.npz", inst_map=instances, type_map=types[instances].astype(np.float32))
    elif layout == "mat":
        savemat(folder / f"{stem}.mat", {"inst_map": instances.astype(float), "inst_type": types[present][:, None]})
    elif layout == "mat map":
        savemat(folder / f"{stem}.mat", {"inst_map": instances.astype(float), "type_map": types[instances]})
    elif layout == "mat 7.3":
        import h5py

        with h5py.File(folder / f"{stem}.mat", "w", userblock_size=512) as file:
            file["inst_map"], file["type_map"] = instances.T.astype(float), types[instances].T.astype(float)
        raw = bytearray((folder / f"{stem}.mat").read_bytes())
        raw[:128] = b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM"
        (folder / f"{stem}.mat").write_bytes(raw)
    elif layout == "npy stack":
        np.save(folder / f"{stem}.npy", np.stack([instances, types[instances]], axis=2))
    elif layout == "tif":
        tifffile.imwrite(folder / f"{stem}_inst.tif", instances.astype(np.uint16))
    elif layout == "npy":
        np.save(folder / f"{stem}.npy", instances)


def take(folder, out, source="image+map", workers=1, **more):
    options = CutOptions(**{"size": 96, "split": "slide", "validation": 0.0, **more.pop("options", {})})
    more = {"image_mpp": 0.25, "type_names": NAMES, **more}
    record = RunRecord("t", {})
    import_patches(folder, source, out, record, options, workers=workers, **more)
    return PatchFile(out), record


@pytest.mark.parametrize("layout", ["npz ids", "npz map", "mat", "mat map", "mat 7.3", "npy stack", "tif", "npy"])
def test_images_with_maps_beside_them(tmp_path, layout):
    image, instances, types = tile()
    save(tmp_path / "set", layout, image, instances, types)
    typed = layout not in ("tif", "npy")
    patches, record = take(tmp_path / "set", tmp_path / "p.h5")
    patch = patches.read(0)
    assert len(patches) == 1 and (patch["images"][:80] == image).all() and patch["valid"].sum() == 80 * 96
    assert same_maps(patch["instances"][:80], instances)
    assert patches.classes == (["a", "b"] if typed else ["Nucleus"])
    assert (patch["types"][:80] == (types[instances] if typed else instances > 0)).all()
    assert bool(record.warnings) != typed


def test_folders_images_and_labels(tmp_path):
    for part, seeds in (("Train", (1, 2)), ("Test", (3,))):
        for seed in seeds:
            image, instances, types = tile(seed)
            save(tmp_path / "set" / part / "Labels", "mat map", image, instances, types * 2, f"{part}_{seed}")
            (tmp_path / "set" / part / "Images").mkdir(exist_ok=True)
            name = f"{part}_{seed}.png"
            (tmp_path / "set" / part / "Labels" / name).rename(tmp_path / "set" / part / "Images" / name)
    patches, _ = take(tmp_path / "set", tmp_path / "p.h5", "consep", type_names=None, image_mpp=None,
                      options={"holdout": ["part=Test"]})  # fmt: skip
    assert patches.classes == ["Inflammatory", "Connective"]  # of the four merged types, 2 and 4
    assert sorted((s["entry"], s["metadata"]["part"]) for s in patches.sources) == [
        ("Test_3", "Test"), ("Train_1", "Train"), ("Train_2", "Train")]  # fmt: skip
    assert [patches.sources[patches.source[i]]["entry"] for i in np.flatnonzero(patches.side == TEST)] == ["Test_3"]
    patches, _ = take(tmp_path / "set", tmp_path / "q.h5", "kumar", options={"holdout": ["name=Train_1"]},
                      type_names={2: "x", 4: "Unknown"})  # fmt: skip
    assert patches.classes == ["x"] and (patches.counts[:, 0] > 0).all()
    untyped = tmp_path / "untyped"
    save(untyped, "npy", *tile())
    with pytest.raises(InputError, match="all nuclei are Unknown"):
        take(untyped, tmp_path / "r.h5", untyped_as="Unknown")
    patches, _ = take(untyped, tmp_path / "r.h5", untyped_as="Unknown", options={"classes": ["x", "y"]})
    assert patches.classes == ["x", "y"] and patches.counts.tolist() == [[12, 0, 0]]


def test_other_resolutions_are_resampled(tmp_path):
    image, instances, types = tile()
    image[:] = 200
    image[instances > 0] = 40
    save(tmp_path / "set", "npz ids", image, instances, types)
    for mpp, step in ((0.5, 0.5), (0.125, 2)):
        patches, _ = take(tmp_path / "set", tmp_path / "p.h5", image_mpp=mpp, options={"size": 192 if step < 1 else 48})
        patch = patches.read(0)
        height, width = int(80 / step), int(96 / step)
        assert patch["valid"].sum() == height * width and patch["valid"][:height, :width].all()
        slow = np.array(
            [[instances[int((r + 0.5) * step), int((c + 0.5) * step)] for c in range(width)] for r in range(height)]
        )
        assert same_maps(patch["instances"][:height, :width], slow)
        dark = patch["images"][:height, :width, 0] < 120
        assert ((slow > 0) != dark).mean() < 0.03
    with pytest.raises(InputError, match="--image-mpp"):
        take(tmp_path / "set", tmp_path / "q.h5", image_mpp=None)


def test_tiles_are_cut_in_blocks_and_in_processes(tmp_path):
    for seed in range(6):
        save(tmp_path / "set", "npz ids", *tile(seed, (200, 220)), f"t{seed}")
    options = {"split": "block", "block": 20.0, "size": 64, "validation": 0.3, "guard": 2.0}
    one, _ = take(tmp_path / "set", tmp_path / "one.h5", options=options)
    two, _ = take(tmp_path / "set", tmp_path / "two.h5", options=options, workers=2)
    assert {TRAINING, VALIDATION} == {*one.side.tolist()} and (one.origin == two.origin).all()
    assert all((one.read(i)[k] == two.read(i)[k]).all() for i in (0, 5, len(one) - 1) for k in one.read(i))
    again, record = take(tmp_path / "set", tmp_path / "one.h5", options=options)
    assert "left as they are" in record.counts["patches"] and len(again) == len(one)
    save(tmp_path / "set", "npz ids", *tile(9, (200, 220)), "t3")
    assert "cut before" not in str(
        take(tmp_path / "set", tmp_path / "one.h5", options=options)[1].counts["patches for training"]
    )


def test_sets_that_are_none(tmp_path):
    image, instances, types = tile()

    def refused(words, out="p.h5", name="set", **more):
        with pytest.raises(InputError, match=words):
            take(tmp_path / name, tmp_path / out, **more)
        assert not (tmp_path / out).exists()

    refused("does not exist", name="nothing")
    (tmp_path / "set").mkdir()
    refused("no images")
    refused("no images.npy", source="pannuke")
    refused("no arrays", source="hovernet")
    Image.fromarray(image).save(tmp_path / "set" / "tile.png")
    refused("has a map")
    maps = {
        "fractions": (instances + 0.5, "found fractions"),
        "colours": (np.repeat(instances[..., None], 3, 2), "one number a pixel.*80 x 96 x 3"),
        "negative": (-instances, "from 0 on"),
        "small": (instances[:40], "96 x 40 px, its image 96 x 80"),
        "binary": ((instances > 0).astype(np.uint8), "a number for each nucleus"),
        "texts": (np.full((80, 96), "x"), "one number a pixel"),
    }
    for array, words in maps.values():
        np.save(tmp_path / "set" / "tile.npy", array)
        refused(words)
    np.save(tmp_path / "set" / "tile.npy", np.array({"inst_map": instances}, dtype=object), allow_pickle=True)
    refused("Python objects")
    (tmp_path / "set" / "tile.npy").write_bytes(b"\x93NUMPY broken")
    refused("cannot be read")
    (tmp_path / "set" / "tile.npy").unlink()
    np.savez(tmp_path / "set" / "tile.npz", other=instances)
    refused("inst_map.*found other")
    np.savez(tmp_path / "set" / "tile.npz", inst=instances, ids=[1, 2], types=[1, 1])
    refused("a type for each nucleus")
    np.savez(tmp_path / "set" / "tile.npz", inst=instances, types=[1, 1])
    refused("12 ids and 2 types")
    np.savez(tmp_path / "set" / "tile.npz", inst=instances, type_map=types[instances] + 6)
    refused(r"the type 7, 8 .*known: 1=a, 2=b")
    np.savez(tmp_path / "set" / "tile.npz", inst=instances * 0)
    refused("no nuclei")
    np.savez(tmp_path / "set" / "tile.npz", inst=instances, type_map=types[instances])
    (tmp_path / "set" / "second.png").write_bytes((tmp_path / "set" / "tile.png").read_bytes())
    refused("1 of 2 images .* no map.*second")
    (tmp_path / "set" / "second.png").unlink()
    refused("no image of .* has organ=x", options={"where": ["organ=x"]})
    refused("no image second", options={"entries": ["second"]})
    with pytest.raises(UsageError, match="no layout"):
        take(tmp_path / "set", tmp_path / "p.h5", "monuseg")
    assert len(take(tmp_path / "set", tmp_path / "p.h5")[0]) == 1


def test_folds_that_do_not_fit(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()

    def refused(images, masks, words):
        np.save(folder / "images.npy", images)
        if masks is not None:
            np.save(folder / "masks.npy", masks)
        with pytest.raises(InputError, match=words):
            take(folder, tmp_path / "p.h5", "pannuke", type_names=None)

    images = np.zeros((2, 32, 32, 3))
    masks = np.zeros((2, 32, 32, 6))
    masks[:, 4:12, 4:12, 0] = 1
    refused(images, None, "no masks.npy")
    refused(images[..., 0], masks, "images x height x width x 3")
    refused(images, masks[:1], "2 x 32 x 32 x channels")
    refused(images, masks + 0.5, "found fractions")
    refused(images + 300, masks, "0 to 255")
    refused(images + 0.5, masks, "from 0 to 1")
    np.save(folder / "types.npy", np.array(["a"]))
    refused(images, masks, "2 tissues")
    (folder / "types.npy").unlink()
    raw = (folder / "masks.npy").read_bytes()
    np.save(folder / "images.npy", images)
    (folder / "masks.npy").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="is it whole"):
        take(folder, tmp_path / "p.h5", "pannuke")
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    np.save(stacks / "a.npy", np.zeros((32, 32, 3)))
    with pytest.raises(InputError, match="height x width x 5"):
        take(stacks, tmp_path / "p.h5", "hovernet")


def test_exports_that_cannot_be_written(cut_file, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something"):
        export_patches(cut_file, "coco", tmp_path / "full", RunRecord("t", {}))
    with pytest.raises(InputError, match="does not exist"):
        export_patches(tmp_path / "none.h5", "coco", tmp_path / "out", RunRecord("t", {}))
    with pytest.raises(UsageError, match="no layout"):
        export_patches(cut_file, "yolo", tmp_path / "out", RunRecord("t", {}))

    def full(path, pixels):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("stqp.patches.layouts.export.write_png", full)
    for layout in LAYOUTS:
        with pytest.raises(EnvironmentProblem, match="disk is full"):
            export_patches(cut_file, layout, tmp_path / "out", RunRecord("t", {}))
        assert not (tmp_path / "out").exists()
