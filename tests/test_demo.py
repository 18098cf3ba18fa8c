"""The demo runs the whole chain."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from stqp_cli.demo import command

from stqp.demo import MARKER, run_demo
from stqp.errors import InputError
from stqp.qupath.objects import ObjectKind
from stqp.qupath.project import QuPathProject


def test_the_whole_chain(tmp_path, monkeypatch):
    """By the command, as README has it."""
    seen, made = {}, []

    def watched(folder, seed, minutes, size, device, progress):
        def both(step, fraction):
            seen[step] = fraction
            progress(step, fraction)

        made.append(run_demo(folder, seed, minutes, size, device, both))
        return made[0]

    monkeypatch.setattr("stqp.demo.run_demo", watched)
    asked = [str(tmp_path / "demo"), "--minutes", "0.3", "--size", "768", "--device", "cpu"]
    result = CliRunner().invoke(command, asked, catch_exceptions=False)
    assert result.exit_code == 0 and "F_d (detection, 3 µm)" in result.output and "look at" in result.output
    (demo,) = made
    assert len(seen) == 6 and set(seen.values()) == {1.0}
    with QuPathProject.open(demo.project, "r") as project:
        objects = project.entries[0].read_objects()
    assert (objects.kind == ObjectKind.ANNOTATION).sum() > 100
    scores = json.loads((demo.folder / MARKER).read_text())["scores"]["pooled"]
    assert scores["n_true"] > 5
    assert np.asarray(Image.open(demo.picture)).shape[1] > 1000
    with pytest.raises(InputError, match="not empty"):
        run_demo(tmp_path / "demo")
