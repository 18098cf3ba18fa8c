"""The whole of the real sample, held to its truth."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import best_iou

from stqp.errors import InputError
from stqp.record import RunRecord
from stqp.sources.building import read_xenium_sample
from stqp.sources.xenium import XeniumBundle


@pytest.fixture(scope="module")
def consep(real_data):
    folder = real_data / "consep_xenium"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder


@pytest.fixture(scope="module")
def read(consep):
    record = RunRecord("test", {})
    sample = read_xenium_sample(
        consep / "outs",
        consep / "he" / "region_he_image.ome.tif",
        consep / "he" / "region_he_imagealignment.csv",
        labels=consep / "truth" / "nuclei.parquet",
        record=record,
    )
    return sample, record


def test_every_nucleus_lies_on_the_image(consep, read):
    sample, record = read
    assert len(sample.nuclei) == 15546 and not record.skipped and not record.warnings
    instances = np.load(consep / "truth" / "he_instances.npz")["inst"]
    iou = best_iou(sample.nuclei.polygons, instances)
    assert np.median(iou) >= 0.97
    assert iou.min() > 0.8


def test_every_class_is_the_label_given(consep, read):
    sample, _ = read
    truth = pq.read_table(consep / "truth" / "nuclei.parquet").to_pandas()
    by_cell = dict(zip(truth.cell_id, truth["class"], strict=True))
    assert sample.nuclei.classes.tolist() == [by_cell[c] for c in sample.nuclei.cell_id]
    centers = sample.nuclei.polygons.centroid()
    near = np.hypot(*(truth[["he_x", "he_y"]].to_numpy()[:, None] - centers[None, :1]).T)
    assert near.min() < 2


def test_cells_with_two_nuclei_and_with_none(consep, read):
    sample, _ = read
    per_cell = pq.read_table(consep / "truth" / "nuclei.parquet").to_pandas().groupby("cell_id").size()
    assert dict(zip(sample.cells.ids, sample.cells.n_nuclei, strict=True)) == {
        **dict.fromkeys(sample.cells.ids, 0),
        **per_cell.to_dict(),
    }
    assert sample.counts.shape == (15550, 377) and sample.cells.controls.sum() == 5713
    table = pq.read_table(consep / "outs" / "cells.parquet").to_pandas()
    nucleated = sample.cells.n_nuclei > 0  # the table's counts of the others are not those of the matrix
    assert sample.cells.transcripts[nucleated].tolist() == table.transcript_counts[nucleated].tolist()


def test_coverage_holds_every_nucleus(read):
    import shapely

    sample, _ = read
    covered = shapely.Polygon(sample.coverage[0]).buffer(1e-6)
    assert shapely.covers(covered, shapely.points(sample.nuclei.polygons.coords)).all()
    assert covered.area < 1.1 * sample.size[0] * sample.size[1]


def test_first_versions_with_integer_ids(real_data):
    folder = real_data / "xenium" / "tiny_v1_integer_ids"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    bundle = XeniumBundle.open(folder)
    cells = bundle.read_cells()
    nuclei = bundle.read_nuclei(cells.ids)
    assert cells.ids.tolist() == ["1", "2", "3", "4", "5", "6"] == cells.ids[nuclei.cell].tolist()
    np.testing.assert_allclose(nuclei.polygons.area()[0], 26.642, rtol=0.1)
    assert bundle.version_numbers == (1, 0, 1) and bundle.read_counts(cells.ids).matrix.shape == (6, 4)


def test_folder_without_experiment_says_so(real_data):
    folder = real_data / "xenium" / "toy_v1_string_ids"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    with pytest.raises(InputError, match=r"expected experiment\.xenium"):
        XeniumBundle.open(folder)
