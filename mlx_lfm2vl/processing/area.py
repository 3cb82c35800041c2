"""The size of a picture or of a video's frames whose area is brought between two bounds, for every family."""

from __future__ import annotations

import math


def within(
    size: tuple[int, int],
    rounded: tuple[int, int],
    cell: int,
    least: int,
    most: int,
    frames: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """The `rounded` size (height, width) if its area is between the bounds, else `size` scaled to the nearer one, in
    multiples of `cell`, as near its aspect ratio as they allow. `frames`: of so many, and of so many rounded, the areas
    count together."""
    (height, width), (high, wide), (count, long) = size, rounded, frames
    if long * high * wide > most:
        shrink = math.sqrt(count * height * width / most)
        high, wide = (max(cell, math.floor(side / shrink / cell) * cell) for side in size)
    elif long * high * wide < least:
        grow = math.sqrt(least / (count * height * width))
        high, wide = (math.ceil(side * grow / cell) * cell for side in size)
    return high, wide
