import gzip
import json
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from stqp.errors import InputError
from stqp.sources.xenium import XeniumBundle


@pytest.fixture
def outs(sample, tmp_path):
    """A copy of the bundle that a test may spoil."""
    return shutil.copytree(sample.outs, tmp_path / "outs")


def edit(path, change):
    table = change(pq.read_table(path).to_pandas())
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)


def nuclei_by_loop(outs):
    """Reference: rings by label, vertex by vertex."""
    rings = {}
    table = pq.read_table(outs / "nucleus_boundaries.parquet").to_pydict()
    for cell, x, y, label in zip(*(table[c] for c in ("cell_id", "vertex_x", "vertex_y", "label_id")), strict=True):
        rings.setdefault(label, (cell, []))[1].append((x, y))
    return rings


def test_reads_what_a_slow_loop_reads(outs):
    bundle = XeniumBundle.open(outs)
    cells = bundle.read_cells()
    nuclei = bundle.read_nuclei(cells.ids)
    expected = nuclei_by_loop(outs)
    assert bundle.pixel_size == 0.2125 and bundle.has_label_ids() and bundle.version_numbers == (2, 0, 0, 10)
    assert nuclei.label_id.tolist() == list(expected)
    assert cells.ids[nuclei.cell].tolist() == [cell for cell, _ in expected.values()]
    seen = {}
    for i, (cell, ring) in enumerate(expected.values()):
        polygon = nuclei.polygons.take([i])
        np.testing.assert_array_equal(polygon.coords, np.array(ring[:-1], np.float32))
        assert nuclei.position[i] == seen.get(cell, 0)
        seen[cell] = seen.get(cell, 0) + 1
    assert max(seen.values()) == 2 and not nuclei.skipped


def test_counts_are_joined_by_id_and_controls_left_out(outs):
    bundle = XeniumBundle.open(outs)
    before = bundle.read_counts(bundle.read_cells().ids)
    table = pq.read_table(outs / "cells.parquet").to_pandas()
    assert before.matrix.sum(axis=1).A1.tolist() == table.transcript_counts.tolist()
    controls = table.control_probe_counts + table.control_codeword_counts + table.unassigned_codeword_counts
    assert before.controls.tolist() == controls.tolist()
    assert not any(str(gene).startswith(("NegControl", "Unassigned")) for gene in before.genes)
    edit(outs / "cells.parquet", lambda t: t.sample(frac=1, random_state=0))
    cells = XeniumBundle.open(outs).read_cells()
    after = bundle.read_counts(cells.ids)
    order = table.set_index("cell_id").transcript_counts.loc[cells.ids]
    assert after.matrix.sum(axis=1).A1.tolist() == order.tolist() != table.transcript_counts.tolist()
    assert not before.notes and after.notes == [
        "the cells of cell_feature_matrix.h5 are in another order than those of the cells table; joined by id"
    ]


def test_cells_and_matrix_that_differ_are_counted(outs):
    edit(outs / "cells.parquet", lambda t: t.iloc[5:])
    bundle = XeniumBundle.open(outs)
    cells = bundle.read_cells()
    counts = bundle.read_counts(cells.ids)
    assert counts.matrix.shape[0] == len(cells.ids)
    assert counts.skipped == {"cells of the matrix that the cells table lacks": 5}
    assert bundle.read_nuclei(cells.ids).skipped["nuclei of a cell that the cells table lacks"] >= 1
    more = bundle.read_counts(np.r_[cells.ids, ["zzzz-1"]].astype(object))
    assert more.skipped["cells without counts in the matrix"] == 1
    assert more.matrix[-1].sum() == 0 and more.controls[-1] == 0


def test_poor_outlines_are_skipped_and_counted(outs):
    def spoil(t):
        label = t.label_id
        t = t[~((label == 1) & (t.groupby("label_id").cumcount().between(2, 23)))].copy()  # two vertices left
        t.loc[t.label_id == 2, "vertex_x"] = 5.0  # a line
        t.loc[(t.label_id == 3) & (t.groupby("label_id").cumcount() == 4), "vertex_y"] = np.nan
        return t

    edit(outs / "nucleus_boundaries.parquet", spoil)
    bundle = XeniumBundle.open(outs)
    nuclei = bundle.read_nuclei(bundle.read_cells().ids)
    assert nuclei.skipped == {
        "nuclei with fewer than three vertices, or one that is no number": 2,
        "nuclei without area": 1,
    }
    assert set(range(1, 8)) - set(nuclei.label_id.tolist()) == {1, 2, 3}


def test_rows_of_an_outline_may_be_apart(outs):
    bundle = XeniumBundle.open(outs)
    ids = bundle.read_cells().ids
    before = bundle.read_nuclei(ids)
    edit(
        outs / "nucleus_boundaries.parquet",
        lambda t: t.assign(k=t.groupby("label_id").cumcount()).sort_values(["k", "label_id"]).drop(columns="k"),
    )
    after = XeniumBundle.open(outs).read_nuclei(ids)
    a, b = np.argsort(before.label_id), np.argsort(after.label_id)
    np.testing.assert_array_equal(before.polygons.take(a).coords, after.polygons.take(b).coords)
    assert before.cell[a].tolist() == after.cell[b].tolist()


def test_unnumbered_nuclei_of_one_cell_are_split_where_a_ring_closes(outs):
    bundle = XeniumBundle.open(outs)
    ids = bundle.read_cells().ids
    before = bundle.read_nuclei(ids)
    edit(outs / "nucleus_boundaries.parquet", lambda t: t.drop(columns="label_id"))
    bundle = XeniumBundle.open(outs)
    after = bundle.read_nuclei(ids)
    assert not bundle.has_label_ids()
    assert len(after.polygons) == len(before.polygons)
    assert after.cell.tolist() == before.cell.tolist() and after.position.tolist() == before.position.tolist()
    np.testing.assert_array_equal(after.polygons.coords, before.polygons.coords)
    assert set(after.label_id) == {-1}


def test_csv_tables_are_read_as_parquet_is(outs):
    before = XeniumBundle.open(outs)
    cells = before.read_cells()
    nuclei = before.read_nuclei(cells.ids)
    for stem in ("cells", "nucleus_boundaries", "cell_boundaries"):
        path = outs / f"{stem}.parquet"
        with gzip.open(outs / f"{stem}.csv.gz", "wb") as file:
            pyarrow.csv.write_csv(pq.read_table(path), file)
        path.unlink()
    bundle = XeniumBundle.open(outs)
    again = bundle.read_cells()
    assert again.ids.tolist() == cells.ids.tolist()
    np.testing.assert_allclose(again.center, cells.center)
    np.testing.assert_allclose(bundle.read_nuclei(again.ids).polygons.coords, nuclei.polygons.coords, rtol=1e-6)


@pytest.mark.parametrize("kind", ["bytes", "integers", "large", "dictionary"])
def test_ids_of_other_versions(outs, kind):
    ids = pq.read_table(outs / "cells.parquet")["cell_id"].to_pylist()
    number = {cell: i + 1 for i, cell in enumerate(ids)}

    def convert(column):
        if kind == "integers":
            return pa.array([number[c] for c in column.to_pylist()], pa.int32())
        if kind == "dictionary":
            return column.dictionary_encode()
        return column.cast(pa.binary() if kind == "bytes" else pa.large_string())

    for stem in ("cells", "nucleus_boundaries"):
        path = outs / f"{stem}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.set_column(0, "cell_id", convert(table["cell_id"])), path)
    if kind == "integers":
        with h5py.File(outs / "cell_feature_matrix.h5", "r+") as file:
            del file["matrix/barcodes"]
            file["matrix/barcodes"] = np.array([str(i + 1).encode() for i in range(len(ids))])
    bundle = XeniumBundle.open(outs)
    cells = bundle.read_cells()
    assert cells.ids[0] == ("1" if kind == "integers" else ids[0])
    assert not bundle.read_nuclei(cells.ids).skipped and not bundle.read_counts(cells.ids).skipped


def test_a_later_segmentation_overrides_the_version(outs):
    experiment = json.loads((outs / "experiment.xenium").read_text())
    experiment["xenium_ranger"] = {"version": "xenium-3.1.0.5"}
    experiment["pixel_size"] = 0.2
    (outs / "experiment.xenium").write_text(json.dumps(experiment))
    bundle = XeniumBundle.open(outs)
    assert bundle.version_numbers == (3, 1, 0, 5) and bundle.pixel_size == 0.2


def test_name_of_the_sample_comes_from_the_folder_or_the_run(outs):
    assert XeniumBundle.open(outs).sample_id == "made_up_by_stqp-synthetic"
    folder = outs.rename(outs.parent / "output-XETG1__0012__Region_1__20240101__101010")
    assert XeniumBundle.open(folder).sample_id == "XETG1__0012__Region_1__20240101__101010"


@pytest.mark.parametrize(
    "name", ["experiment.xenium", "cells.parquet", "nucleus_boundaries.parquet", "cell_feature_matrix.h5"]
)
def test_missing_and_truncated_files_are_named(outs, name):
    def read():
        bundle = XeniumBundle.open(outs)
        cells = bundle.read_cells()
        bundle.read_nuclei(cells.ids)
        bundle.read_counts(cells.ids)

    path = outs / name
    (outs / "cells.zarr.zip").unlink()
    (outs / "cell_feature_matrix.zarr.zip").unlink()
    shutil.rmtree(outs / "cell_feature_matrix")
    whole = path.read_bytes()
    for part in (len(whole) // 2, len(whole) - 10, 0):
        path.write_bytes(whole[:part])
        if name.endswith("h5") and part == len(whole) - 10:
            continue  # 10 bytes of unused space at the end of an h5 carry nothing
        with pytest.raises(InputError, match=name):
            read()
    path.unlink()
    with pytest.raises(InputError, match=f"expected {name}.* in {outs}, found none"):
        read()


def test_folders_that_are_no_bundle(tmp_path, sample):
    with pytest.raises(InputError, match="does not exist"):
        XeniumBundle.open(tmp_path / "none")
    with pytest.raises(InputError, match="is a file"):
        XeniumBundle.open(sample.he)
    with pytest.raises(InputError, match=f"did you mean {sample.outs}"):
        XeniumBundle.open(sample.folder)


@pytest.mark.parametrize("value", [None, 0, -1, "0.2125", True])
def test_pixel_size_is_never_guessed(outs, value):
    experiment = json.loads((outs / "experiment.xenium").read_text())
    experiment["pixel_size"] = value
    (outs / "experiment.xenium").write_text(json.dumps(experiment))
    with pytest.raises(InputError, match="expected pixel_size"):
        XeniumBundle.open(outs)


def test_tables_of_an_unknown_layout(outs):
    edit(outs / "nucleus_boundaries.parquet", lambda t: t.rename(columns={"vertex_x": "x"}))
    bundle = XeniumBundle.open(outs)
    ids = bundle.read_cells().ids
    with pytest.raises(InputError, match=r"expected the columns .*vertex_x.*, found .* version xenium-2\.0\.0\.10"):
        bundle.read_nuclei(ids)
    edit(outs / "cells.parquet", lambda t: t.assign(x_centroid="here"))
    with pytest.raises(InputError, match="expected numbers in the column x_centroid"):
        bundle.read_cells()
    edit(outs / "cells.parquet", lambda t: t.assign(x_centroid=1.0).iloc[[0, 0, 1]])
    with pytest.raises(InputError, match="names a cell more than once"):
        bundle.read_cells()
    edit(outs / "cells.parquet", lambda t: t.iloc[:0])
    with pytest.raises(InputError, match="has no rows"):
        bundle.read_cells()


def test_matrix_of_another_run(outs):
    bundle = XeniumBundle.open(outs)
    with pytest.raises(InputError, match="different runs"):
        bundle.read_counts(np.array(["other-1", "cells-1"], object))
    with h5py.File(outs / "cell_feature_matrix.h5", "r+") as file:
        file["matrix/indices"][0] = 10**6
    with pytest.raises(InputError, match="not a whole 10x matrix"):
        bundle.read_counts(bundle.read_cells().ids)
