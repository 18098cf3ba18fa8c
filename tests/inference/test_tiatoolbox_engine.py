import numpy as np
import pytest
from perfect_maps import CLASSES, ColourNetwork, grid_of_nuclei, paint
from PIL import Image

from stqp.errors import InputError, UsageError
from stqp.evaluation.scores import score_maps
from stqp.inference.one import Settings
from stqp.inference.run import predict_targets
from stqp.inference.tiatoolbox_engine import pixels_of, predict_with_tiatoolbox
from stqp.polygonise import polygonise
from stqp.polygons import Polygons
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide


def contours_of(inst):
    """What TIAToolbox makes of an instance map: OpenCV's contours, one each."""
    import cv2

    rings = []
    for label in range(1, inst.max() + 1):
        found, _ = cv2.findContours((inst == label).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        rings.append(found[0][:, 0].astype(float))
    return Polygons(np.concatenate(rings), np.cumsum([0, *map(len, rings)]), np.arange(len(rings) + 1, dtype=np.int64))


def test_contours_through_centres_become_the_pixels_they_stand_for():
    inst = grid_of_nuclei(400, 12, seed=3)
    inst[5, 5:9], inst[0, 0] = 145, 146  # a line, a pixel
    inst[390:396, 390:396] = 147
    inst[392, 391:399] = 147  # a spike
    polygons, index = pixels_of(contours_of(inst))
    expected, ids = polygonise(inst)
    assert index.tolist() == list(range(147))
    assert ids.tolist() == list(range(1, 148))
    np.testing.assert_array_equal(polygons.area(), expected.area())
    np.testing.assert_allclose(polygons.centroid(), expected.centroid())
    assert len(pixels_of(Polygons.empty())[0]) == 0
    one_empty = Polygons(np.array([[1.0, 1.0]]), np.array([0, 0, 1]), np.array([0, 1, 2]))
    assert pixels_of(one_empty)[1].tolist() == [1]


def test_the_same_network_gives_the_same_nuclei_in_tiatoolboxs_engine(tmp_path):
    inst = grid_of_nuclei(420, 10, seed=1)
    types = np.arange(inst.max()) % 3 + 1
    Image.fromarray(paint(inst, types)).save(tmp_path / "s.png")
    _, failed = predict_targets(
        ColourNetwork(), [tmp_path / "s.png"], Settings(mpp=0.25, engine="tiatoolbox", tissue=False),
        project=tmp_path / "p",
    )  # fmt: skip
    assert not failed
    with QuPathProject.open(tmp_path / "p", "r") as opened:
        objects = opened.entries[0].read_objects()
    assert len(objects) == inst.max()
    drawn = objects.polygons.rasterize((420, 420))
    ids = np.array([CLASSES.index(name) + 1 for name in objects.classes])
    scores = score_maps(inst, types, drawn, ids, 0.25, CLASSES)
    assert scores["dq"] == 1 and scores["sq"] > 0.999 and scores["type_accuracy"] == 1


@pytest.mark.parametrize(("mpp", "said"), [(0.25, False), (0.2125, False), (0.5, True)])
def test_coarse_networks_are_warned_of(tmp_path, caplog, mpp, said):
    Image.fromarray(paint(grid_of_nuclei(300, 7), np.ones(49, int))).save(tmp_path / "s.png")
    with open_slide(tmp_path / "s.png", mpp=mpp) as slide:
        predict_with_tiatoolbox(slide, ColourNetwork(mpp=mpp), tissue=False)
    assert ("at the network's 0.5 it loses nuclei" in caplog.text) == said


def test_what_tiatoolbox_cannot_run_is_said(tmp_path):
    class Other(ColourNetwork):
        tiatoolbox_network = None

    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "s.png")
    with open_slide(tmp_path / "s.png", mpp=0.25) as slide:
        with pytest.raises(UsageError, match="TIAToolbox's engine"):
            predict_with_tiatoolbox(slide, Other())

        class Broken(ColourNetwork):
            def predict(self, batch):
                raise RuntimeError("no such layer")

        with pytest.raises(InputError, match="no such layer"):
            predict_with_tiatoolbox(slide, Broken(), tissue=False)
