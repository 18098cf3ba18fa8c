import json
import zipfile

import numpy as np
import pytest

from stqp.alignment import read_alignment
from stqp.alignment.keypoints import fit_keypoints
from stqp.errors import InputError, UsageError

HEADER = "fixedX,fixedY,alignmentX,alignmentY"


def similarity(scale=1.2, degrees=-89.5, mirror=False, offset=(30.0, 700.0)):
    angle = np.deg2rad(degrees)
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirror:
        matrix[:2, 0] *= -1
    matrix[:2, 2] = offset
    return matrix


def points(matrix, n=9, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    he = rng.uniform(0, 20000, (n, 2))
    return he @ matrix[:2, :2].T + matrix[:2, 2] + rng.normal(0, noise, (n, 2)), he


def text(fixed, he):
    rows = [f"{float(f[0])!r},{float(f[1])!r},{float(h[0])!r},{float(h[1])!r}" for f, h in zip(fixed, he, strict=True)]
    return "\n".join([HEADER, *rows, ""])


def matrix_text(matrix):
    return "".join(",".join(repr(float(v)) for v in row) + "\n" for row in matrix)


@pytest.mark.parametrize("model", ["affine", "similarity"])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", [0, -89.5, 180, 33])
def test_exact_points_give_the_exact_map(tmp_path, model, mirror, degrees):
    matrix = similarity(degrees=degrees, mirror=mirror)
    path = tmp_path / "keypoints.csv"
    path.write_text(text(*points(matrix)))
    aligned = read_alignment(path, model)
    np.testing.assert_allclose(aligned.matrix, matrix, atol=1e-7)
    assert aligned.mirrored == mirror and aligned.residuals.max() < 1e-6 and not aligned.warnings(0.2125)


def test_least_squares_beat_any_three_points():
    matrix = similarity()
    fixed, he = points(matrix, 30, noise=4.0)
    fit = fit_keypoints(fixed, he, "k.csv")
    corners = np.array([[0, 0], [20000, 0], [0, 20000], [20000, 20000.0]])

    def miss(m):
        return np.hypot(*(corners @ (m - matrix)[:2, :2].T + (m - matrix)[:2, 2]).T).max()

    assert miss(fit.matrix) < miss(fit_keypoints(fixed[:3], he[:3], "k.csv").matrix)
    assert miss(fit_keypoints(fixed, he, "k.csv", "similarity").matrix) < miss(fit.matrix) + 3
    assert np.sqrt((fit.residuals**2).mean()) == pytest.approx(4 * np.sqrt(2), rel=0.3) and not len(fit.outliers)


@pytest.mark.parametrize("model", ["affine", "similarity"])
@pytest.mark.parametrize("wrong", [[3], [0, 7], [1, 2, 8]])
def test_outliers_are_named(tmp_path, model, wrong):
    fixed, he = points(similarity(), 14, noise=2.0)
    fixed[wrong] += [[300, -150], [-90, 200], [150, 150]][: len(wrong)]
    path = tmp_path / "keypoints.csv"
    path.write_text(text(fixed, he))
    aligned = read_alignment(path, model)
    assert aligned.keypoints.outliers.tolist() == wrong
    warnings = aligned.warnings(0.2125)
    assert [w.split(" of ")[0] for w in warnings] == [f"keypoint {i + 1}" for i in wrong]
    away = np.hypot(300, 150) * 0.2125
    if wrong == [3]:
        assert f"{away:.0f}"[:1] in warnings[0] and "µm from where the others put it" in warnings[0]


def test_good_points_of_any_number_are_no_outliers():
    for seed in range(20):
        for n in (3, 4, 5, 6, 12):
            for model in ("affine", "similarity"):
                fit = fit_keypoints(*points(similarity(), n, 3.0, seed), "k.csv", model)
                assert not len(fit.outliers), (seed, n, model)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "three keypoints that are not on one line, found 0"),
        ("1,1,1,1\n2,2,5,2\n", "found 2"),
        ("1,1,1,1\n2,2,2,2\n3,3,3,3\n4,4,4,4\n", "found 4 on one line"),
        ("5,5,1,1\n5,5,1,1\n5,5,1,1\n", "found 3 on one line"),
        ("1,1,1,1\n2,5,2\n3,3,3,3\n", "expected four numbers, found '2,5,2' in row 3"),
        ("1,1,1,1\n2,x,2,2\n3,3,3,3\n", "in row 3 of the keypoints"),
        ("1,5,2,5,3,5,4,5\n", "is the decimal sign a comma"),
        ("1,1,1,1\n2,9,nan,2\n3,3,3,3\n", "row 3 of the keypoints .* not finite"),
    ],
)
@pytest.mark.parametrize("model", ["affine", "similarity"])
def test_broken_keypoints_are_refused(tmp_path, model, body, message):
    path = tmp_path / "keypoints.csv"
    path.write_text(HEADER + "\n" + body)
    with pytest.raises(InputError, match=message):
        read_alignment(path, model)


def test_unknown_model_is_refused():
    with pytest.raises(UsageError, match="expected one of affine, similarity"):
        fit_keypoints(*points(similarity()), "k.csv", "rigid")


def zipped(tmp_path, shadow=None, **members):
    path = tmp_path / "alignment.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_csv", ".csv"), content)
        if shadow:
            archive.writestr(shadow, "x")
    return path


def test_zip_of_both_is_held_together(tmp_path):
    matrix = similarity()
    path = zipped(
        tmp_path,
        matrix_csv=matrix_text(matrix),
        keypoints_csv=text(*points(matrix, noise=1)),
        shadow="__MACOSX/._matrix.csv",
    )
    aligned = read_alignment(path)
    np.testing.assert_allclose(aligned.matrix, matrix)
    assert len(aligned.residuals) == 9 and aligned.is_file and not aligned.warnings(0.2125)
    other = similarity(offset=(130.0, 700.0))
    path = zipped(tmp_path, he__matrix_csv=matrix_text(matrix), he__keypoints_csv=text(*points(other)))
    (warning,) = read_alignment(path).warnings(0.2125)
    assert "up to 21." in warning and "µm apart; took the matrix" in warning
    path = zipped(tmp_path, keypoints_csv=text(*points(other)))
    np.testing.assert_allclose(read_alignment(path).matrix, other, atol=1e-7)
    path = zipped(tmp_path, matrix_csv=matrix_text(matrix))
    np.testing.assert_allclose(read_alignment(path).matrix, matrix)


def test_broken_zips_are_refused(tmp_path):
    matrix = matrix_text(similarity())
    for members, message in (
        ({"notes.txt": "x"}, "expected matrix.csv or keypoints.csv .* found notes.txt"),
        ({}, "found nothing"),
        ({"a__matrix_csv": matrix, "b__matrix_csv": matrix}, "holds several matrix.csv"),
        ({"matrix_csv": "1,2\n"}, r"found 1x2, in the alignment .*zip \(matrix.csv\)"),
        ({"matrix_csv": matrix, "keypoints_csv": matrix}, "lacks the header"),
    ):
        with pytest.raises(InputError, match=message):
            read_alignment(zipped(tmp_path, **members))
    whole = zipped(tmp_path, matrix_csv=matrix).read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2], whole[:40] + b"\xff" * 9 + whole[49:]):
        (tmp_path / "alignment.zip").write_bytes(content)
        with pytest.raises(InputError):
            read_alignment(tmp_path / "alignment.zip")


def test_numbers_as_text_json_and_npy(tmp_path):
    matrix = similarity()
    six, nine = matrix[:2].ravel().tolist(), matrix.ravel().tolist()
    java = dict(zip(("m00", "m01", "m02", "m10", "m11", "m12"), six, strict=True))
    sources = [",".join(map(repr, six)), " ".join(map(repr, nine)), str(matrix[:2].tolist())]
    for name, content in {
        "six": six,
        "nine": nine,
        "rows": matrix.tolist(),
        "java": java,
        "in": {"matrix": six},
    }.items():
        sources.append(tmp_path / f"{name}.json")
        sources[-1].write_text(json.dumps(content))
    for name, content in {"two": matrix[:2], "three": matrix, "six": np.array(six)}.items():
        sources.append(tmp_path / f"{name}.npy")
        np.save(sources[-1], content)
    for source in sources:
        aligned = read_alignment(source)
        np.testing.assert_allclose(aligned.matrix, matrix, err_msg=str(source))
        assert aligned.is_file == (not isinstance(source, str))


def test_wrong_numbers_are_refused(tmp_path):
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}], object), allow_pickle=True)
    empty = tmp_path / "empty.npy"
    empty.write_bytes(b"")
    rest = {"words.json": '{"a": 1}', "cut.json": "[1, 2", "text.json": '["a"]', "ragged.json": "[[1,2],[3]]"}
    for name, content in rest.items():
        (tmp_path / name).write_text(content)
    for source, message in (
        ("1,2,3,4,5", "expected 2x3 or 3x3 numbers, found 5"),
        ("1 0 0 0 1 nan", "not finite"),
        ("1,0,0,0,1,0,1,0,1", "as the last row"),
        ("1,1,0,1,1,0", "singular"),
        (objects, "cannot be read as an array"),
        (empty, "cannot be read as an array"),
        *((tmp_path / name, "expected 2x3 or 3x3 numbers, row by row") for name in rest),
    ):
        with pytest.raises(InputError, match=message):
            read_alignment(source)
