"""The LFM2 backbone: gated short convolutions and grouped-query attention in turn, each followed by a SwiGLU.

Parameter names are those of transformers' `Lfm2Model`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import Lfm2Config
from . import cpu
from .activations import swiglu
from .cache import Cache, ConvCache, KeyValueCache
from .convolution import Lfm2ShortConv
from .outputs import Between
from .products import add_linear, fuses, linear, rms_norm


@dataclass(frozen=True)
class Context:
    """What all layers of one call share.

    `offset`: rotary position of the first token, one number or one a row (B,); `rotation`: cosines and sines (B, 1, L,
    head_dim) instead, for positions that do not simply count up. `attention_mask`: which keys each query sees, (B, 1,
    L, S) bool, or "causal", or None where the one query sees all. `keep`: (B, L, 1), zero at padding, for the
    convolutions.
    """

    offset: int | mx.array = 0
    rotation: tuple[mx.array, mx.array] | None = None
    attention_mask: mx.array | str | None = None
    keep: mx.array | None = None

    def last(self, rows: int, length: int) -> Context:
        """Of the last `rows` of `length` tokens."""
        mask, rotation = self.attention_mask, self.rotation
        return replace(
            self,
            offset=self.offset + (length - rows),
            rotation=rotation and (rotation[0][..., -rows:, :], rotation[1][..., -rows:, :]),
            attention_mask=mask[:, :, -rows:] if isinstance(mask, mx.array) else mask,
            keep=None if self.keep is None else self.keep[:, -rows:],
        )


def rope_frequencies(config: Lfm2Config) -> mx.array:
    """Wavelengths over 2 pi, (head_dim / 2,) float32: position p turns pair i by the angle p / frequency i."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    return mx.array(np.float32(config.rope_theta) ** exponents)


def rotation_for(position_ids: mx.array, frequencies: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """Cosines and sines (B, 1, L, head_dim) for arbitrary positions (B, L)."""
    angles = position_ids.astype(mx.float32)[:, None, :, None] / frequencies
    angles = mx.concatenate([angles, angles], axis=-1)
    return mx.cos(angles).astype(dtype), mx.sin(angles).astype(dtype)


def padding_masks(real: np.ndarray, length: int) -> tuple[mx.array, mx.array | None]:
    """From a padding mask (B, past + L), true at real tokens: the attention mask (B, 1, L, past + L) and `keep` (B, L,
    1), which is None if none of the L new tokens is padding.

    A padding token sees itself, so that no row of the softmax is empty; nothing real sees it.
    """
    total = real.shape[1]
    queries = np.arange(total - length, total)[:, None]
    keys = np.arange(total)[None, :]
    mask = (real[:, None, None, :] & (keys <= queries)) | (keys == queries)
    new = real[:, total - length :, None]
    return mx.array(mask), None if new.all() else mx.array(new)


class Lfm2Attention(nn.Module):
    def __init__(self, config: Lfm2Config):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = config.head_dim
        self._scale = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, self.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * config.head_dim, bias=False)
        self.out_proj = nn.Linear(self.heads * config.head_dim, config.hidden_size, bias=False)
        self.q_layernorm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self.k_layernorm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self._frequencies = rope_frequencies(config)

    def __call__(
        self,
        x: mx.array,
        residual: mx.array,
        context: Context,
        cache: KeyValueCache | None,
        attentions: list[mx.array] | None,
        asking: Context | None = None,
    ) -> mx.array:
        """(B, L, hidden) and the residual, of the same shape or only its last rows: the queries are then only the last
        ones, too, and `asking` is their context."""
        batch, length, _ = x.shape
        asked = residual.shape[1]

        def heads(y: mx.array, count: int) -> mx.array:
            return y.reshape(batch, -1, count, self._head_dim)

        last = x if asked == length else x[:, -asked:]
        queries = rms_norm(self.q_layernorm, heads(linear(self.q_proj, last), self.heads))
        keys = rms_norm(self.k_layernorm, heads(linear(self.k_proj, x), self.kv_heads))
        values = heads(linear(self.v_proj, x), self.kv_heads)
        out = self.attend(queries, keys, values, context, cache, attentions, asking)
        return add_linear(residual, out, self.out_proj)

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        context: Context,
        cache: KeyValueCache | None,
        attentions: list[mx.array] | None,
        asking: Context | None = None,
    ) -> mx.array:
        """Rotates and remembers: (B, asked, heads, head_dim) and twice (B, L, kv_heads, head_dim) -> (B, asked, heads *
        head_dim)."""
        batch, asked = queries.shape[:2]
        asking = asking or context
        queries, keys, values = (y.transpose(0, 2, 1, 3) for y in (queries, keys, values))
        queries, keys = self._rotate(queries, asking), self._rotate(keys, context)
        if cache is not None:
            keys, values = cache.update(keys, values)
        if attentions is None:
            out = cpu.attention(queries, keys, values, scale=self._scale, mask=asking.attention_mask)
        else:
            out, weights = _explicit_attention(queries, keys, values, self._scale, asking.attention_mask)
            attentions.append(weights)
        return out.transpose(0, 2, 1, 3).reshape(batch, asked, -1)

    def _rotate(self, x: mx.array, context: Context) -> mx.array:
        if context.rotation is None:
            return mx.fast.rope(
                x,
                self._head_dim,
                traditional=False,
                base=None,
                scale=1.0,
                offset=context.offset,
                freqs=self._frequencies,
            )
        cos, sin = context.rotation
        half = self._head_dim // 2
        turned = mx.concatenate([-x[..., half:], x[..., :half]], axis=-1)
        return x * cos + turned * sin


def _explicit_attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
) -> tuple[mx.array, mx.array]:
    """Attention with its weights (B, heads, L, S), for whoever asks to see them."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = mx.repeat(keys, groups, axis=1), mx.repeat(values, groups, axis=1)
    scores = (queries @ keys.swapaxes(-1, -2)) * scale
    if isinstance(mask, str):
        length, total = scores.shape[-2:]
        mask = mx.arange(total)[None, :] <= mx.arange(total - length, total)[:, None]
    if mask is not None:
        scores = mx.where(mask, scores, mx.array(-mx.inf, scores.dtype))
    weights = mx.softmax(scores, axis=-1, precise=True)
    return weights @ values, weights


class Lfm2MLP(nn.Module):
    def __init__(self, config: Lfm2Config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.feed_forward_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.feed_forward_size, bias=False)
        self.w2 = nn.Linear(config.feed_forward_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        return add_linear(residual, swiglu(linear(self.w1, x), linear(self.w3, x)), self.w2)


class Lfm2DecoderLayer(nn.Module):
    """One operator (attention or short convolution) and one feed-forward, both pre-normed, each added to its input."""

    def __init__(self, config: Lfm2Config, kind: str):
        super().__init__()
        self._biased = kind != "full_attention" and config.conv_bias
        if kind == "full_attention":
            self.self_attn = Lfm2Attention(config)
        else:
            self.conv = Lfm2ShortConv(config)
        self.operator_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.feed_forward = Lfm2MLP(config)

    def __call__(
        self,
        x: mx.array,
        context: Context,
        cache: KeyValueCache | ConvCache | None,
        attentions: list[mx.array] | None,
        asking: Context | None = None,
        asked: int = 0,
    ) -> mx.array:
        """With `asked` an attention layer makes only that many last rows; `asking` is their context."""
        if not self._biased and attentions is None and context.keep is None and fuses(x):
            linears = self._linears()
            if fuses(x, *linears.values()):
                return self._on_a_cpu(linears, x, context, cache, asking, asked)
        normed = rms_norm(self.operator_norm, x)
        if "conv" in self:
            assert not isinstance(cache, KeyValueCache)
            x = self.conv(normed, x, context.keep, cache)
        else:
            assert not isinstance(cache, ConvCache)
            x = self.self_attn(normed, x[:, -asked:] if asked else x, context, cache, attentions, asking)
        return self.feed_forward(rms_norm(self.ffn_norm, x), x)

    def _linears(self) -> dict[str, nn.Module]:
        """By their names here."""
        ffn = self.feed_forward
        last = {"feed_forward.w1": ffn.w1, "feed_forward.w3": ffn.w3, "feed_forward.w2": ffn.w2}
        if "conv" in self:
            return {"conv.in_proj": self.conv.in_proj, "conv.out_proj": self.conv.out_proj, **last}
        kinds = ("q_proj", "k_proj", "v_proj", "out_proj")
        return {f"self_attn.{kind}": self.self_attn[kind] for kind in kinds} | last

    def _others(self) -> dict[str, nn.Module]:
        """What else has weights, by their names here."""
        norms = {"operator_norm": self.operator_norm, "ffn_norm": self.ffn_norm}
        if "conv" in self:
            return {"conv.conv": self.conv.conv, **norms}
        return {f"self_attn.{kind}": self.self_attn[kind] for kind in ("q_layernorm", "k_layernorm")} | norms

    def _on_a_cpu(
        self,
        linears: dict[str, nn.Module],
        x: mx.array,
        context: Context,
        cache: KeyValueCache | ConvCache | None,
        asking: Context | None,
        asked: int,
    ) -> mx.array:
        """The same, of dense layers without biases: what lies between them is computed with them."""
        # named one by one: to walk their tree takes two to three times as long, in each layer of each token
        parameters = {f"{name}.weight": module["weight"] for name, module in (linears | self._others()).items()}
        eps = self.operator_norm.eps
        if "conv" in self:
            assert not isinstance(cache, KeyValueCache)
            made, taps = cpu.conv_layer(x, self.conv.past(x, cache), eps, parameters)
            if cache is not None:
                cache.inputs = taps
            return made
        assert not isinstance(cache, ConvCache)
        of, asked = self.self_attn, asked or x.shape[1]
        step = x.shape[1] == 1 and context.rotation is None
        if step and cache is not None and cache.offset and cpu.applies(*cache.arrays):
            place = cache.offset, context.offset, context.attention_mask, of._frequencies
            made, key, value = cpu.attention_step(x, cache.arrays, *place, of.heads, of.kv_heads, eps, parameters)
            cache.update(key, value)
            mx.async_eval(cache.arrays)  # so that the next token need not wait for them
            return made
        projected = cpu.attention_inputs(x, asked, of.heads, of.kv_heads, eps, parameters)
        mixed = of.attend(*projected, context, cache, None, asking)
        return cpu.attention_output(x[:, -asked:], mixed, eps, parameters)


class Lfm2Model(nn.Module):
    """Embeddings in, normed hidden states out."""

    def __init__(self, config: Lfm2Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Lfm2DecoderLayer(config, kind) for kind in config.layer_types]
        self.embedding_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        attention = [index for index, kind in enumerate(config.layer_types) if kind == "full_attention"]
        self._last_attention = attention[-1] if attention else None

    def __call__(
        self,
        inputs_embeds: mx.array,
        context: Context | None = None,
        cache: Cache | None = None,
        hidden_states: list[mx.array] | None = None,
        attentions: list[mx.array] | None = None,
        last_only: bool = False,
        between: Between | None = None,
    ) -> mx.array:
        """(B, L, hidden) -> (B, L, hidden); with `last_only` (B, 1, hidden), the last of them: from the last attention
        on, whose keys and values are those of all tokens, only what it depends on is computed.

        Without a `context` the tokens follow those in the cache, unpadded. If given, `hidden_states` gets the input of
        every layer and then the result (as the reference has it), `attentions` the weights of every attention layer.
        If `between` raises, the cache is in no state to go on from but by `Cache.rewind`.
        """
        length = inputs_embeds.shape[1]
        if context is None:
            context = Context(offset=cache.offset if cache else 0, attention_mask="causal" if length > 1 else None)
        x = inputs_embeds
        asked = self._needed(length) if last_only and hidden_states is None and attentions is None else 0
        for index, layer in enumerate(self.layers):
            if hidden_states is not None:
                hidden_states.append(x)
            state = cache.layers[index] if cache is not None else None
            if asked and index == self._last_attention:
                asking = context.last(asked, length)
                x, context = layer(x, context, state, None, asking, asked), asking
            else:
                x = layer(x, context, state, attentions)
            if between is not None:
                between(x)
        if last_only:
            x = x[:, -1:]
        if cache is not None:
            cache.offset += length
        x = rms_norm(self.embedding_norm, x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x

    def _needed(self, length: int) -> int:
        """Rows behind the last attention on which the last one's result depends: itself and, for each convolution, the
        taps before. 0 if there are no fewer than `length`."""
        if self._last_attention is None:
            return 0
        convolutions = self.config.num_hidden_layers - 1 - self._last_attention
        rows = 1 + convolutions * (self.config.conv_L_cache - 1)
        return rows if rows < length else 0
