import inspect
import json
import sys

import pytest
from stqp_cli.import_xenium import command as import_command
from stqp_cli.label import command
from stqp_cli.main import main
from stqp_cli.typing_options import typing_options

from stqp.celltyping.methods import type_cells
from stqp.importing.labelling import label_project
from stqp.importing.xenium import import_xenium


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["stqp", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_options_and_parameters_are_the_same():
    options = {p.name for p in command.params} - {"as_json", "verbose"}  # how the run is shown
    known = {*inspect.signature(label_project).parameters, *inspect.signature(type_cells).parameters}
    # what label_project makes itself, of the regions and the list of genes
    known -= {"progress", "options", "adata", "name", "tumour", "tumour_cells", "normal_cells"}
    assert options == known


IMPORTS = {import_command: import_xenium}
NOT_AT_IMPORT = {
    "project", "entry", "h5ad",  # the import brings the image and its counts
    "method",  # is --type; --labels are read as they come
    "labels", "label_key", "class_map",  # an import has these, for its own labels
    "neoplastic_clusters", "normal_clusters",  # numbers that a first typing gives
    "tumour_region", "normal_region",  # drawn on an image that the project has
}  # fmt: skip


@pytest.mark.parametrize("imported", IMPORTS, ids=lambda c: c.name)
def test_every_import_types_as_label_does(imported):
    label = {p.name: p for p in command.params}
    theirs = {p.name: p for p in imported.params}
    shared = label.keys() - NOT_AT_IMPORT - {"as_json", "verbose"}
    assert shared <= theirs.keys() and shared <= inspect.signature(IMPORTS[imported]).parameters.keys()
    for name in shared:
        assert (label[name].opts, label[name].default) == (theirs[name].opts, theirs[name].default)
        assert label[name].help == theirs[name].help
    assert set(theirs["cell_types"].type.choices) == set(label["method"].type.choices) - {"labels"}
    assert shared == {p.name for p in typing_options(lambda: None).__click_params__}


def test_a_project_is_typed_from_the_command_line(sample, tmp_path, monkeypatch, capsys):
    project = tmp_path / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, project)
    assert call(monkeypatch, "label", project, "--seed", 2, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    (found,) = record["results"]["images"].values()
    (one,) = found.values()
    assert one["nuclei"]["Connective"] > 0 and one["clusters"] > 2 and record["arguments"]["seed"] == 2
    assert call(monkeypatch, "label", project, "--neoplastic-clusters", "0,x") == 2
    assert "numbers of clusters" in capsys.readouterr().err
    assert call(monkeypatch, "label", project, "--entry", "none") == 3


def test_an_import_types_its_cells(sample, tmp_path, monkeypatch, capsys):
    where = ["--he", sample.he, "--alignment", sample.alignment, "--project", tmp_path / "project"]
    assert call(monkeypatch, "import-xenium", sample.outs, *where, "--type", "stqp", "--json") == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["classes"]["Inflammatory"] > 0 and results["typing"]["clusters"] > 2
    assert call(monkeypatch, "import-xenium", sample.outs, *where, "--type", "stqp", "--labels", sample.labels) == 2
    assert "not where labels are given" in capsys.readouterr().err
