import pytest

from stqp.celltyping.fine_types import data_rows
from stqp.celltyping.gene_names import (
    case_of,
    current_symbol,
    ensembl_id,
    harmonise,
    species_of,
    to_human,
    to_mouse,
)
from stqp.celltyping.markers import MarkerRow, MarkerTable
from stqp.errors import InputError


@pytest.fixture(scope="module")
def human():
    return MarkerTable.shipped("human")


@pytest.fixture(scope="module")
def mouse():
    return MarkerTable.shipped("mouse")


@pytest.mark.parametrize(
    ("symbol", "species"),
    [
        ("CD3E", "human"), ("C1orf54", "human"), ("HLA-DRA", "human"), ("NKX2-1", "human"), ("Cd3e", "mouse"),
        ("H2-Ab1", "mouse"), ("Nkx2-1", "mouse"), ("Gm13889", "mouse"), ("mt-Co1", "unsure"), ("12345", "unsure"),
    ],
)  # fmt: skip
def test_the_case_tells_the_species(symbol, species):
    assert case_of(symbol) == species


def test_nine_tenths_decide():
    assert species_of(["CD3E"] * 9 + ["Cd3e"]) == "human"
    assert species_of(["CD3E", "Cd3e"]) == species_of([]) == species_of(["1", "2"]) == "unsure"


@pytest.mark.parametrize(
    ("human_symbol", "mice"),
    [
        ("CD3E", ("Cd3e",)), ("CD8B", ("Cd8b1",)), ("INS", ("Ins1", "Ins2")), ("TP63", ("Trp63",)), ("CXCL8", ()),
        ("FCGR3A", ("Fcgr4",)), ("FAM46C", ("Tent5c",)),
    ],
)  # fmt: skip
def test_orthologues(human_symbol, mice):
    assert to_mouse(human_symbol) == mice
    for symbol in mice:
        assert to_human(symbol) == current_symbol(human_symbol)


def test_the_exceptions_are_exceptions():
    for row in data_rows("orthologs.tsv"):
        by_case = row["human"][:1] + row["human"][1:].lower()
        assert row["mouse"] != by_case, row


def test_no_alias_is_a_symbol_or_leads_on():
    rows = data_rows("aliases.tsv")
    old = {r["old"] for r in rows}
    assert len(old) == len(rows)
    assert not old & {r["symbol"] for r in rows}
    listed = {r["gene"] for name in ("markers.tsv", "tumour_genes.tsv") for r in data_rows(name)}
    assert not old & listed


def test_ensembl_ids():
    assert ensembl_id("ENSG00000156738.12") == ("human", "ENSG00000156738")
    assert ensembl_id("ENSMUSG00000026395") == ("mouse", "ENSMUSG00000026395")
    assert ensembl_id("ENSG123") is ensembl_id("ENST00000156738") is ensembl_id("CD3E") is None
    seen = set()
    for row in data_rows("ensembl_ids.tsv"):
        for identifier in (*row["human"].split(), *(p.partition("=")[0] for p in row["mouse"].split())):
            assert ensembl_id(identifier), row
            if identifier in row["human"]:
                assert identifier not in seen, row
                seen.add(identifier)


def test_names_are_written_as_the_table_writes_them(human):
    names, report = harmonise(["CD3E", "KARS", "NOSUCH", "GRCh38_EPCAM", " MS4A1 "], human)
    assert names == ["CD3E", "KARS1", "NOSUCH", "EPCAM", "MS4A1"]
    assert (report.total, report.found, report.species, report.renamed) == (5, 4, "human", {"KARS": "KARS1"})
    assert report.sentences() == [
        "4 of 5 genes are in the marker table",
        "1 genes go by another symbol in the table (KARS is KARS1)",
    ]


def test_mouse_against_human_is_mended(human, mouse):
    names, report = harmonise(["Cd3e", "Epcam", "Lyz2", "Gm1"], human)
    assert names == ["CD3E", "EPCAM", "LYZ", "Gm1"] and report.converted == 3 and report.species == "mouse"
    assert "3 mouse genes speak through their human orthologues" in report.sentences()
    names, report = harmonise(["CD3E", "CD8B", "TP63"], mouse)
    assert names == ["Cd3e", "Cd8b1", "Trp63"] and report.species == "human"
    _, report = harmonise(["Cd3e", "Epcam"], MarkerTable.shipped())
    assert report.converted == 0 and report.found == 2


def test_ensembl_ids_are_mended(human, mouse):
    ids = ["ENSG00000156738.12", "ENSG00000119888", "ENSG99999999999"]
    names, report = harmonise(ids, human)
    assert names == ["MS4A1", "EPCAM", "ENSG99999999999"]
    assert (report.ensembl, report.unknown_ensembl, report.found, report.renamed) == (3, 1, 2, {})
    assert any("3 genes are named by Ensembl ids; 2 are markers" in s for s in report.sentences())
    names, report = harmonise(["ENSMUSG00000026395", "ENSMUSG00000045394"], mouse)
    assert names == ["Ptprc", "Epcam"] and report.species == "mouse"
    assert harmonise(["ENSMUSG00000026395"], human)[0] == ["PTPRC"]


def test_a_table_of_ensembl_ids_is_mended(tmp_path):
    path = tmp_path / "ids.csv"
    path.write_text("gene,class\nENSG00000156738,Inflammatory\nENSG00000119888.11,Epithelial\n", encoding="utf-8")
    table = MarkerTable.read(path)
    assert table.genes == ["MS4A1", "EPCAM"] and table.species == "human"
    assert harmonise(["Ms4a1", "Epcam"], table)[1].found == 2


def test_duplicate_genes_are_said(human):
    names, report = harmonise(["CD3E", "EPCAM", "CD3E", "KARS", "KARS1", "X", "X"], human)
    assert report.duplicates == ("CD3E", "KARS1", "X") and len(names) == 7
    assert report.sentences()[-1] == (
        "3 genes are named more than once (CD3E, KARS1, X); their counts are to be added up"
    )
    assert report.to_json()["duplicates"] == ["CD3E", "KARS1", "X"]


@pytest.mark.parametrize(
    ("genes", "said"),
    [
        (["NOSUCH1", "NOSUCH2"], r"none of the 2 genes \(NOSUCH1, NOSUCH2, ...\) is in the marker table of stqp"),
        (["ENSG99999999999"], "Ensembl ids that it cannot translate: name the genes by their symbols"),
        ([], "there are no genes to compare"),
    ],
)
def test_no_gene_known_is_said(human, genes, said):
    with pytest.raises(InputError, match=said):
        harmonise(genes, human)


def test_a_table_of_old_symbols_finds_new_ones():
    table = MarkerTable.from_rows("old", "human", [MarkerRow("FAM46C", "Plasma cells", "Inflammatory")])
    names, report = harmonise(["TENT5C"], table)
    assert names == ["FAM46C"] and report.renamed == {"TENT5C": "FAM46C"}
    assert table.votes(names).all()
