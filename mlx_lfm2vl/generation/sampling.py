"""From logits to the next token, on the device: nothing is read back, so that steps can be queued ahead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import mlx.core as mx

from .options import GenerationOptions

LEAST_TEMPERATURE = 1e-30  # float32 makes 0 of what is much smaller; long before, only the likeliest is left


class Chooser(Protocol):
    """Chooses the next token of every row of a batch."""

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        """Counts tokens (B, L) as seen, for the repetition penalty."""

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (B, vocabulary) to tokens (B,), which count as seen."""

    def select(self, rows: list[int]) -> None:
        """Keeps these rows of the batch."""


class Sampler:
    """Rows that are sampled alike. Holds the random key and which tokens were seen; use one for one generation.

    `options` must be resolved (no None left but the seed).
    """

    def __init__(self, options: GenerationOptions):
        self.options = options
        seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(8), "little")
        self._key = mx.random.key(seed)
        self._seen: mx.array | None = None

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        if self.options.repetition_penalty == 1:
            return
        if self._seen is None:
            self._seen = mx.zeros((tokens.shape[0], vocabulary), mx.bool_)
        self._seen = mx.put_along_axis(self._seen, tokens, mx.array(True), axis=1)

    def __call__(self, logits: mx.array) -> mx.array:
        options = self.options
        penalty = options.repetition_penalty or 1.0
        if penalty != 1 and self._seen is not None:
            logits = penalize(logits, self._seen, penalty)
        temperature = options.temperature or 0.0
        if temperature < LEAST_TEMPERATURE:
            tokens = mx.argmax(logits, axis=-1)
        else:
            logits = logits.astype(mx.float32)
            # the largest becomes 0 first, so that no temperature is too small for float32
            logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature
            logits = keep_likely(logits, options.top_k or 0, options.top_p or 1.0, options.min_p or 0.0)
            self._key, use = mx.random.split(self._key)
            # A row of a batch differs from its single run by rounding. Between the two likeliest that hardly ever
            # decides; the sums that `mx.random.categorical` draws from have as many edges as there are tokens.
            tokens = mx.argmax(logits + mx.random.gumbel(logits.shape, key=use), axis=-1)
        self.observe(tokens[:, None], logits.shape[-1])
        return tokens

    def select(self, rows: list[int]) -> None:
        if self._seen is not None:
            self._seen = self._seen[mx.array(rows)]


class RowSamplers:
    """A sampler of its own for every row, so that a row's choices do not depend on its neighbours."""

    def __init__(self, samplers: Sequence[Sampler]):
        self._samplers = list(samplers)

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        for row, sampler in enumerate(self._samplers):
            sampler.observe(tokens[row : row + 1], vocabulary)

    def __call__(self, logits: mx.array) -> mx.array:
        return mx.concatenate([sampler(logits[row : row + 1]) for row, sampler in enumerate(self._samplers)])

    def select(self, rows: list[int]) -> None:
        self._samplers = [self._samplers[row] for row in rows]


class SideBySide:
    """The choosers of several batches that became one, with the number of rows of each."""

    def __init__(self, parts: Sequence[tuple[Chooser, int]]):
        self._parts: list[tuple[Chooser, int]] = [  # flat, however often batches are joined
            own for part, count in parts for own in (part._parts if isinstance(part, SideBySide) else [(part, count)])
        ]

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        for part, rows in self._split():
            part.observe(tokens[rows], vocabulary)

    def __call__(self, logits: mx.array) -> mx.array:
        return mx.concatenate([part(logits[rows]) for part, rows in self._split()])

    def select(self, rows: list[int]) -> None:
        parts = []
        for part, own in self._split():
            kept = [row - own.start for row in rows if own.start <= row < own.stop]
            if kept:
                part.select(kept)
                parts.append((part, len(kept)))
        self._parts = parts

    def _split(self) -> list[tuple[Chooser, slice]]:
        ends = list(accumulate(count for _, count in self._parts))
        return [(part, slice(end - count, end)) for (part, count), end in zip(self._parts, ends, strict=True)]


def chooser(options: Sequence[GenerationOptions]) -> Chooser:
    """For rows with these (resolved) options: one sampler for all where nothing random or different is in them."""
    first = options[0]
    alike = all(other.repetition_penalty == first.repetition_penalty and not other.temperature for other in options)
    return Sampler(first) if len(options) == 1 or alike else RowSamplers([Sampler(each) for each in options])


def penalize(logits: mx.array, seen: mx.array, penalty: float) -> mx.array:
    """Makes tokens in `seen` (B, vocabulary) less likely: positive logits divided, negative ones multiplied."""
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_likely(logits: mx.array, top_k: int, top_p: float, min_p: float) -> mx.array:
    """Logits (B, vocabulary) float32 with -inf at the tokens that top-k, then top-p, then min-p rule out.

    The likeliest token always stays. A filter sees the probabilities that the one before has left, as transformers'
    warpers do.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = mx.topk(logits, top_k, axis=-1).min(axis=-1, keepdims=True)
        logits = mx.where(logits < smallest, -mx.inf, logits)
    if top_p < 1:
        order = mx.argsort(-logits, axis=-1)
        probabilities = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        ruled_out = mx.put_along_axis(mx.zeros(logits.shape, mx.bool_), order, before >= top_p, axis=-1)
        logits = mx.where(ruled_out & (logits < logits.max(axis=-1, keepdims=True)), -mx.inf, logits)
    if min_p > 0:
        floor = logits.max(axis=-1, keepdims=True) + mx.log(mx.array(min_p))
        logits = mx.where(logits < floor, -mx.inf, logits)
    return logits
