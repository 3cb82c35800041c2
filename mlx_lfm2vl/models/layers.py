"""Parts that the networks share: activations by name, and products that a GPU starts fewer kernels for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn


@partial(mx.compile, shapeless=True)
def gelu_tanh(x: mx.array) -> mx.array:
    """GELU approximated by tanh, in one kernel: x / 2 (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715
    x^3)."""
    return x * mx.sigmoid(x * (1.5957691216057308 + 0.07135481282687 * (x * x)))


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """`silu(gate) * up` in one kernel, in float32."""
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * up.astype(mx.float32)).astype(gate.dtype)


# By the names that configurations use, those of transformers' `ACT2FN`.
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": nn.relu,
    "silu": nn.silu,
}


def add_linear(residual: mx.array, x: mx.array, layer: nn.Module) -> mx.array:
    """`residual + layer(x)`, in one kernel if the layer is dense and has no bias."""
    if type(layer) is nn.Linear and "bias" not in layer:
        return mx.addmm(residual, x, layer.weight.T)
    return residual + layer(x)


class FusedQKV:
    """Dense linear layers of one input, with biases, as one product.

    The layers' weights become views of one array, so nothing is held twice. It is valid for these very arrays: once a
    layer's weight or bias is replaced (by `update`, a quantisation, a cast), the layers are called. Writing into one in
    place, as in `layer.weight[0] = 0`, is not seen; replace it instead. A copy of a module has none.
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

    def __call__(self, x: mx.array, layers: Sequence[nn.Module]) -> list[mx.array]:
        """(..., in) -> the output of each layer, as views of one array if they still have the weights that were
        fused."""
        pairs = zip(layers, self._parts, strict=True)
        if all(layer.get("weight") is weight and layer.get("bias") is bias for layer, (weight, bias) in pairs):
            return list(mx.split(mx.addmm(self._bias, x, self._weight.T), self._ends, axis=-1))
        return [layer(x) for layer in layers]

    def __deepcopy__(self, memo: object) -> None:
        return None  # a copied layer's arrays are its own
