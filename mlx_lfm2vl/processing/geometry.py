"""The views that a picture of a given size is cut into, and the image tokens that they make. Integers only, no pixels.

`plan` is the single source of both the pixels (image_processor.py) and the text (prompt.py), so that they cannot
disagree. The numbers are those of transformers 5.23 (`Lfm2VlImageProcessor`) with two deliberate differences, each at
sizes where the reference itself fails: a 1x1 grid counts as not split (there the reference stretches the picture to a
tile but counts the tokens of the smart-resized one), and a strip whose resized form would exceed `max_num_patches` is
shortened to fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from ..config import ImageConfig, ImageProcessorConfig, Lfm3VlImageProcessorConfig
from . import lfm3_geometry
from .view_plan import ViewPlan, within


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
    high, wide = within((height, width), (high, wide), cell, least, most)
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


def tiles_and_thumbnail(height: int, width: int, config: ImageProcessorConfig) -> ViewPlan:
    """`plan` for LFM2-VL."""
    factor, patch, tile = config.downsample_factor, config.encoder_patch_size, config.tile_size
    cell, cols, rows = factor * patch, 1, 1
    splitting = config.do_image_splitting and config.max_tiles > 1
    if splitting and is_too_large(height, width, config.max_image_tokens, patch, factor, config.max_pixels_tolerance):
        cols, rows = grid_layout(height, width, config.min_tiles, config.max_tiles, tile)
    wide, high = smart_resize(height, width, factor, config.min_image_tokens, config.max_image_tokens, patch)
    tiles, thumbnail, most = rows * cols, config.use_thumbnail, config.max_num_patches // factor**2
    if (thumbnail or tiles == 1) and (high // cell) * (wide // cell) > most:  # else no view has this size, or it fits
        if high > wide:
            high = most // (wide // cell) * cell
        else:
            wide = most // (high // cell) * cell
    whole, per_image, per_tile = (high // patch, wide // patch), (high // cell) * (wide // cell), (tile // cell) ** 2
    views, tokens = [whole], per_image
    if tiles > 1:
        views = [(tile // patch, tile // patch)] * tiles + ([whole] if thumbnail else [])
        tokens = tiles * per_tile + (per_image if thumbnail else 0)
    return ViewPlan(rows, cols, tiles > 1, high, wide, tile, thumbnail, tuple(views), per_tile, per_image, tokens)


PLANS: dict[type, Callable[..., ViewPlan]] = {
    ImageProcessorConfig: tiles_and_thumbnail,
    Lfm3VlImageProcessorConfig: lfm3_geometry.plan,
}


@lru_cache(maxsize=4096)
def plan(height: int, width: int, config: ImageConfig) -> ViewPlan:
    """The views of a picture of `height` x `width` pixels (both at least 1). Raises `ImageError` for a picture that the
    policy's family does not take."""
    return PLANS[type(config)](height, width, config)
