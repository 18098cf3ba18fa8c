import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import best_iou

from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.importing.staged import StagedFiles
from stqp.importing.xenium import import_xenium
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import owned
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide
from stqp.synthetic import make_sample
from stqp.taxonomy import color_of


def run(sample, project, **changes):
    options = {"labels": sample.labels, "class_map": sample.class_map, **changes}
    he, alignment, outs = (
        options.pop("he", sample.he),
        options.pop("alignment", sample.alignment),
        options.pop("outs", sample.outs),
    )
    return import_xenium(outs, he, alignment, project, **options)


def objects_of(project):
    with QuPathProject.open(project, "r") as opened:
        (entry,) = opened.entries
        return entry.read_objects()


def folder_of(project):
    with QuPathProject.open(project, "r") as opened:
        return opened.entries[0].stqp_folder


@pytest.fixture(scope="module")
def imported(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "project"
    record = run(sample, folder)
    return folder, record


@pytest.fixture
def project(imported, tmp_path):
    """A copy of the imported project that a test may change."""
    return shutil.copytree(imported[0], tmp_path / "project")


def test_every_nucleus_with_its_class_place_and_measurements(sample, imported):
    folder, record = imported
    objects = objects_of(folder)
    truth = pq.read_table(sample.nuclei).to_pandas()
    labels = dict(line.split(",") for line in sample.labels.read_text().splitlines()[1:])
    classes = dict(line.split(",") for line in sample.class_map.read_text().splitlines()[1:])
    assert len(objects) == sample.n_nuclei == record.counts["nuclei written"]
    assert (objects.kind == ObjectKind.ANNOTATION).all()
    assert objects.classes.tolist() == [classes[labels[cell]] for cell in objects.names]
    assert sorted(objects.names) == sorted(truth.cell_id)
    assert np.median(best_iou(objects.polygons, np.load(sample.instances)["inst"])) > 0.99
    area = objects.measurements["Nucleus: Area µm^2"]
    np.testing.assert_allclose(area, objects.polygons.area() * sample.mpp**2, rtol=1e-3)
    cells = pq.read_table(sample.outs / "cells.parquet").to_pandas().set_index("cell_id").transcript_counts
    assert objects.measurements["Transcripts"].tolist() == [cells[c] for c in objects.names]
    assert "Label confidence" not in objects.measurements
    assert len(set(objects.ids)) == len(objects) and owned(objects).all()
    assert all(objects.class_colors[c] == color_of(c) for c in objects.class_colors)
    assert sum(record.results["classes"].values()) == len(objects) and list(record.results["classes"])[-1] == "Unknown"


def test_project_lists_the_image_and_the_classes(sample, imported):
    with QuPathProject.open(imported[0], "r") as opened:
        (entry,) = opened.entries
        assert entry.name == sample.he.name and entry.image_path == sample.he
        assert entry.mpp == pytest.approx(sample.mpp) and entry.size == sample.size
        assert list(opened.classes)[:2] == ["Neoplastic", "Inflammatory"]


def test_expression_and_sample_are_kept_beside_it(sample, imported):
    import anndata

    folder = folder_of(imported[0])
    data = anndata.read_h5ad(folder / "cells.h5ad")
    cells = pq.read_table(sample.outs / "cells.parquet").to_pandas()
    assert data.obs_names.tolist() == cells.cell_id.tolist()
    assert data.obs.n_nuclei.tolist() == cells.nucleus_count.tolist()
    assert data.X.sum(axis=1).A1.tolist() == cells.transcript_counts.tolist()
    assert data.obs.transcript_counts.tolist() == cells.transcript_counts.tolist()
    assert "EPCAM" in data.var_names and not any(g.startswith("NegControl") for g in data.var_names)
    truth = pq.read_table(sample.nuclei).to_pandas().drop_duplicates("cell_id", keep=False).set_index("cell_id")
    place = dict(zip(data.obs_names, data.obsm["spatial"], strict=True))
    away = [np.hypot(*(place[c] - truth.loc[c, ["he_x", "he_y"]])) for c in truth.index]
    assert np.median(away) < 2
    description = json.loads((folder / "sample.json").read_text())
    assert description["sample"] == data.uns["stqp"]["sample"] == "made_up_by_stqp-synthetic"
    assert description["mpp"] == sample.mpp and description["expression"] == "cells.h5ad"
    ring = np.array(description["coverage"][0])
    assert ring.shape == (4, 2) and np.ptp(ring[:, 0]) > 0.9 * sample.size[0]
    record = json.loads((folder / "import.json").read_text())
    assert record["command"] == "import-xenium" and record["counts"]["nuclei"] == sample.n_nuclei
    assert {Path(i["path"]).name for i in record["inputs"]} >= {
        "experiment.xenium",
        "cell_feature_matrix.h5",
        "labels.csv",
    }


def test_second_import_replaces_its_own_and_leaves_the_rest(sample, project):
    drawn = PathObjects.build(Polygons.from_rings([[5, 5], [90, 5], [90, 90]], [0, 3]), classes="Region*", names="mine")
    with QuPathProject.open(project, "r+") as opened:
        opened.entries[0].write_objects(drawn)
    before = objects_of(project)
    record = run(sample, project, labels=None, class_map=None, as_kind="detections")
    after = objects_of(project)
    assert sorted(after.ids) == sorted(before.ids)
    mine = after.names == "mine"
    assert mine.sum() == 1 and after.classes[mine][0] == "Region*"
    assert (after.kind[~mine] == ObjectKind.DETECTION).all() and set(after.classes[~mine]) == {"Unknown"}
    assert record.counts["nuclei of the last import replaced"] == sample.n_nuclei
    assert record.counts["other objects of the image left alone"] == 1
    assert not record.skipped and any("Unknown" in w for w in record.warnings)


def correct(project):
    """What a person does in QuPath: a class, a shape, and two nuclei less."""
    objects = objects_of(project)
    classes = objects.classes.copy()
    classes[0] = "Mitosis"
    coords = objects.polygons.coords.copy()
    first, last = objects.polygons.ring_offsets[1:3]
    coords[first:last] += 3
    objects.classes = classes
    objects.polygons = Polygons(coords, objects.polygons.ring_offsets, objects.polygons.geom_offsets)
    objects.class_colors["Mitosis"] = (1, 2, 3)
    gone = objects.ids[2:4].tolist()
    with QuPathProject.open(project, "r+") as opened:
        opened.entries[0].write_objects(
            objects.take(np.r_[0, 1, 4 : len(objects)]), replace=lambda now: np.ones(len(now), bool)
        )
    return objects.ids[0], objects.ids[1], gone


def test_corrections_stay_and_deleted_nuclei_stay_away(sample, project):
    before = objects_of(project)
    retyped, moved, gone = correct(project)
    for _ in range(2):  # the second time no less than the first
        record = run(sample, project)
        after = objects_of(project)
        assert after.classes[after.ids == retyped].tolist() == ["Mitosis"]
        shape = after.polygons.take(after.ids == moved).coords
        np.testing.assert_allclose(shape, before.polygons.take(before.ids == moved).coords + 3, atol=1e-3)
        assert not set(gone) & set(after.ids) and len(after) == len(before) - 2
        reasons = {k.split(" (")[0]: v for k, v in record.skipped.items()}
        assert reasons == {"nuclei that somebody corrected or accepted": 2, "nuclei that somebody deleted": 2}
        assert record.counts["nuclei written"] == len(before) - 4


def test_corrections_can_be_discarded(sample, project):
    before = objects_of(project)
    correct(project)
    record = run(sample, project, keep_corrections=False)
    after = objects_of(project)
    assert dict(zip(after.ids, after.classes, strict=True)) == dict(zip(before.ids, before.classes, strict=True))
    assert not record.skipped


def test_nuclei_without_the_mark_are_left_and_not_doubled(sample, project):
    before = objects_of(project)
    before.metadata = {}
    with QuPathProject.open(project, "r+") as opened:
        opened.entries[0].write_objects(before, replace=lambda now: np.ones(len(now), bool))
    record = run(sample, project)
    assert sorted(objects_of(project).ids) == sorted(before.ids)
    assert list(record.skipped.values()) == [len(before)] and "without stqp's mark" in next(iter(record.skipped))
    run(sample, project, keep_corrections=False)
    assert owned(objects_of(project)).all() and len(objects_of(project)) == len(before)


def test_an_image_that_was_emptied_is_filled_again(sample, project):
    with QuPathProject.open(project, "r+") as opened:
        opened.entries[0].write_objects(PathObjects.empty(), replace=lambda now: np.ones(len(now), bool))
    record = run(sample, project)
    assert len(objects_of(project)) == sample.n_nuclei and any("gone" in w for w in record.warnings)


def test_two_samples_on_one_slide(sample, project):
    record = run(sample, project, name="file")
    folder = folder_of(project)
    description = json.loads((folder / "sample.json").read_text())
    assert description["sample"] == "file" and set(description["other_samples"]) == {"made_up_by_stqp-synthetic"}
    assert len(description["coverage"]) == 2 and description["expression"] == "cells-file.h5ad"
    assert (folder / "cells.h5ad").is_file() and (folder / "cells-file.h5ad").is_file()
    assert any("two outlines" in w for w in record.warnings)
    run(sample, project)
    again = json.loads((folder / "sample.json").read_text())
    assert again["expression"] == "cells.h5ad" and len(again["coverage"]) == 2
    assert len(objects_of(project)) == 2 * sample.n_nuclei


def test_cells_have_both_outlines(sample, tmp_path):
    run(sample, tmp_path / "p", as_kind="cells")
    objects = objects_of(tmp_path / "p")
    assert len(objects) == sample.n_nuclei and (objects.kind == ObjectKind.CELL).all()
    assert (objects.polygons.area() > objects.nuclei.area()).all()
    assert np.median(best_iou(objects.nuclei, np.load(sample.instances)["inst"])) > 0.99


def test_confidence_becomes_a_measurement(sample, tmp_path):
    lines = sample.labels.read_text().splitlines()
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["cell_id,label,confidence", *(f"{line},0.75" for line in lines[1:])]))
    run(sample, tmp_path / "p", labels=labels)
    assert set(objects_of(tmp_path / "p").measurements["Label confidence"]) == {0.75}


def test_labels_that_the_map_lacks_are_unknown_and_counted(sample, tmp_path):
    mapping = tmp_path / "map.csv"
    mapping.write_text("\n".join(s for s in sample.class_map.read_text().splitlines() if not s.startswith("B cell")))
    record = run(sample, tmp_path / "p", class_map=mapping)
    (reason,) = record.skipped
    assert "'B cell' that the class map lacks" in reason
    objects = objects_of(tmp_path / "p")
    labels = dict(line.split(",") for line in sample.labels.read_text().splitlines()[1:])
    lacking = [labels[c] in ("B cell", "unassigned") for c in objects.names]
    assert ((objects.classes == "Unknown") == lacking).all()


def shifted(sample, tmp_path, dx):
    matrix = np.loadtxt(sample.alignment, delimiter=",")
    matrix[:2, 2] -= matrix[:2, :2] @ [dx, 0]
    path = tmp_path / f"shift{dx}.csv"
    np.savetxt(path, matrix, delimiter=",", fmt="%.17g")
    return path


def test_nuclei_beside_the_image(sample, tmp_path):
    record = run(sample, tmp_path / "p", alignment=shifted(sample, tmp_path, 400))
    objects = objects_of(tmp_path / "p")
    assert 0 < record.skipped["nuclei outside of the image"] == sample.n_nuclei - len(objects)
    centers = objects.polygons.centroid()
    assert ((centers >= 0) & (centers < sample.size)).all()
    with pytest.raises(InputError, match=rf"all {sample.n_nuclei} nuclei lie outside of .*ome\.tif"):
        run(sample, tmp_path / "q", alignment=shifted(sample, tmp_path, 5000))
    assert not (tmp_path / "q").exists()


def test_slide_without_a_pixel_size_takes_that_of_the_alignment(sample, tmp_path):
    from PIL import Image

    with open_slide(sample.he) as slide:
        Image.fromarray(slide.read_level(0, 0, 0, *sample.size)).save(tmp_path / "he.png")
    record = run(sample, tmp_path / "p", he=tmp_path / "he.png")
    assert any("does not state its pixel size" in w for w in record.warnings)
    with QuPathProject.open(tmp_path / "p", "r") as opened:
        assert opened.entries[0].mpp == pytest.approx(sample.mpp, rel=1e-6)
    with pytest.raises(InputError, match=r"implies 0\.25 µm per H&E pixel, but .*he\.png has 0\.3"):
        run(sample, tmp_path / "q", he=tmp_path / "he.png", mpp=0.3)


def wrong_inputs(sample, tmp_path):
    bad_image = tmp_path / "bad.tif"
    bad_image.write_text("no image")
    cut_image = tmp_path / "cut.ome.tif"
    cut_image.write_bytes(sample.he.read_bytes()[: sample.he.stat().st_size // 2])
    singular = tmp_path / "singular.csv"
    singular.write_text("1,2,0\n2,4,0\n0,0,1\n")
    other = tmp_path / "other.csv"
    other.write_text("cell_id,label\nzzzzzzzz-1,T\n")
    something = tmp_path / "something"
    something.mkdir()
    (something / "thesis.docx").write_text("mine")
    return {
        "no image": ({"he": bad_image}, InputError, r"bad\.tif cannot be read as an image"),
        "truncated image": ({"he": cut_image}, InputError, r"cut\.ome\.tif cannot be read as an image"),
        "missing image": ({"he": tmp_path / "none.tif"}, InputError, "does not exist"),
        "singular": ({"alignment": singular}, InputError, "singular"),
        "identity of another frame": ({"alignment": "identity"}, InputError, "not in the frame"),
        "scale": ({"mpp": sample.mpp * 1.06}, InputError, "implies 0.25 .* has 0.265"),
        "other cells": ({"labels": other}, InputError, "for other cells"),
        "no labels": ({"labels": tmp_path / "none.csv"}, InputError, "do not exist"),
        "map without labels": ({"labels": None}, UsageError, "give --labels"),
        "mpp": ({"mpp": -1.0}, UsageError, "between 0 and 100"),
        "kind": ({"as_kind": "tiles"}, UsageError, "annotations, detections, cells"),
        "no bundle": ({"outs": tmp_path}, InputError, r"expected experiment\.xenium"),
        "project": ({"project": something}, InputError, "is not empty and no QuPath project"),
        "project file": ({"project": bad_image}, InputError, "is a file"),
    }


@pytest.mark.parametrize("which", [
    "no image", "truncated image", "missing image", "singular", "identity of another frame", "scale",
    "other cells", "no labels", "map without labels", "mpp", "kind", "no bundle", "project", "project file",
])  # fmt: skip
def test_wrong_inputs_leave_nothing_behind(sample, tmp_path, which):
    changes, kind, message = wrong_inputs(sample, tmp_path)[which]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    project = changes.pop("project", tmp_path / "project")
    with pytest.raises(kind, match=message):
        run(sample, project, **changes)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "project").exists()


class Failing:
    """Raise at one of the calls of a function, and let all others through."""

    def __init__(self, function, at, error):
        self.function, self.left, self.error, self.raised = function, at, error, False

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == -1:
            self.raised = True
            raise self.error
        return self.function(*args, **kwargs)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("tiny"), seed=2, size=(300, 280))


def errors():
    return {"full": OSError(errno.ENOSPC, "No space left on device"), "ctrl-c": KeyboardInterrupt()}


@pytest.mark.parametrize("where", ["replace", "fsync", "write_bytes", "write_elem"])
def test_a_stop_at_any_point_leaves_the_old_state(tiny, tmp_path, monkeypatch, where):
    import anndata

    owner, attribute = {
        "replace": (os, "replace"),
        "fsync": (os, "fsync"),
        "write_bytes": (Path, "write_bytes"),
        "write_elem": (anndata.io, "write_elem"),
    }[where]
    sample, project = tiny, tmp_path / "project"
    run(sample, project)
    retyped, *_ = correct(project)
    old = objects_of(project)
    fresh = tmp_path / "fresh"
    stops = 0
    for target in (fresh, project):
        for at in range(60):
            what = ("full", "ctrl-c")[(at + (target == fresh)) % 2]
            error = errors()[what]
            with monkeypatch.context() as patch:
                original = getattr(owner, attribute)
                failing = Failing(original, at, error)
                # a plain function, so that it binds as a method does
                patch.setattr(owner, attribute, lambda *a, _f=failing, **k: _f(*a, **k))
                expected = EnvironmentProblem if what == "full" else KeyboardInterrupt
                try:
                    run(sample, target)
                except expected:
                    assert failing.raised
                else:
                    assert not failing.raised
                    break
            stops += 1
            if target == fresh:
                assert not fresh.exists()
                continue
            left = [p.name for p in project.rglob(".*")]
            assert not left, left
            now = objects_of(project)
            assert sorted(now.ids) == sorted(old.ids) and now.classes[now.ids == retyped][0] == "Mitosis"
            json.loads((folder_of(project) / "sample.json").read_text())
            anndata.read_h5ad(folder_of(project) / "cells.h5ad")
        else:
            pytest.fail("never came to an end")
        if target == fresh:
            assert len(objects_of(fresh)) == sample.n_nuclei
    assert stops >= 2
    record = run(sample, project)
    assert sorted(record.skipped.values()) == [2, 2] and sorted(objects_of(project).ids) == sorted(old.ids)


def test_left_overs_of_a_killed_run_are_cleared_and_the_old_files_return(sample, project):
    folder = folder_of(project)
    (folder / "cells.h5ad").rename(folder / ".cells.h5ad.123.old")
    shutil.copy(folder / "sample.json", folder / ".sample.json.123.old")
    (folder / ".import.json.123.part").write_text("half")
    (folder / ".mine").write_text("somebody else's")
    with StagedFiles(folder):
        pass
    assert (folder / "cells.h5ad").is_file() and [p.name for p in folder.glob(".*")] == [".mine"]
