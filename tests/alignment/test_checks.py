import numpy as np
import pytest

from stqp.alignment import IDENTITY, Alignment, place, read_alignment
from stqp.alignment.checks import settle_direction
from stqp.alignment.placing import RESIDUAL_SHIFT, STAIN_CONTRAST
from stqp.errors import InputError, UsageError
from stqp.record import RunRecord


def put(scene, aligned, pixel_size=None, um=None, **options):
    record = RunRecord("test", {})
    pixel_size = scene.pixel_size if pixel_size is None else pixel_size
    return place(aligned, pixel_size, scene.slide, scene.um if um is None else um, record, **options), record


@pytest.fixture
def aligned(scene):
    return read_alignment(scene.sample.alignment)


def in_slide(aligned, change):
    """The alignment that puts nuclei where `change`, of H&E px, moves them."""
    return Alignment(aligned.matrix @ np.linalg.inv(np.array(change, float)), "a.csv", is_file=True)


def same_scale(scene, aligned):
    """Alignment and nuclei of a run whose pixels are as large as the H&E's: the scale tells nothing."""
    to_mpp = np.diag([scene.pixel_size / scene.mpp] * 2 + [1.0])
    return Alignment(to_mpp @ aligned.matrix, "a.csv", is_file=True)


def test_right_alignment_passes_and_is_measured(scene, aligned):
    placed, record = put(scene, aligned)
    assert record.counts["alignment"].startswith("good") and not record.warnings
    assert record.results["alignment"]["verdict"] == "good" and placed.mpp == scene.mpp
    np.testing.assert_allclose(placed.polygons(scene.um).coords, scene.nuclei.coords)
    assert {*placed.measurements()} == {STAIN_CONTRAST, RESIDUAL_SHIFT} and placed.describe() == {}
    unmeasured, record = put(scene, aligned, qc=False)
    assert unmeasured.quality is None and unmeasured.measurements() == {} and "alignment" not in record.results


def test_pixel_size_speaks_first(scene, aligned):
    with pytest.raises(InputError, match=r"implies .* µm per H&E pixel.*inverted.*--alignment-direction"):
        put(scene, aligned.inverse())
    settled, spoke = settle_direction(aligned.inverse(), "auto", scene.pixel_size, scene.slide, scene.um)
    np.testing.assert_allclose(settled.matrix, aligned.matrix)
    assert spoke == "morphology-to-he, by the slide's pixel size"
    settled, spoke = settle_direction(aligned, "auto", scene.pixel_size, scene.slide, scene.um)
    assert settled is aligned and spoke.startswith("he-to-morphology")


def test_bounds_speak_next(scene, aligned):
    one = same_scale(scene, aligned)
    far = in_slide(one, [[1, 0, 40000], [0, 1, 0], [0, 0, 1]])
    with pytest.raises(InputError, match=r"nuclei lie outside of .*; likely it is of another image"):
        put(scene, far, scene.mpp)
    run = np.linalg.inv(one.um_to_he(scene.mpp))
    moved = scene.nuclei.transform(np.array([[1, 0, 9000], [0, 1, 9000], [0, 0, 1]]) @ run)  # µm far from the slide
    back = Alignment(np.linalg.inv(moved_to(scene, one, 9000)), "a.csv", is_file=True)
    with pytest.raises(InputError, match=r"outside of .*; likely the matrix is inverted \(--alignment-direction"):
        put(scene, back, scene.mpp, moved)
    placed, record = put(scene, back, scene.mpp, moved, direction="auto")
    assert record.counts["alignment's direction"] == "morphology-to-he, by the slide's bounds"
    assert placed.quality.verdict == "good"
    half = in_slide(aligned, [[1, 0, scene.slide.width * 0.7], [0, 1, 0], [0, 0, 1]])
    _, record = put(scene, half, qc=False)
    assert "of the nuclei lie on" in record.warnings[0] and record.warnings[0].startswith("only ")


def moved_to(scene, aligned, by):
    """Matrix from H&E px to the px of a run whose µm are those of `test_bounds_speak_next`."""
    run = np.linalg.inv(aligned.um_to_he(scene.mpp))
    um = np.array([[1, 0, by], [0, 1, by], [0, 0, 1]]) @ run
    return np.diag([1 / scene.mpp, 1 / scene.mpp, 1]) @ um


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("left to right", "mirrored left to right"),
        ("top to bottom", "mirrored top to bottom"),
        ("turned", "turned by 180 degrees"),
    ],
)
def test_stain_speaks_last(scene, aligned, change, words):
    w, h = scene.slide.width, scene.slide.height
    matrix = {
        "left to right": [[-1, 0, w], [0, 1, 0], [0, 0, 1]],
        "top to bottom": [[1, 0, 0], [0, -1, h], [0, 0, 1]],
        "turned": [[-1, 0, w], [0, -1, h], [0, 0, 1]],
    }[change]
    with pytest.raises(InputError, match=rf"no relation to the haematoxylin of .*; likely the slide is {words}"):
        put(scene, in_slide(aligned, matrix))


def test_direction_by_the_stain_alone(scene, aligned):
    # a half turn about the middle is its own inverse but for a small shift: scale and bounds fit both ways
    w, h = scene.slide.width, scene.slide.height
    turn = np.array([[-1, 0, w - 60.0], [0, -1, h - 40.0], [0, 0, 1]])
    step = np.array([[1, 0, 90.0], [0, 1, 70.0], [0, 0, 1]])
    matrix = step @ turn @ np.diag([1.0, 1, 1])
    matrix[:2, :2] = np.array([[np.cos(3.0), -np.sin(3.0)], [np.sin(3.0), np.cos(3.0)]])
    one = Alignment(matrix, "a.csv", is_file=True)
    um = scene.nuclei.transform(np.diag([scene.mpp, scene.mpp, 1]) @ matrix)
    for given in (one, one.inverse()):
        settled, spoke = settle_direction(given, "auto", scene.mpp, scene.slide, um)
        np.testing.assert_allclose(settled.matrix, matrix, atol=1e-9)
        assert "by the stain" in spoke or "by the slide's bounds" in spoke


def test_no_relation_without_a_reason_is_a_warning(scene, aligned):
    _, record = put(scene, in_slide(aligned, [[1, 0, 160], [0, 1, 130], [0, 0, 1]]))
    assert len(record.warnings) == 1 and "no relation between nuclei and stain" in record.warnings[0]


def test_direction_of_keypoints_and_identity(scene, aligned, tmp_path):
    path = tmp_path / "k.csv"
    path.write_text("fixedX,fixedY,alignmentX,alignmentY\n0,0,0,0\n9,0,9,0\n0,9,0,9\n")
    points = read_alignment(path)
    same = settle_direction(points, "auto", scene.pixel_size, scene.slide, scene.um)
    assert same == (points, "")
    with pytest.raises(UsageError, match="name their columns"):
        settle_direction(points, "morphology-to-he", scene.pixel_size, scene.slide, scene.um)
    identity = read_alignment(IDENTITY)
    assert settle_direction(identity, "auto", scene.pixel_size, scene.slide, scene.um) == (identity, "")
    with pytest.raises(UsageError, match="direction of the alignment"):
        put(scene, aligned, direction="both")


@pytest.mark.parametrize("kind", ["shift", "smooth"])
def test_refined_placement_moves_everything_alike(scene, aligned, kind):
    moved = in_slide(aligned, [[1, 0, 20], [0, 1, -12], [0, 0, 1]])
    placed, record = put(scene, moved, refine_by=kind)
    polygons = placed.polygons(scene.um)
    assert np.median(scene.miss(polygons)) < 0.15
    np.testing.assert_allclose(placed.points(scene.um.coords), polygons.coords)
    assert record.counts["refinement"].startswith(kind) and record.counts["alignment"].startswith("good")
    refinement = record.results["refinement"]
    assert refinement["before"]["verdict"] == "shifted" and refinement["after"]["verdict"] == "good"
    if kind == "shift":
        np.testing.assert_allclose(placed.aligned.matrix, aligned.matrix, atol=1)
        expected = placed.aligned.um_to_he(scene.pixel_size)
        np.testing.assert_allclose(placed.refined_to_he, expected, rtol=1e-9, atol=1e-6)
    _, record = put(scene, moved, refine_by=kind, refine_limit=3.0)
    if kind == "shift":
        assert any("beyond the bound of 3 µm" in w for w in record.warnings)
