"""`ViewPlan`: the views that a picture becomes, and the image tokens that they make; for every family."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ViewPlan:
    """The views of one picture.

    Attributes:
        rows, cols: the grid of tiles; both are 1 where the picture is one view.
        tiled: whether it is cut into tiles.
        height, width: in pixels, of the resized picture: the only view, or the thumbnail.
        tile_size: pixels of a side of a tile.
        thumbnail: whether the resized picture follows the tiles, which come row by row.
        spatial_shapes: (rows, columns) of patches of each view, in the order of the views.
        tokens_per_tile: image tokens of a tile.
        tokens_for_image: image tokens of the resized picture.
        tokens: image tokens of all views: the features that the model makes of them, without markers.
    """

    rows: int
    cols: int
    tiled: bool
    height: int
    width: int
    tile_size: int
    thumbnail: bool
    spatial_shapes: tuple[tuple[int, int], ...]
    tokens_per_tile: int
    tokens_for_image: int
    tokens: int


@dataclass(frozen=True)
class VideoPlan(ViewPlan):
    """The views of a video, one for each group of frames that become one; `times` are theirs, in seconds."""

    times: tuple[float, ...] = ()


def within(
    size: tuple[int, int],
    rounded: tuple[int, int],
    cell: int,
    least: int,
    most: int,
    frames: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """The `rounded` size (height, width) of a picture or of a video's frames if its area is between the bounds, else
    `size` scaled to the nearer one, in multiples of `cell`, as near its aspect ratio as they allow. `frames`: of so
    many, and of so many rounded, the areas count together."""
    (height, width), (high, wide), (count, long) = size, rounded, frames
    if long * high * wide > most:
        shrink = math.sqrt(count * height * width / most)
        high, wide = (max(cell, math.floor(side / shrink / cell) * cell) for side in size)
    elif long * high * wide < least:
        grow = math.sqrt(least / (count * height * width))
        high, wide = (math.ceil(side * grow / cell) * cell for side in size)
    return high, wide
