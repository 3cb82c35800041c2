"""The states of layers with a bounded past: the last inputs of short convolutions, and the last keys and values of
attention with a sliding window.

They cannot be trimmed: rewinding needs a copy of them (see `Cache.checkpoint`), or all of a call (see `Cache.record`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
import numpy as np

from ..config import TextConfig


@dataclass(eq=False)
class BoundedState:
    """The state of a layer with a bounded past: arrays whose first axis is the row, none before the first call.

    With `records` the next call leaves in `block` what it had and all of its own, of which `trim` keeps a beginning.
    """

    length: int
    states: tuple[mx.array, ...] = ()
    records: bool = False
    block: tuple[mx.array, ...] = ()

    def filter(self, rows: mx.array) -> None:
        self.states = tuple(array[rows] for array in self.states)

    def select(self, columns: mx.array) -> None:
        """As `KeyValueCache.select`, of a state that has columns: the last ones."""

    def copy(self) -> Self:
        return type(self)(self.length, self.states)


class ConvCache(BoundedState):
    """The last `length` gated inputs of one short convolution, oldest first, each (B, 1, hidden)."""

    def shapes(self, config: TextConfig, offset: int) -> list[tuple[int, ...]]:
        """The shapes of the arrays of a single row that has seen `offset` tokens."""
        return [(1, 1, config.hidden_size)] * self.length

    def row(self, index: int, padding: int, offset: int, states_only: bool = False) -> ConvCache:
        return ConvCache(self.length, tuple(array[index : index + 1] for array in self.states))

    def trim(self, counts: Sequence[int], length: int) -> None:
        """As `WindowCache.trim`."""
        (block,) = self.block
        self.states = tuple(mx.split(_cut(block, counts, self.length, axis=1), self.length, axis=1))
        self.records, self.block = False, ()

    @staticmethod
    def merge(layers: Sequence[ConvCache], cuts: Sequence[int], offsets: Sequence[int]) -> ConvCache:
        states = zip(*(layer.states for layer in layers), strict=True)
        return ConvCache(layers[0].length, tuple(mx.concatenate(list(same)) for same in states))


class WindowCache(BoundedState):
    """The last keys and values of one attention layer with a sliding window, each (B, kv_heads, up to `length`,
    head_dim)."""

    def shapes(self, config: TextConfig, offset: int) -> list[tuple[int, ...]]:
        """The shapes of the arrays of a single row that has seen `offset` tokens."""
        return [(1, config.num_key_value_heads, min(offset, self.length), config.head_dim)] * 2

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends (B, kv_heads, L, head_dim) and returns these behind those that were kept."""
        if self.states:
            known_keys, known_values = self.states
            keys = mx.concatenate([known_keys, keys], axis=2)
            values = mx.concatenate([known_values, values], axis=2)
        self.block = (keys, values) if self.records else ()
        self.states = (keys[:, :, -self.length :], values[:, :, -self.length :])
        return keys, values

    def trim(self, counts: Sequence[int], length: int) -> None:
        """Keeps the first tokens of each row of the last call, so many of its `length`, which was recorded. The rows
        stay aligned at the right."""
        before = self.block[0].shape[2] - length
        kept = min(self.length, before + max(counts))
        ends = [before + count - kept for count in counts]
        self.states = tuple(_cut(array, ends, kept, axis=2) for array in self.block)
        self.records, self.block = False, ()

    def select(self, columns: mx.array) -> None:
        self.states = tuple(array[:, :, -columns.shape[2] :] for array in self.states)

    def row(self, index: int, padding: int, offset: int, states_only: bool = False) -> WindowCache:
        """A row that has seen `offset` tokens."""
        kept = min(offset, self.length)
        states = (mx.contiguous(array[index : index + 1, :, -kept:]) for array in self.states)
        return WindowCache(self.length, tuple(states))

    @staticmethod
    def merge(layers: Sequence[WindowCache], cuts: Sequence[int], offsets: Sequence[int]) -> WindowCache:
        """The rows of several, of which each has seen `offsets` tokens, aligned at the right."""
        length = layers[0].length
        counts = [min(offset, length) for offset in offsets]
        return WindowCache(length, right_aligned(layers, [slice(-count, None) for count in counts], max(counts)))


def _cut(array: mx.array, starts: Sequence[int], length: int, axis: int) -> mx.array:
    """The entries along an axis from `starts[r]` on, for each row r (where that is negative: the first one again)."""
    if min(starts) == max(starts) >= 0:
        return array[(slice(None),) * axis + (slice(starts[0], starts[0] + length),)]
    places = np.maximum(np.add.outer(np.array(starts), np.arange(length)), 0)
    shape = [len(starts)] + [1] * (array.ndim - 1)
    shape[axis] = length
    return mx.take_along_axis(array, mx.array(places).reshape(shape), axis=axis)


def right_aligned(layers: Sequence[Any], used: Sequence[slice], length: int) -> tuple[mx.array, ...]:
    """The rows of several layers in one: the used columns of their states (B, heads, room, dim), zeros before them,
    `length` in all."""

    def padded(array: mx.array, columns: slice) -> mx.array:
        part = array[:, :, columns]
        return mx.pad(part, [(0, 0), (0, 0), (length - part.shape[2], 0), (0, 0)])

    every = zip(*(layer.states for layer in layers), strict=True)
    return tuple(mx.concatenate([*map(padded, same, used)]) for same in every)
