"""Columns as JSON text: numbers, strings and coordinates of many objects at once, in Arrow's string arrays."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

    Texts: TypeAlias = pa.StringArray

# one position is 9 words of 4 bytes: x in 3, a comma in 1, y in 3, what stands between two positions in 2;
# bytes that are not needed are 0, and are taken out of the whole text at once
_WORDS = 9
_FAST_DECIMALS = 3
_FAST_LIMIT = 10**9
_END = ord("}")


class Runs(NamedTuple):
    """Positions of many geometries, in order.

    Attributes
    ----------
    coords : float64 (positions, 2)
        Rounded.
    starts : int64 (runs,)
        First position of each run: a ring with its closing position, a line, all points of a geometry.
    levels : int64 (runs,)
        0 for the first run of a geometry, 1 for another one beside it, 2 for one that begins a further polygon.
    depths : int64 (geometries,)
        How many brackets its text begins with: 1 for a point, 2 for a line, 3 for a polygon, 4 for polygons.
    """

    coords: NDArray[np.float64]
    starts: NDArray[np.int64]
    levels: NDArray[np.int64]
    depths: NDArray[np.int64]


def coordinate_texts(runs: Runs, decimals: int) -> Texts:
    """Make the text from the first bracket to the brace that closes the geometry, for each geometry.

    Parameters
    ----------
    runs
        Geometries of at least one position each.
    decimals
        Digits after the point at most; trailing zeros are not written.
    """
    import pyarrow as pa

    n = len(runs.coords)
    between = np.zeros(n, np.int64)  # brackets between a position and the next one, beyond its own
    first_runs = np.flatnonzero(runs.levels == 0)
    last = np.append(runs.starts, n)[np.append(first_runs[1:], len(runs.starts))[: len(first_runs)]] - 1
    inner = runs.levels > 0
    between[runs.starts[inner] - 1] = runs.levels[inner]
    between[last] = 3 + runs.depths
    words = np.zeros((n, _WORDS), "<u4")
    scaled = runs.coords * 10.0**_FAST_DECIMALS
    if decimals <= _FAST_DECIMALS and (not n or np.abs(scaled).max() < _FAST_LIMIT - 1):
        _number_words(np.rint(scaled).astype(np.int64), words)
        words[:, 3] = ord(",")
        words[:, 7:] = _separators()[between]
        data = words.tobytes().translate(None, b"\0")
    else:
        separators = [bytes(s).rstrip(b"\0").decode() for s in _separators().view("S8").reshape(-1)]
        pieces = [
            f"{x!r},{y!r}{separators[b]}" for (x, y), b in zip(runs.coords.tolist(), between.tolist(), strict=True)
        ]
        data = "".join(pieces).encode()
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _END) + 1
    offsets = np.concatenate(([0], ends)).astype(np.int32)
    texts = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))
    return joined(dictionary(["[" * d for d in range(5)], runs.depths), texts)


def _number_words(milli: NDArray[np.int64], words: NDArray[np.uint32]) -> None:
    """Put numbers, given in thousandths, into their words."""
    lead, full, fraction = _digits()
    for axis, first in ((0, 0), (1, 4)):
        value = milli[:, axis]
        size = np.abs(value).astype(np.uint32)
        high, rest = np.divmod(size, np.uint32(1_000_000))
        middle, low = np.divmod(rest, np.uint32(1_000))
        words[:, first] = lead[high] | np.where(value < 0, np.uint32(ord("-")), np.uint32(0))
        words[:, first + 1] = full[middle + np.uint32(1000) * (high > 0)]
        words[:, first + 2] = fraction[low]


@functools.cache
def _digits() -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
    """Words of 0..999: without zeros in front; the same with one digit at least, then with three; as a fraction."""

    def table(texts: list[str]) -> NDArray[np.uint32]:
        return np.array([t.encode().rjust(4, b"\0") for t in texts], "S4").view("<u4").copy()

    lead = table([str(i) if i else "" for i in range(1000)])
    full = table([str(i) for i in range(1000)] + [f"{i:03}" for i in range(1000)])
    fraction = np.array([f".{i:03}".rstrip("0").rstrip(".").encode() for i in range(1000)], "S4").view("<u4").copy()
    return lead, full, fraction


@functools.cache
def _separators() -> NDArray[np.uint32]:
    """Two words each: between positions, runs, polygons, then the ends of geometries of each depth."""
    texts = ["],[", "]],[[", "]]],[[[", *("]" * depth + "}" for depth in range(5))]
    return np.array([t.encode() for t in texts], "S8").view("<u4").reshape(-1, 2).copy()


def dictionary(texts: Sequence[str | None], codes: NDArray[Any]) -> Texts:
    """Take texts by their positions."""
    import pyarrow as pa

    return pa.array(texts, pa.string()).take(pa.array(codes))


def joined(*pieces: Texts | str) -> Texts:
    """Put columns of text (or one text for all) behind each other; null where a piece is null."""
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(*pieces, "")


def listed(columns: Sequence[Texts], separator: str) -> Texts:
    """Put the texts of each row that are not null behind each other; empty where all are."""
    import pyarrow.compute as pc

    # Arrow 26 leaves out the rows of nulls alone
    absent = functools.reduce(pc.and_, [pc.is_null(column) for column in columns])
    first = pc.if_else(absent, "", columns[0])
    return pc.binary_join_element_wise(first, *columns[1:], separator, null_handling="skip")


def string_texts(values: NDArray[np.object_]) -> Texts:
    """Quote text; None is null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        plain = pa.array(values, pa.string())
    except UnicodeEncodeError:  # half a surrogate pair, as QuPath can hold it
        return pa.array([None if v is None else json.dumps(v) for v in values.tolist()], pa.string())
    if pc.any(pc.match_substring_regex(plain, r'["\\\x00-\x1f]')).as_py():
        return pa.array(
            [None if v is None else json.dumps(v, ensure_ascii=False) for v in values.tolist()], pa.string()
        )
    return joined('"', plain, '"')


def quoted(text: str) -> str:
    """Quote one text; half a surrogate pair is written as an escape."""
    result = json.dumps(text, ensure_ascii=False)
    try:
        result.encode()
    except UnicodeEncodeError:
        return json.dumps(text)
    return result


def number_texts(values: NDArray[np.float64]) -> Texts:
    """Write numbers in as few digits as give them back; NaN and infinity, which JSON lacks, are null."""
    import pyarrow as pa

    return pa.array(values, mask=~np.isfinite(values)).cast(pa.string())


def object_texts(columns: Sequence[tuple[str, Texts]]) -> Texts | None:
    """Make a JSON object of the columns for each row, without those that are null; null where all are."""
    import pyarrow.compute as pc

    if not columns:
        return None
    members = [joined(f"{quoted(key)}:", texts) for key, texts in columns]
    inside = listed(members, ",")
    present = pc.if_else(pc.equal(inside, ""), None, inside)
    return joined("{", present, "}")
