"""Descriptions in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from ..generation.request import GenerationRequest
from .task import Task, together


@dataclass(frozen=True)
class DescribeTask(Task[str]):
    """A description of all pictures together."""

    max_tokens: ClassVar[int] = 512

    def __post_init__(self) -> None:
        if self.recipe.describe is None:
            self._unknown("description")

    def questions(self, pictures: list[Image.Image]) -> list[GenerationRequest]:
        return [together(pictures, self.recipe.describe or "")]

    def result(self, requests: Sequence[GenerationRequest], found: Sequence[str]) -> str:
        return found[0].strip()
