import inspect
import json
import sys

import pytest
from stqp_cli.label import command
from stqp_cli.main import main

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
    # what label_project makes itself; origin waits for slides of melanoma or sarcoma
    known -= {"progress", "options", "adata", "name", "tumour", "tumour_cells", "origin"}
    assert options == known


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
