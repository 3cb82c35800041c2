"""The SigLIP2 NaFlex vision encoder, run without padding, so that no mask exists.

Views of one grid are the rows of an array (views, h*w, ...); views of several grids lie one after another in a single
row, (1, all patches, ...). Everything but attention treats patches alike; attention sees only a view's own.
Parameter names are those of transformers' `Siglip2VisionModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config import Siglip2VisionConfig
from . import cpu
from .activations import ACTIVATIONS, gelu_tanh
from .outputs import Between
from .positions import resize_table
from .products import SharedProduct, fuses, linear

Grids = Sequence[tuple[int, int]]  # (h, w) of each view
Groups = Sequence[tuple[int, int]]  # neighbours of equally many patches: how many views, of how many patches


def groups_of(grids: Grids) -> Groups:
    """The views that attention can take together."""
    return [(len(list(alike)), patches) for patches, alike in groupby(height * width for height, width in grids)]


class Siglip2VisionEmbeddings(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)
        self._side = config.position_table_side

    def __call__(self, patches: mx.array, grids: Grids) -> mx.array:
        """(views, h*w, channels*patch*patch) -> (views, h*w, hidden)."""
        table: mx.array = self.position_embedding.weight
        several = grids if len(set(grids)) > 1 else grids[:1]
        places = [resize_table(table, self._side, *grid) for grid in several]
        joined = places[0] if len(places) == 1 else mx.concatenate(places)
        return linear(self.patch_embedding, patches.astype(table.dtype)) + joined


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

    def __call__(self, x: mx.array, groups: Groups) -> mx.array:
        projected, found, at = self._project(x), [], 0
        for views, patches in groups:
            end = at + views * patches
            parts = projected if len(groups) == 1 else [y[:, at:end] for y in projected]
            # (views, heads, patches, head_dim)
            of = (y.reshape(views, patches, self.heads, -1).transpose(0, 2, 1, 3) for y in parts)
            found.append(cpu.attention(*of, scale=self._scale).transpose(0, 2, 1, 3))
            at = end
        if len(found) > 1:
            found = [mx.concatenate([out.reshape(1, -1, x.shape[2]) for out in found], axis=1)]
        return linear(self.out_proj, found[0].reshape(x.shape))


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

    def __call__(self, x: mx.array, groups: Groups) -> mx.array:
        attention, mlp = self.self_attn, self.mlp
        layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, mlp.fc1, mlp.fc2)
        if mlp.activation is gelu_tanh and fuses(x, *layers):
            norms = self.layer_norm1.eps, self.layer_norm2.eps
            return cpu.encoder_layer(x, groups, attention.heads, norms, dict(tree_flatten(self.parameters())))
        x = x + self.self_attn(self.layer_norm1(x), groups)
        return x + self.mlp(self.layer_norm2(x))


class Siglip2Encoder(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.layers = [Siglip2EncoderLayer(config) for _ in range(config.num_hidden_layers)]


class Siglip2VisionModel(nn.Module):
    """Patches in, features out."""

    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.config = config
        self.embeddings = Siglip2VisionEmbeddings(config)
        self.encoder = Siglip2Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(
        self,
        patches: mx.array,
        grids: Grids,
        hidden_states: list[mx.array] | None = None,
        between: Between | None = None,
    ) -> mx.array:
        """(views, h*w, channels*patch*patch) -> (views, h*w, hidden), or both (1, all patches, ...) of several grids.

        Patches are in row-major order, their pixels in (y, x, channel) order. If `hidden_states` is given, the
        embeddings and the output of every layer are appended to it.
        """
        x, groups = self.embeddings(patches, grids), groups_of(grids)
        if hidden_states is not None:
            hidden_states.append(x)
        for layer in self.encoder.layers:
            x = layer(x, groups)
            if between is not None:
                between(x)
            if hidden_states is not None:
                hidden_states.append(x)
        return self.post_layernorm(x)

    def share_products(self) -> None:
        """Lets a GPU start fewer kernels: see `SharedProduct`. For weights that are loaded and stay."""
        for layer in self.encoder.layers:
            layer.self_attn.share_product()
