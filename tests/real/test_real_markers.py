"""Marker tables held to the public panels of 10x, to PanglaoDB and to a sample with a known truth."""

import csv

import numpy as np
import pytest

from stqp.celltyping.fine_types import NONE, SHARED, class_of_fine_type, data_rows, type_key
from stqp.celltyping.gene_names import harmonise
from stqp.celltyping.markers import MarkerTable

ANNOTATION = {
    "hBreast": "Annotation",
    "hColon": "Annotation",
    "hLung": "Annotation",
    "hSkin": "Annotation",
    "hMulti": "Cell types",
    "hPrime5K": "cell_type",
}


@pytest.fixture(scope="module")
def human():
    return MarkerTable.shipped("human")


@pytest.fixture(scope="module")
def panels(real_data):
    result = {}
    for name, column in ANNOTATION.items():
        path = real_data / "panels" / f"{name}.csv"
        if not path.is_file():
            pytest.skip(f"{path} is missing")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            result[name] = {r["gene"]: [t.strip() for t in r[column].split(";") if t] for r in csv.DictReader(stream)}
    return result


@pytest.fixture(scope="module")
def panglao_path(real_data):
    path = real_data / "markers" / "panglaodb_markers.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path


@pytest.mark.parametrize("name", [n for n in ANNOTATION if n != "hPrime5K"])
def test_the_shipped_table_covers_the_panels(panels, human, name, capsys):
    genes = [g for g, types in panels[name].items() if types]
    names, _ = harmonise(genes, human)
    votes = human.votes(names).any(axis=1)
    shared = {r.gene for r in human.rows if r.visual == SHARED}
    listed = np.array([g in shared for g in names])
    with capsys.disabled():
        offers = dict(zip(human.classes, human.offers(names).tolist(), strict=True))
        print(f"\n{name}: {len(genes)} annotated genes, {votes.mean():.0%} speak for a class, ", end="")
        print(f"{listed.mean():.0%} are shared; markers: {offers}", end="")
    assert (votes | listed).mean() >= 0.85
    assert votes.mean() >= 0.65  # a list of shared genes alone would cover nothing


def test_most_votes_are_what_the_panels_say(panels, human):
    """Of the genes of the five small panels that 10x annotates with one lineage only."""
    agree = total = 0
    for name in ("hBreast", "hColon", "hLung", "hSkin", "hMulti"):
        for gene, types in panels[name].items():
            said = {class_of_fine_type(t) for t in types} & set(human.classes)
            voted = {c for c, v in zip(human.classes, human.votes([gene])[0], strict=True) if v}
            if len(said) == 1 and voted:
                total += 1
                agree += bool(said & voted)
    assert total > 800 and agree / total >= 0.95


def test_every_fine_type_has_an_explicit_class(panels, panglao_path):
    explicit = {type_key(r["fine_type"]) for r in data_rows("fine_types.tsv")}
    names = {t for panel in panels.values() for types in panel.values() for t in types}
    with panglao_path.open(encoding="utf-8", errors="replace", newline="") as stream:
        names |= {r["cell type"] for r in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)}
    assert len(names) > 800
    assert not sorted(n for n in names if type_key(n) not in explicit)


@pytest.mark.parametrize("name", ANNOTATION)
def test_panels_load_as_they_are(real_data, panels, name):
    table = MarkerTable.read(real_data / "panels" / f"{name}.csv")
    assert not table.notes and table.species == "human"
    assert {"Inflammatory", "Epithelial"} <= set(table.classes) <= {"Inflammatory", "Connective", "Epithelial"}
    gene, types = next((g, t) for g, t in panels[name].items() if len(t) > 1 or name in ("hBreast", "hLung"))
    assert table.fine_types(gene) == types


def test_panglaodb_loads_as_it_is(panglao_path):
    table = MarkerTable.read(panglao_path)
    assert table.classes == ("Inflammatory", "Connective", "Epithelial")
    assert len(table.genes) > 3000 and len(table.types) == 179
    assert not any("no visual class" in note for note in table.notes)
    assert {NONE, SHARED} & set(table.types.values()) == {NONE}
    mouse = MarkerTable.read(panglao_path, "mouse")
    assert mouse.species == "mouse" and mouse.votes(["Cd3e", "Epcam", "Vwf"]).any(axis=1).all()


def test_a_cell_alone_is_mostly_named_right(real_data, human, capsys):
    """No clusters, no neighbours: the mean of each class's markers, against the truth and beside PanglaoDB."""
    folder = real_data / "consep_xenium"
    path = folder / "outs" / "cell_feature_matrix.h5"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    import pyarrow.parquet as pq
    import scanpy as sc

    cells = sc.read_10x_h5(path)
    truth = dict(
        zip(
            *(pq.read_table(folder / "truth" / "nuclei.parquet")[c].to_pylist() for c in ("cell_id", "class")),
            strict=True,
        )
    )
    kinds = np.array([truth.get(c, "") for c in cells.obs_names])
    cells, kinds = cells[np.isin(kinds, human.classes)].copy(), kinds[np.isin(kinds, human.classes)]
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    scaled = cells.X.toarray()
    scaled = (scaled - scaled.mean(axis=0)) / (scaled.std(axis=0) + 1e-9)

    def right(table):
        names, _ = harmonise(list(cells.var_names), table)
        votes = table.votes(names) / np.sqrt(np.maximum(table.offers(names), 1))
        return (np.array(table.classes)[(scaled @ votes).argmax(axis=1)] == kinds).mean()

    ours, panglao = right(human), right(MarkerTable.read(real_data / "markers" / "panglaodb_markers.tsv"))
    with capsys.disabled():
        print(f"\nsingle cells named right: {ours:.3f}, by PanglaoDB {panglao:.3f}", end="")
    assert ours >= 0.75 and ours >= panglao
