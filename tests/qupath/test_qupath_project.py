"""Projects on disk: modes, saving, going back, locks, paths."""

import json
import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image
from qupath.pictures import contents, picture
from qupath.qupath_objects import many, same

from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.locking import LOCK_NAME
from stqp.qupath import qpdata, servers, uris
from stqp.qupath.entry import ProjectEntry
from stqp.qupath.folders import safe_name
from stqp.qupath.objects import ObjectKind
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide


@pytest.fixture
def slide(tmp_path):
    with open_slide(picture(tmp_path / "images" / "a slide#1.png"), mpp=0.2738) as opened:
        yield opened


@pytest.fixture
def objects():
    return many(40, seed=9)


@pytest.fixture
def project(tmp_path, slide, objects):
    """Folder of a project with one image and 40 objects."""
    with QuPathProject.open(tmp_path / "project", "x") as opened:
        opened.add_image(slide, "first", {"sample": "S1"}).write_objects(objects)
    return tmp_path / "project"


def test_a_project_has_the_files_of_qupath(project, slide, objects):
    assert sorted(contents(project)) == [
        "classifiers/classes.json",
        "data/1/data.qpdata",
        "data/1/server.json",
        "data/1/summary.json",
        "data/1/thumbnail.jpg",
        "project.qpproj",
    ]
    content = json.loads((project / "project.qpproj").read_text(encoding="utf-8"))
    assert list(content) == ["version", "createTimestamp", "modifyTimestamp", "uri", "lastID", "images"]
    assert content["uri"] == uris.to_uri(project / "project.qpproj")
    image = content["images"][0]
    assert list(image) == ["serverBuilder", "entryID", "randomizedName", "imageName", "metadata"]
    builder = image["serverBuilder"]
    assert builder["uri"].endswith("/images/a%20slide%231.png") and builder["uri"].startswith("file:/")
    assert builder["args"] == ["--series", "0"]
    calibration = builder["metadata"]["pixelCalibration"]
    assert calibration["pixelWidth"] == calibration["pixelHeight"] == {"value": 0.2738, "unit": "µm"}
    assert builder["metadata"]["magnification"] == 40.0
    assert [c["color"] for c in builder["metadata"]["channels"]] == [-65536, -16711936, -16776961]
    classes = json.loads((project / "classifiers/classes.json").read_text())["pathClasses"]
    assert {"name": "Tumor: Positive", "color": -377282} in classes
    summary = json.loads((project / "data/1/summary.json").read_text())
    assert summary["hierarchy"]["nObjects"] == 41
    assert sum(summary["hierarchy"]["objectTypeCounts"].values()) == 41
    annotations = int((objects.kind == ObjectKind.ANNOTATION).sum())
    assert sum(summary["hierarchy"]["annotationClassificationCounts"].values()) == annotations
    assert Image.open(project / "data/1/thumbnail.jpg").size == (slide.width, slide.height)


def test_reading(project, slide, objects):
    with QuPathProject.open(project / "project.qpproj") as opened:
        entry = opened.entry("first")
        assert opened.entry(1) is entry and opened.entry("1") is entry
        assert (entry.id, entry.name, entry.metadata) == (1, "first", {"sample": "S1"})
        assert entry.image_path == slide.path
        assert entry.mpp == 0.2738
        assert entry.size == (97, 61)
        assert entry.folder == project / "data" / "1"
        same(entry.read_objects(), objects)
        assert opened.classes["Tumor: Positive"] == (250, 62, 62)
        with pytest.raises(UsageError, match="reading only"):
            entry.write_objects(objects)
        with pytest.raises(InputError, match="'first'"):
            opened.entry("second")
    assert not (project / LOCK_NAME).exists()


def test_an_image_is_added_once(project, slide):
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.add_image(slide, "another name", {"batch": "2"})
        assert entry.id == 1 and len(opened.entries) == 1
    with QuPathProject.open(project) as opened:
        assert opened.entry(1).metadata == {"sample": "S1", "batch": "2"}
        assert opened.entry(1).name == "first"


def test_opening_to_change_and_changing_nothing_leaves_every_byte(project):
    before = contents(project)
    with QuPathProject.open(project, "a"):
        pass
    assert contents(project) == before


def test_objects_are_replaced_and_others_stay(project, objects):
    new = many(10, seed=30)
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entry("first")
        entry.write_objects(new, lambda present: present.classes == "Neoplastic")
        kept = objects.take(objects.classes != "Neoplastic")
        assert len(entry.read_objects()) == len(kept) + 10  # before it is saved
        with QuPathProject.open(project) as other:
            same(other.entry(1).read_objects(), objects)
        entry.write_objects(many(3, seed=31))
    with QuPathProject.open(project) as opened:
        assert len(opened.entry(1).read_objects()) == len(kept) + 13
    assert not [p for p in contents(project) if "staged" in p or p.endswith(".bkp")]


def test_what_qupath_wrote_besides_is_kept(project, slide):
    file = project / "project.qpproj"
    content = json.loads(file.read_text())
    content["future"] = {"a": [1, 2.5, None]}
    content["images"][0] |= {"tags": ["x"], "description": "é"}
    content["images"][0]["serverBuilder"] = {
        "builderType": "rotated",
        "builder": content["images"][0]["serverBuilder"],
        "rotation": "ROTATE_90",
    }
    file.write_text(json.dumps(content))
    classes = project / "classifiers" / "classes.json"
    listed = [{"name": "Neoplastic", "color": -1, "note": "mine"}, {"color": 3}]
    classes.write_text(json.dumps({"other": 1, "pathClasses": listed}))
    with QuPathProject.open(project, "r+") as opened:
        assert opened.entry(1).mpp == 0.2738
        assert opened.add_image(slide).id == 1
        opened.add_classes({"Neoplastic": (1, 2, 3), "New": (1, 2, 3)})
        opened.entry(1).add_metadata({"k": "v"})
    saved = json.loads(file.read_text())
    assert saved["future"] == {"a": [1, 2.5, None]}
    assert {k: v for k, v in saved["images"][0].items() if k != "metadata"} == {
        k: v for k, v in content["images"][0].items() if k != "metadata"
    }
    assert saved["images"][0]["metadata"] == {"sample": "S1", "k": "v"}
    assert json.loads((project / "project.qpproj.backup").read_text()) == content
    colors = json.loads(classes.read_text())
    assert colors["other"] == 1
    assert colors["pathClasses"][:2] == listed
    assert colors["pathClasses"][2] == {"name": "New", "color": -16711165}


@pytest.mark.parametrize("mode", ["x", "w", "a"])
def test_an_error_leaves_no_half_project(tmp_path, slide, objects, mode):
    with pytest.raises(ZeroDivisionError), QuPathProject.open(tmp_path / "new", mode) as opened:
        opened.add_image(slide).write_objects(objects)
        assert (tmp_path / "new" / "data" / "1").exists()
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZeroDivisionError), QuPathProject.open(tmp_path / "empty", mode) as opened:
        opened.add_image(slide).write_objects(objects)
        raise ZeroDivisionError
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("mode", ["r+", "a", "w"])
def test_an_error_changes_nothing_of_a_project(project, tmp_path, mode):
    before = contents(project)
    with (
        pytest.raises(ZeroDivisionError),
        open_slide(picture(tmp_path / "b.png")) as other,
        QuPathProject.open(project, mode) as opened,
    ):
        if mode != "w":
            opened.entry(1).write_objects(many(5, seed=50), lambda present: present.kind == 0)
        opened.add_image(other).write_objects(many(5, seed=51))
        opened.add_classes({"New": (1, 2, 3)})
        raise ZeroDivisionError
    assert contents(project) == before


def test_the_old_objects_are_there_until_the_new_ones_are(project, objects, monkeypatch):
    """A crash at the moment of replacing: the file or its backup is whole."""

    def crash(self, target):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), QuPathProject.open(project, "r+") as opened:
        opened.entry(1).write_objects(many(5, seed=60), lambda present: present.kind == 0)
        monkeypatch.setattr(Path, "replace", crash)
    monkeypatch.undo()
    with QuPathProject.open(project) as opened:
        same(opened.entry(1).read_objects(), objects)


def test_a_broken_file_does_not_take_the_place_of_a_good_backup(project, objects):
    data = project / "data" / "1" / "data.qpdata"
    shutil.copy(data, data.with_name("data.qpdata.bkp"))
    data.write_bytes(data.read_bytes()[:500])
    with QuPathProject.open(project, "r+") as opened:
        opened.entry(1).write_objects(many(5, seed=61))
    with QuPathProject.open(project) as opened:
        assert len(opened.entry(1).read_objects()) == len(objects) + 5
    assert not data.with_name("data.qpdata.bkp").exists()


def test_w_keeps_what_it_replaces(project, slide, objects):
    with QuPathProject.open(project, "w") as opened:
        assert opened.entries == []
        opened.add_image(slide).write_objects(many(3, seed=70))
    with QuPathProject.open(project) as opened:
        assert [e.id for e in opened.entries] == [2]
    (old,) = project.glob("project.replaced-*.qpproj")
    with QuPathProject.open(old) as opened:
        same(opened.entry(1).read_objects(), objects)


@pytest.mark.parametrize("mode", ["x", "w", "a", "r", "r+"])
def test_other_things_are_refused(tmp_path, mode):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_text("years of work")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "other", tmp_path / "file"):
        with pytest.raises(InputError, match=path.name):
            QuPathProject.open(path, mode)
    assert contents(tmp_path) == {"other/thesis.docx": b"years of work", "file": b""}


def test_modes(project, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        QuPathProject.open(project, "x")
    for mode in ("r", "r+"):
        with pytest.raises(InputError, match="no QuPath project"):
            QuPathProject.open(tmp_path / "nowhere", mode)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UsageError):
        QuPathProject.open(project, "rw")
    opened = QuPathProject.open(project, "r+")
    opened.close()
    opened.close()
    with pytest.raises(UsageError, match="closed"):
        opened.add_classes({})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": 3}', '{"images": [{}]}'])
def test_a_broken_project_file_is_named(project, text):
    (project / "project.qpproj").write_text(text)
    with pytest.raises(InputError, match=r"project\.qpproj"):
        QuPathProject.open(project, "r+")
    assert (project / "project.qpproj").read_text() == text
    assert not (project / LOCK_NAME).exists()


def test_two_writers_are_kept_apart(project):
    with QuPathProject.open(project, "r+"):
        with pytest.raises(EnvironmentProblem, match=str(os.getpid())):
            QuPathProject.open(project, "a")
        with QuPathProject.open(project) as reader:
            assert len(reader.entries) == 1
        assert (project / LOCK_NAME).exists()
    with QuPathProject.open(project, "r+"):
        pass


def _hold(folder, ready, go_on):
    with QuPathProject.open(folder, "r+"):
        ready.set()
        go_on.wait(30)


def test_another_process_holds_the_lock_until_it_is_killed(project):
    context = multiprocessing.get_context("fork")
    ready, go_on = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(project, ready, go_on))
    holder.start()
    try:
        assert ready.wait(30)
        with pytest.raises(EnvironmentProblem, match=str(holder.pid)):
            QuPathProject.open(project, "r+")
        holder.kill()
        holder.join()
        assert (project / LOCK_NAME).exists()
        with QuPathProject.open(project, "r+"):
            pass
    finally:
        holder.kill()
        holder.join()
    assert not (project / LOCK_NAME).exists()


def _create_and_wait(folder, image, ready):
    opened = QuPathProject.open(folder, "x")
    with open_slide(image) as slide:
        opened.add_image(slide).write_objects(many(10))
    ready.set()
    threading.Event().wait(30)


def test_what_a_killed_run_left_is_cleared(tmp_path, slide):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    maker = context.Process(target=_create_and_wait, args=(tmp_path / "p", slide.path, ready))
    maker.start()
    assert ready.wait(30)
    with pytest.raises((EnvironmentProblem, InputError)):
        QuPathProject.open(tmp_path / "p", "x")
    maker.kill()
    maker.join()
    assert (tmp_path / "p" / "data" / "1").exists()
    with QuPathProject.open(tmp_path / "p", "x") as opened:
        assert opened.add_image(slide).id == 1
        assert len(opened.entry(1).read_objects()) == 0
    assert not (tmp_path / "p" / LOCK_NAME).exists()


def test_locks_of_others(project):
    lock = project / LOCK_NAME
    lock.write_text(json.dumps({"pid": 1, "host": "another-machine", "creating": False}))
    with pytest.raises(EnvironmentProblem, match="another-machine"):
        QuPathProject.open(project, "r+")
    assert lock.exists()
    # the pid of a process that ended, given to another since (in a container it is often the same)
    import platform

    lock.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "began": "1", "creating": False}))
    with QuPathProject.open(project, "r+"):
        pass
    lock.write_text("garbage")
    with QuPathProject.open(project, "r+"):
        pass


def test_a_moved_project_finds_its_images(tmp_path, objects):
    old = tmp_path / "old"
    image = picture(old / "images" / "é a.png")
    with open_slide(image) as slide, QuPathProject.open(old / "deep" / "p", "x") as opened:
        opened.add_image(slide).write_objects(objects)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(old, tmp_path / "elsewhere" / "new")
    with QuPathProject.open(tmp_path / "elsewhere" / "new" / "deep" / "p") as opened:
        (entry,) = opened.entries
        assert entry.image_path == tmp_path / "elsewhere" / "new" / "images" / "é a.png"
    shutil.rmtree(tmp_path / "elsewhere" / "new" / "images")
    with QuPathProject.open(tmp_path / "elsewhere" / "new" / "deep" / "p") as opened:
        assert opened.entries[0].image_path == old / "images" / "é a.png"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a.svs", "a.svs"),
        ('a/b\\c:d*e?f"g<h>i|j', "a_b_c_d_e_f_g_h_i_j"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("dots...", "dots"),
        ("...", "_"),
        ("", "_"),
        ("tab\t", "tab_"),
        ("x" * 300, "x" * 100),
    ],
)
def test_folder_names_are_good_on_windows(name, safe):
    assert safe_name(name) == safe


def test_folders_of_entries_are_unique(tmp_path):
    with QuPathProject.open(tmp_path / "p", "x") as opened:
        for i, name in enumerate(["a:b", "A?b", "c"]):
            with open_slide(picture(tmp_path / f"{i}.png")) as slide:
                opened.add_image(slide, name)
        folders = [e.stqp_folder.name for e in opened.entries]
        assert folders == ["a_b-1", "A_b-2", "c"]
        with open_slide(picture(tmp_path / "3.png")) as slide:
            opened.add_image(slide, "c")
        with pytest.raises(InputError, match="2 images named 'c'"):
            opened.entry("c")


def test_openslide_images_are_not_cropped_by_qupath(tmp_path, slide):
    slide.backend = "openslide"
    builder = servers.builder_json(slide, "n")
    assert builder["providerClassName"] == "qupath.lib.images.servers.openslide.OpenslideServerBuilder"
    assert builder["args"] == ["--no-crop"]


@pytest.mark.parametrize(
    ("mpp", "magnification"),
    [(0.25, 40), (0.2738, 40), (0.5, 20), (0.4991, 20), (1.0, 10), (0.35, None), (None, None), (0.1, None)],
)
def test_magnification(mpp, magnification):
    assert servers.magnification_of(mpp) == magnification


def test_an_image_without_size_of_pixels(tmp_path):
    with open_slide(picture(tmp_path / "a.png")) as slide, QuPathProject.open(tmp_path / "p", "x") as opened:
        entry = opened.add_image(slide)
        assert entry.mpp is None
        metadata = servers.metadata_of(entry._json)
        assert metadata["pixelCalibration"]["pixelWidth"] == {"value": 1.0, "unit": "px"}
        assert "magnification" not in metadata
        assert isinstance(entry, ProjectEntry)


def test_ids_of_images_are_never_used_again(project, tmp_path):
    """A folder of data whose entry was deleted in QuPath keeps its number."""
    content = json.loads((project / "project.qpproj").read_text())
    content["images"], content["lastID"] = [], 0
    (project / "project.qpproj").write_text(json.dumps(content))
    with open_slide(picture(tmp_path / "b.png")) as slide, QuPathProject.open(project, "r+") as opened:
        assert opened.add_image(slide).id == 2
        assert len(opened.entry(2).read_objects()) == 0
    assert qpdata.read_objects(project / "data" / "1" / "data.qpdata").ids.size == 40
