"""What others know of the nuclei: an embedding, or the out-of-fold predictions of a trained model."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, UsageError
from stqp.qupath.ownership import SOURCE_KEY
from stqp.qupath.project import QuPathProject
from stqp.separability.features import Features
from stqp.separability.groups import SlideNuclei

Floats = NDArray[np.float64]
Objects = NDArray[np.object_]

ID_NAMES = ("id", "ids", "nucleus_id", "nucleus_ids", "object_id", "cell_id", "cell_ids")
PROBABILITY = "Probability: "
COMPONENTS = 50  # of an embedding that has more
_SOURCE = "predict:"
_NEAR_UM = 4.0  # a predicted nucleus is the same one when the centres are the nearest to each other, and this near
_LEAST_MATCHED = 0.5
_SMALLEST = 1e-4  # probability


def read_embedding(path: Path, key: str | None, slides: list[SlideNuclei], seed: int) -> list[Features]:
    """Embedding of the nuclei of each slide.

    Parameters
    ----------
    path
        ``.parquet`` with a column of ids, ``.npz`` with ``ids`` and one two-dimensional array, or ``.h5ad``. Ids are
        those of the objects in QuPath, or of the cells.
    key
        Which ``obsm`` of an .h5ad, or which array of an .npz.
    slides
        The nuclei.
    seed
        Of the principal components of an embedding with more than `COMPONENTS` columns.

    Raises
    ------
    InputError
        When it cannot be read, has values that are not finite, or ids that are not those of the nuclei.
    """
    ids, values = _read(path, key, "embedding")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise InputError(f"the embedding {path} has {bad:,} rows with values that are not finite; expected numbers")
    if values.shape[1] > COMPONENTS:
        from sklearn.decomposition import PCA  # type: ignore[import-untyped]

        spread = values.std(axis=0)
        values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
        number = min(COMPONENTS, *values.shape)
        # of all nuclei, held-out ones among them: no label takes part in it
        values = PCA(number, svd_solver="randomized", random_state=seed).fit_transform(values)
    names = tuple(f"embedding {i + 1}" for i in range(values.shape[1]))
    return _by_slide(path, "embedding", ids, values, names, slides)


def read_predictions(path: Path, run: str | None, slides: list[SlideNuclei]) -> list[Features]:
    """Class probabilities that a trained model gave the nuclei of each slide, as logarithms.

    Parameters
    ----------
    path
        ``.parquet`` with a column of ids and one of probabilities for each class; or a QuPath project into which
        ``stqp predict`` wrote, with images of the same names.
    run
        Of which training run, where a project has the predictions of several.
    slides
        The nuclei.

    Raises
    ------
    InputError
        When there are none, or they are no probabilities, or they belong to other nuclei.
    """
    if path.suffix.lower() == ".parquet" or (path.is_file() and path.suffix.lower() != ".qpproj"):
        ids, values = _read(path, None, "predictions")
        names = tuple(f"prediction {i + 1}" for i in range(values.shape[1]))
        return _by_slide(path, "predictions", ids, _logs(values, path), names, slides)
    result = []
    with QuPathProject.open(path, "r") as project:
        for one in slides:
            entry = next((e for e in project.entries if e.name == one.name), None)
            if entry is None:
                raise InputError(f"the project of predictions {project.folder} has no image {one.name}")
            result.append(_matched(entry.read_objects(), run, one, project.folder))
    names = result[0].names
    if any(f.names != names for f in result):
        raise InputError(f"the images of {path} were predicted with different classes; predict them with one run")
    return result


def _read(path: Path, key: str | None, what: str) -> tuple[Objects, Floats]:
    if not path.is_file():
        raise InputError(f"the {what} {path} do{'es' if what == 'embedding' else ''} not exist")
    suffix = path.suffix.lower()
    readers = {".parquet": _read_parquet, ".npz": _read_npz, ".h5ad": _read_h5ad}
    if suffix not in readers:
        raise InputError(
            f"the {what} {path} is {suffix or 'a file without a suffix'}; expected .parquet, .npz or .h5ad"
        )
    try:
        ids, values = readers[suffix](path, key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"the {what} {path} cannot be read ({error}); is it whole?") from error
    if values.ndim != 2 or len(values) != len(ids) or not values.size:
        raise InputError(f"the {what} {path} has {len(ids):,} ids and numbers of the shape {values.shape}")
    if len(set(ids.tolist())) != len(ids):
        raise InputError(f"the {what} {path} names an id more than once; expected one row for each")
    return ids, values.astype(np.float64)


def _text(values: Any) -> Objects:
    result = np.empty(len(values), object)
    result[:] = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return result


def _read_parquet(path: Path, key: str | None) -> tuple[Objects, Floats]:
    import pandas as pd

    frame = pd.read_parquet(path)
    named = next((c for c in frame.columns if str(c).lower() in ID_NAMES), None)
    ids = frame.index if named is None else frame[named]
    numbers = frame.drop(columns=[named] if named is not None else []).select_dtypes("number")
    return _text(ids.tolist()), numbers.to_numpy(np.float64)


def _read_npz(path: Path, key: str | None) -> tuple[Objects, Floats]:
    with np.load(path, allow_pickle=False) as stored:
        named = next((name for name in stored.files if name.lower() in ID_NAMES), None)
        if named is None:
            raise InputError(f"{path} has no array of ids; expected one that is called {ID_NAMES[1]}")
        tables = [name for name in stored.files if name != named and stored[name].ndim == 2]
        if len(tables) != 1 if key is None else key not in tables:
            raise InputError(f"{path} has the arrays {', '.join(tables) or 'none'}; name one by --embedding-key")
        return _text(stored[named].tolist()), np.asarray(stored[key or tables[0]], np.float64)


def _read_h5ad(path: Path, key: str | None) -> tuple[Objects, Floats]:
    import anndata

    adata = anndata.read_h5ad(path, backed="r")
    try:
        tables = [name for name in adata.obsm if name != "spatial"]
        if len(tables) != 1 if key is None else key not in adata.obsm:
            raise InputError(f"{path} has in obsm {', '.join(tables) or 'nothing'}; name one by --embedding-key")
        return _text(adata.obs_names.tolist()), np.asarray(adata.obsm[key or tables[0]], np.float64)
    finally:
        adata.file.close()


def _by_slide(
    path: Path, what: str, ids: Objects, values: Floats, names: tuple[str, ...], slides: list[SlideNuclei]
) -> list[Features]:
    place = {key: i for i, key in enumerate(ids.tolist())}
    result, matched, asked = [], 0, 0
    padded = np.vstack([values, np.full((1, values.shape[1]), np.nan)])
    for one in slides:
        at = np.array(
            [place.get(i, place.get(c, -1)) for i, c in zip(one.ids.tolist(), one.cells.tolist(), strict=True)],
            np.int64,
        )
        grouped = np.array([g is not None for g in one.group.tolist()], bool)
        matched, asked = matched + int((at[grouped] >= 0).sum()), asked + int(grouped.sum())
        missing = int((at[grouped] < 0).sum())
        result.append(Features(padded[at], names, {f"nuclei that the {what} lack{'s' * (what[-1] != 's')}": missing}))
    if matched < _LEAST_MATCHED * asked:
        raise InputError(
            f"the {what} {path} {'have' if what[-1] == 's' else 'has'} {matched:,} of the {asked:,} nuclei; expected "
            f"ids as those of the objects in QuPath or of the cells (found {ids[0]!r}, expected such as "
            f"{slides[0].ids[0]!r} or {next((c for c in slides[0].cells.tolist() if c), None)!r})"
        )
    return result


def _logs(values: Floats, path: Path) -> Floats:
    if not ((values >= -1e-6) & (values <= 1 + 1e-6)).all():
        raise InputError(f"the predictions {path} hold numbers that are no probabilities; expected 0 to 1")
    return np.log(np.maximum(values, _SMALLEST))


def _matched(objects: Any, run: str | None, one: SlideNuclei, project: Path) -> Features:
    """Probabilities of the detections that are the same nuclei."""
    from scipy.spatial import cKDTree

    column = objects.metadata.get(SOURCE_KEY, np.full(len(objects), None, object))
    sources = np.array([str(s or "") for s in column.tolist()], object)
    runs = sorted({s.removeprefix(_SOURCE) for s in sources.tolist() if s.startswith(_SOURCE)})
    if run is None and len(runs) > 1:
        raise UsageError(f"{one.name} has predictions of {', '.join(runs)}; name one by --predictions-run")
    if not runs or (run or runs[0]) not in runs:
        raise InputError(
            f"{one.name} in {project} has no predictions{f' of {run}' if run else ''}; it has "
            f"{', '.join(runs) or 'none at all'}"
        )
    found = objects.take(sources == _SOURCE + (run or runs[0]))
    names = [name for name in found.measurements if name.startswith(PROBABILITY)]
    if not names:
        raise InputError(f"the predictions of {one.name} in {project} have no measurements {PROBABILITY}...")
    values = np.stack([found.measurements[name] for name in names], axis=1)
    here, there = one.polygons.centroid(), found.polygons.centroid()
    known = np.flatnonzero(np.isfinite(here).all(axis=1))
    away, at = cKDTree(there).query(here[known], distance_upper_bound=_NEAR_UM / one.mpp)
    at = np.where(np.isfinite(away), at, 0)
    _, back = cKDTree(here[known]).query(there[at])
    same = np.isfinite(away) & (back == np.arange(len(known)))
    result = np.full((len(here), len(names)), np.nan)
    result[known[same]] = _logs(values[at[same]], project)
    grouped = np.array([g is not None for g in one.group.tolist()], bool)
    missing = int(np.isnan(result[grouped, 0]).sum())
    if missing > (1 - _LEAST_MATCHED) * grouped.sum():
        raise InputError(
            f"the predictions of {one.name} in {project} have {int(grouped.sum()) - missing:,} of its "
            f"{int(grouped.sum()):,} nuclei; predict the whole image"
        )
    return Features(result, tuple(names), {"nuclei that the predictions lack": missing})
