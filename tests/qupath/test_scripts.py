"""The scripts for QuPath: what they say of themselves, and how they get into a project."""

import re
import tomllib
import zlib
from pathlib import Path

import numpy as np
import pytest

from stqp import taxonomy
from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath import scripts
from stqp.qupath.folders import safe_name
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import RUN_KEY, SOURCE_KEY, WRITTEN_KEY, stamp
from stqp.qupath.project import QuPathProject
from stqp.qupath.scripts import available, install, scripts_folder

ALL = available()
names = pytest.mark.parametrize("script", ALL, ids=lambda script: script.name)
# what QuPath 0.4 to 0.7 do not all have
ABSENT = {
    r"\bimport qupath\.lib\.gui\.dialogs": "moved in 0.5; Dialogs is there without an import",
    r"\bimport qupath\.fx\.": "since 0.5",
    r"\bPathClassFactory\b": "gone in 0.5",
    r"\bgetColorRGB\b|\bsetColorRGB\b": "gone in 0.6",
    r"\baddPathObjects?\b|\bremovePathObjects?\b|\bgetPathClassName\b": "gone in 0.6",
    r"\bhiddenClassesProperty\b": "gone in 0.6",
    r"\bputMeasurement\b|\bgetMeasurementValue\b|\bcontainsNamedMeasurement\b": "gone in 0.6",
    r"\bgetNucleusOrMainROI\b|\bcreateLike\b": "since 0.5",
    r"\bgetAllObjectsForROI\b|\bgetAllDetectionsForROI\b|\bgetAnnotationsForROI\b": "since 0.6",
    r"\bgetPrettyPrintInstance\b|\bparseObjectsFromGeoJSON\b": "since 0.5 or 0.6",
    r"\bPathIO\.readObjects\b": "0.4 and 0.5 lose the metadata of detections",
}


@names
def test_a_header_says_what_it_does_and_how_to_run_it(script):
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", script.name)
    assert script.text.startswith("/*\n"), "the header comes first"
    assert script.summary.endswith(".") and 20 < len(script.summary) < 140
    for part in ("In QuPath: ", "Command line: ", "Arguments: ", "QuPath 0.4 to 0.7."):
        assert len(re.findall(f"^{re.escape(part)}", script.header, re.MULTILINE)) == 1, part
    assert f"{script.name.replace('_', ' ')}" in script.header, "the menu shows it so"
    assert f"{script.name}.groovy" in script.header
    assert max(map(len, script.text.splitlines())) <= 140


@names
def test_nothing_is_named_that_a_version_lacks(script):
    code = script.text.split("*/", 1)[1]
    wrong = [f"{found[0]}: {why}" for pattern, why in ABSENT.items() if (found := re.search(pattern, code))]
    assert not wrong
    # metadata differ between versions; each script has the same few lines for that
    if "metadata(" in code:
        assert 'def since06 = PathObject.getMethods().any { it.name == "hasMetadata" }' in code


def test_the_index_names_each_script_once():
    index = (scripts_folder() / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", index, re.MULTILINE)) == [script.name for script in ALL]


def test_colours_and_classes_are_those_of_the_taxonomy():
    text = next(s.text for s in ALL if s.name == "colour_classes")
    table = re.search(r"def colours = \[\n(.*?)\n\]", text, re.DOTALL)[1]
    colours = {k: tuple(map(int, v.split(","))) for k, v in re.findall(r"(\w+)\s*: \[([\d, ]+)\]", table)}
    expected = [*(c.name for c in taxonomy.VISUAL_CLASSES), taxonomy.UNKNOWN]
    assert list(colours)[:6] == expected
    assert all(colours[name] == taxonomy.color_of(name) for name in expected)
    review = next(s.text for s in ALL if s.name == "review_nuclei")
    listed = re.search(r"def visual = \[(.*?)\]", review)[1]
    assert re.findall(r'"(\w+)"', listed) == expected[:-1]
    mark = next(s.text for s in ALL if s.name == "mark_region")
    regions = dict(re.findall(r"(Train|Ignore|Region): \[([\d, ]+)\]", mark))
    assert {k: tuple(map(int, v.split(","))) for k, v in regions.items()} == dict(list(colours.items())[6:])


def test_marks_are_those_that_stqp_writes():
    named = {key for s in ALL for key in re.findall(r'"(stqp\.[a-z]+)"', s.text.split("*/", 1)[1])}
    # reviewed and cell are the scripts' own
    assert named == {SOURCE_KEY, WRITTEN_KEY, "stqp.reviewed", "stqp.cell"}
    assert RUN_KEY not in named, "a run's identifier is only carried along"


def test_the_checksum_is_the_same_text_in_every_script():
    mark = "/** Checksum of an outline"
    copies = {s.name: s.text[s.text.index(mark) :] for s in ALL if mark in s.text}
    assert len(copies) == 6 and len(set(copies.values())) == 1
    assert all("checksum(" in s.text for s in ALL if s.name in copies)


def test_the_checksum_of_the_scripts_is_that_of_ownership():
    # what checksum() in the scripts does, step by step; QuPath itself agrees in 0.4.4, 0.5.1, 0.6.0 and 0.7.0
    ring = np.array([[-0.0, 3.0], [0.1, -0.7], [12.3456, -0.7], [12.3456, 8.25], [-4.004, 8.25]])
    outer, hole = ring * 10 + 0.0049, ring + 20.0051
    coords = np.concatenate([ring, outer, hole]).astype(np.float32).astype(float)
    polygons = Polygons(coords, np.array([0, 5, 10, 15]), np.array([0, 1, 3]))
    objects = PathObjects.build(polygons, kind=ObjectKind.DETECTION, classes=np.array(["A: B", None], object))

    def checksum(vertices: np.ndarray, rounded: bool) -> str:
        if rounded:
            vertices = np.floor(vertices / 0.01 + 0.5) * 0.01
        pairs = sorted((np.float32(x + 0.0), np.float32(y + 0.0)) for x, y in vertices.tolist())
        return f"{zlib.crc32(np.array(pairs, '<f4').tobytes()):08x}"

    expected = [f"A: B|{checksum(coords[:5], False)}", f"|{checksum(coords[5:], True)}"]
    assert stamp(objects, "s", "r").metadata[WRITTEN_KEY].tolist() == expected


@pytest.mark.parametrize("name", ["load_geojson", "export_geojson"])
def test_names_of_files_are_made_as_those_of_folders(name):
    text = next(s.text for s in ALL if s.name == name)
    forbidden = re.search(r"replaceAll\('(\[<>.*?\])', \"_\"\)", text)[1].replace("\\\\", "\\")
    ends = re.search(r"replaceAll\('(\[\. \]\+\$)', \"\"\)", text)[1]
    for image in ('a/b\\c:d*"e.svs', "slide. ", "plain.svs", "tab\there"):
        assert re.sub(ends, "", re.sub(forbidden, "_", image).strip()) == safe_name(image)


@pytest.fixture
def project(tmp_path):
    with QuPathProject.open(tmp_path / "project", "x"):
        pass
    return tmp_path / "project"


def states(done):
    return {one.state for one in done}


def test_all_scripts_are_installed_where_quPath_looks(project):
    done = install(project)
    assert states(done) == {"new"}
    found = {p.name: p.read_text(encoding="utf-8") for p in (project / "scripts").glob("*.groovy")}
    assert found == {script.file_name: script.text for script in ALL}
    assert states(install(project / "project.qpproj")) == {"same"}
    with QuPathProject.open(project, "r+") as opened:  # nothing of it disturbs the project
        assert opened.entries == []


def test_only_some(project):
    assert [one.name for one in install(project, ["mark_region.groovy", "review_nuclei", "mark_region"])] == [
        "mark_region", "review_nuclei",
    ]  # fmt: skip
    assert len(list((project / "scripts").iterdir())) == 2
    with pytest.raises(UsageError, match=r"no script 'nonsense'.*mark_region"):
        install(project, ["nonsense"])


def test_what_somebody_changed_stays_unless_forced(project):
    install(project)
    mine = project / "scripts" / "mark_region.groovy"
    mine.write_text(mine.read_text(encoding="utf-8") + "// mine µ\n", encoding="utf-8")
    changed = mine.read_bytes()
    done = {one.name: one for one in install(project)}
    assert done["mark_region"].state == "kept" and done["load_geojson"].state == "same"
    assert done["mark_region"].changes == (1, 0) and "+// mine µ" in done["mark_region"].difference
    assert mine.read_bytes() == changed
    done = {one.name: one for one in install(project, ["mark_region"], force=True)}
    assert done["mark_region"].state == "replaced" and done["mark_region"].changes == (1, 0)
    assert mine.with_name("mark_region.groovy.bak").read_bytes() == changed
    assert states(install(project)) == {"same"}


def test_a_script_of_somebody_else_is_not_overwritten(project):
    (project / "scripts").mkdir()
    (project / "scripts" / "mark_region.groovy").write_text("print 'theirs'\n", encoding="utf-8")
    done = {one.name: one.state for one in install(project)}
    assert done.pop("mark_region") == "kept" and set(done.values()) == {"new"}


def test_an_older_version_gives_way_and_a_changed_older_one_does_not(project, tmp_path, monkeypatch):
    older = tmp_path / "older"
    older.mkdir()
    for name in ("mark_region", "class_summary"):
        (older / f"{name}.groovy").write_text(f"/*\n * Older {name}.\n */\n", encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(scripts, "scripts_folder", lambda: older)
        assert states(install(project)) == {"new"}
    mine = project / "scripts" / "class_summary.groovy"
    mine.write_text("/*\n * Older, and mine.\n */\n", encoding="utf-8")
    done = {one.name: one.state for one in install(project, ["mark_region", "class_summary"])}
    assert done == {"mark_region": "updated", "class_summary": "kept"}


def test_line_ends_of_windows_are_no_change(project):
    install(project)
    for path in (project / "scripts").glob("*.groovy"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert states(install(project)) == {"same"}


def test_a_broken_record_only_makes_careful(project):
    install(project)
    record = project / "stqp" / "scripts.json"
    record.write_text("[1", encoding="utf-8")
    mine = project / "scripts" / "mark_region.groovy"
    mine.write_text("// something\n", encoding="utf-8")
    done = {one.name: one.state for one in install(project)}
    assert done["mark_region"] == "kept"


def test_errors_say_what_to_do(project, tmp_path):
    with pytest.raises(InputError, match=r"no QuPath project .*project\.qpproj"):
        install(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (project / "scripts").mkdir()
    (project / "scripts" / "mark_region.groovy").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"mark_region\.groovy is no text"):
        install(project)


def test_the_package_holds_the_scripts():
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "stqp.qupath_scripts" in settings["packages"]
    assert settings["package-dir"]["stqp.qupath_scripts"] == "qupath_scripts"
    assert settings["package-data"]["stqp.qupath_scripts"] == ["*.groovy", "README.md"]
    assert scripts_folder().name == "qupath_scripts" and len(ALL) >= 10
