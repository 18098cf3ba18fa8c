"""The real sample as a QuPath project: complete, exact and quick."""

import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import best_iou

from stqp.qupath.project import QuPathProject


@pytest.fixture(scope="module")
def imported(real_data, tmp_path_factory):
    folder = real_data / "consep_xenium"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    project = tmp_path_factory.mktemp("real") / "project"
    arguments = [folder / "outs", "--he", folder / "he" / "region_he_image.ome.tif"]
    arguments += ["--alignment", folder / "he" / "region_he_imagealignment.csv", "--project", project]
    arguments += ["--labels", folder / "truth" / "nuclei.parquet"]
    command = [sys.executable, "-m", "stqp_cli.main", "import-xenium", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    return folder, project


def test_project_holds_every_nucleus_where_it_is(imported):
    folder, project = imported
    with QuPathProject.open(project, "r") as opened:
        (entry,) = opened.entries
        objects = entry.read_objects()
    truth = pq.read_table(folder / "truth" / "nuclei.parquet").to_pandas()
    assert len(objects) == len(truth) == 15546
    iou = best_iou(objects.polygons, np.load(folder / "truth" / "he_instances.npz")["inst"])
    assert np.median(iou) >= 0.97 and iou.min() > 0.8
    by_cell = dict(zip(truth.cell_id, truth["class"], strict=True))
    assert objects.classes.tolist() == [by_cell[name] for name in objects.names]


def test_expression_has_every_cell(imported):
    import anndata

    _, project = imported
    (path,) = project.glob("stqp/*/cells.h5ad")
    data = anndata.read_h5ad(path)
    assert data.shape == (15550, 377) and data.X.sum() == data.obs.transcript_counts.sum() == 1051546
