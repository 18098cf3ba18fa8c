"""A project to train from."""

from pathlib import Path

import pytest

from stqp.importing.xenium import import_xenium
from stqp.synthetic import make_sample


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
