"""The LFM3 backbone: short convolutions, attention over all tokens and attention over a sliding window, each followed
by a SwiGLU, with a norm before and after every block.

What it shares with LFM2 is in `lfm2.py`. Modules have the names of the makers' files.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..config import Lfm3Config
from .bounded_states import ConvCache, WindowCache
from .cache import KeyValueCache
from .layers import Context, rope_frequencies, swiglu
from .lfm2 import Lfm2Attention, Lfm2MLP, Lfm2Model, Lfm2ShortConv


class Lfm3Attention(Lfm2Attention):
    """Grouped-query attention whose heads are scaled by a sigmoid gate of the input."""

    def __init__(self, config: Lfm3Config, layer_type: str):
        nn.Module.__init__(self)
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self._scale = config.head_dim**-0.5
        hidden, heads, kv_heads = config.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, heads, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, kv_heads, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, kv_heads, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads, hidden, bias=config.attention_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        if config.use_attention_gate:
            self.gate_proj = nn.Linear(hidden, self.num_heads, bias=False)
        rope = config.rope(layer_type)
        self._frequencies = rope_frequencies(config.head_dim, rope.rope_theta, rope.partial_rotary_factor)

    def __call__(  # type: ignore[override]
        self,
        x: mx.array,
        context: Context,
        cache: KeyValueCache | WindowCache | None = None,
        query_context: Context | None = None,
        attentions: list[mx.array] | None = None,
    ) -> mx.array:
        """As `Lfm2Attention`, without a residual: (B, L, hidden), normed -> (B, queries, hidden)."""
        batch, query_context = x.shape[0], query_context or context
        asking = x[:, -query_context.length :]
        queries = self.q_norm(self.q_proj(asking).reshape(batch, -1, self.num_heads, self.head_dim))
        keys = self.k_norm(self.k_proj(x).reshape(batch, -1, self.num_kv_heads, self.head_dim))
        values = self.v_proj(x).reshape(batch, -1, self.num_kv_heads, self.head_dim)
        out = self.attend(queries, keys, values, context, cache, query_context, attentions)
        if "gate_proj" in self:
            gate = mx.sigmoid(self.gate_proj(asking))[..., None]
            out = (out.reshape(*gate.shape[:-1], self.head_dim) * gate).reshape(out.shape)
        return self.o_proj(out)


class Lfm3MLP(Lfm2MLP):
    """SwiGLU, without a residual."""

    def __call__(self, x: mx.array) -> mx.array:  # type: ignore[override]
        return self.w2(swiglu(self.w1(x), self.w3(x)))


class Lfm3DecoderLayer(nn.Module):
    """One operator (attention or short convolution) and one feed-forward, each normed before and after."""

    def __init__(self, config: Lfm3Config, layer_type: str):
        super().__init__()
        if layer_type == "conv":
            self.conv = Lfm2ShortConv(config)
        else:
            self.self_attn = Lfm3Attention(config, layer_type)
        self.operator_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.feed_forward = Lfm3MLP(config.hidden_size, config.feed_forward_size)
        if config.use_sandwich_norm:
            self.post_operator_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
            self.post_ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def __call__(
        self,
        x: mx.array,
        context: Context,
        cache: KeyValueCache | ConvCache | WindowCache | None = None,
        query_context: Context | None = None,
        attentions: list[mx.array] | None = None,
    ) -> mx.array:
        """(B, L, hidden) -> (B, L, hidden). With a `query_context` an attention layer returns only the last rows, those
        of that context."""
        normed = self.operator_norm(x)
        if "conv" in self:
            assert cache is None or isinstance(cache, ConvCache)
            made = self.conv.out_proj(self.conv.mix(normed, context.conv_mask, cache))
        else:
            assert not isinstance(cache, ConvCache)
            made = self.self_attn(normed, context, cache, query_context, attentions)
            x = x if query_context is None else x[:, -query_context.length :]
        x = x + (self.post_operator_norm(made) if "post_operator_norm" in self else made)
        made = self.feed_forward(self.ffn_norm(x))
        return x + (self.post_ffn_norm(made) if "post_ffn_norm" in self else made)


class Lfm3Model(Lfm2Model):
    """Embeddings in, normed hidden states out."""

    layer_class = Lfm3DecoderLayer
    config: Lfm3Config

    def contexts(self, context: Context, past: int = 0) -> dict[str, Context]:
        contexts = super().contexts(context, past)
        if "sliding_attention" in contexts:
            contexts["sliding_attention"] = context.window(self.config.sliding_window, past)
        return contexts
