"""Samplers: they choose the next tokens of a batch, row by row, and remember each row's past.

Rows come and go. A row's tokens depend on its own logits, options and seed, not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import mlx.core as mx
import numpy as np

from .logits_process import RowState
from .options import GenerationOptions
from .sampling import NOT_FINITE, SamplingKind, bias_of, compiled, numbers_of, on_gpu, sample


class Sampler(Protocol):
    """Chooses the next token of every row of a batch."""

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        """Counts tokens (B, L) as seen, for the repetition penalty."""

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (B, vocabulary) to tokens (B,) int32, which count as seen; `NOT_FINITE` where logits are not."""

    @property
    def reads_tokens(self) -> bool:
        """Whether a row needs its token on the host, by `accept`, before the next call."""

    def accept(self, tokens: list[int]) -> None:
        """Takes the tokens (B,) that the last call chose."""

    def filter(self, rows: list[int]) -> None:
        """Keeps these rows of the batch, in this order."""

    @property
    def state(self) -> list[mx.array]:
        """Arrays that the next call starts from. Once they are evaluated, that call may be in another thread: after a
        call its tokens depend on all of them, after `filter` they are lazy."""


class _Row:
    """One row's options, what the host knows of it, and the generator of its keys: one for each token, made on the
    host, so that no kernel makes them. `answer`: tokens before."""

    def __init__(self, options: GenerationOptions, row: int, answer: Sequence[int], state: RowState | None):
        self.options, self.answer, self.state = options, answer, state
        self._generator = np.random.PCG64(np.random.SeedSequence(options.seed, spawn_key=(row,)))
        self._generator.advance(len(answer))

    def key(self) -> int:
        """64 random bits."""
        return int(self._generator.random_raw())


class UniformSampler:
    """Rows of one kind: as many as the first call has, sampled alike, or one, which others are joined to.

    Holds each row's random generator and which tokens it has seen; use one for one generation.

    Args:
        options: resolved (no None left but the seed).
        answer: tokens that the rows have sampled before.
        state: of the only row, where the host has a part in it.
    """

    def __init__(self, options: GenerationOptions, answer: Sequence[int] = (), state: RowState | None = None):
        self.kind = SamplingKind.of(options)
        self._first = (options, answer, state)
        self._rows: list[_Row] = []
        self._numbers: dict[str, mx.array] = {}
        self._history: dict[str, mx.array] = {}  # as `sample` takes it: "last" holds the last tokens

    @property
    def state(self) -> list[mx.array]:
        return list(self._history.values())

    @property
    def reads_tokens(self) -> bool:
        return self.kind.processed or self.kind.masked

    def begin(self, count: int) -> None:
        """Makes the rows, unless they are there."""
        if not self._rows:
            options, answer, state = self._first
            self._set_rows([_Row(options, row, answer, state) for row in range(count)])

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        if self.kind.penalty:
            self.begin(tokens.shape[0])
            seen = np.zeros((tokens.shape[0], vocabulary), bool)
            np.put_along_axis(seen, np.array(tokens), True, axis=1)  # a prompt is on the host
            known = self._history.get("seen")
            self._history["seen"] = mx.array(seen) if known is None else known | mx.array(seen)

    def accept(self, tokens: list[int]) -> None:
        if self.reads_tokens:
            for row, token in zip(self._rows, tokens, strict=True):
                if row.state is not None and token != NOT_FINITE:
                    row.state.accept(token)

    def __call__(self, logits: mx.array) -> mx.array:
        self.begin(logits.shape[0])
        kind = self.kind.within(logits.shape[1])
        step = compiled(kind) if on_gpu() else partial(sample, kind)
        if self.kind.bias and "bias" not in self._numbers:
            self._numbers["bias"] = bias_of([row.options for row in self._rows], logits.shape[1])
        self._remember(logits.shape[1])
        tokens, self._history = step(logits, self._numbers, self._inputs(logits), self._history)
        if self.kind.remembers:
            self._history["last"] = tokens
        return tokens

    def filter(self, rows: list[int]) -> None:
        if self._rows:
            self._set_rows([self._rows[row] for row in rows])
            index = mx.array(rows)
            self._history = {name: array[index] for name, array in self._history.items()}

    def extend(self, other: UniformSampler) -> None:
        """Adds the rows of another sampler of the same kind. The other must not be used any more."""
        known = [array.shape[1] for part in (self, other) for array in part._history.values() if array.ndim == 2]
        if known:
            for part in (self, other):
                part._remember(known[0])
            self._history = {
                name: mx.concatenate([array, other._history[name]]) for name, array in self._history.items()
            }
        self._set_rows(self._rows + other._rows)

    def _set_rows(self, rows: list[_Row]) -> None:
        self._rows, self._numbers = rows, numbers_of(self.kind, [row.options for row in rows])

    def _remember(self, vocabulary: int) -> None:
        """Begins the history of a kind that remembers, where nothing is known."""
        if not self.kind.remembers:
            return
        shape = (len(self._rows), vocabulary)
        if self.kind.penalty and "seen" not in self._history:
            self._history["seen"] = mx.array(np.zeros(shape, bool))
        if self.kind.counts and "counts" not in self._history:
            counts = np.zeros(shape, np.int32)
            for row, own in zip(self._rows, counts, strict=True):
                np.add.at(own, np.array(row.answer, np.int64), 1)
            self._history["counts"] = mx.array(counts)
        if "last" not in self._history:
            self._history["last"] = mx.array(np.full(len(self._rows), NOT_FINITE, np.int32))

    def _inputs(self, logits: mx.array) -> dict[str, mx.array]:
        """The arrays that the host gives to this step, as `sample` takes it."""
        made: dict[str, mx.array] = {}
        if not self.kind.greedy:
            keys = np.array([row.key() for row in self._rows], np.uint64).view(np.uint32)
            made["keys"] = mx.array(keys.reshape(-1, 2))
        states = [row.state for row in self._rows if row.state is not None]
        if self.kind.processed:
            scores = logits.astype(mx.float32)
            made["scores"] = mx.concatenate([state.process(scores[at : at + 1]) for at, state in enumerate(states)])
        if self.kind.masked:
            made["mask"] = mx.array(np.stack([state.matcher.mask() for state in states if state.matcher is not None]))
        return made


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

    @property
    def reads_tokens(self) -> bool:
        return any(part.reads_tokens for part, _ in self._parts)

    def accept(self, tokens: list[int]) -> None:
        for part, rows in self._parts:
            part.accept([tokens[row] for row in rows])

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


def make_sampler(
    options: Sequence[GenerationOptions],
    answers: Sequence[Sequence[int]] | None = None,
    states: Sequence[RowState | None] | None = None,
) -> Sampler:
    """For rows with these (resolved) options.

    Args:
        options: of each row.
        answers: the tokens of each that were sampled before; None is none.
        states: of the rows that the host has a part in.
    """
    answers, states = answers or [()] * len(options), states or [None] * len(options)
    every = [UniformSampler(*row) for row in zip(options, answers, states, strict=True)]
    return every[0] if len(every) == 1 else BatchedSampler([(each, 1) for each in every])
