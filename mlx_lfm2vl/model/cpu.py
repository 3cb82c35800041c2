"""What is done differently where MLX computes on a CPU, all of it in this file (OpenBLAS apart: see `backend`).

It applies where the default device is a CPU: on Metal and CUDA everything is MLX's own.

- Weights are made float32 when they are loaded, quantised ones too, if nobody asked for a type and memory allows:
  MLX's products in other types are 30 to 60 times slower there. Wide ones lie in memory by columns, (in, out), which
  OpenBLAS reads faster when there is one row to multiply.
- Computing in float32, exponentials are polynomials that a compiler vectorises (MLX takes them from the C library one
  by one), and attention runs in blocks that fit a core's cache. Results differ from MLX's by rounding, 1e-7 relative.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import mlx.core as mx
import numpy as np

BLOCK = 2**16  # numbers that are worked on at a time: 256 KiB, which stays in a core's cache
QUERY_ROWS = 256
SMALL = 2**14  # attention of fewer scores goes MLX's way, which takes fewer steps
_CPU = mx.Device(mx.cpu)

LIMIT = 86.0  # e^-86 is 5e-38, the smallest power that is still normal in float32
LOG2_E = 1.4426950408889634
LN_2_HIGH, LN_2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2, the first has few digits: n * it is exact
ROUNDER = 12582912.0  # 1.5 * 2^23: the sum with it has the nearest integer in its lowest bits
TAYLOR = (1.0, 1.0, 5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.987569150e-4)

_kernel = partial(mx.compile, shapeless=True)


def is_default() -> bool:
    """Whether MLX computes on a CPU."""
    return mx.default_device() == _CPU


def applies(x: mx.array) -> bool:
    """Whether arrays like `x` are computed here."""
    return x.dtype == mx.float32 and is_default()


# Weights


def by_columns(weight: mx.array) -> mx.array:
    """The same matrix (out, in), laid out in memory as (in, out) if it is wide."""
    if weight.ndim != 2 or weight.shape[0] < 2 * weight.shape[1]:
        return weight
    blocks = [mx.contiguous(weight[at : at + 256].T) for at in range(0, weight.shape[0], 256)]  # a cache's worth each
    return mx.concatenate(blocks, axis=1).T


# Activations


@_kernel
def _rounded(x: mx.array) -> mx.array:
    return x * LOG2_E + ROUNDER


@_kernel
def _power_bits(rounded: mx.array) -> mx.array:
    return (rounded << 23) + (127 << 23)


@_kernel
def _scaled_polynomial(x: mx.array, rounded: mx.array, power: mx.array) -> mx.array:
    n = rounded - ROUNDER
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW
    square = r * r
    c = TAYLOR
    high = (c[4] + c[5] * r) + square * (c[6] + c[7] * r)
    return ((c[0] + r) + square * ((c[2] + c[3] * r) + square * high)) * power


def exp(x: mx.array) -> mx.array:
    """e^x for x in -86..86, float32, to 1.2e-7 relative.

    x is n ln 2 + r with |r| <= ln(2) / 2; e^r is the minimax polynomial of Cephes' `expf`, 2^n is built from its bits.
    """
    rounded = _rounded(x)
    power = _power_bits(rounded.view(mx.int32)).view(mx.float32)
    return _scaled_polynomial(x, rounded, power)


@_kernel
def _minus(x: mx.array) -> mx.array:
    return mx.minimum(mx.maximum(-x, -LIMIT), LIMIT)


@_kernel
def _tanh_argument(x: mx.array) -> mx.array:
    """-2 sqrt(2 / pi) (x + 0.044715 x^3)"""
    y = x * (-1.5957691216057308 - 0.07135481282687 * (x * x))
    return mx.minimum(mx.maximum(y, -LIMIT), LIMIT)


@_kernel
def _gated(x: mx.array, e: mx.array) -> mx.array:
    return x / (1.0 + e)


@_kernel
def _gated_product(x: mx.array, e: mx.array, y: mx.array) -> mx.array:
    return x * y / (1.0 + e)


def _in_blocks(function: Callable[..., mx.array], *arrays: mx.array) -> mx.array:
    """An elementwise function of arrays of one shape (..., width), a block of rows at a time."""
    shape = arrays[0].shape
    width = shape[-1]
    rows, step = arrays[0].size // max(1, width), max(1, BLOCK // width)
    if rows <= step:
        return function(*arrays)
    flat = [array.reshape(rows, width) for array in arrays]
    parts = [function(*(array[at : at + step] for array in flat)) for at in range(0, rows, step)]
    return mx.concatenate(parts).reshape(shape)


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU in its approximation by tanh: x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return _in_blocks(lambda x: _gated(x, exp(_tanh_argument(x))), x)


def silu(x: mx.array) -> mx.array:
    """x / (1 + e^-x)"""
    return _in_blocks(lambda x: _gated(x, exp(_minus(x))), x)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """`silu(gate) * up`"""
    return _in_blocks(lambda gate, up: _gated_product(gate, exp(_minus(gate)), up), gate, up)


# Attention


@lru_cache(maxsize=64)
def _causal(rows: int, total: int) -> np.ndarray:
    """(rows, total) float32 to add to scores: the last of `rows` queries sees all of `total` keys, each one before it
    one key less."""
    return np.triu(np.full((rows, total), -1e30, np.float32), k=total - rows + 1)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """`mx.fast.scaled_dot_product_attention`, or its like in blocks where this module applies.

    (B, H, L, D) and twice (B, K, S, D) -> (B, H, L, D), H a multiple of K.
    `mask` is "causal", or (B, 1, L, S) bool, which must leave every query a key. Blocks of queries see only the keys
    that they may.
    """
    batch, heads, length, depth = queries.shape
    kv_heads, total = keys.shape[1:3]
    if heads * length * total < SMALL or not applies(queries):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    group = heads // kv_heads
    queries = (queries * scale).reshape(batch, kv_heads, group, length, depth)
    rows: list[mx.array] = []
    for start in range(0, length, QUERY_ROWS):
        end = min(start + QUERY_ROWS, length)
        seen = total - length + end if isinstance(mask, str) else total
        step = max(1, BLOCK // (group * (end - start) * seen))
        parts: list[mx.array] = []
        for row in range(batch):
            bias: mx.array | None = None
            if isinstance(mask, mx.array):
                bias = mx.where(mask[min(row, len(mask) - 1) :][:1, 0, start:end], 0.0, -1e30)
            elif mask is not None and length > 1:
                bias = mx.array(_causal(end - start, seen))
            for head in range(0, kv_heads, step):
                here = (slice(row, row + 1), slice(head, head + step))
                parts.append(
                    _block(
                        queries[(*here, ..., slice(start, end), slice(None))],
                        keys[(*here, slice(0, seen))],
                        values[(*here, slice(0, seen))],
                        bias,
                    )
                )
        joined = parts[0] if len(parts) == 1 else mx.concatenate([part.reshape(-1, *part.shape[-2:]) for part in parts])
        rows.append(joined.reshape(batch, heads, end - start, depth))
    return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=2)


def _block(queries: mx.array, keys: mx.array, values: mx.array, bias: mx.array | None) -> mx.array:
    """Queries (1, k, group, rows, D), already scaled, against keys and values (1, k, S, D): (1, k, group * rows, D)."""
    _, heads, group, rows, depth = queries.shape
    scores = queries.reshape(1, heads, group * rows, depth) @ keys.swapaxes(-1, -2)
    if bias is not None:
        scores = (scores.reshape(1, heads, group, rows, -1) + bias).reshape(scores.shape)
    weights = exp(mx.maximum(scores - scores.max(axis=-1, keepdims=True), -LIMIT))
    return (weights @ values) / weights.sum(axis=-1, keepdims=True)
