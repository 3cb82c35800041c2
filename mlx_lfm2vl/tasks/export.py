"""Results in the forms of other programs: plain values for JSON, COCO's JSON, and rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import OptionError
from .results import Box, Point, Region, Size

COLUMNS = ("image", "label", "left", "top", "right", "bottom")


def plain(result: Any) -> Any:
    """A task's result, and what is around it, as values that JSON has; coordinates in hundredths of a pixel."""
    if isinstance(result, (Box, Point, Region)):
        fields = vars(result).items()
        return {name: _rounded(value) if isinstance(value, float) else plain(value) for name, value in fields}
    if isinstance(result, dict):
        return {key: plain(value) for key, value in result.items()}
    return [plain(each) for each in result] if isinstance(result, list) else result


def to_coco(boxes: Sequence[Box], names: Sequence[str], sizes: Sequence[Size]) -> dict[str, Any]:
    """The object of a COCO file (cocodataset.org, "object detection"): `images`, `annotations` with `bbox` as [left,
    top, width, height], and `categories`, the labels in their alphabetical order. Ids count from 1.

    Args:
        boxes: those of all pictures.
        names: of the pictures.
        sizes: their widths and heights, upright.

    Raises:
        OptionError: the pictures are not those of the boxes.
    """
    _check(boxes, names)
    if len(names) != len(sizes):
        raise OptionError(f"there are {len(names)} names and {len(sizes)} sizes of pictures")
    categories = {label: number for number, label in enumerate(sorted({box.label for box in boxes}), 1)}
    return {
        "images": [
            {"id": number, "file_name": name, "width": size[0], "height": size[1]}
            for number, (name, size) in enumerate(zip(names, sizes, strict=True), 1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": box.image + 1,
                "category_id": categories[box.label],
                "bbox": [_rounded(value) for value in (box.left, box.top, box.width, box.height)],
                "area": _rounded(box.width * box.height),
                "iscrowd": 0,
            }
            for number, box in enumerate(boxes, 1)
        ],
        "categories": [{"id": number, "name": label} for label, number in categories.items()],
    }


def to_rows(boxes: Sequence[Box], names: Sequence[str]) -> list[list[Any]]:
    """A row a box, of the values that `COLUMNS` names. Raises `OptionError` as `to_coco`."""
    _check(boxes, names)
    return [[names[box.image], box.label, *map(_rounded, box.edges)] for box in boxes]


def _check(boxes: Sequence[Box], names: Sequence[str]) -> None:
    if beyond := [box for box in boxes if not 0 <= box.image < len(names)]:
        raise OptionError(f"a box is of picture {beyond[0].image}, but there are {len(names)}")


def _rounded(value: float) -> float:
    """Hundredths of a pixel: more is noise."""
    return round(value, 2)
