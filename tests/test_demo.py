"""The demo runs the whole chain."""

import json

import numpy as np
import pytest
from PIL import Image

from stqp.demo import MARKER, run_demo
from stqp.errors import InputError
from stqp.qupath.objects import ObjectKind
from stqp.qupath.project import QuPathProject


def test_the_whole_chain(tmp_path):
    seen = {}
    demo = run_demo(
        tmp_path / "demo", minutes=0.3, size=768, device="cpu", progress=lambda step, f: seen.__setitem__(step, f)
    )
    assert len(seen) == 6 and set(seen.values()) == {1.0}
    with QuPathProject.open(demo.project, "r") as project:
        objects = project.entries[0].read_objects()
    assert (objects.kind == ObjectKind.ANNOTATION).sum() > 100
    scores = json.loads((demo.folder / MARKER).read_text())["scores"]["pooled"]
    assert scores["n_true"] > 5
    assert np.asarray(Image.open(demo.picture)).shape[1] > 1000
    with pytest.raises(InputError, match="not empty"):
        run_demo(tmp_path / "demo")
