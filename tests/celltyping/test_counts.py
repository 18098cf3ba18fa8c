"""Where an AnnData may keep its counts and the names of its genes, and what is no counts."""

import anndata
import numpy as np
import pandas as pd
import pytest
from celltyping.slides import slide
from scipy import sparse

from stqp.celltyping.counts import best_named, checked_counts
from stqp.celltyping.gene_names import data_rows, known_genes
from stqp.celltyping.markers import MarkerTable
from stqp.celltyping.methods import type_cells
from stqp.errors import InputError

COUNTS = np.array([[1, 0, 3], [0, 2, 0], [4, 0, 0]])


def adata(matrix=COUNTS, genes=("A", "B", "C"), **more):
    return anndata.AnnData(matrix, var=pd.DataFrame(index=list(genes)), **more)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float32, np.float64, np.uint16])
@pytest.mark.parametrize("sparsely", [None, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_counts_of_any_type_dense_or_sparse(kind, sparsely):
    matrix = COUNTS.astype(kind)
    counts = checked_counts(adata(matrix if sparsely is None else sparsely(matrix)))
    assert counts.matrix.dtype == np.float32 and counts.matrix.toarray().tolist() == COUNTS.tolist()
    assert counts.totals.tolist() == [4, 2, 4] and not counts.notes


@pytest.mark.parametrize("layer", ["counts", "raw_counts", "raw"])
def test_counts_of_a_layer(layer):
    made = adata(np.log1p(COUNTS), layers={layer: COUNTS})
    assert checked_counts(made).matrix.toarray().tolist() == COUNTS.tolist()


def test_counts_of_raw_are_taken_where_x_holds_none():
    made = adata()
    made.raw = made.copy()
    made = made[:, :2].copy()
    made.X = np.log1p(made.X)
    counts = checked_counts(made, "mine")
    assert counts.genes.tolist() == ["A", "B", "C"] and counts.matrix.toarray().tolist() == COUNTS.tolist()
    assert "normalised already; the counts of .raw were taken" in counts.notes[0]
    made.raw = None
    with pytest.raises(InputError, match="normalised already"):
        checked_counts(made)


@pytest.mark.parametrize("dense", [True, False])
def test_counts_backed_by_their_file(tmp_path, dense):
    adata(COUNTS.astype(float) if dense else sparse.csr_matrix(COUNTS.astype(float))).write_h5ad(tmp_path / "x.h5ad")
    backed = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    assert checked_counts(backed).matrix.toarray().tolist() == COUNTS.tolist()
    backed.file.close()


def test_no_counts_at_all():
    with pytest.raises(InputError, match="found 3 cells and 0 genes"):
        checked_counts(anndata.AnnData(obs=pd.DataFrame(index=list("abc"))))
    with pytest.raises(InputError, match="2 values that are not finite"):
        checked_counts(adata(np.array([[np.nan, 1, np.inf]])))
    with pytest.raises(InputError, match=r"negative values \(-1\)"):
        checked_counts(adata(np.array([[1, -1, 0]])))


def test_controls_are_no_genes():
    made = adata()
    made.var["feature_types"] = ["Gene Expression", "Negative Control Probe", "Gene Expression"]
    assert checked_counts(made).genes.tolist() == ["A", "C"]


@pytest.mark.parametrize("column", ["gene_symbols", "feature_name"])
def test_names_of_genes_in_a_column(column):
    made = slide(2, tumour=False, per_type=40)
    made.var[column] = made.var_names.astype(str)
    plain = type_cells(made)
    made.var_names = [f"probe{i}" for i in range(made.n_vars)]
    typed = type_cells(made)
    assert (typed.classes == plain.classes).all()
    assert any(f"the column {column!r} of var" in note for note in typed.summary["notes"])


def test_names_that_are_known_as_well_stay():
    made = adata(genes=("CD3E", "EPCAM", "VWF"))
    made.var["gene_ids"] = ["ENSG0", "ENSG1", "ENSG2"]
    table = MarkerTable.shipped("human")
    found = best_named(checked_counts(made), lambda names: known_genes(names, table))
    assert found.genes.tolist() == ["CD3E", "EPCAM", "VWF"] and not found.notes


def test_ensembl_ids_and_mouse_genes_are_typed_as_their_symbols():
    made = slide(2, tumour=False, per_type=40)
    plain = type_cells(made)
    ids = {row["symbol"]: row["human"].split()[0].split("=")[0] for row in data_rows("ensembl_ids.tsv") if row["human"]}
    other = made.copy()
    other.var_names = [f"{ids[g]}.3" if g in ids else f"ENSG{i:011d}" for i, g in enumerate(made.var_names)]
    assert (type_cells(other).classes == plain.classes).mean() > 0.98
    mouse = made.copy()
    mouse.var_names = [g.capitalize() for g in made.var_names]
    assert (type_cells(mouse).classes == plain.classes).mean() > 0.95
    assert type_cells(mouse).summary["parameters"]["species"] == "mouse"
