"""The text of pictures, with its layout where the recipe has one. Each picture is asked about by itself."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from ..errors import AnswerError, AnswerWarning
from ..generation.options import GenerationOptions
from ..generation.request import GenerationRequest
from .forms import layout_form
from .recipes import LayoutRecipe
from .results import Region, Size, to_box
from .task import Task

_NUMBER = r" *(-?\d{1,9}) *"
_HEADER = re.compile(
    rf"^[ \t]*image_index=(\d{{1,9}}) +<?(\w{{1,64}})>? *\[{','.join([_NUMBER] * 4)}\][ \t]*$",
    re.M,
)


@dataclass(frozen=True)
class ReadTask(Task[list[Region]]):
    """The text of pictures in reading order: regions with their kinds and boxes where the recipe has a layout, else one
    region a picture without a box."""

    max_tokens: ClassVar[int] = 4096

    def __post_init__(self) -> None:
        if self.recipe.layout is None and self.recipe.read is None:
            self._unknown("reading")

    def questions(self, pictures: Iterable[Image.Image]) -> Iterator[GenerationRequest]:
        layout = self.recipe.layout
        if layout is None:
            return (GenerationRequest(self.recipe.read or "", [picture]) for picture in pictures)
        options = GenerationOptions(response_format=layout_form(layout))
        return (GenerationRequest(layout.prompt, [picture], options=options) for picture in pictures)

    def result(self, sizes: Sequence[Size], found: Sequence[str]) -> list[Region]:
        regions: list[Region] = []
        for image, (size, text) in enumerate(zip(sizes, found, strict=True)):
            if self.recipe.layout is not None:
                regions += parse_layout(text, self.recipe.layout, size, image)
            elif text.strip():
                regions.append(Region("text", text.strip(), None, image))
        return regions


def parse_layout(text: str, form: LayoutRecipe, size: Size, image: int = 0) -> list[Region]:
    """The regions of an answer about one picture. An `AnswerWarning` says what was left out: text before the first
    region, and regions of another picture. A region whose box has nothing in the picture keeps its text, without a box.

    Args:
        text: the answer; an empty one has no regions.
        form: how it is written.
        size: width and height of the upright picture, in pixels.
        image: the place that the regions get.

    Raises:
        AnswerError: there is text, and no region in it.
    """
    headers = list(_HEADER.finditer(text))
    before = text[: headers[0].start()] if headers else text
    if before.strip() and not headers:
        raise AnswerError(f"answer, character 0: expected a line 'image_index=...', found {before.strip()[:20]!r}")
    regions: list[Region] = []
    wrong = [f"text before the first region ({before.strip()[:20]!r})"] if before.strip() else []
    ends = [*(header.start() for header in headers[1:]), len(text)]
    for header, end in zip(headers, ends, strict=False):
        content = text[header.end() : end].strip()
        index, label, *corners = header.groups()
        if int(index) != 0:
            wrong.append(f"a region of another picture (image_index={index})")
            continue
        box = to_box(label, [int(corner) for corner in corners], form.scale, size, image)
        regions.append(Region(label, content, box, image))
    if wrong and not regions:
        raise AnswerError(f"answer: has only {wrong[-1]}")
    for each in wrong:
        warnings.warn(f"answer: {each}; left out", AnswerWarning, stacklevel=2)
    return regions
