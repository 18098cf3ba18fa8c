import json

import anndata
import numpy as np
import pandas as pd
import pytest
from celltyping.slides import macro_f1, slide
from scipy import sparse

from stqp.celltyping import paper, spillover
from stqp.celltyping.clustering import GeneStatistics
from stqp.celltyping.confidence import reliability_of
from stqp.celltyping.counts import checked_counts, with_names
from stqp.celltyping.markers import MarkerRow, MarkerTable
from stqp.celltyping.methods import type_cells
from stqp.celltyping.neoplastic import judge
from stqp.celltyping.voting import Base, vote
from stqp.errors import EnvironmentProblem, InputError, UsageError

CLASSES = ("Neoplastic", "Epithelial", "Inflammatory", "Connective")


@pytest.fixture(scope="module")
def planted():
    made = slide(1)
    return made, type_cells(made, seed=3)


def table(*rows):
    return MarkerTable.from_rows("test", "human", [MarkerRow(*row) for row in rows])


def statistics(folds, p=1e-6, inside=0.8, outside=0.1):
    folds = np.atleast_2d(np.asarray(folds, float))
    full = np.ones_like(folds)
    return GeneStatistics(folds * 10, folds, full * p, full * inside, full * outside)


def flat(k, g):
    return Base(np.zeros((k, g)), np.zeros((k, g)), np.zeros(g))


def named(folds, genes, of, **how):
    stats = statistics(folds, **how)
    return vote(stats, genes, of, flat(*stats.score.shape))


def test_a_planted_tumour_is_found_and_all_else_is_typed(planted):
    made, typed = planted
    assert macro_f1(made.obs["truth"], typed.classes, CLASSES) > 0.97
    assert set(np.unique(typed.classes[made.obs["truth"] == "Neoplastic"])) <= {"Neoplastic", "Unknown"}
    assert ((typed.confidence >= 0) & (typed.confidence <= 1)).all()
    assert (typed.confidence[typed.classes == "Unknown"] == 0).all()


def test_no_tumour_is_no_neoplastic_where_the_paper_finds_one():
    made = slide(5, tumour=False)
    assert "Neoplastic" not in type_cells(made).class_counts()
    assert "Neoplastic" in type_cells(made, "paper").class_counts()


def test_the_record_says_how_every_cluster_was_named(planted, tmp_path):
    made, typed = planted
    typed.write(tmp_path / "typing.json", tmp_path / "clusters.csv")
    record = json.loads((tmp_path / "typing.json").read_text(encoding="utf-8"))
    assert sum(c["cells"] for c in record["clusters"]) == (typed.cluster >= 0).sum()
    first = record["clusters"][0]
    assert {"votes", "margin", "why", "fine_types", "top_genes"} <= set(first)
    assert {"gene", "log2_fold", "p_adjusted", "inside", "outside"} == set(first["top_genes"][0])
    assert record["parameters"]["seed"] == 3 and record["neoplastic"]["decided_by"] == "evidence"
    assert record["confidence"]["expected_calibration_error"] < 0.05
    rows = pd.read_csv(tmp_path / "clusters.csv")
    assert len(rows) == len(record["clusters"]) and rows["cells"].sum() == (typed.cluster >= 0).sum()
    assert typed.class_counts() == record["classes"] and made.n_obs == len(typed.classes)


def test_the_same_seed_gives_the_same_types_and_steps_are_named():
    made, steps = slide(2, per_type=60), []
    before = made.copy()
    first = type_cells(made, seed=5, progress=lambda done, total, name: steps.append((done, total, name)))
    again = type_cells(made, seed=5)
    assert (first.classes == again.classes).all() and (first.cluster == again.cluster).all()
    assert np.array_equal(first.confidence, again.confidence)
    assert (made.X != before.X).nnz == 0 and list(made.obs) == list(before.obs)  # what was given is left alone
    assert [d for d, _, _ in steps] == sorted(d for d, _, _ in steps) and steps[-1][:2] == (8, 8)
    assert {"neighbours", "Leiden"} <= {n for _, _, n in steps}


def test_a_pathologist_decides(planted):
    made, typed = planted
    glands = [c["cluster"] for c in typed.clusters if c["decision"] == "Epithelial"][:2]
    chosen = type_cells(made, seed=3, neoplastic_clusters=glands)
    tumour = chosen.classes == "Neoplastic"
    assert set(np.unique(chosen.cluster[tumour])) == set(glands)
    assert chosen.summary["neoplastic"]["evidence"]  # recorded all the same
    region = np.zeros(made.n_obs, bool)
    region[: made.n_obs // 2] = True
    drawn = type_cells(made, seed=3, tumour_cells=region)
    assert not (drawn.classes[~region] == "Neoplastic").any()
    assert not (drawn.classes[region] == "Epithelial").any()
    with pytest.raises(UsageError, match="no cluster 99"):
        type_cells(made, seed=3, neoplastic_clusters=[99])


def test_sparse_cells_are_unknown_by_the_stated_rule():
    made = slide(3, per_type=60)
    thin = np.arange(20)
    counts = made.X.tolil()
    counts[thin] = 0
    counts[thin, 0] = 2
    made.X = counts.tocsr()
    typed = type_cells(made)
    assert (typed.classes[thin] == "Unknown").all() and (typed.cluster[thin] == -1).all()
    assert typed.summary["unknown"]["fewer than 3 counts"] == 20


def test_leaked_counts_are_seen_and_do_not_spoil_the_classes():
    made = slide(4, tumour=False, depth=60)
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(made.X)
    around = spillover.neighbourhoods(rng.uniform(0, 100, (made.n_obs, 2)), made.n_obs)
    made.obsm["spatial"] = np.random.default_rng(0).uniform(0, 100, (made.n_obs, 2))
    leaked = around @ counts * (0.4 / 6)
    leaked.data = rng.poisson(leaked.data)
    own = counts.copy()
    own.data = rng.binomial(own.data.astype(int), 0.6).astype(float)
    made.X = sparse.csr_matrix(own + leaked).astype(np.float32)
    typed = type_cells(made)
    assert 0.2 < typed.summary["leaked_share"] <= 0.5
    assert macro_f1(made.obs["truth"], typed.classes) > 0.9


def test_the_neighbours_of_a_cell_are_others_also_where_cells_share_a_place():
    around = spillover.neighbourhoods(np.r_[np.zeros((9, 2)), np.ones((3, 2))], 12)
    assert around.diagonal().sum() == 0 and (np.diff(around.indptr) == 6).all()
    assert spillover.neighbourhoods(None, 12) is None and spillover.neighbourhoods(np.zeros((12, 2)), 12) is None


def test_one_gene_has_one_vote_a_class_however_many_fine_types():
    of = table(("A", "x1", "Epithelial"), ("A", "x2", "Epithelial"), ("A", "x3", "Epithelial"),
               ("B", "x1", "Epithelial"), ("C", "y", "Connective"), ("D", "y", "Connective"))  # fmt: skip
    ballot = named([[3, 3, 3, 3]], list("ABCD"), of)
    assert ballot.votes[0].min() == pytest.approx(ballot.votes[0].max())
    assert ballot.decision[0] == "Unknown" and "too close" in ballot.why[0]  # a tie
    counted = paper.vote(statistics([[3, 3, 3, 3]]), list("ABCD"), of, ())
    assert counted.decision[0] == "Epithelial"  # where fine types count, and rank 0 is A


def test_votes_are_measured_against_what_the_panel_offers():
    genes = [f"E{i}" for i in range(40)] + ["C0", "C1", "C2", "C3"]
    of = table(*((g, "e", "Epithelial") for g in genes[:40]), *((g, "c", "Connective") for g in genes[40:]))
    folds = np.zeros(44)
    folds[:5] = folds[40:] = 3  # 5 of 40 epithelial markers, all 4 of the stroma
    assert named([folds], genes, of).decision[0] == "Connective"


def test_gates_markers_and_exclusions():
    of = MarkerTable.from_rows("test", "human", [
        MarkerRow("A", "x", "Epithelial"), MarkerRow("B", "x", "Epithelial"),
        MarkerRow("C", "y", "Inflammatory", ("Epithelial",)), MarkerRow("D", "y", "Inflammatory"),
    ])  # fmt: skip
    genes = list("ABCD")
    assert named([[3, 3, 0, 0]], genes, of).decision[0] == "Epithelial"
    assert named([[3, 3, 0, 0]], genes, of, p=0.5).decision[0] == "Unknown"  # not significant
    assert named([[0.2, 0.2, 0, 0]], genes, of).decision[0] == "Unknown"  # hardly raised
    assert named([[3, 0, 0, 0]], genes, of).decision[0] == "Unknown"  # one marker alone
    fair = table(*((r.gene, r.fine, r.visual) for r in of.rows))
    with_exclusion, without = named([[3, 3, 3, 0]], genes, of), named([[3, 3, 3, 0]], genes, fair)
    place = of.classes.index("Epithelial")
    assert with_exclusion.votes[0, place] < without.votes[0, place]
    lowered = named([[3, 3, 0, 0], [3, 0, 0, -3]], genes, fair)
    assert lowered.decision[0] == "Epithelial" and lowered.votes[1, fair.classes.index("Inflammatory")] == 0


def test_the_papers_constants_and_traps():
    rows = [("A", f"x{i}", "Epithelial") for i in range(3)] + [("B", "y", "Inflammatory"), ("C", "z", "Connective")]
    of, genes = table(*rows), list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    fall = np.linspace(5, 1, 26)[None]
    ballot = paper.vote(statistics(fall), genes, of, ("E", "F", "G", "H", "I"))
    assert dict(zip(ballot.classes, ballot.votes[0], strict=True)) == {
        "Epithelial": 30, "Inflammatory": 9, "Connective": 8,
    }  # fmt: skip
    assert ballot.decision[0] == "Epithelial"  # 5 of 20 is 25 %, not more
    assert paper.vote(statistics(fall), genes, of, "EFGHIJ").decision[0] == "Neoplastic"
    late = table(("F", "x", "Epithelial"))  # rank 5 weighs 5, and that is enough
    assert paper.vote(statistics(fall), genes, late, ()).decision[0] == "Epithelial"
    assert paper.vote(statistics(fall), genes, table(("G", "x", "Epithelial")), ()).decision[0] == "Unknown"
    tie = table(("A", "c", "Connective"), ("A", "i", "Inflammatory"))
    assert paper.vote(statistics(fall), genes, tie, ()).decision[0] == "Inflammatory"


def test_tumour_genes_of_chance_are_no_tumour():
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(300)]
    profiles = rng.dirichlet(np.ones(300) * 5, 4)
    epithelium = np.arange(3)
    found = judge(profiles, np.full(4, 0.25), epithelium, genes, genes[:10], genes[10:15])
    assert [e.cluster for e in found] == [0, 1, 2] and not any(e.neoplastic for e in found)
    profiles[0, :10] *= 6
    profiles[0] /= profiles[0].sum()
    found = judge(profiles, np.full(4, 0.25), epithelium, genes, genes[:10], genes[10:15])
    assert [e.neoplastic for e in found] == [True, False, False] and found[0].raised
    few = judge(profiles, np.full(4, 0.25), epithelium, genes, genes[:2], ())
    assert "too few" in few[0].why and not few[0].neoplastic


def test_reliability():
    rows, error = reliability_of(np.array([0.95, 0.95, 0.55, 0.55]), np.array([1.0, 1.0, 1.0, 0.0]))
    assert [r["cells"] for r in rows] == [2, 2] and error == pytest.approx(0.05)


def adata(matrix, genes=None):
    names = genes or [f"G{i}" for i in range(np.shape(matrix)[1])]
    return anndata.AnnData(sparse.csr_matrix(np.asarray(matrix, np.float32)), var=pd.DataFrame(index=names))


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (np.zeros((0, 3)), "found 0 cells and 3 genes"),
        (np.zeros((4, 3)), "zeros only"),
        (np.array([[1, -2.0]]), "negative"),
        (np.array([[1, 0.25]]), "normalised already"),
        (np.array([[1, np.nan]]), "not finite"),
    ],
)
def test_what_is_no_counts_is_said(matrix, said):
    with pytest.raises(InputError, match=said):
        type_cells(adata(matrix))


def test_duplicate_genes_are_added_up_and_said():
    made = adata([[1, 2, 3], [0, 1, 0]], ["A", "B", "A"])
    counts = checked_counts(made)
    assert counts.genes.tolist() == ["A", "B"] and counts.matrix.toarray().tolist() == [[4, 2], [0, 1]]
    assert "added" in counts.notes[0]
    assert with_names(counts, ["B", "B"]).matrix.toarray().tolist() == [[6], [1]]


def test_one_cluster_is_said():
    rng = np.random.default_rng(0)
    genes = ["EPCAM", "KRT8", "CD3E", "CD3D", "COL1A1", "VWF"]
    with pytest.raises(InputError, match="one cluster"):
        type_cells(adata(rng.poisson(20, (40, 6)), genes), resolution=0.01)


def test_no_gene_of_the_table_is_said():
    with pytest.raises(InputError, match="none of the 4 genes"):
        type_cells(adata(np.ones((4, 4)), ["foo1", "foo2", "foo3", "foo4"]))


def test_a_method_that_is_none_and_options_that_lack():
    made = adata(np.ones((4, 2)))
    for method, said in (("magic", "expected one of"), ("labels", "file of labels"), ("reference", "--reference")):
        with pytest.raises(UsageError, match=said):
            type_cells(made, method)


def test_types_of_a_reference(tmp_path):
    known, made = slide(7, tumour=False, per_type=40), slide(7, tumour=False, per_type=40)
    known.obs["cell_type"] = known.obs["fine"].replace({"T cell": "T cells", "B cell": "B cells"})
    known.write_h5ad(tmp_path / "reference.h5ad")
    mapping = dict(zip(known.obs["cell_type"], known.obs["truth"], strict=True))
    (tmp_path / "map.csv").write_text("label,class\n" + "".join(f"{k},{v}\n" for k, v in mapping.items()))
    typed = type_cells(
        made, "reference", reference=tmp_path / "reference.h5ad", reference_key="cell_type",
        class_map=tmp_path / "map.csv",
    )  # fmt: skip
    assert macro_f1(made.obs["truth"], typed.classes) > 0.97
    with pytest.raises(UsageError, match="--reference-key"):
        type_cells(made, "reference", reference=tmp_path / "reference.h5ad")
    with pytest.raises(InputError, match="expected the column"):
        type_cells(made, "reference", reference=tmp_path / "reference.h5ad", reference_key="nothing")
    with pytest.raises(InputError, match="does not exist"):
        type_cells(made, "reference", reference=tmp_path / "none.h5ad", reference_key="x")


def test_a_celltypist_model_needs_celltypist(tmp_path, monkeypatch):
    (tmp_path / "model.pkl").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="pip install celltypist"):
        type_cells(slide(1, per_type=10), "reference", reference=tmp_path / "model.pkl")


def test_labels_of_the_user(tmp_path):
    made = slide(1, per_type=10)
    rows = "".join(f"{i},{f}\n" for i, f in zip(made.obs_names[:-3], made.obs["truth"][:-3], strict=True))
    (tmp_path / "labels.csv").write_text("cell_id,label\n" + rows)
    typed = type_cells(made, "labels", labels=tmp_path / "labels.csv")
    assert (typed.classes[:-3] == made.obs["truth"].to_numpy(object)[:-3]).all()
    assert (typed.classes[-3:] == "Unknown").all()
    (tmp_path / "other.csv").write_text("cell_id,label\nzzz,Epithelial\n")
    with pytest.raises(InputError, match="no cell id"):
        type_cells(made, "labels", labels=tmp_path / "other.csv")


def test_lineages_without_a_class_stand_for_election():
    of = table(("A", "x", "Epithelial"), ("B", "x", "Epithelial"), ("C", "red", "none"), ("D", "red", "none"),
               ("E", "shared by all", "shared"))  # fmt: skip
    assert of.lineages == ("red",)
    led = named([[2, 2, 3, 3, 3]], list("ABCDE"), of, inside=[[0.3, 0.3, 0.9, 0.9, 0.9]])
    assert led.decision[0] == "Unknown" and led.why[0] == "the markers of red lead, which have no class"
    assert led.outside[0]["red"] > led.votes[0].max() and led.margin[0] == 0
    one = named([[2, 2, 3, 0, 3]], list("ABCDE"), of, inside=[[0.3, 0.3, 0.9, 0.1, 0.9]])
    assert one.decision[0] == "Epithelial"  # one marker is no lineage
    near = named([[3, 3, 3, 3, 0]], list("ABCDE"), of)
    assert near.decision[0] == "Unknown" and "red" in near.why[0]


def test_what_a_taxonomy_leaves_out_is_unknown_and_not_of_a_class_by_stray_markers():
    from stqp.celltyping.taxonomies import Taxonomy

    made = slide(6, tumour=False, per_type=60)
    content = {"classes": {"Lymphocyte": {"parent": "Inflammatory", "fine_types": ["T cells", "B cells"]},
                           "Epithelial": {}}}  # fmt: skip
    typed = type_cells(made, seed=1, taxonomy=Taxonomy.from_dict(content, "mine"))
    left_out = made.obs["fine"].isin(["fibroblast", "endothelial"]).to_numpy()
    assert (typed.classes[left_out] == "Unknown").mean() > 0.95
    assert (typed.classes[(made.obs["truth"] == "Epithelial").to_numpy()] == "Epithelial").mean() > 0.95
    rows = [c for c in typed.clusters if "Connective lead" in c["why"]]
    assert rows and rows[0]["votes_without_class"]["Connective"] > 0
