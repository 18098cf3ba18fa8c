import gzip

import numpy as np
import pandas as pd
import pytest

from stqp.errors import InputError, UsageError
from stqp.sources.labels import read_labels, to_classes
from stqp.sources.matching import assign, likeliest

CELLS = np.array(["aaaa-1", "bbbb-1", "cccc-1", "dddd-1"], object)
NUCLEUS_CELL = np.array([0, 1, 1, 3])
NUCLEUS_ID = np.array([10, 11, 12, 13])


def write(tmp_path, text, name="labels.csv"):
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def given(path, **options):
    return assign(read_labels(path, **options), CELLS, NUCLEUS_CELL, NUCLEUS_ID)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "cell_id,label\naaaa-1,T\nbbbb-1,B\ndddd-1,T\n"),
        ("clusters.csv", "Barcode,Cluster\naaaa-1,T\nbbbb-1,B\ndddd-1,T\n"),
        ("groups.csv", "cell_id,group,color\naaaa-1,T,red\nbbbb-1,B,blue\ndddd-1,T,red\n"),
        ("a.tsv", "x\tlabel\tcell_id\n1\tT\taaaa-1\n2\tB\tbbbb-1\n3\tT\tdddd-1\n"),
        ("any.csv", "what,ever\naaaa-1,T\nbbbb-1,B\ndddd-1,T\n"),
        ("none.csv", "aaaa-1,T\nbbbb-1,B\ndddd-1,T\n"),
        ("rows.csv", ",leiden\naaaa-1,T\nbbbb-1,B\ndddd-1,T\n"),
        ("r.csv", "leiden\naaaa-1,T\nbbbb-1,B\ndddd-1,T\n"),
        ("quoted.csv.gz", '"cell_id","cell_type"\r\n"aaaa-1","T"\r\n"bbbb-1","B"\r\n"dddd-1","T"\r\n'),
        ("bom.csv", "\ufeffcell_id;label\naaaa-1;T\nbbbb-1;B\ndddd-1;T\n"),
        ("missing.csv", "cell_id,label\naaaa-1,T\nbbbb-1,B\ncccc-1,\ndddd-1,T\n"),
    ],
)
def test_tables_as_people_write_them(tmp_path, name, text):
    result = given(write(tmp_path, text, name))
    assert result.cells.tolist() == ["T", "B", None, "T"]
    assert result.nuclei.tolist() == ["T", "B", "B", "T"]
    assert np.isnan(result.confidence).all() and not result.skipped


def test_parquet_with_an_index_and_confidence(tmp_path):
    path = tmp_path / "a.parquet"
    frame = pd.DataFrame(
        {"cluster": [1, 2, 12], "confidence": [0.5, 0.25, np.nan]}, index=["aaaa-1", "bbbb-1", "dddd-1"]
    )
    frame.to_parquet(path)
    result = given(path)
    assert result.cells.tolist() == ["1", "2", None, "12"]
    np.testing.assert_array_equal(result.confidence, [0.5, 0.25, 0.25, np.nan])
    pd.DataFrame({"cell_id": CELLS[:1], "cell_type": pd.Categorical(["T"])}).to_parquet(path)
    assert given(path).cells.tolist() == ["T", None, None, None]


def test_integer_ids_of_the_first_versions(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"cell_id": [1, 3], "label": ["T", "B"]}).to_parquet(path)
    result = assign(read_labels(path), np.array(["1", "2", "3"], object), np.array([0, 2]), np.array([-1, -1]))
    assert result.nuclei.tolist() == ["T", "B"]


def test_h5ad_needs_a_key_that_is_there(tmp_path):
    import anndata

    obs = pd.DataFrame({"leiden": pd.Categorical(["0", "1"]), "confidence": [0.9, 0.8]}, index=["aaaa-1", "dddd-1"])
    path = tmp_path / "a.h5ad"
    anndata.AnnData(np.zeros((2, 1), np.float32), obs=obs).write_h5ad(path)
    result = given(path, label_key="leiden")
    assert result.cells.tolist() == ["0", None, None, "1"]
    assert result.confidence[[0, 3]].tolist() == [0.9, 0.8]
    with pytest.raises(UsageError, match="--label-key: leiden"):
        read_labels(path)
    with pytest.raises(InputError, match="expected the column 'cluster' in obs"):
        read_labels(path, "cluster")
    obs["cell_id"] = ["bbbb-1", "cccc-1"]
    anndata.AnnData(np.zeros((2, 1), np.float32), obs=obs).write_h5ad(path)
    assert given(path, label_key="leiden").cells.tolist() == [None, "0", "1", None]
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"a\.h5ad"):
        read_labels(path, "leiden")


def test_labels_by_nucleus(tmp_path):
    path = write(tmp_path, "cell_id,label_id,label\nbbbb-1,12,T\nbbbb-1,11,B\naaaa-1,10,T\naaaa-1,99,T\ncccc-1,13,T\n")
    result = given(path)
    assert result.nuclei.tolist() == ["T", "B", "T", None]
    assert result.cells.tolist() == ["T", "B", None, None]
    assert result.skipped == {"labels for nuclei that the run lacks": 2}
    with pytest.raises(InputError, match="does not number its nuclei"):
        assign(read_labels(path), CELLS, NUCLEUS_CELL, np.full(4, -1))


def test_partly_matching_and_doubtful_labels_are_counted(tmp_path):
    text = "cell_id,label\naaaa-1,T\naaaa-1,B\nbbbb-1,B\nbbbb-1,B\nzzzz-1,T\n"
    result = given(write(tmp_path, text))
    assert result.cells.tolist() == [None, "B", None, None]
    assert result.skipped == {
        "labels for cells that the run lacks": 1,
        "cells with two different labels (now Unknown)": 1,
    }
    with pytest.raises(InputError, match="2 of 4 cells two different labels"):
        given(write(tmp_path, text + "bbbb-1,T\n"))


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (["aaaa", "bbbb"], "suffix"),
        (["aaaa-2", "bbbb-2"], "suffix"),
        (["patient_aaaa-1", "patient_bbbb-1"], "sample's name"),
        (["aaaa-1:p", "bbbb-1:p"], "sample's name"),
        (["1", "2"], "row numbers"),
        (["qqqq-1", "rrrr-1"], "another run"),
    ],
)
def test_labels_for_other_cells_are_refused_with_a_reason(tmp_path, ids, reason):
    path = write(tmp_path, "cell_id,label\n" + "".join(f"{i},T\n" for i in ids))
    with pytest.raises(InputError, match="are for other cells") as error:
        given(path)
    assert reason in str(error.value) and ids[0] in str(error.value) and "aaaa-1" in str(error.value)


def test_decimals_in_integer_ids_are_named(tmp_path):
    path = write(tmp_path, "cell_id,label\n1.0,T\n2.0,T\n")
    with pytest.raises(InputError, match="with decimals"):
        assign(read_labels(path), np.array(["1", "2"], object), NUCLEUS_CELL[:1], NUCLEUS_ID[:1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "are empty"),
        ("a,b,c\n1,2,3\n", "expected a column of cell ids"),
        ("cell_id,b,c\n1,2,3\n", "expected a column of labels"),
        ("cell_id,label,confidence\naaaa-1,T,high\n", "expected numbers in the column confidence"),
        ("cell_id,label\na,b\nc,d,e,f\n", "cannot be read as a table"),
    ],
)
def test_tables_that_are_no_labels(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_labels(write(tmp_path, text))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="do not exist"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_labels(tmp_path)
    path = write(tmp_path, "cell_id,label\n" + "aaaa-1,T\n" * 1000, "a.csv.gz")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(path)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not a whole table"):
        read_labels(path)


def test_other_columns_by_name(tmp_path):
    path = write(tmp_path, "cell_id,b,c\naaaa-1,2,3\n")
    assert read_labels(path, "c").labels.tolist() == ["3"]
    with pytest.raises(InputError, match="expected the column 'd'"):
        read_labels(path, "d")


def test_classes_without_and_with_a_map():
    labels = np.array(["neoplastic", "T cell", None, "UNKNOWN", "T cell"], object)
    classes, lacking = to_classes(labels, None)
    assert classes.tolist() == ["Neoplastic", "T cell", "Unknown", "Unknown", "T cell"] and not lacking
    classes, lacking = to_classes(labels, {"T cell": "inflammatory", "neoplastic": "Tumour bud"})
    assert classes.tolist() == ["Tumour bud", "Inflammatory", "Unknown", "Unknown", "Inflammatory"]
    assert lacking == {"UNKNOWN": 1}


@pytest.mark.parametrize("inner", ["", "clustering", "clustering/gene_expression_graphclust"])
def test_10x_clustering_as_a_folder(tmp_path, inner):
    folder = tmp_path / "analysis" / "clustering" / "gene_expression_graphclust"
    folder.mkdir(parents=True)
    (folder / "clusters.csv").write_text("Barcode,Cluster\naaaaaaab-1,3\n")
    (folder.parent / "gene_expression_kmeans_2_clusters").mkdir()
    (folder.parent / "gene_expression_kmeans_2_clusters" / "clusters.csv").write_text("Barcode,Cluster\naaaaaaab-1,1\n")
    assert read_labels(tmp_path / "analysis" / inner).labels.tolist() == ["3"]
    (folder / "clusters.csv").unlink()
    with pytest.raises(InputError, match="gene_expression_kmeans_2_clusters"):
        read_labels(tmp_path / "analysis")


def ids(*texts):
    return np.array(texts, object)


@pytest.mark.parametrize(
    ("given", "own", "first"),
    [
        (ids("aaaaaaab-2", "aaaaaaac-2"), ids("aaaaaaab-1", "aaaaaaac-1"), "suffix"),
        (ids("1", "2"), ids("aaaaaaab-1", "aaaaaaac-1"), "row numbers"),
        (ids("S1_aaaaaaab-1", "S1_aaaaaaac-1"), ids("aaaaaaab-1", "aaaaaaac-1"), "sample's name"),
        (ids("1.0", "2.0"), ids("1", "2"), "decimals"),
        (ids("aaaaaaab-1"), ids("1", "2"), "version 1.3"),
        (ids("ppppaaab-1"), ids("aaaaaaab-1"), "another run"),
    ],
)
def test_three_reasons_the_likeliest_first(given, own, first):
    text = likeliest(given, own)
    assert first in text.split(";")[0] and text.count(", or ") == 1, text


def test_most_labels_of_other_cells_is_a_warning(tmp_path):
    cells = ids(*(f"aaaaaa{a}{b}-1" for a in "abcdefghij" for b in "abcdefghij"))
    path = tmp_path / "labels.csv"
    rows = [f"{c},T" for c in cells[:10]] + [f"S2_{c},T" for c in cells]
    path.write_text("cell_id,label\n" + "\n".join(rows))
    result = assign(read_labels(path), cells, np.arange(100), np.full(100, -1))
    assert len(result.warnings) == 1 and "10 of the run's 100 cells" in result.warnings[0]
    assert "sample's name" in result.warnings[0]
    path.write_text("cell_id,label\n" + "\n".join(rows[:60]))  # a part of the cells is no reason to worry
    few = assign(read_labels(path), cells[:12], np.arange(12), np.full(12, -1))
    assert few.warnings == []
