"""Results of tasks. Coordinates are pixels of the upright picture: (0, 0) is its left upper corner, x runs to the right
and y down, right and bottom edges are exclusive. `image` is the picture's place among those that were given, from 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]  # width, height of an upright picture, in pixels


@dataclass(frozen=True)
class Box:
    """A labelled rectangle; never empty, never beyond its picture."""

    label: str
    left: float
    top: float
    right: float
    bottom: float
    image: int = 0

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of its middle."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom), the order of Pillow's boxes."""
        return self.left, self.top, self.right, self.bottom

    def overlap(self, other: Box) -> float:
        """Intersection over union with another box, 0 to 1; 0 for one of another picture."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        if self.image != other.image or wide <= 0 or high <= 0:
            return 0.0
        return wide * high / (self.width * self.height + other.width * other.height - wide * high)


def to_box(label: str, corners: Sequence[float], scale: float, size: Size, image: int = 0) -> Box | None:
    """The box of (left, top, right, bottom) from 0 to `scale`. Corners in another order are put in order, what lies
    beyond the picture is cut off; None if nothing is left of it. Whether the model saw the whole picture or tiles of
    it, a share of its width and height is the same place."""
    (left, right), (top, bottom) = (
        sorted(min(max(corner / scale, 0.0), 1.0) * side for corner in pair)
        for pair, side in zip((corners[0::2], corners[1::2]), size, strict=True)
    )
    return Box(label, left, top, right, bottom, image) if left < right and top < bottom else None


@dataclass(frozen=True)
class Point:
    """A labelled place."""

    label: str
    x: float
    y: float
    image: int = 0


@dataclass(frozen=True)
class Region:
    """A piece of text in reading order. `label` is its kind ("text", "title", "table" ...); `box` is where it stands,
    or None where the recipe reads text without its layout."""

    label: str
    text: str
    box: Box | None = None
    image: int = 0
