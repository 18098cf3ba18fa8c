import inspect
import json
import sys

import numpy as np
import pytest
from stqp_cli.main import main
from stqp_cli.qc_alignment import command

from stqp.importing.xenium import import_xenium
from stqp.qupath.project import QuPathProject
from stqp.report.qc_alignment import qc_bundle, qc_project


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["stqp", "qc-alignment", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


@pytest.fixture(scope="module")
def project(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qc") / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, folder)
    return folder


def moved(sample, tmp_path, x):
    matrix = np.loadtxt(sample.alignment, delimiter=",")
    matrix[:2, 2] -= matrix[:2, :2] @ [x / sample.mpp, 0]
    path = tmp_path / "moved.csv"
    np.savetxt(path, matrix, delimiter=",", fmt="%.17g")
    return path


def test_options_are_parameters():
    options = {p.name for p in command.params} - {"as_json", "verbose", "target"}
    both = {*inspect.signature(qc_project).parameters, *inspect.signature(qc_bundle).parameters}
    assert options == both - {"project", "outs", "progress"}


def test_project_is_measured_and_not_changed(project, monkeypatch, capsys):
    data = {p: p.read_bytes() for p in project.rglob("*.qpdata")}
    assert call(monkeypatch, project) == 0
    out = capsys.readouterr().out
    assert "good: 0.0" in out and "report: " in out
    assert {p: p.read_bytes() for p in project.rglob("*.qpdata")} == data
    folder = project / "stqp" / "alignment"
    assert sorted(p.suffix for p in folder.iterdir()) == [".html", ".png"]


def test_import_before_and_after_a_refinement(sample, tmp_path, monkeypatch, capsys):
    wrong = moved(sample, tmp_path, 4.0)
    record = import_xenium(sample.outs, sample.he, wrong, tmp_path / "p")
    assert record.results["alignment"]["offset_um"] == pytest.approx([4, 0], abs=0.15)
    assert any("shifted: the nuclei lie 4.0 µm to the right" in w for w in record.warnings)
    record = import_xenium(sample.outs, sample.he, wrong, tmp_path / "q", refine="shift")
    assert record.results["alignment"]["verdict"] == "good" and not any("shifted" in w for w in record.warnings)
    with QuPathProject.open(tmp_path / "q", "r") as opened:
        (entry,) = opened.entries
        objects = entry.read_objects()
        description = json.loads((entry.stqp_folder / "sample.json").read_text(encoding="utf-8"))
    truth = np.loadtxt(sample.alignment, delimiter=",")
    np.testing.assert_allclose(np.array(description["alignment"]), truth, atol=1)
    assert description["refinement"]["field"] is None
    contrast = objects.measurements["Alignment: stain contrast"]
    assert np.nanmedian(contrast) > 0.2
    assert np.nanmedian(objects.measurements["Alignment: residual shift µm"]) < 0.2
    with QuPathProject.open(tmp_path / "p", "r") as opened:
        before = opened.entries[0].read_objects()
    assert np.nanmedian(before.measurements["Alignment: residual shift µm"]) == pytest.approx(4, abs=0.2)
    # some at the border come back onto the image
    assert {*before.names.tolist()} < {*objects.names.tolist()} and len(objects) == sample.n_nuclei
    both = np.intersect1d(before.ids.astype(str), objects.ids.astype(str))
    assert len(both) == len(before)
    off = import_xenium(sample.outs, sample.he, wrong, tmp_path / "r", qc=False)
    assert "alignment" not in off.results and "alignment" not in off.counts


def test_run_before_an_import(sample, tmp_path, monkeypatch, capsys):
    arguments = [sample.outs, "--he", sample.he, "--alignment", moved(sample, tmp_path, 6.0), "--out", tmp_path / "out"]
    assert call(monkeypatch, *arguments, "--json") == 0
    (image,) = json.loads(capsys.readouterr().out)["results"]["images"]
    assert image["verdict"] == "shifted" and image["offset_um"] == pytest.approx([6, 0], abs=0.15)
    assert call(monkeypatch, *arguments, "--refine", "shift", "--fields", "1", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["results"]["images"][0]["verdict"] == "good"
    assert record["results"]["refinement"]["before"]["verdict"] == "shifted"
    assert record["arguments"]["refine"] == "shift"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{outs}"], 2, "is a Xenium run: give --he, --alignment and --out"),
        (["{outs}", "--he", "{he}"], 2, "give --alignment and --out"),
        (["{outs}", "--he", "{he}", "--alignment", "identity", "--out", "o", "--entry", "x"], 2, "--entry names"),
        (["{outs}", "--he", "{he}", "--alignment", "identity", "--out", "{tmp}"], 3, "not in the frame"),
        (["{outs}", "--he", "{he}", "--alignment", "a", "--out", "o", "--refine-limit", "0"], 2, "between 0 and 100"),
        (["{project}", "--entry", "none"], 2, "has no image 'none'; it has"),
        (["{tmp}"], 3, ""),
        (["{project}", "--fields", "0"], 2, ""),
    ],
)
def test_wrong_use_is_one_sentence(sample, project, tmp_path, monkeypatch, capsys, arguments, code, message):
    names = {"outs": sample.outs, "he": sample.he, "project": project, "tmp": tmp_path}
    assert call(monkeypatch, *(a.format(**names) for a in arguments)) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_project_without_imported_nuclei(sample, tmp_path, monkeypatch, capsys):
    from stqp.slides import open_slide

    with QuPathProject.open(tmp_path / "p", "a") as opened, open_slide(sample.he) as slide:
        opened.add_image(slide)
    assert call(monkeypatch, tmp_path / "p") == 3
    assert "has nuclei of import-xenium; import one first" in capsys.readouterr().err
