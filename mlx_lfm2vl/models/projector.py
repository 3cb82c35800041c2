"""From patches to image tokens: pixel unshuffle (factor x factor patches become one token), then a two-layer MLP."""

from __future__ import annotations

from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn

from ..config import Lfm2VlConfig
from .layers import ACTIVATIONS
from .siglip2 import Grids


def pixel_unshuffle(features: mx.array, grid: tuple[int, int], factor: int) -> mx.array:
    """(views, h*w, d) of grid (h, w) -> (views, (h/factor)*(w/factor), factor*factor*d).

    A token holds its patches row by row; the order is that of the reference's `Lfm2VlMultiModalProjector`.
    """
    views, _, channels = features.shape
    height, width = grid
    blocks = features.reshape(views, height // factor, factor, width // factor, factor * channels)
    return blocks.transpose(0, 1, 3, 2, 4).reshape(views, -1, factor * factor * channels)


class Lfm2VlMultiModalProjector(nn.Module):
    def __init__(self, config: Lfm2VlConfig):
        super().__init__()
        width = config.vision_config.hidden_size * config.downsample_factor**2
        self.factor = config.downsample_factor
        self.hidden_act = config.projector_hidden_act
        if config.projector_use_layernorm:
            self.layer_norm = nn.LayerNorm(width, eps=1e-5)  # torch.nn.LayerNorm's default, as in the reference
        self.linear_1 = nn.Linear(width, config.projector_hidden_size, bias=config.projector_bias)
        self.linear_2 = nn.Linear(
            config.projector_hidden_size, config.text_config.hidden_size, bias=config.projector_bias
        )

    def __call__(self, features: mx.array, grids: Grids) -> mx.array:
        """(views, h*w, vision hidden) -> (views, image tokens, text hidden), or both (1, all of them, ...) of several
        grids."""
        if len(set(grids)) == 1:
            x = pixel_unshuffle(features, grids[0], self.factor)
        else:
            ends = list(accumulate(height * width for height, width in grids))
            parts = zip(mx.split(features, ends[:-1], axis=1), grids, strict=True)
            x = mx.concatenate([pixel_unshuffle(part, grid, self.factor) for part, grid in parts], axis=1)
        if "layer_norm" in self:
            x = self.layer_norm(x)
        return self.linear_2(ACTIVATIONS[self.hidden_act](self.linear_1(x)))
