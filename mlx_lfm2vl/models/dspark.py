"""DSpark: a drafter that proposes a block of tokens in one run (DeepSpec 2026, "Confidence-Scheduled Speculative
Decoding with Semi-Autoregressive Generation", on the layers of DFlash).

In: the results of some layers of the model for all tokens so far, of which each layer of the drafter keeps keys and
values; and the token that comes next. Out: hidden states of a block that begins with that token. All places of a block
see each other. A head of low rank then chooses its tokens one by one, each with the token before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..config import DSparkConfig
from .cache import KeyValueCache
from .layers import Context, rope_frequencies, rotate, swiglu


class DSparkAttention(nn.Module):
    def __init__(self, config: DSparkConfig):
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        self._scale, self._traditional = config.head_dim**-0.5, not config.rope_is_neox_style
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, hidden, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self._frequencies = rope_frequencies(config.head_dim, config.rope_theta)

    def keys_and_values(self, x: mx.array, offset: int | mx.array) -> tuple[mx.array, mx.array]:
        """(B, L, hidden) from position `offset` on -> twice (B, kv_heads, L, head_dim)."""
        return self._rotated(self.k_norm(self._heads(self.k_proj(x))), offset), self._heads(self.v_proj(x))

    def __call__(self, x: mx.array, context: Context, past: KeyValueCache) -> mx.array:
        """A block (B, n, hidden) that sees itself and all of `past`, where the context has no mask for it."""
        queries = self._rotated(self.q_norm(self._heads(self.q_proj(x))), context.offset)
        states = [*self.keys_and_values(x, context.offset)]
        if past.offset:
            known = (array[:, :, : past.offset] for array in past.states)
            states = [mx.concatenate([*both], axis=2) for both in zip(known, states, strict=True)]
        out = mx.fast.scaled_dot_product_attention(queries, *states, scale=self._scale, mask=context.attention_mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))

    def _heads(self, x: mx.array) -> mx.array:
        """(B, L, heads * head_dim) -> (B, heads, L, head_dim)."""
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(0, 2, 1, 3)

    def _rotated(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return rotate(x, self._frequencies, offset, traditional=self._traditional)


class DSparkMLP(nn.Module):
    def __init__(self, config: DSparkConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class DSparkDecoderLayer(nn.Module):
    def __init__(self, config: DSparkConfig):
        super().__init__()
        self.self_attn, self.mlp = DSparkAttention(config), DSparkMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, context: Context, past: KeyValueCache) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), context, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class MarkovHead(nn.Module):
    """The addition of a token to the logits of the next one: a table of pairs, of low rank."""

    def __init__(self, config: DSparkConfig):
        super().__init__()
        self.markov_w1 = nn.Embedding(config.vocab_size, config.markov_rank)
        self.markov_w2 = nn.Linear(config.markov_rank, config.vocab_size, bias=False)


class ConfidenceHead(nn.Module):
    """The probability that a proposed token is right, where all before it are."""

    def __init__(self, config: DSparkConfig):
        super().__init__()
        self._with_markov = config.confidence_head_with_markov
        self.proj = nn.Linear(config.hidden_size + self._with_markov * config.markov_rank, 1)

    def __call__(self, hidden: mx.array, pairs: mx.array) -> mx.array:
        """(B, n, hidden), and (B, n, rank) of the tokens before -> (B, n) float32."""
        x = mx.concatenate([hidden, pairs], axis=-1) if self._with_markov else hidden
        return mx.sigmoid(self.proj(x)[..., 0].astype(mx.float32))


class DSparkDraftModel(nn.Module):
    """A drafter without embeddings and head, which are those of the model."""

    def __init__(self, config: DSparkConfig):
        super().__init__()
        self.config = config
        self.fc = nn.Linear(len(config.target_layer_ids) * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.layers = [DSparkDecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.markov_head = MarkovHead(config)
        if config.enable_confidence_head:
            self.confidence_head = ConfidenceHead(config)

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """The layers of the model whose results `remember` takes."""
        return self.config.target_layer_ids

    @property
    def token_bytes(self) -> int:
        """Memory for the keys and values of a token."""
        config = self.config
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * self._dtype.size

    def empty(self, batch: int = 0, length: int = 0) -> list[KeyValueCache]:
        """The states of `batch` rows, of whose first `length` tokens nothing is known."""
        config, layers = self.config, [KeyValueCache() for _ in self.layers]
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        for layer in layers:
            layer.offset = length
            layer.states = (mx.zeros(shape, self._dtype),) * 2 if length else ()
        return layers

    def remember(self, results: Sequence[mx.array], context: Context, past: Sequence[KeyValueCache]) -> None:
        """Appends the keys and values of L tokens to the states. `results`: (B, L, hidden) of each target layer."""
        x = self.hidden_norm(self.fc(mx.concatenate([*results], axis=-1).astype(self._dtype)))
        for layer, state in zip(self.layers, past, strict=True):
            state.update(*layer.self_attn.keys_and_values(x, context.offset))

    def __call__(self, inputs_embeds: mx.array, context: Context, past: Sequence[KeyValueCache]) -> mx.array:
        """The normed hidden states (B, n, hidden) of a block whose embeddings are given; the states stay as they
        are."""
        x = inputs_embeds.astype(self._dtype)
        for layer, state in zip(self.layers, past, strict=True):
            x = layer(x, context, state)
        return self.norm(x)

    def propose(
        self,
        ids: mx.array,
        embed: Callable[[mx.array], mx.array],
        head: Callable[[mx.array], mx.array],
        count: int,
        context: Context,
        past: Sequence[KeyValueCache],
    ) -> tuple[mx.array, mx.array]:
        """The tokens that are likeliest to follow.

        Args:
            ids: the last token of each row (B,), which is not in `past`.
            embed: (B, n) -> (B, n, hidden), of the model.
            head: (..., hidden) -> (..., vocabulary), of the model.
            count: tokens of the block, at most the configuration's `block_size`.
            context: of `count` tokens behind those in `past`; its mask is for keys (B, 1, 1, past + count).
            past: what `remember` keeps.

        Returns:
            Tokens (B, count), and the probability that each is right where all before it are, (B, count) float32: one
            without a confidence head.
        """
        masks = mx.full((ids.shape[0], count - 1), self.config.mask_token_id, ids.dtype)
        embeds = embed(mx.concatenate([ids[:, None], masks], axis=1))
        hidden = self(embeds, context, past)
        logits, pairs, tokens = head(hidden.astype(embeds.dtype)), [], [ids]
        for place in range(count):
            pairs.append(self.markov_head.markov_w1(tokens[-1]))
            tokens.append(mx.argmax(logits[:, place] + self.markov_head.markov_w2(pairs[-1]), axis=-1))
        made = mx.stack(tokens[1:], axis=1)
        if "confidence_head" not in self:
            return made, mx.ones(made.shape)
        return made, self.confidence_head(hidden, mx.stack(pairs, axis=1))

    @property
    def _dtype(self) -> mx.Dtype:
        return self.norm.weight.dtype
