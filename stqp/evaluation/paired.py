"""Whether one model is better than another on the same images: paired intervals and permutation tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import UsageError
from stqp.evaluation.counts import Counts, Floats
from stqp.evaluation.uncertainty import Sample, detectable_difference, in_batches, interval, needed_images

EXACT_UNITS = 12
"""Up to so many units all exchanges are tried, 4,096; above, random ones."""
PERMUTATIONS = 4_999


def compare(
    first: Sample,
    second: Sample,
    classes: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
    method: str = "bca",
) -> dict[str, Any]:
    """Difference of all scores of two models, second minus first.

    The interval is the paired bootstrap's: both models are scored on the same resampled units. The p value is
    of a permutation test in which the two models exchange their results on whole units; of ``n`` units its least
    value is ``2 / 2^n``.

    Parameters
    ----------
    first, second
        The same units in the same order.
    classes
        Class names.
    resamples
        For the interval.
    seed
        Of resamples and permutations.
    method
        ``bca`` or ``percentile``.

    Returns
    -------
    dict
        ``over``, ``units``, ``method``, ``test`` (``exact`` or ``random``), ``permutations``; ``mean`` and
        ``pooled``: by score ``first``, ``second``, ``difference``, ``interval``, ``p``; ``mean_per_class`` and
        ``pooled_per_class``: by class and score.

    Raises
    ------
    UsageError
        When the units differ.
    """
    n = len(first)
    if n != len(second) or not np.array_equal(first.image, second.image):
        raise UsageError(f"expected two models on the same units, found {n} and {len(second)}")
    rng = np.random.default_rng(seed)
    weights = first.draws(resamples, rng) if n > 1 else np.ones((0, n))
    ones = np.ones((1, n))
    exchanges = _exchanges(n, rng)
    result: dict[str, Any] = {
        "over": first.unit,
        "units": n,
        "method": method,
        "test": "exact" if n <= EXACT_UNITS else "random",
        "permutations": len(exchanges),
    }
    a, b = first.statistics(ones), second.statistics(ones)
    drawn = _difference(first.statistics(weights), second.statistics(weights))
    bca = method == "bca" and n > 1
    jackknife = _difference(first.without_each(), second.without_each()) if bca else None
    permuted = in_batches(len(exchanges), lambda start, stop: _exchanged(first, second, exchanges[start:stop]))
    for kind in ("mean", "pooled"):
        plain: dict[str, dict[str, Any]] = {}
        by_class: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in classes}
        for name in a[kind]:
            parts = [None] if not name.startswith("class:") else [*range(len(classes))]
            for i in parts:
                at = (slice(None),) if i is None else (slice(None), i)
                values = float(a[kind][name][at][0]), float(b[kind][name][at][0])
                difference = values[1] - values[0]
                jack = None if jackknife is None else jackknife[kind][name][at]
                found = {
                    "first": values[0],
                    "second": values[1],
                    "difference": difference,
                    "interval": interval(drawn[kind][name][at], difference, jack),
                    "p": _p_value(permuted[kind][name][at], difference, len(exchanges), n),
                }
                if i is None:
                    plain[name] = found
                else:
                    by_class[classes[i]][name.removeprefix("class:")] = found
        result[kind], result[f"{kind}_per_class"] = plain, by_class
    return result


def _difference(a: dict[str, dict[str, Floats]], b: dict[str, dict[str, Floats]]) -> dict[str, dict[str, Floats]]:
    return {kind: {name: b[kind][name] - a[kind][name] for name in a[kind]} for kind in a}


def _exchanges(n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which units are exchanged in each permutation; the first exchanges none."""
    if n <= EXACT_UNITS:
        return np.array([*itertools.product((False, True), repeat=n)])
    return np.concatenate([np.zeros((1, n), bool), rng.integers(0, 2, (PERMUTATIONS, n), dtype=np.uint8) > 0])


def _exchanged(first: Sample, second: Sample, exchanges: NDArray[np.bool_]) -> dict[str, dict[str, Floats]]:
    """Differences of the scores after the two models have exchanged their results on some units."""
    both = Counts.concatenate([first.units, second.units])
    joined = Sample(both, np.concatenate([first.image, second.image]), first.unit)
    kept = np.concatenate([~exchanges, exchanges], axis=1).astype(np.float64)
    if first.whole:
        joined = Sample(both, np.arange(len(joined)), first.unit)  # each image is taken from one of the two
    return _difference(joined.statistics(kept), joined.statistics(1 - kept))


def _p_value(permuted: Floats, difference: float, number: int, units: int) -> float:
    """Share of the exchanges, none among them, whose difference is as large; NaN where a score is undefined."""
    if np.isnan(difference) or units < 2:
        return float("nan")
    defined = ~np.isnan(permuted)
    # sums in another order differ in their last digits
    extreme = np.abs(permuted[defined]) >= abs(difference) - 1e-12 * max(1.0, abs(difference))
    return float(extreme.sum() / defined.sum())


def power(values: Floats, paired: bool) -> dict[str, Any]:
    """What a study of this many images can see.

    Parameters
    ----------
    values : (images,)
        Difference of two models on each image; or the score of one model, where `paired` is False. Another
        model's scores are then taken to be as variable, and to correlate with these by 0.5 over images, so that
        the differences vary as much as the scores.
    paired
        Whether these are differences.

    Returns
    -------
    dict
        ``images``, ``spread`` (standard deviation), ``detectable`` (the difference that a paired t test sees with
        80 % power at 5 %, two-sided), ``needed`` (images by difference), ``paired``; empty below 3 images.
    """
    values = values[~np.isnan(values)]
    if len(values) < 3 or not values.std(ddof=1) > 0:
        return {}
    spread = float(values.std(ddof=1))
    return {
        "images": len(values),
        "spread": spread,
        "detectable": detectable_difference(spread, len(values)),
        "needed": {str(d): needed_images(spread, d) for d in (0.01, 0.02, 0.05)},
        "paired": paired,
    }
