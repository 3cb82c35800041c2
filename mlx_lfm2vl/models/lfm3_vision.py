"""The LFM3-VL vision encoder: gated depthwise convolutions over the grid of each view, and attention within it.

A picture is a view, and so is each pair of frames of a video; no view sees another. As in `siglip2.py`, views of one
grid are the rows of an array (views, h*w, ...), and views of several grids lie one after another in a single row,
(1, all patches, ...). Patches come in the order of the blocks that the projector merges; a convolution puts them into
rows and columns and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import Lfm3VlConfig, Lfm3VlVisionConfig
from .layers import ACTIVATIONS, add_linear, rope_frequencies
from .lfm3 import Lfm3MLP
from .siglip2 import Grids

Neighbours = Sequence[tuple[int, int, int]]  # views of one grid beside each other: how many, of (h, w) patches


def patch_positions(grids: Grids, merge: int) -> np.ndarray:
    """Row and column of every patch, (patches, 2), in the order of the blocks of `merge` x `merge`."""
    every = []
    for height, width in grids:
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        blocks = np.stack([rows, columns], axis=-1).reshape(height // merge, merge, width // merge, merge, 2)
        every.append(blocks.swapaxes(1, 2).reshape(-1, 2))
    return np.concatenate(every)


def axial_rotation(config: Lfm3VlVisionConfig, grids: Grids) -> tuple[mx.array, mx.array]:
    """Cosines and sines (patches, 1, head_dim) float32: of each half of a head, a half turns by the patch's row, the
    other by its column (the reference's "axial" rotary positions)."""
    half = config.head_dim // 2
    inverse = np.float32(1) / np.array(rope_frequencies(half, config.rope_theta))
    angles = patch_positions(grids, config.spatial_merge_size).astype(np.float32)[..., None] * inverse
    angles = angles.reshape(len(angles), 1, half)
    every = mx.array(np.concatenate([angles, angles], axis=-1))
    return mx.cos(every), mx.sin(every)


class Lfm3VlVisionAttention(nn.Module):
    """Bidirectional grouped-query attention over the patches of a view."""

    def __init__(self, config: Lfm3VlVisionConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self._scale = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.out_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.q_layernorm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.k_layernorm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)

    def __call__(
        self, x: mx.array, residual: mx.array, neighbours: Neighbours, rotation: tuple[mx.array, mx.array]
    ) -> mx.array:
        """(patches, hidden), normed, and the residual of the same shape -> the same shape."""
        queries = _rotate(self.q_layernorm(self.q_proj(x).reshape(len(x), self.num_heads, -1)), rotation)
        keys = _rotate(self.k_layernorm(self.k_proj(x).reshape(len(x), self.num_kv_heads, -1)), rotation)
        values = self.v_proj(x).reshape(len(x), self.num_kv_heads, -1)
        made, end = [], 0
        for count, height, width in neighbours:
            start, end = end, end + count * height * width
            parts = (
                part[start:end].reshape(count, height * width, -1, self.head_dim).swapaxes(1, 2)
                for part in (queries, keys, values)
            )
            out = mx.fast.scaled_dot_product_attention(*parts, scale=self._scale, mask=None)
            made.append(out.swapaxes(1, 2).reshape(end - start, -1))
        return add_linear(residual, made[0] if len(made) == 1 else mx.concatenate(made), self.out_proj)


def _rotate(x: mx.array, rotation: tuple[mx.array, mx.array]) -> mx.array:
    """(patches, heads, head_dim), turned in float32."""
    wide, half = x.astype(mx.float32), x.shape[-1] // 2
    turned = mx.concatenate([-wide[..., half:], wide[..., :half]], axis=-1)
    return (wide * rotation[0] + turned * rotation[1]).astype(x.dtype)


class DepthwiseKernel(nn.Module):
    """The parameters of the depthwise convolution: `weight` (hidden, K, K, 1)."""

    def __init__(self, config: Lfm3VlVisionConfig):
        super().__init__()
        size = config.conv_kernel_size
        self.weight = mx.random.normal((config.hidden_size, size, size, 1), scale=1.0 / size)


class Lfm3VlVisionShortConv(nn.Module):
    """`C * conv(B * x)` with B, C, x from one projection; depthwise over the rows and columns of a view."""

    def __init__(self, config: Lfm3VlVisionConfig):
        super().__init__()
        self._merge = config.spatial_merge_size
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.spatial_conv = DepthwiseKernel(config)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array, residual: mx.array, neighbours: Neighbours) -> mx.array:
        """(patches, hidden), normed, and the residual of the same shape -> the same shape."""
        gate_in, gate_out, value = mx.split(self.in_proj(x), 3, axis=-1)
        gated, weight, merge = gate_in * value, self.spatial_conv.weight, self._merge
        hidden, padding = gated.shape[-1], weight.shape[1] // 2
        made, end = [], 0
        for count, height, width in neighbours:
            start, end = end, end + count * height * width
            blocks = gated[start:end].reshape(count, height // merge, width // merge, merge, merge, hidden)
            raster = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(count, height, width, hidden)
            raster = mx.conv2d(raster, weight, padding=padding, groups=hidden)
            blocks = raster.reshape(count, height // merge, merge, width // merge, merge, hidden)
            made.append(blocks.transpose(0, 1, 3, 2, 4, 5).reshape(end - start, hidden))
        mixed = gate_out * (made[0] if len(made) == 1 else mx.concatenate(made))
        return add_linear(residual, mixed, self.out_proj)


class Lfm3VlVisionLayer(nn.Module):
    """One operator (convolution or attention) and one feed-forward, both pre-normed, each added to its input."""

    def __init__(self, config: Lfm3VlVisionConfig, layer_type: str):
        super().__init__()
        if layer_type == "conv":
            self.conv = Lfm3VlVisionShortConv(config)
        else:
            self.self_attn = Lfm3VlVisionAttention(config)
        self.operator_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.feed_forward = Lfm3MLP(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array, neighbours: Neighbours, rotation: tuple[mx.array, mx.array]) -> mx.array:
        """(patches, hidden) -> the same shape."""
        normed = self.operator_norm(x)
        x = self.conv(normed, x, neighbours) if "conv" in self else self.self_attn(normed, x, neighbours, rotation)
        return x + self.feed_forward(self.ffn_norm(x))


class Lfm3VlVisionModel(nn.Module):
    """Patches of pictures and videos in, hidden states out."""

    def __init__(self, config: Lfm3VlVisionConfig):
        super().__init__()
        self.config = config
        self.patchifier = nn.Linear(config.patch_width, config.hidden_size, bias=False)
        self.embedding_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.layers = [Lfm3VlVisionLayer(config, layer_type) for layer_type in config.layer_types]

    def embeddings(self, patches: mx.array, grids: Grids) -> mx.array:
        """(views, h*w, numbers of a patch) -> (views, h*w, hidden)."""
        return self.embedding_norm(self.patchifier(patches.astype(self.embedding_norm.weight.dtype)))

    def encoder(self, x: mx.array, grids: Grids, layers: slice = slice(None)) -> mx.array:
        """Embedded patches through some of the layers, or all; the same shape."""
        neighbours = [(len(list(same)), *grid) for grid, same in groupby(grids)]
        rotation = axial_rotation(self.config, grids)
        flat = x.reshape(-1, x.shape[-1])
        for layer in self.layers[layers]:
            flat = layer(flat, neighbours, rotation)
        return flat.reshape(x.shape)

    def post_layernorm(self, x: mx.array) -> mx.array:
        """The layers' result as it is: the projector norms it."""
        return x

    def fuse(self) -> None:
        """Nothing: the layers' products have no bias and are few already."""

    def __call__(self, patches: mx.array, grids: Grids, hidden_states: list[mx.array] | None = None) -> mx.array:
        """(views, h*w, numbers of a patch) -> (views, h*w, hidden). `hidden_states`, if given, gets the input of every
        layer and then the result of the last."""
        x = self.embeddings(patches, grids)
        if hidden_states is None:
            return self.encoder(x, grids)
        for index in range(len(self.layers)):
            hidden_states.append(x)
            x = self.encoder(x, grids, slice(index, index + 1))
        hidden_states.append(x)
        return x


class Lfm3VlMultiModalProjector(nn.Module):
    """Norms the patches, merges each block, and maps it to a token of the text."""

    def __init__(self, config: Lfm3VlConfig):
        super().__init__()
        vision, bias = config.vision_config, config.projector_bias
        self._merged = vision.hidden_size * vision.spatial_merge_size**2
        self.hidden_act = config.projector_hidden_act
        self.layer_norm = nn.LayerNorm(vision.hidden_size, eps=1e-6)
        self.linear_1 = nn.Linear(self._merged, config.projector_hidden_size, bias=bias)
        self.linear_2 = nn.Linear(config.projector_hidden_size, config.text_config.hidden_size, bias=bias)

    def __call__(self, hidden: mx.array, grids: Grids) -> mx.array:
        """(views, h*w, hidden) -> (views, h*w / merge^2, text hidden)."""
        blocks = self.layer_norm(hidden).reshape(hidden.shape[0], -1, self._merged)
        return self.linear_2(ACTIVATIONS[self.hidden_act](self.linear_1(blocks)))
