"""A project to train from."""

from pathlib import Path

import pytest

from stqp.importing.xenium import import_xenium
from stqp.patches.cut import cut_patches
from stqp.patches.options import CutOptions
from stqp.record import RunRecord
from stqp.synthetic import make_sample
from stqp.training.lite import LiteLayers


@pytest.fixture(scope="session")
def project(sample, tmp_path_factory) -> Path:
    """The synthetic sample as a QuPath project; read only."""
    folder = tmp_path_factory.mktemp("training") / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, folder, labels=sample.labels, class_map=sample.class_map)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A project with few nuclei, so that an epoch is short."""
    folder = tmp_path_factory.mktemp("small")
    made = make_sample(folder / "sample", seed=5, size=(640, 512))
    import_xenium(made.outs, made.he, made.alignment, folder / "p", labels=made.labels, class_map=made.class_map)
    return folder / "p"


@pytest.fixture(scope="session")
def patches(small, tmp_path_factory) -> Path:
    """Its patches; read only."""
    file = tmp_path_factory.mktemp("patches") / "small.h5"
    cut_patches([small], file, RunRecord("test", {}), CutOptions(block=64.0))
    return file


@pytest.fixture
def narrow(monkeypatch) -> None:
    """`lite` with a few channels, where a test is not about what it learns."""
    monkeypatch.setattr(LiteLayers._build, "__defaults__", ((8, 8, 8, 8), 8))
