"""The states of a backbone between calls: keys and values of attention, and those of layers with a bounded past.

Key-value buffers grow in steps, so that a token costs no copy of the past. A short convolution keeps its last inputs,
an attention with a sliding window its last keys and values; these cannot be trimmed, so rewinding needs a copy of them
(see `Cache.checkpoint`), or all of a call (see `Cache.record`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx
import numpy as np

from ..config import Lfm3Config, TextConfig

GROWTH_STEP = 256  # tokens


class KeyValueCache:
    """Keys and values (B, kv_heads, offset, head_dim) of one attention layer."""

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends (B, kv_heads, L, head_dim) and returns all so far, (B, kv_heads, offset, head_dim)."""
        end = self.offset + keys.shape[2]
        if self.keys is None or self.values is None or end > self.keys.shape[2]:
            self._grow(keys, values, end)
        assert self.keys is not None and self.values is not None
        self.keys[..., self.offset : end, :] = keys
        self.values[..., self.offset : end, :] = values
        self.offset = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def _grow(self, keys: mx.array, values: mx.array, end: int) -> None:
        batch, heads, _, head_dim = keys.shape
        room = -(-end // GROWTH_STEP) * GROWTH_STEP - self.offset
        new_keys = mx.zeros((batch, heads, room, head_dim), keys.dtype)
        new_values = mx.zeros((batch, heads, room, values.shape[3]), values.dtype)
        if self.keys is None or self.values is None:
            self.keys, self.values = new_keys, new_values
        else:
            self.keys = mx.concatenate([self.keys[..., : self.offset, :], new_keys], axis=2)
            self.values = mx.concatenate([self.values[..., : self.offset, :], new_values], axis=2)

    @property
    def arrays(self) -> list[mx.array]:
        return [array for array in (self.keys, self.values) if array is not None]

    def filter(self, rows: mx.array) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]

    def row(self, index: int, padding: int, *, empty: bool = False) -> KeyValueCache:
        """A row without its first `padding` columns; only its length if `empty`."""
        twin = KeyValueCache()
        twin.offset = self.offset - padding
        if not empty and self.keys is not None and self.values is not None:
            row, columns = slice(index, index + 1), slice(padding, self.offset)
            twin.keys = mx.contiguous(self.keys[row, :, columns])
            twin.values = mx.contiguous(self.values[row, :, columns])
        return twin

    def copy(self) -> KeyValueCache:
        twin = KeyValueCache()
        twin.offset = self.offset
        if self.keys is not None and self.values is not None:
            twin.keys, twin.values = self.keys[...], self.values[...]  # aliases, not copies
        return twin

    @staticmethod
    def merge(layers: Sequence[KeyValueCache], cuts: Sequence[int]) -> KeyValueCache:
        """The rows of several, aligned at the right, without the first `cuts` columns of each."""
        twin = KeyValueCache()
        counts = [layer.offset - cut for layer, cut in zip(layers, cuts, strict=True)]
        twin.offset = max(counts)
        used = [slice(layer.offset - count, layer.offset) for layer, count in zip(layers, counts, strict=True)]
        pairs = list(zip(layers, used, strict=True))
        twin.keys = mx.concatenate([_right_aligned(layer.keys, columns, twin.offset) for layer, columns in pairs])
        twin.values = mx.concatenate([_right_aligned(layer.values, columns, twin.offset) for layer, columns in pairs])
        return twin


class BoundedState:
    """The state of a layer with a bounded past: arrays whose first axis is the row, none before the first call.

    With `records` the next call leaves in `block` what it had and all of its own, of which `trim` keeps a beginning.
    """

    def __init__(self, length: int):
        self.length = length
        self.inputs: tuple[mx.array, ...] = ()
        self.records = False
        self.block: tuple[mx.array, ...] = ()

    @property
    def arrays(self) -> list[mx.array]:
        return list(self.inputs)

    def filter(self, rows: mx.array) -> None:
        self.inputs = tuple(array[rows] for array in self.inputs)

    def copy(self) -> Self:
        twin = type(self)(self.length)
        twin.inputs = self.inputs
        return twin


class ConvCache(BoundedState):
    """The last `length` gated inputs of one short convolution, oldest first, each (B, 1, hidden)."""

    def shapes(self, config: TextConfig, offset: int) -> list[tuple[int, ...]]:
        """The shapes of the arrays of a single row that has seen `offset` tokens."""
        return [(1, 1, config.hidden_size)] * self.length

    def row(self, index: int, offset: int) -> ConvCache:
        twin = ConvCache(self.length)
        twin.inputs = tuple(array[index : index + 1] for array in self.inputs)
        return twin

    def trim(self, counts: Sequence[int]) -> None:
        """Keeps the first tokens of each row of the last call, so many, which was recorded."""
        (block,) = self.block
        self.inputs = tuple(mx.split(_cut(block, counts, self.length, axis=1), self.length, axis=1))
        self.records, self.block = False, ()

    @staticmethod
    def merge(layers: Sequence[ConvCache], offsets: Sequence[int]) -> ConvCache:
        twin = ConvCache(layers[0].length)
        twin.inputs = tuple(
            mx.concatenate(list(same)) for same in zip(*(layer.inputs for layer in layers), strict=True)
        )
        return twin


class WindowCache(BoundedState):
    """The last keys and values of one attention layer with a sliding window, each (B, kv_heads, up to `length`,
    head_dim)."""

    def shapes(self, config: TextConfig, offset: int) -> list[tuple[int, ...]]:
        """The shapes of the arrays of a single row that has seen `offset` tokens."""
        return [(1, config.num_key_value_heads, min(offset, self.length), config.head_dim)] * 2

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends (B, kv_heads, L, head_dim) and returns these behind those that were kept."""
        if self.inputs:
            known_keys, known_values = self.inputs
            keys = mx.concatenate([known_keys, keys], axis=2)
            values = mx.concatenate([known_values, values], axis=2)
        self.block = (keys, values) if self.records else ()
        self.inputs = (keys[:, :, -self.length :], values[:, :, -self.length :])
        return keys, values

    def trim(self, counts: Sequence[int], length: int) -> None:
        """Keeps the first tokens of each row of the last call, so many of its `length`, which was recorded. The rows
        stay aligned at the right."""
        before = self.block[0].shape[2] - length
        kept = min(self.length, before + max(counts))
        ends = [before + count - kept for count in counts]
        self.inputs = tuple(_cut(array, ends, kept, axis=2) for array in self.block)
        self.records, self.block = False, ()

    def row(self, index: int, offset: int) -> WindowCache:
        """A row that has seen `offset` tokens."""
        twin = WindowCache(self.length)
        kept = min(offset, self.length)
        twin.inputs = tuple(mx.contiguous(array[index : index + 1, :, -kept:]) for array in self.inputs)
        return twin

    @staticmethod
    def merge(layers: Sequence[WindowCache], offsets: Sequence[int]) -> WindowCache:
        """The rows of several, of which each has seen `offsets` tokens, aligned at the right."""
        twin = WindowCache(layers[0].length)
        counts = [min(offset, twin.length) for offset in offsets]
        twin.inputs = tuple(
            mx.concatenate(
                [
                    _right_aligned(array, slice(array.shape[2] - count, array.shape[2]), max(counts))
                    for array, count in zip(same, counts, strict=True)
                ]
            )
            for same in zip(*(layer.inputs for layer in layers), strict=True)
        )
        return twin


LayerCache = KeyValueCache | ConvCache | WindowCache


def _cut(array: mx.array, starts: Sequence[int], length: int, axis: int) -> mx.array:
    """The entries along an axis from `starts[r]` on, for each row r (where that is negative: the first one again)."""
    if min(starts) == max(starts) >= 0:
        return array[(slice(None),) * axis + (slice(starts[0], starts[0] + length),)]
    places = np.maximum(np.add.outer(np.array(starts), np.arange(length)), 0)
    shape = [len(starts)] + [1] * (array.ndim - 1)
    shape[axis] = length
    return mx.take_along_axis(array, mx.array(places).reshape(shape), axis=axis)


def _right_aligned(buffer: mx.array | None, used: slice, length: int) -> mx.array:
    """The used columns of a buffer (B, heads, room, dim), zeros before them, `length` in all."""
    assert buffer is not None
    return mx.pad(buffer[:, :, used], [(0, 0), (0, 0), (length - (used.stop - used.start), 0), (0, 0)])


@dataclass(frozen=True)
class CacheCheckpoint:
    """A point to which a cache can be rewound: a length in tokens, and the bounded states there."""

    offset: int
    states: tuple[tuple[mx.array, ...], ...]


class Cache:
    """The states of all layers of a backbone, for one batch of sequences; `offset` tokens have been seen."""

    def __init__(self, config: TextConfig):
        self.layers: list[LayerCache] = [_new_layer(config, kind) for kind in config.layer_types]
        self.offset = 0

    @classmethod
    def _of(cls, layers: list[LayerCache], offset: int) -> Cache:
        twin = cls.__new__(cls)
        twin.layers, twin.offset = layers, offset
        return twin

    def get_seq_length(self) -> int:
        """Tokens seen so far (the reference's name)."""
        return self.offset

    def filter(self, rows: mx.array) -> None:
        """Keeps these rows (n,) of the batch, in this order."""
        for layer in self.layers:
            layer.filter(rows)

    def row(self, index: int, padding: int = 0, *, states_only: bool = False) -> Cache:
        """One row as a cache of its own, without the first `padding` columns. With `states_only` the keys and values
        that a checkpoint does not need are left out."""
        offset = self.offset - padding
        twin = self._of(
            [
                layer.row(index, padding, empty=states_only)
                if isinstance(layer, KeyValueCache)
                else layer.row(index, offset)
                for layer in self.layers
            ],
            offset,
        )
        mx.eval(twin.arrays)
        return twin

    def copy(self) -> Cache:
        """An independent continuation of the same past, for any thread; buffers are shared until one side writes."""
        mx.eval(self.arrays)  # what is not computed yet belongs to the thread that asked for it
        return self._of([layer.copy() for layer in self.layers], self.offset)

    @classmethod
    def merge(cls, caches: Sequence[Cache], cuts: Sequence[int] | None = None) -> Cache:
        """The rows of several caches of one model as one batch, in their order. Shorter pasts are moved to the right:
        they end where the longest ends, behind columns that must be masked as padding. The first `cuts` columns of each
        cache are left out."""
        cuts = [0] * len(caches) if cuts is None else cuts
        offsets = [cache.offset - cut for cache, cut in zip(caches, cuts, strict=True)]
        layers: list[LayerCache] = []
        for same in zip(*(cache.layers for cache in caches), strict=True):
            if isinstance(same[0], KeyValueCache):
                layers.append(KeyValueCache.merge(same, cuts))
            else:
                layers.append(type(same[0]).merge(same, offsets))
        return cls._of(layers, max(offsets))

    @property
    def arrays(self) -> list[mx.array]:
        """All state arrays, to be evaluated together."""
        return [array for layer in self.layers for array in layer.arrays]

    @property
    def batch(self) -> int | None:
        """Rows, None before the first call."""
        return next((array.shape[0] for array in self.arrays), None)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def checkpoint(self, *, detach: bool = True) -> CacheCheckpoint:
        """Remembers this point, for the size of the bounded states, whatever the length.

        Without `detach` nothing is computed, and the states may hold the larger arrays that they are cut from: for a
        point that is soon forgotten.
        """
        states = tuple(layer.inputs for layer in self.layers if isinstance(layer, BoundedState))
        if detach:
            states = tuple(tuple(mx.contiguous(array) for array in inputs) for inputs in states)
            mx.eval(states)
        return CacheCheckpoint(self.offset, states)

    def rewind(self, checkpoint: CacheCheckpoint) -> None:
        """Forgets all that came after `checkpoint`, which must have been taken from this cache."""
        states = iter(checkpoint.states)
        for layer in self.layers:
            if isinstance(layer, BoundedState):
                layer.inputs = next(states)
            else:
                layer.offset = checkpoint.offset
        self.offset = checkpoint.offset

    def record(self) -> None:
        """Lets `trim` cut the next call, which must be of several tokens."""
        for layer in self.layers:
            if isinstance(layer, BoundedState):
                layer.records = True

    def trim(self, start: int, counts: Sequence[int]) -> None:
        """Keeps the first `counts[r]` tokens of each row r of the last call, which was recorded and began at `start`.
        The rows still end at one column, that of the longest: the columns of shorter ones before it must be masked."""
        length, self.offset = self.offset - start, start + max(counts)
        for layer in self.layers:
            if isinstance(layer, KeyValueCache):
                layer.offset = self.offset
            elif isinstance(layer, WindowCache):
                layer.trim(counts, length)
            else:
                layer.trim(counts)

    def select(self, columns: np.ndarray) -> None:
        """Keeps these columns (B, n) of each row's keys and values, in this order: the last n, without gaps."""
        self.offset = columns.shape[1]
        index = mx.array(columns)[:, None, :, None]
        for layer in self.layers:
            if isinstance(layer, KeyValueCache) and layer.keys is not None and layer.values is not None:
                layer.keys = mx.take_along_axis(layer.keys, index, axis=2)
                layer.values = mx.take_along_axis(layer.values, index, axis=2)
                layer.offset = self.offset
            elif isinstance(layer, WindowCache):
                layer.inputs = tuple(array[:, :, -self.offset :] for array in layer.inputs)


def _new_layer(config: TextConfig, kind: str) -> LayerCache:
    if kind == "conv":
        return ConvCache(config.conv_L_cache - 1)
    if kind == "sliding_attention":
        assert isinstance(config, Lfm3Config)
        return WindowCache(config.sliding_window - 1)
    return KeyValueCache()


def state_shapes(config: TextConfig, offset: int) -> list[list[tuple[int, ...]]]:
    """The shapes of what a checkpoint of a single row holds behind `offset` tokens, a list for each bounded layer."""
    layers = (_new_layer(config, kind) for kind in config.layer_types)
    return [layer.shapes(config, offset) for layer in layers if isinstance(layer, (ConvCache, WindowCache))]
