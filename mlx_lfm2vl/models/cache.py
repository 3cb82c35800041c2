"""The states of the backbone between calls: keys and values of attention, the last inputs of short convolutions.

A convolution state is the last `conv_L_cache - 1` gated inputs and cannot be trimmed; rewinding needs a copy of it (see
`Cache.checkpoint`), or all inputs of a call (see `Cache.record`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..config import Lfm2Config
from .key_values import KeyValueCache, QuantizedKeyValueCache, group_size


class ConvCache:
    """The last `conv_L_cache - 1` gated inputs of one short convolution, oldest first, each (B, 1, hidden).

    With `records` the next call leaves these and all of its own, (B, conv_L_cache - 1 + L, hidden), in `block`.
    """

    def __init__(self, length: int):
        self.length = length
        self.inputs: tuple[mx.array, ...] = ()
        self.records = False
        self.block: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        return list(self.inputs)


def _at_the_right(buffer: mx.array, used: slice, length: int) -> mx.array:
    """The used columns of a buffer (B, heads, room, dim), zeros before them, `length` in all."""
    return mx.pad(buffer[:, :, used], [(0, 0), (0, 0), (length - (used.stop - used.start), 0), (0, 0)])


@dataclass(frozen=True)
class CacheCheckpoint:
    """A point to which a cache can be rewound: a length in tokens and the convolution states there."""

    offset: int
    conv_inputs: tuple[tuple[mx.array, ...], ...]


class Cache:
    """The states of all layers of a backbone, for one batch of sequences; `offset` tokens have been seen. Keys and
    values are quantised to `kv_bits`, convolution states never."""

    def __init__(self, config: Lfm2Config, kv_bits: int | None = None):
        def attention() -> KeyValueCache:
            size = group_size(config.head_dim)
            return KeyValueCache() if kv_bits is None or size is None else QuantizedKeyValueCache(kv_bits, size)

        self.layers: list[KeyValueCache | ConvCache] = [
            attention() if kind == "full_attention" else ConvCache(config.conv_L_cache - 1)
            for kind in config.layer_types
        ]
        self.offset = 0

    def get_seq_length(self) -> int:
        """Tokens seen so far (the reference's name)."""
        return self.offset

    def filter(self, rows: mx.array) -> None:
        """Keeps these rows (n,) of the batch, in this order."""
        for layer in self.layers:
            if isinstance(layer, ConvCache):
                layer.inputs = tuple(array[rows] for array in layer.inputs)
            else:
                layer.states = tuple(array[rows] for array in layer.states)

    def row(self, index: int, padding: int = 0, *, states_only: bool = False) -> Cache:
        """One row as a cache of its own, without the first `padding` columns. With `states_only` the keys and values
        are left out: for a checkpoint."""
        twin = Cache.__new__(Cache)
        twin.offset, twin.layers = self.offset - padding, []
        for layer in self.layers:
            if isinstance(layer, ConvCache):
                conv = ConvCache(layer.length)
                conv.inputs = tuple(array[index : index + 1] for array in layer.inputs)
                twin.layers.append(conv)
                continue
            attention = layer.empty()
            attention.offset = layer.offset - padding
            if not states_only:
                row, columns = slice(index, index + 1), slice(padding, layer.offset)
                attention.states = tuple(mx.contiguous(array[row, :, columns]) for array in layer.states)
            twin.layers.append(attention)
        mx.eval(twin.arrays)
        return twin

    def copy(self) -> Cache:
        """An independent continuation of the same past, for any thread; buffers are shared until one side writes."""
        mx.eval(self.arrays)  # what is not computed yet belongs to the thread that asked for it
        twin = Cache.__new__(Cache)
        twin.offset, twin.layers = self.offset, []
        for layer in self.layers:
            if isinstance(layer, ConvCache):
                conv = ConvCache(layer.length)
                conv.inputs = layer.inputs
                twin.layers.append(conv)
            else:
                attention = layer.empty()
                attention.offset = layer.offset
                attention.states = tuple(array[...] for array in layer.states)  # aliases, not copies
                twin.layers.append(attention)
        return twin

    @classmethod
    def merge(cls, caches: Sequence[Cache], cuts: Sequence[int] | None = None) -> Cache:
        """The rows of several caches of one model as one batch, in their order. Shorter pasts are moved to the right:
        they end where the longest ends, behind columns that must be masked as padding. The first `cuts` columns of each
        cache are left out."""
        cuts = [0] * len(caches) if cuts is None else cuts
        twin = cls.__new__(cls)
        twin.offset, twin.layers = max(cache.offset - cut for cache, cut in zip(caches, cuts, strict=True)), []
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            first = layers[0]
            if isinstance(first, ConvCache):
                conv = ConvCache(first.length)
                inputs = [layer.inputs for layer in layers if isinstance(layer, ConvCache)]
                conv.inputs = tuple(mx.concatenate(list(same)) for same in zip(*inputs, strict=True))
                twin.layers.append(conv)
            else:
                attention = first.empty()
                attention.offset = twin.offset
                pasts = [
                    [_at_the_right(array, slice(cut, layer.offset), twin.offset) for array in layer.states]
                    for layer, cut in zip(layers, cuts, strict=True)
                    if isinstance(layer, KeyValueCache)
                ]
                attention.states = tuple(mx.concatenate(list(same)) for same in zip(*pasts, strict=True))
                twin.layers.append(attention)
        return twin

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
        """Remembers this point, for `(conv_L_cache - 1) * hidden` numbers a convolution layer, whatever the length.

        Without `detach` nothing is computed, and the states may hold the larger arrays that they are cut from: for a
        point that is soon forgotten.
        """
        states = tuple(layer.inputs for layer in self.layers if isinstance(layer, ConvCache))
        if detach:
            states = tuple(tuple(mx.contiguous(array) for array in inputs) for inputs in states)
            mx.eval(states)
        return CacheCheckpoint(self.offset, states)

    def rewind(self, checkpoint: CacheCheckpoint) -> None:
        """Forgets all that came after `checkpoint`, which must have been taken from this cache."""
        states = iter(checkpoint.conv_inputs)
        for layer in self.layers:
            if isinstance(layer, ConvCache):
                layer.inputs = next(states)
            else:
                layer.offset = checkpoint.offset
        self.offset = checkpoint.offset

    def record(self) -> None:
        """Lets `trim` cut the next call, which must be of several tokens."""
        for layer in self.layers:
            if isinstance(layer, ConvCache):
                layer.records = True

    def trim(self, start: int, counts: Sequence[int]) -> None:
        """Keeps the first `counts[r]` tokens of each row r of the last call, which was recorded and began at `start`.
        The rows still end at one column, that of the longest: the columns of shorter ones before it must be masked."""
        self.offset = start + max(counts)
        for layer in self.layers:
            if isinstance(layer, KeyValueCache):
                layer.offset = self.offset
                continue
            assert layer.block is not None
            if min(counts) == max(counts):
                states = layer.block[:, counts[0] : counts[0] + layer.length]
            else:
                last = np.add.outer(np.array(counts), np.arange(layer.length))
                states = mx.take_along_axis(layer.block, mx.array(last)[..., None], axis=1)
            layer.inputs = tuple(mx.split(states, layer.length, axis=1))
            layer.records, layer.block = False, None

    def select(self, columns: np.ndarray) -> None:
        """Keeps these columns (B, n) of each row's keys and values, in this order."""
        self.offset = columns.shape[1]
        index = mx.array(columns)[:, None, :, None]
        for layer in self.layers:
            if isinstance(layer, KeyValueCache):
                layer.states = tuple(mx.take_along_axis(array, index, axis=2) for array in layer.states)
                layer.offset = self.offset
