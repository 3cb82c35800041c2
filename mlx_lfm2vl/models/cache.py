"""The states of a backbone between calls: keys and values of attention, as they are or quantised in groups, and all
layers' together with those of a bounded past.

Buffers of keys and values grow in steps, so that a token costs no copy of the past.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import mlx.core as mx
import numpy as np

from ..config import Lfm3Config, TextConfig
from ..errors import OptionError
from .bounded_states import BoundedState, ConvCache, WindowCache, right_aligned
from .layers import Context, seen_scores

GROWTH_STEP = 256  # tokens
KV_BITS = (8, 4)


@dataclass(eq=False, kw_only=True)
class KeyValueCache:
    """Keys and values (B, kv_heads, offset, head_dim) of one attention layer.

    Attributes:
        names: of the states.
        states: arrays (B, kv_heads, room, ...), of which the first `offset` columns are used; none before a call.
        offset: tokens so far.
    """

    names: ClassVar[tuple[str, ...]] = ("keys", "values")
    states: tuple[mx.array, ...] = ()
    offset: int = 0

    def widths(self, head_dim: int) -> tuple[int, ...]:
        """The last dimension of each state."""
        return head_dim, head_dim

    def update(self, *new: mx.array) -> tuple[mx.array, ...]:
        """Appends keys and values, (B, kv_heads, L, ...) for each of the states, and returns what is used of them, (B,
        kv_heads, offset, ...)."""
        end = self.offset + new[0].shape[2]
        if not self.states or end > self.states[0].shape[2]:
            room = -(-end // GROWTH_STEP) * GROWTH_STEP - self.offset
            more = [mx.zeros((*array.shape[:2], room, array.shape[3]), array.dtype) for array in new]
            self.states = (
                tuple(
                    mx.concatenate([old[..., : self.offset, :], own], axis=2)
                    for old, own in zip(self.states, more, strict=True)
                )
                if self.states
                else tuple(more)
            )
        for array, own in zip(self.states, new, strict=True):
            array[..., self.offset : end, :] = own
        self.offset = end
        return tuple(array[..., :end, :] for array in self.states)

    def filter(self, rows: mx.array) -> None:
        self.states = tuple(array[rows] for array in self.states)

    def select(self, columns: mx.array) -> None:
        """Keeps these columns (B, 1, n, 1) of each row, in this order."""
        self.states = tuple(mx.take_along_axis(array, columns, axis=2) for array in self.states)
        self.offset = columns.shape[2]

    def trim(self, counts: Sequence[int], length: int) -> None:
        """As `WindowCache.trim`."""
        self.offset += max(counts) - length

    def row(self, index: int, padding: int, offset: int, states_only: bool = False) -> Self:
        """A row without its first `padding` columns, `offset` are left; with `states_only` no more than this length."""
        row, columns = slice(index, index + 1), slice(padding, self.offset)
        states = () if states_only else tuple(mx.contiguous(array[row, :, columns]) for array in self.states)
        return replace(self, states=states, offset=offset)

    def copy(self) -> Self:
        return replace(self, states=tuple(array[...] for array in self.states))  # aliases, not copies

    @staticmethod
    def merge(layers: Sequence[KeyValueCache], cuts: Sequence[int], offsets: Sequence[int]) -> KeyValueCache:
        """The rows of several, aligned at the right, without the first `cuts` columns of each; `offsets` are left."""
        used = [slice(cut, layer.offset) for layer, cut in zip(layers, cuts, strict=True)]
        return replace(layers[0], states=right_aligned(layers, used, max(offsets)), offset=max(offsets))


@dataclass(eq=False)
class QuantizedKeyValueCache(KeyValueCache):
    """Keys and values quantised to `bits`, in groups along each head's numbers: the states are packed numbers, scales
    and biases of both, as `mx.quantize` makes them. A token's do not depend on others."""

    names = ("keys", "key_scales", "key_biases", "values", "value_scales", "value_biases")

    bits: int
    group_size: int

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return (head_dim * self.bits // 32, head_dim // self.group_size, head_dim // self.group_size) * 2

    def update(self, *new: mx.array) -> tuple[mx.array, ...]:
        """Appends keys and values (B, kv_heads, L, head_dim), and returns all so far, dequantised."""
        made = self._quantized(*new)
        return tuple(
            mx.dequantize(packed, scales, biases, self.group_size, self.bits)
            for packed, scales, biases in (made[:3], made[3:])
        )

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
    ) -> mx.array:
        """Appends keys and values (B, kv_heads, L, head_dim), and attention to all so far, which are read as they are
        quantised: queries (B, heads, L, head_dim) -> the same shape."""
        made = tuple(array[:, :, None] for array in self._quantized(keys, values))  # each for a group of heads
        batch, heads, length, depth = queries.shape
        grouped = (queries * scale).reshape(batch, keys.shape[1], -1, length, depth)
        packed, scales, biases = made[:3]
        scores = mx.quantized_matmul(grouped, packed, scales, biases, True, self.group_size, self.bits)
        scores = seen_scores(scores, mask[:, :, None] if isinstance(mask, mx.array) else mask)
        weights = mx.softmax(scores, axis=-1, precise=True)
        packed, scales, biases = made[3:]
        out = mx.quantized_matmul(weights, packed, scales, biases, False, self.group_size, self.bits)
        return out.reshape(batch, heads, length, depth)

    def _quantized(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        """Appends keys and values, and returns what is used of the states."""
        new = [
            part for array in (keys, values) for part in mx.quantize(array, group_size=self.group_size, bits=self.bits)
        ]
        return super().update(*new)


def group_size(head_dim: int) -> int | None:
    """The largest group that divides a head; None where there is none."""
    return next((size for size in (64, 32) if head_dim % size == 0), None)


def check_kv_bits(kv_bits: object, head_dim: int) -> None:
    """Raises `OptionError` where keys and values of heads of so many numbers cannot be quantised so."""
    if kv_bits is not None and (isinstance(kv_bits, bool) or kv_bits not in KV_BITS):
        raise OptionError(f"kv_bits is {kv_bits!r}, expected 8, 4 or None")
    if kv_bits is not None and group_size(head_dim) is None:
        raise OptionError(f"kv_bits needs heads of a multiple of 32, this model's are {head_dim}")


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
        twin = copy(like)
        twin.layers, twin.offset = layers, offset
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
        twin = self._of([layer.row(index, padding, offset, states_only) for layer in self.layers], offset, self)
        mx.eval(twin.arrays)
        return twin

    def copy(self) -> Cache:
        """An independent continuation of the same past, for any thread; buffers are shared until one side writes."""
        mx.eval(self.arrays)  # what is not computed yet belongs to the thread that asked for it
        return self._of([layer.copy() for layer in self.layers], self.offset, self)

    @classmethod
    def merge(cls, caches: Sequence[Cache], cuts: Sequence[int]) -> Cache:
        """The rows of several caches of one model as one batch, in their order. Shorter pasts are moved to the right:
        they end where the longest ends, behind columns that must be masked as padding. The first `cuts` columns of each
        cache are left out. A drafter of one reads along in all."""
        drafter = next((cache.drafter for cache in caches if cache.drafter is not None), None)
        for cache in caches:
            cache.follow(drafter)
        offsets = [cache.offset - cut for cache, cut in zip(caches, cuts, strict=True)]
        every = zip(*(cache.layers for cache in caches), strict=True)
        return cls._of([same[0].merge(same, cuts, offsets) for same in every], max(offsets), caches[0])

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
            layer.trim(counts, length)

    def select(self, columns: np.ndarray) -> None:
        """Keeps these columns (B, n) of each row's keys and values, in this order: the last n, without gaps."""
        self.offset = columns.shape[1]
        index = mx.array(columns)[:, None, :, None]
        for layer in self.layers:
            layer.select(index)


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
