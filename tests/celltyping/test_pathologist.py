"""What a pathologist says: normal clusters and regions, the origin of a tumour, and what contradicts itself."""

import numpy as np
import pytest
from celltyping.slides import slide

from stqp.celltyping.methods import type_cells
from stqp.celltyping.pathologist import Said
from stqp.celltyping.taxonomies import Taxonomy
from stqp.errors import InputError, UsageError


@pytest.fixture(scope="module")
def planted():
    made = slide(1)
    return made, type_cells(made, seed=3)


def clusters_of(typed, truth, name):
    """Clusters whose cells mostly have a truth."""
    return [
        c["cluster"] for c in typed.clusters if (np.asarray(truth)[typed.cluster == c["cluster"]] == name).mean() > 0.5
    ]


def test_evidence_is_held_against_the_clusters_that_are_named_normal(planted):
    made, typed = planted
    normal = clusters_of(typed, made.obs["truth"], "Epithelial")[:2]
    again = type_cells(made, seed=3, normal_clusters=normal)
    found = again.summary["neoplastic"]
    assert found["decided_by"] == "evidence" and found["normal_clusters"] == normal
    assert all("named as normal" in e["against"] for e in found["evidence"])
    assert not {e["cluster"] for e in found["evidence"]} & set(normal)  # they are not on trial
    assert (again.classes == typed.classes).mean() > 0.99
    assert all(again.clusters[n]["why"].endswith("named as normal") for n in normal)


def test_a_tumour_that_is_all_of_the_epithelium_is_found_against_a_normal_region():
    made = slide(4)
    made = made[made.obs["truth"] != "Epithelial"].copy()  # three clusters of tumour, no other epithelium
    normal = slide(4)
    normal = normal[normal.obs["fine"] == "gland 1"].copy()
    both = made.concatenate(normal, index_unique=None) if hasattr(made, "concatenate") else made
    region = np.asarray(both.obs["fine"] == "gland 1")
    typed = type_cells(both, seed=1, normal_cells=region)
    found = typed.summary["neoplastic"]
    assert "150 cells" in found["evidence"][0]["against"] and found["normal_cells"] == 150
    tumour = np.asarray(both.obs["truth"] == "Neoplastic")
    assert (typed.classes[tumour] == "Neoplastic").mean() > 0.95
    assert not (typed.classes[region] == "Neoplastic").any()


def test_a_normal_region_without_epithelium_is_refused(planted):
    made, _ = planted
    with pytest.raises(InputError, match="the normal region holds 0 cells of epithelial origin"):
        type_cells(made, seed=3, normal_cells=np.zeros(made.n_obs, bool))


def test_what_contradicts_itself_is_refused(planted):
    made, _ = planted
    with pytest.raises(UsageError, match="named as the tumour and as normal"):
        type_cells(made, neoplastic_clusters=[1], normal_clusters=[1, 2])
    with pytest.raises(UsageError, match="no cluster 99"):
        type_cells(made, seed=3, normal_clusters=[99])
    with pytest.raises(UsageError, match="epithelial, melanocytic"):
        type_cells(made, tumour_origin="glial")


def test_the_origin_says_which_clusters_are_tried(planted):
    made, typed = planted
    stroma = type_cells(made, seed=3, tumour_origin="stromal")
    tried = {e["cluster"] for e in stroma.summary["neoplastic"]["evidence"]}
    assert tried == {c["cluster"] for c in typed.clusters if c["decision"] == "Connective"}
    assert "Neoplastic" not in stroma.class_counts()
    region = np.ones(made.n_obs, bool)
    drawn = type_cells(made, seed=3, tumour_origin="haematopoietic", tumour_cells=region)
    assert not (drawn.classes == "Inflammatory").any() and (drawn.classes == "Epithelial").any()
    said = Said(origin="melanocytic")
    classes = np.array(["Epithelial", "Epithelial", "Connective"], object)
    assert said.from_origin(classes, np.array(["Melanocyte", "Keratinocytes", "Melanocytes"], object)).tolist() == [
        True, False, False,
    ]  # fmt: skip


def test_the_tumour_takes_the_class_that_a_taxonomy_has_for_it(planted):
    made, _ = planted
    named = {"classes": {"Gland": {"parent": "Epithelial", "fine_types": []}, "Carcinoma": {"parent": "Neoplastic"},
                         "Inflammatory": {}, "Connective": {}, "Epithelial": {}}}  # fmt: skip
    typed = type_cells(made, seed=3, taxonomy=Taxonomy.from_dict(named, "mine"))
    tumour = np.asarray(made.obs["truth"] == "Neoplastic")
    assert (typed.classes[tumour] == "Carcinoma").mean() > 0.95 and "Neoplastic" not in typed.class_counts()
    del named["classes"]["Carcinoma"]
    without = Taxonomy.from_dict(named, "mine")
    typed = type_cells(made, seed=3, taxonomy=without)
    assert set(typed.class_counts()) <= {"Epithelial", "Inflammatory", "Connective", "Unknown"}
    assert any("no class for it" in note for note in typed.summary["notes"])
    with pytest.raises(UsageError, match="no class for a tumour"):
        type_cells(made, taxonomy=without, neoplastic_clusters=[0])


@pytest.mark.parametrize("method", ["paper", "labels"])
def test_a_pathologist_decides_whatever_the_method(planted, tmp_path, method):
    made, _ = planted
    options = {}
    if method == "labels":
        truth = made.obs["fine"].astype(str)
        (tmp_path / "labels.csv").write_text(
            "cell_id,label\n" + "".join(f"{i},{t}\n" for i, t in zip(made.obs_names, truth, strict=True))
        )
        (tmp_path / "map.csv").write_text("label,class\n" + "".join(f"{t},Epithelial\n" for t in sorted(set(truth))))
        options = {"labels": tmp_path / "labels.csv", "class_map": tmp_path / "map.csv"}
    typed = type_cells(made, method, neoplastic_clusters=[1], **options)
    assert set(np.unique(typed.cluster[typed.classes == "Neoplastic"])) >= {1}
    assert (typed.classes[typed.cluster == 1] == "Neoplastic").all() and typed.clusters[1]["decision"] == "Neoplastic"
    assert typed.summary["neoplastic"]["decided_by"] == "the clusters that were named"
    with pytest.raises(UsageError, match="no cluster 99"):
        type_cells(made, method, neoplastic_clusters=[99], **options)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("paper", {"taxonomy": Taxonomy.default()}, "--taxonomy has no part in the method paper"),
        ("paper", {"normal_clusters": [0]}, "--normal-clusters has no part"),
        ("stqp", {"reference": "x.h5ad"}, "--reference has no part in the method stqp; it is for reference"),
        ("stqp", {"class_map": "x.csv"}, "it is for reference and labels"),
        ("labels", {"markers": "x.csv"}, "--markers has no part in the method labels"),
        ("reference", {"resolution": 2.0}, "--resolution has no part"),
    ],
)
def test_an_option_that_a_method_does_not_use_is_said(planted, method, options, said):
    with pytest.raises(UsageError, match=said):
        type_cells(planted[0], method, **options)


def test_tumour_genes_of_another_panel_are_said(planted):
    with pytest.raises(InputError, match=r"none of the 2 tumour genes given \(FOO, BAR\) is on the panel"):
        type_cells(planted[0], tumour=["FOO", "BAR"])
    typed = type_cells(planted[0], seed=3, tumour=["MYC", "FOO", "MDM2", "SOX4"])
    assert typed.summary["neoplastic"]["tumour_genes_on_panel"] == ["MDM2", "MYC", "SOX4"]
