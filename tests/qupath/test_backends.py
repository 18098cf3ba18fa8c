"""The native backend and QuPath itself, by paquo: what one writes both read alike, object by object.

These run where QuPath is, as PAQUO_QUPATH_DIR says.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import shapely
from qupath.pictures import contents, picture
from qupath.qupath_objects import geometry_objects, many
from qupath.test_qpdata_kinds import cores, every_shape
from support import real_folder

from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath.backends import BACKENDS, open_project
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind
from stqp.qupath.ownership import corrected, owned, stamp
from stqp.slides import open_slide

PAIRS = [(a, b) for a in BACKENDS for b in BACKENDS]


@pytest.fixture(scope="module")
def qupath():
    """Version of the QuPath that is here."""
    if not os.environ.get("PAQUO_QUPATH_DIR"):
        pytest.skip("PAQUO_QUPATH_DIR does not name an installed QuPath, so the paquo backend is not compared")
    from stqp.qupath.paquo.jvm import start

    return str(start().qupath_version)


@pytest.fixture
def slide(tmp_path):
    with open_slide(picture(tmp_path / "images" / "a slide#1.png"), mpp=0.2738) as opened:
        yield opened


def nested():
    """Cells and detections within annotations, one of them within another."""
    objects = PathObjects.concatenate([many(3, seed=1, kind=ObjectKind.ANNOTATION), many(60, seed=2)])
    objects.parent[1] = 0
    objects.parent[3:] = np.arange(60) % 4 - 1
    order = np.argsort(["/".join(f"{i:05d}" for i in ancestry(objects.parent, k)) for k in range(len(objects))])
    place = np.argsort(order)
    result = objects.take(order)
    result.parent[:] = np.where(objects.parent >= 0, place[objects.parent], -1)[order]
    return result


def ancestry(parent, k):
    return (*ancestry(parent, parent[k]), k) if parent[k] >= 0 else (k,)


def equal(a, b, step=0.0):
    """Assert that all columns are equal but for the order of objects, and shapes to `step` px."""
    a, b = (x.take(np.argsort(x.ids.astype(str))) for x in (a, b))
    for column in ("ids", "names", "classes", "locked", "kind", "roi_kind", "plane", "colors"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)
    np.testing.assert_array_equal(a.probability, b.probability)
    assert parents(a) == parents(b)
    same_vertices(a.polygons, b.polygons, a.roi_kind == RoiKind.GEOMETRY, step)
    for column in ("nuclei", "lines"):
        x, y = (getattr(o, column) or Polygons.empty(len(o)) for o in (a, b))
        same_vertices(x, y, a.roi_kind == RoiKind.GEOMETRY, step)
    none = np.zeros(len(a), bool)
    np.testing.assert_array_equal(none if a.missing is None else a.missing, none if b.missing is None else b.missing)
    assert a.class_colors == b.class_colors
    for left, right in ((a, b), (b, a)):
        for key, texts in left.metadata.items():
            np.testing.assert_array_equal(texts, right.metadata.get(key, np.full(len(a), None, object)), err_msg=key)
        for key, values in left.measurements.items():
            other = right.measurements.get(key, np.full(len(a), np.nan))
            np.testing.assert_array_equal(values.astype(np.float32), other.astype(np.float32), err_msg=key)


def parents(objects):
    ids = [*objects.ids.tolist(), None]
    return [ids[p] for p in objects.parent.tolist()]


def same_vertices(a, b, geometry, step):
    """Vertices are equal and in one order; of geometries, the shape."""
    np.testing.assert_array_equal(np.diff(a.geom_offsets)[~geometry], np.diff(b.geom_offsets)[~geometry])
    x, y = a.take(~geometry), b.take(~geometry)
    np.testing.assert_array_equal(x.ring_offsets, y.ring_offsets)
    np.testing.assert_allclose(x.coords, y.coords, rtol=1e-7, atol=1e-9)
    for i in np.flatnonzero(geometry):
        left, right = (np.unique(np.round(o.take([i]).coords, 6), axis=0) for o in (a, b))
        assert left.shape == right.shape
        if len(left):
            assert shapely.hausdorff_distance(shapely.MultiPoint(left), shapely.MultiPoint(right)) <= max(step, 1e-4)
    areas = [np.abs(o.take(geometry).area()) for o in (a, b)]
    np.testing.assert_allclose(*areas, rtol=1e-3 if step else 1e-6)


def written(folder, slide, objects, backend, version=None):
    with open_project(folder, "x", backend, version) as project:
        entry = project.add_image(slide, "first", {"sample": "S1"})
        entry.write_objects(objects)
    return folder


def step_of(version):
    """To what px this QuPath rounds geometries."""
    return 0.0 if version.startswith(("0.4", "0.5")) else 0.015


@pytest.mark.parametrize("objects", [many(300, seed=3), nested(), every_shape(), geometry_objects()],
                         ids=["mixed", "nested", "shapes", "geometries"])  # fmt: skip
def test_what_both_write_is_equal_for_both(tmp_path, qupath, slide, objects):
    folders = {b: written(tmp_path / b, slide, objects, b) for b in BACKENDS}
    read = {}
    for writer, reader in PAIRS:
        with open_project(folders[writer], "r", reader) as project:
            read[writer, reader] = project.entry("first").read_objects()
    for pair in PAIRS[1:]:
        equal(read[PAIRS[0]], read[pair], step_of(qupath))
    with open_project(folders["native"]) as a, open_project(folders["paquo"]) as b:
        assert a.classes == b.classes
        assert a.entries[0].metadata == b.entries[0].metadata == {"sample": "S1"}
        assert a.entries[0].mpp == b.entries[0].mpp == pytest.approx(0.2738)
        assert a.entries[0].size == b.entries[0].size and a.entries[0].image_uri == b.entries[0].image_uri
    if any(c is not None for c in objects.classes.tolist()):
        classes = [json.loads((folders[b] / "classifiers/classes.json").read_bytes()) for b in BACKENDS]
        assert classes[0] == classes[1]
    assert {*contents(folders["native"])} <= {*contents(folders["paquo"])} | {"data/metadata.json"}


def test_a_native_project_is_changed_by_qupath_and_back(tmp_path, qupath, slide):
    folder = written(tmp_path / "project", slide, stamp(many(80, seed=4), "import:S1", "1"), "native")
    with open_project(folder, "r+", "native") as project:
        project.entry("first").write_objects(many(5, seed=5))
    again = stamp(many(70, seed=6), "import:S1", "2")
    for backend in ("paquo", "native", "paquo"):
        with open_project(folder, "r+", backend) as project:
            project.entry("first").write_objects(again, lambda present: owned(present, "import:S1"))
        read = [open_project(folder, "r", b).entry("first").read_objects() for b in BACKENDS]
        equal(*read)
        assert owned(read[0]).sum() == 70 and len(read[0]) == 75
        assert not corrected(read[0]).any()


def test_metadata_classes_and_images(tmp_path, qupath, slide):
    folders = []
    for backend in BACKENDS:
        folder = written(tmp_path / backend, slide, many(10, seed=7), backend, version=qupath)
        other = picture(tmp_path / "images" / "other.png")
        with open_project(folder, "r+", backend) as project:
            first = project.entry("first")
            first.rename("renamed é")
            first.description = "two\nlines"
            first.metadata = {"b": "2", "a": "1"}
            project.add_classes({"New: One": (1, 2, 3), "Neoplastic": (9, 9, 9)})
            with open_slide(other) as opened:
                second = project.add_image(opened)
                assert project.add_image(opened, metadata={"k": "v"}) is second
            assert (second.id, second.name, second.mpp) == (2, "other.png", None)
        with open_project(folder, "r+", backend) as project:
            with open_slide(picture(tmp_path / "images" / "third.png")) as opened:
                third = project.add_image(opened)
                third.write_objects(many(3, seed=8))
            project.remove(project.entry(2))
            assert [e.id for e in project.entries] == [1, 3]
            project.set_classes({name: (i, i, i) for i, name in enumerate([*project.classes][::-1])})
        assert not (folder / "data/2").exists()
        folders.append(folder)
    for reader in BACKENDS:
        seen = []
        for folder in folders:
            with open_project(folder, "r", reader) as project:
                about = [(e.id, e.name, e.description, e.metadata, e.tags, e.size, e.mpp) for e in project.entries]
                seen.append((about, list(project.classes.items()), str(project.version)))
        assert seen[0] == seen[1]
        assert seen[0][0][0][1:4] == ("renamed é", "two\nlines", {"b": "2", "a": "1"})


def test_an_error_takes_everything_back(tmp_path, qupath, slide):
    folder = written(tmp_path / "project", slide, many(20, seed=10), "paquo")
    before = contents(folder)
    with pytest.raises(RuntimeError), open_project(folder, "r+", "paquo") as project:
        project.entry("first").write_objects(many(5, seed=11))
        project.entry("first").metadata = {}
        project.set_classes({})
        with open_slide(picture(tmp_path / "images" / "other.png")) as opened:
            project.add_image(opened).write_objects(many(2, seed=12))
        raise RuntimeError
    assert contents(folder) == before
    with pytest.raises(RuntimeError), open_project(tmp_path / "new", "x", "paquo") as project:
        project.add_image(slide)
        raise RuntimeError
    assert not (tmp_path / "new").exists()


def test_modes_and_refusals(tmp_path, qupath, slide):
    folder = written(tmp_path / "project", slide, many(20, seed=10), "paquo")
    before = contents(folder)
    with open_project(folder, "r", "paquo") as project, pytest.raises(UsageError, match="reading only"):
        project.entry("first").write_objects(many(1))
    with open_project(folder, "r+", "paquo") as project:
        with pytest.raises(EnvironmentProblem, match="being written"):
            open_project(folder, "r+", "native")
        with pytest.raises(InputError, match="already has an object"):
            project.entry("first").write_objects(project.entry("first").read_objects().take([0]))
        with pytest.raises(UsageError, match="TMA cores"):
            project.entry("first").write_objects(cores())
        project.abort()
    assert contents(folder) == before
    with pytest.raises(InputError, match="exists already"):
        open_project(folder, "x", "paquo")
    with pytest.raises(UsageError, match="installed QuPath"):
        open_project(tmp_path / "other", "x", "paquo", "0.1.2")
    with open_project(folder, "w", "paquo") as project:
        assert not project.entries
        project.add_image(slide).write_objects(many(2, seed=13))
    assert len(open_project(folder, "r", "native").entries[0].read_objects()) == 2
    replaced = next(folder.glob("project.replaced-*.qpproj"))
    assert len(open_project(replaced, "r", "paquo").entry("first").read_objects()) == 20
    slide.path.unlink()
    with open_project(folder, "r+", "paquo") as project:
        assert len(project.entries[0].read_objects()) == 2  # reading needs no image
        with pytest.raises(InputError, match="cannot open the image"):
            project.entries[0].write_objects(many(1, seed=14))
    broken = folder / "data" / str(project.entries[0].id) / "data.qpdata"
    broken.write_bytes(broken.read_bytes()[:-10])
    with open_project(folder, "r", "paquo") as project, pytest.raises(InputError, match="is it whole"):
        project.entries[0].read_objects()


def test_classes_of_one_project_do_not_colour_another(tmp_path, qupath, slide):
    for backend, color in (("native", (1, 2, 3)), ("paquo", (4, 5, 6)), ("paquo", (7, 8, 9))):
        objects = PathObjects.build(many(3, seed=1).polygons, classes="Mine", class_colors={"Mine": color})
        folder = written(tmp_path / str(color), slide, objects, backend)
        for reader in BACKENDS:
            with open_project(folder, "r", reader) as project:
                assert project.classes["Mine"] == project.entries[0].read_objects().class_colors["Mine"] == color


@pytest.mark.parametrize("version", ["v0.4.4", "v0.5.1", "v0.6.0", "v0.7.0"])
def test_golden_projects(tmp_path, qupath, version):
    real = real_folder()
    if real is None or not (real / "qupath" / f"golden_{version}").is_dir():
        pytest.skip("STQP_REAL_DATA does not name a folder with golden projects of QuPath")
    folder = tmp_path / version
    shutil.copytree(real / "qupath" / f"golden_{version}", folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    before = contents(folder)
    with open_project(folder) as a, open_project(folder, "r", "paquo") as b:
        assert [e.name for e in a.entries] == [e.name for e in b.entries] and len(a.entries) == 3
        assert a.classes == b.classes
        for left, right in zip(a.entries, b.entries, strict=True):
            equal(left.read_objects(), right.read_objects(), step_of(qupath))
            assert (left.id, left.metadata, left.size, left.mpp, left.image_uri) == (
                right.id, right.metadata, right.size, right.mpp, right.image_uri
            )  # fmt: skip
    assert contents(folder) == before


def imported(sample, folder, *options, environment=None):
    """Run the command in a process of its own."""
    arguments = [sample.outs, "--he", sample.he, "--alignment", sample.alignment, "--labels", sample.labels]
    arguments += ["--class-map", sample.class_map, "--project", folder, *options]
    return subprocess.run(
        [sys.executable, "-m", "stqp_cli.main", "import-xenium", *map(str, arguments)],
        env=environment, cwd=folder.parent, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip


def test_an_import_by_both(tmp_path, qupath, sample):
    for backend in BACKENDS:
        for _ in range(2):  # the second replaces what the first wrote
            result = imported(sample, tmp_path / backend, "--backend", backend, "--as", "cells", "--json")
            assert result.returncode == 0, result.stderr
            assert json.loads(result.stdout)["counts"]["nuclei written"] == sample.n_nuclei
        assert "DEBUG" not in result.stderr and "INFO" not in result.stderr
    read = []
    for backend in BACKENDS:
        with open_project(tmp_path / backend, "r", backend) as project:
            read.append((project.entries[0].read_objects(), project.classes, project.entries[0].metadata))
    for objects, _, _ in read:
        objects.metadata["stqp.run"][:] = "run"
    equal(read[0][0], read[1][0])
    assert read[0][1:] == read[1][1:]


def without_qupath(tmp_path):
    """Environments in which paquo finds no QuPath."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("PAQUO_", "CONDA_"))}
    return [{**bare, "PAQUO_QUPATH_SEARCH_DIRS": "[]"}, {**bare, "PAQUO_QUPATH_DIR": str(tmp_path / "nowhere")}]


def test_without_qupath_one_sentence_and_exit_code_4(tmp_path, sample):
    for environment in without_qupath(tmp_path):
        result = imported(sample, tmp_path / "project", "--backend", "paquo", environment=environment)
        assert (result.returncode, result.stdout) == (4, "")
        assert result.stderr.count("\n") == 1 and "found no QuPath" in result.stderr
        assert "set PAQUO_QUPATH_DIR" in result.stderr and "paquo get_qupath" in result.stderr
        assert not (tmp_path / "project").exists()


def test_prediction_asks_for_qupath_before_it_begins(tmp_path, monkeypatch):
    from stqp.inference.one import Settings
    from stqp.inference.run import predict_targets

    def find():
        raise EnvironmentProblem("none")

    monkeypatch.setattr("stqp.qupath.paquo.jvm.find", find)
    with pytest.raises(EnvironmentProblem):
        predict_targets(None, [tmp_path / "nothing"], Settings(backend="paquo"))


def test_an_unknown_backend():
    with pytest.raises(UsageError, match="native, paquo"):
        open_project("x", "r", "other")
