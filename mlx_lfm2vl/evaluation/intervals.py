"""Confidence intervals of 95 %: of a share, of a mean, of the difference of two models on the same rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
Z = 1.959964  # of the normal distribution, 95 % about the middle
RESAMPLES = 10_000
_AT_ONCE = 2**22  # numbers drawn together


def wilson(right: int, rows: int) -> Interval:
    """The score interval of a share (Wilson, "Probable inference, the law of succession, and statistical inference",
    1927)."""
    share, spread = right / rows, Z**2 / rows
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Sequence[float]) -> Interval:
    """The percentile interval of a mean (Efron, "Bootstrap methods", 1979), from `RESAMPLES` draws of a fixed seed."""
    array, rng = np.asarray(values, np.float64), np.random.default_rng(0)
    size = max(1, _AT_ONCE // len(array))
    means = [
        array[rng.integers(len(array), size=(min(size, RESAMPLES - start), len(array)))].mean(axis=1)
        for start in range(0, RESAMPLES, size)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def of_mean(scores: Sequence[float]) -> Interval:
    """The interval of a mean score: Wilson's where each row is right or wrong, else the bootstrap's."""
    if all(score in (0, 1) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    return bootstrap(scores)


def of_difference(scores: Sequence[float], others: Sequence[float]) -> Interval:
    """The interval of the mean of what a model's scores have more than another's, row by row."""
    return bootstrap([score - other for score, other in zip(scores, others, strict=True)])
