"""A manifest rebuilds the network and its engine, and says where the labels come from."""

import shutil

import numpy as np
import pytest
import torch
import yaml

from stqp.errors import InputError
from stqp.importing.labelling import label_project
from stqp.qupath.project import QuPathProject
from stqp.training.checkpoints import load_network, read_checkpoint
from stqp.training.manifest import ioconfig, read_manifest, write_ioconfig
from stqp.training.provenance import BY_HAND, label_provenance, project_colors
from stqp.training.run import train
from stqp.training.settings import Settings


@pytest.fixture(scope="module")
def run(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest") / "first"
    settings = Settings.of(
        [project],
        arch="lite",
        block=64.0,
        batch_size=2,
        workers=0,
        device="cpu",
        max_steps=2,
        test=0.2,
        class_weights="none",
    )
    train(settings, folder)
    return folder


def test_a_run_runs_in_tiatoolbox(run):
    """Our weights and our ioconfig.yaml, in TIAToolbox's engine."""
    from tiatoolbox.models.engine.io_config import IOInstanceSegmentorConfig
    from tiatoolbox.models.engine.multi_task_segmentor import MultiTaskSegmentor

    with (run / "ioconfig.yaml").open(encoding="utf-8") as file:
        said = IOInstanceSegmentorConfig(**yaml.safe_load(file))
    model = load_network(read_checkpoint(run), tiatoolbox=True)
    engine = MultiTaskSegmentor(model=model, batch_size=1, num_workers=0, device="cpu", verbose=False)
    image = np.random.default_rng(0).integers(0, 255, (1, 256, 256, 3), dtype=np.uint8)
    output = engine.run(image, patch_mode=True, ioconfig=said, output_type="dict")
    assert output["predictions"].shape == (1, 164, 164)


def test_a_manifest_says_what_was_learnt_from(run, project):
    manifest = read_manifest(run)
    data = manifest["data"]
    assert data["file"] == "patches.h5" and len(data["fingerprint"]) == 64 and data["source_fingerprint"]
    assert sum(data["patches_by_side"].values()) == data["patches"] and data["patches_by_side"]["test"] > 0
    nuclei = data["nuclei"]
    assert set(nuclei["training"]) == {"Unknown", *manifest["classes"]} and nuclei["training"]["Connective"] > 0
    (label,) = manifest["labels"]
    assert label["summary"] == "labels of labels.csv by class_map.csv" and label["corrected"] == 0
    assert label["import"]["command"] == "import-xenium" and label["import"]["alignment"].startswith("good")
    with QuPathProject.open(project, "r") as opened:
        assert sum(label["nuclei"].values()) == len(opened.entries[0].read_objects())
        assert manifest["colors"] == {name: [*opened.classes[name]] for name in manifest["classes"]}
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0] and manifest["versions"]["stqp"]


def test_labels_of_a_typing_and_of_a_person(project, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    label_project(copy, resolution=0.5, seed=3)
    with QuPathProject.open(copy, "r+") as opened:
        entry = opened.entries[0]
        objects = entry.read_objects()
        changed = np.flatnonzero(objects.classes == "Connective")[:5]
        gone = set(objects.ids[np.flatnonzero(objects.classes != "Connective")[:3]].tolist())
        new = objects.take(changed)
        new.classes[:] = "Plasma"
        entry.update_objects(changed, new)
        opened.save()
    with QuPathProject.open(copy, "r+") as opened:
        entry = opened.entries[0]
        entry.write_objects(
            entry.read_objects().take(np.array([], int)), replace=lambda old: np.array([i in gone for i in old.ids])
        )
        opened.set_classes({"Plasma": (1, 2, 3)})
        opened.save()
        source = {"project": str(copy), "entry": entry.name, "entry_id": entry.id}
    (found,) = label_provenance([source])
    assert (found["corrected"], found["deleted"], found["accepted"]) == (5, 3, 0)
    assert found["changes"] == {"Connective > Plasma": 5} and BY_HAND not in found["nuclei"]
    (typing,) = found["typing"]
    assert typing["method"] == "stqp" and typing["seed"] == 3 and typing["taxonomy"] == "of stqp"
    assert found["summary"].startswith("typed by the method stqp") and "5 corrected, 3 deleted" in found["summary"]
    assert project_colors([source], ["Plasma", "Dead"]) == {"Plasma": (1, 2, 3), "Dead": (240, 200, 20)}


def test_labels_of_what_is_not_at_hand(tmp_path):
    gone, imported = label_provenance([{"project": str(tmp_path / "gone"), "entry": "a"}, {"entry": "fold1"}])
    assert "no longer at hand" in gone["summary"] and "came with the patches" in imported["summary"]


@pytest.mark.parametrize(("arch", "outputs"), [("lite", 3), ("original", 2)])
def test_ioconfig_is_what_tiatoolbox_has(tmp_path, arch, outputs):
    from tiatoolbox.models.engine.io_config import IOInstanceSegmentorConfig

    write_ioconfig(tmp_path / "io.yaml", arch, 0.5, typed=outputs == 3)
    text = (tmp_path / "io.yaml").read_text(encoding="utf-8")
    assert "&id" not in text and yaml.safe_load(text) == ioconfig(arch, 0.5, outputs == 3)
    made = IOInstanceSegmentorConfig(**yaml.safe_load(text))
    assert len(made.output_resolutions) == outputs and made.highest_input_resolution["resolution"] == 0.5


def test_a_broken_manifest(run, tmp_path):
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is not JSON"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"classes": []}', encoding="utf-8")
    with pytest.raises(InputError, match="lacks architecture, mpp, split"):
        read_manifest(tmp_path)
