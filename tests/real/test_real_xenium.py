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


PARTS = {
    "toy_v1_string_ids": (
        (526, 526, (526, 27)),
        [
            "no experiment.xenium: version and pixel size are not known",
            "no cells.zarr.zip: nuclei come from the polygons only",
        ],
    ),
    "tiny_v1_integer_ids": (
        (6, 6, (6, 4)),
        [
            "no cells.zarr.zip: nuclei come from the polygons only",
            "no morphology image: nothing to hold the alignment against but the H&E",
        ],
    ),
    "lung_slice_boundaries": (
        (135, 135, None),
        [
            "no experiment.xenium: version and pixel size are not known",
            "no cells.parquet or cells.csv.gz: cells have neither centres nor areas",
            "no cell_boundaries.parquet or cell_boundaries.csv.gz: cells have no outlines",
            "no cell_feature_matrix.h5 or cell_feature_matrix/ or cell_feature_matrix.zarr.zip: no counts",
            "no cells.zarr.zip: nuclei come from the polygons only",
            "no morphology image: nothing to hold the alignment against but the H&E",
        ],
    ),
    "v3_cells_table": (
        (10000, None, None),
        [
            "no nucleus_boundaries.parquet or nucleus_boundaries.csv.gz: no outlines of nuclei",
            "no cell_boundaries.parquet or cell_boundaries.csv.gz: cells have no outlines",
            "no cells.zarr.zip: nuclei come from the polygons only",
            "no morphology image: nothing to hold the alignment against but the H&E",
        ],
    ),
    "bone_marrow_matrix": (
        (84518, None, (84518, 477)),
        [
            "no experiment.xenium: version and pixel size are not known",
            "no cells.parquet or cells.csv.gz: cells have neither centres nor areas",
            "no nucleus_boundaries.parquet or nucleus_boundaries.csv.gz: no outlines of nuclei",
            "no cell_boundaries.parquet or cell_boundaries.csv.gz: cells have no outlines",
            "no cells.zarr.zip: nuclei come from the polygons only",
            "no morphology image: nothing to hold the alignment against but the H&E",
        ],
    ),
}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_folders_in_part_are_read_as_far_as_they_go(real_data, name):
    folder = real_data / "xenium" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    (cells, nuclei, matrix), lacks = PARTS[name]
    bundle = XeniumBundle.open(folder, partial=True)
    assert bundle.lacks == lacks
    ids = bundle.cell_ids()
    assert len(ids) == cells
    if nuclei is not None:
        found = bundle.read_nuclei(ids)
        assert len(found.cell) == nuclei and not found.skipped
        assert 2 < np.median(np.sqrt(found.polygons.area() / np.pi)) < 6
    if matrix is not None:
        counts = bundle.read_counts(ids)
        assert counts.matrix.shape == matrix and counts.matrix.sum() > 0 and not counts.skipped


def test_boundaries_as_bytes_are_those_of_the_csv(real_data, tmp_path):
    folder = real_data / "xenium" / "toy_v1_string_ids"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    for path in folder.glob("*.csv.gz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    both = [XeniumBundle.open(f, partial=True) for f in (folder, tmp_path)]
    ids = [bundle.cell_ids() for bundle in both]
    assert ids[0].tolist() == ids[1].tolist()
    nuclei = [bundle.read_nuclei(i) for bundle, i in zip(both, ids, strict=True)]
    assert nuclei[0].cell.tolist() == nuclei[1].cell.tolist()
    np.testing.assert_allclose(nuclei[0].polygons.coords, nuclei[1].polygons.coords, atol=1e-3)
    image = both[0].morphology_image()
    assert image.path.name == "morphology_focus.ome.tif" and min(image.size) > 100


def test_resegmented_run_has_the_later_version(real_data):
    folder = real_data / "xenium" / "v3_cells_table"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    bundle = XeniumBundle.open(folder, partial=True)
    assert bundle.version == "xenium-3.1.0.5" and bundle.pixel_size == 0.2125
    cells = bundle.read_cells()
    assert cells.nucleus_count.max() > 1 and cells.nucleus_count.min() == 0 and np.isfinite(cells.center).all()
    with pytest.raises(InputError, match="different runs"):  # its matrix was made up
        bundle.read_counts(cells.ids)
