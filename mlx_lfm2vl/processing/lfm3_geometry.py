"""The sizes that pictures and videos have for LFM3-VL, near their own. Numbers only, no pixels.

The numbers are those of transformers 5.23 (`Qwen2VLImageProcessor`, `Qwen3VLVideoProcessor`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Lfm3VlImageProcessorConfig, Lfm3VlVideoProcessorConfig
from ..errors import ImageError
from .view_plan import VideoPlan, ViewPlan, within

LONGEST = 200  # times as long as wide


def check_shape(height: int, width: int) -> None:
    """Raises `ImageError` for a picture that is more than `LONGEST` times as long as wide."""
    if max(height, width) > LONGEST * min(height, width):
        raise ImageError(
            f"a picture of {width}x{height} pixels is more than {LONGEST} times as long as wide, which the model does "
            "not take; crop it"
        )


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in pixels of the resized picture, in that order as in the reference.

    Both are multiples of `factor`; the area is brought between the bounds, keeping the aspect ratio as well as the
    multiples allow. Raises `ImageError` for a picture that is more than `LONGEST` times as long as wide.
    """
    check_shape(height, width)
    rounded = round(height / factor) * factor, round(width / factor) * factor
    return within((height, width), rounded, factor, min_pixels, max_pixels)


def plan(height: int, width: int, config: Lfm3VlImageProcessorConfig) -> ViewPlan:
    """The view of a picture of `height` x `width` pixels (both at least 1)."""
    high, wide = smart_resize(height, width, config.cell, config.min_pixels, config.max_pixels)
    grid = (high // config.patch_size, wide // config.patch_size)
    tokens = (high // config.cell) * (wide // config.cell)
    return ViewPlan(1, 1, False, high, wide, 0, False, (grid,), 0, tokens, tokens)


def video_size(frames: int, height: int, width: int, config: Lfm3VlVideoProcessorConfig) -> tuple[int, int]:
    """(height, width) in pixels of the resized frames of a video, of which so many are seen (`Qwen3VLVideoProcessor`).
    Raises `ImageError`."""
    least, most, cell, group = config.min_pixels, config.max_pixels, config.cell, config.temporal_patch_size
    if config.cap_pixels_per_frame:
        share = min(config.max_video_tokens * cell**2, most // frames)
        most = max(share, int(least * 1.05)) * frames
    if height < cell or width < cell:
        scale = max(cell / height, cell / width)
        height, width = int(height * scale), int(width * scale)
    check_shape(height, width)
    high, wide, long = (round(side / unit) * unit for side, unit in ((height, cell), (width, cell), (frames, group)))
    return within((height, width), (high, wide), cell, least, most, (frames, long))


def video_plan(moments: Sequence[float], height: int, width: int, config: Lfm3VlVideoProcessorConfig) -> VideoPlan:
    """The views of a video whose frames of these moments, in seconds, are seen. Raises `ImageError`."""
    group = config.temporal_patch_size
    high, wide = video_size(len(moments), height, width, config)
    padded = [*moments, *[moments[-1]] * (-len(moments) % group)]
    ends = zip(padded[::group], padded[group - 1 :: group], strict=True)
    times = tuple((first + last) / 2 for first, last in ends)
    grid = (high // config.patch_size, wide // config.patch_size)
    tokens, views = (high // config.cell) * (wide // config.cell), len(times)
    return VideoPlan(*(1, 1, False, high, wide, 0, False, (grid,) * views, 0, tokens, views * tokens), times)
