"""The gated short convolution of LFM2: causal, depthwise, between two gates.

Kernels are stored as MLX has them, (hidden, K, 1).
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..config import Lfm2Config
from .cache import ConvCache
from .products import add_linear, linear


class ShortConvKernel(nn.Module):
    """The parameters of the depthwise convolution: `weight` (hidden, K, 1) and, in some configurations, `bias`."""

    def __init__(self, config: Lfm2Config):
        super().__init__()
        self.weight = mx.random.normal((config.hidden_size, config.conv_L_cache, 1), scale=config.conv_L_cache**-0.5)
        if config.conv_bias:
            self.bias = mx.zeros((config.hidden_size,))


@partial(mx.compile, shapeless=True)
def _weighted_sum(gate: mx.array, taps: list[mx.array], kernel: list[mx.array], bias: mx.array | None) -> mx.array:
    """`gate * (sum of taps times their kernel column)` in one kernel."""
    total = taps[0] * kernel[0]
    for tap, weight in zip(taps[1:], kernel[1:], strict=True):
        total = total + tap * weight
    if bias is not None:
        total = total + bias
    return gate * total


@partial(mx.compile, shapeless=True)
def _gated_step(
    gate_in: mx.array,
    gate_out: mx.array,
    value: mx.array,
    past: list[mx.array],
    kernel: list[mx.array],
    bias: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """Of one token: the last tap, `gate_in * value`, and the weighted sum of all taps, in one kernel."""
    new = gate_in * value
    return new, _weighted_sum(gate_out, [*past, new], kernel, bias)


class Lfm2ShortConv(nn.Module):
    """`C * conv(B * x)` with B, C, x from one projection; causal, depthwise, K taps."""

    def __init__(self, config: Lfm2Config):
        super().__init__()
        self._length = config.conv_L_cache
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.conv_bias)
        self.conv = ShortConvKernel(config)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.conv_bias)

    def past(self, x: mx.array, cache: ConvCache | None) -> list[mx.array]:
        """The K - 1 taps before those of `x`, oldest first, (B, 1, hidden) each."""
        if cache is not None and cache.inputs:
            return list(cache.inputs)
        return [mx.zeros((x.shape[0], 1, x.shape[2]), x.dtype)] * (self._length - 1)

    def __call__(self, x: mx.array, residual: mx.array, keep: mx.array | None, cache: ConvCache | None) -> mx.array:
        if keep is not None:
            x = x * keep.astype(x.dtype)
        length = x.shape[1]
        projected, bias = linear(self.in_proj, x), self.conv.get("bias")
        past = self.past(x, cache)
        gate_in, gate_out, value = mx.split(projected, 3, axis=-1)
        kernel = [self.conv.weight[:, k, 0] for k in range(self._length)]
        if length == 1:  # the taps are whole arrays: nothing is joined or copied
            new, mixed = _gated_step(gate_in, gate_out, value, past, kernel, bias)
            last = [*past, new][1:]
        else:
            joined = mx.concatenate([*past, gate_in * value], axis=1)  # (B, K - 1 + L, hidden)
            taps = [joined[:, k : k + length] for k in range(self._length)]
            last = [joined[:, length + k : length + k + 1] for k in range(self._length - 1)]
            mixed = _weighted_sum(gate_out, taps, kernel, bias)
        if cache is not None:
            cache.inputs = tuple(last)
        return add_linear(residual, mixed, self.out_proj)
