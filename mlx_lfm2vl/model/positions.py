"""Position embeddings of a picture's grid: the square table of the checkpoint, resized to (height, width) patches.

The reference resizes the table with `torch.nn.functional.interpolate(mode="bilinear", antialias=True,
align_corners=False)`. That is linear and separable, so it is two small matrices: `A_h @ table @ A_w.T`.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np


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
    """Resizes a position table (side*side, d) to (height*width, d), in float32 and back to the table's dtype."""
    channels = table.shape[-1]
    if height == side and width == side:
        return table
    rows = mx.array(resize_matrix(side, height)) @ table.astype(mx.float32).reshape(side, side * channels)
    grid = mx.array(resize_matrix(side, width)) @ rows.reshape(height, side, channels)
    return grid.reshape(height * width, channels).astype(table.dtype)
