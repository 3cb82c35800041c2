"""The pictures and videos of a conversation's turns: read once, kept in memory, encoded once."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import short
from ..processing.load_image import Picture, load_image, pages_of
from ..processing.open_file import is_base64_picture, scheme
from ..processing.pdf import PdfPage
from ..processing.processor import Lfm2VlProcessor
from ..processing.prompt import replace_videos
from ..processing.video import Video
from ..processing.view_plan import ViewPlan
from .request import EncodedPicture, checked_pictures, split_pictures, video_items

Encoded = tuple[weakref.ref[Any], EncodedPicture, ViewPlan]  # what of a picture or video, which the first knows


@dataclass(frozen=True)
class ReadPictures:
    """The pictures of a turn, RGB, its videos with the frames that are seen, and what the model takes of each."""

    pictures: list[Picture]
    videos: list[Video]
    encoded: Mapping[int, Encoded]


@dataclass
class TurnPictures:
    """Reads and encodes what a conversation holds. `overrides`: fields of `ImageProcessorConfig`."""

    processor: Lfm2VlProcessor
    overrides: Mapping[str, Any]
    _encoded: dict[int, Encoded] = field(default_factory=dict)  # of pictures and videos, by their `id`

    def read(self, images: Any, videos: Any) -> ReadPictures:
        """Reads, resizes and cuts the pictures and videos of a turn, without looking at the conversation. Raises
        `PromptError` and `ImageError`."""
        processor, pictures = self.processor.image_processor, []
        policy, config = processor.source_policy, processor.configured(**self.overrides)
        for given in pages_of(checked_pictures(images), policy):
            picture = load_image(given, policy, config)
            picture = picture.copy() if picture is given else picture  # the caller may go on drawing in it
            picture.info = {}  # what it says is obeyed; a saved conversation must not say it again
            picture.filename = _file_name(given)  # type: ignore[union-attr]  # as of Pillow's files
            pictures.append(picture)
        moving = {"content": [] if videos is None else video_items(videos)}
        (message,) = replace_videos([moving], policy, lambda video: [self.processor.held(video, config)], iter(()))
        kept: list[Video] = message["content"]
        content = [{"type": "image", "image": picture} for picture in pictures]
        shown = self.processor.with_videos([{"content": [*content, *video_items(kept)]}], policy)
        return ReadPictures(pictures, kept, self._encode(list(sources_in(shown))))

    def add(self, read: ReadPictures) -> None:
        """Takes what was encoded of a turn's pictures."""
        self._encoded |= read.encoded

    def fork(self) -> TurnPictures:
        """The same, of a second conversation."""
        return TurnPictures(self.processor, self.overrides, dict(self._encoded))

    def of(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[EncodedPicture], list[ViewPlan]]:
        """The arrays that the model takes of the pictures and videos in messages, as `with_videos` has them, in their
        order. Those of others are forgotten."""
        sources = list(sources_in(messages))
        known = {id(each): self._encoded[id(each)] for each in sources if self._is_known(each)}
        for source in sources:
            known |= {} if id(source) in known else self._encode([source])
        self._encoded = known
        found = [known[id(source)] for source in sources]
        return [encoded for _, encoded, _ in found], [plan for _, _, plan in found]

    def _is_known(self, source: Any) -> bool:
        return id(source) in self._encoded and self._encoded[id(source)][0]() is source

    def _encode(self, sources: Sequence[Any]) -> dict[int, Encoded]:
        if not sources:
            return {}
        arrays, plans = self.processor.image_processor.encode(sources, **self.overrides)
        known = [weakref.ref(source) for source in sources]

        def again(number: int) -> np.ndarray:
            """The patches of a picture that is still part of the conversation."""
            source = known[number]()
            assert source is not None
            return self.processor.image_processor.encode([source], **self.overrides)[0]["pixel_values"]

        encoded = split_pictures(arrays, [len(plan.spatial_shapes) for plan in plans], again)
        return {id(each): made for each, *made in zip(sources, known, encoded, plans, strict=True)}  # type: ignore[misc]


def _file_name(given: Any) -> str:
    """The name by which a person knows a picture that is a file, a page of one, or was read of one; else empty."""
    if isinstance(given, str) and (scheme(given) == "data:" or is_base64_picture(given)):
        return ""
    named = given.label if isinstance(given, PdfPage) else getattr(given, "filename", given)
    return short(os.path.basename(os.fsdecode(named))) if isinstance(named, (str, os.PathLike)) else ""


def sources_in(messages: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """The pictures and videos in the items of messages, in their order."""
    for message in messages:
        for item in () if isinstance(message["content"], str) else message["content"]:
            if item["type"] in ("image", "video"):
                yield item[item["type"]]
