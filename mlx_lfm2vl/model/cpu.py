"""What is done differently where MLX computes on a CPU, all of it in this file.

It applies where the default device is a CPU: on Metal and CUDA everything is MLX's own.

- Weights are made float32 when they are loaded, quantised ones too, if nobody asked for a type and memory allows:
  MLX's products in other types are 30 to 60 times slower there. Wide ones lie in memory by columns, (in, out), which
  OpenBLAS reads faster when there are a few rows to multiply.
- Computing in float32, products of linear layers, attention and activations are NumPy's. Its wheels bring an OpenBLAS
  with them, which reads a matrix for a single row two to three times as fast as MLX, whose every product is an `sgemm`,
  and its exponentials are vectorised, which MLX takes from the C library one by one. Memory is shared on the way in and
  copied on the way out. Results differ from MLX's by rounding.

Such functions compute when they are called, not when their result is asked for. Gradients go through them (they are
those of MLX's functions); `mx.compile` and `mx.vmap` cannot, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import numpy as np

BLOCK = 2**15  # numbers that are worked on at a time: 128 KiB, so that several arrays of them stay in a core's cache
SCORES = 2**18  # of attention that are worked on at a time
FEW = 3  # rows of which each alone is multiplied faster than all together
SMALL = 2**14  # attention of fewer scores goes MLX's way, which takes fewer steps
_CPU = mx.Device(mx.cpu)
_inference = ContextVar("_inference", default=False)


def is_default() -> bool:
    """Whether MLX computes on a CPU."""
    return mx.default_device() == _CPU


def applies(*arrays: mx.array) -> bool:
    """Whether arrays like these are computed here."""
    return all(array.dtype == mx.float32 for array in arrays) and is_default()


def by_columns(weight: mx.array) -> mx.array:
    """The same matrix (out, in), laid out in memory as (in, out) if it is wide."""
    if weight.ndim != 2 or weight.shape[0] < 2 * weight.shape[1]:
        return weight
    blocks = [mx.contiguous(weight[at : at + 256].T) for at in range(0, weight.shape[0], 256)]  # a cache's worth each
    return mx.concatenate(blocks, axis=1).T


def _like(of_mlx: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function of NumPy's arrays one of MLX's that has the gradients of `of_mlx`. Results are one or a tuple
    of as many as those of `of_mlx`."""

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        def computed(*arrays: mx.array) -> Any:
            with np.errstate(all="ignore"):  # what is not finite is found where an answer is
                results = function(*(np.array(array, copy=False) for array in arrays))
            return tuple(map(mx.array, results)) if isinstance(results, tuple) else mx.array(results)

        def gradients(primals: Any, cotangents: Any, _: Any) -> list[mx.array]:
            given, wanted = ([x] if isinstance(x, mx.array) else list(x) for x in (primals, cotangents))
            return mx.vjp(of_mlx, given, wanted)[1]

        custom = mx.custom_function(computed)
        custom.vjp(gradients)
        return lambda *arrays: (computed if _inference.get() else custom)(*arrays)

    return made


@contextmanager
def no_gradients() -> Iterator[None]:
    """While a `with` block runs, what is computed here costs a little less and has no gradients."""
    before = _inference.set(True)
    try:
        yield
    finally:
        _inference.reset(before)


# Products


def _product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    rows = x.reshape(-1, x.shape[-1])
    made = np.stack([weight @ row for row in rows]) if 1 <= len(rows) <= FEW else rows @ weight.T
    return made.reshape(*x.shape[:-1], len(weight))


@_like(lambda x, weight: x @ weight.T)
def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(..., in) by (out, in) -> (..., out)."""
    return _product(x, weight)


@_like(lambda added, x, weight: mx.addmm(added, x, weight.T))
def add_product(added: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`product(x, weight)` and a bias (out,) or a residual (..., out)."""
    made = _product(x, weight)
    made += added
    return made


# Norms, convolutions


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """`mx.fast.rms_norm`"""

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        made = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(eps))
        made *= weight
        return made

    return _like(partial(mx.fast.rms_norm, eps=eps))(norm)(x, weight)


def conv_step(of_mlx: Callable[..., Any], projected: mx.array, past: Sequence[mx.array], kernel: mx.array) -> Any:
    """Of one token, B, C and x beside each other (B, 1, 3 * hidden): B * x, the last tap, and C * (sum of the taps
    times their columns of the kernel (hidden, K, 1)), which `of_mlx` makes of the same arguments."""

    def step(projected: np.ndarray, kernel: np.ndarray, *past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gate_in, gate_out, value = np.split(projected, 3, axis=-1)
        new = gate_in * value
        total = new * kernel[:, -1, 0]
        for tap, column in zip(past, kernel[..., 0].T, strict=False):
            total += tap * column
        total *= gate_out
        return new, total

    return _like(of_mlx)(step)(projected, kernel, *past)


# Activations


def _in_blocks(function: Callable[..., None], *arrays: np.ndarray) -> np.ndarray:
    """What an elementwise function writes into its last argument, a block at a time."""
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    made = np.empty_like(flat[0])
    for at in range(0, made.size, BLOCK):
        function(*(array[at : at + BLOCK] for array in (*flat, made)))
    return made.reshape(arrays[0].shape)


def _gelu_tanh(x: np.ndarray, made: np.ndarray) -> None:
    np.multiply(x, x, out=made)
    made *= -0.07135481282687
    made -= 1.5957691216057308
    made *= x
    np.exp(made, out=made)
    made += 1.0
    np.divide(x, made, out=made)


def _silu(x: np.ndarray, made: np.ndarray) -> None:
    np.negative(x, out=made)
    np.exp(made, out=made)
    made += 1.0
    np.divide(x, made, out=made)


def _swiglu(gate: np.ndarray, up: np.ndarray, made: np.ndarray) -> None:
    _silu(gate, made)
    made *= up


@_like(lambda x: x * mx.sigmoid(x * (1.5957691216057308 + 0.07135481282687 * (x * x))))
def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GELU in its approximation by tanh: x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return _in_blocks(_gelu_tanh, x)


@_like(lambda x: x * mx.sigmoid(x))
def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e^-x)"""
    return _in_blocks(_silu, x)


@_like(lambda gate, up: gate * mx.sigmoid(gate) * up)
def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """`silu(gate) * up`"""
    return _in_blocks(_swiglu, gate, up)


# Attention


@lru_cache(maxsize=4)  # of at most 1 MiB each; all layers ask for the same
def _causal(rows: int) -> np.ndarray:
    """(rows, rows) float32 to add to the scores of the last keys: the last query sees all of them, each one before it
    one key less."""
    return np.triu(np.full((rows, rows), -1e30, np.float32), k=1)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """`mx.fast.scaled_dot_product_attention`, or its like in blocks where this module applies.

    (B, H, L, D) and twice (B, K, S, D) -> (B, H, L, D), H a multiple of K.
    `mask` is "causal", or (B, 1, L, S) bool, which must leave every query a key. Blocks of queries see only the keys
    that they may.
    """
    of_mlx = partial(mx.fast.scaled_dot_product_attention, scale=scale, mask=mask)
    _, heads, length, _ = queries.shape
    if heads * length * keys.shape[2] < SMALL or not applies(queries):
        return of_mlx(queries, keys, values)
    seen = np.array(mask) if isinstance(mask, mx.array) else mask
    of_tokens = _like(lambda *given: of_mlx(*given).transpose(0, 2, 1, 3))
    made: mx.array = of_tokens(partial(_attention, scale=scale, mask=seen))(queries, keys, values)
    return made.transpose(0, 2, 1, 3)


def _attention(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float, mask: np.ndarray | str | None
) -> np.ndarray:
    """(B, L, H, D): all heads of a token beside each other, as the next product takes them."""
    batch, heads, length, depth = queries.shape
    kv_heads, total = keys.shape[1:3]
    step = min(length, max(1, SCORES // total))
    made = np.empty((batch, length, heads, depth), np.float32)
    scores = np.empty(step * total, np.float32)
    for start in range(0, length, step):
        end = min(start + step, length)
        seen = total - length + end if isinstance(mask, str) else total
        block = scores[: (end - start) * seen].reshape(end - start, seen)
        for row in range(batch):
            bias, hidden = None, block
            if isinstance(mask, np.ndarray):
                bias = np.where(mask[min(row, len(mask) - 1), 0, start:end], np.float32(0), np.float32(-1e30))
            elif mask is not None and length > 1:
                bias, hidden = _causal(end - start), block[:, seen - (end - start) :]
            for head in range(heads):
                source = head * kv_heads // heads
                np.matmul(queries[row, head, start:end] * np.float32(scale), keys[row, source, :seen].T, out=block)
                if bias is not None:
                    hidden += bias
                block -= block.max(axis=1, keepdims=True)
                np.exp(block, out=block)
                sums = block.sum(axis=1, keepdims=True)
                np.divide(block @ values[row, source, :seen], sums, out=made[row, start:end, head])
    return made
