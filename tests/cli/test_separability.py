import inspect
import json
import sys

import pytest
from stqp_cli.main import main
from stqp_cli.separability import command

from stqp.importing.xenium import import_xenium
from stqp.report.separability import separability


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["stqp", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_options_and_parameters_are_the_same_with_the_same_defaults():
    options = {p.name: p for p in command.params if p.name not in ("as_json", "verbose")}  # how the run is shown
    parameters = {n: p for n, p in inspect.signature(separability).parameters.items() if n != "progress"}
    assert options.keys() == parameters.keys()
    for name, parameter in parameters.items():
        if isinstance(parameter.default, (bool, int, float)):
            assert options[name].default == parameter.default


def test_a_project_is_judged_from_the_command_line(sample, tmp_path, monkeypatch, capsys):
    project = tmp_path / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, project, labels=sample.labels, class_map=sample.class_map)
    small = ["--block", 60, "--guard", 10, "--min-nuclei", 15, "--out", tmp_path / "out"]
    assert call(monkeypatch, "separability", project, "--by", "label", *small, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    names = {c["name"] for c in record["results"]["classes"]}
    assert names == {"Neoplastic", "Inflammatory", "Connective", "Epithelial", "Dead"} & names and len(names) >= 3
    assert (tmp_path / "out" / "separability.html").is_file()
    assert call(monkeypatch, "separability", project, "--by", "class", *small) == 0
    text = capsys.readouterr().out
    assert "proposed classes:" in text and "recall" in text and "proposed.toml" in text
    assert call(monkeypatch, "separability", project) == 3
    assert "run stqp label first" in capsys.readouterr().err
    assert call(monkeypatch, "separability", tmp_path / "none") == 3
    assert call(monkeypatch, "separability", project, "--features", "given") == 2


def test_help_lists_what_is_written(monkeypatch, capsys):
    assert call(monkeypatch, "separability", "--help") == 0
    text = capsys.readouterr().out
    assert "proposed.toml" in text and "--across-lineages" in text
