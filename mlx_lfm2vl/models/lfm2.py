"""The LFM2 backbone: gated short convolutions and grouped-query attention in turn, each followed by a SwiGLU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..config import Lfm2Config, Lfm3Config
from .bounded_states import ConvCache, WindowCache
from .cache import Cache, KeyValueCache, QuantizedKeyValueCache
from .layers import Context, add_linear, rope_frequencies, rotate, seen_scores, swiglu


class Lfm2Attention(nn.Module):
    direct_queries = 16  # that attend to quantised keys as they are: more are faster, and smaller, with dense ones

    def __init__(self, config: Lfm2Config):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self._scale = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * config.head_dim, bias=False)
        self.out_proj = nn.Linear(self.num_heads * config.head_dim, config.hidden_size, bias=False)
        self.q_layernorm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self.k_layernorm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self._frequencies = rope_frequencies(config.head_dim, config.rope_theta)

    def __call__(
        self,
        x: mx.array,
        residual: mx.array,
        context: Context,
        cache: KeyValueCache | None = None,
        query_context: Context | None = None,
        attentions: list[mx.array] | None = None,
    ) -> mx.array:
        """Attention added to its residual.

        Args:
            x: (B, L, hidden), normed.
            residual: (B, L, hidden), or only its last rows; then only these tokens ask.
            context: of the L tokens.
            cache: keys and values before them; gets theirs, too.
            query_context: of the tokens that ask, if these are not all.
            attentions: if given, gets the weights (B, heads, queries, S).

        Returns:
            The shape of `residual`.
        """
        batch, query_context = x.shape[0], query_context or context
        asking = x if query_context is context else x[:, -query_context.length :]
        queries = self.q_proj(asking).reshape(batch, -1, self.num_heads, self.head_dim)
        keys = self.k_proj(x).reshape(batch, -1, self.num_kv_heads, self.head_dim)
        values = self.v_proj(x).reshape(batch, -1, self.num_kv_heads, self.head_dim)
        queries, keys = self.q_layernorm(queries), self.k_layernorm(keys)
        out = self.attend(queries, keys, values, context, cache, query_context, attentions)
        return add_linear(residual, out, self.out_proj)

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        context: Context,
        cache: KeyValueCache | WindowCache | None,
        query_context: Context,
        attentions: list[mx.array] | None = None,
    ) -> mx.array:
        """Rotation, cache and softmax: (B, queries, heads, head_dim) and twice (B, L, kv_heads, head_dim) -> (B,
        queries, heads * head_dim)."""
        batch, length = queries.shape[:2]
        queries, keys, values = (y.transpose(0, 2, 1, 3) for y in (queries, keys, values))
        queries = rotate(queries, self._frequencies, query_context.offset, query_context.positions)
        keys = rotate(keys, self._frequencies, context.offset, context.positions)
        mask = query_context.attention_mask
        direct = isinstance(cache, QuantizedKeyValueCache) and attentions is None and length <= self.direct_queries
        if cache is not None and not direct:
            keys, values = cache.update(keys, values)
        if isinstance(cache, QuantizedKeyValueCache) and direct:
            out = cache.attend(queries, keys, values, self._scale, mask)
        elif attentions is None:
            out = self.scaled_dot_product_attention(queries, keys, values, mask)
        else:
            out, weights = _explicit_attention(queries, keys, values, self._scale, mask)
            attentions.append(weights)
        return out.transpose(0, 2, 1, 3).reshape(batch, length, -1)

    def scaled_dot_product_attention(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None
    ) -> mx.array:
        """(B, heads, L, head_dim) and twice (B, kv_heads, S, head_dim) -> (B, heads, L, head_dim)."""
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self._scale, mask=mask)


def _explicit_attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
) -> tuple[mx.array, mx.array]:
    """Attention with its weights (B, heads, L, S), for whoever asks to see them."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = mx.repeat(keys, groups, axis=1), mx.repeat(values, groups, axis=1)
    scores = seen_scores((queries @ keys.swapaxes(-1, -2)) * scale, mask)
    weights = mx.softmax(scores, axis=-1, precise=True)
    return weights @ values, weights


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


class Lfm2MLP(nn.Module):
    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.w1 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(hidden, width, bias=False)
        self.w2 = nn.Linear(width, hidden, bias=False)

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        return add_linear(residual, swiglu(self.w1(x), self.w3(x)), self.w2)


class Lfm2DecoderLayer(nn.Module):
    """One operator (attention or short convolution) and one feed-forward, both pre-normed, each added to its input."""

    def __init__(self, config: Lfm2Config, layer_type: str):
        super().__init__()
        if layer_type == "full_attention":
            self.self_attn = Lfm2Attention(config)
        else:
            self.conv = Lfm2ShortConv(config)
        self.operator_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.feed_forward = Lfm2MLP(config.hidden_size, config.feed_forward_size)

    def __call__(
        self,
        x: mx.array,
        context: Context,
        cache: KeyValueCache | ConvCache | None = None,
        query_context: Context | None = None,
        attentions: list[mx.array] | None = None,
    ) -> mx.array:
        """(B, L, hidden) -> (B, L, hidden). With a `query_context` an attention layer returns only the last rows, those
        of that context."""
        normed = self.operator_norm(x)
        if "conv" in self:
            assert not isinstance(cache, KeyValueCache)
            x = self.conv(normed, x, context.conv_mask, cache)
        else:
            assert not isinstance(cache, ConvCache)
            residual = x if query_context is None else x[:, -query_context.length :]
            x = self.self_attn(normed, residual, context, cache, query_context, attentions)
        return self.feed_forward(self.ffn_norm(x), x)


class Lfm2Model(nn.Module):
    """Embeddings in, normed hidden states out."""

    layer_class: ClassVar[Callable[..., nn.Module]] = Lfm2DecoderLayer

    def __init__(self, config: Lfm2Config | Lfm3Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [self.layer_class(config, layer_type) for layer_type in config.layer_types]
        self.embedding_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        attention = [index for index, kind in enumerate(config.layer_types) if kind != "conv"]
        self._last_attention = attention[-1] if attention else None
        # The last tokens behind the last attention that decide the last one's result: itself and, for each
        # convolution, the taps before.
        convolutions = config.num_hidden_layers - 1 - (self._last_attention or 0)
        self._deciding = 1 + convolutions * (config.conv_L_cache - 1)

    def embed(self, ids: mx.array) -> mx.array:
        """(B, L) -> (B, L, hidden), of the type that the layers compute in: MLX makes bfloat16 of some quantised
        modes, whatever that is."""
        return self.embed_tokens(ids).astype(self.embedding_norm.weight.dtype)

    def __call__(
        self,
        inputs_embeds: mx.array,
        context: Context | None = None,
        cache: Cache | None = None,
        hidden_states: list[mx.array] | None = None,
        attentions: list[mx.array] | None = None,
        last_only: bool = False,
    ) -> mx.array:
        """The normed hidden states of some tokens.

        Args:
            inputs_embeds: (B, L, hidden).
            context: positions and masks; without it the tokens follow those in the cache, unpadded.
            cache: the states of the tokens before; gets theirs, too.
            hidden_states: if given, gets the input of every layer and then the result, as the reference has it.
            attentions: if given, gets the weights of every attention layer.
            last_only: return the last token alone. From the last attention on, whose keys and values are those of all
                tokens, or behind the last layer that a drafter reads, only what it depends on is computed.

        Returns:
            (B, L, hidden), or (B, 1, hidden) with `last_only`.
        """
        length = inputs_embeds.shape[1]
        if context is None:
            context = Context.following(length, cache.offset if cache else 0)
        x = inputs_embeds
        few = last_only and hidden_states is None and attentions is None and self._last_attention is not None
        queries = min(length, self._deciding) if few else length
        contexts = self.contexts(context, cache.offset if cache else 0)
        drafter = cache.drafter if cache is not None else None
        read = drafter.target_layer_ids if drafter is not None else ()
        results: list[mx.array] = []
        narrow = max(self._last_attention or 0, *(each + 1 for each in read)) if read else self._last_attention
        for index, (layer, kind) in enumerate(zip(self.layers, self.config.layer_types, strict=True)):
            if hidden_states is not None:
                hidden_states.append(x)
            state = cache.layers[index] if cache is not None else None
            if queries < length and index == narrow:
                all_tokens, contexts = contexts[kind], {each: of.last(queries) for each, of in contexts.items()}
                if kind == "conv":
                    x = layer(x[:, -queries:], contexts[kind], state)
                else:
                    x = layer(x, all_tokens, state, contexts[kind])
            else:
                x = layer(x, contexts[kind], state, attentions=attentions)
            if index in read:
                results.append(x)
        if cache is not None and drafter is not None:
            drafter.remember(results, context, cache.draft_layers)
        if last_only:
            x = x[:, -1:]
        if cache is not None:
            cache.offset += length
        x = self.embedding_norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x

    def contexts(self, context: Context, past: int = 0) -> dict[str, Context]:
        """The context of each type of layers, behind `past` tokens in the cache."""
        return dict.fromkeys(self.config.layer_types, context)
