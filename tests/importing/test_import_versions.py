"""Bundles of other versions, and masks, all the way into a project."""

import anndata
import numpy as np
import pytest

from stqp.errors import InputError, UsageError
from stqp.importing.xenium import import_xenium
from stqp.polygons import Polygons
from stqp.qupath.project import QuPathProject
from stqp.synthetic import make_sample


@pytest.mark.parametrize(
    ("version", "source"), [("1.0", "polygons"), ("1.3", "masks"), ("2.0-early", "polygons"), ("4.0", "masks")]
)
def test_versions_become_projects(tmp_path, version, source):
    sample = make_sample(tmp_path / "sample", seed=7, size=(401, 357), version=version, mirrored=version == "4.0")
    record = import_xenium(
        sample.outs, sample.he, sample.alignment, tmp_path / "project", labels=sample.labels,
        class_map=sample.class_map, nuclei_source=source,
    )  # fmt: skip
    truth = np.load(sample.outlines)
    with QuPathProject.open(tmp_path / "project", "r") as project:
        (entry,) = project.entries
        objects = entry.read_objects()
        data = anndata.read_h5ad(entry.stqp_folder / "cells.h5ad")
    assert objects.names.tolist() == truth["cell_id"].tolist()
    starts = truth["ring_offsets"]
    if source == "polygons":
        assert np.abs(objects.polygons.coords - truth["coords"]).max() < 0.02
    else:
        expected = Polygons.from_rings(truth["coords"], starts).centroid()
        assert np.abs(objects.polygons.centroid() - expected).max() < 0.5
        assert (np.diff(objects.polygons.ring_offsets) > 24).any()  # more than any outline of the tables has
    assert record.arguments["nuclei_source"] == source
    assert list(data.obs_names) == list(dict.fromkeys(data.obs_names)) and data.n_obs == sample.n_cells
    assert ("protein" in data.obsm) == (version == "4.0")
    if version == "4.0":
        assert data.obsm["protein"].shape == (sample.n_cells, len(data.uns["protein"]))


def test_masks_that_are_not_there(tmp_path):
    sample = make_sample(tmp_path / "sample", seed=7, size=(300, 300))
    (sample.outs / "cells.zarr.zip").unlink()
    arguments = sample.outs, sample.he, sample.alignment, tmp_path / "project"
    with pytest.raises(InputError, match=r"expected cells\.zarr\.zip .* take the polygons"):
        import_xenium(*arguments, nuclei_source="masks")
    with pytest.raises(UsageError, match="expected one of polygons, masks"):
        import_xenium(*arguments, nuclei_source="mask")
    assert not (tmp_path / "project").exists()
    record = import_xenium(*arguments)
    assert "no cells.zarr.zip: nuclei come from the polygons only" in record.summary()
