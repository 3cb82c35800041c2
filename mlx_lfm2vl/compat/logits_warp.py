"""The processors that shape sampling: temperature, top-k, top-p, min-p, typical-p, epsilon and eta cutoff.

Each is a function (ids, scores) -> scores as those of logits_process.py. The likeliest token always stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..errors import OptionError
from ..generation.sampling import LEAST_TEMPERATURE, largest
from .logits_process import Process


def make_warpers(chosen: dict[str, Any]) -> list[Process]:
    """The warpers that the settings ask for, in the order of transformers. Raises `OptionError`."""
    made: list[Process] = []
    temperature, top_k = chosen["temperature"], chosen["top_k"]
    if temperature is not None and temperature != 1:
        if temperature < LEAST_TEMPERATURE:
            raise OptionError(f"temperature is {temperature}, expected a number above 0; do_sample=False is greedy")
        made.append(lambda ids, scores: scores / temperature)
    if top_k:
        made.append(_top_k(int(top_k)))
    if (top_p := chosen["top_p"]) is not None and top_p < 1:
        made.append(_top_p(float(top_p)))
    if (min_p := chosen["min_p"]) is not None:
        made.append(_above(lambda scores: scores.max(axis=-1, keepdims=True) + math.log(max(min_p, 1e-38))))
    if (mass := chosen["typical_p"]) is not None and mass < 1:
        made.append(_typical(float(mass)))
    if 0 < (epsilon := chosen["epsilon_cutoff"] or 0) < 1:
        made.append(_above(lambda scores: mx.logsumexp(scores, axis=-1, keepdims=True) + math.log(epsilon)))
    if 0 < (eta := chosen["eta_cutoff"] or 0) < 1:
        made.append(_above(lambda scores: _eta(scores, float(eta))))
    return made


def normalise(ids: mx.array, scores: mx.array) -> mx.array:
    """`renormalize_logits`: log-probabilities."""
    return scores - mx.logsumexp(scores, axis=-1, keepdims=True)


def _above(least: Callable[[mx.array], mx.array]) -> Process:
    """Rules out scores below `least(scores)` (B, 1), but never the largest."""
    return lambda ids, scores: mx.where(
        scores < mx.minimum(least(scores), scores.max(axis=-1, keepdims=True)), -mx.inf, scores
    )


def _top_k(count: int) -> Process:
    return lambda ids, scores: (
        scores if count >= scores.shape[1] else mx.where(scores < largest(scores, count)[:, :1], -mx.inf, scores)
    )


def _top_p(top_p: float) -> Process:
    """Keeps the likeliest tokens that together reach `top_p`: rules out those below which at most 1 - top_p is left."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        order = mx.argsort(scores, axis=-1)
        ascending = mx.take_along_axis(scores, order, axis=-1)
        below = mx.cumsum(mx.softmax(ascending, axis=-1), axis=-1) <= 1 - top_p
        below[:, -1] = False
        return mx.put_along_axis(scores, order, mx.where(below, -mx.inf, ascending), axis=-1)

    return process


def _typical(mass: float) -> Process:
    """Keeps tokens whose surprise is nearest to the entropy, until they reach `mass` (Meister et al. 2022)."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        logs = normalise(ids, scores)
        chances = mx.exp(logs)
        entropy = -mx.where(chances > 0, chances * logs, 0).sum(axis=-1, keepdims=True)
        distance = mx.where(chances > 0, mx.abs(-logs - entropy), mx.inf)
        order = mx.argsort(distance, axis=-1)
        reached = mx.cumsum(mx.take_along_axis(chances, order, axis=-1), axis=-1)
        last = (reached < mass).sum(axis=-1, keepdims=True)
        last = mx.minimum(last, scores.shape[1] - 1)
        limit = mx.take_along_axis(mx.take_along_axis(distance, order, axis=-1), last, axis=-1)
        return mx.where(distance > limit, -mx.inf, scores)

    return process


def _eta(scores: mx.array, epsilon: float) -> mx.array:
    """The logarithm of the eta cutoff (Hewitt et al. 2022), in units of the scores."""
    total = mx.logsumexp(scores, axis=-1, keepdims=True)
    logs = scores - total
    chances = mx.exp(logs)
    entropy = -mx.where(chances > 0, chances * logs, 0).sum(axis=-1, keepdims=True)
    eta = mx.minimum(epsilon, math.sqrt(epsilon) * mx.exp(-entropy))
    return mx.log(eta) + total
