"""A labelled reference: names of genes, depth, doubt, and what cannot be learned from."""

import anndata
import numpy as np
import pytest
from celltyping.slides import macro_f1, slide
from scipy import sparse

from stqp.celltyping.confidence import reliability_of
from stqp.celltyping.gene_names import data_rows
from stqp.celltyping.methods import type_cells
from stqp.celltyping.taxonomies import Taxonomy
from stqp.errors import EnvironmentProblem, InputError, UsageError


@pytest.fixture(scope="module")
def known():
    made = slide(7, tumour=False, per_type=80, depth=600)  # deeper than what is typed
    made.obs["type"] = made.obs["fine"].replace({"T cell": "T cells", "B cell": "B cells", "macrophage": "Macrophages"})
    return made


@pytest.fixture(scope="module")
def classes(known, tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "map.csv"
    pairs = dict(zip(known.obs["type"], known.obs["truth"], strict=True))
    path.write_text("label,class\n" + "".join(f"{k},{v}\n" for k, v in pairs.items()))
    return path


def written(known, folder, change=None):
    made = known.copy()
    if change:
        change(made)
    made.write_h5ad(folder / "reference.h5ad")
    return {"reference": folder / "reference.h5ad", "reference_key": "type"}


def sparse_slide():
    made = slide(7, tumour=False, per_type=60, depth=25)
    return made


def test_the_doubt_of_sparse_cells_is_right(known, classes, tmp_path):
    made = sparse_slide()
    typed = type_cells(made, "reference", class_map=classes, **written(known, tmp_path))
    of = typed.classes != "Unknown"
    right = (typed.fine == made.obs["fine"].replace({"T cell": "T cells", "B cell": "B cells",
                                                     "macrophage": "Macrophages"}).to_numpy(object))[of]  # fmt: skip
    _, error = reliability_of(typed.confidence[of], right.astype(float))
    assert error < 0.1 and typed.summary["confidence"]["expected_calibration_error"] < 0.15
    assert sum(b["cells"] for b in typed.summary["confidence"]["held_out"]) > 100
    assert macro_f1(made.obs["truth"], typed.classes) > 0.9
    assert sum(typed.summary["unknown"].values()) == (typed.classes == "Unknown").sum()


def test_a_reference_of_ensembl_ids(known, classes, tmp_path):
    ids = {row["symbol"]: row["human"].split()[0].split("=")[0] for row in data_rows("ensembl_ids.tsv") if row["human"]}
    made = sparse_slide()
    plain = type_cells(made, "reference", class_map=classes, **written(known, tmp_path))

    def name(other):
        other.var_names = [f"{ids[g]}.7" if g in ids else g for g in other.var_names]

    typed = type_cells(made, "reference", class_map=classes, **written(known, tmp_path, name))
    assert (typed.classes == plain.classes).mean() > 0.97

    def by_column(other):
        other.var["feature_name"] = other.var_names.astype(str)
        other.var_names = [f"ENSG9{i:010d}" for i in range(other.n_vars)]

    typed = type_cells(made, "reference", class_map=classes, **written(known, tmp_path, by_column))
    assert (typed.classes == plain.classes).all()


def test_a_reference_of_the_other_species(known, classes, tmp_path):
    made = sparse_slide()

    def mouse(other):
        other.var_names = [g.capitalize() for g in other.var_names]

    typed = type_cells(made, "reference", class_map=classes, **written(known, tmp_path, mouse))
    assert macro_f1(made.obs["truth"], typed.classes) > 0.9


def test_types_of_a_reference_in_a_taxonomy(known, tmp_path):
    taxonomy = Taxonomy.from_dict(
        {"classes": {"Lymphocyte": {"parent": "Inflammatory", "fine_types": ["T cells", "B cells"]}, "Connective": {}}},
        "mine",
    )
    made = slide(7, tumour=False, per_type=30)
    typed = type_cells(made, "reference", taxonomy=taxonomy, **written(known, tmp_path))
    assert set(typed.class_counts()) == {"Lymphocyte", "Connective", "Unknown"}
    assert (typed.classes[made.obs["fine"] == "T cell"] == "Lymphocyte").mean() > 0.9
    assert (typed.classes[made.obs["fine"] == "macrophage"] == "Unknown").all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.obs.__setitem__("type", "one"), "expected two types or more in 'type' .* found 1"),
        (
            lambda m: setattr(m, "var_names", [f"x{i}" for i in range(m.n_vars)]),
            "shares 0 genes.*genes like x0, x1, x2",
        ),
        (lambda m: setattr(m, "X", sparse.csr_matrix(m.X * 0.5)), "the reference .* normalised already"),
        (lambda m: setattr(m, "X", sparse.csr_matrix(m.shape, dtype=np.float32)), "zeros only"),
    ],
)
def test_references_that_teach_nothing(known, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        type_cells(sparse_slide(), "reference", **written(known, tmp_path, change))


def test_a_reference_that_is_none(known, tmp_path):
    made = sparse_slide()
    whole = written(known, tmp_path)["reference"].read_bytes()
    (tmp_path / "half.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is no AnnData file"):
        type_cells(made, "reference", reference=tmp_path / "half.h5ad", reference_key="type")
    with pytest.raises(UsageError, match="--reference-key: truth, fine, type"):
        type_cells(made, "reference", reference=tmp_path / "reference.h5ad")
    with pytest.raises(InputError, match="expected the column 'x'"):
        type_cells(made, "reference", reference=tmp_path / "reference.h5ad", reference_key="x")
    (tmp_path / "model.pkl").write_bytes(b"")
    with pytest.raises(EnvironmentProblem, match="pip install celltypist"):
        type_cells(made, "reference", reference=tmp_path / "model.pkl")
    assert isinstance(made, anndata.AnnData)
