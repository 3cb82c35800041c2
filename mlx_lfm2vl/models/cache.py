"""The states of a backbone between calls: keys and values of attention, and those of layers with a bounded past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..config import Lfm3Config, TextConfig
from .bounded_states import BoundedState, ConvCache, WindowCache
from .context import Context
from .key_values import KeyValueCache, QuantizedKeyValueCache, group_size

LayerCache = KeyValueCache | ConvCache | WindowCache


@dataclass(frozen=True)
class CacheCheckpoint:
    """A point to which a cache can be rewound: a length in tokens, and the bounded states there."""

    offset: int
    states: tuple[tuple[mx.array, ...], ...]


class Drafter(Protocol):
    """A model beside the backbone that reads along and keeps keys and values of its own (`DSparkDraftModel`)."""

    @property
    def target_layer_ids(self) -> tuple[int, ...]: ...

    @property
    def token_bytes(self) -> int: ...

    def empty(self, batch: int = 0, length: int = 0) -> list[KeyValueCache]: ...

    def remember(self, results: Sequence[mx.array], context: Context, past: Sequence[KeyValueCache]) -> None: ...


class Cache:
    """The states of all layers of a backbone, for one batch of sequences; `offset` tokens have been seen. Keys and
    values are quantised to `kv_bits`, bounded states never.

    Attributes:
        layers: the states of each layer; those of a drafter behind them.
        drafter: what reads along, or None.
    """

    def __init__(self, config: TextConfig, kv_bits: int | None = None):
        self.layers: list[LayerCache] = [_new_layer(config, kind, kv_bits) for kind in config.layer_types]
        self.offset, self._depth = 0, len(self.layers)
        self.drafter: Drafter | None = None

    @classmethod
    def _of(cls, layers: list[LayerCache], offset: int, like: Cache) -> Cache:
        twin = cls.__new__(cls)
        twin.layers, twin.offset, twin.drafter, twin._depth = layers, offset, like.drafter, like._depth
        return twin

    def follow(self, drafter: Drafter | None) -> None:
        """Lets a drafter read along from here on, or none. A new one knows nothing of the tokens so far."""
        if drafter is self.drafter:
            return
        self.drafter = drafter
        states = [] if drafter is None else drafter.empty(self.batch or 0, self.offset)
        self.layers = [*self.layers[: self._depth], *states]

    @property
    def draft_layers(self) -> list[KeyValueCache]:
        """The states of the drafter."""
        return [layer for layer in self.layers[self._depth :] if isinstance(layer, KeyValueCache)]

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
            self,
        )
        mx.eval(twin.arrays)
        return twin

    def copy(self) -> Cache:
        """An independent continuation of the same past, for any thread; buffers are shared until one side writes."""
        mx.eval(self.arrays)  # what is not computed yet belongs to the thread that asked for it
        return self._of([layer.copy() for layer in self.layers], self.offset, self)

    @classmethod
    def merge(cls, caches: Sequence[Cache], cuts: Sequence[int] | None = None) -> Cache:
        """The rows of several caches of one model as one batch, in their order. Shorter pasts are moved to the right:
        they end where the longest ends, behind columns that must be masked as padding. The first `cuts` columns of each
        cache are left out. A drafter of one reads along in all."""
        cuts = [0] * len(caches) if cuts is None else cuts
        drafter = next((cache.drafter for cache in caches if cache.drafter is not None), None)
        for cache in caches:
            cache.follow(drafter)
        offsets = [cache.offset - cut for cache, cut in zip(caches, cuts, strict=True)]
        layers: list[LayerCache] = []
        for same in zip(*(cache.layers for cache in caches), strict=True):
            if isinstance(same[0], KeyValueCache):
                layers.append(KeyValueCache.merge(same, cuts))
            else:
                layers.append(type(same[0]).merge(same, offsets))
        return cls._of(layers, max(offsets), caches[0])

    @property
    def arrays(self) -> list[mx.array]:
        """All state arrays, to be evaluated together."""
        return [array for layer in self.layers for array in layer.states]

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
        states = tuple(layer.states for layer in self.layers if isinstance(layer, BoundedState))
        if detach:
            states = tuple(tuple(mx.contiguous(array) for array in inputs) for inputs in states)
            mx.eval(states)
        return CacheCheckpoint(self.offset, states)

    def rewind(self, checkpoint: CacheCheckpoint) -> None:
        """Forgets all that came after `checkpoint`, which must have been taken from this cache."""
        states = iter(checkpoint.states)
        for layer in self.layers:
            if isinstance(layer, BoundedState):
                layer.states = next(states)
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
            if isinstance(layer, KeyValueCache):
                layer.select(index)
            elif isinstance(layer, WindowCache):
                layer.states = tuple(array[:, :, -self.offset :] for array in layer.states)


def _new_layer(config: TextConfig, kind: str, kv_bits: int | None = None) -> LayerCache:
    if kind == "conv":
        return ConvCache(config.conv_L_cache - 1)
    if kind == "sliding_attention":
        assert isinstance(config, Lfm3Config)
        return WindowCache(config.sliding_window - 1)
    size = None if kv_bits is None else group_size(config.head_dim)
    return KeyValueCache() if kv_bits is None or size is None else QuantizedKeyValueCache(kv_bits, size)


def state_shapes(config: TextConfig, offset: int) -> list[list[tuple[int, ...]]]:
    """The shapes of what a checkpoint of a single row holds behind `offset` tokens, a list for each bounded layer."""
    layers = (_new_layer(config, kind) for kind in config.layer_types)
    return [layer.shapes(config, offset) for layer in layers if isinstance(layer, (ConvCache, WindowCache))]
