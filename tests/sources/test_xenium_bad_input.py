"""Bundles with something wrong in them: an error that names it, or a counted skip."""

import gzip
import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources.bundles import edit, read_all

from stqp.errors import InputError, UsageError
from stqp.sources.xenium import XeniumBundle
from stqp.synthetic import make_sample

SIZE = (401, 357)
FILES = ["experiment.xenium", "cells.parquet", "nucleus_boundaries.parquet", "cell_boundaries.parquet"]
FILES += ["cell_feature_matrix.h5", "cells.zarr.zip", "cell_feature_matrix.zarr.zip"]
FILES += [f"cell_feature_matrix/{name}.gz" for name in ("matrix.mtx", "barcodes.tsv", "features.tsv")]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("small"), seed=11, size=SIZE)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another sample, of the same version."""
    return make_sample(tmp_path_factory.mktemp("other"), seed=12, size=SIZE)


@pytest.fixture
def outs(small, tmp_path):
    return shutil.copytree(small.outs, tmp_path / "outs")


def only_matrix(outs, name):
    """Leave but one form of the matrix; return how to read the bundle."""
    keep = name.split("/")[0]
    for one in ("cell_feature_matrix.h5", "cell_feature_matrix", "cell_feature_matrix.zarr.zip"):
        path = outs / one
        if one != keep and name.startswith("cell_feature_matrix"):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    return "masks" if name == "cells.zarr.zip" else "polygons"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0.0, 0.5, 0.95])
def test_empty_and_truncated_files_are_named(outs, name, left):
    source = only_matrix(outs, name)
    path = outs / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left)])
    expected = "cell_feature_matrix" if name.startswith("cell_feature_matrix/") else name
    with pytest.raises(InputError, match=expected) as error:
        read_all(outs, source)
    assert str(outs) in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_files(outs, name):
    source = only_matrix(outs, name)
    (outs / name).unlink()
    if name == "cell_boundaries.parquet":
        assert read_all(outs)[2] is None
        assert XeniumBundle.open(outs).lacks == [
            "no cell_boundaries.parquet or cell_boundaries.csv.gz: cells have no outlines"
        ]
        return
    with pytest.raises(InputError, match=f"{name.split('/')[0].split('.')[0]}.*(found none|is missing)"):
        read_all(outs, source)


def test_missing_boundaries_point_to_the_masks(outs):
    (outs / "nucleus_boundaries.parquet").unlink()
    with pytest.raises(InputError, match="--nuclei-source masks"):
        read_all(outs)
    assert len(read_all(outs, "masks")[1].cell)
    with pytest.raises(UsageError, match="expected one of polygons, masks"):
        read_all(outs, "contours")


@pytest.mark.parametrize("name", ["nucleus_boundaries.parquet", "cell_boundaries.parquet", "cells.zarr.zip"])
def test_files_of_another_sample(outs, other, name):
    shutil.copy(other.outs / name, outs / name)
    with pytest.raises(InputError, match="different runs"):
        read_all(outs, "masks" if name == "cells.zarr.zip" else "polygons")


@pytest.mark.parametrize("name", ["cell_feature_matrix.h5", "cell_feature_matrix.zarr.zip", "cell_feature_matrix"])
def test_matrices_of_another_sample(outs, other, name):
    only_matrix(outs, name)
    path = outs / name
    if path.is_dir():
        shutil.rmtree(path)
        shutil.copytree(other.outs / name, path)
    else:
        shutil.copy(other.outs / name, path)
    with pytest.raises(InputError, match="different runs"):
        read_all(outs)


@pytest.mark.parametrize(
    "name", ["nucleus_boundaries.csv.gz", "cell_feature_matrix.h5", "cells.zarr.zip", "cells.csv.gz"]
)
def test_same_integer_ids_of_another_sample_are_found_out(tmp_path, name):
    first, second = (make_sample(tmp_path / str(seed), seed=seed, size=(401, 357), version="1.0") for seed in (21, 22))
    shutil.copy(second.outs / name, first.outs / name)
    with pytest.raises(InputError, match="different runs"):
        read_all(first.outs, "masks" if name == "cells.zarr.zip" else "polygons")


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("nucleus_boundaries", ["vertex_x", "vertex_y"]),
        ("cell_boundaries", ["vertex_x", "vertex_y"]),
        ("cells", ["x_centroid", "y_centroid"]),
    ],
)
def test_swapped_columns(outs, name, columns):
    path = outs / f"{name}.parquet"
    edit(path, lambda t: t[t.columns[::-1]])  # another order of the columns is nothing
    read_all(outs)
    edit(path, lambda t: t.rename(columns=dict(zip(columns, columns[::-1], strict=True))))
    with pytest.raises(InputError, match="x and y are swapped"):
        read_all(outs)
    edit(path, lambda t: t.rename(columns={columns[0]: "cell_id", "cell_id": columns[0]}))
    with pytest.raises(InputError, match=f"expected numbers in the column {columns[0]}|different runs"):
        read_all(outs)


def ring(t, label):
    return t.label_id == label


def test_poor_rings_are_counted_or_mended(outs):
    def spoil(t):
        place = t.groupby("label_id").cumcount()
        t.loc[ring(t, 1) & (place == 4), "vertex_x"] = np.nan
        t.loc[ring(t, 2) & (place == 4), "vertex_y"] = np.inf
        t.loc[ring(t, 3) & (place == 0), "vertex_y"] = -np.inf
        t.loc[ring(t, 4), "vertex_x"] = 5.0  # a line
        t.loc[ring(t, 5), ["vertex_x", "vertex_y"]] = 7.0  # a point
        two = ring(t, 6) & place.between(2, 23)  # out and back
        three = ring(t, 7) & place.between(3, 23)  # a triangle, which is a shape
        bow = t[ring(t, 8)].copy()
        x, y = bow.vertex_x.to_numpy()[0], bow.vertex_y.to_numpy()[0]
        bow = bow.iloc[:5].assign(vertex_x=[x, x + 6, x + 6, x, x], vertex_y=[y, y + 5, y, y + 4, y])
        whole = t[~(two | three | ring(t, 8))]
        return pd.concat([whole, bow])

    edit(outs / "nucleus_boundaries.parquet", spoil)
    _, nuclei, _, _ = read_all(outs)
    assert nuclei.skipped == {
        "nuclei with fewer than three vertices, or one that is no number": 4,
        "nuclei without area": 2,
    }
    assert nuclei.noted == {"nuclei whose outline crossed itself (mended, the largest part kept)": 1}
    assert {1, 2, 3, 4, 5, 6}.isdisjoint(nuclei.label_id) and {7, 8} <= set(nuclei.label_id.tolist())
    assert np.diff(nuclei.polygons.ring_offsets)[nuclei.label_id == 7] == [3]
    (bow,) = nuclei.polygons.take(nuclei.label_id == 8).to_shapely()
    # its diagonals cross at 5/9 of the way: of two triangles the one with the side of 5 is the larger
    assert bow.is_valid and len(bow.exterior.coords) == 4 and bow.area == pytest.approx(5 * 6 * 5 / 9 / 2, rel=1e-4)


def test_an_outline_that_is_there_twice_counts_once(outs):
    path = outs / "nucleus_boundaries.parquet"
    before = read_all(outs)[1]
    table = pq.read_table(path)
    once = table.filter(pa.compute.equal(table["label_id"], 9))
    pq.write_table(pa.concat_tables([table, once]), path)
    after = read_all(outs)[1]
    assert after.skipped == {"nuclei that are in the table twice": 1}
    assert len(after.cell) == len(before.cell)
    np.testing.assert_allclose(np.sort(after.polygons.area()), np.sort(before.polygons.area()))


def test_duplicate_and_missing_ids(outs):
    edit(outs / "cells.parquet", lambda t: t.assign(cell_id=[*t.cell_id[:-1], t.cell_id[0]]))
    with pytest.raises(InputError, match="names a cell more than once"):
        read_all(outs)
    edit(outs / "cells.parquet", lambda t: t.assign(cell_id=[None, *t.cell_id[1:]]))
    with pytest.raises(InputError, match="cells without an id"):
        read_all(outs)


def test_duplicate_barcodes(outs):
    with h5py.File(outs / "cell_feature_matrix.h5", "r+") as file:
        file["matrix/barcodes"][1] = file["matrix/barcodes"][0]
    with pytest.raises(InputError, match=r"cell_feature_matrix\.h5 names a cell more than once"):
        read_all(outs)


def test_centres_that_are_no_numbers_are_left_empty(outs):
    edit(outs / "cells.parquet", lambda t: t.assign(x_centroid=[np.nan, np.inf, *t.x_centroid[2:]]))
    cells, nuclei, _, _ = read_all(outs)
    assert np.isnan(cells.center[:2]).all() and np.isfinite(cells.center[2:]).all() and len(nuclei.cell)


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.uint32])
def test_integer_ids_beyond_31_bits(outs, kind):
    ids = pq.read_table(outs / "cells.parquet")["cell_id"].to_pylist()
    high = {np.int64: 2**62, np.uint64: 2**63 + 5, np.uint32: 2**32 - 1 - len(ids)}[kind]
    number = {cell: high + i for i, cell in enumerate(ids)}
    for stem in ("cells", "nucleus_boundaries", "cell_boundaries"):
        edit(
            outs / f"{stem}.parquet",
            lambda t: t.assign(cell_id=np.array([number[c] for c in t.cell_id], kind)).assign(
                **({"label_id": t.label_id.astype(np.int64) + 2**40} if "label_id" in t else {})
            ),
        )
    with h5py.File(outs / "cell_feature_matrix.h5", "r+") as file:
        old = file["matrix/barcodes"][:].astype(str)
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = np.array([str(number[c]).encode() for c in old])
    before = len(ids)
    cells, nuclei, _, counts = read_all(outs)
    assert cells.ids.tolist() == [str(v) for v in number.values()] and len(cells.ids) == before
    assert nuclei.label_id.min() == 2**40 + 1 and not nuclei.skipped and not counts.skipped


@pytest.mark.parametrize(
    ("value", "kind"), [(-1, np.int32), (2**31, np.int64), (0.5, np.float64), (np.nan, np.float64)]
)
def test_values_that_are_no_counts(outs, value, kind):
    with h5py.File(outs / "cell_feature_matrix.h5", "r+") as file:
        data = file["matrix/data"][:].astype(kind)
        data[0] = value
        del file["matrix/data"]
        file["matrix/data"] = data
    with pytest.raises(InputError, match="expected counts, whole numbers"):
        read_all(outs)


def test_unknown_features_and_no_genes(outs):
    def kinds(change):
        with h5py.File(outs / "cell_feature_matrix.h5", "r+") as file:
            old = file["matrix/features/feature_type"][:].astype(str)
            del file["matrix/features/feature_type"]
            file["matrix/features/feature_type"] = np.char.encode(change(old))

    kinds(lambda old: np.where(old == "Unassigned Codeword", "Something New", old))
    counts = read_all(outs)[3]
    assert "Unassigned Codeword" not in counts.control_kinds
    assert counts.notes == [
        "cell_feature_matrix.h5 has features of the types Something New, unknown to stqp and left out"
    ]
    kinds(lambda old: np.full(len(old), "Something New"))
    with pytest.raises(InputError, match="expected features of type 'Gene Expression'"):
        read_all(outs)


def test_mtx_folder_that_does_not_fit(outs):
    only_matrix(outs, "cell_feature_matrix")
    folder = outs / "cell_feature_matrix"
    for name in ("matrix.mtx", "barcodes.tsv", "features.tsv"):  # not compressed is as good
        (folder / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
        (folder / f"{name}.gz").unlink()
    read_all(outs)
    text = (folder / "barcodes.tsv").read_text()
    (folder / "barcodes.tsv").write_text(text + "zzzz-1\n")
    with pytest.raises(InputError, match=r"barcodes and .* features for a matrix"):
        read_all(outs)
    (folder / "barcodes.tsv").write_text(text)
    (folder / "features.tsv").write_text("a\tb\n")
    with pytest.raises(InputError, match="without id, name and type"):
        read_all(outs)


def test_proteins_without_their_scale_are_said(tmp_path):
    sample = make_sample(tmp_path, seed=11, size=SIZE, version="4.0")
    scaled = read_all(sample.outs)[3]
    assert not scaled.notes and len(scaled.protein_names) == 5
    with h5py.File(sample.outs / "cell_feature_matrix.h5", "r+") as file:
        del file.attrs["protein_scaling_factor"]
    counts = read_all(sample.outs)[3]
    np.testing.assert_allclose(counts.proteins, scaled.proteins * 100, rtol=1e-6)
    assert any("no protein_scaling_factor" in note for note in counts.notes)
    with h5py.File(sample.outs / "cell_feature_matrix.h5", "r+") as file:
        file.attrs["protein_scaling_factor"] = 0.0
    with pytest.raises(InputError, match="protein_scaling_factor is 0"):
        read_all(sample.outs)


def test_folder_in_part_says_what_it_lacks(outs):
    for name in ("experiment.xenium", "cells.parquet", "cells.zarr.zip"):
        (outs / name).unlink()
    shutil.rmtree(outs / "morphology_focus")
    with pytest.raises(InputError, match=r"expected experiment\.xenium"):
        XeniumBundle.open(outs)
    bundle = XeniumBundle.open(outs, partial=True)
    assert bundle.lacks == [
        "no experiment.xenium: version and pixel size are not known",
        "no cells.parquet or cells.csv.gz: cells have neither centres nor areas",
        "no cells.zarr.zip: nuclei come from the polygons only",
        "no morphology image: nothing to hold the alignment against but the H&E",
    ]
    assert np.isnan(bundle.pixel_size) and bundle.version == "unknown" and bundle.morphology_image() is None
    ids = bundle.cell_ids()  # of the matrix
    assert bundle.read_counts(ids).matrix.shape[0] == len(ids) and not bundle.read_nuclei(ids).skipped
    for name in ("cell_feature_matrix.h5", "cell_feature_matrix.zarr.zip"):
        (outs / name).unlink()
    shutil.rmtree(outs / "cell_feature_matrix")
    bundle = XeniumBundle.open(outs, partial=True)
    named = bundle.cell_ids()  # of the boundaries
    assert set(named) <= set(ids) and len(bundle.read_nuclei(named).cell) == len(bundle.read_nuclei(ids).cell)
    for name in ("nucleus_boundaries.parquet", "cell_boundaries.parquet"):
        (outs / name).unlink()
    with pytest.raises(InputError, match=f"no file in {outs} names cells: no experiment"):
        XeniumBundle.open(outs, partial=True).cell_ids()


def test_broken_morphology_image(outs):
    path = outs / "morphology_focus" / "morphology_focus_0000.ome.tif"
    path.write_bytes(b"II")
    with pytest.raises(InputError, match="is not a whole TIFF"):
        XeniumBundle.open(outs).morphology_image()


def test_version_that_says_nothing(outs):
    path = outs / "experiment.xenium"
    experiment = json.loads(path.read_text())
    del experiment["analysis_sw_version"]
    path.write_text(json.dumps(experiment))
    assert XeniumBundle.open(outs).version == "unknown" and not read_all(outs)[1].skipped


def test_only_outlines_that_cross_themselves_are_mended():
    import shapely

    from stqp.polygons import Polygons
    from stqp.sources.rings import mend, star_shaped

    rng = np.random.default_rng(8)
    rings = [rng.normal(size=(int(n), 2)) for n in rng.integers(3, 9, 400)]  # most cross themselves
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    rings += [np.column_stack([np.cos(angle), np.sin(angle)]) * rng.uniform(0.5, 2, (12, 1)) for _ in range(50)]
    rings += [rings[-1][::-1], np.column_stack([np.cos(2 * angle + 0.1 * angle), np.sin(2 * angle)])]  # twice round
    polygons = Polygons.from_rings(np.concatenate(rings), np.r_[0, np.cumsum([len(r) for r in rings])])
    valid = shapely.is_valid(polygons.to_shapely())
    star = star_shaped(polygons)
    assert valid[star].all() and star[400:451].all() and 0 < valid[:400].sum() < 300
    among = np.ones(len(rings), bool)
    among[0] = False
    after, mended = mend(polygons, among)
    assert mended.tolist() == (~valid & among).tolist()
    np.testing.assert_array_equal(after.take(~mended).coords, polygons.take(~mended).coords)
    assert shapely.is_valid(after.take(mended).to_shapely()).all() and (after.area()[mended] > 0).all()
