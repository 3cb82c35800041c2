"""The size that a picture has for LFM3-VL: one view, of nearly its own size. Integers only, no pixels.

The numbers are those of transformers 5.23 (`Qwen2VLImageProcessor`).
"""

from __future__ import annotations

import math

from ..config import Lfm3VlImageProcessorConfig
from ..errors import ImageError
from .view_plan import ViewPlan

LONGEST = 200  # times as long as wide


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in pixels of the resized picture, in that order as in the reference.

    Both are multiples of `factor`; the area is brought between the bounds, keeping the aspect ratio as well as the
    multiples allow. Raises `ImageError` for a picture that is more than `LONGEST` times as long as wide.
    """
    if max(height, width) > LONGEST * min(height, width):
        raise ImageError(
            f"a picture of {width}x{height} pixels is more than {LONGEST} times as long as wide, which the model does "
            "not take; crop it"
        )
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return high, wide


def plan(height: int, width: int, config: Lfm3VlImageProcessorConfig) -> ViewPlan:
    """The view of a picture of `height` x `width` pixels (both at least 1)."""
    high, wide = smart_resize(height, width, config.cell, config.min_pixels, config.max_pixels)
    return of_size(high, wide, config)


def of_size(height: int, width: int, config: Lfm3VlImageProcessorConfig, views: int = 1) -> ViewPlan:
    """The plan of so many views of that size in pixels, multiples of `config.cell`."""
    grid = (height // config.patch_size, width // config.patch_size)
    tokens = (height // config.cell) * (width // config.cell)
    return ViewPlan(1, 1, False, height, width, 0, False, (grid,) * views, 0, tokens, views * tokens)
