import json

import numpy as np
import pytest
from perfect_maps import CLASSES, ColourNetwork, grid_of_nuclei, paint
from PIL import Image

from stqp.errors import InputError, UsageError
from stqp.evaluation.evaluate import evaluate_maps, evaluate_projects
from stqp.inference.maps import map_stem, read_map, write_map
from stqp.inference.one import Settings
from stqp.inference.run import predict_targets
from stqp.inference.targets import Selection
from stqp.polygonise import polygonise
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide

SOURCE = "predict:stub"
INST = grid_of_nuclei(500, 12, seed=4)
TYPES = np.arange(INST.max()) % 3 + 1


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "slides" / "one.png"
    path.parent.mkdir()
    Image.fromarray(paint(INST, TYPES)).save(path)
    return path


@pytest.fixture
def project(tmp_path, slide):
    """A project with the truth as annotations, and a region that a person drew."""
    polygons, ids = polygonise(INST)
    folder = tmp_path / "project"
    region = Polygons.from_rings([[0, 0], [500, 0], [500, 500], [0, 500]], [0, 4])
    truth = PathObjects.build(polygons, classes=[CLASSES[TYPES[i - 1] - 1] for i in ids])
    with QuPathProject.open(folder, "x") as opened, open_slide(slide, mpp=0.25) as image:
        entry = opened.add_image(image)
        entry.write_objects(PathObjects.concatenate([truth, PathObjects.build(region, classes="Region*")]))
    return folder


def objects_of(project, source=None):
    with QuPathProject.open(project, "r") as opened:
        objects = opened.entries[0].read_objects()
    if source is None:
        return objects
    column = objects.metadata.get("stqp.source", np.full(len(objects), None))
    return objects.take(column == source)


def test_detections_join_a_project_and_replace_only_themselves(project):
    before = objects_of(project)
    record, failed = predict_targets(ColourNetwork(), [project])
    assert not failed and record.counts["nuclei"] == INST.max()
    first = objects_of(project, SOURCE)
    assert len(first) == INST.max() and (first.kind == ObjectKind.DETECTION).all()
    assert set(first.classes) == set(CLASSES)
    total = sum(first.measurements[f"Probability: {name}"] for name in CLASSES)
    np.testing.assert_allclose(total, 0.95, atol=0.01)
    assert np.isfinite(first.probability).all()
    for name in ("Nucleus: Area µm^2", "Nucleus: Perimeter µm", "Nucleus: Circularity"):
        assert (first.measurements[name] > 0).all()
    np.testing.assert_allclose(first.measurements["Nucleus: Area µm^2"], first.polygons.area() / 16, rtol=1e-5)

    predict_targets(ColourNetwork(), [project])
    second = objects_of(project, SOURCE)
    assert sorted(second.ids) == sorted(first.ids)
    other = ColourNetwork()
    other.name = "other"
    predict_targets(other, [project])
    assert len(objects_of(project)) == len(before) + 2 * INST.max()
    after = objects_of(project)
    kept = after.take(after.kind == ObjectKind.ANNOTATION)
    assert kept.ids.tolist() == before.ids.tolist()
    np.testing.assert_array_equal(kept.polygons.coords, before.polygons.coords)


def test_corrections_stay(project):
    predict_targets(ColourNetwork(), [project])
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entries[0]
        objects = entry.read_objects()
        mine = np.flatnonzero(objects.kind == ObjectKind.DETECTION)[:3]
        corrected = objects.take(mine)
        corrected.classes[:] = "Dead"
        replaced = set(corrected.ids.tolist())
        entry.write_objects(corrected, replace=lambda p: np.isin(p.ids.astype(str), [*replaced]))
    record, _ = predict_targets(ColourNetwork(), [project])
    found = objects_of(project, SOURCE)
    assert len(found) == INST.max() == len(set(found.ids))
    assert set(found.ids[found.classes == "Dead"]) == replaced
    assert record.results["images"][0]["counts"]["corrected nuclei kept"] == 3


def test_the_record_maps_and_geojson_lie_beside(project, tmp_path):
    predict_targets(ColourNetwork(), [project], Settings(geojson=True, maps=tmp_path / "maps"))
    with QuPathProject.open(project, "r") as opened:
        folder = opened.entries[0].stqp_folder
    record = json.loads((folder / "predict-stub.json").read_text())
    assert record["counts"]["nuclei written"] == INST.max()
    assert record["results"]["source"] == SOURCE
    geojson = json.loads((folder / "predict-stub.geojson").read_text())
    assert len(geojson["features"]) == INST.max()
    found = read_map(tmp_path / "maps" / "one.npz")
    assert found.classes == dict(enumerate(CLASSES, start=1))
    assert ((found.inst > 0) == (INST > 0)).mean() > 0.999

    names = dict(enumerate(CLASSES, start=1))
    (tmp_path / "truth").mkdir()
    np.savez(tmp_path / "truth" / "one.npz", inst=INST, ids=np.unique(INST)[1:], types=TYPES)
    (tmp_path / "truth" / "classes.json").write_text(json.dumps(names))
    by_maps = evaluate_maps(tmp_path / "truth", tmp_path / "maps")
    by_project = evaluate_projects(str(project), str(project))
    assert by_maps["classes"] == by_project["classes"]
    assert by_project["pooled"]["ece"] > 0
    assert by_maps["pooled"].pop("ece") == pytest.approx(by_project["pooled"]["ece"], abs=1e-6)
    per_class = by_maps["pooled"].pop("per_class")
    for name, values in per_class.items():
        assert by_project["pooled"]["per_class"][name] == pytest.approx(values)
    for key, value in by_maps["pooled"].items():
        assert by_project["pooled"][key] == pytest.approx(value), key
    assert by_maps["pooled"]["f_d"] == 1 and by_maps["pooled"]["type_f1_macro"] == 1


def test_slides_and_folders_go_to_a_new_project(slide, tmp_path):
    Image.fromarray(paint(INST[:300, :200], TYPES)).save(slide.with_name("two.png"))
    record, failed = predict_targets(ColourNetwork(), [slide.parent], Settings(mpp=0.25), project=tmp_path / "new")
    assert not failed and record.counts["images predicted"] == 2
    predict_targets(ColourNetwork(), [slide], Settings(mpp=0.25), project=tmp_path / "new")
    with QuPathProject.open(tmp_path / "new", "r") as opened:
        assert [e.name for e in opened.entries] == ["one.png", "two.png"]
        assert [e.mpp for e in opened.entries] == pytest.approx([0.25, 0.25])
        assert len(opened.entry("one.png").read_objects()) == INST.max()
        assert set(opened.classes) >= set(CLASSES)
    with pytest.raises(UsageError, match="--project"):
        predict_targets(ColourNetwork(), [slide])


def test_one_failure_does_not_stop_the_others(slide, tmp_path):
    (slide.parent / "broken.tif").write_bytes(b"no image")
    record, failed = predict_targets(
        ColourNetwork(), [slide.parent, tmp_path / "absent.svs"], Settings(mpp=0.25), project=tmp_path / "new"
    )
    assert len(failed) == 2 and record.skipped["targets that failed"] == 2
    assert any("broken.tif" in f for f in failed) and any("absent.svs" in f for f in failed)
    assert record.counts["images predicted"] == 1
    with QuPathProject.open(tmp_path / "new", "r") as opened:
        assert [e.name for e in opened.entries] == ["one.png"]


def test_a_wrong_image_or_name_is_an_error(project, slide):
    with pytest.raises(InputError, match=r"no project has the image two\.png"):
        predict_targets(ColourNetwork(), [project], selection=Selection(["two.png"]))
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(slide)
    _, failed = predict_targets(ColourNetwork(), [project])
    assert "500 x 500" in failed[0] and "100 x 100" in failed[0]
    slide.unlink()
    _, failed = predict_targets(ColourNetwork(), [project])
    assert "image file" in failed[0]


def test_held_out_blocks_are_predicted_and_scored_alone(project, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    boxes = [[0, 0, 250, 250], [250, 250, 500, 400]]
    split = {"training": [], "validation": [{"entry": "one.png", "project": str(project), "boxes": boxes}]}
    manifest = {"architecture": "lite", "classes": CLASSES, "mpp": 0.25, "split": split}
    (run / "manifest.json").write_text(json.dumps(manifest))
    predict_targets(ColourNetwork(), [project])
    everywhere = objects_of(project, SOURCE)
    predict_targets(ColourNetwork(), [project], held_out=run)
    again = objects_of(project, SOURCE)
    assert sorted(again.ids) == sorted(everywhere.ids)  # what lies elsewhere stayed
    whole = evaluate_projects(str(project), str(project))
    held = evaluate_projects(str(project), f"{project}::one.png", held_out=run)
    centre = objects_of(project).take(np.arange(INST.max())).polygons.centroid()
    inside = sum(((centre >= b[:2]) & (centre < b[2:])).all(axis=1).sum() for b in boxes)
    assert whole["pooled"]["n_true"] == INST.max()
    assert held["pooled"]["n_true"] == inside
    assert held["pooled"]["pq"] > 0.99


def test_stems_of_maps():
    assert map_stem("a.ome.tif") == "a" and map_stem("slide 1.svs") == "slide_1" and map_stem("train_1") == "train_1"
    assert map_stem("case.12") == "case.12"


def test_maps_are_read_back(tmp_path):
    inst = np.zeros((5, 6), np.int32)
    inst[1:3, 1:3], inst[4, 4] = 1, 3
    write_map(tmp_path / "a.npz", inst, np.array([2, 1, 0]), ["A", "B"])
    found = read_map(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.inst, inst)
    assert found.ids.tolist() == [1, 3] and found.types.tolist() == [2, 0] and found.classes == {1: "A", 2: "B"}
    np.savez(tmp_path / "b.npz", other=inst)
    with pytest.raises(InputError, match="'inst'"):
        read_map(tmp_path / "b.npz")
    (tmp_path / "c.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_map(tmp_path / "c.npy")
