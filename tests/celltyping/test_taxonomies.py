import pytest

from stqp.celltyping.taxonomies import Taxonomy
from stqp.errors import InputError
from stqp.taxonomy import UNKNOWN, VISUAL_CLASSES, color_of

GOOD = """
name = "immune cells"

[classes.Lymphocyte]
color = "#28aa3c"
parent = "Inflammatory"
fine_types = ["T cells", "B cells"]

[classes."Plasma cell"]
color = [1, 2, 3]
parent = "Lymphocyte"
markers = ["MZB1", "JCHAIN"]

[classes.Epithelial]

[classes.Odd]
"""


def read(tmp_path, text):
    path = tmp_path / "taxonomy.toml"
    path.write_text(text, encoding="utf-8")
    return Taxonomy.read(path)


def test_the_default_is_pannukes():
    default = Taxonomy.default()
    assert default.classes == ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
    assert default.colors == {c.name: c.color for c in VISUAL_CLASSES}
    assert default.to_visual == {name: name for name in default.classes}
    assert default.class_of("T cells", "Inflammatory") == "Inflammatory"
    assert default.class_of("States", "shared") == "shared"


def test_a_users_own(tmp_path):
    taxonomy = read(tmp_path, GOOD)
    assert taxonomy.name == "immune cells"
    assert taxonomy.classes == ("Lymphocyte", "Plasma cell", "Epithelial", "Odd")
    assert taxonomy.colors["Lymphocyte"] == (40, 170, 60) and taxonomy.colors["Plasma cell"] == (1, 2, 3)
    assert taxonomy.colors["Epithelial"] == color_of("Epithelial") and taxonomy.colors["Odd"] == color_of("Odd")
    assert taxonomy.to_visual == {
        "Lymphocyte": "Inflammatory",
        "Plasma cell": "Inflammatory",
        "Epithelial": "Epithelial",
        "Odd": UNKNOWN,
    }
    assert taxonomy.markers == {"Plasma cell": ("MZB1", "JCHAIN")}
    assert taxonomy.class_of("t cell", "Inflammatory") == "Lymphocyte"
    assert taxonomy.class_of("Macrophages", "Inflammatory") == UNKNOWN
    assert taxonomy.class_of("Enterocytes", "Epithelial") == "Epithelial"


def test_maps_between_taxonomies_are_explicit(tmp_path):
    fine = read(tmp_path, GOOD)
    coarse = read(tmp_path, '[classes.Lymphocyte]\nparent = "Inflammatory"\n')
    assert fine.mapping_to(coarse) == {
        "Lymphocyte": "Lymphocyte",
        "Plasma cell": "Lymphocyte",
        "Epithelial": UNKNOWN,
        "Odd": UNKNOWN,
    }
    assert Taxonomy.default().mapping_to(fine)["Inflammatory"] == UNKNOWN  # the wider has no single narrower


def test_what_is_written_is_read(tmp_path):
    text = GOOD + '\n[classes."Zell\\"e ü"]\nfine_types = ["back\\\\slash", "NK cells"]\n'
    taxonomy = read(tmp_path, text)
    taxonomy.write(tmp_path / "again.toml")
    assert Taxonomy.read(tmp_path / "again.toml") == taxonomy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[classes.A]\nparent = "B"\n[classes.B]\nparent = "A"\n', "refers to itself: A is part of B is part of A"),
        ('[classes.A]\nparent = "A"\n', "refers to itself: A is part of A"),
        ('[classes.A]\nparent = "Nobody"\n', "class A .* has the unknown parent 'Nobody'; expected one of its"),
        ("[classes.A]\n[classes.A]\n", "cannot be read"),
        ("[classes.A]\n[classes.a]\n", "names a class twice: 'A' and 'a'"),
        ('[classes.A]\nfine_types=["T cells"]\n[classes.B]\nfine_types=["t cell"]\n', "two classes: A and B"),
        ("[classes.Unknown]\n", "a name that is reserved"),
        ('[classes."Ignore*"]\n', "a name that is reserved"),
        ('[classes."a: b"]\n', "a name that is reserved"),
        ('[classes.A]\ncolour = "#000000"\n', "class A .* has colour; expected color, parent"),
        ('[classes.A]\ncolor = "red"\n', "has the color 'red'; expected \"#rrggbb\""),
        ("[classes.A]\ncolor = [1, 2, 300]\n", "has the color"),
        ("[classes.A]\ncolor = [true, 2, 3]\n", "has the color"),
        ('[classes.A]\nmarkers = "CD3E"\n', "markers of class A .* expected a list of names"),
        ("[classes.A]\nfine_types = [1]\n", "fine_types of class A"),
        ("[classes]\nA = 1\n", "class A .* has 1; expected"),
        ('name = "x"\n', "has no classes"),
        ("classes = []\n", "has no classes"),
        ("no toml", "cannot be read"),
    ],
)
def test_bad_taxonomies(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Taxonomy.read(tmp_path / "nowhere.toml")


def test_a_visual_class_may_be_narrowed_under_its_own_name(tmp_path):
    taxonomy = read(tmp_path, '[classes.Neoplastic]\n[classes.Mitosis]\nparent = "Neoplastic"\n')
    assert taxonomy.to_visual == {"Neoplastic": "Neoplastic", "Mitosis": "Neoplastic"}
