"""The SigLIP2 NaFlex vision encoder, run without padding: every view of a call has the same grid, so no mask exists.

Attention in the tower sees only a view's own patches; the reference masks the padding away, here there is none.
Parameter names are those of transformers' `Siglip2VisionModel`.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config import Siglip2VisionConfig
from . import cpu
from .activations import ACTIVATIONS, gelu_tanh
from .positions import resize_table
from .products import SharedProduct, fuses, linear


class Siglip2VisionEmbeddings(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)
        self._side = config.position_table_side

    def __call__(self, patches: mx.array, grid: tuple[int, int]) -> mx.array:
        """(views, h*w, channels*patch*patch) -> (views, h*w, hidden)."""
        table: mx.array = self.position_embedding.weight
        return linear(self.patch_embedding, patches.astype(table.dtype)) + resize_table(table, self._side, *grid)


class Siglip2Attention(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self._scale = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self._shared: SharedProduct | None = None

    def share_product(self) -> None:
        """Makes queries, keys and values with one product from now on, where the layers allow it."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        self._shared = SharedProduct(layers) if SharedProduct.possible(layers) else None

    def _project(self, x: mx.array) -> list[mx.array]:
        layers = (self.q_proj, self.k_proj, self.v_proj)
        if self._shared is not None and not self._shared.fits(layers):
            self._shared = None
        return [linear(layer, x) for layer in layers] if self._shared is None else self._shared(x)

    def __call__(self, x: mx.array) -> mx.array:
        views, patches, width = x.shape

        def heads(y: mx.array) -> mx.array:  # (views, heads, patches, head_dim)
            return y.reshape(views, patches, self.heads, -1).transpose(0, 2, 1, 3)

        queries, keys, values = (heads(y) for y in self._project(x))
        out = cpu.attention(queries, keys, values, scale=self._scale)
        return linear(self.out_proj, out.transpose(0, 2, 1, 3).reshape(views, patches, width))


class Siglip2MLP(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return linear(self.fc2, self.activation(linear(self.fc1, x)))


class Siglip2EncoderLayer(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Siglip2Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Siglip2MLP(config)

    def __call__(self, x: mx.array) -> mx.array:
        attention, mlp = self.self_attn, self.mlp
        layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, mlp.fc1, mlp.fc2)
        if mlp.activation is gelu_tanh and fuses(x, *layers):
            norms = self.layer_norm1.eps, self.layer_norm2.eps
            return cpu.encoder_layer(x, attention.heads, norms, dict(tree_flatten(self.parameters())))
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Siglip2Encoder(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.layers = [Siglip2EncoderLayer(config) for _ in range(config.num_hidden_layers)]


class Siglip2VisionModel(nn.Module):
    """Patches of equal grid in, features out."""

    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.config = config
        self.embeddings = Siglip2VisionEmbeddings(config)
        self.encoder = Siglip2Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(
        self, patches: mx.array, grid: tuple[int, int], hidden_states: list[mx.array] | None = None
    ) -> mx.array:
        """(views, h*w, channels*patch*patch), all of grid (h, w) -> (views, h*w, hidden).

        Patches are in row-major order, their pixels in (y, x, channel) order. If `hidden_states` is given, the
        embeddings and the output of every layer are appended to it.
        """
        x = self.embeddings(patches, grid)
        if hidden_states is not None:
            hidden_states.append(x)
        for layer in self.encoder.layers:
            x = layer(x)
            if hidden_states is not None:
                hidden_states.append(x)
        return self.post_layernorm(x)

    def share_products(self) -> None:
        """Lets a GPU start fewer kernels: see `SharedProduct`. For weights that are loaded and stay."""
        for layer in self.encoder.layers:
            layer.self_attn.share_product()
