"""Several projects become one."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from qupath.qupath_objects import many, same

from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.qupath import merging
from stqp.qupath.merging import merge_projects
from stqp.qupath.project import QuPathProject
from stqp.qupath.validation.project import validate_project
from stqp.slides import open_slide


def make(folder, images, colors, seed):
    """Make a project of images; a note of stqp's is kept for each."""
    with QuPathProject.open(folder, "x") as opened:
        opened.add_classes(colors)
        for k, path in enumerate(images):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(k).integers(0, 255, (61, 97, 3), np.uint8)
                Image.fromarray(pixels).save(path)
            with open_slide(path, mpp=0.25) as slide:
                entry = opened.add_image(slide, metadata={"seed": str(seed)})
            entry.write_objects(many(20, seed=seed + k))
            entry.stqp_folder.mkdir(parents=True)
            (entry.stqp_folder / "note.json").write_text(f'"{seed + k}"')
    return folder


@pytest.fixture
def two(tmp_path):
    first = make(tmp_path / "first", [tmp_path / "a" / "s.png", tmp_path / "a" / "t.png"], {"Only": (1, 2, 3)}, 10)
    second = make(tmp_path / "second", [tmp_path / "b" / "s.png"], {"Only": (9, 9, 9), "More": (4, 5, 6)}, 20)
    (first / "scripts").mkdir()
    (first / "scripts" / "x.groovy").write_text("1")
    (second / "scripts").mkdir()
    (second / "scripts" / "x.groovy").write_text("2")
    (second / "scripts" / "y.groovy").write_text("3")
    return first, second


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_all_images_objects_classes_and_notes(two, tmp_path):
    before = [contents(folder) for folder in two]
    merged = merge_projects(tmp_path / "out", two)
    assert [contents(folder) for folder in two] == before
    with QuPathProject.open(tmp_path / "out") as out, QuPathProject.open(two[0]) as a, QuPathProject.open(two[1]) as b:
        assert [(e.id, e.name) for e in out.entries] == [(1, "s.png"), (2, "t.png"), (3, "s.png (second)")]
        for new, old in zip(out.entries, [*a.entries, *b.entries], strict=True):
            same(new.read_objects(), old.read_objects())
            assert (new.folder / "data.qpdata").read_bytes() == (old.folder / "data.qpdata").read_bytes()
            assert new.image_path == old.image_path and new.metadata == old.metadata
            assert (new.stqp_folder / "note.json").read_text() == (old.stqp_folder / "note.json").read_text()
        assert out.classes["Only"] == (1, 2, 3) and out.classes["More"] == (4, 5, 6)
    assert merged.colors == [f"Only (in {two[1]})"]
    assert merged.conflicts == [str(two[1] / "scripts" / "x.groovy")]
    assert (tmp_path / "out" / "scripts" / "x.groovy").read_text() == "1"
    assert (tmp_path / "out" / "scripts" / "y.groovy").read_text() == "3"
    assert {f.severity for f in validate_project(tmp_path / "out")} <= {"warning", "note"}
    json.dumps(merged.to_dict())


def test_the_same_image_twice(two, tmp_path):
    third = make(tmp_path / "third", [tmp_path / "a" / "t.png"], {}, 30)
    with pytest.raises(InputError, match=r"'t\.png' of .*third is 't\.png' of .*first"):
        merge_projects(tmp_path / "out", [*two, third])
    assert not (tmp_path / "out").exists()
    names = {}
    for how in ("keep", "skip", "rename"):
        merged = merge_projects(tmp_path / how, [*two, third], how)
        names[how] = [m.name for m in merged.entries]
        with QuPathProject.open(tmp_path / how) as out:
            assert [e.name for e in out.entries] == [n for n in names[how] if n]
            notes = {(e.stqp_folder / "note.json").read_text() for e in out.entries}
            assert len(notes) == len(out.entries)
    assert names["keep"][3] == "t.png" and names["rename"][3] == "t.png (third)" and names["skip"][3] is None


def test_an_image_twice_in_one_project_is_as_somebody_wanted_it(two, tmp_path):
    path = two[0] / "project.qpproj"
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "entryID": 7, "imageName": "again"})
    path.write_text(json.dumps(content))
    assert [m.name for m in merge_projects(tmp_path / "out", two).entries][:3] == ["s.png", "t.png", "again"]


def test_images_found_beside_a_project_that_moved(two, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(str(two[1]), moved / "second")
    shutil.move(str(tmp_path / "b"), moved / "b")
    merge_projects(tmp_path / "deep" / "out", [moved / "second"])
    with QuPathProject.open(tmp_path / "deep" / "out") as out:
        assert out.entries[0].image_uri == (moved / "b" / "s.png").as_uri().replace("file:///", "file:/")


def test_what_is_refused(two, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="exists already"):
        merge_projects(two[0], two)
    with pytest.raises(UsageError, match="would lie in"):
        merge_projects(two[0] / "out", two)
    with pytest.raises(InputError, match="no QuPath project"):
        merge_projects(tmp_path / "out", [tmp_path / "nothing"])
    with QuPathProject.open(two[0], "r+"), pytest.raises(EnvironmentProblem, match="being written"):
        merge_projects(tmp_path / "out", two)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging.files, "write_bytes", full)
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        merge_projects(tmp_path / "out", two)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
