"""From matched nuclei to a summary: scores by image, by group, by class and pooled, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.evaluation.counts import BINS, Counts, Floats
from stqp.evaluation.evaluate import Evaluation, Image
from stqp.evaluation.paired import compare, power
from stqp.evaluation.scores import count_match, describe
from stqp.evaluation.uncertainty import FEW_IMAGES, Sample, intervals

BLOCK_UM = 250.0
POWER_SCORES = ("pq", "aji", "f_d", "type_f1_macro")


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Scores of an evaluation.

    Returns
    -------
    dict
        Of the first prediction, as `stqp.evaluation.scores.summarise`, and ``prediction`` (its name), ``mpp``,
        ``area_mm2``, ``groups``, ``agreement`` (`agreement`), ``calibration`` (`reliability`), ``distances``,
        ``power``; ``others``: the same of the other predictions by name; ``comparisons``: of each other one
        with the first, and ``skipped``.
    """
    samples = samples_of(evaluation)
    results = {name: _one(evaluation, name, samples[name]) for name in evaluation.predictions}
    first, *others = evaluation.predictions
    steps = {image.name: image.mpp for image in evaluation.images}
    same = len(set(steps.values())) == 1
    return {
        "prediction": first,
        "mpp": next(iter(steps.values())) if same else steps,
        **results[first],
        "others": {name: results[name] for name in others},
        "comparisons": [_comparison(evaluation, samples, first, name) for name in others],
        "skipped": evaluation.skipped,
    }


def counts_of(evaluation: Evaluation, prediction: str) -> dict[str, Counts]:
    """Counts by image."""
    k = len(evaluation.classes)
    return {i.name: count_match(i.matches[prediction], k, area_mm2=i.area_mm2) for i in evaluation.images}


def samples_of(
    evaluation: Evaluation, images: Sequence[Image] | None = None, typed: Mapping[str, NDArray[np.bool_]] | None = None
) -> dict[str, Sample]:
    """What is resampled, for each prediction the same units: images, or blocks where these are few.

    Parameters
    ----------
    evaluation
        The matched nuclei.
    images
        Some of its images; all when None.
    typed
        By image and prediction (``image``, a tab, ``prediction``): true nuclei that count for typing.
    """
    images = evaluation.images if images is None else images
    options, k = evaluation.options, len(evaluation.classes)
    side = options.block_um or (BLOCK_UM if len(images) < FEW_IMAGES else None)
    result = {}
    for name in evaluation.predictions:
        parts, owner = [], []
        for number, image in enumerate(images):
            found = image.matches[name]
            mask = None if typed is None else typed[f"{image.name}\t{name}"]
            if side is None:
                parts.append(count_match(found, k, area_mm2=image.area_mm2, typed=mask))
                owner.append(number)
                continue
            group = _blocks(image, name, side)
            units = count_match(found, k, group, typed=mask)
            parts += [units[i] for i in range(group[2])]
            owner += [number] * group[2]
        unit = "images" if side is None else f"blocks of {side:g} µm"
        result[name] = Sample(Counts.stack(parts), np.array(owner), unit)
    return result


def _blocks(image: Image, name: str, side: float) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Block of each nucleus by its centre; blocks are numbered alike for all predictions."""
    cells = {}
    for prediction, found in image.matches.items():
        for which, xy in enumerate((found.overlap.true_xy, found.overlap.pred_xy)):
            cells[prediction, which] = np.floor(xy * image.mpp / side).astype(np.int64)
    every = np.concatenate([*cells.values()])
    if not len(every):
        return np.empty(0, np.int64), np.empty(0, np.int64), 1
    numbered, place = np.unique(every, axis=0, return_inverse=True)
    ends = np.cumsum([len(c) for c in cells.values()])
    by_key = dict(zip(cells, np.split(place.reshape(-1), ends[:-1]), strict=True))
    return by_key[name, 0], by_key[name, 1], len(numbered)


def _one(evaluation: Evaluation, name: str, sample: Sample) -> dict[str, Any]:
    options, classes = evaluation.options, evaluation.classes
    counts = counts_of(evaluation, name)
    stacked = Counts.stack([*counts.values()])
    result = describe(counts, classes)
    if len(sample) > 1 and options.bootstrap:
        result["interval"] = intervals(sample, classes, options.bootstrap, options.seed, options.interval)
    result["area_mm2"] = float(stacked.area_mm2.sum())
    result["groups"] = _groups(evaluation, name, counts)
    result["agreement"] = agreement(stacked, classes)
    result["calibration"] = reliability(stacked.pool())
    result["distances"] = _distances(evaluation.images, name)
    measures = stacked.measures()
    result["power"] = {s: found for s in POWER_SCORES if (found := power(measures[s], paired=False))}
    for image in evaluation.images:
        result["per_image"][image.name]["group"] = image.group
    return result


def _groups(evaluation: Evaluation, name: str, counts: Mapping[str, Counts]) -> dict[str, Any]:
    groups: dict[str, list[Image]] = {}
    for image in evaluation.images:
        if image.group is not None:
            groups.setdefault(image.group, []).append(image)
    result = {}
    options = evaluation.options
    for group in sorted(groups):
        found = describe({i.name: counts[i.name] for i in groups[group]}, evaluation.classes)
        sample = samples_of(evaluation, groups[group])[name]
        if len(sample) > 1 and options.bootstrap:
            found["interval"] = intervals(sample, evaluation.classes, options.bootstrap, options.seed, options.interval)
        del found["per_image"]
        result[group] = found
    return result


def agreement(images: Counts, classes: Sequence[str]) -> dict[str, Any]:
    """Bland and Altman's agreement of numbers and densities over images, predicted minus true (Lancet 1986).

    Parameters
    ----------
    images
        First axis: the images.
    classes
        Class names.

    Returns
    -------
    dict
        ``count`` and, where areas are known, ``density`` (nuclei per mm²): by class, and ``all nuclei``: ``bias``,
        ``sd``, ``low`` and ``high`` (limits of agreement, bias ± 1.96 sd), ``images``. Empty below 2 images.
    """
    true, pred = images.n_true, images.n_pred
    columns = {"all nuclei": (true.sum(axis=1), pred.sum(axis=1))}
    columns |= {name: (true[:, i], pred[:, i]) for i, name in enumerate(classes, start=1)}
    result: dict[str, Any] = {"count": {}}
    area = images.area_mm2[:, 0]
    if np.isfinite(area).all() and (area > 0).all():
        result["density"] = {}
    for kind in result:
        scale = np.ones(len(area)) if kind == "count" else area
        for name, (a, b) in columns.items():
            difference = (b - a) / scale
            if len(difference) < 2:
                continue
            bias, sd = float(difference.mean()), float(difference.std(ddof=1))
            low, high = bias - 1.96 * sd, bias + 1.96 * sd
            result[kind][name] = {"bias": bias, "sd": sd, "low": low, "high": high, "images": len(difference)}
    return result


def reliability(pooled: Counts) -> dict[str, Any]:
    """Reliability diagram: for each bin of the probability its nuclei, their mean probability and share right."""
    number, confidence, right = pooled.calibration.T
    if not number.sum():
        return {}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "ece": float(pooled.measures()["ece"]),
            "edges": np.linspace(0, 1, BINS + 1).tolist(),
            "n": number.astype(int).tolist(),
            "probability": (confidence / number).tolist(),
            "accuracy": (right / number).tolist(),
        }


def _distances(images: Sequence[Image], name: str) -> dict[str, Any]:
    """Mean, median and 95th percentile over pairs, in µm."""
    found = [image.matches[name] for image in images]
    boundary = np.concatenate([np.zeros((0, 3)) if m.boundary is None else m.boundary for m in found])
    boundary = boundary[~np.isnan(boundary[:, 0])]
    columns = {
        "centre_um": np.concatenate([m.distance for m in found]),
        "boundary_mean_um": boundary[:, 0],
        "boundary_median_um": boundary[:, 1],
        "hausdorff95_um": boundary[:, 2],
    }
    return {key: _spread(values) for key, values in columns.items() if len(values)}


def _spread(values: Floats) -> dict[str, float]:
    middle, high = np.quantile(values, [0.5, 0.95])
    return {"pairs": len(values), "mean": float(values.mean()), "median": float(middle), "p95": float(high)}


def _comparison(evaluation: Evaluation, samples: Mapping[str, Sample], first: str, second: str) -> dict[str, Any]:
    options, classes = evaluation.options, evaluation.classes
    arguments = (classes, options.bootstrap, options.seed, options.interval)
    baseline = second in evaluation.baselines
    result = {
        "first": first,
        "second": second,
        "baseline": baseline,
        **compare(samples[first], samples[second], *arguments),
    }
    masks = _common(evaluation.images, (first, second))
    common = samples_of(evaluation, typed=masks)
    found = compare(common[first], common[second], *arguments)
    chosen = ("type_", "precision", "recall")
    result["common"] = {
        "nuclei": int(sum(masks[f"{i.name}\t{first}"].sum() for i in evaluation.images)),
        **{kind: {k: v for k, v in found[kind].items() if k.startswith("type_")} for kind in ("mean", "pooled")},
        "pooled_per_class": {
            name: {k: v for k, v in values.items() if k.startswith(chosen)}
            for name, values in found["pooled_per_class"].items()
        },
    }
    each = [Counts.stack([*counts_of(evaluation, name).values()]).measures() for name in (first, second)]
    result["power"] = {
        score: found for score in POWER_SCORES if (found := power(each[1][score] - each[0][score], paired=True))
    }
    return result


def _common(images: Sequence[Image], names: tuple[str, str]) -> dict[str, NDArray[np.bool_]]:
    """True nuclei that both predictions found, so that both type the same ones."""
    masks = {}
    for image in images:
        found = [image.matches[name] for name in names]
        ids = [m.overlap.true_ids[m.true] for m in found]
        both = np.intersect1d(ids[0], ids[1])
        for name, matched in image.matches.items():
            masks[f"{image.name}\t{name}"] = np.isin(matched.overlap.true_ids, both)
    return masks


def power_sentence(score: str, found: Mapping[str, Any]) -> str:
    """What a study of this size can see, in words."""
    needed = ", ".join(f"{n} for {float(d):g}" for d, n in found["needed"].items() if math.isfinite(n))
    how = "" if found["paired"] else " from another model, if the two correlate by 0.5 over images,"
    return (
        f"With {found['images']} images you can see a difference{how} of {found['detectable']:.3f} in {score} "
        f"(80 % power, 5 %, two-sided); needed are {needed}."
    )
