"""Videos in the items of messages: how they are written, and what a model's processor makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import PromptError, did_you_mean
from .picture_keys import another, unread
from .video import Video, frames_as_pictures

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


def as_frames(video: Video) -> list[dict[str, Any]]:
    """A video as pictures, each behind its number as the models learnt it for several pictures."""
    items: list[dict[str, Any]] = []
    for number, frame in enumerate(frames_as_pictures(video), 1):
        items += [{"type": "text", "text": f"Media-{number}: "}, {"type": "image", "image": frame}]
    return items
