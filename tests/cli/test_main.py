"""The command line as a whole."""

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import click
import pytest
import stqp_cli.main
from click.testing import CliRunner
from stqp_cli.main import COMMANDS, cli

from stqp import __version__


def run(*arguments: str, **options):
    return subprocess.run(
        [sys.executable, "-m", "stqp_cli.main", *arguments], capture_output=True, text=True, timeout=120, **options
    )


def test_help_lists_every_command_and_imports_none():
    code = (
        "import sys; sys.argv = ['stqp', '--help']\n"
        "from stqp_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'numpy', 'torch', 'pandas', 'tiatoolbox', 'scanpy', 'anndata', 'shapely', 'cv2', 'lightning'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "heavy: []" in result.stdout
    for name, (_, text) in COMMANDS.items():
        assert name in result.stdout and text in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0 and "Usage:" in result.output and "Examples:" in result.output
    command = cli.get_command(click.Context(cli), name)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.name in {"device"}, f"{name} --{parameter.name} has no help"


def test_version():
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0 and __version__ in result.output


def test_wrong_usage_is_exit_code_2():
    assert run("no-such-command").returncode == 2
    assert run("train").returncode == 2


def test_bad_input_is_one_sentence_and_exit_code_3(tmp_path):
    result = run("train", str(tmp_path / "nothing"), "--out", str(tmp_path / "run"))
    assert result.returncode == 3
    assert result.stderr.startswith("Error: ") and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_exit_code_4(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    result = run("train", str(tmp_path), "--out", str(tmp_path / "run"), "--device", "cuda")
    assert result.returncode == 4 and "cuda" in result.stderr.lower()


# option of the command -> parameter of the function; what only one side has, and why
EXCEPTIONS = {
    "demo": ({"as_json", "verbose"}, {"progress"}),
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_options_and_parameters_match(name):
    from stqp.demo import run_demo as function

    command = cli.get_command(click.Context(cli), name)
    options = {p.name for p in command.params} - EXCEPTIONS[name][0]
    parameters = set(inspect.signature(function).parameters) - EXCEPTIONS[name][1]
    assert options == parameters


def test_many_flags_stand_under_headings():
    lines = CliRunner().invoke(cli, ["train", "--help"]).output.splitlines()
    heads = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    wanted = ["Options:", "Data:", "Split:", "Network:", "Schedule:", "Losses:", "Augmentation:", "Machine and run:"]
    assert heads == wanted
    at = {name: next(i for i, line in enumerate(lines) if line.strip().startswith(name)) for name in ("--arch", "--lr")}
    assert lines.index("Network:") < at["--arch"] < lines.index("Schedule:") < at["--lr"] < lines.index("Losses:")


@pytest.mark.parametrize("path", sorted(Path(stqp_cli.main.__file__).parent.glob("*.py")), ids=lambda p: p.stem)
def test_what_commands_import_when_they_run_is_there(path):
    """Most imports stand in functions, where only a run would miss them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("stqp", "stqp_cli"):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), name
