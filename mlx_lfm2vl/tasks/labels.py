"""Where the labels of boxes go: beside or in their box, within the picture, not over each other while there is room."""

from __future__ import annotations

from collections.abc import Sequence

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def place_labels(
    size: tuple[int, int], boxes: Sequence[Rectangle], plates: Sequence[tuple[int, int]], beside: bool = False
) -> list[Rectangle]:
    """A place for each label's plate.

    Args:
        size: width and height of the picture.
        boxes: what is labelled, in the picture.
        plates: width and height of each label's plate, at most those of the picture.
        beside: whether a plate must not cover what it labels, as of points.

    Returns:
        A rectangle for each, within the picture: one that covers none of the plates before it, or as little as may be;
        rather at its box than far from it, and rather on few other boxes.
    """
    placed: list[Rectangle] = []
    for number, (box, plate) in enumerate(zip(boxes, plates, strict=True)):
        near = [_within(size, place) for place in _at_box(box, plate)]
        own = [box] if beside else []
        free = [place for place in near if not _covered(place, [*placed, *own])]
        if free:
            others = [*boxes[:number], *boxes[number + 1 :]]
            placed.append(min(free, key=lambda place, others=others: _covered(place, others)))  # type: ignore[misc]
        else:
            places = [*near, *(_within(size, place) for place in _beside(size, box, plate))]
            placed.append(min(places, key=lambda place: (_covered(place, own), _covered(place, placed))))
    return placed


def _at_box(box: Rectangle, plate: tuple[int, int]) -> list[Rectangle]:
    """Places on the corners of a box, the best first: above it, below it, within it, beside it."""
    left, top, right, bottom = box
    width, height = plate
    rows = (top - height, bottom, top, bottom - height)
    corners = [*((x, y) for y in rows for x in (left, right - width)), (right, top), (left - width, top)]
    return [(x, y, x + width, y + height) for x, y in corners]


def _beside(size: tuple[int, int], box: Rectangle, plate: tuple[int, int]) -> list[Rectangle]:
    """Places at all heights of the picture beside and above or below a box, the nearest first."""
    left, top, right, _ = box
    width, height = plate
    rows = sorted(range(0, size[1] - height + 1, height), key=lambda y: abs(y - top))
    return [(x, y, x + width, y + height) for y in rows for x in (left, right - width, right, left - width)]


def _within(size: tuple[int, int], place: Rectangle) -> Rectangle:
    """The place, moved into the picture."""
    left, top, right, bottom = place
    width, height = right - left, bottom - top
    left, top = min(max(left, 0), size[0] - width), min(max(top, 0), size[1] - height)
    return left, top, left + width, top + height


def _covered(place: Rectangle, others: Sequence[Rectangle]) -> int:
    """The area of other rectangles that a place covers."""
    area = 0
    for other in others:
        wide = min(place[2], other[2]) - max(place[0], other[0])
        high = min(place[3], other[3]) - max(place[1], other[1])
        area += max(0, wide) * max(0, high)
    return area
