"""Linear layers with a low-rank product beside them: LoRA (Hu et al., 2021) and DoRA (Liu et al., 2024).

The names are those of mlx-lm's tuner: `lora_a` (in, r), `lora_b` (r, out), `m` (out,). Every quantisation of MLX is a
base, with or without biases.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from ..weights.quantize import Quantization, decode


def dense_weight(linear: nn.Module) -> mx.array:
    """The weight (out, in) of a linear layer, dequantised where it is quantised."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight
    return decode(linear, Quantization(linear.bits, linear.group_size, linear.mode))


def shape_of(linear: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, quantised or not."""
    if isinstance(linear, nn.QuantizedLinear):
        return linear.scales.shape[0], linear.scales.shape[1] * linear.group_size
    rows, width = linear.weight.shape
    return rows, width


def delta(lora_a: mx.array, lora_b: mx.array, scale: float) -> mx.array:
    """The change of the weight, (out, in) float32."""
    return scale * (lora_b.astype(mx.float32).T @ lora_a.astype(mx.float32).T)


def norms(weight: mx.array) -> mx.array:
    """The length of each row of a weight (out, in), (out,) float32."""
    return mx.linalg.norm(weight.astype(mx.float32), axis=1)


class LoRALinear(nn.Module):
    """`gain * (W x + scale B A x) + bias` of a linear layer. `gain` (out,) is that of a DoRA adapter that stays as it
    is; a LoRA adapter has none. `group`: ranks that have a part of the inputs each, if there are any."""

    group: mx.distributed.Group | None = None

    def __init__(
        self, linear: nn.Module, lora_a: mx.array, lora_b: mx.array, scale: float, gain: mx.array | None = None
    ):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.lora_a, self.lora_b = lora_a, lora_b
        if gain is not None:
            self.gain = gain
        self.dropout = nn.Dropout(0.0)

    @classmethod
    def around(cls, linear: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> LoRALinear:
        """The layer that training begins with, which computes what `linear` does. A is uniform, as PEFT begins."""
        rows, width = shape_of(linear)
        bound = 1 / math.sqrt(width)
        made = cls(linear, mx.random.uniform(-bound, bound, (width, rank)), mx.zeros((rank, rows)), scale)
        made.dropout = nn.Dropout(dropout)
        return made

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        low = self.dropout(x) @ self.lora_a
        if self.group is not None:
            low = mx.distributed.all_sum(low, group=self.group)
        change = (self.scale * (low @ self.lora_b)).astype(y.dtype)
        gain = self._gain()
        if gain is None:
            return y + change
        if "bias" not in self.linear:
            return gain.astype(y.dtype) * (y + change)
        return gain.astype(y.dtype) * (y - self.linear.bias + change) + self.linear.bias

    def _gain(self) -> mx.array | None:
        return self.get("gain")


class DoRALinear(LoRALinear):
    """A LoRA layer in training whose rows have a length of their own, `m` (out,)."""

    @classmethod
    def around(cls, linear: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> LoRALinear:
        made = super().around(linear, rank, scale, dropout)
        made.m = norms(dense_weight(linear))
        return made

    def _gain(self) -> mx.array | None:
        # as the paper has it (section 4.3) and PEFT, no gradient goes through the length
        length = norms(dense_weight(self.linear).astype(mx.float32) + delta(self.lora_a, self.lora_b, self.scale))
        return self.m / mx.stop_gradient(length)
