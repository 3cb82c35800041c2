"""The SigLIP2 NaFlex vision encoder, run without padding, so that no mask exists.

Views of one grid are the rows of an array (views, h*w, ...). Views of several grids lie one after another in a single
row, (1, all patches, ...). Everything but attention treats patches alike; attention sees only a view's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, groupby

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import Siglip2VisionConfig
from .layers import ACTIVATIONS, FusedQKV

Grids = Sequence[tuple[int, int]]  # (h, w) of each view
PATCHES_PER_PASS = 4096  # bounds the tower's activations; four full tiles
Groups = Sequence[tuple[int, int]]  # neighbours of equally many patches: how many views, of how many patches


@lru_cache(maxsize=512)
def resize_matrix(source: int, target: int) -> np.ndarray:
    """Weights (target, source) float32 of an antialiased bilinear resize of `source` samples to `target`.

    Triangle filter with half-pixel centres, widened by the scale when shrinking, each row normalised to 1 (the rule of
    PyTorch's `upsample_bilinear2d_aa` and of Pillow).
    """
    scale = source / target
    support = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), source)  # exclusive
    samples = np.arange(source)
    distance = np.abs(samples[None, :] - centres[:, None] + 0.5) / support
    weights = np.where((samples >= first[:, None]) & (samples < last[:, None]), np.maximum(1.0 - distance, 0.0), 0.0)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.flags.writeable = False  # shared between callers through the cache
    return weights


def resize_table(table: mx.array, side: int, height: int, width: int) -> mx.array:
    """Resizes a position table (side*side, d) to (height*width, d), in float32 and back to the table's dtype.

    The reference uses `torch.nn.functional.interpolate(mode="bilinear", antialias=True, align_corners=False)`. That is
    linear and separable, so it is two small matrices: `A_h @ table @ A_w.T`.
    """
    channels = table.shape[-1]
    if height == side and width == side:
        return table
    rows = mx.array(resize_matrix(side, height)) @ table.astype(mx.float32).reshape(side, side * channels)
    grid = mx.array(resize_matrix(side, width)) @ rows.reshape(height, side, channels)
    return grid.reshape(height * width, channels).astype(table.dtype)


def vision_passes(grids: Grids, patches: int = PATCHES_PER_PASS) -> list[list[int]]:
    """The views (by index) that go through the tower together: up to so many patches, or a single view; those of one
    grid beside each other."""
    passes: list[list[int]] = []
    room = 0
    for grid in dict.fromkeys(grids):
        for index in (index for index, other in enumerate(grids) if other == grid):
            if not passes or grid[0] * grid[1] > room:
                passes.append([])
                room = patches
            passes[-1].append(index)
            room -= grid[0] * grid[1]
    return passes


def pack_views(pixels: mx.array, grids: Grids) -> mx.array:
    """The true patches of padded views, as the tower takes them.

    Args:
        pixels: (views, most patches, channels*patch*patch).
        grids: (h, w) of each view.

    Returns:
        (views, h*w, ...) of one grid, or (1, all patches, ...) of several.
    """
    counts = [height * width for height, width in grids]
    if len(set(grids)) == 1:
        return pixels[:, : counts[0]]
    return mx.concatenate([view[:count] for view, count in zip(pixels, counts, strict=True)])[None]


def split_views(array: mx.array, grids: Grids) -> list[mx.array]:
    """The tower's or the projector's result of `pack_views`, view by view: (rows of the view, width) each."""
    flat = array.reshape(-1, array.shape[2])
    counts = [height * width for height, width in grids]
    share = sum(counts) // len(flat)  # patches of a row
    ends = accumulate(counts)
    return [flat[(end - count) // share : end // share] for count, end in zip(counts, ends, strict=True)]


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
        tables = [resize_table(table, self._side, *grid) for grid in several]
        positions = tables[0] if len(tables) == 1 else mx.concatenate(tables)
        return self.patch_embedding(patches.astype(table.dtype)) + positions


class Siglip2Attention(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self._scale = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self._fused: FusedQKV | None = None

    def fuse(self) -> None:
        """Makes queries, keys and values with one product from now on, where the layers allow it."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        self._fused = FusedQKV(layers) if FusedQKV.possible(layers) else None

    def __call__(self, x: mx.array, groups: Groups) -> mx.array:
        """(views, patches, hidden) -> the same shape."""
        layers, outputs, start = (self.q_proj, self.k_proj, self.v_proj), [], 0
        projected = [layer(x) for layer in layers] if self._fused is None else self._fused(x, layers)
        for views, patches in groups:
            end = start + views * patches
            parts = projected if len(groups) == 1 else [y[:, start:end] for y in projected]
            # (views, heads, patches, head_dim)
            queries, keys, values = (y.reshape(views, patches, self.num_heads, -1).transpose(0, 2, 1, 3) for y in parts)
            out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self._scale)
            outputs.append(out.transpose(0, 2, 1, 3))
            start = end
        if len(outputs) > 1:
            outputs = [mx.concatenate([out.reshape(1, -1, *out.shape[2:]) for out in outputs], axis=1)]
        return self.out_proj(outputs[0].reshape(*x.shape[:2], -1))


class Siglip2MLP(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.hidden_act = config.hidden_act
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(x)))


class Siglip2EncoderLayer(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Siglip2Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Siglip2MLP(config)

    def __call__(self, x: mx.array, groups: Groups) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x), groups)
        return x + self.mlp(self.layer_norm2(x))


class Siglip2Encoder(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.layers = [Siglip2EncoderLayer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: mx.array, grids: Grids, layers: slice = slice(None)) -> mx.array:
        """Embedded patches through some of the layers, or all; the same shape."""
        alike = groupby(height * width for height, width in grids)
        groups = [(len(list(views)), patches) for patches, views in alike]
        for layer in self.layers[layers]:
            x = layer(x, groups)
        return x


class Siglip2VisionModel(nn.Module):
    """Patches in, features out."""

    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.config = config
        self.embeddings = Siglip2VisionEmbeddings(config)
        self.encoder = Siglip2Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, patches: mx.array, grids: Grids, hidden_states: list[mx.array] | None = None) -> mx.array:
        """Features of every patch.

        Args:
            patches: (views, h*w, channels*patch*patch) of one grid, or (1, all patches, ...) of several. Patches are in
                row-major order, their pixels in (y, x, channel) order.
            grids: (h, w) of each view.
            hidden_states: if given, gets the embeddings and the output of every layer.

        Returns:
            (views, h*w, hidden), or (1, all patches, hidden).
        """
        x = self.embeddings(patches, grids)
        if hidden_states is None:
            return self.post_layernorm(self.encoder(x, grids))
        hidden_states.append(x)
        for index in range(len(self.encoder.layers)):
            hidden_states.append(self.encoder(hidden_states[-1], grids, slice(index, index + 1)))
        return self.post_layernorm(hidden_states[-1])

    def fuse(self) -> None:
        """Lets a GPU start fewer kernels."""
        for layer in self.encoder.layers:
            layer.self_attn.fuse()
