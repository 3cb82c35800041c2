"""Confidence intervals of 95 %: of a share, of a mean, of the difference of two models on the same rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
Z = 1.959964  # of the normal distribution, 95 % about the middle
RESAMPLES = 10_000
FEWEST = 10  # rows of a bootstrap
_AT_ONCE = 2**22  # numbers drawn together


def wilson(right: int, rows: int) -> Interval:
    """The score interval of a share (Wilson, "Probable inference, the law of succession, and statistical inference",
    1927)."""
    share, spread = right / rows, Z**2 / rows
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def tango(better: int, worse: int, rows: int) -> Interval:
    """The score interval of the difference of two shares of the same rows (Tango, "Equivalence test and confidence
    interval for the difference in proportions for the paired-sample design", 1998). It holds 0 where McNemar's test
    finds no difference.

    Args:
        better: rows in which the first is right and the second wrong.
        worse: rows in which it is the other way round.
        rows: of all.
    """

    def score(difference: float) -> float:
        linear = (2 * rows - better + worse) * difference - better - worse
        constant = -worse * difference * (1 - difference)
        share = (math.sqrt(max(0.0, linear**2 - 8 * rows * constant)) - linear) / (4 * rows)
        variance = rows * (2 * share + difference * (1 - difference))
        return (better - worse - rows * difference) / math.sqrt(variance) if variance > 0 else 0.0

    def edge(outer: float, z: float) -> float:
        inner = (better - worse) / rows
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if abs(score(middle)) < z else (inner, middle)
        return inner

    return edge(-1.0, Z), edge(1.0, Z)


def bootstrap(values: Sequence[float]) -> Interval | None:
    """The percentile interval of a mean (Efron, "Bootstrap methods", 1979), from `RESAMPLES` draws of a fixed seed.
    None for fewer than `FEWEST` values, and where all are equal: they do not tell how far others may lie."""
    if len(values) < FEWEST or min(values) == max(values):
        return None
    array, rng = np.asarray(values, np.float64), np.random.default_rng(0)
    size = max(1, _AT_ONCE // len(array))
    means = [
        array[rng.integers(len(array), size=(min(size, RESAMPLES - start), len(array)))].mean(axis=1)
        for start in range(0, RESAMPLES, size)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def of_mean(scores: Sequence[float]) -> Interval | None:
    """The interval of a mean score: Wilson's where each row is right or wrong, else the bootstrap's."""
    if _right_or_wrong(scores):
        return wilson(round(sum(scores)), len(scores))
    return bootstrap(scores)


def of_difference(scores: Sequence[float], others: Sequence[float]) -> Interval | None:
    """The interval of the mean of what a model's scores have more than another's, row by row: Tango's where each row is
    right or wrong, else the bootstrap's."""
    more = [score - other for score, other in zip(scores, others, strict=True)]
    if _right_or_wrong(scores) and _right_or_wrong(others):
        return tango(more.count(1), more.count(-1), len(more))
    return bootstrap(more)


def _right_or_wrong(scores: Sequence[float]) -> bool:
    return all(score in (0, 1) for score in scores)
