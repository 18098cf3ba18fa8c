"""How sure a score is: bootstrap over images or spatial blocks, and what a study of a given size can see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.evaluation.counts import Counts, Floats

LEVEL = 0.95
FEW_IMAGES = 5
"""With fewer images than this, spatial blocks within the images are resampled."""
METHODS = ("bca", "percentile")
_ROWS = 512  # of weights that are in memory at a time


@dataclass(frozen=True)
class Sample:
    """What is resampled: whole images, or the blocks within each image.

    Nuclei of one image are alike, so the nuclei themselves are never resampled.

    Attributes
    ----------
    units : Counts
        First axis: the images or the blocks.
    image : int64 (units,)
        Image of each unit, 0..n - 1.
    unit : str
        ``images``, or ``blocks`` of a given size.
    """

    units: Counts
    image: NDArray[np.int64]
    unit: str = "images"

    @classmethod
    def of_images(cls, images: Counts) -> Sample:
        """Resample images; the first axis of the counts."""
        return cls(images, np.arange(len(images.pixels)))

    def __len__(self) -> int:
        """Count the units."""
        return len(self.image)

    @property
    def whole(self) -> bool:
        """Whether images are resampled; else blocks are, within their image."""
        return len(np.unique(self.image)) == len(self.image)

    def draws(self, resamples: int, rng: np.random.Generator) -> Floats:
        """Draw with replacement how often each unit counts, (resamples, units)."""
        weights = np.zeros((resamples, len(self)))
        strata = (
            [np.arange(len(self))] if self.whole else [np.flatnonzero(self.image == i) for i in np.unique(self.image)]
        )
        for members in strata:
            share = np.full(len(members), 1 / len(members))
            weights[:, members] = rng.multinomial(len(members), share, resamples)
        return weights

    def statistics(self, weights: Floats) -> dict[str, dict[str, Floats]]:
        """Scores of weighted units: ``mean`` over images and ``pooled``, each (rows of the weights, ...).

        Scores of single classes are under ``class:`` and their name, (rows, k).
        """
        pooled = _named(self.units.weighted(weights))
        if self.whole:
            each = _named(self.units)
            return {"mean": {k: _weighted_mean(weights, v) for k, v in each.items()}, "pooled": pooled}
        sums: dict[str, Floats] = {}
        numbers: dict[str, Floats] = {}
        for i in np.unique(self.image):
            members = np.flatnonzero(self.image == i)
            for name, value in _named(self.units[members].weighted(weights[:, members])).items():
                defined = ~np.isnan(value)
                sums[name] = sums.get(name, 0) + np.where(defined, value, 0)
                numbers[name] = numbers.get(name, 0) + defined.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"mean": {name: sums[name] / numbers[name] for name in sums}, "pooled": pooled}

    def without_each(self) -> dict[str, dict[str, Floats]]:
        """Scores without each unit in turn, as `statistics`."""

        def rows(start: int, stop: int) -> Floats:
            weights = np.ones((stop - start, len(self)))
            weights[np.arange(stop - start), np.arange(start, stop)] = 0
            return weights

        return in_batches(len(self), lambda start, stop: self.statistics(rows(start, stop)))


def in_batches(number: int, make: Callable[[int, int], dict[str, dict[str, Floats]]]) -> dict[str, dict[str, Floats]]:
    """Statistics of many rows, some hundred at a time: thousands of images against each other fill a machine."""
    parts = [make(start, min(start + _ROWS, number)) for start in range(0, number, _ROWS)]
    return {
        kind: {name: np.concatenate([p[kind][name] for p in parts]) for name in parts[0][kind]} for kind in parts[0]
    }


def _named(counts: Counts) -> dict[str, Floats]:
    return {**counts.measures(), **{f"class:{k}": v for k, v in counts.class_measures().items()}}


def _weighted_mean(weights: Floats, values: Floats) -> Floats:
    """Mean over the first axis without what is undefined."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.tensordot(weights, np.where(defined, values, 0), 1) / np.tensordot(weights, defined.astype(float), 1)


def intervals(
    sample: Sample, classes: Sequence[str], resamples: int = 1000, seed: int = 0, method: str = "bca"
) -> dict[str, Any]:
    """95 % intervals of all scores.

    Parameters
    ----------
    sample
        What is resampled.
    classes
        Class names.
    resamples
        Number of resamples.
    seed
        Of the draws.
    method
        ``bca`` (bias-corrected and accelerated, Efron 1987), or ``percentile``.

    Returns
    -------
    dict
        ``method``, ``over`` (images or blocks), ``units``, ``resamples``; ``mean`` and ``pooled``: low and
        high by score; ``mean_per_class`` and ``pooled_per_class``: by class and score. Scores that are
        undefined, or have fewer than 20 defined resamples, have none.
    """
    n = len(sample)
    drawn = sample.statistics(sample.draws(resamples, np.random.default_rng(seed)))
    all_in = sample.statistics(np.ones((1, n)))
    left_out = sample.without_each() if method == "bca" else None
    result: dict[str, Any] = {"method": method, "over": sample.unit, "units": n, "resamples": resamples}
    for kind in ("mean", "pooled"):
        plain: dict[str, list[float]] = {}
        by_class: dict[str, dict[str, list[float]]] = {name: {} for name in classes}
        for name, values in drawn[kind].items():
            jackknife = None if left_out is None else left_out[kind][name]
            if not name.startswith("class:"):
                if found := interval(values, float(all_in[kind][name][0]), jackknife):
                    plain[name] = found
                continue
            for i, of_class in enumerate(classes):
                part = None if jackknife is None else jackknife[:, i]
                if found := interval(values[:, i], float(all_in[kind][name][0, i]), part):
                    by_class[of_class][name.removeprefix("class:")] = found
        result[kind], result[f"{kind}_per_class"] = plain, by_class
    return result


def interval(drawn: Floats, estimate: float, jackknife: Floats | None = None) -> list[float] | None:
    """95 % interval of a bootstrap distribution: BCa where the jackknife is given, else percentiles.

    Parameters
    ----------
    drawn : (resamples,)
        The score of each resample.
    estimate
        The score of the data.
    jackknife : (units,)
        The score without each unit.

    Returns
    -------
    list of float or None
        None where the score is undefined.
    """
    drawn = drawn[~np.isnan(drawn)]
    if math.isnan(estimate) or len(drawn) < 20:
        return None
    tails = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if jackknife is not None and drawn.min() < drawn.max():
        tails = _bca(drawn, estimate, jackknife[~np.isnan(jackknife)], tails)
    return [float(v) for v in np.quantile(drawn, tails)]


def _bca(drawn: Floats, estimate: float, jackknife: Floats, tails: Floats) -> Floats:
    """Corrected tails of a bootstrap distribution (Efron 1987); percentiles where the correction is undefined."""
    from scipy.special import ndtr, ndtri

    below = (np.sum(drawn < estimate) + np.sum(drawn <= estimate)) / (2 * len(drawn))
    gap = jackknife.mean() - jackknife if len(jackknife) else np.zeros(1)
    spread = float((gap**2).sum())
    if not 0 < below < 1 or spread <= 0:
        return tails
    bias, acceleration = ndtri(below), float((gap**3).sum()) / (6 * spread**1.5)
    shifted = bias + ndtri(tails)
    return np.asarray(ndtr(bias + shifted / (1 - acceleration * shifted)), np.float64)


def detectable_difference(spread: float, images: int, power: float = 0.8, level: float = 0.05) -> float:
    """Smallest mean difference that a paired t test over images sees with the given power.

    Parameters
    ----------
    spread
        Standard deviation over images of the difference of two models.
    images
        Number of images, at least 2.
    power, level
        Chance to see it; two-sided error.
    """
    from scipy.optimize import brentq

    if images < 2 or not spread > 0:
        return math.nan
    shortfall = _shortfall(images, power, level)
    return float(brentq(shortfall, 1e-6, 1e4) * spread / math.sqrt(images))


def needed_images(spread: float, difference: float, power: float = 0.8, level: float = 0.05) -> int:
    """Images that a paired t test needs to see a mean difference; see `detectable_difference`."""
    low, high = 2, 4
    while detectable_difference(spread, high, power, level) > difference:
        low, high = high, 2 * high
        if high > 1_000_000:
            return high
    while high - low > 1:
        middle = (low + high) // 2
        if detectable_difference(spread, middle, power, level) > difference:
            low = middle
        else:
            high = middle
    return low if detectable_difference(spread, low, power, level) <= difference else high


def _shortfall(images: int, power: float, level: float) -> Callable[[float], float]:
    from scipy.stats import nct, t

    freedom = images - 1
    critical = t.ppf(1 - level / 2, freedom)

    def missing(shift: float) -> float:
        value = float(nct.sf(critical, freedom, shift))
        return (1.0 if math.isnan(value) else value) - power  # far out the distribution runs out of digits

    return missing
