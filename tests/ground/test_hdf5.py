import errno

import numpy as np
import pytest
from scipy import sparse

from stqp import hdf5
from stqp.errors import EnvironmentProblem


@pytest.fixture
def data():
    import anndata
    import pandas as pd

    matrix = sparse.random(500, 40, 0.2, format="csr", random_state=0)
    obs = pd.DataFrame({"label": pd.Categorical(["a", None] * 250)}, index=[f"cell{i}" for i in range(500)])
    result = anndata.AnnData(matrix, obs=obs)
    result.obsm["spatial"] = np.arange(1000.0).reshape(500, 2)
    result.uns["stqp"] = {"mpp": 0.25}
    return result


def test_reads_back_as_it_was(tmp_path, data):
    import anndata

    path = tmp_path / "a.part"
    hdf5.write_anndata(path, data)
    again = anndata.read_h5ad(path)
    assert (again.X != data.X).nnz == 0 and again.obs.equals(data.obs)
    np.testing.assert_array_equal(again.obsm["spatial"], data.obsm["spatial"])
    assert again.uns["stqp"]["mpp"] == 0.25


@pytest.mark.parametrize("room", [0, 100, 3000, 20_000, 40_000])
def test_full_disk_is_an_error_and_the_process_lives(tmp_path, data, monkeypatch, room):
    class Full(hdf5.CarefulFile):
        def __init__(self, path):
            super().__init__(path)
            raw, left = self._file, [room]

            class Raw:
                def __getattr__(self, name):
                    return getattr(raw, name)

                def write(self, part):
                    left[0] -= len(part)
                    if left[0] < 0:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return raw.write(part)

            self._file = Raw()

    monkeypatch.setattr(hdf5, "CarefulFile", Full)
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        hdf5.write_anndata(tmp_path / "a.h5ad", data)
