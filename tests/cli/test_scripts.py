"""`stqp scripts`."""

import json

import pytest
from click.testing import CliRunner
from stqp_cli.main import cli

from stqp.errors import UsageError
from stqp.qupath.project import QuPathProject
from stqp.qupath.scripts import available


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, ["scripts", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def project(tmp_path):
    with QuPathProject.open(tmp_path / "project", "x"):
        pass
    return tmp_path / "project"


def test_list_prints_name_and_first_sentence():
    lines = run("list").splitlines()
    assert [line.split()[0] for line in lines] == [s.name for s in available()]
    assert all(line.endswith(".") for line in lines)
    assert next(line for line in lines if line.startswith("review_nuclei")).split(maxsplit=1)[1].startswith("Shows")


def test_list_as_json():
    content = json.loads(run("list", "--json"))
    assert {one["name"] for one in content} == {s.name for s in available()}
    assert all("Command line: " in one["header"] for one in content)


def test_install_says_what_became_of_each(project):
    assert run("install", project).count(": installed\n") == len(available())
    mine = project / "scripts" / "mark_region.groovy"
    mine.write_text(mine.read_text(encoding="utf-8").replace("Train", "Trayn", 1), encoding="utf-8")
    said = run("install", project)
    assert "mark_region: kept as it is, since somebody changed it (+1 -1 lines)" in said and "--force" in said
    assert "Trayn" not in said and "Trayn" in run("install", project, "-v")
    said = run("install", project, "--force", "--only", "mark_region")
    assert "replaced; what somebody changed is now mark_region.groovy.bak" in said and "load_geojson" not in said


def test_help_of_both_has_examples():
    for name in ("list", "install"):
        assert "Examples:" in run(name, "--help")


def test_an_unknown_script_is_wrong_usage(project):
    with pytest.raises(UsageError, match="has no script 'x'"):
        run("install", project, "--only", "x")
