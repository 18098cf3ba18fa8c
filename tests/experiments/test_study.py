import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stqp.errors import InputError, UsageError
from stqp.experiments.cells import CELL, Cell, cell_folder, cells_of, project_of_test, run_cell
from stqp.experiments.data import prepare
from stqp.experiments.labels import relabelled
from stqp.experiments.manifest import read_study, study_from
from stqp.experiments.scoring import score
from stqp.experiments.study import run_study
from stqp.experiments.tables import markdown, write_tables
from stqp.importing.xenium import import_xenium
from stqp.inference.scheduling import Scheduler
from stqp.patches.store import PatchFile
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import stamp
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord

STUDY = """
name = "Small"
seeds = [0, 1]
scores = ["pq", "f_d", "type_f1_macro"]
compare = [["fine", "visual"]]

[data.slide]
path = "project"
organ = "made up"

[networks.lite]
arch = "lite"
max_steps = 1
batch_size = 1
workers = 0

[variants.visual]
train = "slide"

[variants.fine]
train = "slide"
labels = "label"
afterwards = { tumour = "Neoplastic" }

[tests.held]
data = "slide"
held_out = true

[split]
block = 64.0
test = 0.3
validation = 0.2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sample):
    folder = tmp_path_factory.mktemp("study")
    import_xenium(
        sample.outs, sample.he, sample.alignment, folder / "project", labels=sample.labels, class_map=sample.class_map
    )
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def study(folder):
    return read_study(folder / "study.toml")


@pytest.fixture(scope="module")
def prepared(folder, study):
    return prepare(study, folder / "out", RunRecord("test", {}))


def test_variants_learn_other_labels_of_the_same_patches(study, prepared, folder):
    visual, fine = (PatchFile(prepared[name]) for name in ("visual", "fine"))
    assert set(visual.classes) != set(fine.classes)
    with QuPathProject.open(folder / "project", "r") as project:
        before = set(project.entries[0].read_objects().classes.tolist())
    assert set(visual.classes) <= before  # the user's own project has the labels that it had
    rows = [np.lexsort(p.origin.T) for p in (visual, fine)]
    assert np.array_equal(visual.origin[rows[0]], fine.origin[rows[1]])
    assert np.array_equal(visual.side[rows[0]], fine.side[rows[1]])
    assert {0, 1, 2} == set(np.unique(visual.side))
    for i, j in zip(*rows, strict=True):
        a, b = visual.read(i), fine.read(j)
        assert np.array_equal(a["instances"], b["instances"]) and np.array_equal(a["images"], b["images"])
    again = prepare(study, folder / "out", RunRecord("test", {}))
    assert again == prepared


def _write(project: Path, name: str, objects: PathObjects) -> None:
    with QuPathProject.open(project, "r+") as opened:
        opened.entries[0].write_objects(stamp(objects, f"predict:{name}", "x"))
        opened.save()


def test_scores_are_those_of_what_was_found(study, prepared, folder, tmp_path):
    """Perfect detections of one variant, half of them of the other, all of one class."""
    out = folder / "out"
    project = project_of_test(out, "held")
    with QuPathProject.open(project, "r") as opened:
        nuclei = opened.entries[0].read_objects()
    nuclei = nuclei.take(nuclei.kind == ObjectKind.ANNOTATION)
    split = json.loads((out / "split.json").read_text(encoding="utf-8"))
    for cell in cells_of(study):
        run = cell_folder(out, cell) / "train"
        run.mkdir(parents=True)
        manifest = {"architecture": "lite", "classes": [], "mpp": 0.25, "split": split}
        (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        state = {"of": {}, "trained": True, "predicted": [["held"]]}
        (cell_folder(out, cell) / CELL).write_text(json.dumps(state), encoding="utf-8")
        keep = np.arange(len(nuclei)) if cell.variant == "visual" else np.arange(0, len(nuclei), 2)
        classes = nuclei.classes[keep] if cell.variant == "visual" else np.full(len(keep), "tumour", object)
        found = PathObjects.build(nuclei.polygons.take(keep), kind=ObjectKind.DETECTION, classes=classes)
        _write(project, cell.name, found)
    result = score(study, cells_of(study), out)
    visual, fine = (next(r for r in result.rows if r.variant == v) for v in ("visual", "fine"))
    assert visual.seeds == 2 and not result.missing
    assert visual.scores["pq"]["value"] == pytest.approx(1) and visual.scores["type_f1_macro"]["value"] == 1
    assert visual.scores["pq"]["spread"] == 0 and visual.scores["pq"]["interval"] == [1, 1]
    assert 0.55 < fine.scores["f_d"]["value"] < 0.78  # of a half that is found, 2/3
    assert fine.per_class["Neoplastic"]["recall"] == 1 and fine.per_class["Connective"]["recall"] == 0
    low, high = fine.scores["f_d"]["interval"]
    assert low < fine.scores["f_d"]["value"] < high
    (difference,) = result.differences
    assert (difference.first, difference.second) == ("fine", "visual")
    found = difference.scores["f_d"]
    assert found["difference"] == pytest.approx(1 - fine.scores["f_d"]["value"])
    assert found["interval"][0] > 0 and found["p"] < 0.05
    write_tables(tmp_path, study, result)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| visual | lite | 1.000 [1.000, 1.000] ± 0.000 |" in text and "visual − fine" in text
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert {r["learnt_from"] for r in rows} == {"visual", "fine"} and len(rows) == 2 * 3 + 3
    page = (tmp_path / "table.html").read_text(encoding="utf-8")
    assert "<svg" not in page and "data:image/svg+xml;base64" in page
    assert "over 2 trainings a row" in text
    part = score(study, [*cells_of(study), Cell("visual", "lite", 7)], out)
    assert part.missing == [Cell("visual", "lite", 7)] and "1 trainings are not done" in markdown(study, part)


def test_a_study_runs_from_its_file_and_goes_on_where_it_was(folder, tmp_path):
    text = STUDY.replace("seeds = [0, 1]", "seeds = [0]").replace('"project"', f'"{(folder / "project").as_posix()}"')
    text = text.replace('compare = [["fine", "visual"]]', "baselines = true")
    path = tmp_path / "one.toml"
    path.write_text(text, encoding="utf-8")
    steps = []
    record, scores = run_study(path, tmp_path / "out", progress=lambda done, total, name: steps.append(name))
    assert record.counts["cells done"] == 2 and not record.results["failed"]
    assert [r.variant for r in scores.rows] == ["visual", "fine", "watershed"]
    watershed = scores.rows[-1].scores
    assert watershed["f_d"]["value"] > 0.3  # made-up nuclei are dark
    weights = (tmp_path / "out" / "runs" / "visual-lite-seed0" / "train" / "model.pth").stat().st_mtime_ns
    run_study(path, tmp_path / "out", progress=lambda done, total, name: steps.append(name))
    after = (tmp_path / "out" / "runs" / "visual-lite-seed0" / "train" / "model.pth").stat().st_mtime_ns
    assert weights == after and sum("training" in s for s in steps) == sum("100%" in s for s in steps)
    predicted = sum("predicting" in s for s in steps)
    path.write_text(text.replace("held_out = true", 'held_out = true\nrelabel = { Neoplastic = "Unknown" }'), "utf-8")
    run_study(path, tmp_path / "out", progress=lambda done, total, name: steps.append(name))
    assert predicted and sum("predicting" in s for s in steps) == predicted
    path.write_text(text.replace("max_steps = 1", "max_steps = 2"), encoding="utf-8")
    with pytest.raises(UsageError, match="another network"):
        run_study(path, tmp_path / "out")


def test_cells_are_trained_at_the_same_time(folder, tmp_path):
    text = STUDY.replace("seeds = [0, 1]", "seeds = [0]").replace('"project"', f'"{(folder / "project").as_posix()}"')
    path = tmp_path / "two.toml"
    path.write_text(text.replace("workers = 0", "workers = 1"), encoding="utf-8")
    record, scores = run_study(path, tmp_path / "out", scheduler=Scheduler("local", 2))
    assert not record.results["failed"] and not scores.missing
    assert {row.variant for row in scores.rows} == {"visual", "fine"}
    run_study(path, tmp_path / "alone")
    for cell in cells_of(read_study(path)):
        runs = [cell_folder(tmp_path / out, cell) / "train" for out in ("out", "alone")]
        both = [torch.load(run / "model.pth", weights_only=True) for run in runs]
        for name, values in both[0].items():
            # Adam's first step is as long for a gradient of rounding errors as for any other, so not to the bit
            assert float((values.double() - both[1][name].double()).abs().mean()) < 1e-4


def test_a_bug_of_a_cell_is_told_as_a_bug_when_the_others_are_done(folder, tmp_path, monkeypatch):
    from distributed import Client

    from stqp.experiments import study

    ran, said = [], []

    def run_cell(study, cell, inputs, out, device, say):
        say("training", 0.25)
        ran.append(cell.name)
        if cell.seed == 0:
            raise InputError("no nuclei") if cell.variant == "fine" else ZeroDivisionError("a bug")

    monkeypatch.setattr(study, "prepare", lambda *_: {})
    monkeypatch.setattr(study, "run_cell", run_cell)
    monkeypatch.setattr(
        "stqp.inference.scheduling.connected", lambda _: Client(processes=False, dashboard_address="127.0.0.1:0")
    )
    with pytest.raises(RuntimeError, match=r"visual-lite-seed0: a worker failed:") as told:
        run_study(
            folder / "study.toml", tmp_path / "out", scheduler=Scheduler("local", 2), progress=lambda *s: said.append(s)
        )
    assert any("-lite-seed1: training 25%" in text for _, _, text in said) and max(said)[:2] == (4, 4)
    assert "ZeroDivisionError: a bug" in str(told.value) and "fine-lite" not in str(told.value)  # bad input is no bug
    assert len(ran) == 4


def test_several_data_sets_are_one_file_with_the_classes_asked_for(folder, tmp_path):
    text = STUDY.replace('[variants.visual]\ntrain = "slide"', '[variants.visual]\ntrain = ["slide", "tiles"]')
    text = text.replace('labels = "label"', 'classes = ["Connective", "Inflammatory"]').replace(
        '"project"', f'"{folder.as_posix()}/project"'
    )
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d", "e", "f"):
        from PIL import Image

        inst = np.zeros((300, 300), np.int32)
        inst[20:40, 20:40], inst[100:130, 90:110] = 1, 2
        Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(tiles / f"{name}.png")
        np.savez(tiles / f"{name}.npz", inst=inst, types=np.array([1, 2]))
    text += '\n[data.tiles]\nformat = "image+map"\npath = "tiles"\nclasses = ["Connective", "Dead"]\n'
    path = tmp_path / "two.toml"
    path.write_text(text, encoding="utf-8")
    made = prepare(read_study(path), tmp_path / "out", RunRecord("test", {}))
    both, few = PatchFile(made["visual"]), PatchFile(made["fine"])
    assert "Dead" in both.classes and few.classes == ["Connective", "Inflammatory"]
    assert {s["entry"] for s in both.sources} > {"a", "f"} and len(both) > len(few)


def test_patches_are_cut_as_the_study_and_the_variant_say(folder, tmp_path):
    text = STUDY.replace('"project"', f'"{(folder / "project").as_posix()}"')
    text = text.replace("[split]", "[patches]\nmpp = 0.5\nsize = 64\n\n[split]")
    text = text.replace(
        'labels = "label"', 'labels = "label"\nclasses = ["tumour"]\npatches = { min_confidence = 0.99 }'
    )
    path = tmp_path / "half.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="have a Label confidence"):  # the labels were given, not inferred
        prepare(read_study(path), tmp_path / "out", RunRecord("test", {}))
    path.write_text(text.replace("{ min_confidence = 0.99 }", '{ objects = "annotations" }'), encoding="utf-8")
    study = read_study(path)
    made = prepare(study, tmp_path / "out", RunRecord("test", {}))
    assert made["visual"] != made["fine"]
    for name in ("visual", "fine"):
        patches = PatchFile(made[name])
        assert (patches.mpp, patches.size) == (0.5, 64)
    assert patches.classes == ["tumour"]


def test_labels_of_cells_that_are_not_there(folder, tmp_path):
    with pytest.raises(InputError, match=r"no column .kind.; there are .*label"):
        relabelled(folder / "project", tmp_path / "copy", "kind", {})
    assert not (tmp_path / "copy").exists()


CHANGES = {
    'path = "project"': ('path = "nowhere"', "which does not exist"),
    'arch = "lite"': ("width = 3", "names no arch"),
    'train = "slide"': ('train = "slyde"', "is it slide"),
    'data = "slide"\nheld_out = true': ('data = "slide"', "set held_out = true"),
    "test = 0.3\nvalidation = 0.2": ("validation = 0.2", "holds nothing out"),
    '"pq", "f_d"': ('"pw", "f_d"', "no score 'pw'"),
    'compare = [["fine", "visual"]]': ('compare = ["fine"]', "expected pairs"),
    "seeds = [0, 1]": ("seeds = [1, 1]", "names a seed twice"),
    'name = "Small"': ('nmae = "Small"', "unknown key 'nmae'"),
    "block = 64.0": ("blok = 64.0", "unknown key 'blok' .is it block"),
    "[tests.held]": ("[test.held]", "unknown key 'test'"),
    'labels = "label"': ("labels = 3", "expected a column"),
    'afterwards = { tumour = "Neoplastic" }': ("afterwards = 1", "afterwards of"),
    "[split]": ("[patches]\nmmp = 0.5\n[split]", r"\[patches\] of .* unknown key 'mmp' .is it mpp"),
    "[split]\n": ('[patches]\nmpp = "0.5"\n[split]\n', r"\[patches\] of .* makes no sense"),
    "block = 64.0\n": ("block = 64.0\nguard = 60.0\n", r"\[split\] of .* makes no sense: .*guard"),
    'train = "slide"\nlabels': (
        'train = "slide"\npatches = { min_confidence = 2 }\nlabels',
        "makes no sense",
    ),
}


@pytest.mark.parametrize("old", [*CHANGES])
def test_a_file_that_makes_no_sense_is_said(folder, old):
    new, message = CHANGES[old]
    assert old in STUDY
    path = folder / "bad.toml"
    path.write_text(STUDY.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_study(path)


def test_an_image_is_not_learnt_from_and_tested_on(folder, tmp_path):
    text = STUDY.replace("held_out = true", "").replace('data = "slide"', 'data = "same"')
    text += f'\n[data.same]\npath = "{(folder / "project").as_posix()}"\n'
    path = folder / "leak.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"would learn from .* on which it is tested"):
        prepare(read_study(path), tmp_path, RunRecord("test", {}))


def test_no_file_and_no_cell(tmp_path, folder):
    with pytest.raises(InputError, match="cannot be read"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(InputError, match="no cell of the study is done"):
        run_study(folder / "study.toml", tmp_path / "empty", only_score=True)
    with pytest.raises(InputError, match=r"no \[networks.NAME\]"):
        study_from({"data": {"a": {}}}, tmp_path / "x.toml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples" / "experiments").glob("*.toml")))
def test_the_examples_are_studies(path, tmp_path):
    """Read with the data that they name in place."""
    text = path.read_text(encoding="utf-8")
    copy = tmp_path / "a" / "b" / path.name
    copy.parent.mkdir(parents=True)
    copy.write_text(text, encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("path = "):
            (copy.parent / line.split('"')[1]).mkdir(parents=True, exist_ok=True)
    study = read_study(copy)
    assert study.tests and study.compare and len(cells_of(study)) >= 4
    from stqp.training.settings import Settings

    for network in study.networks.values():
        assert Settings.of(["x.h5"], **network).resolved()


def test_a_cell_of_another_study_is_left(study, folder, tmp_path):
    cell = cells_of(study)[0]
    cell_folder(tmp_path, cell).mkdir(parents=True)
    (cell_folder(tmp_path, cell) / CELL).write_text('{"of": {"network": 1}, "trained": true}', encoding="utf-8")
    with pytest.raises(UsageError, match="another data and network"):
        run_cell(study, cell, {}, tmp_path)
