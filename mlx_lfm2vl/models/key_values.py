"""Keys and values of one attention layer between calls: as they are, or quantised in groups.

Buffers grow in steps, so that a token costs no copy of the past.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from ..errors import OptionError

GROWTH_STEP = 256  # tokens
KV_BITS = (8, 4)


@dataclass(eq=False)
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

    def empty(self) -> KeyValueCache:
        """A cache of the same kind, for another past."""
        return KeyValueCache()

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

    def row(self, index: int, padding: int, *, empty: bool = False) -> KeyValueCache:
        """A row without its first `padding` columns; only its length if `empty`."""
        twin = self.empty()
        twin.offset = self.offset - padding
        if not empty:
            row, columns = slice(index, index + 1), slice(padding, self.offset)
            twin.states = tuple(mx.contiguous(array[row, :, columns]) for array in self.states)
        return twin

    def copy(self) -> KeyValueCache:
        twin = self.empty()
        twin.offset = self.offset
        twin.states = tuple(array[...] for array in self.states)  # aliases, not copies
        return twin

    @staticmethod
    def merge(layers: Sequence[KeyValueCache], cuts: Sequence[int]) -> KeyValueCache:
        """The rows of several, aligned at the right, without the first `cuts` columns of each."""
        twin = layers[0].empty()
        twin.offset = max(layer.offset - cut for layer, cut in zip(layers, cuts, strict=True))
        pasts = [
            [right_aligned(array, slice(cut, layer.offset), twin.offset) for array in layer.states]
            for layer, cut in zip(layers, cuts, strict=True)
        ]
        twin.states = tuple(mx.concatenate(list(same)) for same in zip(*pasts, strict=True))
        return twin


class QuantizedKeyValueCache(KeyValueCache):
    """Keys and values quantised to `bits`, in groups along each head's numbers: the states are packed numbers, scales
    and biases of both, as `mx.quantize` makes them. A token's do not depend on others."""

    names = ("keys", "key_scales", "key_biases", "values", "value_scales", "value_biases")

    def __init__(self, bits: int, group_size: int):
        super().__init__()
        self.bits, self.group_size = bits, group_size

    def empty(self) -> KeyValueCache:
        return QuantizedKeyValueCache(self.bits, self.group_size)

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
        if isinstance(mask, str):
            total = scores.shape[-1]
            mask = mx.arange(total)[None, :] <= mx.arange(total - length, total)[:, None]
        elif mask is not None:
            mask = mask[:, :, None]
        if mask is not None:
            scores = mx.where(mask, scores, mx.array(-mx.inf, scores.dtype))
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


def right_aligned(buffer: mx.array, used: slice, length: int) -> mx.array:
    """The used columns of a buffer (B, heads, room, dim), zeros before them, `length` in all."""
    return mx.pad(buffer[:, :, used], [(0, 0), (0, 0), (length - (used.stop - used.start), 0), (0, 0)])
