"""Masks: outlines around pixels, numbers to cells in every layout, and nuclei that run together in the tables."""

import contextlib
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from sources.bundles import edit, read_all

from stqp.errors import InputError
from stqp.sources import xenium_masks
from stqp.sources.xenium import XeniumBundle
from stqp.sources.xenium_ids import decode_ids
from stqp.sources.xenium_masks import read_nucleus_masks
from stqp.synthetic import make_sample
from stqp.synthetic.bundle import cell_id

MASK = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 3, 0],
        [0, 1, 1, 0, 3, 3],
        [0, 0, 0, 0, 0, 0],
        [2, 2, 2, 0, 0, 9],
    ],
    np.uint32,
)
IDS = np.array([[7, 1], [2**32 - 1, 1], [0, 1]], np.uint32)


@contextlib.contextmanager
def writing(path):
    import zarr

    store = zarr.storage.ZipStore(path, mode="w")
    yield zarr.create_group(store=store, zarr_format=2)
    store.close()


def write(path, mask=MASK, ids=IDS, transform=None, **arrays):
    with writing(path) as root:
        for name, values in {"cell_id": ids, "masks/0": mask, "masks/1": mask, **arrays}.items():
            values = np.asarray(values)
            root.create_array(
                name, shape=values.shape, dtype=values.dtype, chunks=tuple(max(1, n) for n in values.shape)
            )[...] = values
        if transform is not None:
            root.create_array("masks/homogeneous_transform", shape=transform.shape, dtype="f4")[...] = transform
    return path


def boxes(outlines):
    """Bounds in px by cell, of outlines in µm at 0.5 µm/px."""
    return dict(zip(outlines.cell_ids.to_pylist(), (outlines.polygons.bounds() / 0.5).tolist(), strict=True))


def test_polygon_sets_say_which_cell_a_number_is(tmp_path):
    path = write(tmp_path / "a.zip", **{"polygon_sets/0/cell_index": np.array([2, 0, 2], np.uint32)})
    found = read_nucleus_masks(path, 0.5)
    assert found.cell_ids.to_pylist() == ["aaaaaaaa-1", "aaaaaaah-1", "aaaaaaaa-1"] and found.label.tolist() == [
        1,
        2,
        3,
    ]
    assert found.homeless == 1  # the 9
    assert (found.polygons.bounds() / 0.5).tolist() == [[1, 1, 3, 3], [0, 4, 3, 5], [4, 1, 6, 3]]
    np.testing.assert_allclose(found.polygons.area(), np.array([4, 3, 3]) * 0.25)


def test_mask_values_say_which_cell_a_number_is(tmp_path):
    found = read_nucleus_masks(write(tmp_path / "a.zip", seg_mask_value=np.array([3, 9, 1], np.uint32)), 0.5)
    assert found.homeless == 1  # the 2
    assert boxes(found) == {"aaaaaaah-1": [4, 1, 6, 3], "pppppppp-1": [5, 4, 6, 5], "aaaaaaaa-1": [1, 1, 3, 3]}


@pytest.mark.parametrize("ids", [np.array([11, 12, 13]), np.array([[11], [12], [13]], np.uint32)])
def test_rows_say_which_cell_a_number_is(tmp_path, ids):
    found = read_nucleus_masks(write(tmp_path / "a.zip", ids=ids), 0.5)
    assert boxes(found) == {"11": [1, 1, 3, 3], "12": [0, 4, 3, 5], "13": [4, 1, 6, 3]} and found.homeless == 1


def test_bands_of_rows_make_no_difference(tmp_path, sample, monkeypatch):
    path = sample.outs / "cells.zarr.zip"
    whole = read_nucleus_masks(path, 0.2125)
    monkeypatch.setattr(xenium_masks, "BAND_PIXELS", 100_000)
    bands = read_nucleus_masks(path, 0.2125)
    assert bands.label.tolist() == whole.label.tolist() and bands.cell_ids.equals(whole.cell_ids)
    np.testing.assert_array_equal(bands.polygons.bounds(), whole.polygons.bounds())
    np.testing.assert_array_equal(bands.polygons.area(), whole.polygons.area())


@pytest.mark.parametrize(
    ("transform", "shift"),
    [
        (np.diag([2, 2, 1, 1.0]), (0, 0)),  # µm to px
        (np.diag([0.5, 0.5, 1, 1.0]), (0, 0)),  # px to µm
        (np.eye(4), (0, 0)),
        (np.array([[2, 0, 0, 10], [0, 2, 0, -4], [0, 0, 1, 0], [0, 0, 0, 1.0]]), (-5, 2)),
        (np.array([[2, 0, 10], [0, 2, -4], [0, 0, 1.0]]), (-5, 2)),
        (np.zeros(5), (0, 0)),
    ],
)
def test_place_of_the_masks(tmp_path, transform, shift):
    found = read_nucleus_masks(write(tmp_path / "a.zip", ids=np.array([1, 2, 3]), transform=transform), 0.5)
    np.testing.assert_allclose(
        found.polygons.bounds()[0], [0.5 + shift[0], 0.5 + shift[1], 1.5 + shift[0], 1.5 + shift[1]]
    )


@pytest.mark.parametrize(
    "arrays",
    [
        {"polygon_sets/0/cell_index": np.array([0, 1, 7])},
        {"seg_mask_value": np.array([1, 2])},
        {"seg_mask_value": np.array([0, 1, 2])},
        {"ids": np.zeros((3, 4), np.uint32)},
        {"ids": np.zeros(3)},
        {"ids": np.array([[2**33, 1]] * 3)},
        {"mask": MASK.astype(float)},
        {"mask": MASK[0]},
    ],
)
def test_masks_that_do_not_fit(tmp_path, arrays):
    with pytest.raises(InputError, match=r"a\.zip is not a whole file of masks"):
        read_nucleus_masks(write(tmp_path / "a.zip", **arrays), 0.5)


def test_ids_are_read_as_they_are_written():
    numbers = np.array([0, 1, 15, 16, 2**31, 2**32 - 1], np.uint32)
    assert decode_ids(np.column_stack([numbers, np.ones_like(numbers)])).to_pylist() == cell_id(numbers).tolist()
    assert decode_ids(np.array([[16, 12]])).to_pylist() == ["aaaaaaba-12"]
    assert decode_ids(np.array([2**33, 5])).to_pylist() == [str(2**33), "5"]


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("early"), seed=7, size=(701, 597), version="2.0-early")


@pytest.fixture
def outs(early, tmp_path):
    return shutil.copytree(early.outs, tmp_path / "outs")


def tangle(t):
    """Leave out the vertices that close the rings of cells of several nuclei, so that nothing tells them apart."""
    again = t.duplicated(["cell_id", "vertex_x", "vertex_y"])
    several = again.groupby(t.cell_id).transform("sum") > 1
    return t[~(again & several)]


def test_nuclei_that_run_together_are_split_where_they_close(outs, early):
    truth = np.load(early.outlines)
    _, nuclei, _, _ = read_all(outs)
    assert len(nuclei.cell) == len(truth["cell_id"]) and (nuclei.position == 1).sum() >= 3
    split = "cells whose nuclei ran together in the table (split where their outlines close)"
    assert nuclei.noted == {split: int((nuclei.position == 1).sum())}


def test_nuclei_that_cannot_be_told_apart_come_from_the_masks(outs, early):
    truth = np.load(early.outlines)
    before = read_all(outs)[1]
    edit(outs / "nucleus_boundaries.parquet", tangle)
    cells, nuclei, _, _ = read_all(outs)
    assert cells.ids[nuclei.cell].tolist() == truth["cell_id"].tolist()
    several = int((before.position == 1).sum())
    assert nuclei.noted == {"cells whose nuclei ran together in the table (taken from the masks)": several}
    assert np.abs(nuclei.polygons.centroid() - before.polygons.centroid()).max() < 0.1
    assert np.bincount(nuclei.position).tolist() == np.bincount(before.position).tolist()
    # the others are still the polygons of the table
    alone = ~np.isin(nuclei.cell, nuclei.cell[nuclei.position == 1])
    np.testing.assert_array_equal(nuclei.polygons.take(alone).coords, before.polygons.take(alone).coords)
    # without a column of the numbers of nuclei, outlines that cross themselves give it away
    edit(outs / "cells.parquet", lambda t: t.drop(columns="nucleus_count"))
    crossing = read_all(outs)[1]
    assert 0 < crossing.noted["cells whose nuclei ran together in the table (taken from the masks)"] <= several


def test_without_masks_it_is_said(outs):
    edit(outs / "nucleus_boundaries.parquet", tangle)
    (outs / "cells.zarr.zip").unlink()
    _, nuclei, _, _ = read_all(outs)
    (reason,) = (k for k in nuclei.noted if "could not be told apart" in k)
    assert nuclei.noted[reason] >= 3 and (nuclei.polygons.area() > 0).all()


def test_masks_know_label_ids_and_only_the_cells_asked_for(sample):
    bundle = XeniumBundle.open(sample.outs)
    ids = bundle.read_cells().ids
    masks = bundle.read_nuclei(ids, "masks")
    table = pq.read_table(sample.outs / "nucleus_boundaries.parquet").to_pandas().drop_duplicates("label_id")
    assert masks.label_id.tolist() == table.label_id.tolist()
    assert ids[masks.cell].tolist() == table.cell_id.tolist()
    some = bundle.read_nuclei(ids[5:], "masks")
    lacking = len(masks.cell) - len(some.cell)
    assert lacking > 0 and some.skipped == {"nuclei of a cell that the cells table lacks": lacking}
