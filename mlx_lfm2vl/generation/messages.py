"""The messages of a question, checked before anything is read."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence, ValuesView
from typing import Any

import numpy as np

from ..errors import OptionError, PromptError
from ..processing.arrays import is_array, to_numpy
from ..processing.conversation import PICTURE_TYPES, SOURCES, normalised
from ..processing.open_file import is_remote as is_remote_source
from ..processing.video import Video
from ..processing.video_items import VIDEO_SOURCES, VIDEO_TYPES, video_item

_ITEMS = {"text": ("text",), "image": SOURCES, "video": VIDEO_SOURCES}
_TYPES = ("text", *PICTURE_TYPES, *VIDEO_TYPES)


def conversation(
    prompt: str | Sequence[Mapping[str, Any]], images: Any = None, system: str | None = None, videos: Any = None
) -> list[dict[str, Any]]:
    """The messages of one question: the system's text if any, then the user's pictures, videos and text; or those
    given, if they are such. Raises `PromptError` naming what is not."""
    if isinstance(prompt, str):
        if not (system is None or isinstance(system, str)):
            raise PromptError(f"system is {type(system).__name__}, expected text")
        messages: list[dict[str, Any]] = [{"role": "user", "content": user_content(prompt, images, videos)}]
        return [{"role": "system", "content": system}, *messages] if system else messages
    if not isinstance(prompt, (list, tuple)):
        raise PromptError(f"prompt is {type(prompt).__name__}, expected text or a list of messages")
    if images is not None or system is not None or videos is not None:
        raise PromptError("prompt is a conversation; put pictures, videos and the system's text into its messages")
    if not prompt:
        raise PromptError("prompt is a conversation without a message")
    return [_checked(message, f"prompt[{number}]") for number, message in enumerate(prompt)]


def _checked(message: Any, where: str) -> dict[str, Any]:
    """The message in one spelling."""
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is {type(message).__name__}, expected a message with 'role' and 'content'")
    is_empty = "content" in message and message["content"] is None
    message = normalised(message, where)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise PromptError(f"{where} has the role {role!r}, expected 'system', 'user', 'assistant' or 'tool'")
    if isinstance(content, str) or (content is None and (is_empty or message.get("tool_calls"))):
        return message
    if not isinstance(content, (list, tuple)):
        raise PromptError(f"{where} has the content {type(content).__name__}, expected text or a list of items")
    for number, item in enumerate(content):
        at = f"{where}, item {number} of its content,"
        if not isinstance(item, Mapping):
            raise PromptError(f"{at} is {type(item).__name__}, expected a mapping with 'type'")
        kind = item.get("type")
        fields = _ITEMS.get(kind) if isinstance(kind, str) else None
        if fields is None:
            raise PromptError(f"{at} has the type {kind!r}, expected one of {', '.join(_TYPES)}")
        if not any(item.get(name) is not None for name in fields):
            raise PromptError(f"{at} is of type {kind!r} and has no {' or '.join(map(repr, fields))}")
        if kind == "text" and not isinstance(item["text"], str):
            raise PromptError(f"{at} has a text that is {type(item['text']).__name__}")
    return message


def check_tools(tools: Any) -> None:
    """Raises `OptionError` unless `tools` is a list of JSON schemas."""
    if not (isinstance(tools, (list, tuple)) and all(isinstance(tool, Mapping) for tool in tools)):
        raise OptionError("tools must be a list of JSON schemas (mappings), or None")


def listed(images: Any) -> list[Any]:
    """The pictures of an `images` argument: several, one, or none."""
    return [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]


def checked_pictures(images: Any) -> list[Any]:
    """The pictures of an `images` argument. Raises `PromptError` for None among several, for a video, and for an array
    of several pictures."""
    pictures = listed(images)
    for number, picture in enumerate(pictures):
        if picture is None:
            raise PromptError(f"images[{number}] is None, expected a picture; leave it out")
        if isinstance(picture, Video):
            raise PromptError(
                f"images[{number}] is a video, {picture.label}; videos of generate and Chat go into videos="
            )
        if getattr(picture, "ndim", None) == 4 and is_array(picture):
            shape = tuple(picture.shape)
            raise PromptError(
                f"images[{number}] is an array of the shape {shape}, so several pictures or the frames of a video; "
                "give a list of pictures, or load_video(array) in videos="
            )
    return pictures


def is_remote(prompt: Any, images: Any) -> bool:
    """Whether pictures of a question, which need not have been checked, are at http(s) addresses."""
    values, depth = [prompt if isinstance(prompt, (list, tuple)) else None, images], 0
    while values and depth < 6:  # messages, a message, its items, an item, its source
        if any(is_remote_source(value) for value in values):
            return True
        inner = [value.values() if isinstance(value, Mapping) else value for value in values]
        values = [each for some in inner if isinstance(some, (list, tuple, ValuesView)) for each in some]
        depth += 1
    return False


def user_content(text: str, images: Any = None, videos: Any = None) -> list[dict[str, Any]]:
    """A user's turn: pictures first, then videos, then the text. Raises `PromptError` if there is none of them, or None
    for a picture. A list of `videos` holds videos: one that is a list of frames stands in a list. A mapping holds the
    fields of a video's item, such as "path" and "fps"."""
    if not isinstance(text, str):
        raise PromptError(f"the text is {type(text).__name__}, expected str")
    pictures = checked_pictures(images)
    moving = [] if videos is None else video_items(videos)
    if not text and not pictures and not moving:
        raise PromptError("prompt is empty and there is no picture; give one of them")
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    content += moving
    return [*content, {"type": "text", "text": text}] if text else content


def video_items(videos: Any) -> list[dict[str, Any]]:
    """The items of a `videos` argument. Raises `PromptError`."""
    return [
        video_item({"type": "video", **video}, f"videos[{number}]")
        if isinstance(video, Mapping)
        else {"type": "video", "video": video}
        for number, video in enumerate(listed(videos))
    ]


def snapshot(value: Any) -> Any:
    """Pictures or messages whose lists, mappings, arrays and buffers are the caller's no longer, for work that comes
    later. What it holds of other types stays as it is."""
    if is_array(value):
        return np.array(to_numpy(value))
    if isinstance(value, bytearray):
        return value.copy()
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    if isinstance(value, (list, tuple)):
        return type(value)(map(snapshot, value)) if type(value) in (list, tuple) else value
    return {key: snapshot(item) for key, item in value.items()} if type(value) is dict else value
