"""The file of a study, checked before anything runs."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stqp.errors import InputError, UsageError
from stqp.taxonomy import UNKNOWN

FORMATS = ("project", "image+map", "consep", "kumar", "pannuke")
SCORES = (
    "dice", "aji", "aji_plus", "dq", "sq", "pq", "mpq", "precision_d", "recall_d", "f_d", "f_c_mean", "type_f1_macro",
    "type_f1_weighted", "type_accuracy", "type_balanced_accuracy", "type_mcc",
)  # fmt: skip
_NAMED = ("data", "networks", "variants", "tests")


@dataclass(frozen=True)
class Dataset:
    """Images with nuclei.

    Attributes
    ----------
    name
    format
        ``project`` (QuPath), or a layout of labelled images that `stqp.patches.importing.import_patches` knows.
    path
        The project, or the folder.
    mpp
        µm per px of tiles; of a project's images that do not say.
    classes : dict
        Type number to name, for tiles whose files do not name them.
    entries, where
        Images to use, by name, and by ``KEY=VALUE`` of their metadata; all when empty.
    organ
        What the tables call the tissue.
    """

    name: str
    format: str
    path: Path
    mpp: float = 0.25
    classes: Mapping[int, str] = field(default_factory=dict)
    entries: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    organ: str = ""


@dataclass(frozen=True)
class Variant:
    """What a network learns from: data sets, and which of their labels.

    Attributes
    ----------
    name
    train
        Names of data sets.
    labels
        Column of the cells beside a project (``class``, ``fine_type``, ``cluster``, ``label``, ...) whose values the
        network learns in place of the objects' classes; empty for the classes as they stand.
    relabel : dict
        Label to the name that the network learns; what is not named keeps its own, ``Unknown`` teaches no type.
    afterwards : dict
        Class of the network to the class that it is scored as; what is not named keeps its own.
    classes
        Classes to learn, in order; all when empty.
    patches : dict
        Options of its patches, beside those of the study.
    """

    name: str
    train: tuple[str, ...]
    labels: str = ""
    relabel: Mapping[str, str] = field(default_factory=dict)
    afterwards: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    patches: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Test:
    """What the networks are scored on.

    Attributes
    ----------
    name
    data
        Name of a data set.
    held_out
        Only what all trainings hold out, of images that they learn from; the first training's split is that of all.
    relabel : dict
        Class of the truth to the class that is scored; ``Unknown`` is not scored.
    """

    name: str
    data: str
    held_out: bool = False
    relabel: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """One file.

    Attributes
    ----------
    name, question
        For the head of the table.
    seeds
        Each trains every variant and network once.
    scores
        Columns of the table; the first orders it.
    data, networks, variants, tests : dict
        By name; a network is the options of `stqp train`, ``arch`` among them.
    compare
        Pairs of variants whose difference is tested.
    baselines
        Whether to score what needs no learning beside the networks; see `stqp.evaluation.baselines`.
    split : dict
        Options of the split, as `stqp train` has them: what is held out of every training.
    patches : dict
        Options of the patches, as `stqp train` has them under data: µm per px, size, which nuclei are used.
    folder
        Of the file; paths are relative to it.
    """

    name: str
    question: str
    seeds: tuple[int, ...]
    scores: tuple[str, ...]
    data: Mapping[str, Dataset]
    networks: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Variant]
    tests: Mapping[str, Test]
    compare: tuple[tuple[str, str], ...]
    baselines: bool
    split: Mapping[str, Any]
    patches: Mapping[str, Any]
    folder: Path


def read_study(path: Path) -> Study:
    """Read the file of a study.

    Raises
    ------
    InputError
        When it is no TOML, lacks a part, has a key or a name that is not known, or names data that is not there.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"the study {path} cannot be read: {error}") from error
    return study_from(content, path)


def study_from(content: Mapping[str, Any], path: Path) -> Study:
    """A study of what its file holds; see `read_study`."""
    known = {"name", "question", "seeds", "scores", "compare", "baselines", "split", "patches", *_NAMED}
    _keys(content, known, f"the study {path}")
    for part in _NAMED:
        if not isinstance(content.get(part), dict) or not content[part]:
            raise InputError(f"the study {path} has no [{part}.NAME]; expected at least one")
    folder = path.resolve().parent
    data = {name: _dataset(name, entry, folder, path) for name, entry in content["data"].items()}
    networks = {name: _network(name, entry, path) for name, entry in content["networks"].items()}
    variants = {name: _variant(name, entry, data, path) for name, entry in content["variants"].items()}
    tests = {name: _test(name, entry, data, path) for name, entry in content["tests"].items()}
    seeds = _list(content, "seeds", int, path) or (0,)
    if len(set(seeds)) != len(seeds):
        raise InputError(f"the study {path} names a seed twice")
    scores = _list(content, "scores", str, path) or ("pq", "dice", "f_d", "type_f1_macro")
    for name in scores:
        _one_of(name, SCORES, "score", path)
    baselines = content.get("baselines", False)
    if not isinstance(baselines, bool):
        raise InputError(f"baselines of the study {path} is {baselines!r}; expected true or false")
    compare = []
    for pair in content.get("compare", []):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) for p in pair):
            raise InputError(f"compare of the study {path} has {pair!r}; expected pairs of variants, [[A, B], ...]")
        for name in pair:
            _one_of(name, variants, "variant", path)
        compare.append((pair[0], pair[1]))
    split = _options(content.get("split", {}), "split", f"[split] of the study {path}")
    patches = _options(content.get("patches", {}), "data", f"[patches] of the study {path}")
    for test in tests.values():
        trained = [v.name for v in variants.values() if test.data in v.train]
        if trained and not test.held_out:
            raise InputError(
                f"the test {test.name} of the study {path} has the data {test.data}, from which {', '.join(trained)} "
                "learns; set held_out = true, and say in [split] what is held out"
            )
        if test.held_out and not {"test", "holdout", "split"} & set(split):
            raise InputError(
                f"the test {test.name} of the study {path} is on what is held out, and [split] holds nothing out; "
                'say test = 0.2, or holdout = ["organ=colon"]'
            )
    return Study(
        str(content.get("name") or path.stem), str(content.get("question", "")), tuple(seeds), tuple(scores), data,
        networks, variants, tests, tuple(compare), baselines, split, patches, folder,
    )  # fmt: skip


def _dataset(name: str, entry: Any, folder: Path, path: Path) -> Dataset:
    where = f"[data.{name}] of the study {path}"
    _keys(entry, {"format", "path", "mpp", "classes", "entries", "where", "organ"}, where)
    kind = str(entry.get("format", "project"))
    _one_of(kind, FORMATS, f"format in [data.{name}]", path)
    given = entry.get("path")
    if not isinstance(given, str) or not given:
        raise InputError(
            f"path of {where} is {given!r}; expected a {'QuPath project' if kind == 'project' else 'folder'}"
        )
    full = folder / Path(given).expanduser()
    if not full.exists():
        raise InputError(f"{where} names {full}, which does not exist")
    mpp = entry.get("mpp", 0.25)
    if not isinstance(mpp, (int, float)) or isinstance(mpp, bool) or not 0 < mpp < math.inf:
        raise InputError(f"mpp of {where} is {mpp!r}; expected µm per px")
    classes = entry.get("classes", {})
    if isinstance(classes, list):
        classes = {str(i): c for i, c in enumerate(classes, start=1)}
    if not isinstance(classes, dict) or not all(k.isdigit() and isinstance(v, str) for k, v in classes.items()):
        raise InputError(f'classes of {where} are {classes!r}; expected names in order, or {{1 = "Neoplastic", ...}}')
    return Dataset(
        name,
        kind,
        full,
        float(mpp),
        {int(k): v for k, v in classes.items()},
        _list(entry, "entries", str, path),
        _list(entry, "where", str, path),
        str(entry.get("organ", "")),
    )


def _network(name: str, entry: Any, path: Path) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("arch"), str):
        raise InputError(
            f'[networks.{name}] of the study {path} names no arch; expected arch = "lite", "fast" or "original"'
        )
    return dict(entry)


def _variant(name: str, entry: Any, data: Mapping[str, Dataset], path: Path) -> Variant:
    where = f"[variants.{name}] of the study {path}"
    _keys(entry, {"train", "labels", "relabel", "afterwards", "classes", "patches"}, where)
    train = [entry["train"]] if isinstance(entry.get("train"), str) else _list(entry, "train", str, path)
    if not train:
        raise InputError(f"{where} names nothing to train on; expected train = [names of data]")
    for one in train:
        _one_of(one, data, "data set", path)
    labels = entry.get("labels", "")
    if not isinstance(labels, str):
        raise InputError(f"labels of {where} is {labels!r}; expected a column of the cells")
    if labels and any(data[one].format != "project" for one in train):
        raise InputError(f"{where} takes the labels {labels!r}, which only projects have beside them")
    return Variant(
        name, tuple(train), labels, _map(entry, "relabel", where), _map(entry, "afterwards", where),
        _list(entry, "classes", str, path), _options(entry.get("patches", {}), "data", f"patches of {where}"),
    )  # fmt: skip


def _test(name: str, entry: Any, data: Mapping[str, Dataset], path: Path) -> Test:
    where = f"[tests.{name}] of the study {path}"
    _keys(entry, {"data", "held_out", "relabel"}, where)
    _one_of(str(entry.get("data", name)), data, "data set", path)
    held = entry.get("held_out", False)
    if not isinstance(held, bool):
        raise InputError(f"held_out of {where} is {held!r}; expected true or false")
    return Test(name, str(entry.get("data", name)), held, _map(entry, "relabel", where))


def _options(entry: Any, section: str, where: str) -> dict[str, Any]:
    """Options of the split, or of the patches but for what data sets and variants say themselves."""
    from stqp.patches.options import CutOptions

    allowed = {"split_seed" if name == "seed" else name for name in CutOptions.section(section)}
    _keys(entry, allowed - {"entries", "where", "classes"}, where)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    own: dict[str, Any] = {"seed" if key == "split_seed" else key: value for key, value in options.items()}
    try:
        CutOptions(**own)
    except (UsageError, TypeError, AttributeError) as error:
        raise InputError(f"{where} makes no sense: {error}") from error
    return options


def _map(entry: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    """A map of names; ``visual`` stands for that from fine types to visual classes."""
    value = entry.get(key, {})
    if value == "visual":
        return VISUAL_MAP
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise InputError(f'{key} of {where} is {value!r}; expected {{ "T cells" = "Inflammatory", ... }}, or "visual"')
    return {str(k): v or UNKNOWN for k, v in value.items()}


VISUAL_MAP: dict[str, str] = {"*": "visual"}
"""Stands for the shipped map from fine types to visual classes."""


def _keys(entry: Any, known: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {entry!r}; expected a table")
    for key in entry:
        if key not in known:
            raise InputError(f"{where} has the unknown key {key!r}{_like(key, known)}")


def _one_of(name: str, known: Any, what: str, path: Path) -> None:
    if name not in known:
        raise InputError(f"the study {path} has no {what} {name!r}{_like(name, known)}; there are {', '.join(known)}")


def _like(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, [*known], 1)
    return f" (is it {close[0]}?)" if close else ""


def _list(entry: Mapping[str, Any], key: str, kind: type, path: Path) -> tuple[Any, ...]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(type(v) is kind for v in value):
        word = {int: "whole numbers", str: "texts"}[kind]
        raise InputError(f"{key} of the study {path} is {value!r}; expected a list of {word}")
    return tuple(value)
