"""Products of dense layers: on a CPU as `cpu` makes them, on a GPU with fewer kernels.

A residual is added by the product itself; projections of one input share one product. All keep modules and parameter
names as they are, and call layers of other kinds (quantised ones, adapters) as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from . import cpu


def fuses(x: mx.array, *layers: nn.Module) -> bool:
    """Whether `cpu` computes what lies between these layers of `x` together with them."""
    return cpu.fuses(x) and all(type(layer) is nn.Linear and layer.weight.dtype == x.dtype for layer in layers)


def linear(layer: nn.Module, x: mx.array) -> mx.array:
    """`layer(x)`"""
    if type(layer) is nn.Linear and cpu.applies(x, layer.weight):
        return cpu.add_product(layer.bias, x, layer.weight) if "bias" in layer else cpu.product(x, layer.weight)
    return layer(x)


def as_linear(embedding: nn.Module, x: mx.array) -> mx.array:
    """`embedding.as_linear(x)`: the head that is tied to it."""
    if type(embedding) is nn.Embedding and cpu.applies(x, embedding.weight):
        return cpu.product(x, embedding.weight)
    return embedding.as_linear(x)


def add_linear(residual: mx.array, x: mx.array, layer: nn.Module) -> mx.array:
    """`residual + layer(x)`, one kernel if the layer is dense and has no bias."""
    if type(layer) is nn.Linear and "bias" not in layer:
        if cpu.applies(residual, x, layer.weight):
            return cpu.add_product(residual, x, layer.weight)
        return mx.addmm(residual, x, layer.weight.T)
    return residual + linear(layer, x)


def rms_norm(layer: nn.RMSNorm, x: mx.array) -> mx.array:
    """`layer(x)`"""
    return cpu.rms_norm(x, layer.weight, layer.eps) if cpu.applies(x, layer.weight) else layer(x)


class SharedProduct:
    """Dense linear layers of one input, with biases, as one product.

    Their weights become views of one array, so nothing is held twice. It holds for these very arrays: `fits` is false
    once a layer's weight or bias is replaced (by `update`, a quantisation, a cast). Writing into one in place, as in
    `layer.weight[0] = 0`, cannot be seen; replace it instead.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        weight = mx.concatenate([layer.weight for layer in layers])
        bias = mx.concatenate([layer.bias for layer in layers])
        ends = [sum(len(layer.bias) for layer in layers[: n + 1]) for n in range(len(layers) - 1)]
        mx.eval(weight, bias)
        for layer, own, own_bias in zip(layers, mx.split(weight, ends), mx.split(bias, ends), strict=True):
            layer.weight, layer.bias = own, own_bias
        self._weight, self._bias, self._ends = weight, bias, ends
        self._parts = [(layer.weight, layer.bias) for layer in layers]
        mx.eval(self._parts)

    @staticmethod
    def possible(layers: Sequence[nn.Module]) -> bool:
        """Whether the layers are dense ones of one type, with biases."""
        dense = all(type(layer) is nn.Linear and "bias" in layer for layer in layers)
        return dense and len({(layer.weight.dtype, layer.weight.shape[1]) for layer in layers}) == 1

    def fits(self, layers: Sequence[nn.Module]) -> bool:
        """Whether the layers still have the weights that were merged."""
        return all(
            layer.get("weight") is weight and layer.get("bias") is bias
            for layer, (weight, bias) in zip(layers, self._parts, strict=True)
        )

    def __call__(self, x: mx.array) -> list[mx.array]:
        """(..., in) -> what each layer makes of it, views of one array."""
        return list(mx.split(mx.addmm(self._bias, x, self._weight.T), self._ends, axis=-1))
