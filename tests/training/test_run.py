"""Training runs, from a project to a checkpoint that TIAToolbox runs."""

import csv
import errno
import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.locking import FolderLock
from stqp.patches.cut import cut_patches
from stqp.patches.options import CutOptions
from stqp.patches.store import SIDES, UNKNOWN_TYPE, PatchFile
from stqp.qupath.objects import ObjectKind
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord
from stqp.slides import open_slide
from stqp.training.manifest import read_manifest
from stqp.training.network import build_network
from stqp.training.run import train
from stqp.training.settings import Settings

QUICK = {"arch": "lite", "block": 64.0, "batch_size": 2, "workers": 0, "device": "cpu"}


def start(projects, out, resume=False, progress=None, **values):
    """Train with settings by the names of their flags."""
    return train(Settings.of(projects, **values), out, resume=resume, progress=progress)


@pytest.fixture(scope="module")
def run(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "first"
    record = start([project], folder, max_steps=12, **QUICK)
    return folder, record


def test_a_run_writes_all_that_it_names(run):
    folder, record = run
    manifest = read_manifest(folder)
    assert manifest["training"]["steps"] == 12 and record.results["training"]["crops"] == 24
    state = torch.load(folder / "model.pth", weights_only=True)
    assert type(state).__name__ == "OrderedDict"
    build_network("lite", manifest["classes"]).load_state_dict(state, strict=True)
    with (folder / "metrics.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert rows and float(rows[-1]["loss"]) < float(rows[0]["loss"]) * 1.5 and rows[-1]["validation_pq"] != ""
    saved = json.loads((folder / "record.json").read_text())
    assert saved["inputs"] and saved["counts"]["nuclei"] > 300 and saved["versions"]["torch"]


def test_the_split_is_by_blocks_and_no_pixel_stands_on_both_sides(run):
    folder, _ = run
    patches = PatchFile(folder / "patches.h5")
    boxes = {
        side: [b for image in read_manifest(folder)["split"][side] for b in image["boxes"]]
        for side in ("training", "validation")
    }
    covered = np.zeros((2, 2000, 2000), bool)
    for row, (x, y) in enumerate(patches.origin.astype(int)):
        side, (height, width) = patches.side[row], np.argwhere(patches.read(row)["valid"]).max(axis=0) + 1
        home = [b for b in boxes[SIDES[side]] if b[0] <= x and x + width <= b[2] and b[1] <= y and y + height <= b[3]]
        assert home, (row, SIDES[side])
        covered[side, y : y + height, x : x + width] = True
    assert covered[0].any() and covered[1].any() and not (covered[0] & covered[1]).any()


def test_patches_show_the_slide_and_its_nuclei(project, tmp_path):
    record = RunRecord("test", {})
    cut = cut_patches([project], tmp_path / "p.h5", record, CutOptions(block=64.0, size=192))
    patches = PatchFile(tmp_path / "p.h5")
    with QuPathProject.open(project, "r") as opened:
        entry = opened.entries[0]
        objects = entry.read_objects()
        with open_slide(entry.image_path) as slide:
            for index in (0, len(patches) - 1):
                patch, (x, y) = patches.read(index), patches.origin[index]
                assert (patch["images"] == slide.read(x, y, (patches.size,) * 2)).all()
                whole = objects.polygons.rasterize((slide.height, slide.width))
                window = whole[int(y) : int(y) + patches.size, int(x) : int(x) + patches.size]
                assert ((window > 0) == (patch["instances"] > 0)).all()
                numbers = {name: i + 1 for i, name in enumerate(cut.classes)}
                kinds = np.array([0, *[numbers.get(c, UNKNOWN_TYPE) for c in objects.classes]])[window]
                assert (kinds == patch["types"]).all()


def test_a_correction_in_the_project_counts(project, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    with QuPathProject.open(copy, "r+") as opened:
        entry = opened.entries[0]
        objects = entry.read_objects()
        changed = objects.take(np.arange(len(objects)))
        changed.classes[:] = "Plasma"
        changed = changed.take(objects.polygons.centroid()[:, 0] < 500)
        gone = {*changed.ids}
        entry.write_objects(changed, replace=lambda old: np.array([i in gone for i in old.ids]))
    cut = cut_patches([copy], tmp_path / "p.h5", RunRecord("test", {}), CutOptions(block=64.0))
    assert "Plasma" in cut.classes


def test_going_on_with_a_run(run, project, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    before = read_manifest(folder)["weights"]["sha256"]
    with pytest.raises(UsageError, match="--resume"):
        start([project], folder, max_steps=14, **QUICK)
    with pytest.raises(UsageError, match="batch_size was 2 and is 3"):
        start([project], folder, max_steps=14, resume=True, **{**QUICK, "batch_size": 3})
    record = start([project], folder, max_steps=14, resume=True, **QUICK)
    assert record.results["training"]["steps"] == 14
    assert read_manifest(folder)["weights"]["sha256"] != before


def test_ctrl_c_keeps_what_was_learnt(project, tmp_path):
    folder = tmp_path / "run"

    def press(fraction, numbers):
        if numbers["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start([project], folder, max_steps=6, progress=press, **QUICK)
    assert (folder / "last.ckpt").is_file() and not (folder / "model.pth").exists()
    with pytest.raises(InputError, match="--resume"):
        read_manifest(folder)
    record = start([project], folder, max_steps=6, resume=True, **QUICK)
    assert record.results["training"]["steps"] == 6


def test_the_same_seed_gives_the_same_network(project, tmp_path):
    digests = []
    for name in ("a", "b"):
        start([project], tmp_path / name, max_steps=2, validation=0.0, **QUICK)
        digests.append(read_manifest(tmp_path / name)["weights"]["sha256"])
    assert digests[0] == digests[1]


def test_two_runs_do_not_write_one_folder(project, tmp_path):
    (tmp_path / "run").mkdir()
    lock = FolderLock(tmp_path / "run", creating=False, what="run")
    try:
        with pytest.raises(EnvironmentProblem, match="is being written"):
            start([project], tmp_path / "run", **QUICK)
    finally:
        lock.release()


def test_a_full_disk_while_patches_are_cut(project, tmp_path, monkeypatch):
    def full(self, data):
        self._error = self._error or OSError(errno.ENOSPC, "no space")
        return memoryview(data).nbytes

    monkeypatch.setattr("stqp.hdf5.CarefulFile.write", full)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        start([project], tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_bad_input(project, tmp_path):
    with pytest.raises(InputError, match="not empty"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.txt").write_text("precious")
        start([project], tmp_path / "other", **QUICK)
    with pytest.raises(InputError, match="nothing"):
        start([tmp_path / "nothing"], tmp_path / "run", **QUICK)
    assert not (tmp_path / "run" / "train.toml").exists()
    with pytest.raises(InputError, match="no project has the image"):
        start([project], tmp_path / "run", entries=["x"], **QUICK)
    with pytest.raises(UsageError, match="no run to resume"):
        start([project], tmp_path / "run2", resume=True, **QUICK)


def test_weights_to_start_from_are_looked_at_before_anything_is_cut(project, tmp_path):
    torch.save(build_network("lite", ["A"]).state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="expected weights of the fast network, found the lite one"):
        start([project], tmp_path / "run", **{**QUICK, "arch": "fast"}, init=str(tmp_path / "w.pth"))
    (tmp_path / "w.pth").write_bytes(b"broken")
    with pytest.raises(InputError, match="corrupt"):
        start([project], tmp_path / "run", **QUICK, init=str(tmp_path / "w.pth"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_starts_from_another(run, project, tmp_path):
    record = start([project], tmp_path / "run", **QUICK, max_steps=1, init=str(run[0]))
    initial = record.results["training"]["initial"]
    assert initial["source"] == "stqp run" and initial["new"] == 0 and None not in initial["classes"].values()
    assert read_manifest(tmp_path / "run")["training"]["initial"]["summary"] == initial["summary"]


def test_unlabelled_nuclei_only(project, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    with QuPathProject.open(copy, "r+") as opened:
        entry = opened.entries[0]
        objects = entry.read_objects()
        objects.classes[:] = "Unknown"
        entry.write_objects(objects, replace=lambda old: old.kind == ObjectKind.ANNOTATION)
    with pytest.raises(InputError, match="Unknown"):
        start([copy], tmp_path / "run", **QUICK)


def test_what_the_run_did_not_cover_is_masked(tmp_path, tmp_path_factory):
    from stqp.importing.xenium import import_xenium
    from stqp.synthetic import make_sample

    half = make_sample(tmp_path / "sample", seed=3, size=(800, 512), covered=0.5)
    import_xenium(half.outs, half.he, half.alignment, tmp_path / "p", labels=half.labels, class_map=half.class_map)
    cut_patches(
        [tmp_path / "p"], tmp_path / "p.h5", RunRecord("test", {}), CutOptions(validation=0.0, block=512.0, size=512)
    )
    with h5py.File(tmp_path / "p.h5") as file:
        origin, valid = file["origin"][:], file["valid"][:]
    for (x, _), mask in zip(origin, valid, strict=True):
        columns = x + np.arange(mask.shape[1])
        assert mask[:, columns < 380].all() and not mask[:, columns > 420].any()


def test_fast_learns_a_step_and_runs_in_tiatoolbox(project, tmp_path):
    from tiatoolbox.models.architecture.hovernet import HoVerNet
    from tiatoolbox.models.engine.io_config import IOInstanceSegmentorConfig
    from tiatoolbox.models.engine.multi_task_segmentor import MultiTaskSegmentor

    folder = tmp_path / "fast"
    start(
        [project], folder, arch="fast", max_steps=1, batch_size=1, validation=0.0, block=64.0, workers=0, device="cpu"
    )
    manifest = read_manifest(folder)
    names = {int(k): v for k, v in manifest["nuc_type_dict"].items()}
    model = HoVerNet(num_types=manifest["num_types"], mode="fast", nuc_type_dict=names)
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True), strict=True)
    engine = MultiTaskSegmentor(model=model, batch_size=1, num_workers=0, device="cpu", verbose=False)
    patch = np.full((1, 256, 256, 3), 200, np.uint8)
    output = engine.run(
        patch, patch_mode=True, ioconfig=IOInstanceSegmentorConfig(**manifest["ioconfig"]), output_type="dict"
    )  # fmt: skip
    assert output["predictions"].shape == (1, 164, 164)


def test_no_image_and_no_pixel_size(project, tmp_path, monkeypatch):
    from stqp.qupath.project import ProjectEntry

    monkeypatch.setattr(ProjectEntry, "image_path", property(lambda self: None))
    with pytest.raises(InputError, match="is at no path of this machine"):
        start([project], tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()
