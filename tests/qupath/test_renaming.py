"""A class gets another name."""

import dataclasses

import numpy as np
import pytest
import shapely
from PIL import Image
from qupath.qupath_objects import many, same

from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import corrected, stamp, written_classes
from stqp.qupath.project import QuPathProject
from stqp.qupath.renaming import rename_class
from stqp.slides import open_slide


@pytest.fixture
def objects():
    """Objects of stqp, of which a person changed a class; objects of a person, within each other."""
    ours = stamp(many(40, seed=1, kind=ObjectKind.DETECTION), "predict:a", "run-1")
    ours.classes[:4] = ["Tumor: Positive", "Neoplastic", "Dead", None]
    boxes = Polygons.from_shapely([shapely.box(0, 0, 90, 90), shapely.box(5, 5, 50, 50), shapely.box(9, 9, 20, 20)])
    theirs = PathObjects.build(boxes, classes=["Region*", "Neoplastic", None], parent=[-1, 0, 1], names=["a", "b", "c"])
    return PathObjects.concatenate([stamp(ours, "predict:a", "run-1"), theirs])


@pytest.fixture
def project(tmp_path, objects):
    pixels = np.random.default_rng(0).integers(0, 255, (61, 97, 3), np.uint8)
    with QuPathProject.open(tmp_path / "project", "x") as opened:
        for name in ("a.png", "b.png"):
            Image.fromarray(pixels).save(tmp_path / name)
            with open_slide(tmp_path / name, mpp=0.25) as slide:
                entry = opened.add_image(slide)
            if name == "a.png":
                changed = dataclasses.replace(objects, classes=objects.classes.copy())
                changed.classes[1] = "Dead"
                entry.write_objects(changed)
    return tmp_path / "project"


def read(folder):
    with QuPathProject.open(folder) as opened:
        return opened.entry("a.png").read_objects(), opened.classes


def by_id(objects):
    return objects.take(np.argsort(objects.ids.astype(str)))


def test_objects_list_and_marks(project):
    before, colors = read(project)
    assert corrected(before).sum() == 1
    number = int((before.classes == "Neoplastic").sum())
    with QuPathProject.open(project, "r+") as opened:
        assert rename_class(opened, "Neoplastic", "Cancer") == {"a.png": number}
    after, now = read(project)
    assert [*now] == ["Cancer" if name == "Neoplastic" else name for name in colors]
    assert now["Cancer"] == colors["Neoplastic"] == after.class_colors["Cancer"]
    # the one that a person changed stays a correction, of a class that is called otherwise now
    one = corrected(after)
    assert one.sum() == 1 and after.classes[one] == ["Dead"] and written_classes(after)[one] == ["Cancer"]
    assert not (written_classes(after) == "Neoplastic").any()
    expected = np.where(before.classes == "Neoplastic", "Cancer", before.classes)
    renamed = by_id(dataclasses.replace(before, classes=expected, parent=np.full(len(before), -1)))
    unmarked = {k: v for k, v in renamed.metadata.items() if k != "stqp.written"}
    result = by_id(dataclasses.replace(after, parent=np.full(len(after), -1)))
    result.metadata.pop("stqp.written")
    same(result, dataclasses.replace(renamed, metadata=unmarked))
    # who is within whom stays
    names = {n: i for i, n in enumerate(after.names.tolist()) if n in ("a", "b", "c")}
    assert [after.parent[names[n]] for n in "abc"] == [-1, names["a"], names["b"]]


def test_into_a_class_that_is_there(project):
    with QuPathProject.open(project, "r+") as opened:
        dead = opened.classes.get("Dead")
        rename_class(opened, "Neoplastic", "Dead")
        assert "Neoplastic" not in opened.classes and opened.classes["Dead"] == dead
    after, _ = read(project)
    assert corrected(after).sum() == 1  # as before: not taken for what stqp wrote


def test_nothing_of_that_name(project):
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="no class 'Absent'"), QuPathProject.open(project, "r+") as opened:
        rename_class(opened, "Absent", "Other")
    for name in ("", "A::B", "A\nB"):
        with pytest.raises(UsageError, match="cannot be the name"), QuPathProject.open(project, "r+") as opened:
            rename_class(opened, "Neoplastic", name)
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


def test_a_broken_file_of_one_image_changes_none(project):
    before = (project / "data" / "1" / "data.qpdata").read_bytes()
    (project / "data" / "2" / "data.qpdata").write_bytes(b"broken")
    with pytest.raises(InputError, match="2"), QuPathProject.open(project, "r+") as opened:
        rename_class(opened, "Neoplastic", "Cancer")
    assert (project / "data" / "1" / "data.qpdata").read_bytes() == before
    assert read(project)[1].get("Cancer") is None
