"""Logits processors and warpers: functions (ids, scores) -> scores, in the order and with the meaning of transformers.

Warpers shape sampling: temperature, top-k, top-p, min-p, typical-p, epsilon and eta cutoff. The likeliest token always
stays.

`ids` (B, L) int32, prompt and answer so far; `scores` (B, vocabulary) float32. -inf rules a token out. A processor that
reads `ids` on the host has the attribute `reads_ids`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import OptionError
from ..generation.sampling import LEAST_TEMPERATURE, largest
from .generation_config import count, number, plain, token_ids

Process = Callable[[mx.array, mx.array], mx.array]
_OUT = -np.inf


class LogitsProcessorList(list[Any]):
    """Processors of a caller, as `generate` takes them: each gets the scores of the one before."""

    def __call__(self, input_ids: Any, scores: Any, **named: Any) -> Any:
        """The scores (B, vocabulary) of the last one."""
        for process in self:
            scores = process(input_ids, scores, **named)
        return scores


def make_processors(
    chosen: dict[str, Any],
    lengths: tuple[int, int],
    vocabulary: int,
    ends: Sequence[int] | None,
    padding: np.ndarray | None,
    allowed: Any,
) -> list[Process]:
    """The processors that the settings ask for, which go before those of the caller.

    `chosen`: as `settings` gives them. `lengths`: tokens in the rows that are given, and in them at most. `ends`: the
    end tokens. `padding`: before each row (B,), which no penalty is for. `allowed`: the caller's
    `prefix_allowed_tokens_fn`. Raises `OptionError` for a value that makes no sense, and a token that the model lacks.
    """
    prompt, end = lengths
    made: list[Process] = []
    bias = _sequences("sequence_bias", chosen["sequence_bias"], vocabulary)
    if bias:
        made.append(_sequence_bias(bias))
    if (penalty := chosen["repetition_penalty"]) not in (None, 1):
        made.append(_repetition_penalty(float(penalty), padding))
    if size := chosen["no_repeat_ngram_size"]:
        made.append(_no_repeat_ngram(int(size)))
    if chosen["bad_words_ids"] is not None:
        words = [token_ids("bad_words_ids", word, vocabulary) or () for word in plain(chosen["bad_words_ids"])]
        if not words or not all(words):
            raise OptionError("bad_words_ids holds an empty list, expected lists of token ids")
        made.append(_sequence_bias([(word, _OUT) for word in words if list(word) not in [[e] for e in ends or ()]]))
    if ends and (least := chosen["min_length"] or 0) > 0 and chosen["min_new_tokens"] is None:
        made.append(_before(int(least), ends))
    if ends and (least := chosen["min_new_tokens"] or 0) > 0:
        made.append(_before(prompt + int(least), ends))
    if allowed is not None:
        made.append(_allowed_only(allowed))
    if (first := token_ids("forced_bos_token_id", chosen["forced_bos_token_id"], vocabulary)) is not None:
        made.append(_forced(1, first))
    if (last := token_ids("forced_eos_token_id", chosen["forced_eos_token_id"], vocabulary)) is not None:
        made.append(_forced(end - 1, last))
    if chosen["remove_invalid_values"]:
        made.append(_finite)
    if ends and chosen["exponential_decay_length_penalty"] is not None:
        start, factor = _pair("exponential_decay_length_penalty", chosen["exponential_decay_length_penalty"])
        made.append(_decay(prompt + start, factor, token_ids("eos_token_id", list(ends), vocabulary) or ()))
    if (banned := token_ids("suppress_tokens", chosen["suppress_tokens"])) is not None:
        made.append(_suppress(banned))
    if (banned := token_ids("begin_suppress_tokens", chosen["begin_suppress_tokens"])) is not None:
        at, rule = prompt, _suppress(banned)
        made.append(lambda ids, scores: rule(ids, scores) if ids.shape[1] == at else scores)
    return made


def _pair(name: str, value: Any) -> tuple[int, float]:
    """A number of tokens and a factor. Raises `OptionError`."""
    pair = plain(value)
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise OptionError(f"{name} is {pair!r}, expected a number of tokens and a factor")
    start = plain(pair[0])  # an array of both has floats
    return count(name, int(start) if isinstance(start, float) and start.is_integer() else start), number(name, pair[1])


def _columns(scores: mx.array, tokens: Sequence[int], value: float) -> mx.array:
    """Scores with some tokens' columns at a value."""
    inside = [token for token in dict.fromkeys(tokens) if 0 <= token < scores.shape[1]]
    if not inside:
        return scores
    scores = mx.array(scores)
    scores[:, mx.array(inside)] = value
    return scores


def _suppress(tokens: Sequence[int]) -> Process:
    return lambda ids, scores: _columns(scores, tokens, _OUT)


def _before(length: int, ends: Sequence[int]) -> Process:
    """Rules the end tokens out while there are fewer tokens than `length`."""
    return lambda ids, scores: _columns(scores, ends, _OUT) if ids.shape[1] < length else scores


def _forced(length: int, tokens: Sequence[int]) -> Process:
    """Leaves these tokens only where there are `length` tokens."""
    return lambda ids, scores: _columns(mx.full(scores.shape, _OUT), tokens, 0.0) if ids.shape[1] == length else scores


def _finite(ids: mx.array, scores: mx.array) -> mx.array:
    largest = float(np.finfo(np.float32).max)
    return mx.clip(mx.where(mx.isnan(scores), 0.0, scores), -largest, largest)


def _decay(start: int, factor: float, ends: Sequence[int]) -> Process:
    def process(ids: mx.array, scores: mx.array) -> mx.array:
        if ids.shape[1] <= start:
            return scores
        grown = factor ** (ids.shape[1] - start) - 1
        scores, columns = mx.array(scores), mx.array(list(ends))
        scores[:, columns] = scores[:, columns] + mx.abs(scores[:, columns]) * grown
        return scores

    return process


def _repetition_penalty(penalty: float, padding: np.ndarray | None) -> Process:
    def process(ids: mx.array, scores: mx.array) -> mx.array:
        if not ids.shape[1]:
            return scores
        if padding is not None:  # a row's padding counts as its last token, which is penalised anyway
            real = mx.arange(ids.shape[1])[None, :] >= mx.array(padding)[:, None]
            ids = mx.where(real, ids, ids[:, -1:])
        seen = mx.take_along_axis(scores, ids, axis=1)
        return mx.put_along_axis(scores, ids, mx.where(seen < 0, seen * penalty, seen / penalty), axis=1)

    return process


def _reads_ids(process: Process) -> Process:
    process.reads_ids = True  # type: ignore[attr-defined]
    return process


def _no_repeat_ngram(size: int) -> Process:
    def process(ids: mx.array, scores: mx.array) -> mx.array:
        rows = np.array(ids).tolist()
        ruled_out = np.zeros(scores.shape, np.float32)
        for at, row in enumerate(rows):
            tail = row[len(row) + 1 - size :]
            for start in range(len(row) - size + 1):
                if row[start : start + size - 1] == tail:
                    ruled_out[at, row[start + size - 1]] = _OUT
        return scores + mx.array(ruled_out)

    return _reads_ids(process)


def _sequences(name: str, value: Any, vocabulary: int) -> list[tuple[tuple[int, ...], float]]:
    """`sequence_bias` in both its spellings: a mapping of tuples to numbers, or a list of pairs."""
    try:
        pairs = [(list(tokens), bias) for tokens, bias in (value.items() if hasattr(value, "items") else value or ())]
    except (TypeError, ValueError):
        raise OptionError(f"{name} is {value!r}, expected tuples of token ids with a number each") from None
    return [(token_ids(name, tokens, vocabulary) or (), number(name, bias)) for tokens, bias in pairs]


def _sequence_bias(biases: Sequence[tuple[tuple[int, ...], float]]) -> Process:
    """Adds a number to the score of a token that would complete a sequence."""
    single = [(tokens[0], bias) for tokens, bias in biases if len(tokens) == 1]
    longer = [(list(tokens[:-1]), tokens[-1], bias) for tokens, bias in biases if len(tokens) > 1]

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        added = np.zeros(scores.shape, np.float32)
        for token, bias in single:
            added[:, token] += bias
        for at, row in enumerate(np.array(ids).tolist() if longer else ()):
            for begin, token, bias in longer:
                if row[len(row) - len(begin) :] == begin and len(row) >= len(begin):
                    added[at, token] += bias
        return scores + mx.array(added)

    return _reads_ids(process) if longer else process


def _allowed_only(allowed: Callable[[int, mx.array], Any]) -> Process:
    def process(ids: mx.array, scores: mx.array) -> mx.array:
        mask = np.full(scores.shape, _OUT, np.float32)
        for row in range(ids.shape[0]):
            tokens = token_ids("prefix_allowed_tokens_fn", allowed(row, ids[row]), scores.shape[1]) or ()
            if not tokens:
                raise OptionError(
                    f"prefix_allowed_tokens_fn allows no token in row {row}; allow the end token at least"
                )
            mask[row, list(tokens)] = 0
        return scores + mx.array(mask)

    return _reads_ids(process)


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
