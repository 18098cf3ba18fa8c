"""Whole files, class maps, records, devices."""

import errno
import json

import numpy as np
import pytest

from stqp import files
from stqp.errors import EnvironmentProblem, InputError
from stqp.record import RunRecord
from stqp.taxonomy import UNKNOWN, VISUAL_CLASSES, color_of, map_labels, ordered, read_class_map


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "a" / "f.txt"
    files.write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["f.txt"]


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_what_the_disk_refuses_is_said(tmp_path, code, words):
    with pytest.raises(EnvironmentProblem, match=words) as caught, files.replacing(tmp_path / "f"):
        raise OSError(code, "no")
    assert caught.value.exit_code == 4 and not [*tmp_path.iterdir()]


def test_json_has_no_nan(tmp_path):
    files.write_json(tmp_path / "f.json", {"a": float("nan"), "b": [1.5, float("inf")], "µ": "ß"})
    text = (tmp_path / "f.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [1.5, None], "µ": "ß"} and "µ" in text


def test_classes_have_pannukes_order():
    names = ["Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial"]
    assert [(c.id, c.name) for c in VISUAL_CLASSES] == [*enumerate(names, start=1)]
    assert ordered(["zebra", "Dead", UNKNOWN, "Neoplastic", "Ignore*", "ant"]) == ["Neoplastic", "Dead", "ant", "zebra"]
    assert color_of("zebra") == color_of("zebra") != color_of("ant")


def test_class_map(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("label,class\nT cell,Inflammatory\nblur,\n\nfog,unknown\n", encoding="utf-8-sig")
    mapped = read_class_map(path)
    assert mapped == {"T cell": "Inflammatory", "blur": UNKNOWN, "fog": UNKNOWN}
    assert map_labels(["T cell", "?"], mapped) == ["Inflammatory", UNKNOWN]
    path.write_text("a\tDead\nb\tDead\n")
    assert read_class_map(path) == {"a": "Dead", "b": "Dead"}


@pytest.mark.parametrize(
    ("text", "words"), [("", "empty"), ("a,Dead\na,Connective\n", "two classes"), ("only\n", "one column")]
)
def test_bad_class_map(tmp_path, text, words):
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_class_map(tmp_path / "map.csv")


def test_record(tmp_path):
    record = RunRecord("test", {"path": tmp_path, "number": np.int64(3), "none": None})
    (tmp_path / "in").write_text("x")
    record.add_input(tmp_path / "in")
    record.count("nuclei", np.int64(12345))
    record.skip("too small", 2)
    record.skip("too small", 3)
    record.skip("never", 0)
    record.warn("look")
    record.results["map"] = np.zeros((1, 2))
    record.write(tmp_path / "r.json")
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["arguments"] == {"path": str(tmp_path), "number": 3, "none": None}
    assert saved["skipped"] == {"too small": 5} and saved["results"]["map"] == [[0.0, 0.0]]
    assert saved["inputs"][0]["bytes"] == 1 and "numpy" in saved["versions"]
    assert record.summary().splitlines() == ["nuclei: 12,345", "skipped: 5 too small", "warning: look"]
