"""The sampler of rows of several kinds, each with its own numbers and past."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from .sampler import Sampler, UniformSampler


class BatchedSampler:
    """The choosers of several batches that became one. The parts must not be used any more."""

    def __init__(self, parts: Sequence[Sampler]):
        self._parts: list[tuple[UniformSampler, list[int]]] = []  # each with the rows of the batch that are its own
        start = 0
        for part in parts:
            assert isinstance(part, (UniformSampler, BatchedSampler))
            for sampler, rows in part._parts if isinstance(part, BatchedSampler) else [(part, range(len(part)))]:
                self._add(sampler, [start + row for row in rows])
            start += len(part)

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self._parts)

    def _add(self, sampler: UniformSampler, rows: list[int]) -> None:
        """Adds a part, or its rows to the part of their kind."""
        for part, own in self._parts:
            if part.kind == sampler.kind:
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

    def verify(self, logits: mx.array, blocks: np.ndarray, lengths: Sequence[int]) -> mx.array:
        """As `UniformSampler.verify`."""
        order = [row for _, rows in self._parts for row in rows]
        if len(self._parts) == 1 and order == sorted(order):
            return self._parts[0][0].verify(logits, blocks, lengths)
        chosen = [
            part.verify(logits[mx.array(rows)], blocks[rows], [lengths[row] for row in rows])
            for part, rows in self._parts
        ]
        return mx.concatenate(chosen)[mx.array(np.argsort(order))]

    def keep(self, blocks: np.ndarray, counts: Sequence[int], last: Sequence[int]) -> None:
        """As `UniformSampler.keep`."""
        for part, rows in self._parts:
            part.keep(blocks[rows], [counts[row] for row in rows], [last[row] for row in rows])

    def filter(self, rows: list[int]) -> None:
        parts = []
        for part, own in self._parts:
            kept = [row for row in rows if row in own]
            if kept:
                part.filter([own.index(row) for row in kept])
                parts.append((part, [rows.index(row) for row in kept]))
        self._parts = parts
