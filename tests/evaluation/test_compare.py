import numpy as np
import pytest
from perfect_maps import CLASSES, grid_of_nuclei, paint
from PIL import Image

from stqp.errors import InputError, UsageError
from stqp.evaluation.compare import CLASS, ONLY_A, ONLY_B, OUTLINE, compare
from stqp.evaluation.predictions import Prediction, read_pair, read_prediction
from stqp.inference.detections import Detections
from stqp.inference.maps import write_map
from stqp.inference.table import write_table
from stqp.inference.writing import to_objects, write_detections
from stqp.polygonise import polygonise
from stqp.polygons import Polygons
from stqp.qupath.geojson import write_geojson
from stqp.qupath.project import QuPathProject
from stqp.report.comparison import compare_predictions
from stqp.slides import open_slide

INST = grid_of_nuclei(500, 12, seed=6)
TYPES = np.arange(144) % 3 + 1


def found(inst=INST, types=TYPES):
    polygons, ids = polygonise(inst)
    prob = np.full((len(ids), 4), 0.1)
    prob[np.arange(len(ids)), types[ids - 1]] = 0.7
    return Detections(polygons, prob, CLASSES, 0.5)


def prediction(polygons, classes):
    n = len(polygons)
    return Prediction("p", polygons, np.array(classes, object), np.arange(n).astype(str).astype(object), 0.5)


def changed():
    """The same with 5 nuclei less, 3 more, 7 of another class, and 2 moved by 2 µm."""
    inst, types = np.where(np.isin(INST, [10, 20, 30, 40, 50]), 0, INST), TYPES.copy()
    types[[3, 60, 61, 62, 63, 64, 65]] = types[[3, 60, 61, 62, 63, 64, 65]] % 3 + 1
    detections = found(inst, types)
    own = detections.polygons
    centre = own.centroid()
    small = np.flatnonzero(own.area() < 200)[:2]
    moved = own.coords.copy()
    moved[np.isin(own.vertex_owner, small)] += [0.0, 5.0]
    extra = own.take([0, 1, 2]).shift(900, 0)
    polygons = Polygons.concatenate([Polygons(moved, own.ring_offsets, own.geom_offsets), extra])
    prob = np.concatenate([detections.class_prob, detections.class_prob[:3]])
    assert len(centre) == 139
    return Detections(polygons, prob, CLASSES, 0.5)


def test_every_difference_is_found_and_nothing_else():
    a, b = found(), changed()
    result = compare(
        prediction(a.polygons, a.class_names), prediction(b.polygons, b.class_names), 0.5
    )  # fmt: skip
    said = result.summary()
    assert (said["nuclei_a"], said["nuclei_b"]) == (144, 142)
    assert (said["matched"], said["only_a"], said["only_b"], said["class_changes"]) == (139, 5, 3, 7)
    frame = result.differences()
    assert frame["what"].value_counts().to_dict() == {CLASS: 7, ONLY_A: 5, ONLY_B: 3, OUTLINE: 2}
    loose = frame[frame["what"] == OUTLINE]
    np.testing.assert_allclose(loose["distance_um"], 2.5)
    assert (loose["iou"] <= 0.5).all() and (loose["iou"] > 0).all()
    table = result.confusion()
    assert table[:3, :3].sum() == 139 and np.trace(table[:3, :3]) == 132
    assert table[:3, 3].sum() == 5 and table[3, :3].sum() == 3 and table[3, 3] == 0
    lost = frame[frame["what"] == ONLY_A]
    expected = a.polygons.take([9, 19, 29, 39, 49]).centroid()
    np.testing.assert_allclose(lost[["x_px", "y_px"]], expected[np.lexsort((expected[:, 0], expected[:, 1]))])
    # the other way round
    turned = compare(result.b, result.a, 0.5)
    np.testing.assert_array_equal(turned.confusion(), table.T)


def test_the_same_and_nothing():
    a = prediction(found().polygons, found().class_names)
    same = compare(a, a, 0.5)
    assert not len(same.differences()) and same.summary()["agreement"] == 1 and same.summary()["mean_iou"] == 1
    nothing = prediction(Polygons.empty(), [])
    assert compare(a, nothing, 0.5).summary()["only_a"] == 144
    assert compare(nothing, nothing, 0.5).summary()["agreement"] is None


@pytest.fixture
def everywhere(tmp_path):
    """The same nuclei, and the changed ones, in a project, tables, GeoJSON and an instance map."""
    Image.fromarray(paint(INST, TYPES)).save(tmp_path / "s.png")
    both = {"a": found(), "b": changed()}
    with QuPathProject.open(tmp_path / "project", "x") as project, open_slide(tmp_path / "s.png", mpp=0.5) as slide:
        entry = project.add_image(slide)
        for name, detections in both.items():
            write_detections(entry, detections, name)
    for name, detections in both.items():
        objects = to_objects(detections, "s.png", name)
        write_table(tmp_path / f"{name}.parquet", detections, objects.ids, "s.png", name, {CLASSES[0]: (1, 2, 3)})
        write_geojson(tmp_path / f"{name}.geojson", objects)
        write_map(
            tmp_path / f"{name}.npz", detections.instance_map(1500, 520), detections.class_ids, detections.classes
        )
    return tmp_path


def test_predictions_are_read_from_wherever_they_are(everywhere):
    project = str(everywhere / "project")
    pairs = [
        read_pair(project, project),
        read_pair(f"{project}::s.png", f"{project}::s.png", ("a", "b")),
        *(read_pair(*(str(everywhere / f"{name}{suffix}") for name in "ab")) for suffix in (".parquet", ".geojson")),
        read_pair(str(everywhere / "a.npz"), f"{project}/project.qpproj", (None, "b")),
    ]
    for a, b in pairs:
        said = compare(a, b, 0.5).summary()
        counts = (said["matched"], said["only_a"], said["only_b"], said["class_changes"])
        assert counts == (139, 5, 3, 7), (a.label, b.label)
    assert pairs[0][0].mpp == 0.5 and pairs[0][0].slide == everywhere / "s.png"
    assert pairs[2][0].mpp == 0.5 and pairs[2][0].colors[CLASSES[0]] == (1, 2, 3)
    with pytest.raises(UsageError, match="predicted by a, b; choose"):
        read_prediction(project)
    with pytest.raises(InputError, match="no nuclei predicted by 'c', but by a, b"):
        read_prediction(project, "c")
    with pytest.raises(InputError, match="found nothing at"):
        read_prediction(str(everywhere / "absent.parquet"))
    (everywhere / "x.txt").write_text("x")
    with pytest.raises(InputError, match=r"\.parquet, \.geojson"):
        read_prediction(str(everywhere / "x.txt"))


def test_what_differs_is_drawn_and_listed(everywhere):
    import json

    import pandas as pd

    project = str(everywhere / "project")
    record = compare_predictions(project, project, everywhere / "out")
    assert record.counts["only in A"] == 5 and record.counts["another class"] == 7
    frame = pd.read_csv(everywhere / "out" / "compare.csv")
    assert len(frame) == 17 and set(frame.loc[frame["what"] == ONLY_B, "class_a"].isna()) == {True}
    picture = np.asarray(Image.open(everywhere / "out" / "compare.png"))
    assert picture.shape[1] >= 500 and (picture == [214, 90, 0]).all(axis=2).any()
    text = (everywhere / "out" / "compare.html").read_text(encoding="utf-8")
    assert "139 nuclei are in both, 5 only in A and 3 only in B" in text and "http" not in text
    assert text.count("<img") == 3  # a map, and a place in each of two fields
    told = json.loads((everywhere / "out" / "compare.json").read_text(encoding="utf-8"))
    assert told["results"]["matched"] == 139
    # without an image, and without any nuclei
    record = compare_predictions(*(str(everywhere / f"{n}.npz") for n in "ab"), everywhere / "maps")
    assert "0.25 is taken" in record.warnings[0]
    assert "--slide" in (everywhere / "maps" / "compare.html").read_text(encoding="utf-8")
    np.savez(everywhere / "none.npz", inst=np.zeros((50, 60), int))
    record = compare_predictions(*[str(everywhere / "none.npz")] * 2, everywhere / "none", mpp=0.5)
    assert record.counts["nuclei in A"] == 0
    write_table(everywhere / "c.parquet", found(), to_objects(found(), "x", "y").ids, "x", "y", {})
    from dataclasses import replace

    coarse = replace(found(), mpp=1.0)
    write_table(everywhere / "d.parquet", coarse, to_objects(coarse, "x", "y").ids, "x", "y", {})
    with pytest.raises(InputError, match=r"0\.5 µm per pixel, but .* 1"):
        compare_predictions(str(everywhere / "c.parquet"), str(everywhere / "d.parquet"), everywhere / "x")


def test_the_command(everywhere):
    from click.testing import CliRunner
    from stqp_cli.compare import command

    args = [
        str(everywhere / "a.geojson"),
        str(everywhere / "b.geojson"),
        "--out",
        str(everywhere / "o"),
        "--mpp",
        "0.5",
    ]
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 0, result.exception
    assert "matched: 139" in result.output and "compare.html" in result.output
