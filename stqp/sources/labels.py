"""Labels of cells from files, and from labels to visual classes."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError
from stqp.sources.tables import columns_of, floats, read_columns, texts, whole_table
from stqp.taxonomy import UNKNOWN, VISUAL_CLASSES

Objects = NDArray[np.object_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ID_COLUMNS = ("cell_id", "cellid", "cell", "barcode", "barcodes", "index", "id", "", "__index_level_0__", "unnamed: 0")
LABEL_COLUMNS = (
    "label", "labels", "class", "cell_type", "celltype", "annotation", "cluster", "group", "leiden", "louvain",
)  # fmt: skip
CLUSTERS = "clusters.csv"
CONFIDENCE_COLUMN, NUCLEUS_COLUMN = "confidence", "label_id"
_MISSING = frozenset(("", "nan", "na", "none", "null", "<na>"))


@dataclass(frozen=True)
class Labels:
    """Labels as a file gives them, one row each.

    Attributes
    ----------
    ids : object (k,)
        Cell ids as text.
    labels : object (k,)
        Text, None where the file says nothing.
    confidence : float64 (k,)
        NaN where the file has none.
    label_ids : int64 (k,) or None
        The run's number of the nucleus, where labels are by nucleus.
    path
        The file.
    columns
        Names of the columns of ids and labels; the first row, where the file has no header.
    """

    ids: Objects
    labels: Objects
    confidence: Floats
    label_ids: Ints | None
    path: Path
    columns: tuple[str, str]


def read_labels(path: str | Path, label_key: str | None = None) -> Labels:
    """Read labels of cells.

    Parameters
    ----------
    path
        csv, tsv (also .gz) or parquet with a column of cell ids and one of labels (``cell_id,label``, 10x's
        ``Barcode,Cluster``, ``cell_id,group`` of Xenium Explorer, or any two columns), optionally
        ``confidence``, and ``label_id`` where labels are by nucleus; .h5ad; or a folder of 10x's clusterings
        (``analysis``, ``analysis/clustering`` or one clustering in it), of which the graph-based one is taken.
    label_key
        Column of the labels; for .h5ad of ``obs``.

    Raises
    ------
    InputError
        When the file is missing, broken, or has no such columns.
    UsageError
        When an .h5ad comes without a `label_key`.
    """
    path = _clustering(Path(path))
    if not path.is_file():
        raise InputError(f"the labels {path} do not exist; give csv, tsv, parquet or h5ad")
    if path.suffix.lower() == ".h5ad":
        return _from_h5ad(path, label_key)
    table = _table(path)
    names = list(table)
    key = _id_column(names, path)
    value = _label_column(names, key, label_key, path)
    lower = {name.lower(): name for name in names}
    confidence = np.full(len(table[key]), np.nan)
    if CONFIDENCE_COLUMN in lower and lower[CONFIDENCE_COLUMN] != value:
        confidence = _numbers(table[lower[CONFIDENCE_COLUMN]], path, CONFIDENCE_COLUMN)
    label_ids = None
    if NUCLEUS_COLUMN in lower:
        numbers = _numbers(table[lower[NUCLEUS_COLUMN]], path, NUCLEUS_COLUMN)
        if not np.isfinite(numbers).all():
            raise InputError(f"expected a number in every row of the column {NUCLEUS_COLUMN} of {path}")
        label_ids = numbers.astype(np.int64)
    return Labels(_ids(table[key]), clean(table[value]), confidence, label_ids, path, (key, value))


def _clustering(path: Path) -> Path:
    """File of labels in a folder that 10x's analysis writes; any other path as it is."""
    if not path.is_dir():
        return path
    for inner in ("", "gene_expression_graphclust", "clustering/gene_expression_graphclust"):
        if (found := path / inner / CLUSTERS).is_file():
            return found
    inside = sorted(p.parent.name for p in path.glob(f"**/{CLUSTERS}"))[:20]
    raise InputError(
        f"{path} is a folder without {CLUSTERS} or a graph-based clustering; give a file of labels"
        + (f", or one of the clusterings in it: {', '.join(inside)}" if inside else "")
    )


def to_classes(labels: Objects, class_map: Mapping[str, str] | None) -> tuple[Objects, dict[str, int]]:
    """Class of each label, and how many of each label the map lacks.

    Without a map, a label that equals a visual class in any case becomes it, and any other stays a class of
    its own name. With one, a label that it lacks becomes Unknown. No label is Unknown.
    """
    own = {c.name.lower(): c.name for c in VISUAL_CLASSES} | {UNKNOWN.lower(): UNKNOWN}
    counts = Counter(label for label in labels.tolist() if label is not None)
    if class_map is None:
        known = {label: own.get(label.lower(), label) for label in counts}
        lacking: dict[str, int] = {}
    else:
        known = {label: class_map.get(label, UNKNOWN) for label in counts}
        known = {label: own.get(name.lower(), name) for label, name in known.items()}
        lacking = {label: number for label, number in sorted(counts.items()) if label not in class_map}
    classes = np.empty(len(labels), object)
    classes[:] = [known[label] if label is not None else UNKNOWN for label in labels.tolist()]
    return classes, lacking


def _table(path: Path) -> dict[str, Any]:
    """Columns by name, as pyarrow arrays or lists of text."""
    if path.suffix.lower() == ".parquet":
        names = columns_of(path)
        table = read_columns(path, names)
        return {name: table[name] for name in names}
    import pandas as pd

    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix.lower() == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            first, second = file.readline(), file.readline()
            if not first.strip():
                raise InputError(f"the labels {path} are empty; expected a header and two columns, cell_id and label")
            file.seek(0)
            separator = max("\t,;", key=(first + second).count)
            frame = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, encoding_errors="strict")
    except (OSError, EOFError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise InputError(
            f"the labels {path} cannot be read as a table ({error}); expected csv, tsv or parquet"
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):  # R writes row names without a header
        frame = frame.reset_index()
    return {str(name): frame.iloc[:, i].to_numpy(dtype=object) for i, name in enumerate(frame.columns)}


def _from_h5ad(path: Path, label_key: str | None) -> Labels:
    import anndata

    with whole_table(path):
        try:
            obs = anndata.read_h5ad(path, backed="r").obs
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no AnnData file ({error})") from error
    if label_key is None:
        raise UsageError(f"{path} has many columns; name that of the labels with --label-key: {', '.join(obs.columns)}")
    if label_key not in obs.columns:
        raise InputError(f"expected the column {label_key!r} in obs of {path}, found {', '.join(obs.columns)}")
    has_ids = "cell_id" in obs.columns and label_key != "cell_id"
    ids = obs["cell_id"].astype(str) if has_ids else obs.index.astype(str)
    confidence = np.full(len(obs), np.nan)
    if CONFIDENCE_COLUMN in obs.columns:
        confidence = _numbers(obs[CONFIDENCE_COLUMN].to_numpy(), path, CONFIDENCE_COLUMN)
    return Labels(
        np.asarray(ids, dtype=object),
        clean(obs[label_key].astype(object).to_numpy()),
        confidence,
        None,
        path,
        ("cell_id", label_key),
    )


def _id_column(names: list[str], path: Path) -> str:
    lower = {name.strip().lower(): name for name in reversed(names)}
    for candidate in ID_COLUMNS:
        if candidate in lower:
            return lower[candidate]
    if len(names) == 2:
        return names[0]
    raise InputError(f"expected a column of cell ids (cell_id or Barcode) in {path}, found {', '.join(names)}")


def _label_column(names: list[str], key: str, wanted: str | None, path: Path) -> str:
    others = [name for name in names if name != key]
    if wanted is not None:
        if wanted not in others:
            raise InputError(f"expected the column {wanted!r} in {path}, found {', '.join(names)}")
        return wanted
    lower = {name.strip().lower(): name for name in reversed(others)}
    for candidate in LABEL_COLUMNS:
        if candidate in lower:
            return lower[candidate]
    left = [n for n in others if n.strip().lower() not in (CONFIDENCE_COLUMN, NUCLEUS_COLUMN)]
    if len(left) == 1:
        return left[0]
    raise InputError(f"expected a column of labels in {path}, found {', '.join(names)}; name it with --label-key")


def _ids(column: Any) -> Objects:
    if hasattr(column, "combine_chunks"):
        return np.asarray(texts(column).to_numpy(zero_copy_only=False), dtype=object)
    return np.array([str(v).strip() for v in column], dtype=object)


def clean(column: Any) -> Objects:
    """Labels as text; missing ones, in any of the usual spellings, are None."""
    values = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    result = np.empty(len(values), object)
    seen: dict[Any, str | None] = {}
    for i, value in enumerate(values):
        if value not in seen:
            whole = isinstance(value, float) and value.is_integer()
            text = str(int(value)) if whole else str(value).strip()
            seen[value] = None if text.lower() in _MISSING else text
        result[i] = seen[value]
    return result


def _numbers(column: Any, path: Path, name: str) -> Floats:
    import pandas as pd

    try:
        if hasattr(column, "combine_chunks"):
            return floats(column)
        return np.asarray(pd.to_numeric(pd.Series(column).replace("", np.nan)), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"expected numbers in the column {name} of {path} ({error})") from error
