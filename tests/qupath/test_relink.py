"""Images that moved: found by a map, by their place beside the project, by their name; and never guessed."""

import json
import shutil

import pytest
from qupath.pictures import contents, picture

from stqp.errors import InputError, UsageError
from stqp.qupath import relink, uris
from stqp.qupath.project import QuPathProject
from stqp.qupath.validation.imagesize import image_sizes
from stqp.slides import open_slide


@pytest.fixture
def project(tmp_path):
    """Folder of a project whose two images are in old/."""
    folder = tmp_path / "project"
    with QuPathProject.open(folder, "x") as opened:
        for name, size in (("é a.png", (40, 30)), ("b#1.png", (50, 20))):
            with open_slide(picture(tmp_path / "old" / "deep" / name, size), 0.5) as slide:
                opened.add_image(slide)
    return folder


def move(tmp_path, to):
    target = tmp_path / to
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tmp_path / "old", target)
    return target


def set_uris(project, change, recorded=None):
    """Have the project file say other URIs, as one from another machine does."""
    file = project / "project.qpproj"
    content = json.loads(file.read_text(encoding="utf-8"))
    for image in content["images"]:
        image["serverBuilder"]["uri"] = change(image["serverBuilder"]["uri"])
    content["uri"] = recorded or content["uri"]
    file.write_text(json.dumps(content), encoding="utf-8")


def statuses(report):
    return [r.status for r in report]


def paths(project):
    with QuPathProject.open(project) as opened:
        return [entry.image_path for entry in opened.entries]


def test_all_found_changes_nothing(project, tmp_path):
    before = contents(project)
    with QuPathProject.open(project, "r+") as opened:
        report = opened.relink([(tmp_path / "old", tmp_path / "new")], [tmp_path])
    assert statuses(report) == [relink.FOUND] * 2
    assert contents(project) == before


@pytest.mark.parametrize("given", ["folder", "longer first", "dictionary", "uri"])
def test_by_map(project, tmp_path, given):
    new = move(tmp_path, "new place/x")
    mapping = {
        "folder": [(tmp_path / "old", new)],
        "longer first": [(tmp_path, tmp_path / "wrong"), (tmp_path / "old" / "deep", new / "deep")],
        "dictionary": {str(tmp_path / "old"): str(new)},
        "uri": [(uris.to_uri(tmp_path / "old"), uris.to_uri(new))],
    }[given]
    untouched = (project / "data" / "1" / "summary.json").exists()
    with QuPathProject.open(project, "r+") as opened:
        report = opened.relink(mapping)
        assert statuses(report) == [relink.RELINKED] * 2
        assert report[0].old == uris.to_uri(tmp_path / "old" / "deep" / "é a.png")
        assert report[0].new == uris.to_uri(new / "deep" / "é a.png") == opened.entry(1).image_uri
    assert paths(project) == [new / "deep" / "é a.png", new / "deep" / "b#1.png"]
    server = json.loads((project / "data" / "1" / "server.json").read_text(encoding="utf-8"))
    assert server["builder"]["uri"] == report[0].new
    assert (project / "data" / "1" / "summary.json").exists() == untouched


def test_from_windows_and_from_a_share(project, tmp_path):
    set_uris(project, lambda u: "file:/D:/Slides/" + u.rsplit("/", 1)[1], "file:/C:/p/project.qpproj")
    with QuPathProject.open(project, "r+") as opened:
        assert statuses(opened.relink([("d:\\slides", tmp_path / "old" / "deep")])) == [relink.RELINKED] * 2
    assert [p.exists() for p in paths(project)] == [True, True]
    set_uris(project, lambda u: "file:////lab_nas/Slides/" + u.rsplit("/", 1)[1])
    with QuPathProject.open(project, "r+") as opened:
        opened.relink({"\\\\LAB_NAS\\slides": tmp_path / "old" / "deep"})
    assert [p.exists() for p in paths(project)] == [True, True]


def test_for_another_machine(project, tmp_path):
    with QuPathProject.open(project, "r+") as opened:
        report = opened.relink([(tmp_path / "old", "\\\\server\\share")], check=False, force=True)
    assert [r.new for r in report] == ["file://server/share/deep/%C3%A9%20a.png", "file://server/share/deep/b%231.png"]


def test_by_name(project, tmp_path):
    new = move(tmp_path, "elsewhere/many/folders/down")
    (tmp_path / "elsewhere" / "é a.png").mkdir()  # a folder of the name is no image
    with QuPathProject.open(project, "r+") as opened:
        assert statuses(opened.relink(search=[tmp_path / "elsewhere"], dry_run=True)) == [relink.RELINKED] * 2
        assert not opened.entry(1).image_found
        assert statuses(opened.relink(search=[tmp_path / "elsewhere", tmp_path / "elsewhere"])) == [relink.RELINKED] * 2
        assert opened.entry(1).image_found
    assert paths(project) == [new / "deep" / "é a.png", new / "deep" / "b#1.png"]


def test_by_name_in_other_capitals_and_accents(project, tmp_path):
    new = move(tmp_path, "new")
    (new / "deep" / "é a.png").rename(new / "E\u0301 A.PNG")
    with QuPathProject.open(project, "r+") as opened:
        assert statuses(opened.relink(search=[new])) == [relink.RELINKED] * 2


def test_the_size_decides_between_two_and_nothing_else_does(project, tmp_path):
    new = move(tmp_path, "new")
    picture(new / "other" / "é a.png", (41, 30))
    with QuPathProject.open(project, "r+") as opened:
        assert statuses(opened.relink(search=[new])) == [relink.RELINKED] * 2
        assert opened.entry(1).image_path == new / "deep" / "é a.png"
    (new / "deep").rename(new / "deeper")
    shutil.copy(new / "deeper" / "é a.png", new / "é a.png")
    before = contents(project)
    with QuPathProject.open(project, "r+") as opened:
        report = opened.relink(search=[new], dry_run=True)
        assert statuses(report) == [relink.AMBIGUOUS, relink.RELINKED]
        assert report[0].candidates == (new / "deeper" / "é a.png", new / "é a.png")
    assert contents(project) == before


def test_another_image_of_the_name_is_refused(project, tmp_path):
    shutil.rmtree(tmp_path / "old")
    wrong = picture(tmp_path / "new" / "deep" / "é a.png", (40, 31))
    (tmp_path / "new" / "deep" / "b#1.png").write_text("no image")
    before = contents(project)
    for options in ({"search": [tmp_path / "new"]}, {"mapping": [(tmp_path / "old", tmp_path / "new")]}):
        with QuPathProject.open(project, "r+") as opened:
            report = opened.relink(**options)
        assert statuses(report) == [relink.OTHER_SIZE, relink.UNREADABLE]
        assert report[0].candidates == (wrong,)
        assert contents(project) == before


def test_one_file_for_two_images_is_refused(project, tmp_path):
    with QuPathProject.open(project, "r+") as opened, open_slide(picture(tmp_path / "more" / "é a.png", (40, 30))) as s:
        opened.add_image(s)
    shutil.rmtree(tmp_path / "more")
    new = move(tmp_path, "new")
    with QuPathProject.open(project, "r+") as opened:
        report = opened.relink(search=[new])
    assert statuses(report) == [relink.AMBIGUOUS, relink.RELINKED, relink.AMBIGUOUS]


def test_every_file_of_an_image_of_several(project, tmp_path):
    file = project / "project.qpproj"
    content = json.loads(file.read_text(encoding="utf-8"))
    one, two = (image["serverBuilder"] for image in content["images"])
    content["images"][0]["serverBuilder"] = {
        "builderType": "rotated",
        "rotation": "ROTATE_90",
        "builder": {"builderType": "channels", "builder": one, "channels": [one, two]},
    }
    content["images"][1]["serverBuilder"] = {"builderType": "z_concatenated", "builders": [two, one]}
    file.write_text(json.dumps(content), encoding="utf-8")
    new = move(tmp_path, "new")
    with QuPathProject.open(project, "r+") as opened:
        (new / "deep" / "b#1.png").rename(new / "hidden.png")
        assert statuses(opened.relink({tmp_path / "old": new})) == [relink.NOT_FOUND] * 2
        assert str(new) not in json.dumps(opened.content)  # not by halves
        (new / "hidden.png").rename(new / "deep" / "b#1.png")
        assert statuses(opened.relink({tmp_path / "old": new})) == [relink.RELINKED] * 2
    text = file.read_text(encoding="utf-8")
    assert text.count("file:") - text.count(uris.to_uri(new)) == 1  # its own
    with QuPathProject.open(project) as opened:
        assert opened.entry(1).image_found and opened.entry(2).image_uri.endswith("b%231.png")


def test_images_on_servers_are_left_alone(project):
    set_uris(project, lambda u: "https://example.org/" + u.rsplit("/", 1)[1])
    before = contents(project)
    with QuPathProject.open(project, "r+") as opened:
        assert statuses(opened.relink({"/a": "/b"})) == [relink.NO_FILE] * 2
        assert opened.entry(1).image_path is None and not opened.entry(1).image_found
    assert contents(project) == before


def test_wrong_use(project, tmp_path):
    with QuPathProject.open(project) as opened:
        assert len(opened.relink(dry_run=True)) == 2
        with pytest.raises(UsageError, match="reading only"):
            opened.relink()
    with QuPathProject.open(project, "r+") as opened, pytest.raises(InputError, match="nowhere"):
        opened.relink(search=[tmp_path / "nowhere"])


def test_a_map_that_fits_nothing_is_named(project, caplog):
    with QuPathProject.open(project, "r+") as opened:
        opened.relink({"/no/such/folder": "/x"})
    assert "/no/such/folder" in caplog.text


def moved_study(tmp_path):
    """A project that moved, with its images inside and beside it, twice as deep as before."""
    study = tmp_path / "study"
    with QuPathProject.open(study / "p", "x") as opened:
        for image in (study / "p" / "in" / "a.png", study / "slides" / "b.png", tmp_path / "c.png"):
            with open_slide(picture(image)) as slide:
                opened.add_image(slide)
    (tmp_path / "x" / "y").mkdir(parents=True)
    shutil.move(study, tmp_path / "x" / "y" / "study")
    return tmp_path / "x" / "y" / "study"


def test_a_project_that_moved_keeps_its_images_when_it_is_saved(tmp_path):
    """The project file then says its new place, so the old one no longer leads to them."""
    study = moved_study(tmp_path)
    places = [study / "p" / "in" / "a.png", study / "slides" / "b.png", tmp_path / "c.png"]
    assert paths(study / "p") == places
    with QuPathProject.open(study / "p", "r+") as opened:
        opened.entry(1).description = "moved"
    assert paths(study / "p") == places
    content = json.loads((study / "p" / "project.qpproj").read_text())
    assert [i["serverBuilder"]["uri"] for i in content["images"]] == [uris.to_uri(p) for p in places]
    shutil.move(study, tmp_path / "again")
    assert paths(tmp_path / "again" / "p")[:2] == [
        tmp_path / "again" / "p/in/a.png",
        tmp_path / "again" / "slides/b.png",
    ]


def test_an_image_that_is_away_while_its_project_moves(tmp_path):
    study = moved_study(tmp_path)
    (study / "p" / "in").rename(tmp_path / "away")
    with QuPathProject.open(study / "p", "r+") as opened:
        opened.entry(2).description = "moved"
    (tmp_path / "away").rename(study / "p" / "in")
    assert paths(study / "p")[0] == study / "p" / "in" / "a.png"


def test_uris_are_updated_when_asked(tmp_path):
    study = moved_study(tmp_path)
    with QuPathProject.open(study / "p", "r+") as opened:
        report = opened.update_uris()
        assert [r.id for r in report] == [1, 2] and opened.update_uris() == []
        assert report[1].new == uris.to_uri(study / "slides" / "b.png")
    before = contents(study)
    with QuPathProject.open(study / "p", "r+") as opened:
        assert opened.update_uris() == []
    assert contents(study) == before


def test_sizes_of_images(tmp_path):
    import numpy as np
    import tifffile

    picture(tmp_path / "a.png", (30, 20))
    with tifffile.TiffWriter(tmp_path / "f.tif") as file:  # fluorescence of two series, which stqp does not train on
        file.write(np.zeros((3, 40, 50), np.uint16), metadata={"axes": "CYX"})
        file.write(np.zeros((7, 9), np.uint8))
    (tmp_path / "t.svs").write_bytes(b"")
    assert image_sizes(tmp_path / "a.png") == {(30, 20)}
    assert {(50, 40), (9, 7)} <= image_sizes(tmp_path / "f.tif")
    assert image_sizes(tmp_path / "t.svs") is None and image_sizes(tmp_path) is None
