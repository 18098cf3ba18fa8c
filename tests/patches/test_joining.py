"""Files of patches as input, and what is said and drawn of them."""

import json
import shutil

import numpy as np
import pytest
from patches.projects import make_project

from stqp.errors import InputError
from stqp.patches.cut import cut_patches
from stqp.patches.options import CutOptions
from stqp.patches.sheet import chosen, contact_sheet, outlined
from stqp.patches.store import TEST, TRAINING, UNKNOWN_TYPE, VALIDATION, PatchFile
from stqp.patches.summary import describe, table
from stqp.record import RunRecord
from stqp.taxonomy import UNKNOWN_COLOR, color_of


def cut(inputs, path, **options):
    """The cut, the patches, the record."""
    record = RunRecord("t", {})
    options = {"size": 64, "block": 40.0, **options}
    return cut_patches(inputs, path, record, CutOptions(**options), workers=1), PatchFile(path), record


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A project of two slides, and two files of patches of others with other classes."""
    folder = tmp_path_factory.mktemp("joining")
    project = make_project(
        folder / "own" / "project", ((300, 300),) * 2, [{"organ": "skin"}, {"organ": "lung"}], seed=1
    )
    others = (("a", ("Plasma", "Neoplastic", "Unknown"), 5), ("b", ("Inflammatory", "Plasma"), 9))
    for name, classes, seed in others:
        other = make_project(folder / name / "project", ((260, 300),), [{"organ": name}], seed=seed, classes=classes)
        cut([other], folder / f"{name}.h5")
    return project, folder / "a.h5", folder / "b.h5"


def test_one_file_is_taken_as_it_is(files, tmp_path):
    made, patches, _ = cut([files[1]], tmp_path / "p.h5")
    assert (tmp_path / "p.h5").read_bytes() == files[1].read_bytes() and not made.reused
    assert made.split == patches.about["split"] and made.classes == ["Neoplastic", "Plasma"]
    assert cut([files[1]], tmp_path / "p.h5")[0].reused


def test_files_and_projects_together(files, tmp_path):
    made, patches, record = cut([*files], tmp_path / "p.h5")
    assert made.classes == ["Neoplastic", "Inflammatory", "Connective", "Plasma"]
    parts = [PatchFile(files[1]), PatchFile(files[2])]
    own = cut([files[0]], tmp_path / "own.h5")[1]
    assert len(patches) == sum(map(len, (*parts, own))) and [s["entry"] for s in patches.sources][2:] == [
        "slide0.tif",
        "slide1.tif",
    ]
    start = 0
    for part in (*parts, own):
        names = np.array(["", *part.classes], object)
        for row in (0, len(part) - 1):
            a, b = part.read(row), patches.read(start + row)
            assert all((a[k] == b[k]).all() for k in ("images", "instances", "valid", "weight"))
            unknown = a["types"] == UNKNOWN_TYPE
            assert (b["types"][unknown] == UNKNOWN_TYPE).all()
            kinds = np.array(["", *made.classes], object)[b["types"][~unknown]]
            assert (kinds == names[a["types"][~unknown]]).all()
            assert part.sources[part.source[row]] == patches.sources[patches.source[start + row]]
        by = {name: int(part.counts[:, i + 1].sum()) for i, name in enumerate(part.classes)}
        mine = patches.counts[start : start + len(part)].sum(axis=0)
        assert {n: int(mine[i + 1]) for i, n in enumerate(made.classes) if mine[i + 1]} == {
            k: v for k, v in by.items() if v
        }
        start += len(part)
    assert sum(len(v) for v in made.split.values()) == sum(
        len(v) for p in (*parts, own) for v in p.about["split"].values()
    )
    assert (
        record.counts["files of patches"] == 3 and [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    )
    assert cut([*files], tmp_path / "p.h5")[0].reused
    json.dumps(record.to_dict())


def test_what_is_asked_of_files(files, tmp_path):
    _, patches, _ = cut([*files[1:]], tmp_path / "p.h5", holdout=["organ=b"])
    of_b = np.array([s["metadata"]["organ"] == "b" for s in patches.sources])[patches.source]
    assert (patches.side[of_b] == TEST).all() and {*patches.side[~of_b].tolist()} == {TRAINING, VALIDATION}
    assert [i["metadata"]["organ"] for i in patches.about["split"]["test"]] == ["b", "b"]
    _, patches, _ = cut([*files[1:]], tmp_path / "p.h5", validate_on=["organ=b"])
    assert (patches.side == np.where(of_b, VALIDATION, TRAINING)).all()
    _, patches, _ = cut([files[1]], tmp_path / "p.h5", classes=["Plasma"])
    first = PatchFile(files[1])
    assert patches.classes == ["Plasma"] and (patches.counts[:, 1] == first.counts[:, 2]).all()
    assert (patches.counts[:, 0] == first.counts[:, 0] + first.counts[:, 1]).all()
    _, patches, _ = cut([*files[1:]], tmp_path / "p.h5", where=["organ=a"])
    assert len(patches) == len(first)


def test_files_that_do_not_go_together(files, tmp_path):
    project, a, b = files
    cut([project], tmp_path / "small.h5", size=48)
    cut([project], tmp_path / "coarse.h5", mpp=0.5)
    with pytest.raises(InputError, match=r"patches of 64 px .*a\.h5.* and of 48 px .*small"):
        cut([a, tmp_path / "small.h5"], tmp_path / "p.h5")
    with pytest.raises(InputError, match=r"coarse\.h5 have 0.5 µm per px, 0.25 are asked for"):
        cut([tmp_path / "coarse.h5"], tmp_path / "p.h5")
    with pytest.raises(InputError, match="has organ=x"):
        cut([a], tmp_path / "p.h5", holdout=["organ=x"])
    with pytest.raises(InputError, match="no file of patches has the image x"):
        cut([a], tmp_path / "p.h5", entries=["x"])
    with pytest.raises(InputError, match="does not exist"):
        cut([tmp_path / "none.h5"], tmp_path / "p.h5")
    with pytest.raises(InputError, match="nothing is left"):
        cut([a, b], tmp_path / "p.h5", holdout=["name=*"])
    shutil.copy(a, tmp_path / "copy.h5")
    with pytest.raises(InputError, match=r"slide slide0.tif is in .*a\.h5 and .*copy\.h5"):
        cut([a, tmp_path / "copy.h5"], tmp_path / "p.h5")
    assert not (tmp_path / "p.h5").exists()


def test_what_is_said_of_a_file(files):
    found = describe(files[1])
    patches = PatchFile(files[1])
    assert found["patches"] == len(patches) == sum(s["patches"] for s in found["sides"].values())
    assert found["sides"]["training"]["nuclei"]["Plasma"] == patches.counts[patches.side == TRAINING, 2].sum()
    assert found["images"][0]["metadata"]["organ"] == "a" and found["labels"]["Plasma"]["used"] > 0
    text = "\n".join(table(found))
    assert "64 px at 0.25 µm per px" in text and "organ=a" in text and "validation" in text
    json.dumps(found)


def test_a_sheet_shows_outlines_in_the_colours_of_the_classes(files):
    patches = PatchFile(files[1])
    rows = chosen(patches, 6)
    assert len(rows) == len(set(rows)) == 6 and rows == chosen(patches, 6)
    assert patches.counts[rows].sum(axis=0)[1:].all()
    assert all(patches.side[r] == VALIDATION for r in chosen(patches, 3, "validation"))
    with pytest.raises(InputError, match="for test"):
        chosen(patches, 3, "test")
    sheet = contact_sheet(patches, rows, columns=3)
    assert sheet.shape[0] > 2 * 128 and sheet.shape[1] >= 3 * 128
    for name in (*patches.classes, "Unknown"):
        assert (sheet == color_of(name)).all(axis=2).sum() > 30
    patch = {
        "images": np.full((40, 40, 3), 250, np.uint8), "instances": np.zeros((40, 40), np.int32),
        "types": np.zeros((40, 40), np.uint8), "valid": np.ones((40, 40), np.uint8),
        "weight": np.full((40, 40), 255, np.uint8),
    }  # fmt: skip
    for number, (left, kind, weight) in enumerate(((2, 1, 255), (15, 1, 50), (28, 255, 255)), start=1):
        at = slice(5, 15), slice(left, left + 10)
        patch["instances"][at], patch["types"][at], patch["weight"][at] = number, kind, weight
    patch["valid"][30:] = 0
    image = outlined(patch, ["Dead"])
    dead = (image == color_of("Dead")).all(axis=2)
    assert dead[5, 2] and dead[6, 3] and not dead[7, 4]  # two pixels thick
    assert dead[5, 15] and not dead[6, 16]  # a label that counts little: one
    assert (image[5, 28] == UNKNOWN_COLOR).all() and not dead[:, 28:].any()
    assert (image[:4] == 250).all() and (image[30:] < 240).all() and len(np.unique(image[30:, :, 0])) == 2
