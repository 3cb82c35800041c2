"""Videos in the items of messages: how they are written, and what a model's processor makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import PromptError, did_you_mean
from .fetch import SourcePolicy
from .picture_keys import another, unread
from .video import Video, frames_as_pictures, load_video

VIDEO_TYPES = ("video", "video_url")  # of items: transformers', and the one of servers that are called as OpenAI's
VIDEO_SOURCES = ("video", "url", "path")
SAMPLING = ("fps", "num_frames")  # of a video item, as `load_video` takes them


def video_item(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A video's item with its sources and how its frames are sampled, which also stand in its "video_url". Raises
    `PromptError` for anything else."""
    said = {name: value for name, value in item.items() if value is not None}
    kind, known = said.pop("type", "video"), (*VIDEO_SOURCES, *SAMPLING)
    if (address := said.pop("video_url", None)) is not None:
        inner = address if isinstance(address, Mapping) else {"url": address}
        if inner.get("url") is None:
            raise PromptError(f"{where} has 'video_url' without 'url'; give the video's address")
        said |= {name: value for name, value in inner.items() if value is not None}
    if key := unread(said, known) or another(said, known):
        raise PromptError(f"{where} is of type {kind!r} and has {key!r}, which is not read; put videos under 'video'")
    if key := next((key for key in said if key not in known), None):
        way = did_you_mean([str(key)], known) or f"; it takes {', '.join(map(repr, known))}"
        raise PromptError(f"{where} is of type {kind!r} and has {key!r}, which is not read{way}")
    return {"type": "video", **{name: said[name] for name in known if name in said}}


def replace_videos(
    messages: Sequence[Mapping[str, Any]], policy: SourcePolicy, made: Callable[[Video], Any], rates: Iterator[Any]
) -> list[dict[str, Any]]:
    """The messages with the items that are made of each video in place of its own; `rates` are the frames a second of
    videos that are lists or arrays. Raises `ImageError`, `PromptError`."""

    def replaced(item: Any) -> list[Any]:
        if not isinstance(item, Mapping) or item.get("type") != "video":
            return [item]
        sources = [item[name] for name in VIDEO_SOURCES if item.get(name) is not None]
        if len(sources) != 1:
            raise PromptError(f"a video item holds {len(sources)} videos, expected one under 'video', 'url' or 'path'")
        sampling = {name: item.get(name) for name in SAMPLING}
        return made(load_video(sources[0], policy=policy, frame_rate=next(rates, None), **sampling))

    return with_items(messages, replaced)


def with_items(messages: Sequence[Mapping[str, Any]], made: Callable[[Any], list[Any]]) -> list[dict[str, Any]]:
    """The messages with the items that are made of each item of their contents in place of it."""
    return [
        {**message, "content": [each for item in message["content"] for each in made(item)]}
        if isinstance(message.get("content"), (list, tuple))
        else dict(message)
        for message in messages
    ]


def as_frames(video: Video) -> list[dict[str, Any]]:
    """A video as pictures, each behind its number as the models learnt it for several pictures."""
    items: list[dict[str, Any]] = []
    for number, frame in enumerate(frames_as_pictures(video), 1):
        items += [{"type": "text", "text": f"Media-{number}: "}, {"type": "image", "image": frame}]
    return items
