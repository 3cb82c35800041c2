"""Resizing of 8-bit pictures with the reference's arithmetic: torchvision's antialiased bilinear and bicubic for uint8.

A pass across, then a pass down, each rounded to 8 bits; an axis that keeps its length is left alone. The weights of a
pass are 16-bit fixed point, at the highest precision (at most 22 bits) at which the largest of them fits. Sums are
matrix products over blocks of outputs, in float32 while their whole numbers fit it (up to 2**24), where that helps with
levels from -128 to 127, and in float64 where a picture shrinks so far that they do not: the result is exact either way.
Products are small, so that OpenBLAS does each on the calling thread: its own threads would wait for each other longer
than they work. Large pictures are shared among threads of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import as_strided
from PIL import Image

from ..threads import parallel_for

BLOCK = 16  # outputs of one matrix product; its inputs are a band, so small blocks waste little
GROUP = 12  # products of one call, during which other threads have Python's lock
PRODUCT = 1 << 18  # multiplications of one product at most; OpenBLAS spreads larger ones over threads if it may
LARGE = 1 << 20  # numbers of a plane that are worth several threads
STRIP = 1 << 19  # pixels that a thread takes from a picture at a time
SHARE = 64  # rows or columns of a large picture that a thread gets at least


def resize(picture: Image.Image, sizes: Sequence[tuple[int, int]], resample: int) -> list[np.ndarray]:
    """A picture in each of `sizes`.

    Args:
        picture: of mode RGB. A few of its rows are taken at a time, so that no second copy of a large one is held.
        sizes: (height, width) of each result.
        resample: 2 is bilinear, 3 bicubic (Pillow's numbers).

    Returns:
        An array (height, width, 3) uint8 of each size.
    """
    source, rows = picture.size
    filters = [_weights(source, width, resample) if width != source else None for _, width in sizes]
    passed = [np.empty((3, rows, width), np.uint8) for _, width in sizes]
    strip = max(1, min(STRIP // source, *(filter.strip for filter in filters if filter is not None), rows))

    def across(start: int, end: int) -> None:
        works = [None if filter is None else _Across(filter, source, strip) for filter in filters]
        for top in range(start, end, strip):
            bottom = min(top + strip, end)
            bands = picture.crop((0, top, source, bottom)).split()  # which Pillow hands over faster than its pixels
            for channel, plane in enumerate(map(np.asarray, bands)):
                for work, out in zip(works, passed, strict=True):
                    if work is None:
                        out[channel, top:bottom] = plane
                    else:
                        work(plane, out[channel, top:bottom])

    _shared(across, rows, rows * source)
    pairs = zip(passed, sizes, strict=True)
    made = [planes if height == rows else _down(planes, height, resample) for planes, (height, _) in pairs]
    return [planes.transpose(1, 2, 0) for planes in made]


def _shared(work: Callable[[int, int], None], units: int, numbers: int) -> None:
    """`work` of all units, by several threads if a plane has so many numbers that it is worth them."""
    if numbers >= LARGE:
        parallel_for(work, units, SHARE)
    else:
        work(0, units)


@dataclass(frozen=True)
class _Group:
    """Neighbouring blocks of outputs, of equally many each, which together are the slice `outputs`: block n comes from
    as many inputs as `matrices` (blocks, outputs, inputs) has, from `first + n * stride` on."""

    outputs: slice
    first: int
    stride: int
    matrices: np.ndarray


@dataclass(frozen=True)
class _Pass:
    """The filter of one axis; `dtype` is one in which sums give exact levels, if `centred` those of levels less 128.
    `shift` (target,) is added to sums before what is behind the point is cut off. `overshoots`: they may leave the
    levels. `strip`: how many rows or columns a product takes. Inputs up to `reach` are multiplied, if only by zero."""

    target: int
    dtype: type[np.floating]
    centred: bool
    shift: np.ndarray
    overshoots: bool
    strip: int
    reach: int
    groups: tuple[_Group, ...]


def _levels(pixels: np.ndarray, filter: _Pass) -> np.ndarray:
    """8-bit levels as the filter takes them."""
    return (pixels ^ 128).view(np.int8) if filter.centred else pixels


def _rounded(sums: np.ndarray, filter: _Pass, shift: np.ndarray, out: np.ndarray) -> None:
    """Sums, which are overwritten, to 8 bits: halves upwards. `shift`: the filter's, as it lies beside them."""
    sums += shift
    if filter.overshoots:
        low, high = (-128, 127) if filter.centred else (0, 255)
        np.clip(sums, low, high, out=sums)
    if filter.centred:
        np.floor(sums, out=sums)
        np.copyto(out.view(np.int8), sums, casting="unsafe")
        out ^= 128
    else:
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
    weights = np.maximum(1.0 - distance, 0.0) if resample == 2 else _cubic(distance)
    weights = np.where(places < last[:, None], weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    precision, largest = 0, weights.max()
    while precision < 22 and int(0.5 + largest * 2 ** (precision + 1)) < 2**15:
        precision += 1
    fixed = np.trunc(weights * 2**precision + np.copysign(0.5, weights))
    dtype, centred = _arithmetic(fixed, precision)
    fixed *= 2.0**-precision  # exact, and the sums are in levels
    shift = np.full(target, 0.5, dtype)
    if centred:
        shift += 128 * (fixed.sum(axis=1) - 1).astype(dtype)  # what rounded weights are more than 1
    overshoots = bool(fixed.min() < 0 or 255 * fixed.sum(axis=1).max() + 0.5 >= 256)
    groups, reach, largest_product = [], 0, 1
    whole = target - target % BLOCK
    # the first block's inputs are cut off at the edge: with others it would widen theirs
    edges = sorted({0, *range(BLOCK, whole, GROUP * BLOCK), whole, target})
    for start, end in pairwise(edges):
        height = min(BLOCK, end - start)
        starts = np.arange(start, end, height)
        steps = first[starts[1:]] - first[start]
        stride = int((steps // np.arange(1, len(starts))).min(initial=source))
        lows = first[start] + stride * np.arange(len(starts))
        ends = last[starts[:, None] + np.arange(height)].max(axis=1)
        matrices = np.zeros((len(starts), height, int((ends - lows).max())), dtype)
        for output in range(start, start + len(starts) * height):
            block, row = divmod(output - start, height)
            at, count = int(first[output] - lows[block]), int(last[output] - first[output])
            matrices[block, row, at : at + count] = fixed[output, :count]
        groups.append(_Group(slice(start, start + len(starts) * height), int(first[start]), stride, matrices))
        reach = max(reach, int(lows[-1]) + matrices.shape[2])
        largest_product = max(largest_product, matrices[0].size)
    strip = max(1, PRODUCT // largest_product)
    return _Pass(target, dtype, centred, shift, overshoots, strip, reach, tuple(groups))


def _arithmetic(fixed: np.ndarray, precision: int) -> tuple[type[np.floating], bool]:
    """In what the sums of such whole weights (target, taps) give exact levels: the type, and whether of levels less
    128."""
    total, half = np.abs(fixed).sum(axis=1).max(), 2 ** (precision - 1)
    if 255 * total + half < 2**24:
        return np.float32, False
    # Weights that should add up to 2**17 may, each rounded, come to a little more. Without negative ones, a sum of some
    # taps below -2**24 then means that their levels come to less than what is over, and those of the other taps, whose
    # weights are at most over / 128, to less than twice that. So the output is black, and is so too when a unit or two
    # are lost with every tap.
    over = 128 * total - 2**24
    if over <= 0 or (fixed.min() >= 0 and 3 * over + 2 * fixed.shape[1] < half):
        return np.float32, True
    return np.float64, False


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2 (Keys 1981)."""
    a, x = -0.5, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


class _Across:
    """A pass over rows, at most so many at a time."""

    def __init__(self, filter: _Pass, source: int, rows: int):
        self.filter, self.source = filter, source
        self.part = np.zeros((rows, max(source, filter.reach)), filter.dtype)
        self.sums = np.empty((rows, filter.target), filter.dtype)

    def __call__(self, plane: np.ndarray, out: np.ndarray) -> None:
        """(rows, source) to `out` (rows, target)."""
        rows, filter = len(plane), self.filter
        part, sums = self.part[:rows], self.sums[:rows]
        down, right = part.strides
        part[:, : self.source] = _levels(plane, filter)
        for group in filter.groups:
            blocks, height, inputs = group.matrices.shape
            bands = as_strided(part[:, group.first :], (blocks, rows, inputs), (group.stride * right, down, right))
            into = sums[:, group.outputs].reshape(rows, blocks, height).transpose(1, 0, 2)
            np.matmul(bands, group.matrices.transpose(0, 2, 1), out=into)
        _rounded(sums, filter, filter.shift, out)


def _down(planes: np.ndarray, height: int, resample: int) -> np.ndarray:
    """(channels, source, columns) to (channels, height, columns), in strips of columns."""
    channels, source, columns = planes.shape
    filter = _weights(source, height, resample)
    out = np.empty((channels, height, columns), np.uint8)

    def down(start: int, end: int) -> None:
        strip = min(filter.strip, end - start)
        part = np.zeros((max(source, filter.reach), strip), filter.dtype)
        sums = np.empty((height, strip), filter.dtype)
        below, right = part.strides
        for plane, made in zip(planes, out, strict=True):
            for left in range(start, end, strip):
                count = min(strip, end - left)
                part[:source, :count] = _levels(plane[:, left : left + count], filter)
                for group in filter.groups:
                    blocks, rows, inputs = group.matrices.shape
                    bands = as_strided(
                        part[group.first :], (blocks, inputs, count), (group.stride * below, below, right)
                    )
                    into = sums[group.outputs].reshape(blocks, rows, strip)[:, :, :count]
                    np.matmul(group.matrices, bands, out=into)
                _rounded(sums[:, :count], filter, filter.shift[:, None], made[:, left : left + count])

    _shared(down, columns, source * columns)
    return out
