"""What is done differently where MLX computes on a CPU, all of it in this folder.

It applies where the default device is a CPU: on Metal and CUDA everything is MLX's own.

- Weights are made float32 when they are loaded, quantised ones too, if nobody asked for a type and memory allows:
  MLX's products in other types are 30 to 60 times slower there. Wide ones lie in memory by columns, (in, out), which
  OpenBLAS reads faster when there are a few rows to multiply.
- Computing in float32, products of linear layers, attention and activations are NumPy's. Its wheels bring an OpenBLAS
  with them, which reads a matrix for a single row two to three times as fast as MLX, whose every product is an `sgemm`,
  and its exponentials are vectorised, which MLX takes from the C library one by one. Memory is shared on the way in and
  copied on the way out. Results differ from MLX's by rounding.
- Where nobody wants gradients, a whole layer goes to NumPy and back at once, its attention too where it is that of one
  token. One of the vision tower is shared between as many threads as OpenBLAS has, all of it and not its products alone
  (`mlx_lfm2vl.threads`).

Such functions compute when they are called, not when their result is asked for. Gradients go through them (they are
those of MLX's functions); `mx.compile` and `mx.vmap` cannot, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from . import arrays, layers

SMALL = 2**14  # attention of fewer scores goes MLX's way, which takes fewer steps
Parameters = dict[str, mx.array]  # of a layer, by their names in it
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


def _without_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of NumPy's arrays one of MLX's. Results are one or a tuple."""

    def computed(*given: mx.array) -> Any:
        with np.errstate(all="ignore"):  # what is not finite is found where an answer is
            results = function(*(np.array(array, copy=False) for array in given))
        return tuple(map(mx.array, results)) if isinstance(results, tuple) else mx.array(results)

    return computed


def _like(of_mlx: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function of NumPy's arrays one of MLX's that has the gradients of `of_mlx`. Results are one or a tuple
    of as many as those of `of_mlx`."""

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        computed = _without_gradients(function)

        def gradients(primals: Any, cotangents: Any, _: Any) -> list[mx.array]:
            given, wanted = ([x] if isinstance(x, mx.array) else list(x) for x in (primals, cotangents))
            return mx.vjp(of_mlx, given, wanted)[1]

        custom = mx.custom_function(computed)
        custom.vjp(gradients)
        return lambda *given: (computed if _inference.get() else custom)(*given)

    return made


@contextmanager
def no_gradients() -> Iterator[None]:
    """While a `with` block runs, what is computed here costs a little less and has no gradients."""
    before = _inference.set(True)
    try:
        yield
    finally:
        _inference.reset(before)


# Functions that have MLX's gradients


@_like(lambda x, weight: x @ weight.T)
def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(..., in) by (out, in) -> (..., out)."""
    return arrays.product(x, weight)


@_like(lambda added, x, weight: mx.addmm(added, x, weight.T))
def add_product(added: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`product(x, weight)` and a bias (out,) or a residual (..., out)."""
    return arrays.product(x, weight, added)


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """`mx.fast.rms_norm`"""
    return _like(partial(mx.fast.rms_norm, eps=eps))(partial(arrays.rms_norm, eps=eps))(x, weight)


@_like(lambda x: x * mx.sigmoid(x * (1.5957691216057308 + 0.07135481282687 * (x * x))))
def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GELU in its approximation by tanh."""
    return arrays.gelu_tanh(x)


@_like(lambda x: x * mx.sigmoid(x))
def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e^-x)"""
    return arrays.silu(x)


@_like(lambda gate, up: gate * mx.sigmoid(gate) * up)
def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """`silu(gate) * up`"""
    return arrays.swiglu(gate, up)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """`mx.fast.scaled_dot_product_attention`, or its like in blocks where this package applies.

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
    made: mx.array = of_tokens(partial(arrays.attention, scale=scale, mask=seen))(queries, keys, values)
    return made.transpose(0, 2, 1, 3)


# Whole layers, without gradients


def fuses(*given: mx.array) -> bool:
    """Whether layers of arrays like these are computed here as a whole."""
    return _inference.get() and applies(*given)


def encoder_layer(
    x: mx.array, groups: Sequence[tuple[int, int]], heads: int, eps: tuple[float, float], parameters: Parameters
) -> mx.array:
    """`layers.encoder_layer`"""
    (made,) = _whole(layers.encoder_layer, (x,), parameters, groups=groups, heads=heads, eps=eps)
    return made


def conv_layer(
    x: mx.array, past: Sequence[mx.array], eps: float, parameters: Parameters
) -> tuple[mx.array, tuple[mx.array, ...]]:
    """`layers.conv_layer`: what becomes of `x`, and the last taps."""
    layer = lambda x, *past, **given: layers.conv_layer(x, past, **given)  # noqa: E731
    made, *taps = _whole(layer, (x, *past), parameters, eps=eps)
    return made, tuple(taps)


def attention_inputs(
    x: mx.array, asked: int, heads: int, kv_heads: int, eps: float, parameters: Parameters
) -> tuple[mx.array, mx.array, mx.array]:
    """`layers.attention_inputs`"""
    made = _whole(layers.attention_inputs, (x,), parameters, asked=asked, heads=heads, kv_heads=kv_heads, eps=eps)
    queries, keys, values = made
    return queries, keys, values


def attention_output(residual: mx.array, mixed: mx.array, eps: float, parameters: Parameters) -> mx.array:
    """`layers.attention_output`"""
    (made,) = _whole(layers.attention_output, (residual, mixed), parameters, eps=eps)
    return made


def attention_step(
    x: mx.array,
    keys_and_values: Sequence[mx.array],
    past: int,
    offset: int | mx.array,
    mask: mx.array | str | None,
    frequencies: mx.array,
    heads: int,
    kv_heads: int,
    eps: float,
    parameters: Parameters,
) -> tuple[mx.array, mx.array, mx.array]:
    """`layers.attention_step`; one token sees all before it, "causal" or not."""
    made, key, value = _whole(
        layers.attention_step,
        (x, *keys_and_values),
        parameters,
        past=past,
        offset=np.array(offset),
        mask=np.array(mask) if isinstance(mask, mx.array) else None,
        frequencies=np.array(frequencies),
        heads=heads,
        kv_heads=kv_heads,
        eps=eps,
    )
    return made, key, value


def _whole(function: Callable[..., Any], given: Sequence[mx.array], parameters: Parameters, **options: Any) -> Any:
    """The results of a function of arrays and of parameters by name, as a tuple."""
    count = len(given)

    def computed(*all_arrays: np.ndarray) -> Any:
        named = dict(zip(parameters, all_arrays[count:], strict=True))
        made = function(*all_arrays[:count], parameters=named, **options)
        return made if isinstance(made, tuple) else (made,)

    return _without_gradients(computed)(*given, *parameters.values())
