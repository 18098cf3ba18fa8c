"""Splits: no pixel on two sides, slides and patients whole, the same split again."""

import dataclasses
import json

import numpy as np
import pytest
from patches.projects import make_project

from stqp.errors import InputError, UsageError
from stqp.patches.blocks import grid, guarded
from stqp.patches.cut import cut_patches
from stqp.patches.drawing import pixels, starts
from stqp.patches.options import CutOptions, matches
from stqp.patches.store import SIDES, TEST, TRAINING, VALIDATION, PatchFile
from stqp.record import RunRecord

FIVE = ((300, 260),) * 5
PATIENTS = [
    {"patient": p, "organ": o} for p, o in zip("aabbc", ("colon", "colon", "lung", "lung", "skin"), strict=True)
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("cohort") / "project", FIVE, PATIENTS)


def cut(projects, path, **options):
    record = RunRecord("test", {})
    options = {"size": 64, "block": 32.0, "guard": 4.0, **options}
    made = cut_patches(projects, path, record, CutOptions(**options), workers=1)
    return made, PatchFile(path), record


def sides_by(patches, key):
    """Sides on which each value of a metadata stands."""
    result = {}
    for number, source in enumerate(patches.sources):
        value = source["entry"] if key == "name" else source["metadata"][key]
        result.setdefault(value, set()).update(patches.side[patches.source == number].tolist())
    return result


@pytest.mark.parametrize("seed", range(12))
def test_a_band_between_the_sides_is_nobodys(seed):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(200, 3000, 2)
    mpp, patch_mpp, size = rng.choice([0.23, 0.25, 0.5]), rng.choice([0.25, 0.5]), int(rng.choice([64, 96, 256]))
    block, guard = rng.uniform(40, 150), rng.uniform(0, 12)
    blocks = grid(width, height, block / mpp)
    sides = rng.choice([TRAINING, VALIDATION, TEST], len(blocks), p=[0.6, 0.25, 0.15])
    kept = guarded(blocks, sides, [guard / mpp], np.zeros(len(blocks), int))
    step = patch_mpp / mpp
    boxes, of = [], []
    for before, after, side in zip(blocks, kept, sides, strict=True):
        if after is None:
            assert side < sides.max()
            continue
        assert all(a >= b - 1e-9 for a, b in zip(after.box[:2], before.box[:2], strict=True))
        assert all(a <= b + 1e-9 for a, b in zip(after.box[2:], before.box[2:], strict=True))
        if side == sides.max():
            assert after.box == before.box  # what is held out most strictly loses nothing
        x, y, w, h = pixels(after.box, step)
        for top in starts(h, size):
            for left in starts(w, size):  # the pixels of the slide that a patch shows
                right, bottom = min(left + size, w), min(top + size, h)
                boxes.append((x + left * step, y + top * step, x + right * step, y + bottom * step))
                of.append(side)
    boxes, of = np.array(boxes), np.array(of)
    for one, other in ((TRAINING, VALIDATION), (TRAINING, TEST), (VALIDATION, TEST)):
        a, b = boxes[of == one], boxes[of == other]
        if len(a) and len(b):
            gap_x = np.maximum(a[:, None, 0] - b[None, :, 2], b[None, :, 0] - a[:, None, 2])
            gap_y = np.maximum(a[:, None, 1] - b[None, :, 3], b[None, :, 1] - a[:, None, 3])
            assert np.maximum(gap_x, gap_y).min() >= guard / mpp - 1e-6


def test_no_pixel_of_a_patch_comes_from_another_side(cohort, tmp_path):
    """Painted by side, the slides show in no patch what belongs to another side or to the band."""
    made, patches, _ = cut([cohort], tmp_path / "p.h5", validation=0.25, test=0.15)
    drawn = {}
    for side, name in enumerate(SIDES):
        for item in made.split[name]:
            owner = drawn.setdefault(item["entry"], np.full((260, 300), -1))
            for x0, y0, x1, y1 in item["boxes"]:
                owner[int(np.ceil(y0)) : int(y1), int(np.ceil(x0)) : int(x1)] = side
    assert {*patches.side.tolist()} == {0, 1, 2}
    for row in range(len(patches)):
        valid = patches.read(row)["valid"] > 0
        ys, xs = np.nonzero(valid)
        x, y = patches.origin[row].astype(int)
        owner = drawn[patches.sources[patches.source[row]]["entry"]]
        assert (owner[y + ys, x + xs] == patches.side[row]).all()


def test_what_lies_beyond_a_block_is_its_mirror(cohort, tmp_path):
    _, patches, _ = cut([cohort], tmp_path / "p.h5", size=128, block=40.0, validation=0.3, guard=8.0)
    partly = [i for i in range(len(patches)) if not patches.read(i)["valid"].all()]
    assert partly
    for row in partly[:10]:
        patch = patches.read(row)
        height, width = np.argwhere(patch["valid"]).max(axis=0) + 1
        assert (patch["valid"][:height, :width] == 1).all() and patch["valid"].sum() == height * width
        assert not patch["instances"][height:].any() and not patch["instances"][:, width:].any()
        inside = patch["images"][:height, :width]
        mirrored = np.pad(inside, [(0, 128 - height), (0, 128 - width), (0, 0)], mode="reflect")
        assert (patch["images"] == mirrored).all()


def test_slides_and_patients_stay_whole(cohort, tmp_path):
    _, patches, _ = cut([cohort], tmp_path / "s.h5", split="slide", validation=0.2, test=0.2)
    by = sides_by(patches, "name")
    assert all(len(sides) == 1 for sides in by.values()) and {s for v in by.values() for s in v} == {0, 1, 2}
    _, patches, _ = cut([cohort], tmp_path / "m.h5", split="metadata:patient", validation=0.3)
    by = sides_by(patches, "patient")
    assert all(len(sides) == 1 for sides in by.values()) and {s for v in by.values() for s in v} == {0, 1}


def test_holdout_and_validate_on(cohort, tmp_path):
    _, patches, _ = cut([cohort], tmp_path / "p.h5", holdout=["organ=colon"], validation=0.2)
    by = sides_by(patches, "organ")
    assert by["colon"] == {TEST} and TEST not in by["lung"] | by["skin"] and VALIDATION in by["lung"] | by["skin"]
    _, patches, _ = cut([cohort], tmp_path / "p.h5", holdout=["organ=SK*"], validate_on=["name=slide2.tif"])
    by = sides_by(patches, "name")
    assert by["slide2.tif"] == {VALIDATION} and by["slide4.tif"] == {TEST}
    assert all(by[f"slide{i}.tif"] == {TRAINING} for i in (0, 1, 3))


def test_a_patient_on_two_sides_is_refused(cohort, tmp_path):
    with pytest.raises(InputError, match=r"same patient would stand on two sides.*slide0"):
        cut([cohort], tmp_path / "p.h5", split="metadata:patient", holdout=["name=slide0.tif"], validation=0)
    assert not (tmp_path / "p.h5").exists()


def test_the_same_slide_in_two_projects(cohort, tmp_path):
    """A copy of a project, its slides copied too, is the same slides: a block has one side, a slide one."""
    copy = make_project(tmp_path / "other" / "copy", FIVE, PATIENTS)
    _, patches, _ = cut([cohort, copy], tmp_path / "p.h5")
    sides = {}
    for row in range(len(patches)):
        key = (patches.sources[patches.source[row]]["slide"], *patches.origin[row])
        sides.setdefault(key, set()).add(int(patches.side[row]))
    assert len(sides) < len(patches) and all(len(s) == 1 for s in sides.values())
    with pytest.raises(InputError, match=r"same slide would stand on two sides.*slide0"):
        cut([cohort, copy], tmp_path / "q.h5", holdout=["project=copy"])


def test_splits_that_cannot_be_made(cohort, tmp_path):
    with pytest.raises(InputError, match=r"no metadata stage.*organ, patient"):
        cut([cohort], tmp_path / "p.h5", split="metadata:stage")
    with pytest.raises(InputError, match=r"no image with nuclei has organ=liver; there is colon, lung, skin"):
        cut([cohort], tmp_path / "p.h5", holdout=["organ=liver"])
    with pytest.raises(InputError, match="none is left to learn from"):
        cut([cohort], tmp_path / "p.h5", holdout=["name=*"])
    with pytest.raises(UsageError, match="both as validation and as test"):
        cut([cohort], tmp_path / "p.h5", holdout=["organ=colon"], validate_on=["patient=a"])
    with pytest.raises(InputError, match="a single slide"):
        cut([cohort], tmp_path / "p.h5", split="slide", entries=["slide0.tif"])
    with pytest.raises(InputError, match=r"no image has organ=liver; their metadata are name, organ, patient, project"):
        cut([cohort], tmp_path / "p.h5", where=["organ=liver"])


def test_an_earlier_split_is_used_again(cohort, tmp_path):
    made, first, _ = cut([cohort], tmp_path / "a.h5", test=0.1, seed=3)
    (tmp_path / "split.json").write_text(json.dumps(made.split))
    again, second, _ = cut([cohort], tmp_path / "b.h5", split=f"file:{tmp_path / 'split.json'}", seed=99)
    assert again.split == made.split
    places = [{(*p.origin[i], p.source[i], p.side[i]) for i in range(len(p))} for p in (first, second)]
    assert places[0] == places[1]
    one = {side: [i for i in items if i["entry"] != "slide4.tif"] for side, items in made.split.items()}
    (tmp_path / "split.json").write_text(json.dumps(one))
    _, third, record = cut([cohort], tmp_path / "c.h5", split=f"file:{tmp_path / 'split.json'}")
    assert sides_by(third, "name")["slide4.tif"] == {TRAINING} and "slide4.tif" in record.warnings[0]
    for text, words in (
        ("{}", "names no image"),
        ("[1", "no split"),
        ('{"test": [{"entry": "x", "boxes": [1]}]}', "no"),
    ):
        (tmp_path / "split.json").write_text(text)
        with pytest.raises(InputError, match=words):
            cut([cohort], tmp_path / "d.h5", split=f"file:{tmp_path / 'split.json'}")


def test_options_that_make_no_sense():
    for values, words in (
        ({"split": "random"}, "no split 'random'"),
        ({"split": "metadata:"}, "no split"),
        ({"holdout": ("colon",)}, "KEY=VALUE"),
        ({"holdout": "organ=colon"}, "a list of texts"),
        ({"objects": "cats"}, "no objects"),
        ({"weight_by": "confidence+age"}, "weighted by age"),
        ({"size": 100}, "16 divides"),
        ({"validation": 0.6, "test": 0.4}, "too little"),
        ({"guard": 100.0}, "guard"),
        ({"min_confidence": 3.0}, "min confidence"),
        ({"classes": ("a", "a")}, "twice"),
    ):
        with pytest.raises(UsageError, match=words):
            CutOptions(**values)
    names = {f.name for f in dataclasses.fields(CutOptions)}
    assert {*CutOptions.section("data"), *CutOptions.section("split")} == names


def test_filters():
    about = {"organ": "Colon", "name": "a.svs"}
    assert matches([], about) and matches(["organ=colon"], about) and matches(["organ=lung", "organ=co*"], about)
    assert not matches(["organ=colon", "name=b*"], about) and not matches(["patient=1"], about)
