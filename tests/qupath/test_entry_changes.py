"""Objects replaced in their places, and what an image holds beside them, through a project."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from qupath.qupath_objects import many, same

from stqp.errors import UsageError
from stqp.qupath.image import Stains, WorkflowStep
from stqp.qupath.objects import PathObjects
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide


@pytest.fixture
def project(tmp_path):
    Image.fromarray(np.full((60, 80, 3), 255, np.uint8)).save(tmp_path / "white.png")
    with QuPathProject.open(tmp_path / "p", "x") as project:
        with open_slide(tmp_path / "white.png", 0.5) as slide:
            entry = project.add_image(slide)
        entry.write_objects(many(300))
    return tmp_path / "p"


def test_objects_change_in_their_places(project):
    chosen = np.array([250, 3, 0, 77])
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entries[0]
        before = entry.read_objects()
        new = dataclasses.replace(before.take(chosen), classes=np.array(["Fresh"] * 4, object))
        entry.update_objects(chosen, new)
        assert (entry.read_objects().classes[chosen] == "Fresh").all()  # before it is saved
        entry.write_objects(many(5, seed=9))  # and more on top of it
    with QuPathProject.open(project) as opened:
        after = opened.entries[0].read_objects()
        assert "Fresh" in opened.classes
    expected = dataclasses.replace(before, classes=before.classes.copy())
    expected.classes[chosen] = "Fresh"
    same(after.take(np.arange(300)), expected)
    assert len(after) == 305


def test_an_error_takes_it_back(project):
    before = (project / "data" / "1" / "data.qpdata").read_bytes()
    with pytest.raises(RuntimeError), QuPathProject.open(project, "r+") as opened:
        entry = opened.entries[0]
        entry.update_objects([0], entry.read_objects().take([0]))
        entry.edit_image_data(image_type="OTHER")
        raise RuntimeError
    assert (project / "data" / "1" / "data.qpdata").read_bytes() == before
    assert sorted(p.name for p in (project / "data" / "1").iterdir()) == [
        "data.qpdata", "server.json", "summary.json", "thumbnail.jpg",
    ]  # fmt: skip


def test_what_an_image_holds_beside_objects(project):
    stains = Stains("mine", [("Hematoxylin", (0.6, 0.7, 0.3)), ("Eosin", (0.2, 0.9, 0.1))])
    with QuPathProject.open(project, "r+") as opened:
        objects = opened.entries[0].read_objects()
        opened.entries[0].edit_image_data(image_type="BRIGHTFIELD_OTHER", stains=stains, steps=[WorkflowStep("A")])
    with QuPathProject.open(project) as opened:
        data = opened.entries[0].read_image_data()
        assert (data.image_type, data.stains, data.workflow) == ("BRIGHTFIELD_OTHER", stains, [WorkflowStep("A")])
        same(data.objects, objects)
        for change in (lambda e: e.update_objects([0], objects.take([0])), lambda e: e.edit_image_data()):
            with pytest.raises(UsageError, match="reading only"):
                change(opened.entries[0])


def test_an_image_without_objects(project, tmp_path):
    with QuPathProject.open(tmp_path / "q", "x") as opened, open_slide(tmp_path / "white.png", 0.5) as slide:
        entry = opened.add_image(slide)
        assert len(entry.read_image_data().objects) == 0
        entry.edit_image_data(properties={"note": "x"})
    with QuPathProject.open(tmp_path / "q") as opened:
        assert opened.entries[0].read_image_data().properties == {"note": "x"}
        assert len(opened.entries[0].read_objects()) == len(PathObjects.empty())
