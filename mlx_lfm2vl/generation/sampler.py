"""What chooses the next tokens of a batch, row by row, and what it remembers of each row.

Rows come and go. A row's tokens depend on its own logits, options and seed, not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import mlx.core as mx
import numpy as np

from .options import GenerationOptions
from .sampling import NOT_FINITE, SamplingKind, compiled, numbers_of, on_gpu, sample


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
        step = compiled(self.kind) if on_gpu() else partial(sample, self.kind)
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
        self._rows, self._numbers = rows, numbers_of(self.kind, [row.options for row in rows])

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
