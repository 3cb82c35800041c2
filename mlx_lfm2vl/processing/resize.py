"""Resizing of 8-bit pictures with the reference's arithmetic: torchvision's antialiased bilinear and bicubic for uint8.

A pass across, then a pass down, each rounded to 8 bits; an axis that keeps its length is left alone. The weights of a
pass are 16-bit fixed point, at the highest precision (at most 22 bits) at which the largest of them fits. Sums are
matrix products over blocks of outputs, in float32 while their whole numbers fit it (below 2**24) and in float64 where
a picture shrinks so far that they do not: exact either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK = 32  # outputs of one matrix product; its inputs are a band, so small blocks waste little
STRIP = 1 << 21  # values that are turned to floats at a time


def resize(pixels: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (height, width, 3) uint8. `resample`: 2 is bilinear, 3 bicubic (Pillow's numbers)."""
    if pixels.shape[1] != width:
        out = np.empty((pixels.shape[0], width, 3), np.uint8)
        _down(pixels.transpose(1, 0, 2), _weights(pixels.shape[1], width, resample), out.transpose(1, 0, 2))
        pixels = out
    if pixels.shape[0] != height:
        out = np.empty((height, width, 3), np.uint8)
        pixels = _down(pixels, _weights(pixels.shape[0], height, resample), out)
    return pixels


@dataclass(frozen=True)
class _Block:
    """Outputs [start, stop) come from inputs [first, last) by `matrix` (stop - start, last - first)."""

    start: int
    stop: int
    first: int
    last: int
    matrix: np.ndarray


@dataclass(frozen=True)
class _Pass:
    target: int
    dtype: type[np.floating]  # in which all sums are exact
    precision: int
    blocks: tuple[_Block, ...]

    def rounded(self, sums: np.ndarray) -> np.ndarray:
        """Fixed-point sums, which are overwritten, to 8 bits."""
        sums += 2 ** (self.precision - 1)
        sums *= 2.0**-self.precision
        np.clip(sums, 0, 255, out=sums)
        return sums.astype(np.uint8)  # which cuts the fraction off


@lru_cache(maxsize=64)
def _weights(source: int, target: int, resample: int) -> _Pass:
    """The filter of one axis. Half-pixel centres, support widened by the scale when shrinking, weights normalised in
    double precision and then rounded half away from zero to fixed point (torch's `upsample_*2d_aa` for uint8)."""
    scale = source / target
    stretch = max(scale, 1.0)
    support = (1.0 if resample == 2 else 2.0) * stretch
    centres = scale * (np.arange(target) + 0.5)
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), source)
    taps = int((last - first).max())
    places = first[:, None] + np.arange(taps)
    distance = np.abs((places - centres[:, None] + 0.5) / stretch)
    weights = _triangle(distance) if resample == 2 else _cubic(distance)
    weights = np.where(places < last[:, None], weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    precision, largest = 0, weights.max()
    while precision < 22 and int(0.5 + largest * 2 ** (precision + 1)) < 2**15:
        precision += 1
    fixed = np.trunc(weights * 2**precision + np.copysign(0.5, weights))
    dtype = np.float32 if 255 * np.abs(fixed).sum(axis=1).max() + 2 ** (precision - 1) < 2**24 else np.float64
    blocks = []
    for start in range(0, target, BLOCK):
        stop = min(start + BLOCK, target)
        low, high = int(first[start]), int(last[start:stop].max())
        matrix = np.zeros((stop - start, high - low), dtype)
        for row, output in enumerate(range(start, stop)):
            at = int(first[output])
            count = int(last[output]) - at
            matrix[row, at - low : at - low + count] = fixed[output, :count]
        blocks.append(_Block(start, stop, low, high, matrix))
    return _Pass(target, dtype, precision, tuple(blocks))


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - distance, 0.0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2 (Keys 1981)."""
    a, x = -0.5, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _down(pixels: np.ndarray, filter: _Pass, out: np.ndarray) -> np.ndarray:
    """Filters along the first axis, in strips of the second: (source, n, channels) to `out` (target, n, channels)."""
    source, length, channels = pixels.shape
    strip = max(1, STRIP // (source * channels))
    for left in range(0, length, strip):
        part = pixels[:, left : left + strip].astype(filter.dtype, order="C")
        flat = part.reshape(source, -1)
        sums = np.empty((filter.target, flat.shape[1]), filter.dtype)
        for block in filter.blocks:
            np.matmul(block.matrix, flat[block.first : block.last], out=sums[block.start : block.stop])
        out[:, left : left + strip] = filter.rounded(sums).reshape(filter.target, -1, channels)
    return out
