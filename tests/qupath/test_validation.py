"""What QuPath would stumble over: each damage is found, and a good project has none."""

import dataclasses
import json
import platform
import shutil

import numpy as np
import pytest
import shapely
from PIL import Image
from qupath.qupath_objects import discs, geometry_objects

from stqp.errors import InputError
from stqp.polygons import Polygons
from stqp.qupath.objects import PathObjects
from stqp.qupath.ownership import stamp
from stqp.qupath.project import QuPathProject
from stqp.qupath.validation import objects as validation_objects
from stqp.qupath.validation.findings import Findings
from stqp.qupath.validation.images import probe_image
from stqp.qupath.validation.objects import check_objects
from stqp.qupath.validation.project import as_qupath_reads, validate_project
from stqp.slides import open_slide

SIZE = (400, 300)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A project that stqp wrote, beside its two images."""
    folder = tmp_path_factory.mktemp("written")
    with QuPathProject.open(folder / "project", "x") as opened:
        for k, name in enumerate(("a.png", "b.png")):
            pixels = np.random.default_rng(k).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            with open_slide(folder / name, mpp=0.25) as slide:
                centres = np.random.default_rng(k).random((40, 2)) * 250 + 20
                objects = PathObjects.build(discs(centres, 6, 12), classes=["Neoplastic", None] * 20)
                opened.add_image(slide).write_objects(stamp(objects, "s", "r"))
    return folder


@pytest.fixture
def project(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy", copy_function=shutil.copy2) / "project"


def codes(folder, severity=None):
    return {f.code for f in validate_project(folder) if severity in (None, f.severity)}


def change(folder, edit):
    path = folder / "project.qpproj"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def builder(content, place=0):
    return content["images"][place]["serverBuilder"]


def test_what_stqp_writes_has_no_findings(written):
    before = {p: p.read_bytes() for p in written.rglob("*") if p.is_file()}
    assert validate_project(written / "project") == []
    assert {p: p.read_bytes() for p in written.rglob("*") if p.is_file()} == before


def test_a_copy_of_it_is_only_moved(project, written):
    # the images are where they were, and beside the copy
    assert codes(project) == {"moved"}


def test_no_project(tmp_path):
    with pytest.raises(InputError, match=r"project\.qpproj"):
        validate_project(tmp_path)


DAMAGE = {
    "timestamp": lambda c: c.pop("createTimestamp"),
    "no-version": lambda c: (c.pop("version"), c.pop("lastID")),
    "too-old": lambda c: c.update(version="v0.2.0-m2"),
    "images": lambda c: c.update(images={}),
    "no-id": lambda c: c["images"][0].pop("entryID"),
    "duplicate-entry": lambda c: c["images"][1].update(entryID=1),
    "no-entry-metadata": lambda c: c["images"][0].update(metadata=None),
    "no-builder": lambda c: c["images"][0].update(serverBuilder=None),
    "no-builder-type": lambda c: builder(c).pop("builderType"),
    "builder-type": lambda c: builder(c).update(builderType="flipped"),
    "no-uri": lambda c: builder(c).pop("uri"),
    "no-args": lambda c: builder(c).pop("args"),
    "args": lambda c: builder(c).update(args="--series 0"),
    "uri-not-encoded": lambda c: builder(c).update(uri="file:/a b.png"),
    "image-missing": lambda c: builder(c).update(uri="file:/nowhere/a.png"),
    "partial-metadata": lambda c: builder(c)["metadata"].pop("channels"),
    "incompatible-metadata": lambda c: builder(c)["metadata"].update(pixelType="UINT16"),
}
SURPRISE = {
    "provider": lambda c: builder(c).update(providerClassName="some.OtherBuilder"),
    "image-size": lambda c: builder(c)["metadata"].update(width=SIZE[0] + 1),
    "partial-metadata": lambda c: builder(c)["metadata"].pop("sizeZ"),
    "only-case": lambda c: c["images"][0].update(imageName="B.png"),
    "last-id": lambda c: c.update(lastID=1),
    "same-name": lambda c: c["images"][0].update(imageName="b.png"),
    "no-metadata": lambda c: builder(c).pop("metadata"),
    "no-pixel-size": lambda c: builder(c)["metadata"]["pixelCalibration"]["pixelWidth"].update(unit="px"),
}


@pytest.mark.parametrize("code", DAMAGE)
def test_errors_of_the_project_file(project, code):
    change(project, DAMAGE[code])
    assert code in codes(project, "error")


@pytest.mark.parametrize("code", SURPRISE)
def test_surprises_of_the_project_file(project, code):
    change(project, SURPRISE[code])
    assert code in codes(project) and not codes(project, "error")


def test_versions_that_lack_a_builder_are_named(project):
    change(project, lambda c: builder(c).update(builderType="normalized"))
    (found,) = [f for f in validate_project(project) if f.severity == "error"]
    assert found.versions == ("0.4", "0.5") and found.entry == "a.png" and "normalized" in found.what


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_broken_project_file(project, text):
    (project / "project.qpproj").write_text(text)
    (found,) = validate_project(project)
    assert found.code == "project-unreadable"


CLASSES = {
    "{": "classes-unreadable",
    '{"pathClasses": [{"name": "A\\nB", "color": 1}]}': "class-name",
    '{"pathClasses": [{"name": "A::B", "color": 1}]}': "class-name",
    '{"pathClasses": [{"name": "A", "color": "#ff0000"}]}': "class-entry",
    '{"pathClasses": ["A"]}': "class-entry",
}


@pytest.mark.parametrize("text", CLASSES)
def test_a_broken_list_of_classes(project, text):
    (project / "classifiers" / "classes.json").write_text(text)
    assert CLASSES[text] in codes(project, "error")


def test_names_of_classes_as_qupath_reads_them(project):
    assert [as_qupath_reads(t) for t in ("A: B", "A:B", " A", "A:", "", ":A", "A\n")] == [
        "A: B", "A: B", "A", "A", "", None, "A",
    ]  # fmt: skip
    (project / "classifiers" / "classes.json").write_text(
        '{"pathClasses": [{"name": "A:B", "color": 1}, {"name": "Neoplastic"}, {"name": "Neoplastic", "color": 1}]}'
    )
    assert codes(project) >= {"class-name", "class-twice", "class-color"} and not codes(project, "error")
    (project / "classifiers" / "classes.json").unlink()
    assert "class-not-listed" in codes(project)


def test_files_of_objects(project):
    data = project / "data" / "1" / "data.qpdata"
    good = data.read_bytes()
    shutil.copy(data, data.with_name("data.qpdata.bkp"))
    assert codes(project) == {"moved", "backup-left"}
    data.write_bytes(good[:1000])
    assert "backup-in-use" in codes(project, "warning") and not codes(project, "error")
    data.with_name("data.qpdata.bkp").unlink()
    assert codes(project, "error") == {"objects-unreadable"}
    data.unlink()
    assert codes(project, "error") == {"objects-gone"}
    (data.parent / "summary.json").unlink()
    assert not codes(project, "error")


def test_what_else_lies_about(project):
    shutil.copytree(project / "data" / "1", project / "data" / "9")
    (project / "stqp" / "gone.png").mkdir(parents=True)
    (project / ".stqp.lock").write_text('{"pid": 999999999, "host": "' + platform.node() + '"}')
    summary = project / "data" / "1" / "summary.json"
    summary.write_text(summary.read_text().replace('"nObjects":41', '"nObjects":40'))
    (project / "data" / "metadata.json").write_text("")
    assert codes(project) == {"moved", "orphan", "stqp-orphan", "left-over", "summary", "metadata-unreadable"}
    (found,) = [f for f in validate_project(project) if f.code == "metadata-unreadable"]
    assert found.severity == "error" and found.versions == ("0.6", "0.7")


def test_ids_of_several_images(project):
    shutil.copy(project / "data" / "1" / "data.qpdata", project / "data" / "2" / "data.qpdata")
    assert "shared-ids" in codes(project, "warning")


def test_objects(monkeypatch):
    monkeypatch.setattr(validation_objects, "MANY_ANNOTATIONS", 5)
    shapes = [
        shapely.box(10, 10, 20, 20),
        shapely.box(500, 10, 520, 20),
        shapely.box(390, 10, 420, 20),
        shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 20)]),
    ]
    rings = [np.asarray(s.exterior.coords)[:-1] for s in shapes]
    rings += [np.array([[1.0, 1], [2, 2], [3, 3]]), np.array([[np.nan, 1], [2, 2], [3, 1]])]
    polygons = Polygons.from_rings(np.concatenate(rings), np.cumsum([0, *map(len, rings)]))
    objects = PathObjects.build(
        polygons, measurements={"none": np.full(6, np.nan), "much": [np.inf, 1, 1, 1, 1, 1], "fine": range(6)}
    )
    objects.ids[1] = objects.ids[0]
    objects.plane[2, 1] = 3
    metadata = {"width": 400, "height": 300, "sizeZ": 1, "sizeT": 1, "channels": [1, 2, 3]}
    findings = Findings()
    check_objects(objects, {"serverBuilder": {"builderType": "uri", "metadata": metadata}}, findings)
    found = {f.code: f.what for f in findings.found}
    assert set(found) == {
        "many-annotations", "duplicate-ids", "outside", "over-edge", "invalid-shape", "no-area", "no-place",
        "no-plane", "empty-measurement", "infinite-measurement",
    }  # fmt: skip
    assert found["outside"].startswith("1 object outside") and str(objects.ids[1]) in found["outside"]
    assert str(objects.ids[3]) in found["invalid-shape"] and str(objects.ids[4]) in found["no-area"]


def test_shapes_with_holes_and_several_parts_are_fine():
    objects = dataclasses.replace(geometry_objects())
    findings = Findings()
    check_objects(objects, {}, findings)
    assert findings.found == []


def test_pixels_of_files(tmp_path):
    import tifffile

    reader = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((4, 30, 20), np.uint16), metadata={"axes": "CYX"})
    probe = probe_image(tmp_path / "a.ome.tif", reader, 0)
    assert (probe.channels, probe.pixel_type, probe.size_z, probe.size_t) == (4, "UINT16", 1, 1)
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((30, 20, 3), np.uint8), photometric="rgb")
    assert probe_image(tmp_path / "b.tif", reader, 0).channels == 3
    Image.new("L", (5, 5)).save(tmp_path / "c.png")
    assert probe_image(tmp_path / "c.png", reader, 0).channels == 1
    (tmp_path / "d.tif").write_bytes(b"no image")
    assert probe_image(tmp_path / "d.tif", reader, 0).channels is None
