"""Resizing of 8-bit pictures with the reference's arithmetic: torchvision's antialiased bilinear and bicubic for uint8.

A pass across, then a pass down, each rounded to 8 bits; an axis that keeps its length is left alone. The weights of a
pass are 16-bit fixed point, at the highest precision (at most 22 bits) at which the largest of them fits. Sums are
matrix products over blocks of outputs, in float32 while their whole numbers fit it (below 2**24) and in float64 where
a picture shrinks so far that they do not: exact either way. Products are small, so that OpenBLAS does each on the
calling thread: its own threads would wait for each other longer than they work. Large pictures are shared among threads
of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..threads import together

BLOCK = 16  # outputs of one matrix product; its inputs are a band, so small blocks waste little
PRODUCT = 1 << 18  # multiplications of one product at most; OpenBLAS spreads larger ones over threads if it may
LARGE = 1 << 20  # numbers of a plane that are worth several threads, which take larger products, too: fewer calls
LARGE_PRODUCT = 1 << 20
SHARE = 64  # rows or columns of a large picture that a thread gets at least


def resize(pixels: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """(h, w, channels) uint8 -> (height, width, channels) uint8, fastest if the channels are planes of the memory.
    `resample`: 2 is bilinear, 3 bicubic (Pillow's numbers)."""
    planes = pixels.transpose(2, 0, 1)
    if pixels.shape[1] != width:
        planes = _passed(_across, planes, _weights(pixels.shape[1], width, resample), (pixels.shape[0], width), 0)
    if pixels.shape[0] != height:
        planes = _passed(_down, planes, _weights(pixels.shape[0], height, resample), (height, width), 1)
    return planes.transpose(1, 2, 0)


def _passed(
    work: Callable[[np.ndarray, _Pass, int, np.ndarray], None],
    planes: np.ndarray,
    filter: _Pass,
    shape: tuple[int, int],
    axis: int,
) -> np.ndarray:
    """What a pass makes of planes (channels, h, w): of that shape, cut along `axis`, in which it works row by row."""
    out = np.empty((len(planes), *shape), np.uint8)
    large = planes[0].size >= LARGE

    def part(start: int, end: int) -> None:
        cut = (slice(None),) * (1 + axis) + (slice(start, end),)
        work(planes[cut], filter, filter.strip(LARGE_PRODUCT if large else PRODUCT), out[cut])

    if large:
        together(part, shape[axis], SHARE)
    else:
        part(0, shape[axis])
    return out


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
    """The filter of one axis; `dtype` is one in which all sums are exact, `overshoots`: they may leave 0..255."""

    target: int
    dtype: type[np.floating]
    overshoots: bool
    blocks: tuple[_Block, ...]

    def strip(self, product: int) -> int:
        """How many values a product of so many multiplications takes beside the block's."""
        return max(1, product // max(block.matrix.size for block in self.blocks))


def _rounded(sums: np.ndarray, filter: _Pass, out: np.ndarray) -> None:
    """Sums, which are overwritten, to 8 bits: halves upwards."""
    sums += 0.5
    if filter.overshoots:
        np.clip(sums, 0, 255, out=sums)
    np.copyto(out, sums, casting="unsafe")  # which cuts the fraction off


@lru_cache(maxsize=32)
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
    fixed *= 2.0**-precision  # exact, and the sums are in levels
    overshoots = bool(fixed.min() < 0 or 255 * fixed.sum(axis=1).max() + 0.5 >= 256)
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
    return _Pass(target, dtype, overshoots, tuple(blocks))


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - distance, 0.0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2 (Keys 1981)."""
    a, x = -0.5, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _across(planes: np.ndarray, filter: _Pass, strip: int, out: np.ndarray) -> None:
    """(channels, rows, source) to `out` (channels, rows, target), in strips of rows."""
    _, rows, source = planes.shape
    strip = min(strip, rows)
    part = np.empty((strip, source), filter.dtype)
    sums = np.empty((strip, filter.target), filter.dtype)
    for plane, made in zip(planes, out, strict=True):
        for top in range(0, rows, strip):
            count = min(strip, rows - top)
            part[:count] = plane[top : top + count]
            for block in filter.blocks:
                band = part[:count, block.first : block.last]
                np.matmul(band, block.matrix.T, out=sums[:count, block.start : block.stop])
            _rounded(sums[:count], filter, made[top : top + count])


def _down(planes: np.ndarray, filter: _Pass, strip: int, out: np.ndarray) -> None:
    """(channels, source, columns) to `out` (channels, target, columns), in strips of columns."""
    _, source, columns = planes.shape
    strip = min(strip, columns)
    part = np.empty((source, strip), filter.dtype)
    sums = np.empty((filter.target, strip), filter.dtype)
    for plane, made in zip(planes, out, strict=True):
        for left in range(0, columns, strip):
            count = min(strip, columns - left)
            part[:, :count] = plane[:, left : left + count]
            for block in filter.blocks:
                band = part[block.first : block.last, :count]
                np.matmul(block.matrix, band, out=sums[block.start : block.stop, :count])
            _rounded(sums[:, :count], filter, made[:, left : left + count])
