import inspect
import json
import os
import subprocess
import sys

import pytest
from stqp_cli.import_xenium import command
from stqp_cli.main import main

from stqp.importing.xenium import import_xenium
from stqp.qupath.project import QuPathProject


@pytest.fixture
def arguments(sample, tmp_path):
    paths = {
        "--he": sample.he,
        "--alignment": sample.alignment,
        "--labels": sample.labels,
        "--class-map": sample.class_map,
    }
    options = [str(part) for pair in paths.items() for part in pair]
    return ["import-xenium", str(sample.outs), *options, "--project", str(tmp_path / "project")]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["stqp", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_options_and_parameters_are_the_same():
    options = {p.name: p for p in command.params}
    parameters = inspect.signature(import_xenium).parameters
    only_cli = {"as_json", "verbose", "manifest"}  # how the run is shown
    only_api = {"progress"}  # a callback
    assert set(options) - only_cli == set(parameters) - only_api
    needed = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    # a manifest names the others
    assert needed - {"outs", "he", "alignment"} == {name for name, p in options.items() if p.required}
    arguments = ["outs", "--he", "he", "--alignment", "a.csv", "--project", "p"]
    parsed = command.make_context("import-xenium", arguments).params
    for name, parameter in parameters.items():
        if name not in needed | only_api:
            assert parsed[name] == parameter.default, name


def test_summary_for_people(sample, arguments, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert f"nuclei written: {sample.n_nuclei:,}" in out
    assert "Neoplastic" in out and "pixel 0.2125 µm" in out and arguments[-1] in out


def test_json_for_programs(sample, arguments, monkeypatch, capsys):
    assert call(monkeypatch, *arguments, "--json", "-v", "--as", "detections", "--name", "mine") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["counts"]["nuclei"] == sum(record["results"]["classes"].values()) == sample.n_nuclei
    assert record["arguments"]["as_kind"] == "detections" and record["results"]["sample"] == "mine"
    with QuPathProject.open(arguments[-1], "r") as opened:
        assert opened.entries[0].name == "mine"


def test_discard_corrections_reaches_the_function(arguments, monkeypatch, capsys):
    seen = []

    def fake(outs, **options):
        seen.append(options["keep_corrections"])
        return import_xenium(outs, **options)

    monkeypatch.setattr("stqp.importing.xenium.import_xenium", fake)
    assert call(monkeypatch, *arguments) == 0
    assert call(monkeypatch, *arguments, "--discard-corrections") == 0
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--labels", "nowhere.csv"], 3, "do not exist"),
        (["--as", "tiles"], 2, "tiles"),
        (["--mpp", "-1"], 2, "between 0 and 100"),
        (["--mpp", "0.3"], 3, "implies 0.25"),
        (["--alignment", "identity"], 3, "not in the frame"),
        (["--nonsense"], 2, "nonsense"),
    ],
)
def test_exit_codes_and_one_sentence(arguments, monkeypatch, capsys, change, code, message):
    assert call(monkeypatch, *arguments, *change) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_full_disk_is_an_environment_problem(arguments, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert call(monkeypatch, *arguments) == 4
    assert "the disk is full" in capsys.readouterr().err
    assert not os.path.exists(arguments[-1])  # noqa: PTH110


def test_ctrl_c_ends_with_130_and_leaves_nothing(arguments, tmp_path):
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where this runs in the background
        "import stqp.files as files\n"
        "write = files.write_json\n"
        "def interrupt(path, content):\n"
        "    if 'sample.json' in path.name:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    write(path, content)\n"
        "files.write_json = interrupt\n"
        "from stqp_cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "project").exists()


def test_help_has_examples(monkeypatch, capsys):
    assert call(monkeypatch, "import-xenium", "--help") == 0
    text = capsys.readouterr().out
    assert "Examples:" in text and "clusters.csv" in text and "--discard-corrections" in text


def test_the_lock_of_another_process_is_told(arguments, monkeypatch, capsys):
    with QuPathProject.open(arguments[-1], "a"):
        assert call(monkeypatch, *arguments) == 4
    assert "is being written by process" in capsys.readouterr().err
