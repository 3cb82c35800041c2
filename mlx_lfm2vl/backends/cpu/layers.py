"""Layers of the models as subclasses that NumPy computes, and `accelerate`, which swaps them in.

A subclass computes float32 arrays with dense float32 weights, and leaves all else to its parent. It computes when it is
called, not when its result is asked for. Cancellation within a layer is `threads.cancellation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ...models.bounded_states import ConvCache
from ...models.cache import KeyValueCache
from ...models.layers import ACTIVATIONS, Context, gelu_tanh
from ...models.lfm2 import Lfm2Attention, Lfm2DecoderLayer, Lfm2Model
from ...models.siglip2 import Groups, Siglip2EncoderLayer
from . import arrays, kernels

OPERATORS = {  # of a layer of the backbone: their linear layers, and others with a weight
    "conv": (("in_proj", "out_proj"), ("conv",)),
    "self_attn": (("q_proj", "k_proj", "v_proj", "out_proj"), ("q_layernorm", "k_layernorm")),
}
SMALL = 2**14  # attention of fewer scores is MLX's, which takes fewer steps


def _computed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of NumPy's arrays one of MLX's, alone or in tuples and dictionaries. Memory is shared on the way
    in and copied on the way out. Results are one or a tuple."""

    def computed(*given: Any, **named: Any) -> Any:
        with np.errstate(all="ignore"):  # what is not finite is found where an answer is
            results = function(*_shared(given), **_shared(named))
        return tuple(map(mx.array, results)) if isinstance(results, tuple) else mx.array(results)

    return computed


def _shared(value: Any) -> Any:
    """The same with NumPy's arrays in the memory of MLX's."""
    if isinstance(value, mx.array):
        return np.array(value, copy=False)
    if isinstance(value, tuple):
        return tuple(map(_shared, value))
    return {name: _shared(each) for name, each in value.items()} if isinstance(value, dict) else value


def _without_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `_computed`; a gradient through it is an error, not zero. The text model's result passes one (`CpuModel`), so
    that the layers within need none, which would take a tenth of a token's time."""
    custom = mx.custom_function(_computed(function))
    custom.vjp(_refuse)
    return custom  # type: ignore[no-any-return]


def _refuse(*_: Any) -> NoReturn:
    raise TypeError("the backend numpy is for inference; load the model with backend='mlx' to take gradients")


def _is_float32(*given: mx.array) -> bool:
    return all(array.dtype == mx.float32 for array in given)


_first = mx.custom_function(lambda x, _: x)
_first.vjp(_refuse)
_product = _without_gradients(arrays.product)
_encoder_layer = _without_gradients(kernels.encoder_layer)
_conv_layer = _computed(kernels.conv_layer)
_attention_inputs = _computed(kernels.attention_inputs)
_attention_output = _computed(kernels.attention_output)
_attention_step = _computed(kernels.attention_step)


class CpuLinear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        weight = self["weight"]
        if not _is_float32(x, weight):
            return super().__call__(x)
        return _product(x, weight, self["bias"]) if "bias" in self else _product(x, weight)


class CpuEmbedding(nn.Embedding):
    def as_linear(self, x: mx.array) -> mx.array:
        weight = self["weight"]
        return _product(x, weight) if _is_float32(x, weight) else super().as_linear(x)


class CpuRMSNorm(nn.RMSNorm):
    def __call__(self, x: mx.array) -> mx.array:
        weight = self["weight"]
        if not _is_float32(x, weight):
            return super().__call__(x)
        return _without_gradients(partial(arrays.rms_norm, eps=self.eps))(x, weight)


class CpuAttention(Lfm2Attention):
    direct_queries = 0

    def scaled_dot_product_attention(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None
    ) -> mx.array:
        """In blocks of queries, which see only the keys that they may. A mask must leave every query a key."""
        _, heads, length, _ = queries.shape
        if heads * length * keys.shape[2] < SMALL or not _is_float32(queries, keys):
            return super().scaled_dot_product_attention(queries, keys, values, mask)
        seen = np.array(mask) if isinstance(mask, mx.array) else mask
        attend = _computed(partial(arrays.attention, scale=self._scale, mask=seen))
        out: mx.array = attend(queries, keys, values)  # (B, L, heads, head_dim)
        return out.transpose(0, 2, 1, 3)


def _dense(x: mx.array, linears: Sequence[nn.Module]) -> bool:
    """Whether a whole layer with these linear layers is computed by NumPy."""
    return x.dtype == mx.float32 and all(
        type(layer) is CpuLinear and layer["weight"].dtype == mx.float32 for layer in linears
    )


class CpuEncoderLayer(Siglip2EncoderLayer):
    """A layer of the vision tower, all of it shared between as many threads as there are cores."""

    def __call__(self, x: mx.array, groups: Groups) -> mx.array:
        attention, mlp = self.self_attn, self.mlp
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, mlp.fc1, mlp.fc2)
        if not _dense(x, linears) or ACTIVATIONS[mlp.hidden_act] is not gelu_tanh:
            return super().__call__(x, groups)
        eps = self.layer_norm1.eps, self.layer_norm2.eps
        parameters = dict(tree_flatten(self.parameters()))
        made: mx.array = _encoder_layer(x, groups, attention.num_heads, eps, parameters)
        return made


class CpuDecoderLayer(Lfm2DecoderLayer):
    """A layer of the backbone, in and out of MLX once, or twice where its attention is that of several tokens."""

    def __call__(
        self,
        x: mx.array,
        context: Context,
        cache: KeyValueCache | ConvCache | None = None,
        query_context: Context | None = None,
        attentions: list[mx.array] | None = None,
    ) -> mx.array:
        linears, others = self._parts()
        biased = "conv" in self and "bias" in self.conv.conv
        if attentions is not None or biased or not _dense(x, list(linears.values())):
            return super().__call__(x, context, cache, query_context, attentions)
        parameters = {f"{name}.weight": module["weight"] for name, module in (linears | others).items()}
        if "conv" in self:
            assert not isinstance(cache, KeyValueCache)
            return self._convolve(x, context, cache, parameters)
        assert not isinstance(cache, ConvCache)
        step = x.shape[1] == 1 and context.positions is None
        if step and cache is not None and cache.offset and _is_float32(*cache.states):
            return self._attend_once(x, context, cache, parameters)
        return self._attend(x, context, cache, query_context or context, parameters)

    def _parts(self) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """The linear layers and the others with a weight, by their names here. Named one by one: `named_modules`
        takes four to six times as long (8 us against 30 to 50), in each layer of each token."""
        name = "conv" if "conv" in self else "self_attn"
        operator, ffn, (kinds, others) = self[name], self.feed_forward, OPERATORS[name]
        last = {"feed_forward.w1": ffn.w1, "feed_forward.w3": ffn.w3, "feed_forward.w2": ffn.w2}
        norms = {"operator_norm": self.operator_norm, "ffn_norm": self.ffn_norm}
        return (
            {f"{name}.{kind}": operator[kind] for kind in kinds} | last,
            {f"{name}.{kind}": operator[kind] for kind in others} | norms,
        )

    def _convolve(
        self, x: mx.array, context: Context, cache: ConvCache | None, parameters: dict[str, mx.array]
    ) -> mx.array:
        records = cache is not None and cache.records
        past = tuple(self.conv.past(x, cache))
        made, *taps = _conv_layer(x, past, self.operator_norm.eps, parameters, context.conv_mask, records)
        if cache is not None:
            cache.block = (taps.pop(),) if records else ()
            cache.states = tuple(taps)
        return made  # type: ignore[no-any-return]

    def _attend(
        self,
        x: mx.array,
        context: Context,
        cache: KeyValueCache | None,
        query_context: Context,
        parameters: dict[str, mx.array],
    ) -> mx.array:
        """Several tokens: MLX rotates and keeps the cache."""
        eps, queries = self.operator_norm.eps, query_context.length
        asking, keys, values = _attention_inputs(x, queries, eps, parameters)
        mixed = self.self_attn.attend(asking, keys, values, context, cache, query_context)
        return _attention_output(x[:, -queries:], mixed, eps, parameters)  # type: ignore[no-any-return]

    def _attend_once(
        self, x: mx.array, context: Context, cache: KeyValueCache, parameters: dict[str, mx.array]
    ) -> mx.array:
        """One token a row, which sees all before it, "causal" or not. There is so little to do that waiting for MLX's
        thread would take most of the time."""
        keys, values = cache.states
        made, key, value = _attention_step(
            x,
            keys,
            values,
            past=cache.offset,
            offset=np.array(context.offset),
            mask=context.attention_mask if isinstance(context.attention_mask, mx.array) else None,
            frequencies=self.self_attn._frequencies,
            eps=self.operator_norm.eps,
            parameters=parameters,
        )
        cache.update(key, value)
        mx.async_eval(cache.states)  # so that the next token need not wait for them
        return made  # type: ignore[no-any-return]


class CpuModel(Lfm2Model):
    def __call__(self, inputs_embeds: mx.array, *arguments: Any, **named: Any) -> mx.array:
        made: Any = _first(super().__call__(inputs_embeds, *arguments, **named), inputs_embeds)
        return made  # type: ignore[no-any-return]


REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    Siglip2EncoderLayer: CpuEncoderLayer,
    Lfm2DecoderLayer: CpuDecoderLayer,
    Lfm2Model: CpuModel,
    Lfm2Attention: CpuAttention,
    nn.Linear: CpuLinear,
    nn.Embedding: CpuEmbedding,
    nn.RMSNorm: CpuRMSNorm,
}


def accelerate(model: nn.Module) -> None:
    """Makes each layer of a loaded model, where there is one, the subclass that NumPy computes. Its parameters stay."""
    for module in model.modules():
        replacement = REPLACEMENTS.get(type(module))
        if replacement is not None:
            module.__class__ = replacement
