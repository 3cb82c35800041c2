"""Descriptions in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from ..generation.request import GenerationRequest
from .results import Size
from .task import Task, together


@dataclass(frozen=True)
class DescribeTask(Task[str]):
    """A description of all pictures together."""

    max_tokens: ClassVar[int] = 512

    def __post_init__(self) -> None:
        if self.recipe.describe is None:
            self._unknown("description")

    def questions(self, pictures: Iterable[Image.Image]) -> list[GenerationRequest]:
        return [together(list(pictures), self.recipe.describe or "")]

    def result(self, sizes: Sequence[Size], found: Sequence[str]) -> str:
        return found[0].strip()
