"""Processor of a text model: tokenizer and chat template; pictures and videos are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..errors import ImageError
from .batch_feature import BatchFeature
from .fetch import SourcePolicy
from .image_processor import Lfm2VlImageProcessor
from .load_image import flatten
from .processor import Lfm2VlProcessor
from .prompt import Expanded, ImageMarkup
from .view_plan import ViewPlan


class TextOnlyImageProcessor(Lfm2VlImageProcessor):
    """Refuses pictures. It holds the `SourcePolicy`, as that of a model with pictures does."""

    def encode(self, images: Any, **overrides: Any) -> tuple[BatchFeature, list[ViewPlan]]:
        """Raises `ImageError`."""
        refuse()


class TextProcessor(Lfm2VlProcessor):
    """A text checkpoint's `PromptEncoder`, loaded, saved and called as the processor of pictures is."""

    image_processor_class = TextOnlyImageProcessor

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.use_image_special_tokens, self.notes = False, ()  # which are of pictures

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """The ids of tokens in whose place pictures stand: none."""
        return ()

    @property
    def frame_sampling(self) -> tuple[float, int, int]:
        """Raises `ImageError`."""
        refuse()

    def shared_numbers(self) -> dict[str, int]:
        """The numbers that the model's configuration states too: none."""
        return {}

    def markup(self, use_image_special_tokens: bool | None = None) -> ImageMarkup:
        """The tokens that stand for pictures: none."""
        return ImageMarkup((), markers=False)

    def with_videos(self, messages: Sequence[Mapping[str, Any]], policy: SourcePolicy) -> list[dict[str, Any]]:
        """The messages with each content as a text, which is what templates of text models take. Raises `ImageError`
        for a picture or video."""
        return [{**message, **_as_text(message)} for message in messages]

    def _expand(
        self, texts: Sequence[str], images: Any, markup: ImageMarkup, image_overrides: Mapping[str, Any]
    ) -> tuple[BatchFeature, list[tuple[ViewPlan, ...]], list[Expanded], Sequence[int | None]]:
        if images is not None and flatten(images):
            refuse()
        return super()._expand(texts, None, markup, image_overrides)

    def to_dict(self) -> dict[str, Any]:
        """processor_config.json, of a folder that needs none."""
        return {}


def _as_text(message: Mapping[str, Any]) -> dict[str, str]:
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return {}
    if any(isinstance(item, Mapping) and item.get("type") != "text" for item in content):
        refuse()
    return {"content": "".join(str(item["text"]) for item in content)}


def refuse() -> NoReturn:
    """Raises the `ImageError` of a picture or video that is given to a text model."""
    raise ImageError("this model reads text alone; for pictures and videos load LFM2-VL or LFM3-VL")
