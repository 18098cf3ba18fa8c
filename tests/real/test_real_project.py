"""Projects that QuPath saved: looked at, checked, renamed in, merged, exported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stqp.errors import InputError
from stqp.qupath.exchange import export_objects
from stqp.qupath.exchange_tables import read_parquet
from stqp.qupath.inspection import inspect_project
from stqp.qupath.merging import merge_projects
from stqp.qupath.project import QuPathProject
from stqp.qupath.renaming import rename_class
from stqp.qupath.validation.project import validate_project

VERSIONS = ["v0.4.4", "v0.5.1", "v0.6.0", "v0.7.0"]


@pytest.fixture
def golden(real_data: Path, tmp_path):
    """Give a copy of a golden project by its version."""

    def copy(version: str) -> Path:
        source = real_data / "qupath" / f"golden_{version}"
        if not source.is_dir():
            pytest.skip(f"{source} is missing")
        target = tmp_path / version
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        for folder in [target, *target.rglob("*")]:
            folder.chmod(0o755)
        return target

    return copy


@pytest.mark.parametrize("version", VERSIONS)
def test_what_it_holds(golden, version):
    folder = golden(version)
    said = [json.loads(line) for line in (folder / "what_qupath_says.jsonl").read_text(encoding="utf-8").splitlines()]
    images = [record for record in said if record["record"] == "image"]
    with QuPathProject.open(folder) as project:
        info = inspect_project(project)
    assert info.version == version.removeprefix("v")
    assert [e.objects for e in info.entries] == [image["n_objects"] for image in images]
    assert [e.image_type for e in info.entries] == ["OTHER", "BRIGHTFIELD_H_E", "BRIGHTFIELD_H_DAB"]
    assert all(e.image == "missing" and e.writers == [] and sum(e.others.values()) == e.objects for e in info.entries)
    summary = json.loads((folder / "data" / "2" / "summary.json").read_text())["hierarchy"]["objectTypeCounts"]
    assert info.entries[1].kinds == {k.lower(): n for k, n in summary.items() if k != "Root objects"}


@pytest.mark.parametrize("version", VERSIONS)
def test_no_errors_but_missing_images(golden, version):
    folder = golden(version)
    findings = validate_project(folder)
    assert {f.code for f in findings if f.severity == "error"} == {"image-missing"}
    assert {f.code for f in findings if f.severity == "warning"} <= {"outside"}
    assert {f.code for f in findings} <= {
        "image-missing", "outside", "over-edge", "moved", "no-pixel-size", "empty-measurement", "network",
    }  # fmt: skip


def test_a_project_of_others(real_data):
    folder = real_data / "qupath" / "v0.6.0_cells_demo"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    assert {f.code for f in validate_project(folder)} <= {"image-missing", "moved", "network"}


@pytest.mark.parametrize("version", VERSIONS)
def test_renaming_keeps_everything_else(golden, version):
    folder = golden(version)
    with QuPathProject.open(folder) as project:
        before = project.entry("rich").read_objects()
    with QuPathProject.open(folder, "r+") as project:
        assert sum(rename_class(project, "Stroma", "Connective").values()) == 3
    with QuPathProject.open(folder) as project:
        after = project.entry("rich").read_objects()
        assert "Stroma" not in project.classes and project.classes["Connective"] == before.class_colors["Stroma"]
    order = np.argsort(before.ids.astype(str)), np.argsort(after.ids.astype(str))
    a, b = before.take(order[0]), after.take(order[1])
    expected = ["Connective" if name == "Stroma" else name for name in a.classes.tolist()]
    assert b.classes.tolist() == expected
    for column in ("ids", "kind", "roi_kind", "names", "locked", "plane", "colors", "probability"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)
    np.testing.assert_array_equal(a.polygons.coords, b.polygons.coords)
    parents = [
        {o.ids[i]: o.ids[p] if p >= 0 else None for i, p in enumerate(o.parent.tolist())} for o in (before, after)
    ]
    assert parents[0] == parents[1]
    for name, values in a.measurements.items():
        np.testing.assert_array_equal(values, b.measurements.get(name, np.full(len(b), np.nan)))


def test_all_versions_merged(golden, tmp_path):
    folders = [golden(version) for version in VERSIONS]
    with pytest.raises(InputError, match="--on-duplicate"):
        merge_projects(tmp_path / "all", folders)
    merge_projects(tmp_path / "all", folders, "rename")
    with QuPathProject.open(tmp_path / "all") as project:
        assert project.version.text == "0.7.0"
        assert [e.id for e in project.entries] == list(range(1, 13))
        assert project.entries[4].name == "rich (v0.5.1)"
        for entry, old in zip(project.entries, [f / "data" / n for f in folders for n in "123"], strict=True):
            assert (entry.folder / "data.qpdata").read_bytes() == (old / "data.qpdata").read_bytes()
    assert {f.code for f in validate_project(tmp_path / "all") if f.severity == "error"} == {"image-missing"}


def test_every_kind_of_shape_in_a_table(golden, tmp_path):
    with QuPathProject.open(golden("v0.6.0")) as project:
        written = export_objects(project, tmp_path / "out", "parquet")
        objects = project.entry("rich").read_objects()
    assert [w.objects for w in written] == [1, 12, 4]
    back = read_parquet(tmp_path / "out" / "rich.parquet")
    assert sorted(back.ids.tolist()) == sorted(objects.ids.tolist())
    areas = dict(zip(back.ids.tolist(), back.polygons.area().tolist(), strict=True))
    for name, area in zip(objects.ids.tolist(), objects.polygons.area().tolist(), strict=True):
        assert areas[name] == pytest.approx(area)
