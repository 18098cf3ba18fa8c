"""Shared fixtures."""

import signal
from pathlib import Path

import pytest
from support import real_folder

from stqp.synthetic import SyntheticSample, make_sample

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell gives its background jobs no Ctrl-C, and their children would not have it either
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSample:
    """A synthetic sample, of odd size; read only."""
    return make_sample(tmp_path_factory.mktemp("sample"), seed=7, size=(1001, 897))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, from the environment."""
    folder = real_folder()
    if folder is None:
        pytest.skip("STQP_REAL_DATA does not name a folder of real data")
    return folder
