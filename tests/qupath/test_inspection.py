"""What a project is said to hold."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from qupath.qupath_objects import many

from stqp.errors import InputError
from stqp.qupath.inspection import inspect_project
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import stamp
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide


def picture(path, size=(97, 61)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
    return path


@pytest.fixture
def project(tmp_path):
    """Two images: stqp's objects of two sources and a person's in the first, nothing in the second."""
    ours = stamp(many(30, seed=1, kind=ObjectKind.DETECTION), "predict:a", "run-1")
    later = stamp(many(5, seed=2, kind=ObjectKind.ANNOTATION), "import-xenium:s", "run-2")
    objects = PathObjects.concatenate([ours, later, many(7, seed=3, kind=ObjectKind.ANNOTATION)])
    corrected = dataclasses.replace(objects, classes=objects.classes.copy())
    corrected.classes[[0, 31]] = "Dead"
    with QuPathProject.open(tmp_path / "project", "x") as opened:
        for name in ("a.png", "b.png"):
            with open_slide(picture(tmp_path / name), mpp=0.25) as slide:
                entry = opened.add_image(slide)
            if name == "a.png":
                entry.write_objects(corrected)
                entry.stqp_folder.mkdir(parents=True)
                record = {"started": "2026-01-02T03:04:05Z", "results": {"source": "predict:a"}}
                (entry.stqp_folder / "predict-a.json").write_text(json.dumps(record))
                (entry.stqp_folder / "other.json").write_text("[1")
    return tmp_path / "project"


def info_of(folder, *names):
    with QuPathProject.open(folder) as opened:
        return inspect_project(opened, names)


def test_objects_writers_and_images(project):
    info = info_of(project)
    assert (info.images, info.version) == (2, "0.5.1") and info.saved
    first, second = info.entries
    assert (first.image, first.width, first.height, first.mpp) == ("found", 97, 61, 0.25)
    assert first.image_type == "BRIGHTFIELD_H_E" and first.saved and first.error is None
    assert first.objects == 42 and first.kinds == {"annotations": 12, "detections": 30}
    assert sum(first.classes.values()) == 42 and [*first.classes.values()] == sorted(first.classes.values())[::-1]
    imported, predicted = first.writers
    assert (predicted.source, predicted.objects, predicted.corrected) == ("predict:a", 30, 1)
    assert predicted.last_run == "2026-01-02T03:04:05Z" and predicted.runs == {"run-1": 30}
    assert (imported.objects, imported.corrected, imported.last_run) == (5, 1, None)
    assert first.others == {"annotations": 7}
    assert (second.objects, second.saved, second.writers) == (0, None, [])
    assert info.class_objects == first.classes
    json.dumps(info.to_dict())


def test_one_image(project):
    assert [e.name for e in info_of(project, "b.png").entries] == ["b.png"]
    assert info_of(project, "1").images == 2
    with pytest.raises(InputError, match="no image 'c'"):
        info_of(project, "c")


def test_images_that_moved_or_are_gone(project, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(str(project), moved / "project")
    shutil.move(str(tmp_path / "a.png"), moved / "a.png")
    (tmp_path / "b.png").unlink()
    assert [e.image for e in info_of(moved / "project").entries] == ["found relative to the project", "missing"]


def test_a_broken_file_is_said_and_others_are_read(project):
    path = project / "data" / "1" / "data.qpdata"
    path.write_bytes(path.read_bytes()[:900])
    first, second = info_of(project).entries
    assert first.error and first.objects == 0 and second.error is None
