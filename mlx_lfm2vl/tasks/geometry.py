"""Coordinates of a recipe to pixels. A view of a picture is the whole of it at another size, or tiles that a
grid cuts from it, so a share of its width and height is the same place in each of them."""

from __future__ import annotations

from collections.abc import Sequence

from .results import Box

Size = tuple[int, int]  # width, height of an upright picture, in pixels


def to_box(label: str, corners: Sequence[float], scale: float, size: Size, image: int = 0) -> Box | None:
    """The box of (left, top, right, bottom) from 0 to `scale`. Corners in another order are put in order, what lies
    beyond the picture is cut off; None if nothing is left of it."""
    (left, right), (top, bottom) = (
        sorted(min(max(corner / scale, 0.0), 1.0) * side for corner in pair)
        for pair, side in zip((corners[0::2], corners[1::2]), size, strict=True)
    )
    return Box(label, left, top, right, bottom, image) if left < right and top < bottom else None
