import dataclasses
import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest

from stqp.errors import InputError, UsageError
from stqp.importing.labelling import label_project
from stqp.importing.objects import CLUSTER, CONFIDENCE
from stqp.importing.typing import read_genes
from stqp.importing.xenium import import_xenium
from stqp.polygons import Polygons
from stqp.qupath.objects import PathObjects
from stqp.qupath.ownership import corrected, written_classes
from stqp.qupath.project import QuPathProject


@pytest.fixture(scope="module")
def imported(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelling") / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, folder)
    return folder


@pytest.fixture
def project(imported, tmp_path):
    return shutil.copytree(imported, tmp_path / "project")


def objects_of(project):
    with QuPathProject.open(project, "r") as opened:
        (entry,) = opened.entries
        return entry.read_objects(), entry.stqp_folder


def truth_of(sample, objects):
    frame = pd.read_parquet(sample.nuclei).drop_duplicates("cell_id").set_index("cell_id")
    return frame["class"].reindex(objects.names).to_numpy(object)


def test_nuclei_get_class_confidence_and_cluster_in_place(sample, project):
    before, _ = objects_of(project)
    assert set(before.classes.tolist()) == {"Unknown"}
    record = label_project(project, seed=1)
    after, folder = objects_of(project)
    assert (after.ids == before.ids).all() and (after.names == before.names).all()
    assert np.array_equal(after.polygons.coords, before.polygons.coords)
    assert not corrected(after).any() and (written_classes(after) == after.classes).all()
    truth = truth_of(sample, after)
    for name in ("Inflammatory", "Connective"):
        of = truth == name
        assert (after.classes[of] == name).mean() > 0.9
    of = np.isin(truth.astype(str), ["Epithelial", "Neoplastic"])
    assert np.isin(after.classes[of].astype(str), ["Epithelial", "Neoplastic"]).mean() > 0.9
    typed = after.classes != "Unknown"
    confidence = after.measurements[CONFIDENCE]
    assert (confidence[typed] > 0).all() and (confidence <= 1).all() and CLUSTER in after.measurements
    cells = anndata.read_h5ad(folder / "cells.h5ad").obs.reindex(after.names)
    assert (cells["class"].astype(str).to_numpy() == after.classes.astype(str)).all()  # all nuclei of a cell inherit
    assert np.allclose(cells["confidence"], confidence, atol=1e-6)
    said = json.loads((folder / "typing.json").read_text(encoding="utf-8"))
    assert said["clusters"] and (folder / "clusters.csv").is_file()
    assert record.counts["nuclei typed"] == len(after)


def test_what_a_person_corrected_stays(project):
    label_project(project)
    with QuPathProject.open(project, "r+") as opened:
        (entry,) = opened.entries
        present = entry.read_objects()
        chosen = np.flatnonzero(present.classes == "Connective")[:5]
        some = present.take(chosen)
        entry.update_objects(chosen, dataclasses.replace(some, classes=np.full(5, "Dead", object)))
    record = label_project(project)
    after, _ = objects_of(project)
    assert (after.classes[chosen] == "Dead").all() and corrected(after).sum() == 5
    assert record.counts["of the kept nuclei, typed otherwise"] == 5
    assert record.skipped["nuclei that somebody corrected or accepted (kept as they are)"] == 5
    assert record.counts["of these, of another class than before"] == 0


def test_a_later_import_takes_labelled_nuclei_for_its_own(sample, project):
    label_project(project)
    before, _ = objects_of(project)
    record = import_xenium(sample.outs, sample.he, sample.alignment, project)
    after, _ = objects_of(project)
    assert len(after) == len(before) and set(after.classes.tolist()) == {"Unknown"}
    assert record.counts["nuclei of the last import replaced"] == len(before)


def test_a_region_that_somebody_drew_is_the_tumour(project):
    before, _ = objects_of(project)
    middle = float(np.median(before.polygons.coords[:, 0]))
    ring = np.array([[0, 0], [middle, 0], [middle, 1e4], [0, 1e4], [0, 0]], float)
    with QuPathProject.open(project, "r+") as opened:
        (entry,) = opened.entries
        entry.write_objects(PathObjects.build(Polygons.from_rings(ring, np.array([0, 5])), names="My tumour"))
    label_project(project, tumour_region="My tumour")
    after, folder = objects_of(project)
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    left = cells.obsm["spatial"][:, 0] < middle
    of = cells.obs["class"].astype(str).to_numpy()
    assert (of[left] == "Neoplastic").any() and not (of[left] == "Epithelial").any()
    assert not (of[~left] == "Neoplastic").any()
    assert json.loads((folder / "typing.json").read_text())["neoplastic"]["decided_by"] == "the region that was drawn"
    assert "Neoplastic" in after.classes
    with pytest.raises(InputError, match="no annotation that is called 'nothing'"):
        label_project(project, tumour_region="nothing")


def test_an_error_leaves_everything_as_it_was(project, tmp_path):
    before, folder = objects_of(project)
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    cells.X = cells.X * 0.5
    cells.write_h5ad(tmp_path / "halves.h5ad")
    with pytest.raises(InputError, match="normalised already"):
        label_project(project, h5ad=tmp_path / "halves.h5ad")
    with pytest.raises(UsageError, match="no cluster 999"):
        label_project(project, neoplastic_clusters=[999])
    after, _ = objects_of(project)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files
    assert (after.classes == before.classes).all()


def test_labels_of_the_user_on_a_project(sample, project):
    label_project(project, method="labels", labels=sample.labels, class_map=sample.class_map)
    after, _ = objects_of(project)
    right = truth_of(sample, after) == after.classes
    assert right[after.classes != "Unknown"].all() and right.mean() > 0.95


def test_a_project_without_counts(project, tmp_path):
    _, folder = objects_of(project)
    (folder / "cells.h5ad").unlink()
    with pytest.raises(InputError, match="import the sample again"):
        label_project(project)
    (folder / "sample.json").unlink()
    with pytest.raises(InputError, match="import a sample first"):
        label_project(project)


def test_lists_of_genes(tmp_path):
    path = tmp_path / "genes.csv"
    path.write_text("gene,why\n# ours\nMYC,amplified\nERBB2\n")
    assert read_genes(path) == ["MYC", "ERBB2"]
    path.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_genes(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_genes(tmp_path / "none")
