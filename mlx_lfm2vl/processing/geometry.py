"""How a picture of a given size is cut into views, and how many image tokens that makes. Integers only, no pixels.

`plan` is the single source of both the pixels (image.py) and the text (prompt.py), so that they cannot disagree. The
numbers are those of transformers 5.23 (`Lfm2VlImageProcessor`) with two deliberate differences, each at sizes where the
reference itself fails: a 1x1 grid counts as not split (there the reference stretches the picture to a tile but counts
the tokens of the smart-resized one), and a strip whose resized form would exceed `max_num_patches` is shortened to fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ..config import ImageProcessorConfig


def round_by_factor(number: float, factor: int) -> int:
    """The multiple of `factor` nearest to `number`; halves go to the even multiple."""
    return round(number / factor) * factor


def smart_resize(
    height: int,
    width: int,
    downsample_factor: int,
    min_image_tokens: int,
    max_image_tokens: int,
    encoder_patch_size: int,
) -> tuple[int, int]:
    """(width, height) in pixels of the picture as a single view, in that order as in the reference.

    Both are multiples of `encoder_patch_size * downsample_factor`; the area is brought into the token budget, keeping
    the aspect ratio as well as the multiples allow. Very long strips can exceed the budget (1x1030 makes 257 tokens).
    """
    cell = encoder_patch_size * downsample_factor
    least, most = min_image_tokens * cell**2, max_image_tokens * cell**2
    high = max(cell, round_by_factor(height, cell))
    wide = max(cell, round_by_factor(width, cell))
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        high = max(cell, math.floor(height / shrink / cell) * cell)
        wide = max(cell, math.floor(width / shrink / cell) * cell)
    elif high * wide < least:
        grow = math.sqrt(least / (height * width))
        high = math.ceil(height * grow / cell) * cell
        wide = math.ceil(width * grow / cell) * cell
    return wide, high


def is_too_large(
    height: int,
    width: int,
    max_image_tokens: int,
    encoder_patch_size: int,
    downsample_factor: int,
    max_pixels_tolerance: float,
) -> bool:
    """Whether the picture exceeds the budget of a single view by more than the tolerance, so that it is tiled."""
    cell = encoder_patch_size * downsample_factor
    high = max(encoder_patch_size, round_by_factor(height, cell))
    wide = max(encoder_patch_size, round_by_factor(width, cell))
    return high * wide > max_image_tokens * cell**2 * max_pixels_tolerance


@lru_cache(maxsize=256)
def target_ratios(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """The grids (columns, rows) of `min_tiles` to `max_tiles` tiles, by number of tiles.

    Grids of equal number come in the order in which CPython iterates over the reference's set of them, and so does the
    same expression here: tuples of integers hash alike on every 64-bit CPython. For the published tile limits this
    inner order decides nothing (tests/test_geometry.py), as no two such grids are neighbours in aspect ratio.
    """
    ratios = {
        (w, h)
        for n in range(min_tiles, max_tiles + 1)
        for w in range(1, n + 1)
        for h in range(1, n + 1)
        if min_tiles <= w * h <= max_tiles
    }
    return tuple(sorted(ratios, key=lambda ratio: ratio[0] * ratio[1]))


def find_closest_aspect_ratio(
    aspect_ratio: float, target_ratios: tuple[tuple[int, int], ...], width: int, height: int, image_size: int
) -> tuple[int, int]:
    """The grid (columns, rows) whose aspect ratio is nearest; of equally near ones the last that the picture's area
    fills by more than half at `image_size` pixels a tile, else the first."""
    best, best_difference = (1, 1), math.inf
    for ratio in target_ratios:
        difference = abs(aspect_ratio - ratio[0] / ratio[1])
        if difference < best_difference:
            best, best_difference = ratio, difference
        elif difference == best_difference and width * height > 0.5 * image_size**2 * ratio[0] * ratio[1]:
            best = ratio
    return best


def grid_layout(height: int, width: int, min_tiles: int, max_tiles: int, tile_size: int) -> tuple[int, int]:
    """(columns, rows) of the tile grid for a picture that is too large for one view."""
    return find_closest_aspect_ratio(width / height, target_ratios(min_tiles, max_tiles), width, height, tile_size)


@dataclass(frozen=True)
class ViewPlan:
    """How one picture is seen. Sizes in pixels. `rows == cols == 1` means one view, the picture resized to
    `height` x `width`; else `rows * cols` tiles of `tile_size` squared, row by row, and if `thumbnail` the resized
    picture last."""

    rows: int
    cols: int
    height: int
    width: int
    tile_size: int
    thumbnail: bool
    patch_size: int
    downsample_factor: int

    @property
    def tiled(self) -> bool:
        return self.rows * self.cols > 1

    @property
    def spatial_shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of patches of each view, in the order of the views."""
        whole = (self.height // self.patch_size, self.width // self.patch_size)
        if not self.tiled:
            return (whole,)
        side = self.tile_size // self.patch_size
        return ((side, side),) * (self.rows * self.cols) + ((whole,) if self.thumbnail else ())

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens of a tile."""
        return (self.tile_size // (self.patch_size * self.downsample_factor)) ** 2

    @property
    def tokens_for_image(self) -> int:
        """Image tokens of the resized picture, be it the only view or the thumbnail."""
        cell = self.patch_size * self.downsample_factor
        return (self.height // cell) * (self.width // cell)

    @property
    def tokens(self) -> int:
        """Image tokens of the picture: the features that the model makes of all its views, without markers."""
        if not self.tiled:
            return self.tokens_for_image
        return self.rows * self.cols * self.tokens_per_tile + (self.tokens_for_image if self.thumbnail else 0)


@lru_cache(maxsize=4096)
def plan(height: int, width: int, config: ImageProcessorConfig) -> ViewPlan:
    """The views of a picture of `height` x `width` pixels (both at least 1)."""
    factor, patch = config.downsample_factor, config.encoder_patch_size
    cols = rows = 1
    splitting = config.do_image_splitting and config.max_tiles > 1
    if splitting and is_too_large(height, width, config.max_image_tokens, patch, factor, config.max_pixels_tolerance):
        cols, rows = grid_layout(height, width, config.min_tiles, config.max_tiles, config.tile_size)
    wide, high = smart_resize(height, width, factor, config.min_image_tokens, config.max_image_tokens, patch)
    if config.use_thumbnail or cols * rows == 1:  # else no view has this size
        high, wide = _fit(high, wide, patch * factor, config.max_num_patches // factor**2)
    return ViewPlan(rows, cols, high, wide, config.tile_size, config.use_thumbnail, patch, factor)


def _fit(height: int, width: int, cell: int, most: int) -> tuple[int, int]:
    """Shortens the longer side until there are at most `most` cells, which is what a view is padded to."""
    rows, cols = height // cell, width // cell
    if rows * cols <= most:
        return height, width
    return (most // cols * cell, width) if rows > cols else (height, most // rows * cell)
