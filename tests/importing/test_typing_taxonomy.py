"""A taxonomy of the user's from the counts to the classes of a project, by label and by import."""

import json
import sys

import anndata
import numpy as np
import pytest
from stqp_cli.main import main

from stqp.errors import InputError, UsageError
from stqp.importing.labelling import label_project
from stqp.importing.objects import CLUSTER, CONFIDENCE
from stqp.importing.typing import UNTRUSTED, UNTYPED
from stqp.importing.xenium import import_xenium
from stqp.patches.cut import cut_patches
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord
from stqp.taxonomy import color_of

TAXONOMY = """
name = "what a haematologist sees"

[classes.Lymphocyte]
color = "#112233"
parent = "Inflammatory"
fine_types = ["T cells", "B cells", "Leukocytes"]

[classes."Plasma cell"]
color = [1, 2, 3]
parent = "Inflammatory"
fine_types = ["Plasma cells"]

[classes.Macrophage]
parent = "Inflammatory"
fine_types = ["Macrophages"]
markers = ["CD163", "CD68", "MRC1"]

[classes.Endothelial]
color = "#00ffff"
parent = "Connective"
fine_types = ["Endothelial cells"]

[classes.Stroma]
parent = "Connective"
fine_types = ["Fibroblasts", "Smooth muscle cells", "Pericytes"]

[classes.Epithelial]
color = "#aa00aa"
"""
COLORS = {
    "Lymphocyte": (17, 34, 51),
    "Plasma cell": (1, 2, 3),
    "Endothelial": (0, 255, 255),
    "Epithelial": (170, 0, 170),
}
NAMES = {"Lymphocyte", "Plasma cell", "Macrophage", "Endothelial", "Stroma", "Epithelial"}


@pytest.fixture
def taxonomy(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(TAXONOMY, encoding="utf-8")
    return path


def check(project, sample):
    """Classes and colours of the project's list and objects, the record, and what training would learn."""
    with QuPathProject.open(project, "r") as opened:
        (entry,) = opened.entries
        objects, folder, listed = entry.read_objects(), entry.stqp_folder, dict(opened.classes)
    listing = json.loads((project / "classifiers" / "classes.json").read_text(encoding="utf-8"))
    assert {c["name"] for c in listing["pathClasses"]} >= NAMES  # also those that the slide lacks
    for name, color in COLORS.items():
        assert listed[name] == color
    found = set(objects.classes.tolist())
    assert found <= NAMES | {"Unknown"} and len(found & NAMES) >= 3
    for name in found & COLORS.keys():
        assert tuple(objects.class_colors[name]) == COLORS[name]
    assert np.isfinite(objects.measurements[CONFIDENCE]).all() and CLUSTER in objects.measurements
    said = json.loads((folder / "typing.json").read_text(encoding="utf-8"))
    assert said["taxonomy"]["parents"]["Plasma cell"] == "Inflammatory"
    assert said["taxonomy"]["visual"] == {
        "Lymphocyte": "Inflammatory", "Plasma cell": "Inflammatory", "Macrophage": "Inflammatory",
        "Endothelial": "Connective", "Stroma": "Connective", "Epithelial": "Epithelial",
    }  # fmt: skip
    assert said["parameters"]["taxonomy"] == "what a haematologist sees"
    assert "rgb(17,34,51)" in (folder / "typing.html").read_text(encoding="utf-8")
    return objects


def test_label_with_a_taxonomy(sample, tmp_path, taxonomy, monkeypatch):
    project = tmp_path / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, project, cell_types="stqp")
    with QuPathProject.open(project, "r") as opened:
        assert opened.classes["Epithelial"] == color_of("Epithelial")
    monkeypatch.setattr(sys, "argv", ["stqp", "label", str(project), "--taxonomy", str(taxonomy)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    objects = check(project, sample)
    names = patch_classes(project, tmp_path)
    assert set(names) == set(objects.classes.tolist()) - {"Unknown"}


def patch_classes(project, folder):
    """Classes that training would have."""
    return cut_patches([project], folder / "patches.h5", RunRecord("patches", {})).classes


def test_an_import_with_a_taxonomy_gives_the_same_as_label(sample, tmp_path, taxonomy):
    first, second = tmp_path / "first", tmp_path / "second"
    said = []
    import_xenium(
        sample.outs, sample.he, sample.alignment, first, cell_types="stqp", taxonomy=taxonomy, seed=3,
        progress=lambda *step: said.append(step),
    )  # fmt: skip
    done, total, names = zip(*said, strict=True)
    assert [*done] == sorted(done) and {*total} == {done[-1]} and done[0] == 0
    assert names[0].startswith("reading") and "typing: Leiden" in names and names[-1] == "done"
    import_xenium(sample.outs, sample.he, sample.alignment, second)
    label_project(second, taxonomy=taxonomy, seed=3)
    one, other = check(first, sample), check(second, sample)
    assert (one.ids == other.ids).all() and (one.classes == other.classes).all()
    for name in (CONFIDENCE, CLUSTER):
        assert np.allclose(one.measurements[name], other.measurements[name], equal_nan=True)


def test_an_import_keeps_its_word_on_cells_that_are_not_to_be_trusted(sample, tmp_path):
    project = tmp_path / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, project, cell_types="stqp", min_transcripts=60)

    def held():
        with QuPathProject.open(project, "r") as opened:
            (entry,) = opened.entries
            cells = anndata.read_h5ad(entry.stqp_folder / "cells.h5ad")
            said = json.loads((entry.stqp_folder / "typing.json").read_text(encoding="utf-8"))
            objects = entry.read_objects()
        few = objects.measurements["Transcripts"] < 60
        assert few.any() and (objects.classes[few] == "Unknown").all() and (objects.classes[~few] != "Unknown").any()
        assert (objects.measurements[CONFIDENCE][few] == 0).all()
        flagged = np.asarray(cells.obs[UNTYPED], bool)
        assert flagged.any() and (cells.obs["class"][flagged] == "Unknown").all()
        assert said["unknown"][UNTRUSTED] > 0

    held()
    label_project(project)  # also later
    held()


def test_what_cannot_be_typed_is_not_imported(sample, tmp_path):
    project, markers = tmp_path / "project", tmp_path / "markers.csv"
    markers.write_text("gene,class\nfoo1,Epithelial\nfoo2,Connective\n")
    with pytest.raises(InputError, match=r"none of the .* genes"):
        import_xenium(sample.outs, sample.he, sample.alignment, project, cell_types="stqp", markers=markers)
    assert not (project / "project.qpproj").exists()
    with pytest.raises(UsageError, match="--markers says how cells are typed; give --type, too"):
        import_xenium(sample.outs, sample.he, sample.alignment, project, markers=markers)
    with pytest.raises(UsageError, match="not where labels are given"):
        import_xenium(sample.outs, sample.he, sample.alignment, project, cell_types="paper", labels=sample.labels)
    loop = tmp_path / "loop.toml"
    loop.write_text('[classes.A]\nparent = "B"\n[classes.B]\nparent = "A"\n')
    with pytest.raises(InputError, match="refers to itself: A is part of B is part of A"):
        import_xenium(sample.outs, sample.he, sample.alignment, project, cell_types="stqp", taxonomy=loop)


def test_a_manifest_types_its_runs_by_files_beside_it(sample, tmp_path, taxonomy):
    from stqp.importing.manifest import import_manifest

    (tmp_path / "runs.csv").write_text(
        "outs,he,alignment,cell_types,taxonomy,resolution,seed\n"
        f"{sample.outs},{sample.he},{sample.alignment},stqp,my.toml,1.5,4\n"
    )
    (record,), failed = import_manifest(tmp_path / "runs.csv", tmp_path / "project", {})
    assert not failed and record.arguments["resolution"] == 1.5 and record.arguments["seed"] == 4
    assert set(record.results["classes"]) <= NAMES | {"Unknown"}
