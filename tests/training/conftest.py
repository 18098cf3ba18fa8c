"""A project to train from."""

from pathlib import Path

import pytest

from stqp.importing.xenium import import_xenium


@pytest.fixture(scope="session")
def project(sample, tmp_path_factory) -> Path:
    """The synthetic sample as a QuPath project; read only."""
    folder = tmp_path_factory.mktemp("training") / "project"
    import_xenium(sample.outs, sample.he, sample.alignment, folder, labels=sample.labels, class_map=sample.class_map)
    return folder
