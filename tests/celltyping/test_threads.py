"""The same seed gives the same types on one thread and on several."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from celltyping.slides import slide

from stqp.celltyping.methods import type_cells

CODE = """
import sys, zlib
sys.path.insert(0, sys.argv[1])
import numpy as np
from celltyping.slides import slide
from stqp.celltyping.methods import type_cells
typed = type_cells(slide(5, depth=30), sys.argv[2], seed=4)
print(zlib.crc32(typed.cluster.tobytes()), zlib.crc32("|".join(typed.classes).encode()),
      zlib.crc32(np.round(typed.confidence, 9).tobytes()), len(typed.clusters))
"""


@pytest.mark.parametrize("method", ["stqp", "paper"])
def test_the_number_of_threads_changes_nothing(method):
    tests = str(Path(__file__).parents[1])
    said = []
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        found = subprocess.run(
            [sys.executable, "-c", CODE, tests, method],
            env={**os.environ, **dict.fromkeys(names, threads)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        said.append(found.stdout.split())
    assert said[0] == said[1] and int(said[0][3]) > 5


def test_the_order_of_threads_of_the_caller_is_left_alone():
    import numba

    before = numba.get_num_threads()
    typed = type_cells(slide(5, per_type=30), seed=1)
    assert numba.get_num_threads() == before
    assert zlib.crc32(np.round(typed.confidence, 9).tobytes())
