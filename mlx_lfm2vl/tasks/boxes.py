"""Boxes and points of things that are named.

Each picture is asked about by itself. Of an answer, items in the recipe's form count, each once. Items that cannot be
read, or have nothing in the picture, are left out with an `AnswerWarning`; if that leaves no item, it is an
`AnswerError`. An answer that says that there is nothing is an empty list.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from ..errors import AnswerError, AnswerWarning, OptionError
from ..generation.options import GenerationOptions
from ..generation.request import GenerationRequest
from . import answer_json
from .forms import box_form
from .recipes import BoxRecipe
from .results import Box, Point, Size, to_box
from .task import Result, Task


@dataclass(frozen=True)
class _BoxTask(Task[Result]):
    max_tokens: ClassVar[int] = 2048

    what: str

    def __post_init__(self) -> None:
        if not isinstance(self.what, str) or not self.what.strip():
            raise OptionError(f"what is {self.what!r}, expected the name of something in the picture")
        object.__setattr__(self, "what", self.what.strip())
        self._boxes()

    def _boxes(self) -> BoxRecipe:
        if self.recipe.boxes is None:
            self._unknown("boxes")
        return self.recipe.boxes

    def questions(self, pictures: Iterable[Image.Image]) -> Iterator[GenerationRequest]:
        form = self._boxes()
        prompt = form.prompt.replace("{what}", self.what)
        options = GenerationOptions(response_format=box_form(form))
        return (GenerationRequest(prompt, [picture], form.system, options=options) for picture in pictures)


@dataclass(frozen=True)
class DetectTask(_BoxTask[list[Box]]):
    """The boxes of all that `what` names, such as "red cars"."""

    def result(self, sizes: Sequence[Size], found: Sequence[str]) -> list[Box]:
        boxes: list[Box] = []
        for image, (size, text) in enumerate(zip(sizes, found, strict=True)):
            boxes += parse_boxes(text, self._boxes(), size, image, self.what)
        return boxes


@dataclass(frozen=True)
class PointTask(_BoxTask[list[Point]]):
    """The middles of the boxes of all that `what` names. No card of the models has a recipe for points."""

    def result(self, sizes: Sequence[Size], found: Sequence[str]) -> list[Point]:
        boxes = DetectTask(self.recipe, self.what).result(sizes, found)
        return [Point(box.label, *box.center, box.image) for box in boxes]


def parse_boxes(text: str, form: BoxRecipe, size: Size, image: int = 0, label: str = "") -> list[Box]:
    """The boxes of an answer about one picture, of which an `AnswerWarning` says what was left out.

    Args:
        text: the answer.
        form: how it is written.
        size: width and height of the upright picture, in pixels.
        image: the place that the boxes get.
        label: of a box that the answer gives none.

    Raises:
        AnswerError: the answer has no box that can be read, and does not say that there is none.
    """
    found: dict[Box, None] = {}
    wrong: list[str] = []
    items = answer_json.items(text)
    try:
        for number, item in enumerate(items):
            box = _read(item, form, size, image, label)
            if isinstance(box, Box):
                found[box] = None
            else:
                wrong.append(f"answer, item {number}: {box}")
    except AnswerError as error:
        wrong.append(str(error))
    if wrong and not found:
        raise AnswerError(wrong[0])
    for message in wrong:
        warnings.warn(f"{message}; left out", AnswerWarning, stacklevel=2)
    return list(found)


def _read(item: Any, form: BoxRecipe, size: Size, image: int, label: str) -> Box | str:
    """The box of an item, or what is wrong with it."""
    if not isinstance(item, dict):
        return f"is no object with {form.box!r}"
    corners = item.get(form.box)
    if not isinstance(corners, list) or len(corners) != 4 or not all(map(_is_number, corners)):
        return f"has no four numbers as {form.box!r}"
    if form.image is not None and item.get(form.image, 0) != 0:
        return f"is of another picture ({form.image} {str(item[form.image])[:20]})"
    given = item.get("label")
    name = given.strip() if isinstance(given, str) and given.strip() else label
    return to_box(name, corners, form.scale, size, image) or "has nothing in the picture"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e9 and math.isfinite(value)
