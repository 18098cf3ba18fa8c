"""What a project says of its images and of itself: text, tags, names, removal; and that the rest stays."""

import json
import os
import shutil

import pytest
from qupath.pictures import contents, picture
from qupath.qupath_objects import many, same

from stqp.errors import InputError, UsageError
from stqp.qupath.interface import Entry, Project
from stqp.qupath.project import QuPathProject
from stqp.qupath.versions import QuPathVersion
from stqp.slides import open_slide

OBJECTS = [many(4, seed=i) for i in range(3)]  # with ids of their own


def make(folder, tmp_path, names=("a", "b", "c"), version=None, objects=True):
    with QuPathProject.open(folder, "x", version=version) as opened:
        for i, name in enumerate(names):
            with open_slide(picture(tmp_path / "images" / f"{i}.png", (30 + i, 20)), 0.5) as slide:
                entry = opened.add_image(slide, name)
            if objects:
                entry.write_objects(OBJECTS[i])
            entry.stqp_folder.mkdir(parents=True)
            (entry.stqp_folder / "note").write_text(str(entry.id))
    return folder


@pytest.fixture
def project(tmp_path):
    return make(tmp_path / "project", tmp_path)


def images(project):
    return json.loads((project / "project.qpproj").read_text(encoding="utf-8"))["images"]


def state(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_the_public_surface(project):
    """Other ways to read a project offer the same."""
    with QuPathProject.open(project) as opened:
        surface: Project = opened
        entry: Entry = surface.entries[0]
        for thing, kind in ((surface, Project), (entry, Entry)):
            missing = [n for n in vars(kind) if not n.startswith("_") and not hasattr(thing, n)]
            assert not missing


def test_what_is_said_of_an_image_is_kept(project):
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entry("b")
        assert (entry.description, entry.tags, entry.metadata) == (None, [], {})
        assert (entry.is_rgb, entry.size, entry.mpp, entry.image_found) == (True, (31, 20), 0.5, True)
        entry.description = "zweite é\nline"
        entry.tags = ["x", "y z", "x"]
        entry.metadata = {"b": "1", "a": "2", "c": "3"}
        entry.add_metadata({"d": "4"})
        entry.remove_metadata(["a", "none"])
        entry.set_mpp(0.25)
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entry(2)
        assert entry.description == "zweite é\nline" and entry.tags == ["x", "y z"] and entry.mpp == 0.25
        assert list(entry.metadata.items()) == [("b", "1"), ("c", "3"), ("d", "4")]
        same(entry.read_objects(), OBJECTS[1])
        entry.description, entry.tags = None, []
    assert "description" not in images(project)[1]
    server = json.loads((project / "data" / "2" / "server.json").read_text(encoding="utf-8"))
    assert server["metadata"]["pixelCalibration"]["pixelWidth"] == {"value": 0.25, "unit": "µm"}


def test_only_what_changed_is_written(project):
    before = state(project)
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entry("b")
        entry.description, entry.tags, entry.metadata = None, [], {}
        entry.add_metadata({})
        opened.set_classes(opened.classes)
        opened.metadata = {}
        opened.add_classes({})
    assert state(project) == before
    with QuPathProject.open(project, "r+") as opened:
        opened.entry("b").write_objects(many(2, seed=9))
        opened.entry("b").tags = ["x"]
    changed = {p.relative_to(project).as_posix() for p, v in state(project).items() if before.get(p) != v}
    own = {"data/2/data.qpdata", "data/2/summary.json", "project.qpproj", "project.qpproj.backup"}
    assert own <= changed <= own | {"classifiers/classes.json"}


def test_a_project_that_is_only_read_may_not_be_changed(project):
    before = state(project)
    with QuPathProject.open(project) as opened:
        entry = opened.entry("a")
        for change in (
            lambda: setattr(entry, "description", "x"),
            lambda: setattr(entry, "tags", ["x"]),
            lambda: setattr(entry, "metadata", {"x": "y"}),
            lambda: entry.rename("x"),
            lambda: entry.set_mpp(1.0),
            lambda: opened.remove(entry),
            lambda: opened.set_classes({}),
            lambda: setattr(opened, "metadata", {"x": "y"}),
            opened.save,
        ):
            with pytest.raises(UsageError, match="reading only"):
                change()
    assert state(project) == before


def test_wrong_values(project):
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entry("a")
        for mpp in (0, -1.0, float("nan"), float("inf")):
            with pytest.raises(UsageError, match="above 0"):
                entry.set_mpp(mpp)
        with pytest.raises(UsageError, match="empty"):
            entry.rename(" ")
        entry._json["serverBuilder"].pop("metadata")
        with pytest.raises(InputError, match="open and save it in QuPath"):
            entry.set_mpp(0.5)
        assert (entry.size, entry.is_rgb, entry.mpp) == (None, None, None)


def test_a_new_name_takes_the_notes_along(project):
    with QuPathProject.open(project, "r+") as opened:
        opened.entry("a").rename("b")  # as another is called
        assert (opened.entry(1).stqp_folder / "note").read_text() == "1"
        opened.entry(2).rename("A/new?")
        opened.save()
        assert {e.stqp_folder.name for e in opened.entries} == {"b", "A_new_", "c"}
        opened.entry(1).rename("c")
    with QuPathProject.open(project) as opened:
        assert [(e.stqp_folder / "note").read_text() for e in opened.entries] == ["1", "2", "3"]
        assert [e.stqp_folder.name for e in opened.entries] == ["c-1", "A_new_", "c-3"]
    assert sorted(p.name for p in (project / "stqp").iterdir()) == ["A_new_", "c-1", "c-3"]


def test_names_change_places(project):
    with QuPathProject.open(project, "r+") as opened:
        a, b, c = opened.entries
        a.rename("b"), b.rename("c"), c.rename("a")
    with QuPathProject.open(project) as opened:
        assert [(e.name, (e.stqp_folder / "note").read_text()) for e in opened.entries] == [
            ("b", "1"),
            ("c", "2"),
            ("a", "3"),
        ]


def test_a_new_image_does_not_take_the_folder_of_one_that_was_renamed(project, tmp_path):
    with QuPathProject.open(project, "r+") as opened:
        opened.entry("a").rename("z")
        with open_slide(picture(tmp_path / "new.png")) as slide:
            added = opened.add_image(slide, "a")
        assert not added.stqp_folder.exists()
        added.stqp_folder.mkdir()
        (added.stqp_folder / "note").write_text("4")
    with QuPathProject.open(project) as opened:
        assert [(e.name, e.stqp_folder.name, (e.stqp_folder / "note").read_text()) for e in opened.entries] == [
            ("z", "z", "1"),
            ("b", "b", "2"),
            ("c", "c", "3"),
            ("a", "a", "4"),
        ]


def test_an_error_leaves_names_as_they_were(project):
    before = state(project)
    with pytest.raises(ZeroDivisionError), QuPathProject.open(project, "r+") as opened:
        opened.entry("a").rename("b")
        opened.remove(opened.entry("c"))
        opened.set_classes({})
        opened.entry(1).set_mpp(9.0)
        raise ZeroDivisionError
    assert state(project) == before


@pytest.mark.parametrize("keep", [False, True])
def test_removing(project, tmp_path, keep):
    with QuPathProject.open(project, "r+") as opened:
        gone = opened.entry("b")
        gone.write_objects(many(2, seed=20))
        opened.remove(gone, keep_files=keep)
        assert [e.name for e in opened.entries] == ["a", "c"]
        assert (project / "data" / "2" / "data.qpdata").exists()  # until it is saved
        with pytest.raises(UsageError, match="no image of"):
            opened.remove(gone)
    assert [i["entryID"] for i in images(project)] == [1, 3]
    assert (project / "data" / "2" / "data.qpdata").exists() == keep
    assert (project / "stqp" / "b" / "note").exists() == keep
    assert not [p for p in contents(project) if "staged" in p or "pending" in p]
    assert (tmp_path / "images" / "1.png").exists()
    with QuPathProject.open(project, "r+") as opened, open_slide(picture(tmp_path / "d.png")) as slide:
        assert opened.add_image(slide).id == 4


def test_removing_what_was_just_added(project, tmp_path):
    before = state(project)
    with QuPathProject.open(project, "r+") as opened, open_slide(picture(tmp_path / "d.png")) as slide:
        added = opened.add_image(slide)
        added.write_objects(many(2))
        opened.remove(added)
        assert opened.add_image(slide).id == 5
        opened.remove(opened.entries[-1])
    assert not (project / "data" / "4").exists() and not (project / "data" / "5").exists()
    changed = {p.relative_to(project).as_posix() for p, v in state(project).items() if before.get(p) != v}
    assert changed <= {"project.qpproj", "project.qpproj.backup", "classifiers/classes.json"}


def test_data_that_another_project_file_has_stays(project):
    """As of a project made of some images of another, or of one that was replaced."""
    shutil.copy(project / "project.qpproj", project / "part.qpproj")
    with QuPathProject.open(project, "r+") as opened:
        opened.remove(opened.entry("a"))
    with QuPathProject.open(project / "part.qpproj") as opened:
        same(opened.entry("a").read_objects(), OBJECTS[0])


def test_classes_are_set_with_what_is_known_of_them(project):
    file = project / "classifiers" / "classes.json"
    listed = [{"name": "A", "color": -1, "note": 1}, {"color": 7}, "odd", {"name": "B", "color": None}]
    file.write_text(json.dumps({"pathClasses": listed, "more": [1]}))
    with QuPathProject.open(project, "r+") as opened:
        assert list(opened.classes) == ["A", "B"] and opened.classes["A"] == (255, 255, 255)
        opened.set_classes({"C": (1, 2, 3), "A": (255, 255, 255)})
    assert json.loads(file.read_text()) == {
        "pathClasses": [{"name": "C", "color": -16711165}, listed[0], listed[1], "odd"],
        "more": [1],
    }


def test_metadata_of_the_project(tmp_path, caplog):
    folder = make(tmp_path / "p", tmp_path, ["a"], version="0.6.0")
    with QuPathProject.open(folder, "r+") as opened:
        assert opened.metadata == {}
        opened.metadata = {"é": "1"}
    assert (folder / "data" / "metadata.json").read_text(encoding="utf-8") == '{"é":"1"}'
    with QuPathProject.open(folder) as opened:
        assert opened.metadata == {"é": "1"} and not caplog.text
    with QuPathProject.open(make(tmp_path / "old", tmp_path, ["a"]), "r+") as opened:
        opened.metadata = {"a": "b"}
        opened.entry("a").tags = ["x"]
    assert "no metadata of projects" in caplog.text and "drops the tags" in caplog.text
    with QuPathProject.open(tmp_path / "old") as opened:
        assert opened.metadata == {"a": "b"} and opened.entry("a").tags == ["x"]


@pytest.mark.parametrize(("version", "keys"), [
    ("0.4.4", ["providerClassName", "uri", "args", "metadata"]),
    (None, ["builder", "metadata"]),
    ("0.7.0", ["builderType", "providerClassName", "uri", "args", "metadata"]),
])  # fmt: skip
def test_a_new_project_for_a_version(tmp_path, version, keys):
    folder = make(tmp_path / "p", tmp_path, ["a"], version)
    assert list(json.loads((folder / "data" / "1" / "server.json").read_text())) == keys
    content = json.loads((folder / "project.qpproj").read_text())
    assert content["version"] == (version or "0.5.1")
    assert ("tags" in content["images"][0]) == (version == "0.7.0")
    assert f'"qupathVersion":"{version or "0.5.1"}"'.encode() in (folder / "data" / "1" / "data.qpdata").read_bytes()
    with QuPathProject.open(folder, "a", version="0.6.0") as opened:
        assert str(opened.version) == (version or "0.5.1")  # it keeps its own


@pytest.mark.parametrize("text", ["0.3.2", "new", ""])
def test_versions_that_are_not_written_for(tmp_path, text):
    with pytest.raises(UsageError, match=r"0\.4"):
        QuPathProject.open(tmp_path / "p", "x", version=text)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("text", "number", "tags", "builder"),
    [
        ("0.5.1", (0, 5), False, "sliced"),
        ("v0.6.0-rc4", (0, 6), True, "flipped"),
        ("0.6.0-SNAPSHOT", (0, 6), True, "flipped"),
        ("0.7.0", (0, 7), True, "other"),
        ("SNAPSHOT", None, True, "other"),
        (None, (0, 1), False, "color_deconvolved"),
    ],
)
def test_what_versions_do(text, number, tags, builder):
    version = QuPathVersion.parse(text)
    assert (version.number, version.keeps_tags, version.keeps_project_metadata) == (number, tags, tags)
    assert (version.geojson_step is None) == version.takes_geometry_collections == (not tags)
    inner = {"builderType": "rotated", "builder": {"builderType": "uri", "metadata": {"builderType": "no"}}}
    assert version.unknown_builder(inner) is None
    assert version.unknown_builder({"builderType": "cropped", "list": [inner, {"builderType": builder}]}) == builder


def test_numbers_and_text_that_json_hardly_has_are_kept(project):
    file = project / "project.qpproj"
    text = file.read_text(encoding="utf-8").replace(
        '"sizeZ": 1', '"sizeZ": 1, "odd": [NaN, -Infinity, 1e-30, "\\ud83d"]'
    )
    file.write_text(text, encoding="utf-8")
    with QuPathProject.open(project, "r+") as opened:
        opened.entry("a").description = "x"
    odd = images(project)[0]["serverBuilder"]["metadata"]["odd"]
    assert repr(odd) == repr([float("nan"), float("-inf"), 1e-30, "\ud83d"])


def test_other_images_of_a_file_are_other_images(project, tmp_path):
    file = project / "project.qpproj"
    text = file.read_text(encoding="utf-8").replace('"--series",\n          "0"', '"--series",\n          "2"', 1)
    file.write_text(text, encoding="utf-8")
    with QuPathProject.open(project, "r+") as opened:
        with open_slide(tmp_path / "images" / "0.png") as slide:
            assert opened.add_image(slide).id == 4
        with open_slide(tmp_path / "images" / "1.png") as slide:
            assert opened.add_image(slide).id == 2


def test_several_saves_of_one_project(project, tmp_path):
    with QuPathProject.open(project, "r+") as opened:
        for i in range(3):
            opened.entry("a").write_objects(many(2, seed=30 + i))
            opened.entry("a").description = str(i)
            opened.save()
            with QuPathProject.open(project) as other:
                assert len(other.entry("a").read_objects()) == 4 + 2 * (i + 1)
                assert other.entry("a").description == str(i)
        opened.remove(opened.entry("c"))
        opened.save()
        assert not (project / "data" / "3").exists()


def test_a_save_that_was_refused_can_be_made_again(project, monkeypatch):
    """As when somebody makes room on a full disk."""
    import errno

    from stqp.errors import EnvironmentProblem

    with QuPathProject.open(project, "r+") as opened:
        opened.entry("a").write_objects(many(3, seed=40))
        opened.entry("a").description = "x"
        really = os.replace

        def full(source, target, **options):
            if str(target).endswith("project.qpproj"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return really(source, target, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(EnvironmentProblem, match="full"):
                opened.save()
        with QuPathProject.open(project) as other:
            assert len(other.entry("a").read_objects()) == 4 and other.entry("a").description is None
        opened.save()
    with QuPathProject.open(project) as other:
        assert len(other.entry("a").read_objects()) == 7 and other.entry("a").description == "x"


def test_a_disk_without_links(project, monkeypatch):
    """ExFAT and some network drives have none; the old file is copied then."""

    def no_links(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with QuPathProject.open(project, "r+") as opened:
        opened.entry("a").write_objects(many(3, seed=41))
        opened.entry("a").rename("new")
    with QuPathProject.open(project) as opened:
        assert len(opened.entry("new").read_objects()) == 7
    assert not [p for p in contents(project) if p.endswith((".bkp", ".part")) or p.startswith(".")]


def test_what_somebody_put_into_a_new_folder_stays_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), QuPathProject.open(tmp_path / "p", "x"):
        picture(tmp_path / "p" / "images" / "mine.png")
        raise ZeroDivisionError
    assert list(contents(tmp_path / "p")) == ["images/mine.png"]
