"""`stqp patches`."""

import inspect
import json

import numpy as np
import pytest
from click.testing import CliRunner
from patches.projects import make_project
from PIL import Image
from stqp_cli import patches as module
from stqp_cli.main import cli

from stqp.errors import InputError, UsageError
from stqp.patches.importing import LAYOUTS, import_patches
from stqp.patches.layouts.export import LAYOUTS as WRITTEN
from stqp.patches.store import PatchFile


def run(*arguments):
    return CliRunner().invoke(cli, ["patches", *map(str, arguments)])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    make_project(folder / "project", ((500, 400),) * 2, [{"organ": "colon"}, {"organ": "skin"}])
    result = run("cut", folder / "project", "--out", folder / "p.h5", "--patch-size", 64, "--block", 40,
                 "--holdout", "organ=skin")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "for testing" in result.stdout and "stqp patches show" in result.stdout
    return folder / "p.h5"


def test_cut_leaves_a_record_and_does_not_cut_twice(file):
    record = json.loads((file.parent / "p.h5.json").read_text())
    assert record["arguments"]["holdout"] == ["organ=skin"] and record["results"]["labels"]
    again = run("cut", file.parent / "project", "--out", file, "--patch-size", 64, "--block", 40, "--holdout",
                "organ=skin", "--json")  # fmt: skip
    assert "left as they are" in json.loads(again.stdout)["counts"]["patches"]


def test_info_show_and_export(file, tmp_path):
    result = run("info", file)
    assert "organ=skin" in result.stdout and "training" in result.stdout
    assert json.loads(run("info", file, "--json").stdout)["results"]["patches"] == len(PatchFile(file))
    result = run("show", file, "--out", tmp_path / "sheet.png", "--number", 4, "--side", "test")
    assert result.exit_code == 0 and min(Image.open(tmp_path / "sheet.png").size) > 150
    for layout in module.WRITTEN:
        result = run("export", file, "--to", layout, tmp_path / layout)
        assert result.exit_code == 0 and (tmp_path / layout / "export.json").is_file(), result.output
    result = run("import", tmp_path / "hovernet", "--from", "hovernet", "--out", tmp_path / "again.h5",
                 "--patch-size", 64, "--holdout", "part=test", "--validate-on", "part=validation")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert np.bincount(PatchFile(tmp_path / "again.h5").side, minlength=3).all()


def test_types_are_named(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    instances = np.zeros((64, 64), np.int32)
    instances[5:15, 5:15], instances[30:40, 30:50] = 1, 2
    Image.fromarray(np.full((64, 64, 3), 220, np.uint8)).save(folder / "a.png")
    np.savez(folder / "a.npz", inst=instances, types=[1, 2])
    common = ("import", folder, "--from", "image+map", "--image-mpp", "0.25", "--out", tmp_path / "p.h5",
              "--patch-size", 64, "--validation", 0)  # fmt: skip
    result = run(*common, "--type", "1=Dead", "--type", "2=Epithelial")
    assert result.exit_code == 0 and PatchFile(tmp_path / "p.h5").classes == ["Dead", "Epithelial"]
    assert isinstance(run(*common, "--type", "Dead").exception, UsageError)
    assert isinstance(run(*common).exception, InputError)


def test_mistakes(file, tmp_path):
    assert isinstance(run("info", tmp_path / "none.h5").exception, InputError)
    broken = tmp_path / "broken.h5"
    broken.write_bytes(file.read_bytes()[:5000])
    for arguments in (("info", broken), ("show", broken, "--out", tmp_path / "s.png"),
                      ("export", broken, "--to", "coco", tmp_path / "c")):  # fmt: skip
        error = run(*arguments).exception
        assert isinstance(error, InputError) and "no whole file of stqp patches" in str(error)
    assert isinstance(run("cut", tmp_path / "nothing", "--out", tmp_path / "p.h5").exception, InputError)
    assert isinstance(
        run("cut", file.parent / "project", "--out", tmp_path / "p.h5", "--split", "random").exception, UsageError
    )


def test_a_folder_is_no_file(file, tmp_path):
    result = run("cut", file.parent / "project", "--out", tmp_path)
    assert isinstance(result.exception, UsageError) and "is a folder" in str(result.exception)


def test_the_command_line_has_what_the_library_has():
    assert tuple(LAYOUTS) == module.READ and tuple(WRITTEN) == module.WRITTEN
    flags = {p.name for p in module.import_.params}
    library = {*inspect.signature(import_patches).parameters} - {"record", "options", "progress"}
    assert library - {"type_names"} <= flags and "types" in flags
