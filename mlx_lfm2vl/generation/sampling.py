"""From logits to the next token, on the device: nothing is read back, so that steps can be queued ahead.

In: logits (B, vocabulary) of 16 or 32 bits. Out: tokens (B,) int32, `NOT_FINITE` in a row whose logits are not all
finite. A row's tokens depend on its own logits, options and seed, not on the rows beside it. On a GPU a step is one
compiled function: six kernels for the sampling that LFM2-VL's makers recommend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Protocol

import mlx.core as mx
import numpy as np

from .options import GenerationOptions

LEAST_TEMPERATURE = 1e-30  # float32 makes 0 of what is much smaller; long before, only the likeliest is left
NOT_FINITE = -1  # in place of a token that no logits could be chosen by
BLOCK = 2048  # values of 32 bits that a GPU sorts in one kernel; more take a kernel and two for each doubling


class Sampler(Protocol):
    """Chooses the next token of every row of a batch."""

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        """Counts tokens (B, L) as seen, for the repetition penalty."""

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (B, vocabulary) to tokens (B,) int32, which count as seen; `NOT_FINITE` where logits are not."""

    def filter(self, rows: list[int]) -> None:
        """Keeps these rows of the batch, in this order."""

    @property
    def state(self) -> list[mx.array]:
        """What the next call starts from. Once it is evaluated, that call may be in another thread: after a call its
        tokens depend on all of it, after `filter` it is lazy."""


@dataclass(frozen=True)
class SamplingKind:
    """The options that shape the computation. Rows of one kind share it, with numbers of their own."""

    greedy: bool
    penalty: bool
    top_k: int = 0
    top_p: bool = False
    min_p: bool = False

    @classmethod
    def of(cls, options: GenerationOptions) -> SamplingKind:
        penalty = (options.repetition_penalty or 1.0) != 1
        if (options.temperature or 0.0) < LEAST_TEMPERATURE:
            return cls(True, penalty)
        return cls(False, penalty, options.top_k or 0, (options.top_p or 1.0) < 1, (options.min_p or 0.0) > 0)


class _Row:
    """One row's options, and the generator of its keys: one for each step, made on the host, so that no kernel makes
    them. `drawn`: keys of steps before."""

    def __init__(self, options: GenerationOptions, row: int, drawn: int):
        self.options = options
        self._generator = np.random.PCG64(np.random.SeedSequence(options.seed, spawn_key=(row,)))
        self._generator.advance(drawn)

    def key(self) -> int:
        """64 random bits."""
        return int(self._generator.random_raw())


class UniformSampler:
    """Rows of one kind: as many as the first call has, sampled alike, or one, which others are joined to.

    Holds each row's random generator and which tokens it has seen; use one for one generation. `options` must be
    resolved (no None left but the seed). `drawn`: tokens that the rows have sampled before.
    """

    def __init__(self, options: GenerationOptions, drawn: int = 0):
        self.kind = SamplingKind.of(options)
        self._options, self._drawn = options, drawn
        self._rows: list[_Row] = []
        self._numbers: dict[str, mx.array] = {}
        self._seen: mx.array | None = None  # (B, vocabulary) bool: without the last tokens
        self._last: mx.array | None = None  # (B,) int32: the last tokens

    @property
    def state(self) -> list[mx.array]:
        return [array for array in (self._seen, self._last) if array is not None]

    def begin(self, count: int) -> None:
        """Makes the rows, unless they are there."""
        if not self._rows:
            self._set_rows([_Row(self._options, row, self._drawn) for row in range(count)])

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        if self.kind.penalty:
            self.begin(tokens.shape[0])
            seen = np.zeros((tokens.shape[0], vocabulary), bool)
            np.put_along_axis(seen, np.array(tokens), True, axis=1)  # a prompt is on the host
            self._seen = mx.array(seen) if self._seen is None else self._seen | mx.array(seen)

    def __call__(self, logits: mx.array) -> mx.array:
        self.begin(logits.shape[0])
        step = _compiled(self.kind) if on_gpu() else partial(sample, self.kind)
        seen, last = self._history(logits.shape[1]) if self.kind.penalty else (None, None)
        tokens, self._seen = step(logits, self._numbers, self._keys(), seen, last)
        self._last = tokens if self.kind.penalty else None
        return tokens

    def filter(self, rows: list[int]) -> None:
        if self._rows:
            self._set_rows([self._rows[row] for row in rows])
            index = mx.array(rows)
            self._seen = None if self._seen is None else self._seen[index]
            self._last = None if self._last is None else self._last[index]

    def extend(self, other: UniformSampler) -> None:
        """Adds the rows of another sampler of the same kind. The other must not be used any more."""
        known = [part._seen.shape[1] for part in (self, other) if part._seen is not None]
        if known:
            pairs = zip(self._history(known[0]), other._history(known[0]), strict=True)
            self._seen, self._last = (mx.concatenate(list(pair)) for pair in pairs)
        self._set_rows(self._rows + other._rows)

    def _set_rows(self, rows: list[_Row]) -> None:
        self._rows, self._numbers = rows, _numbers(self.kind, [row.options for row in rows])

    def _history(self, vocabulary: int) -> tuple[mx.array, mx.array]:
        """The tokens seen (B, vocabulary) and the last ones (B,), where nothing is known none."""
        count = len(self._rows)
        seen = mx.array(np.zeros((count, vocabulary), bool)) if self._seen is None else self._seen
        last = mx.array(np.full(count, NOT_FINITE, np.int32)) if self._last is None else self._last
        return seen, last

    def _keys(self) -> mx.array | None:
        """New random keys (B, 2) uint32."""
        if self.kind.greedy:
            return None
        return mx.array(np.array([row.key() for row in self._rows], np.uint64).view(np.uint32).reshape(-1, 2))


class BatchedSampler:
    """The choosers of several batches that became one, with the number of rows of each. The parts must not be used any
    more."""

    def __init__(self, parts: Sequence[tuple[Sampler, int]]):
        self._parts: list[tuple[Sampler, list[int]]] = []  # each with the rows of the batch that are its own
        start = 0
        for part, count in parts:
            for sampler, rows in part._parts if isinstance(part, BatchedSampler) else [(part, list(range(count)))]:
                self._add(sampler, [start + row for row in rows])
            start += count

    def _add(self, sampler: Sampler, rows: list[int]) -> None:
        """Adds a part, or its rows to the part of their kind."""
        if isinstance(sampler, UniformSampler):
            sampler.begin(len(rows))
            for part, own in self._parts:
                if isinstance(part, UniformSampler) and part.kind == sampler.kind:
                    part.extend(sampler)
                    own += rows
                    return
        self._parts.append((sampler, rows))

    @property
    def state(self) -> list[mx.array]:
        return [array for part, _ in self._parts for array in part.state]

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        for part, rows in self._parts:
            part.observe(tokens[mx.array(rows)], vocabulary)

    def __call__(self, logits: mx.array) -> mx.array:
        order = [row for _, rows in self._parts for row in rows]
        if len(self._parts) == 1 and order == sorted(order):
            return self._parts[0][0](logits)
        tokens = mx.concatenate([part(logits[mx.array(rows)]) for part, rows in self._parts])
        return tokens[mx.array(np.argsort(order))]

    def filter(self, rows: list[int]) -> None:
        parts = []
        for part, own in self._parts:
            kept = [row for row in rows if row in own]
            if kept:
                part.filter([own.index(row) for row in kept])
                parts.append((part, [rows.index(row) for row in kept]))
        self._parts = parts


def make_sampler(options: Sequence[GenerationOptions], drawn: int = 0) -> Sampler:
    """For rows with these (resolved) options, each of which has sampled `drawn` tokens before."""
    every = [UniformSampler(each, drawn) for each in options]
    return every[0] if len(every) == 1 else BatchedSampler([(each, 1) for each in every])


def on_gpu() -> bool:
    """Whether functions are compiled, and sorts kept small. On a CPU neither pays: MLX runs a C++ compiler for seconds,
    and `mx.topk` sorts nothing."""
    return mx.default_device() != mx.Device(mx.cpu)


@cache
def _compiled(kind: SamplingKind) -> Callable[..., tuple[mx.array, mx.array | None]]:
    return mx.compile(partial(sample, kind))


def sample(
    kind: SamplingKind,
    logits: mx.array,
    numbers: dict[str, mx.array],
    keys: mx.array | None,
    seen: mx.array | None,
    last: mx.array | None,
) -> tuple[mx.array, mx.array | None]:
    """One step, a pure function: penalty, temperature, top-k, top-p, min-p, in the order of transformers.

    Args:
        kind: which of them are in force.
        logits: (B, vocabulary), 16 or 32 bits; computed with in float32.
        numbers: (B, 1) float32 each, as `_numbers` makes them.
        keys: random keys (B, 2) uint32; None if greedy.
        seen: the tokens that the penalty is for (B, vocabulary) bool, and
        last: (B,) int32, more of them; None without a penalty.

    Returns:
        The tokens (B,) int32, the first of several that are as likely if greedy, and `seen` with `last` in it.
    """
    scores = logits.astype(mx.float32)
    if seen is not None and last is not None:
        seen = seen | (_ids(logits.shape[1]) == last[:, None])
        scores = penalize(scores, seen, numbers["penalty"])
    # x - x is 0, or NaN where x is not finite; and the largest score of a row with a NaN is NaN
    scores = scores + (logits - logits)
    if keys is None:
        top = scores.max(axis=-1, keepdims=True)
    else:
        scores, top = filter_logits(kind, scores, numbers)
        # A row of a batch differs from its single run by rounding. Between the two likeliest that hardly ever
        # decides; the sums that `mx.random.categorical` draws from have as many edges as there are tokens.
        scores = scores + gumbel(random_bits(keys, logits.shape[1]))
    tokens = mx.argmax(scores, axis=-1).astype(mx.int32)
    return mx.where(mx.isfinite(top[:, 0]), tokens, NOT_FINITE), seen


def _numbers(kind: SamplingKind, options: Sequence[GenerationOptions]) -> dict[str, mx.array]:
    """The numbers that a kind needs, (B, 1) float32 each."""
    columns: dict[str, list[float]] = {}
    if kind.penalty:
        columns["penalty"] = [each.repetition_penalty or 1.0 for each in options]
    if not kind.greedy:
        columns["temperature"] = [each.temperature or 1.0 for each in options]
    if kind.top_p:
        columns["top_p"] = [each.top_p or 1.0 for each in options]
    if kind.min_p:
        columns["log_min_p"] = [math.log(each.min_p or 1.0) for each in options]
    return {name: mx.array(np.array(column, np.float32)[:, None]) for name, column in columns.items()}


def penalize(logits: mx.array, seen: mx.array, penalty: float | mx.array) -> mx.array:
    """Makes tokens in `seen` (B, vocabulary) less likely: positive logits divided, negative ones multiplied."""
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def filter_logits(kind: SamplingKind, scores: mx.array, numbers: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
    """Scores (B, vocabulary) float32 less their largest and divided by the temperature, -inf at the tokens that top-k,
    then top-p, then min-p rule out; and the largest of each row (B, 1) before.

    The likeliest token always stays. A filter sees the probabilities that the one before has left, as transformers'
    warpers do. Tokens as likely as the least likely one that stays, stay too.
    """
    top_k = kind.top_k if kind.top_k < scores.shape[1] else 0
    ordered = largest(scores, top_k) if top_k else mx.sort(scores, axis=-1) if kind.top_p else None
    top = scores.max(axis=-1, keepdims=True) if ordered is None else ordered[:, -1:]
    # the largest becomes 0 first, so that no temperature is too small for float32
    scaled = (scores - top) / numbers["temperature"]
    if ordered is not None:
        least = ordered[:, :1]
        if kind.top_p:
            more = (scores >= least).sum(axis=-1, keepdims=True) - top_k if top_k else 0
            least = _nucleus(ordered, numbers["temperature"], numbers["top_p"], more)
        scaled = mx.where(scores < least, -mx.inf, scaled)
    if kind.min_p:
        scaled = mx.where(scaled < numbers["log_min_p"], -mx.inf, scaled)
    return scaled, top


def _nucleus(ordered: mx.array, temperature: mx.array, top_p: mx.array, more: mx.array | int) -> mx.array:
    """The least of some scores (B, n), ascending, that is among the likeliest that together reach `top_p` (B, 1). There
    are `more` scores as large as the first."""
    top = ordered[:, -1:]
    weights = mx.exp((ordered - top) / temperature)
    likelier = mx.cumsum(weights, axis=-1, reverse=True, inclusive=False)
    total = likelier[:, :1] + weights[:, :1] * (1 + more)
    return mx.where(likelier < top_p * total, ordered, top).min(axis=-1, keepdims=True)


def largest(scores: mx.array, count: int) -> mx.array:
    """The `count` largest scores of each row, ascending: (B, n) to (B, count).

    A tournament: the largest of every block of at most `BLOCK` scores, which a GPU sorts in one kernel, then the
    largest of these. A GPU's `mx.topk` sorts the whole row.
    """
    if not on_gpu():
        return mx.sort(mx.topk(scores, count, axis=-1), axis=-1)
    rows, size = scores.shape
    blocks = _blocks(size)
    length = -(-size // blocks)
    if blocks == 1 or 2 * count > length:  # in the second case blocks hardly shrink
        return mx.sort(scores, axis=-1)[:, -count:]
    if blocks * length > size:
        scores = mx.pad(scores, [(0, 0), (0, blocks * length - size)], constant_values=-mx.inf)
    best = mx.sort(scores.reshape(rows, blocks, length), axis=-1)[..., -count:]
    return largest(mx.contiguous(best).reshape(rows, blocks * count), count)


def _blocks(size: int) -> int:
    """Into how many blocks of at most `BLOCK` to divide `size` scores; without a rest if twice the least number can."""
    least = -(-size // BLOCK)
    return next((blocks for blocks in range(least, 2 * least + 1) if size % blocks == 0), least)


def random_bits(keys: mx.array, size: int) -> mx.array:
    """Random numbers (B, size) uint32, a row for each key (B, 2). A row does not depend on the other keys."""
    new_keys = mx.vmap(lambda key: mx.random.split(key, (size + 1) // 2))(keys)  # the only raw bits that MLX gives
    return new_keys.reshape(keys.shape[0], -1)[:, :size]


def gumbel(bits: mx.array) -> mx.array:
    """Gumbel noise, finite, from random bits. The largest sum of logit and noise is at a token drawn by probability."""
    uniform = mx.minimum((bits.astype(mx.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -mx.log(-mx.log(uniform))


@lru_cache(maxsize=4)
def _ids(vocabulary: int) -> mx.array:
    """All tokens, int32, never lazy: any thread can use them."""
    return mx.array(np.arange(vocabulary, dtype=np.int32))
