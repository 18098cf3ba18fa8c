import numpy as np
import pytest

from stqp.alignment import IDENTITY, read_alignment
from stqp.errors import InputError


def write(tmp_path, text):
    path = tmp_path / "alignment.csv"
    path.write_text(text)
    return path


def test_points_go_from_um_to_he_and_back(tmp_path):
    matrix = np.array([[0.01, 1.29, 800.0], [-1.29, 0.01, 8000.0], [0, 0, 1]])
    path = write(tmp_path, "\n".join(",".join(map(repr, row.tolist())) for row in matrix))
    aligned = read_alignment(path)
    he = np.array([120.5, 340.25, 1.0])
    um = 0.2125 * (matrix @ he)[:2]
    back = aligned.um_to_he(0.2125) @ [*um, 1]
    np.testing.assert_allclose(back, he, atol=1e-9)
    assert aligned.scale == pytest.approx(np.hypot(0.01, 1.29))
    assert not aligned.mirrored and not aligned.warnings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a 3x3 matrix, found nothing"),
        ("1,0\n0,1\n", "found 2x2"),
        ("1,0,0\n0,1,0\n", "found 2x3"),
        ("1,0,0\n0,nan,0\n0,0,1\n", "not finite"),
        ("1,0,0\n0,inf,0\n0,0,1\n", "not finite"),
        ("1,2,0\n2,4,0\n0,0,1\n", "singular"),
        ("0,0,0\n0,0,0\n0,0,1\n", "singular"),
        ("1,0,0\n0,1,0\n5,6,1\n", "expected 0,0,1 as the last row of an affine matrix, found 5,6,1"),
        ("a,b,c\n1,0,0\n0,1,0\n0,0,1\n", "neither a 3x3 matrix"),
        ("1,0,0\n0,1\n0,0,1\n", "neither a 3x3 matrix"),
    ],
)
def test_broken_matrices_are_refused(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as error:
        read_alignment(path)
    assert str(path) in str(error.value)


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_alignment(tmp_path / "none.csv")
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00\x80" * 10)
    with pytest.raises(InputError, match="cannot be read as text"):
        read_alignment(path)


def test_scale_is_held_against_the_slide(tmp_path):
    aligned = read_alignment(write(tmp_path, "1.29,0,0\n0,1.29,0\n0,0,1\n"))
    implied = 1.29 * 0.2125
    assert aligned.mpp(0.2125, None, "he.tif") == pytest.approx(implied)
    assert aligned.mpp(0.2125, implied * 1.04, "he.tif") == implied * 1.04
    with pytest.raises(InputError, match=r"implies 0\.2741 µm per H&E pixel, but he.tif has 0\.5; likely this is the"):
        aligned.mpp(0.2125, 0.5, "he.tif")


def test_scale_error_names_the_likeliest_reason(tmp_path):
    def reason(scale, slide_mpp):
        path = write(tmp_path, f"{scale},0,0\n0,{scale},0\n0,0,1\n")
        with pytest.raises(InputError) as error:
            read_alignment(path).mpp(0.2125, slide_mpp, "he.tif")
        return str(error.value)

    assert "inverted" in reason(0.2125 / 0.5, 0.5)
    assert "level of the pyramid whose pixels are 4 times as large" in reason(4 * 0.25 / 0.2125, 0.25)
    assert "another image" in reason(3 * 0.25 / 0.2125, 0.25)
    with pytest.raises(InputError, match="not in the frame of the morphology image"):
        read_alignment(IDENTITY).mpp(0.2125, 0.5, "he.tif")
    assert read_alignment(IDENTITY).mpp(0.2125, 0.2125, "he.tif") == 0.2125


def test_level_in_the_message_is_relative_to_the_full_resolution(tmp_path):
    # made on pixels of 1 µm, four times as large as those of the slide
    path = write(tmp_path, f"{1 / 0.2125},0,0\n0,{1 / 0.2125},0\n0,0,1\n")
    with pytest.raises(InputError, match=r"implies 1 µm per H&E pixel, but he\.tif has 0\.25"):
        read_alignment(path).mpp(0.2125, 0.25, "he.tif")


def test_mirrored_slides_are_legal_and_stretched_ones_are_told(tmp_path):
    aligned = read_alignment(write(tmp_path, "-1.2,0,900\n0,1.2,0\n0,0,1\n"))
    assert aligned.mirrored and aligned.scale == pytest.approx(1.2) and not aligned.warnings()
    stretched = read_alignment(write(tmp_path, "1.5,0,0\n0,1,0\n0,0,1\n"))
    assert "1.50 times" in stretched.warnings()[0]


def test_keypoints_are_known_by_their_header_and_fitted_over_all_points(tmp_path):
    rng = np.random.default_rng(0)
    matrix = np.array([[0.2, 1.2, 30.0], [-1.2, 0.2, 700.0], [0, 0, 1]])
    he = rng.uniform(0, 1000, (9, 2))
    fixed = (np.c_[he, np.ones(9)] @ matrix.T)[:, :2] + rng.normal(0, 0.5, (9, 2))
    rows = "\n".join(f"{f[0]},{f[1]},{h[0]},{h[1]}" for f, h in zip(fixed, he, strict=True))
    aligned = read_alignment(write(tmp_path, "fixedX,fixedY,alignmentX,alignmentY\n" + rows))
    np.testing.assert_allclose(aligned.matrix[:2, :2], matrix[:2, :2], atol=0.01)
    assert len(aligned.residuals) == 9 and 0 < aligned.residuals.max() < 2
    for few in ("", "1,1,1,1\n2,2,2,2\n", "1,1,1,1\n2,2,2,2\n3,3,3,3\n"):
        with pytest.raises(InputError, match="at least three keypoints"):
            read_alignment(write(tmp_path, "fixedX,fixedY,alignmentX,alignmentY\n" + few))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x,y,1\n1,0,0\n0,1,0\n0,0,1\n", "delete its first row, which is a header"),
        (b"1,0,0\n0,1,0\n", "expected a 3x3 matrix, found 2x3"),
        (b"0,01;1,17;812,4\n-1,17;0,01;8436,4\n0;0;1\n", "row 1 .* has semicolons; save it with commas"),
        (b"0,01,1,17,812,4\n1,17,0,01,84,4\n0,0,0,0,1,0\n", "found 3x6.*are its decimal signs commas"),
        (b"\x00\x01\x02\x03", "cannot be read as text"),
        ("1,0,0\n0,1,0\n0,0,1\n".encode("utf-16"), "cannot be read as text"),
        (b"\n\n  \n", "found nothing"),
        (b"1,0,0\n0,1e400,0\n0,0,1\n", "not finite"),
    ],
)
def test_files_that_people_make_by_accident(tmp_path, content, message):
    path = tmp_path / "alignment.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_alignment(path)
    assert str(path) in str(error.value)


def test_folder_is_no_alignment(tmp_path):
    with pytest.raises(InputError, match="does not exist; give a csv"):
        read_alignment(tmp_path)
