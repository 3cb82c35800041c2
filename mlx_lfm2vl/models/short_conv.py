"""The gated short convolution of LFM2 and LFM3: causal, depthwise, `conv_L_cache` taps."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..config import Lfm2Config, Lfm3Config
from .bounded_states import ConvCache
from .layers import add_linear


class ShortConvKernel(nn.Module):
    """The parameters of the depthwise convolution: `weight` (hidden, K, 1) and, in some configurations, `bias`."""

    def __init__(self, config: Lfm2Config | Lfm3Config):
        super().__init__()
        self.weight = mx.random.normal((config.hidden_size, config.conv_L_cache, 1), scale=config.conv_L_cache**-0.5)
        if config.conv_bias:
            self.bias = mx.zeros((config.hidden_size,))
        self._columns: tuple[mx.array, list[mx.array]] | None = None

    def fuse(self) -> None:
        """Cuts the kernel into columns once, not in each step."""
        columns = [mx.contiguous(self.weight[:, k, 0]) for k in range(self.weight.shape[1])]
        mx.eval(columns)
        self._columns = self.weight, columns

    @property
    def columns(self) -> list[mx.array]:
        """The weights of each tap, (hidden,), the oldest first."""
        if self._columns is not None and self._columns[0] is self.weight:
            return self._columns[1]
        return [self.weight[:, k, 0] for k in range(self.weight.shape[1])]


@partial(mx.compile, shapeless=True)
def _weighted_sum(gate: mx.array, taps: list[mx.array], kernel: list[mx.array], bias: mx.array | None) -> mx.array:
    """`gate * (sum of taps times their kernel column)` in one kernel, in float32."""
    total = taps[0].astype(mx.float32) * kernel[0].astype(mx.float32)
    for tap, weight in zip(taps[1:], kernel[1:], strict=True):
        total = total + tap.astype(mx.float32) * weight.astype(mx.float32)
    if bias is not None:
        total = total + bias.astype(mx.float32)
    return (gate.astype(mx.float32) * total).astype(gate.dtype)


@partial(mx.compile, shapeless=True)
def _gated_step(
    gate_in: mx.array,
    gate_out: mx.array,
    value: mx.array,
    past: list[mx.array],
    kernel: list[mx.array],
    bias: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """One token's last tap, `gate_in * value`, and the weighted sum of all taps, in one kernel."""
    new = gate_in * value
    return new, _weighted_sum(gate_out, [*past, new], kernel, bias)


class Lfm2ShortConv(nn.Module):
    """`C * conv(B * x)` with B, C, x from one projection; causal, depthwise, K taps."""

    def __init__(self, config: Lfm2Config | Lfm3Config):
        super().__init__()
        self.L_cache = config.conv_L_cache
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.conv_bias)
        self.conv = ShortConvKernel(config)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.conv_bias)

    def past(self, x: mx.array, cache: ConvCache | None) -> list[mx.array]:
        """The K - 1 taps before those of `x`, oldest first, (B, 1, hidden) each."""
        if cache is not None and cache.states:
            return list(cache.states)
        return [mx.zeros((x.shape[0], 1, self.conv.weight.shape[0]), x.dtype)] * (self.L_cache - 1)

    def __call__(
        self, x: mx.array, residual: mx.array, conv_mask: mx.array | None = None, cache: ConvCache | None = None
    ) -> mx.array:
        """(B, L, hidden), normed, and the residual of the same shape -> the same shape."""
        return add_linear(residual, self.mix(x, conv_mask, cache), self.out_proj)

    def mix(self, x: mx.array, conv_mask: mx.array | None = None, cache: ConvCache | None = None) -> mx.array:
        """(B, L, hidden), normed -> the same shape, for `out_proj`."""
        if conv_mask is not None:
            x = x * conv_mask.astype(x.dtype)
        length, bias, kernel = x.shape[1], self.conv.get("bias"), self.conv.columns
        past = self.past(x, cache)
        gate_in, gate_out, value = mx.split(self.in_proj(x), 3, axis=-1)
        if length == 1:  # the taps are whole arrays: nothing is joined or copied
            new, mixed = _gated_step(gate_in, gate_out, value, past, kernel, bias)
            last = [*past, new][1:]
        else:
            joined = mx.concatenate([*past, gate_in * value], axis=1)  # (B, K - 1 + L, hidden)
            taps = [joined[:, k : k + length] for k in range(self.L_cache)]
            last = [joined[:, length + k : length + k + 1] for k in range(self.L_cache - 1)]
            mixed = _weighted_sum(gate_out, taps, kernel, bias)
            if cache is not None and cache.records:
                cache.block = (joined,)
        if cache is not None:
            cache.states = tuple(last)
        return mixed
