"""What is cut: pixels, maps, doubt, broken input."""

import dataclasses
import json
import re

import cv2
import numpy as np
import pytest
from patches.cutting import cut
from patches.projects import CLASSES, make_project

from stqp.errors import InputError
from stqp.patches.store import TRAINING, UNKNOWN_TYPE, VALIDATION
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import stamp
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide


def reference(slide, objects, origin, size, step, names):
    """A patch, nucleus by nucleus: an image read alone, each polygon filled by OpenCV at 16 times the scale."""
    x, y = origin
    image = slide.read(x, y, (size, size), step)
    kinds, inside = np.zeros((size, size), np.uint8), np.zeros((size, size), np.int32)
    grid = (np.arange(size) + 0.5) * step
    px, py = np.meshgrid(grid + x, grid + y)
    for i in range(len(objects)):
        ring = objects.polygons.take([i]).coords
        if ring[:, 0].max() < x or ring[:, 1].max() < y or (ring.min(axis=0) > np.array([x, y]) + size * step).any():
            continue
        within = np.zeros((size, size), bool)
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            crosses = (y0 > py) != (y1 > py)
            with np.errstate(divide="ignore", invalid="ignore"):
                within ^= crosses & (px < (x1 - x0) * (py - y0) / (y1 - y0) + x0)
        inside[within] = i + 1
        kinds[within] = names.index(objects.classes[i]) + 1
    return image, inside, kinds


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.2])
def test_patches_equal_a_slow_reference(project, tmp_path, mpp):
    made, patches, _ = cut(project, tmp_path / "p.h5", mpp=mpp)
    step = mpp / 0.25
    with QuPathProject.open(project, "r") as opened:
        objects = [entry.read_objects() for entry in opened.entries]
        slides = [open_slide(entry.image_path) for entry in opened.entries]
    for row in np.linspace(0, len(patches) - 1, 8).astype(int):
        patch, source = patches.read(row), patches.source[row]
        image, inside, kinds = reference(slides[source], objects[source], patches.origin[row], 64, step, made.classes)
        known = patch["valid"] > 0
        assert known.any() and (patch["weight"] == 255).all()
        difference = np.abs(patch["images"].astype(int) - image)[known]
        # resampled in a piece and alone: OpenCV rounds places to 1/32 px, and reads a rim of the piece
        assert difference.max() == 0 if mpp == 0.25 else np.mean(difference) < 0.5
        assert (kinds == patch["types"])[known].all()
        pairs = np.unique(np.column_stack([inside[known], patch["instances"][known]]), axis=0)
        assert len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))  # the same nuclei, renumbered
        ids = np.unique(patch["instances"])
        assert (ids == np.arange(len(ids))).all()
        numbers = np.bincount(patch["types"].reshape(-1)[np.unique(patch["instances"], return_index=True)[1]])
        assert (patches.counts[row][1:] == np.pad(numbers, (0, 4 - len(numbers)))[1:4]).all()


def test_every_pixel_of_a_block_is_in_a_patch(project, tmp_path):
    made, patches, _ = cut(project, tmp_path / "p.h5", validation=0.3)
    covered = {name: np.zeros((500, 700), bool) for name in ("slide0.tif", "slide1.tif")}
    for row in range(len(patches)):
        x, y = patches.origin[row].astype(int)
        covered[patches.sources[patches.source[row]]["entry"]][y : y + 64, x : x + 64] |= patches.read(row)["valid"] > 0
    for item in made.split["training"] + made.split["validation"]:
        for x0, y0, x1, y1 in item["boxes"]:
            assert covered[item["entry"]][int(np.ceil(y0)) : int(y1), int(np.ceil(x0)) : int(x1)].all()


def graded(i, polygons):
    n = len(polygons)
    return {"measurements": {
        "Label confidence": np.linspace(0, 1, n),
        "Alignment: stain contrast": np.tile([0.3, -0.1, 0.1], n)[:n],
        "Alignment: residual shift µm": np.tile([0.5, 0.5, 1.0, 2.5, 5.0], n)[:n],
    }}  # fmt: skip


def test_doubtful_nuclei_are_unknown_masked_or_weigh_less(tmp_path):
    project = make_project(tmp_path / "project", ((600, 600),), extra=graded)
    with QuPathProject.open(project, "r") as opened:
        objects = opened.entries[0].read_objects()
    confidence, contrast, residual = (objects.measurements[k] for k in graded(0, objects.polygons)["measurements"])
    options = {"size": 304, "block": 200.0, "validation": 0.0}
    centres = np.clip(objects.polygons.centroid().astype(int), 0, 599)
    order = objects.polygons.rasterize((600, 600))[centres[:, 1], centres[:, 0]]
    seen = order == np.arange(len(objects)) + 1  # not beneath another

    def maps(**more):
        _, patches, record = cut(project, tmp_path / "p.h5", **options, **more)
        whole = {name: np.zeros((600, 600), int) for name in ("types", "valid", "weight", "instances")}
        for row in range(len(patches)):
            x, y = patches.origin[row].astype(int)
            for name, array in whole.items():
                at = array[y : y + 304, x : x + 304]
                at[:] = patches.read(row)[name][: at.shape[0], : at.shape[1]]
        return {k: v[centres[:, 1], centres[:, 0]] for k, v in whole.items()}, whole, record

    at, _, record = maps(min_confidence=0.5)
    assert ((at["types"] == UNKNOWN_TYPE) == (confidence < 0.5))[seen].all() and at["valid"].all()
    labels = record.results["labels"]
    assert {*labels} == {*CLASSES}
    for name in CLASSES:
        mine = objects.classes == name
        assert labels[name]["label confidence below 0.5 (Unknown)"] == (confidence[mine] < 0.5).sum()
        assert sum(labels[name].values()) == mine.sum()
    at, whole, record = maps(min_stain=0.0)
    pale = contrast < 0
    alone = seen & (objects.polygons.take(~pale).rasterize((600, 600))[centres[:, 1], centres[:, 0]] == 0)
    assert (alone & pale).any() and not at["valid"][alone & pale].any() and at["valid"][seen & ~pale].all()
    assert not at["instances"][alone & pale].any()  # neither nucleus nor background
    assert (whole["valid"][whole["instances"] > 0] == 1).all()  # a nucleus that is sure is not masked by a neighbour
    at, whole, _ = maps(max_misalignment=2.0)
    far = residual > 2
    alone = seen & (objects.polygons.take(~far).rasterize((600, 600))[centres[:, 1], centres[:, 0]] == 0)
    assert (alone & far).any() and not at["valid"][alone & far].any()
    lonely = np.flatnonzero(seen & (residual == 5.0) & (np.abs(centres - 300) < 250).all(axis=1))[:20]
    for i in lonely:  # as far around as the nucleus may have moved: 5 µm are 20 px
        right = int(objects.polygons.take([i]).coords[:, 0].max()) + 12
        assert whole["valid"][centres[i, 1], right] == 0 or whole["instances"][centres[i, 1], right] > 0
    at, whole, _ = maps(weight_by="confidence")
    assert (
        np.abs(at["weight"] - confidence * 255)[seen].max() <= 0.5
        and (whole["weight"][whole["types"] == 0] == 255).all()
    )
    at, _, _ = maps(weight_by="confidence+alignment+stain")
    expected = confidence * np.clip(1 - (residual - 1) / 3, 0, 1) * np.clip(contrast / 0.2, 0, 1)
    assert np.abs(at["weight"] - expected * 255)[seen].max() <= 0.5


def test_what_a_person_decided_is_not_doubted(tmp_path):
    def bad(i, p):
        none = np.zeros(len(p))
        return {"measurements": {"Label confidence": none, "Alignment: stain contrast": none - 1}}

    project = make_project(tmp_path / "project", ((400, 400),), extra=bad)
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entries[0]
        objects = entry.read_objects()
        change = np.array([3, 7, 11])
        changed = objects.take(change)
        changed.classes[:] = "Corrected"
        entry.update_objects(change, changed)
        drawn = objects.take([0])
        drawn = PathObjects.build(drawn.polygons.shift(3, 3), classes=["Drawn"])
        entry.write_objects(drawn)
    _, patches, record = cut(project, tmp_path / "p.h5", min_confidence=0.5, min_stain=0.0, weight_by="confidence",
                                validation=0.0, classes=["Corrected", "Drawn", *CLASSES])  # fmt: skip
    assert record.results["labels"]["Corrected"] == {"used": 3} and record.results["labels"]["Drawn"] == {"used": 1}
    assert all("masked" in next(iter(record.results["labels"][name])) for name in CLASSES)
    weights = [patches.read(i) for i in range(len(patches))]
    assert all((p["weight"][p["types"] == 1] == 255).all() for p in weights)
    assert any((p["types"] == 1).any() for p in weights)


def test_a_deleted_nucleus_is_background(tmp_path):
    project = make_project(tmp_path / "project", ((300, 300),))
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entries[0]
        first = entry.read_objects()
        gone = set(first.ids[:10].tolist())
        entry.write_objects(PathObjects.empty(), replace=lambda now: np.array([i in gone for i in now.ids]))
    _, patches, _ = cut(project, tmp_path / "p.h5", size=160, block=100.0, validation=0.0)
    deleted, rest = first.polygons.take(np.arange(10)), first.polygons.take(np.arange(10, len(first)))
    alone = (deleted.rasterize((300, 300)) > 0) & (rest.rasterize((300, 300)) == 0)
    found = np.zeros((2, 300, 300), int)
    for row in range(len(patches)):
        x, y = patches.origin[row].astype(int)
        at = found[:, y : y + 160, x : x + 160]
        patch = patches.read(row)
        at[0], at[1] = (patch[k][: at.shape[1], : at.shape[2]] for k in ("instances", "valid"))
    assert alone.any() and not found[0][alone].any() and found[1][alone].all()


def test_kinds_of_objects_and_predictions(tmp_path):
    def as_detections(i, polygons):
        return {"kind": ObjectKind.DETECTION}

    project = make_project(tmp_path / "project", ((300, 300),), extra=as_detections)
    assert cut(project, tmp_path / "p.h5")[0].classes
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entries[0]
        objects = entry.read_objects()
        objects.metadata["stqp.source"][:] = "predict:m"
        entry.write_objects(objects, replace=lambda now: np.ones(len(now), bool))
    with pytest.raises(InputError, match="no nuclei"):
        cut(project, tmp_path / "p.h5")
    assert cut(project, tmp_path / "p.h5", predictions=True)[0].classes


def test_slides_of_several_resolutions(tmp_path):
    project = make_project(tmp_path / "project", ((400, 400), (200, 200)), mpp=(0.25, 0.5))
    _, patches, record = cut(project, tmp_path / "p.h5", size=128, validation=0.0, block=100.0)
    assert any("enlarged" in w and "slide1" in w for w in record.warnings)
    areas = [[], []]
    for row in range(len(patches)):
        patch = patches.read(row)
        inner = patch["instances"][20:-20, 20:-20]
        areas[patches.source[row]] += np.bincount(inner.ravel())[1:].tolist()
    # the circles are drawn in px of their slide, so those at 0.5 µm are four times as large at 0.25
    assert 3 < np.median([a for a in areas[1] if a]) / np.median([a for a in areas[0] if a]) < 5
    project = make_project(tmp_path / "none" / "project", ((300, 300),), mpp=None)
    with pytest.raises(InputError, match=r"slide0.*no µm per pixel"):
        cut(project, tmp_path / "q.h5")


def test_one_class_trains_and_none_does_not(tmp_path):
    project = make_project(tmp_path / "one" / "project", ((300, 300),), classes=("Dead",))
    made, _, record = cut(project, tmp_path / "p.h5")
    assert made.classes == ["Dead"] and any("only class" in w for w in record.warnings)
    with pytest.raises(InputError, match="no nucleus is of the class Plasma; there are Dead"):
        cut(project, tmp_path / "p.h5", classes=["Plasma"])
    made, _, record = cut(project, tmp_path / "q.h5", classes=["Plasma", "Dead"])
    assert made.classes == ["Plasma", "Dead"] and any("Plasma" in w for w in record.warnings)
    project = make_project(tmp_path / "none" / "project", ((300, 300),), classes=("Unknown",))
    with pytest.raises(InputError, match="all nuclei are Unknown"):
        cut(project, tmp_path / "r.h5")
    with pytest.raises(InputError, match="filtered or weighted by confidence"):
        cut(tmp_path / "one" / "project", tmp_path / "r.h5", weight_by="confidence")


def test_a_missing_or_broken_slide(tmp_path):
    project = make_project(tmp_path / "project", ((500, 500),))
    whole = (tmp_path / "slide0.tif").read_bytes()
    (tmp_path / "slide0.tif").unlink()
    with pytest.raises(InputError, match="slide0"):
        cut(project, tmp_path / "p.h5")
    (tmp_path / "slide0.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="slide0"):
        cut(project, tmp_path / "p.h5")
    assert not (tmp_path / "p.h5").exists()


def test_regions_and_ignored_areas(tmp_path):
    import shapely

    project = make_project(tmp_path / "project", ((400, 400),))
    with QuPathProject.open(project, "r+") as opened:
        boxes = Polygons.from_shapely([shapely.box(0, 0, 300, 400), shapely.box(100, 100, 200, 300)])
        opened.entries[0].write_objects(PathObjects.build(boxes, classes=["Train", "Ignore"]))
    _, patches, record = cut(project, tmp_path / "p.h5", size=64, block=40.0)
    assert {TRAINING, VALIDATION} == {*patches.side.tolist()}
    with QuPathProject.open(project, "r") as opened:
        objects = opened.entries[0].read_objects()
        x, y = objects.take(np.isin(objects.classes, CLASSES)).polygons.centroid().T
    inside = (x < 300) & ~((x >= 100) & (x < 200) & (y >= 100) & (y < 300))
    told = [int(n) for k, v in record.counts.items() if k.startswith("nuclei ") for n in re.findall(r"[0-9]+", v)]
    assert sum(told) == inside.sum() < len(inside)
    for row in range(len(patches)):
        x, y = patches.origin[row].astype(int)
        ys, xs = np.nonzero(patches.read(row)["valid"])
        assert (xs + x < 300).all() and not ((xs + x >= 100) & (xs + x < 200) & (ys + y >= 100) & (ys + y < 300)).any()


def test_the_record_of_a_cut_is_json(project, tmp_path):
    _, _, record = cut(project, tmp_path / "p.h5", test=0.1)
    text = json.dumps(record.to_dict())
    assert "for testing" in text and cv2.__version__


def test_stain_is_measured_where_the_import_did_not(sample, tmp_path):
    from stqp.importing.xenium import import_xenium

    import_xenium(sample.outs, sample.he, sample.alignment, tmp_path / "project", labels=sample.labels,
                  class_map=sample.class_map, qc=False)  # fmt: skip
    _, _, record = cut(
        tmp_path / "project", tmp_path / "p.h5", min_stain=0.1, max_misalignment=5.0, size=128, block=64.0
    )
    labels = record.results["labels"]
    assert sum(sum(r.values()) for r in labels.values()) > 300
    used = sum(r["used"] for r in labels.values())
    assert used > 0.8 * sum(sum(r.values()) for r in labels.values())
    # moved off the stain by 7 µm
    with QuPathProject.open(tmp_path / "project", "r+") as opened:
        entry = opened.entries[0]
        objects = entry.read_objects()
        moved = stamp(dataclasses.replace(objects, polygons=objects.polygons.shift(28, 0)), "import-test:s", "run")
        entry.write_objects(moved, replace=lambda now: np.ones(len(now), bool))
    with pytest.raises(InputError, match="is left; the limits"):
        cut(tmp_path / "project", tmp_path / "p.h5", max_misalignment=5.0, size=128, block=64.0)
