"""Predicted nuclei against the truth, of any number of images and of one or more models."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stqp.errors import InputError
from stqp.evaluation.area import area_mm2, boxes_of, within
from stqp.evaluation.nuclei import Side, common_mpp, compare_sides, map_names, typed
from stqp.evaluation.options import Options, Source
from stqp.evaluation.scores import Match
from stqp.inference.held_out import Boxes
from stqp.inference.maps import map_stem
from stqp.polygons import Polygons
from stqp.taxonomy import UNKNOWN, ordered

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Image:
    """An image with its matched nuclei.

    Attributes
    ----------
    name : str
        As the truth calls it.
    matches : dict of Match
        By prediction.
    mpp : float
        µm per px.
    area_mm2 : float
        Scored; NaN where it is not known.
    about : dict
        Text by key.
    group : str or None
        Its group, such as an organ.
    """

    name: str
    matches: dict[str, Match]
    mpp: float
    area_mm2: float
    about: Mapping[str, str]
    group: str | None = None


@dataclass
class Evaluation:
    """Matched nuclei of all images; `stqp.evaluation.summary` makes scores of them.

    Attributes
    ----------
    classes : list of str
        Classes 1, 2, ...
    predictions : list of str
        Names of the predictions.
    images : list of Image
        In order of their names.
    skipped : dict
        Number by reason.
    options : Options
        As given.
    true : Source
        The truth.
    pred : dict of Source
        By prediction, for pictures.
    pairs : dict
        For each prediction, its name of each image.
    baselines : list of str
        Predictions that no model made.
    """

    classes: list[str]
    predictions: list[str]
    images: list[Image]
    skipped: dict[str, int]
    options: Options
    true: Source
    pred: dict[str, Source]
    pairs: dict[str, dict[str, str]] = field(default_factory=dict)
    baselines: list[str] = field(default_factory=list)


def evaluate(
    true: Source, pred: Mapping[str, Source], options: Options | None = None, progress: Progress | None = None
) -> Evaluation:
    """Match the nuclei of one or more predictions with the truth.

    Parameters
    ----------
    true
        The truth.
    pred
        Predictions by name.
    options
        See `Options`.
    progress
        Called with the images done and their number.

    Raises
    ------
    InputError
        When an image is missing on one side, sizes or µm per px differ, or a file is not what it should be.
    """
    options = options or Options()
    skipped: dict[str, int] = {}
    boxes = None if options.held_out is None else boxes_of(options.held_out)
    about = {} if options.metadata is None else read_metadata(options.metadata)
    pairs = {name: _pair(true, source, boxes, options) for name, source in pred.items()}
    if options.type_names:
        for source in (true, *pred.values()):
            source.default_names = options.type_names
    wanted = sorted({image for of_source in pairs.values() for image in of_source})
    sides: dict[tuple[str, str], tuple[Match, Side, Side]] = {}
    images: list[Image] = []
    from stqp.evaluation.projects import ProjectNuclei

    for done, image in enumerate(wanted, start=1):
        truth = _mapped(true.read(image), options, skipped)
        for reason, number in truth.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + number
        if isinstance(true, ProjectNuclei) and not len(truth):
            skipped["images without true nuclei"] = skipped.get("images without true nuclei", 0) + 1
            continue
        box = None if boxes is None else boxes[image if image in boxes else map_stem(image)]
        mpp = 0.0
        for name, source in pred.items():
            partner = pairs[name].get(image)
            found = _nothing(truth, image) if not partner else _mapped(source.read(partner), options, skipped)
            _check_named_alike(truth, found)
            mpp = common_mpp(truth, found, options.mpp)
            matched = compare_sides(truth, found, mpp, options.boundaries)
            matched = within(matched, truth.coverage, box, skipped)
            sides[image, name] = matched, _light(truth), _light(found)
        more = {**truth.about, **_about(image, about, options)}
        area = area_mm2(truth, box, mpp)
        images.append(Image(image, {}, mpp, area, more, more.get(options.group_by)))
        if progress:
            progress(done, len(wanted))
    if not images:
        raise InputError(f"no image of {true.name} has true nuclei to score against; see --true-kind")
    classes = _classes(sides)
    for name in pred:
        # a prediction without any class is not wrong about classes, it says nothing
        says = any((sides[each.name, name][2].classes != UNKNOWN).any() for each in images)
        for each in images:
            matched, truth, found = sides[each.name, name]
            each.matches[name] = typed(matched, truth, found, classes if says else [])
    return Evaluation(classes, [*pred], images, skipped, options, true, dict(pred), pairs)


def _pair(true: Source, pred: Source, boxes: Mapping[str, Boxes] | None, options: Options) -> dict[str, str]:
    """Image of the prediction for each image of the truth: of the same name, or the same stem."""
    from stqp.evaluation.projects import ProjectNuclei

    a, b = true.images(), pred.images()
    if boxes is not None:
        a = [image for image in a if image in boxes or map_stem(image) in boxes]
        if not a:
            raise InputError(
                f"no image of {true.name} is one that {options.held_out} held out; those are {', '.join(sorted(boxes))}"
            )
    one = isinstance(true, ProjectNuclei) and isinstance(pred, ProjectNuclei)
    if one and true.target.entry and pred.target.entry:  # type: ignore[attr-defined]
        return {a[0]: b[0]}
    exact = set(b)
    stems: dict[str, str] = {}
    for image in b:
        stems.setdefault(map_stem(image), image)
    found = {image: image if image in exact else stems.get(map_stem(image), "") for image in a}
    missing = [image for image in a if not found[image]]
    if missing and not options.allow_missing:
        raise _lacks(pred.name, missing, true.name)
    found = {image: partner for image, partner in found.items() if partner}
    extra = sorted(exact - set(found.values()))
    if extra and boxes is None and not isinstance(pred, ProjectNuclei):
        raise _lacks(true.name, extra, pred.name)
    return {image: found.get(image, "") for image in a} if options.allow_missing else found


def _lacks(where: str, missing: Sequence[str], other: str) -> InputError:
    more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    return InputError(
        f"expected the same images on both sides, found none in {where} for {', '.join(missing[:10])}{more} of {other}"
    )


def _nothing(truth: Side, image: str) -> Side:
    if truth.points is not None:
        return Side(f"nothing for {image}", np.empty(0, object), points=np.empty((0, 2)))
    if truth.inst is not None:
        return Side(f"nothing for {image}", np.empty(0, object), inst=np.zeros_like(truth.inst))
    return Side(f"nothing for {image}", np.empty(0, object), polygons=Polygons.empty())


def _check_named_alike(truth: Side, found: Side) -> None:
    """Refuse numbers against names: whose class 1 is which cannot be guessed."""
    numbered = []
    for side in (truth, found):
        names = {str(c) for c in side.classes.tolist()} - {UNKNOWN}
        numbered.append(None if not names else all(name.isdigit() for name in names))
    if None not in numbered and numbered[0] != numbered[1]:
        one, two = (truth, found) if numbered[0] else (found, truth)
        raise InputError(
            f"the types in {one.source} are numbers and those in {two.source} are names; say which is which by --type "
            "1=Neoplastic ..., or by a classes.json beside the maps"
        )


def _mapped(side: Side, options: Options, skipped: dict[str, int]) -> Side:
    if options.class_map is None:
        return side
    side, lost = map_names(side, options.class_map)
    if lost:
        reason = "nuclei of classes that the class map lacks, from typing"
        skipped[reason] = skipped.get(reason, 0) + lost
    return side


def _light(side: Side) -> Side:
    """A side without what takes memory; pictures read it again."""
    return Side(side.source, side.classes)


def read_metadata(path: Path) -> dict[str, dict[str, str]]:
    """Read a csv of images: a column ``image``, and others.

    Raises
    ------
    InputError
        When it is none.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [*csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the metadata {path} cannot be read: {error}") from error
    if not rows or "image" not in rows[0]:
        columns = ", ".join(rows[0]) if rows else "nothing"
        raise InputError(f"expected a csv with a column image in {path}, found {columns}")
    return {
        map_stem(str(row["image"])): {str(k).lower(): str(v) for k, v in row.items() if k and v and k != "image"}
        for row in rows
    }


def _about(image: str, about: Mapping[str, Mapping[str, str]], options: Options) -> Mapping[str, str]:
    if not about:
        return {}
    if map_stem(image) not in about:
        raise InputError(f"the metadata {options.metadata} have no row for the image {image}")
    return about[map_stem(image)]


def _classes(sides: Mapping[Any, tuple[Match, Side, Side]]) -> list[str]:
    """Classes of the truth, then those that are only predicted; of the nuclei that count."""
    true: set[str] = set()
    pred: set[str] = set()
    for found, a, b in sides.values():
        true |= set(np.unique(a.classes[found.overlap.true_ids - 1].astype(str)).tolist())
        pred |= set(np.unique(b.classes[found.overlap.pred_ids - 1].astype(str)).tolist())
    true -= {UNKNOWN}
    if not true:  # nothing to be right or wrong about
        return []
    return _in_order(true) + _in_order(pred - true - {UNKNOWN})


def _in_order(names: set[str]) -> list[str]:
    """Numbers by their value, names by the taxonomy."""
    return sorted(names, key=int) if all(n.isdigit() for n in names) else ordered(names)


def evaluate_maps(
    true_folder: Path,
    pred_folder: Path,
    mpp: float | None = None,
    *,
    held_out: Path | None = None,
    bootstrap: int = 1000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a folder of predicted instance maps; see `evaluate` and `stqp.evaluation.summary.summary`."""
    from stqp.evaluation.map_files import MapFolder
    from stqp.evaluation.summary import summary

    options = Options(mpp=mpp, held_out=held_out, bootstrap=bootstrap)
    return summary(evaluate(MapFolder(true_folder), {"prediction": MapFolder(pred_folder)}, options, progress))


def evaluate_projects(
    true: str,
    pred: str,
    *,
    true_kind: str = "auto",
    pred_kind: str = "auto",
    model: str | None = None,
    held_out: Path | None = None,
    mpp: float | None = None,
    bootstrap: int = 1000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the predicted nuclei of QuPath projects; see `evaluate`, `ProjectNuclei` and `summary.summary`."""
    from stqp.evaluation.projects import ProjectNuclei
    from stqp.evaluation.summary import summary

    options = Options(mpp=mpp, held_out=held_out, bootstrap=bootstrap)
    with ExitStack() as stack:
        truth = stack.enter_context(closing(ProjectNuclei(true, kind=true_kind, mpp=mpp)))
        found = stack.enter_context(
            closing(ProjectNuclei(pred, kind=pred_kind, predicted=True, model=model, other=truth, mpp=mpp))
        )
        return summary(evaluate(truth, {"prediction": found}, options, progress))
