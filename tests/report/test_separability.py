"""The whole way on a made-up run: imported, labelled, judged, labelled again by what was proposed."""

import csv
import dataclasses
import io
import json
import shutil

import anndata
import numpy as np
import pytest
from PIL import Image

from stqp.celltyping.taxonomies import Taxonomy
from stqp.errors import InputError, UsageError
from stqp.importing.labelling import label_project
from stqp.importing.xenium import import_xenium
from stqp.qupath.project import QuPathProject
from stqp.report.separability import separability
from stqp.taxonomy import read_class_map

SMALL = {"block": 60.0, "guard": 10.0, "min_nuclei": 15}


@pytest.fixture(scope="module")
def labelled(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled") / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, folder)
    label_project(folder)
    return folder


@pytest.fixture
def project(labelled, tmp_path):
    return shutil.copytree(labelled, tmp_path / "project")


def opened(project):
    with QuPathProject.open(project, "r") as one:
        (entry,) = one.entries
        return entry.read_objects(), entry.stqp_folder


def change(project, chosen, **columns):
    with QuPathProject.open(project, "r+") as one:
        (entry,) = one.entries
        present = entry.read_objects()
        rows = chosen(present)
        entry.update_objects(rows, dataclasses.replace(present.take(rows), **columns))
        one.save()
    return rows


def test_the_loop_closes(project):
    before = {p.name: p.read_bytes() for p in opened(project)[1].iterdir()}
    record = separability(project, **SMALL)
    objects, folder = opened(project)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before  # the project is only read
    out = folder / "separability"
    written = {"separability.json", "pairs.csv", "proposed.toml", "class_map.csv", "heat_map.png", "examples.png",
               "separability.html"}  # fmt: skip
    assert {p.name for p in out.iterdir()} == written
    said = json.loads((out / "separability.json").read_text(encoding="utf-8"))
    assert said["by"] == "cluster" and said["record"]["arguments"]["seed"] == 0
    groups = {g["name"]: g for g in said["groups"]}
    assert all(name.split(" ", 1)[0].isdigit() and name.endswith(g["type"]) for name, g in groups.items())
    rows = list(csv.DictReader(io.StringIO((out / "pairs.csv").read_text(encoding="utf-8"))))
    assert len(rows) == len(said["pairs"]) == len(groups) * (len(groups) - 1) / 2
    # cells of one class were given their fine types by lot, so no image shows them; classes were drawn to be seen
    for row in rows:
        a, b = groups[row["a"]], groups[row["b"]]
        if a["lineage"] != b["lineage"]:
            assert float(row["auc"]) > 0.9
        elif a["lineage"] != "Epithelial":  # whose clusters are the glands' and the nests'
            assert row["verdict"] != "told apart" and row["proposed_together"] == "yes"
    assert any("seem to look different" in n and "--neoplastic-clusters" in n for n in record.results["notes"])
    taxonomy = Taxonomy.read(out / "proposed.toml")
    assert set(taxonomy.classes) == {"Inflammatory", "Connective", "Epithelial"}
    assert read_class_map(out / "class_map.csv") == {name: g["proposed"] for name, g in groups.items()}
    label_project(project, taxonomy=out / "proposed.toml")
    after, _ = opened(project)
    assert (after.classes == objects.classes).mean() > 0.98
    again = separability(project, by="fine", **SMALL)
    assert {c["name"] for c in again.results["classes"]} == set(taxonomy.classes)


def test_pictures_and_page(project):
    record = separability(project, by="fine", **SMALL)
    _, folder = opened(project)
    out = folder / "separability"
    page = (out / "separability.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/') == 2 and "http" not in page.split("</style>")[1]
    assert record.results["statement"] in page and "Smooth muscle cells" in page
    heat, sheet = (np.asarray(Image.open(out / name).convert("RGB")) for name in ("heat_map.png", "examples.png"))
    assert heat.std() > 20 and sheet.std() > 20
    n = len(json.loads((out / "separability.json").read_text(encoding="utf-8"))["groups"])
    assert sheet.shape[0] > n * 112
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    separability(project, by="fine", **SMALL)  # over the first, and the same
    for name in ("pairs.csv", "proposed.toml", "heat_map.png", "examples.png", "class_map.csv"):
        assert (out / name).read_bytes() == first[name], name


def test_a_tumour_stays_a_class_of_its_own(project):
    label_project(project, neoplastic_clusters=[0, 8])
    separability(project, **SMALL)
    _, folder = opened(project)
    taxonomy = Taxonomy.read(folder / "separability" / "proposed.toml")
    assert taxonomy.classes == ("Neoplastic", "Inflammatory", "Connective", "Epithelial")
    assert "Neoplastic" not in taxonomy.types and taxonomy.types["Epithelial"] == ("Epithelial cells",)
    label_project(project, taxonomy=folder / "separability" / "proposed.toml", neoplastic_clusters=[0, 8])
    after, _ = opened(project)
    assert (after.classes == "Neoplastic").sum() > 50 and (after.classes == "Epithelial").sum() > 30


def test_a_proposal_of_parts_of_a_lineage_labels_in_its_colours(project, tmp_path):
    """What a real slide's proposal looks like: a lineage in two classes, named by their fine types."""
    from stqp.celltyping.markers import MarkerTable
    from stqp.separability.proposal import name_classes, to_taxonomy

    types = [["T cells", "B cells"], ["Macrophages"], ["Fibroblasts", "Endothelial cells", "Smooth muscle cells"],
             ["Epithelial cells"]]  # fmt: skip
    lines = [["Inflammatory"], ["Inflammatory"], ["Connective"], ["Epithelial"]]
    proposed = name_classes(types, lines)
    assert [p.name for p in proposed] == ["T cells + B cells", "Macrophages", "Connective", "Epithelial"]
    taxonomy = to_taxonomy(proposed, "test", MarkerTable.shipped())
    seen = {t for p in proposed for t in p.types}
    more = {n: set(types) - seen for n, types in taxonomy.types.items()}
    assert "Monocytes" in more["Macrophages"] and not more["Connective"]  # which takes its types by its name
    assert {"T helper cells", "T regulatory cells"} <= more["T cells + B cells"]
    taxonomy.write(tmp_path / "parts.toml")
    assert Taxonomy.read(tmp_path / "parts.toml") == taxonomy
    assert len(set(taxonomy.colors.values())) == 4 and taxonomy.parents == {
        "T cells + B cells": "Inflammatory", "Macrophages": "Inflammatory"
    }  # fmt: skip
    before, _ = opened(project)
    label_project(project, taxonomy=tmp_path / "parts.toml")
    after, folder = opened(project)
    fine = anndata.read_h5ad(folder / "cells.h5ad").obs["fine_type"].astype(str).reindex(after.names).to_numpy()
    of = before.classes == "Inflammatory"
    assert np.isin(after.classes[of].astype(str), ["T cells + B cells", "Macrophages"]).mean() > 0.95
    assert (after.classes[fine == "Macrophages"] == "Macrophages").all()
    for name in taxonomy.classes:
        assert tuple(after.class_colors[name]) == taxonomy.colors[name]
    with QuPathProject.open(project, "r") as one:
        colors = one.classes
    assert {n: tuple(colors[n]) for n in taxonomy.classes} == dict(taxonomy.colors)
    # the classes of the proposal are lineages by their fine types
    record = separability(project, by="fine", **SMALL)
    assert {c["name"] for c in record.results["classes"]} >= {"Inflammatory", "Connective"}


def test_what_a_person_corrected_and_unknown_are_counted(project):
    base = separability(project, by="fine", **SMALL)

    def some(present):
        return np.flatnonzero(present.classes == "Connective")[:6]

    rows = change(project, some, classes=np.array(["Dead"] * 5 + ["Unknown"], object))
    found = separability(project, by="fine", **SMALL)
    assert found.skipped["nuclei whose class somebody corrected (their expression says another)"] == 6
    assert found.skipped["nuclei that are Unknown"] == base.skipped["nuclei that are Unknown"]
    judged = "nuclei judged"
    assert found.counts[judged] <= base.counts[judged] - 6
    by_class = separability(project, by="class", **SMALL)
    assert by_class.counts["corrected nuclei, taken as somebody corrected them"] == 5
    assert by_class.skipped["nuclei that somebody made Unknown"] == 1
    assert by_class.skipped["nuclei of groups too small to judge"] == 5  # the five that are Dead
    assert len(rows) == 6


def test_any_column_of_the_cells_makes_groups(project):
    _, folder = opened(project)
    data = anndata.read_h5ad(folder / "cells.h5ad")
    data.obs["mine"] = np.where(data.obs["class"].astype(str) == "Epithelial", "round", "other: this*")
    data.obs["one"] = "all"
    data.write_h5ad(folder / "cells.h5ad")
    record = separability(project, by="mine", **SMALL)
    assert [c["groups"] for c in record.results["classes"]] == [["other: this*"], ["round"]]
    assert set(Taxonomy.read(folder / "separability" / "proposed.toml").types.values()) == {
        ("other: this*",), ("round",)
    }  # fmt: skip
    with pytest.raises(InputError, match="all nuclei are of one group, all"):
        separability(project, by="one", **SMALL)
    with pytest.raises(InputError, match=r"have no column 'yours'; the image has .*mine"):
        separability(project, by="yours", **SMALL)


def test_an_embedding_in_place_of_the_features_or_beside_them(project, tmp_path):
    objects, _ = opened(project)
    rng = np.random.default_rng(0)
    shown = {"Macrophages": 4.0}  # a network that sees what the simple features do not
    _, folder = opened(project)
    fine = anndata.read_h5ad(folder / "cells.h5ad").obs["fine_type"].astype(str).reindex(objects.names)
    x = rng.normal(0, 1, (len(objects), 4))
    x[:, 0] += [shown.get(f, 0.0) for f in fine]
    np.savez(tmp_path / "seen.npz", ids=objects.ids.astype(str), x=x)
    for features in ("given", "both", None):
        record = separability(project, by="fine", embedding=tmp_path / "seen.npz", features=features, **SMALL)
        alone = [c["groups"] for c in record.results["classes"] if "Macrophages" in c["groups"]]
        assert alone == [["Macrophages"]]
    with pytest.raises(UsageError, match="needs --embedding or --predictions"):
        separability(project, features="given")
    with pytest.raises(InputError, match="does not exist"):
        separability(project, embedding=tmp_path / "none.npz")


def test_what_is_missing_is_said_and_nothing_is_written(sample, project, tmp_path):
    bare = tmp_path / "bare"
    import_xenium(sample.outs, sample.he, sample.alignment, bare)
    with pytest.raises(InputError, match="no column 'cluster'; the image is not labelled yet: run stqp label first"):
        separability(bare)
    with pytest.raises(InputError, match="run stqp label first"):
        separability(bare, by="class")
    with pytest.raises(UsageError, match="has no image 'other'; it has "):
        separability(project, entry=["other"])
    with pytest.raises(UsageError, match=r"between 0\.5 and 1"):
        separability(project, least_auc=80)
    with pytest.raises(InputError, match="fewer than two groups have"):
        separability(project, block=200.0)
    _, folder = opened(project)
    assert not (folder / "separability").exists()
    he = shutil.copy(sample.he, tmp_path / sample.he.name)
    import_xenium(sample.outs, he, sample.alignment, tmp_path / "moved")
    (tmp_path / sample.he.name).unlink()
    with pytest.raises(InputError, match="is not where the project has it"):
        separability(tmp_path / "moved")
    (folder / "sample.json").unlink()
    with pytest.raises(InputError, match="has counts beside it; import a sample first"):
        separability(project)


def test_several_images_are_one_question_about_fine_types(labelled, tmp_path):
    from stqp.synthetic import make_sample

    both = shutil.copytree(labelled, tmp_path / "both")
    more = make_sample(tmp_path / "more", seed=8, size=(901, 801), name="second")
    import_xenium(more.outs, more.he, more.alignment, both, cell_types="stqp")
    with pytest.raises(UsageError, match=r"name one by --entry, or give --by fine"):
        separability(both, by="cluster", **SMALL)
    record = separability(both, **SMALL)
    assert record.results["by"] == "fine" and record.results["out"].endswith("separability")
    said = json.loads((both / "stqp" / "separability" / "separability.json").read_text(encoding="utf-8"))
    assert said["settings"]["held_out"] == "slides" and len(said["images"]) == 2
    one = separability(both, entry=[said["images"][1]["name"]], **SMALL)
    assert one.results["by"] == "cluster"
