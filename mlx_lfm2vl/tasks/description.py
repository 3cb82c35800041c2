"""Descriptions in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from ..generation.request import GenerationRequest
from ..generation.response import Completion
from .task import Task, texts, together


@dataclass(frozen=True)
class DescribeTask(Task[str]):
    """A description of all pictures together."""

    max_tokens: ClassVar[int] = 512

    def __post_init__(self) -> None:
        if self.recipe.describe is None:
            self._unknown("description")

    def questions(self, pictures: list[Image.Image]) -> list[GenerationRequest]:
        return [together(pictures, self.recipe.describe or "")]

    def parse(self, requests: Sequence[GenerationRequest], answers: Sequence[str | Completion]) -> str:
        return texts(requests, answers)[0].strip()
