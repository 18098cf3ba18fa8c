"""Projects that QuPath wrote: opened and changed without a byte of the rest."""

import json
import os
import shutil
from pathlib import Path

import pytest

from stqp.qupath.project import QuPathProject

DATA = os.environ.get("STQP_REAL_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="STQP_REAL_DATA does not name a folder of real data")
VERSIONS = ("0.4.4", "0.5.1", "0.6.0", "0.7.0")


def state(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(params=VERSIONS)
def project(request, tmp_path):
    folder = Path(DATA, "qupath", f"golden_v{request.param}")
    shutil.copytree(folder, tmp_path / request.param)
    return tmp_path / request.param


def test_opened_and_unchanged(project):
    before = state(project)
    with QuPathProject.open(project, "r+") as opened:
        assert str(opened.version) == project.name and len(opened.entries) == 3
        assert [e.size for e in opened.entries] == [(800, 600)] * 3
        opened.add_classes(dict(opened.classes))
        opened.relink()
    assert state(project) == before


def test_one_image_changed(project):
    """What stqp writes of the project file, of classes and servers is what QuPath wrote, byte for byte."""
    before = state(project)
    with QuPathProject.open(project, "r+") as opened:
        opened.entry(1).description = "x"
        opened.set_classes({"Other": (1, 2, 3)})
        opened.entry(2).set_mpp(0.5)
    with QuPathProject.open(project, "r+") as opened:
        first = json.loads(before["project.qpproj"])
        opened.entry(1).description = None
        opened.set_classes({})
        builder = opened.entry(2)._json["serverBuilder"]
        builder["metadata"] = first["images"][1]["serverBuilder"]["metadata"]
        opened.entry(2).mark_server_changed()
    after = state(project)
    assert {n for n in before if before[n] != after[n]} <= {"project.qpproj", "classifiers/classes.json"}
    assert set(after) - set(before) == {"project.qpproj.backup"}
    content = json.loads(after["project.qpproj"])
    assert list(content) == list(first)
    same = {k: first[k] for k in ("modifyTimestamp", "uri")}
    assert json.dumps({**content, **same}, indent=2, ensure_ascii=False).encode() == before["project.qpproj"]
