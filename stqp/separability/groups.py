"""Which nuclei of a project belong to which group: cluster, fine type, class, or any column of the cells."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.celltyping.fine_types import class_of_fine_type
from stqp.celltyping.taxonomies import VISUAL
from stqp.errors import InputError, UsageError
from stqp.importing.labelling import SAMPLE_FILE, cell_of
from stqp.importing.typing import read_counts
from stqp.polygons import Polygons
from stqp.qupath.objects import PathObjects
from stqp.qupath.ownership import SOURCE_KEY, settled, written_classes
from stqp.record import RunRecord
from stqp.taxonomy import UNKNOWN

Objects = NDArray[np.object_]
Ints = NDArray[np.int64]

BY = ("cluster", "fine", "class")
NEOPLASTIC = "Neoplastic"
_COLUMNS = {"cluster": "cluster", "fine": "fine_type"}


@dataclass(frozen=True)
class SlideNuclei:
    """The nuclei of one image and what is known of them.

    Attributes
    ----------
    name
        Of the image.
    image
        Its file.
    mpp
        Its µm per px.
    polygons : Polygons
        All ``n`` nuclei, in full-resolution px.
    ids, cells : object (n,)
        Ids of the objects, and of their cells.
    group : object (n,)
        Name of the group, None for those that are left out.
    type : object (n,)
        What a taxonomy can name: fine type (or the group itself); None for those that are left out.
    classes : object (n,)
        As they stand.
    coverage : Polygons or None
    """

    name: str
    image: Path
    mpp: float
    polygons: Polygons
    ids: Objects
    cells: Objects
    group: Objects
    type: Objects
    classes: Objects
    coverage: Polygons | None = None


@dataclass
class Group:
    """One group of nuclei.

    Attributes
    ----------
    name
        As shown: ``3 Endothelial cells``.
    type
        What a taxonomy calls it: a fine type, or for groups by class the class.
    lineage
        Class of most of its nuclei.
    nuclei, blocks, slides : int
    classes, types : dict
        Nuclei by class, and by what a taxonomy can name.
    """

    name: str
    type: str
    lineage: str
    nuclei: int = 0
    blocks: int = 0
    slides: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)


def samples_of(entry: Any) -> list[dict[str, str]]:
    """Samples of an image with the files of their cells, as the import noted them."""
    path = entry.stqp_folder / SAMPLE_FILE
    try:
        first = json.loads(path.read_text(encoding="utf-8"))
        return [
            {"sample": str(s["sample"]), "expression": str(s["expression"])}
            for s in (first, *first.get("other_samples", {}).values())
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what stqp writes there ({error}); import the sample again") from error


def read_slide(entry: Any, by: str, record: RunRecord) -> SlideNuclei:
    """Read the nuclei of an image and their groups; what is left out is counted in the record.

    Parameters
    ----------
    entry
        Of a project; with counts beside it.
    by
        ``cluster``, ``fine``, ``class``, or a column of ``obs``.
    record
        Gets inputs and counts.

    Raises
    ------
    InputError
        When the image is missing, nothing was imported or labelled, or there is no such column.
    """
    image = entry.image_path
    if image is None or not image.is_file():
        raise InputError(f"the image of {entry.name} is not where the project has it ({entry.image_uri})")
    if entry.mpp is None:
        raise InputError(f"the project does not know the µm per pixel of {entry.name}; import it again")
    present = entry.read_objects()
    column = present.metadata.get(SOURCE_KEY, np.full(len(present), None, object))
    sources = np.array([str(text or "") for text in column.tolist()], object)
    imported = np.array([text.startswith("import-") for text in sources.tolist()], bool)
    if not imported.any():
        raise InputError(f"{entry.name} has no imported nuclei; import a sample first")
    record.skip("objects that no import wrote", int((~imported).sum()))
    objects, sources = present.take(imported), sources[imported]
    n = len(objects)
    group, kind = np.full(n, None, object), np.full(n, None, object)
    cells = np.full(n, None, object)
    samples = samples_of(entry)
    for sample in samples:
        mine = np.flatnonzero([text.split(":", 1)[-1] == sample["sample"] for text in sources.tolist()])
        path = entry.stqp_folder / sample["expression"]
        adata = read_counts(path)
        record.add_input(path)
        ids = np.array([str(i) for i in adata.obs_names], object)
        at = cell_of(objects.take(mine), ids, adata, sample["sample"])
        record.skip("nuclei whose cell is not among the counts", int((at < 0).sum()))
        mine, at = mine[at >= 0], at[at >= 0]
        cells[mine] = ids[at]
        group[mine], kind[mine] = _groups(adata.obs, at, objects.classes[mine], by, path)
    if by == "cluster" and len(samples) > 1:
        raise UsageError(f"{entry.name} has {len(samples)} samples, whose clusters are not the same; give --by fine")
    _leave_out(objects, by, group, kind, record)
    nuclei = objects.nuclei
    outlines = objects.polygons if nuclei is None or not len(nuclei.coords) else nuclei
    return SlideNuclei(
        entry.name, image, entry.mpp, outlines, objects.ids, cells, group, kind, objects.classes, coverage_of(entry)
    )


def coverage_of(entry: Any) -> Polygons | None:
    """Where the run looked for nuclei, in full-resolution px; None when it does not say."""
    content = json.loads((entry.stqp_folder / SAMPLE_FILE).read_text(encoding="utf-8"))
    rings = [np.asarray(r, float).reshape(-1, 2) for r in content.get("coverage", []) if len(r) >= 3]
    if not rings:
        return None
    return Polygons.from_rings(np.concatenate(rings), np.cumsum([0, *map(len, rings)]))


def _groups(obs: Any, at: Ints, classes: Objects, by: str, path: Path) -> tuple[Objects, Objects]:
    """Group and type of nuclei whose cells are the rows `at`."""
    # tumour and epithelium share fine types: it is the evidence, not a marker, that sets them apart
    tumour = np.array([c == NEOPLASTIC for c in classes.tolist()], bool)
    fine = _texts(obs["fine_type"])[at] if "fine_type" in obs else np.full(len(at), None, object)
    kind = fine.copy()
    kind[tumour] = NEOPLASTIC
    if by == "class":
        nameless = np.array([k is None for k in kind.tolist()], bool)
        kind[nameless] = classes[nameless]
        return classes.copy(), kind
    name = _COLUMNS.get(by, by)
    if name not in obs:
        what = "is not labelled yet: run stqp label first" if by in _COLUMNS else _columns(obs)
        raise InputError(f"the cells {path} have no column {name!r}; the image {what}")
    texts = _texts(obs[name])[at]
    if by not in _COLUMNS:
        return texts, texts.copy()
    if by == "cluster":
        texts[np.isin(texts.astype(str), ["-1"])] = None
        if not any(t is not None for t in texts.tolist()):
            raise InputError(f"no cell of {path} is in a cluster; give --by fine, --by class or --by label")
    named = [
        None
        if text is None or (by == "cluster" and word is None)
        else f"{text} {word}"
        if by == "cluster"
        else f"{NEOPLASTIC} ({text})"
        if bad
        else text
        for text, word, bad in zip(texts.tolist(), fine.tolist(), tumour.tolist(), strict=True)
    ]
    group = np.empty(len(at), object)
    group[:] = named
    return group, kind


def _columns(obs: Any) -> str:
    few = [str(c) for c in obs.columns if 1 < obs[c].nunique() <= 200]
    return f"has {', '.join(few) or 'none that could be grouped by'}"


def _texts(column: Any) -> Objects:
    """Text of each row, None where there is none."""
    result = np.empty(len(column), object)
    result[:] = [None if v is None or v != v or str(v) == "" else str(v) for v in column.astype(object).tolist()]
    return result


def _leave_out(objects: PathObjects, by: str, group: Objects, kind: Objects, record: RunRecord) -> None:
    """Take out what has no label worth learning from; count by reason."""
    empty = objects.polygons.area() <= 0
    changed = settled(objects)
    written = written_classes(objects)
    # of another class than was written: a person says that the expression is wrong
    contrary = changed & (objects.classes != written)
    unknown = np.array([c is None or c == UNKNOWN for c in objects.classes.tolist()], bool)
    left = np.array([g is None for g in group.tolist()], bool)
    reasons = {"nuclei that are Unknown": unknown & ~contrary, "nuclei without an outline": empty}
    if by != "class":
        reasons["nuclei whose class somebody corrected (their expression says another)"] = contrary
    else:
        reasons["nuclei that somebody made Unknown"] = unknown & contrary
    gone = np.zeros(len(group), bool)
    for reason, of in reasons.items():
        record.skip(reason, int((of & ~gone).sum()))
        gone |= of
    record.skip("nuclei without a group", int((left & ~gone).sum()))
    if by == "class" and contrary.any():
        record.count("corrected nuclei, taken as somebody corrected them", int((contrary & ~unknown).sum()))
    group[gone | left] = None
    kind[gone | left] = None


def table_of(group: Objects, kind: Objects, classes: Objects, block: Ints, slide: Ints, by: str) -> list[Group]:
    """All groups, the largest lineage first and in it the largest group first.

    Parameters
    ----------
    group, kind, classes : object (n,)
        Of the nuclei that take part.
    block, slide : int64 (n,)
        Spatial block and slide of each.
    by
        What the groups are.
    """
    groups = []
    names, code = np.unique(group.astype(str), return_inverse=True)
    for i, name in enumerate(names.tolist()):
        of = np.flatnonzero(code == i)
        counts = Counter(str(c) for c in classes[of].tolist())
        lineage = max(counts, key=lambda c: (counts[c], c))
        types = Counter(str(t) for t in kind[of].tolist() if t is not None)
        groups.append(
            Group(
                name,
                max(types, key=lambda t: (types[t], t)) if types and by != "class" else name,
                lineage,
                len(of),
                len(np.unique(block[of])),
                len(np.unique(slide[of])),
                dict(counts.most_common()),
                dict(types.most_common()) or {name: len(of)},
            )
        )
    size: Counter[str] = Counter()
    for g in groups:
        size[g.lineage] += g.nuclei
    return sorted(groups, key=lambda g: (-size[g.lineage], g.lineage, -g.nuclei, g.name))


def lineage_of(group: Group) -> str:
    """Visual class of a group: its own class, or that of its fine type where its class is of another taxonomy."""
    if group.lineage in VISUAL:
        return group.lineage
    found = class_of_fine_type(group.type)
    return found if found is not None and found in VISUAL else group.lineage
