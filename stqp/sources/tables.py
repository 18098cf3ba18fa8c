"""Read tables of parquet or csv, by columns; a broken file is one clear error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError

Ints = NDArray[np.int64]


@contextlib.contextmanager
def whole_table(path: Path) -> Iterator[None]:
    """Turn a reader's complaint about `path` into `InputError`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} is not a whole table ({reason.rstrip('.')}); "
            "copy it again from where it was made, and compare the sizes"
        ) from error


def columns_of(path: Path) -> list[str]:
    """Names of a table's columns."""
    import pyarrow.parquet as pq

    with whole_table(path):
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        with _open_csv(path) as reader:
            return list(reader.schema.names)


def read_columns(path: Path, columns: Sequence[str], as_text: Sequence[str] = ()) -> Any:
    """Read the given columns as a pyarrow Table; of a csv, those of `as_text` as they are written."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    with whole_table(path):
        if path.suffix == ".parquet":
            return pq.read_table(path, columns=list(columns))
        options = pyarrow.csv.ConvertOptions(
            include_columns=list(columns), column_types=dict.fromkeys(as_text, pa.string())
        )
        return pyarrow.csv.read_csv(path, convert_options=options)


def _open_csv(path: Path) -> Any:
    import pyarrow.csv

    return pyarrow.csv.open_csv(path)


def texts(column: Any) -> Any:
    """Values as one pyarrow Array of strings: ids may be text, bytes or whole numbers."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no chunks at all
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], pa.string())
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.string()).fill_null("")


def floats(column: Any) -> NDArray[np.float64]:
    """Values as float64, NaN where missing."""
    import pyarrow as pa

    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)


def run_starts(group: Ints) -> Ints:
    """Where each run of equal values starts."""
    if not len(group):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.r_[True, group[1:] != group[:-1]]).astype(np.int64)


def position_in_group(group: Ints) -> Ints:
    """How many equal values come before each value."""
    order = np.argsort(group, kind="stable")
    starts = run_starts(group[order])
    lengths = np.diff(np.r_[starts, len(group)])
    result = np.empty(len(group), np.int64)
    result[order] = np.arange(len(group)) - np.repeat(starts, lengths)
    return result
