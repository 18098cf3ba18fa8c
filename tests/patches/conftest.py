import pytest
from patches.projects import make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("cut") / "project", ((700, 500), (410, 390)))
