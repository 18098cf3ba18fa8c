"""Counts, labels and projects that `stqp label` cannot use, an interrupted run, and a second one."""

import shutil

import anndata
import numpy as np
import pytest

from stqp.celltyping import stqp_method
from stqp.errors import InputError, UsageError
from stqp.importing.labelling import label_project
from stqp.importing.xenium import import_xenium
from stqp.qupath.project import QuPathProject


@pytest.fixture(scope="module")
def imported(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelling") / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, folder)
    return folder


@pytest.fixture
def project(imported, tmp_path):
    return shutil.copytree(imported, tmp_path / "project")


def stqp_folder(project):
    with QuPathProject.open(project, "r") as opened:
        (entry,) = opened.entries
        return entry.stqp_folder


def content(project):
    return {str(p.relative_to(project)): p.read_bytes() for p in sorted(project.rglob("*")) if p.is_file()}


def test_a_file_that_was_cut_off(project, tmp_path):
    whole = (stqp_folder(project) / "cells.h5ad").read_bytes()
    (tmp_path / "half.h5ad").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5ad").write_text("no file of HDF5")
    before = content(project)
    for name in ("half.h5ad", "text.h5ad"):
        with pytest.raises(InputError, match=rf"{name} is no AnnData file, or was cut off"):
            label_project(project, h5ad=tmp_path / name)
    with pytest.raises(InputError, match="do not exist"):
        label_project(project, h5ad=tmp_path / "none.h5ad")
    assert content(project) == before


def test_counts_and_labels_of_other_cells(project, tmp_path):
    before = content(project)
    cells = anndata.read_h5ad(stqp_folder(project) / "cells.h5ad")
    cells.obs_names = [f"other-{i}" for i in range(cells.n_obs)]
    cells.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(InputError, match=r"such as 'other-0'.*are these counts of another sample"):
        label_project(project, h5ad=tmp_path / "other.h5ad")
    (tmp_path / "labels.csv").write_text("cell_id,label\nother-1,Epithelial\n")
    with pytest.raises(InputError, match="no cell id of"):
        label_project(project, method="labels", labels=tmp_path / "labels.csv")
    assert content(project) == before


def test_counts_of_the_user_take_the_places_on_the_image(project, tmp_path):
    label_project(project)
    plain = anndata.read_h5ad(stqp_folder(project) / "cells.h5ad").obs["class"].astype(str)
    cells = anndata.read_h5ad(stqp_folder(project) / "cells.h5ad")
    cells.obsm["spatial"] = np.zeros((cells.n_obs, 2))
    cells.obs = cells.obs[[]]
    cells[::-1].copy().write_h5ad(tmp_path / "mine.h5ad")
    label_project(project, h5ad=tmp_path / "mine.h5ad")
    again = anndata.read_h5ad(stqp_folder(project) / "cells.h5ad").obs["class"].astype(str)
    assert (again == plain).mean() > 0.98


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", ["calibrate", "place", "save"])
def test_an_interrupted_run_leaves_everything_as_it_was(project, monkeypatch, where, error):
    label_project(project, seed=1)
    before = content(project)

    def stop(*_, **__):
        raise error

    if where == "calibrate":
        monkeypatch.setattr(stqp_method, "calibrate", stop)
    else:
        monkeypatch.setattr(
            f"stqp.importing.staged.StagedFiles.{where}"
            if where == "place"
            else f"{QuPathProject.__module__}.QuPathProject.save",
            stop,
        )
    with pytest.raises(error):
        label_project(project, seed=2, resolution=1.0)
    assert content(project) == before


def test_a_second_run_gives_the_same(project):
    label_project(project, seed=1)
    folder = stqp_folder(project)
    names = ("clusters.csv", "typing.html", "cells.h5ad")
    first = {name: (folder / name).read_bytes() for name in names}
    objects = {p.name: p.read_bytes() for p in project.rglob("*.qpdata")}
    label_project(project, seed=1)
    assert {name: (folder / name).read_bytes() for name in names[:2]} == {n: first[n] for n in names[:2]}
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    (folder / "before.h5ad").write_bytes(first["cells.h5ad"])
    old = anndata.read_h5ad(folder / "before.h5ad")
    assert cells.obs.equals(old.obs) and (cells.X != old.X).nnz == 0
    assert {p.name: len(p.read_bytes()) for p in project.rglob("*.qpdata")} == {n: len(b) for n, b in objects.items()}


def test_an_image_without_nuclei(project):
    with QuPathProject.open(project, "r+") as opened:
        (entry,) = opened.entries
        objects = entry.read_objects()
        entry.write_objects(objects.take(np.zeros(0, np.int64)), replace=lambda now: np.ones(len(now), bool))
    record = label_project(project)
    ((_, samples),) = record.results["images"].items()
    (found,) = samples.values()
    assert found["nuclei"] == {} and sum(found["cells"].values()) > 0
    assert (stqp_folder(project) / "typing.html").is_file()


def test_clusters_of_several_images_are_not_named_at_once(project, sample):
    import_xenium(sample.outs, shutil.copy(sample.he, project / "again.tif"), sample.alignment, project, name="again")
    with pytest.raises(UsageError, match="have their own numbers, the project has 2; name one by --entry"):
        label_project(project, neoplastic_clusters=[0])


def test_a_normal_region_that_somebody_drew(project):
    with pytest.raises(InputError, match="no annotation that is called 'Normal'"):
        label_project(project, normal_region="Normal")
