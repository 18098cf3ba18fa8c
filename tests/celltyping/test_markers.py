import fnmatch
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

import stqp.celltyping
from stqp.celltyping.fine_types import NONE, SHARED, class_of_fine_type, data_rows, type_key
from stqp.celltyping.gene_sets import proliferation_genes, tumour_genes
from stqp.celltyping.markers import MarkerRow, MarkerTable
from stqp.celltyping.taxonomies import Taxonomy
from stqp.errors import InputError, UsageError
from stqp.taxonomy import UNKNOWN, VISUAL_CLASSES

VISUAL = {c.name for c in VISUAL_CLASSES}
SOURCES = {"10x panels; PanglaoDB", "10x panels", "PanglaoDB", "textbook"}


@pytest.fixture(scope="module")
def human():
    return MarkerTable.shipped("human")


def small(*rows):
    return MarkerTable.from_rows("small", "human", [MarkerRow(*r) for r in rows])


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# -- the shipped table


def test_every_row_is_well_formed():
    seen = set()
    for row in data_rows("markers.tsv"):
        where = (row["gene"], row["fine_type"], row["species"])
        assert where not in seen, where
        seen.add(where)
        assert row["class"] in {*VISUAL, SHARED, NONE}, where
        assert row["species"] in {"human", "mouse", "human mouse"}, where
        assert row["source"] in SOURCES, where
        against = set(row["against"].split())
        assert against <= VISUAL - {row["class"]}, where


def test_the_class_of_a_row_is_that_of_its_fine_type():
    explicit = {type_key(r["fine_type"]): r["class"] for r in data_rows("fine_types.tsv")}
    assert len(explicit) == len(data_rows("fine_types.tsv"))
    wrong = [r for r in data_rows("markers.tsv") if explicit.get(type_key(r["fine_type"])) != r["class"]]
    assert not wrong


@pytest.mark.parametrize("species", ["human", "mouse", "auto"])
def test_a_gene_is_either_shared_or_votes(species):
    table = MarkerTable.shipped(species)
    shared = {r.gene for r in table.rows if r.visual == SHARED}
    assert not shared & set(table.genes)
    assert not (table.votes(table.genes) & table.against(table.genes)).any()
    assert table.votes(table.genes).any(axis=1).all()
    assert not table.votes(table.silent_genes).any()
    assert table.votes(table.genes).sum(axis=1).max() <= 2
    assert table.classes == ("Inflammatory", "Connective", "Epithelial")


@pytest.mark.parametrize(
    ("gene", "visual"),
    [
        ("PTPRC", "Inflammatory"),
        ("CD3E", "Inflammatory"),
        ("CD207", "Inflammatory"),  # Langerhans
        ("TMEM119", "Inflammatory"),  # microglia
        ("CD5L", "Inflammatory"),  # Kupffer
        ("COL1A1", "Connective"),
        ("VWF", "Connective"),
        ("MYH11", "Connective"),
        ("ADIPOQ", "Connective"),
        ("MPZ", "Connective"),  # Schwann
        ("EPCAM", "Epithelial"),
        ("NPHS2", "Epithelial"),  # podocyte
        ("CHGA", "Epithelial"),  # enteroendocrine
        ("MLANA", "Epithelial"),  # melanocyte
        ("ALB", "Epithelial"),
    ],
)
def test_well_known_markers(human, gene, visual):
    column = human.classes.index(visual)
    assert human.votes([gene])[0].nonzero()[0].tolist() == [column]
    mouse = MarkerTable.shipped("mouse")
    assert mouse.votes([gene.capitalize()])[0].nonzero()[0].tolist() == [column]


@pytest.mark.parametrize("gene", ["MKI67", "BAX", "FAS", "VIM", "GATA3", "KIT", "HBB", "SNAP25", "no such gene"])
def test_genes_without_a_vote(human, gene):
    assert not human.votes([gene]).any()


def test_leukocyte_genes_speak_against_epithelium(human):
    against = dict(zip(human.classes, human.against(["PTPRC"])[0], strict=True))
    assert against == {"Inflammatory": False, "Connective": True, "Epithelial": True}
    assert human.against(["EPCAM"])[0, human.classes.index("Inflammatory")]
    assert not human.against(["ACTB", "no such gene"]).any()


def test_mice_that_differ():
    mouse = MarkerTable.shipped("mouse")
    assert mouse.fine_types("Retn") == ["Adipocytes"]  # of monocytes in humans
    assert {mouse.types[t] for t in mouse.fine_types("Thy1")} == {"Inflammatory", "Connective"}
    for gene in ("Cd8b1", "Fcgr4", "Lyz1", "Lyz2", "H2-Ab1", "Trp63", "Ins1", "Ins2", "Ly6g", "Adgre1"):
        assert mouse.votes([gene]).any(), gene
    assert not mouse.votes(["Cxcl8", "Gnly", "CD3E"]).any()
    assert MarkerTable.shipped().votes(["Cd3e", "CD3E"])[:, 0].all()


def test_a_strange_species_is_said():
    with pytest.raises(UsageError, match="'rat'; expected human, mouse or auto"):
        MarkerTable.shipped("rat")


def test_the_data_are_in_the_wheel():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["stqp.celltyping"]
    folder = Path(stqp.celltyping.__file__).parent
    files = [p.relative_to(folder).as_posix() for p in (folder / "data").iterdir()]
    assert files and all(any(fnmatch.fnmatch(f, p) for p in patterns) for f in files)


# -- fine types


@pytest.mark.parametrize(
    ("name", "visual"),
    [
        ("Transient cells", "Epithelial"),  # ends in "t cells" by its letters alone
        ("T cells", "Inflammatory"),
        ("regulatory T cell", "Inflammatory"),
        ("a new kind of CD8+ T cell", "Inflammatory"),
        ("Follicular dendritic cells", "Connective"),
        ("Kupffer cells", "Inflammatory"),
        ("Microglia", "Inflammatory"),
        ("epidermal Langerhans cell", "Inflammatory"),
        ("Melanocytes", "Epithelial"),
        ("Luminal epithelial cells", "Epithelial"),
        ("Podocytes", "Epithelial"),
        ("Mesangial cells", "Connective"),
        ("Enteroendocrine cells", "Epithelial"),
        ("Erythroid-like and erythroid precursor cells", NONE),
        ("Endothelial cell", "Connective"),
        ("endothelial cell of lymphatic vessel", "Connective"),
        ("corneal endothelial cell", "Connective"),
        ("epithelial cell of thymus", "Epithelial"),
        ("Pericytes_2", "Connective"),
        ("Schwann cells", "Connective"),
        ("Adipocytes", "Connective"),
        ("Purkinje neurons", NONE),
        ("Purkinje fiber cells", "Connective"),
        ("keratocyte", "Connective"),
        ("Keratinocytes", "Epithelial"),
        ("Spinous to Granular Cells", "Epithelial"),
        ("cerebellar granule cell", NONE),
        ("Natural killer T(NKT) cell", "Inflammatory"),
        ("TSK_basal", "Epithelial"),
        ("Breast cancer", SHARED),
        ("Cancer stem cell", SHARED),
        ("flying cell", None),
        ("pit", None),
    ],
)
def test_class_of_a_fine_type(name, visual):
    assert class_of_fine_type(name) == visual
    assert class_of_fine_type(name.upper()) == visual


@pytest.mark.parametrize("name", ["xt cell", "superb cell", "nonlymphocytes", "spit cell", "undergland cell"])
def test_the_rules_stand_on_whole_words(name):
    assert class_of_fine_type(name) is None
    assert class_of_fine_type(name.replace("xt", "x t")) == ("Inflammatory" if name == "xt cell" else None)


# -- votes


def test_one_vote_a_class_however_many_types():
    table = small(
        ("CD8A", "T cells", "Inflammatory"),
        ("CD8A", "T cytotoxic cells", "Inflammatory"),
        ("CD8A", "Dendritic cells", "Inflammatory"),
        ("LYZ", "Macrophages", "Inflammatory"),
        ("LYZ", "Paneth cells", "Epithelial"),
        ("KRT8", "Epithelial cells", "Epithelial", ("Inflammatory",)),
        ("KRT8", "epithelial cell", "Epithelial", ("Connective",)),
        ("FOS", "States", SHARED),
    )
    assert table.classes == ("Inflammatory", "Epithelial")
    genes = ["LYZ", "CD8A", "ABSENT", "FOS", "KRT8", "LYZ"]
    assert table.votes(genes).astype(int).tolist() == [[1, 1], [1, 0], [0, 0], [0, 0], [0, 1], [1, 1]]
    assert table.counts_by_fine_type(genes).tolist() == [[1, 1], [3, 0], [0, 0], [0, 0], [0, 1], [1, 1]]
    assert table.offers(genes).tolist() == [2, 2]  # the second LYZ is no second marker
    assert table.against(["KRT8"]).tolist() == [[True, False]]
    assert table.votes([]).shape == (0, 2) and table.offers([]).tolist() == [0, 0]
    assert table.votes(genes).dtype == bool and np.issubdtype(table.counts_by_fine_type(genes).dtype, np.integer)
    assert table.fine_types("CD8A") == ["T cells", "T cytotoxic cells", "Dendritic cells"]
    assert table.fine_types_of("LYZ", "Epithelial") == ["Paneth cells"] and table.fine_types("ABSENT") == []
    assert table.genes == ["CD8A", "LYZ", "KRT8"] and table.silent_genes == ["FOS"]


def test_old_symbols_are_the_same_gene():
    table = small(("FAM46C", "Plasma cells", "Inflammatory"), ("TENT5C", "Plasma cells", "Inflammatory"))
    assert table.counts_by_fine_type(["TENT5C"]).tolist() == [[1]]
    assert table.offers(["TENT5C", "FAM46C"]).tolist() == [1]


def test_a_table_without_votes_is_said():
    with pytest.raises(InputError, match="small has no gene that speaks for a class"):
        small(("FOS", "States", SHARED))


def test_a_taxonomy_moves_the_votes(human):
    taxonomy = Taxonomy.from_dict(
        {
            "name": "mine",
            "classes": {
                "Epithelial": {},
                "Lymphoid": {"parent": "Inflammatory", "fine_types": ["T cell", "B cells"]},
                "Endothelial": {"parent": "Connective", "fine_types": ["Endothelial cells"]},
                "Ghost": {"markers": ["BOO1"], "fine_types": ["Spectres"]},
            },
        },
        "test",
    )
    table = human.with_taxonomy(taxonomy)
    assert set(table.classes) == set(taxonomy.classes)
    votes = {g: [c for c, v in zip(table.classes, table.votes([g])[0], strict=True) if v] for g in ("CD3D", "VWF")}
    assert votes == {"CD3D": ["Lymphoid"], "VWF": ["Endothelial"]}
    assert not table.votes(["CD68", "COL1A1"]).any()  # their classes are not part of this taxonomy
    assert table.votes(["BOO1"]).any() and table.votes(["EPCAM"]).any()
    assert table.against(["CD3D"])[0, table.classes.index("Epithelial")]
    assert any("no fine type 'Spectres'" in note for note in table.notes)


# -- files of others


def test_panglaodb(tmp_path):
    head = "species\tofficial gene symbol\tcell type\tnicknames\n"
    rows = "Mm Hs\tCD3E\tT cells\tNA\nMm\tLY6G\tNeutrophils\tNA\n4\tDEPP1\tAlpha cells\tNA\nNone\tX1\tB cells\tNA\n"
    path = write(tmp_path / "p.tsv", head + rows + "Hs\tMYH7\tHis bundle cells\tNA\nHs\tODD\tMoon cells\tNA\n")
    table = MarkerTable.read(path)
    assert table.genes == ["CD3E", "MYH7"] and table.species == "human"
    assert table.notes[0].startswith("3 of 6 rows of") and "do not vote: Moon cells" in table.notes[1]
    mouse = MarkerTable.read(path, "mouse")
    assert mouse.genes == ["Cd3e", "Ly6g"] and mouse.species == "mouse"


V2 = "species,tissue_class,tissue_type,uberonongology_id,cancer_type,cell_type,cell_name,cellontology_id,marker,Symbol"


def test_cellmarker_2_and_3(tmp_path):
    rows = [
        "Human,Blood,Blood,,Normal,Normal cell,T cell,CL_1,CD3,CD3E",
        "Human,Blood,Blood,,Normal,Normal cell,B cell,CL_1,CD20,MS4A1",
        "Human,Blood,Blood,,Normal,Normal cell,B cell,CL_1,odd,",
        "Mouse,Blood,Blood,,Normal,Normal cell,B cell,CL_1,Cd19,Cd19",
        "Human,Breast,Breast,,Cancer,Cancer cell,Cancer cell,CL_1,HER2,ERBB2",
    ]
    text = "\n".join([V2, *rows])
    table = MarkerTable.read(write(tmp_path / "c.csv", text))
    assert table.genes == ["CD3E", "MS4A1"] and table.silent_genes == ["ERBB2"]
    assert MarkerTable.read(tmp_path / "c.csv", "mouse").genes == ["Cd19"]
    three = text.replace(",Symbol", ",symbol").replace("uberonongology_id", "uberon_id").replace(",", "\t")
    assert MarkerTable.read(write(tmp_path / "c3.tsv", three)).genes == table.genes


def test_cellmarker_1(tmp_path):
    text = (
        "speciesType\ttissueType\tcellType\tcellName\tcellMarker\tgeneSymbol\n"
        "Human\tLiver\tNormal cell\tKupffer cell\tx\tCD68, [CD14, LBP], NA, CD163\n"
        'Human\tLiver\tNormal cell\tHepatocyte\t"x\tALB\n'
    )
    table = MarkerTable.read(write(tmp_path / "all_cell_markers.txt", text))
    assert table.genes == ["CD68", "CD14", "LBP", "CD163", "ALB"]


def workbook(path, lines):
    cells = "".join(
        "<row>"
        + "".join(
            f'<c r="{chr(65 + j)}{i}" t="inlineStr"><is><t>{value}</t></is></c>'
            if i % 2
            else f'<c r="{chr(65 + j)}{i}" t="s"><v>{value}</v></c>'
            for j, value in line
        )
        + "</row>"
        for i, line in enumerate(lines, 1)
    )
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{cells}</sheetData></worksheet>")
        shared = "<si><t>Human</t></si><si><r><t>Mast</t></r><r><t> cell</t></r></si><si><t>CPA3</t></si>"
        archive.writestr("xl/sharedStrings.xml", f"<sst {space}>{shared}</sst>")
    return path


def test_cellmarker_as_a_workbook(tmp_path):
    head = list(enumerate(["species", "cell_name", "marker", "Symbol"]))
    path = workbook(tmp_path / "Cell_marker_All.xlsx", [head, [(0, 0), (1, 1), (3, 2)]])  # the marker's cell is missing
    table = MarkerTable.read(path)
    assert table.genes == ["CPA3"] and table.fine_types("CPA3") == ["Mast cell"]
    with pytest.raises(InputError, match=r"no Excel workbook that can be read .* save it as csv"):
        MarkerTable.read(write(tmp_path / "no.xlsx", "gene,class"))


@pytest.mark.parametrize("column", ["Annotation", "Cell types", "cell_type"])
def test_panels_of_10x(tmp_path, column):
    rows = "CD3E,E1,1,T cells;NK cells\nKRT5,E2,1,Basal cell\nMKI67,E3,1,Proliferation\nX,E4,1,\n"
    text = f"gene,Ensembl ID,Codewords,{column}\n{rows}"
    table = MarkerTable.read(write(tmp_path / "panel.csv", text))
    assert table.genes == ["CD3E", "KRT5"] and table.silent_genes == ["MKI67"]
    assert table.fine_types("CD3E") == ["T cells", "NK cells"]
    assert table.counts_by_fine_type(["CD3E"]).max() == 2


def test_a_users_own(tmp_path):
    text = "Gene;Class;Fine type;Against\ncd3e;inflammatory;T;Epithelial\nODD1;My class;;\nFOS;shared;;\n"
    table = MarkerTable.read(write(tmp_path / "mine.csv", "\ufeff# mine\n" + text))
    assert table.classes == ("Inflammatory", "My class") and table.genes == ["cd3e", "ODD1"]
    with_epithelium = MarkerTable.read(write(tmp_path / "two.csv", text + "EPCAM;epithelial;;\n"))
    assert with_epithelium.against(["cd3e"])[0].tolist() == [False, True, False]


def test_the_shipped_table_reads_itself(human):
    path = Path(stqp.celltyping.__file__).parent / "data" / "markers.tsv"
    table = MarkerTable.read(path)
    assert set(table.genes) == set(human.genes)
    assert (table.votes(human.genes) == human.votes(human.genes)).all()
    assert (table.against(human.genes) == human.against(human.genes)).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name_of_thing,colour\nA,b\n", "has the columns nameofthing, colour; expected gene, with class or cell type"),
        ("gene,score\nCD3E,5\n", "has the columns gene, score; expected gene"),
        ("gene,class\n", "is empty; expected a header"),
        ("", "is empty"),
        ("gene,cell type\nCD3E,moon cell\n", "has no gene that speaks for a class"),
    ],
)
def test_files_that_are_no_marker_tables(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        MarkerTable.read(write(tmp_path / "bad.csv", text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        MarkerTable.read(tmp_path / "nowhere.csv")


# -- genes of tumours


def test_tumour_genes():
    genes = tumour_genes()
    assert {"ERBB2", "MYC", "MDM2", "TERT"} <= set(genes)
    lineage = {"ESR1", "EGFR", "CDH1", "KIT", "PDGFRA", "TP63", "GATA3"}
    assert not lineage & set(genes) and lineage <= set(tumour_genes(lineage=True))
    assert not set(tumour_genes(lineage=True)) & set(proliferation_genes())
    assert {"MKI67", "TOP2A", "PCNA"} <= set(proliferation_genes())
    assert {"Mki67", "Top2a"} <= set(proliferation_genes("mouse")) and "Erbb2" in tumour_genes("mouse")
    with pytest.raises(UsageError, match="'rat'"):
        tumour_genes("rat")


def test_every_tumour_gene_has_a_source_and_a_licence():
    for row in data_rows("tumour_genes.tsv"):
        assert row["source"] and row["licence"] in {"CC0-1.0", "facts"}, row
        assert row["lineage"] in {"yes", "no"} and row["set"] in {"tumour", "proliferation"}


def test_unknown_is_silent(human):
    assert UNKNOWN not in human.classes
