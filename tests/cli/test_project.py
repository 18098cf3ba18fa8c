"""`stqp project`: what it prints, how it ends, and what it changes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from stqp_cli.project import command, finding_lines

from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import corrected, stamp
from stqp.qupath.project import QuPathProject
from stqp.qupath.validation.findings import Findings
from stqp.slides import open_slide

NAMES = ("info", "validate", "classes", "export", "import", "relink", "merge")


def nuclei(n, seed):
    xy = np.random.default_rng(seed).integers(10, 180, (n, 1, 2)) + np.array([[0, 0], [6, 0], [6, 6], [0, 7]])
    polygons = Polygons.from_rings(xy.reshape(-1, 2), np.arange(0, 4 * n + 1, 4))
    return PathObjects.build(polygons, kind=ObjectKind.DETECTION, classes=["Neoplastic", "Dead"] * (n // 2))


def make(folder, *images):
    with QuPathProject.open(folder, "x") as opened:
        for seed, path in enumerate(images):
            path.parent.mkdir(exist_ok=True)
            pixels = np.random.default_rng(seed).integers(0, 255, (200, 210, 3), np.uint8)
            Image.fromarray(pixels).save(path)
            with open_slide(path, mpp=0.25) as slide:
                opened.add_image(slide).write_objects(stamp(nuclei(20, seed), "predict:first", "r1"))
    return folder


@pytest.fixture
def project(tmp_path):
    return make(tmp_path / "project", tmp_path / "slides" / "a.png", tmp_path / "slides" / "b.png")


def invoke(*args, fails=None):
    result = CliRunner().invoke(command, [str(a) for a in args])
    if fails is None:
        assert result.exit_code == 0, (result.exception, result.output)
    else:
        assert isinstance(result.exception, fails), (result.exception, result.output)
    return result


def read(folder, name):
    with QuPathProject.open(folder) as opened:
        return opened.entry(name).read_objects()


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_and_an_example(name):
    text = invoke(name, "--help").output
    assert "Examples:" in text and f"stqp project {name} " in text and "--json" in text
    found = command.get_command(None, name)
    assert all(p.help for p in found.params if hasattr(p, "help"))
    assert max(map(len, text.splitlines())) <= 100


def test_the_list_of_commands_imports_no_library():
    code = (
        "import sys; from stqp_cli.project import command\n"
        "from click.testing import CliRunner\n"
        "print(CliRunner().invoke(command, ['--help']).output)\n"
        "print(sorted({'numpy', 'pandas', 'shapely', 'torch', 'geopandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("[]") and all(name in done.stdout for name in NAMES)


def test_info(project, tmp_path):
    lines = invoke("info", project).output.splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= max(80, len(str(project)) + 30)
    assert "images   2 (2 found)" in text and "210 x 200 px, 0.25 µm/px" in text
    assert "predict:first: 20 detections" in text and "Neoplastic 10, Dead 10" in text
    assert "a.png" not in invoke("info", project, "--entry", "b.png").output.split("b.png", 1)[1]
    content = json.loads(invoke("info", project, "--json", "-").output)
    assert [e["objects"] for e in content["entries"]] == [20, 20]
    invoke("info", project, "--json", tmp_path / "info.json")
    assert json.loads((tmp_path / "info.json").read_text(encoding="utf-8")) == content
    invoke("info", tmp_path, fails=InputError)


def test_validate(project):
    assert invoke("validate", project).output == "Nothing found: QuPath 0.4 to 0.7 open everything.\n"
    assert json.loads(invoke("validate", project, "--json").output)["findings"] == []
    shutil.rmtree(project.parent / "slides")
    result = invoke("validate", project, fails=InputError)
    assert result.exception.exit_code == 3 and "2 errors" in str(result.exception)
    assert "ERROR image-missing" in result.output and max(map(len, result.output.splitlines())) < 200
    counts = json.loads(invoke("validate", project, "--json", fails=InputError).output)["counts"]
    assert counts == {"error": 2, "warning": 0, "note": 0}


def test_findings_that_are_alike_stand_together():
    findings = Findings()
    for k in range(30):
        findings.about("f", f"image {k}")
        findings.error("same", "All of them.", "Do it.", ["0.4"])
        findings.note("other", f"Number {k}.", "Nothing.")
    lines = finding_lines(findings.sorted(), {"error": 30, "warning": 0, "note": 30})
    assert lines[0] == "30 errors, 0 warnings, 30 notes"
    assert "ERROR same in QuPath 0.4" in lines and lines.count("  -> Do it.") == 1
    assert "  and 20 more like this (--json lists all)" in lines and len(lines) < 25
    assert any("and 25 more: All of them." in line for line in lines)


def test_classes(project):
    text = invoke("classes", project).output
    assert "Neoplastic  #dc1e28" in text and "20" in text
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    invoke("classes", project, "--set", "Neoplastic=red", fails=UsageError)
    invoke("classes", project, "--set", "Neoplastic", fails=UsageError)
    invoke("classes", project, "--remove", "Absent", fails=UsageError)
    invoke("classes", project, "--rename", "Absent=Other", fails=UsageError)
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before
    record = json.loads(
        invoke(
            "classes", project, "--set", "New=#010203", "--set", "A=B=#040506", "--rename", "Neoplastic=Cancer",
            "--remove", "Dead", "--json",
        ).output
    )  # fmt: skip
    rows = {row["name"]: (row["color"], row["objects"]) for row in record["results"]["classes"]}
    assert rows == {"Cancer": ("#dc1e28", 20), "New": ("#010203", 0), "A=B": ("#040506", 0), "Dead": (None, 20)}
    assert record["counts"]["objects renamed from Neoplastic to Cancer"] == 20
    objects = read(project, "a.png")
    assert set(objects.classes) == {"Cancer", "Dead"} and not corrected(objects).any()


def test_classes_from_a_file(project, tmp_path):
    invoke("classes", project, "--from", "taxonomy")
    with QuPathProject.open(project) as opened:
        assert {"Epithelial", "Unknown"} <= opened.classes.keys()
    (tmp_path / "c.json").write_text('{"X": "#0a0b0c", "Y": [1, 2, 3]}')
    invoke("classes", project, "--from", tmp_path / "c.json")
    other = make(tmp_path / "other", tmp_path / "slides" / "z.png")
    invoke("classes", other, "--from", project / "classifiers" / "classes.json")
    with QuPathProject.open(other) as opened:
        assert opened.classes["X"] == (10, 11, 12) and opened.classes["Y"] == (1, 2, 3)
    for text in ("[", "[1]", '{"X": "red"}', '{"X": [1, 2]}'):
        (tmp_path / "c.json").write_text(text)
        invoke("classes", project, "--from", tmp_path / "c.json", fails=InputError)


def test_export_and_import(project, tmp_path):
    out = tmp_path / "out"
    record = json.loads(
        invoke("export", project, "--out", out, "--format", "parquet", "--kind", "detections,cells", "--json").output
    )
    assert record["counts"] == {"files written": 2, "objects written": 40}
    invoke("export", project, "--out", out, "--format", "parquet", fails=UsageError)
    invoke("export", project, "--out", out, "--format", "csv", "--entry", "a.png", "--class", "Dead", "--gzip")
    assert sorted(p.name for p in out.iterdir()) == ["a.png.csv.gz", "a.png.parquet", "b.png.parquet"]
    text = invoke("import", project, out / "a.png.parquet", "--entry", "b.png", "--source", "other").output
    assert "objects added: 20" in text and "in b.png, as other" in text
    assert (
        "objects replaced: 20"
        in invoke("import", project, out / "a.png.parquet", "--entry", "b.png", "--source", "other").output
    )
    assert len(read(project, "b.png")) == 40
    assert "--replace replaces them" in invoke("import", project, out / "a.png.parquet").output


def test_relink(project, tmp_path):
    shutil.move(str(tmp_path / "slides"), tmp_path / "new")
    before = (project / "project.qpproj").read_bytes()
    mapping = f"{tmp_path / 'slides'}={tmp_path / 'new'}"
    text = invoke("relink", project, "--map", mapping, "--dry-run").output
    assert "images relinked (dry run): 2" in text and (project / "project.qpproj").read_bytes() == before
    failed = invoke("relink", project, fails=InputError)
    assert failed.exception.exit_code == 3 and "a.png, b.png" in str(failed.exception)
    invoke("relink", project, "--map", "nothing", fails=UsageError)
    assert "relinked" in invoke("relink", project, "--map", mapping).output
    assert "images found already: 2" in invoke("relink", project).output
    shutil.move(str(tmp_path / "new"), tmp_path / "newer")
    record = json.loads(invoke("relink", project, "--search", tmp_path / "newer", "--json").output)
    assert [image["status"] for image in record["results"]["images"]] == ["relinked"] * 2


def test_merge(project, tmp_path):
    other = make(tmp_path / "other", tmp_path / "more" / "a.png")
    text = invoke("merge", tmp_path / "all", project, other).output
    assert "images: 3" in text and "is a.png (other)" in text
    assert invoke("validate", tmp_path / "all").output.startswith(("Nothing", "0 errors"))
    invoke("merge", tmp_path / "all", project, fails=InputError)
    invoke("merge", tmp_path / "twice", project, project, fails=InputError)
    record = json.loads(
        invoke("merge", tmp_path / "twice", project, project, "--on-duplicate", "skip", "--json").output
    )
    assert record["counts"]["images"] == 2 and record["skipped"] == {"images that an earlier project has": 2}
