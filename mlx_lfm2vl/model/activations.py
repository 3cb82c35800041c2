"""Activations by the names that configurations use (those of transformers' `ACT2FN`).

On a CPU those of `cpu` take their place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from . import cpu


@partial(mx.compile, shapeless=True)
def _gelu_tanh(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x * (1.5957691216057308 + 0.07135481282687 * (x * x)))


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU in its approximation by tanh, x / 2 (1 + tanh u) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3):
    in one kernel on a GPU."""
    return cpu.gelu_tanh(x) if cpu.applies(x) else _gelu_tanh(x)


def silu(x: mx.array) -> mx.array:
    """`x * sigmoid(x)`"""
    return cpu.silu(x) if cpu.applies(x) else nn.silu(x)


ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": nn.relu,
    "silu": silu,
}


@partial(mx.compile, shapeless=True)
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """`silu(gate) * up`, in one kernel on a GPU."""
    return cpu.swiglu(gate, up) if cpu.applies(gate) else _swiglu(gate, up)
