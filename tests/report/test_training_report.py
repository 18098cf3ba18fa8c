"""The report of a training run, made from its folder alone."""

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from stqp_cli.model import command

from stqp.errors import InputError
from stqp.importing.xenium import import_xenium
from stqp.patches.store import PatchFile
from stqp.report.held_out import examples, judge_held_out, outlined, units
from stqp.report.training import report_run
from stqp.report.training_figures import course, number_rows
from stqp.training.run import train
from stqp.training.settings import Settings


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    project = folder / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, project, labels=sample.labels, class_map=sample.class_map)
    settings = Settings.of(
        [project], arch="lite", block=64.0, batch_size=2, workers=0, device="cpu", max_steps=4, test=0.2
    )
    train(settings, folder / "run")
    return folder / "run"


def test_the_page_tells_the_run_and_holds_everything_itself(run, tmp_path):
    result = CliRunner().invoke(
        command, ["report", str(run), "--out", str(tmp_path / "r.html"), "--device", "cpu", "--json"]
    )
    assert result.exit_code == 0, result.exception
    record = json.loads(result.stdout)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert record["results"]["side"] == "test" and record["results"]["patches"] >= 3
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert not re.search(r"\bnan\b", re.sub(r'"data:[^"]*"', "", text))
    for words in ("lite learnt", "learning rate", "Dice", "labels of labels.csv", "Best, median and worst", "type-F1"):
        assert words in text, words
    for kind in ("best", "median", "worst"):
        assert f'alt="{kind} patch: H&amp;E, truth, prediction"' in text
    pq = record["results"]["scores"]["pq"]
    assert f"(PQ {pq:.2f}, F_d" in text
    assert not (run / "report.html").exists()
    report_run(run, device="cpu", patches=2)
    assert (run / "report.html").is_file()


def test_scores_are_those_of_the_patches(run):
    """A slow reference: every patch by itself, pooled by hand."""
    from stqp.evaluation.scores import summarise
    from stqp.training.checkpoints import load_network, read_checkpoint
    from stqp.training.network import architecture
    from stqp.training.validation import judge_patch

    patches = PatchFile(run / "patches.h5")
    held = judge_held_out(run, patches, {}, "cpu")
    network = load_network(read_checkpoint(run))
    one_by_one = {
        str(row): judge_patch(network, architecture("lite"), patches, int(row), "cpu").counts
        for row in np.flatnonzero(patches.side == 2)
    }
    expected = summarise(one_by_one, patches.classes, bootstrap=0)["pooled"]
    assert held.result["pooled"]["f_d"] == pytest.approx(expected["f_d"], nan_ok=True)
    assert held.result["pooled"]["n_true"] == expected["n_true"] > 0
    assert held.unit == "blocks" and held.result["images"] == len({*units(patches, held.rows, "test")[1]})


def test_a_run_without_its_patches_or_records(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for name in ("patches.h5", "metrics.csv", "record.json"):
        (copy / name).unlink()
    record = report_run(copy, device="cpu")
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert "nothing that was held out could be scored" in text and "no metrics.csv" in text
    assert "does not exist" in record.warnings[0]


def test_a_run_that_has_not_ended(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        report_run(tmp_path)


def test_examples_are_sorted_and_none_is_twice():
    scores = np.array([0.1, np.nan, 0.9, 0.5, 0.4, 0.6, 0.2, 0.8, 0.7])
    found = examples(scores, 2)
    assert found == {"best": [2, 7], "median": [5, 3], "worst": [0, 6]}
    for n in range(6):
        every = [i for part in examples(np.linspace(0, 1, n) if n else np.empty(0)).values() for i in part]
        assert len({*every}) == len(every) <= n and (n == 0 or every)


def test_outlines_have_the_colours_of_the_classes():
    nuclei = np.zeros((20, 20), int)
    nuclei[2:8, 2:8], nuclei[2:8, 8:14], nuclei[12:18, 5:11] = 4, 7, 9
    drawn = outlined(
        np.full((20, 20, 3), 200, np.uint8), nuclei, np.array([1, 2, 0]), [(9, 9, 9), (255, 0, 0), (0, 0, 255)]
    )
    assert drawn.shape == (40, 40, 3)
    assert (
        tuple(drawn[4, 8]) == (255, 0, 0) and tuple(drawn[15, 27]) == (0, 0, 255) and tuple(drawn[24, 14]) == (9, 9, 9)
    )
    assert tuple(drawn[9, 9]) == (200, 200, 200) and tuple(drawn[0, 0]) == (200, 200, 200)  # inside, outside
    assert tuple(drawn[9, 15]) == (255, 0, 0) and tuple(drawn[9, 16]) == (0, 0, 255)  # where they touch
    valid = np.ones((20, 20), bool)
    valid[:, 15:] = False
    pale = outlined(np.full((20, 20, 3), 200, np.uint8), nuclei * 0, np.empty(0, int), [(9, 9, 9)], valid)
    assert pale[0, 29, 0] == 200 and pale[0, 30, 0] > 230


def test_a_course_with_gaps_and_phases():
    rows = number_rows(
        [
            {"phase": "0", "step": "5", "loss": "3", "np_ce": "1", "lr": "0.1", "validation_pq": ""},
            {"phase": "1", "step": "9", "loss": "2", "np_ce": "nan", "lr": "0.1", "validation_pq": "0.4"},
            {"phase": "1", "loss": "2"},
        ]
    )
    assert len(rows) == 2 and "validation_pq" not in rows[0] and "np_ce" not in rows[1]
    drawn = course(rows, 9, "pq")
    titles = [a.get_title() for a in drawn.axes]
    assert titles == ["total loss", "parts of the loss", "scores on the validation patches", "learning rate"]
    assert [len(a.get_lines()) for a in drawn.axes] == [3, 3, 3, 3]  # of the row, the phase, and the chosen step
    course([])
