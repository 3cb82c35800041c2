"""The messages of a question, checked before anything is read."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import OptionError, PromptError
from ..processing.arrays import is_array, to_numpy
from ..processing.load_image import is_remote as is_remote_source

_ITEMS = {"text": ("text",), "image": ("image", "url", "path", "base64"), "image_url": ("image_url",)}


def conversation(
    prompt: str | Sequence[Mapping[str, Any]], images: Any = None, system: str | None = None
) -> list[dict[str, Any]]:
    """The messages of one question: the system's text if any, then the user's pictures and text; or those given, if
    they are such. Raises `PromptError` naming what is not."""
    if isinstance(prompt, str):
        if not (system is None or isinstance(system, str)):
            raise PromptError(f"system is {type(system).__name__}, expected text")
        messages: list[dict[str, Any]] = [{"role": "user", "content": user_content(prompt, images)}]
        return [{"role": "system", "content": system}, *messages] if system else messages
    if not isinstance(prompt, (list, tuple)):
        raise PromptError(f"prompt is {type(prompt).__name__}, expected text or a list of messages")
    if images is not None or system is not None:
        raise PromptError("prompt is a conversation; put pictures and the system's text into its messages")
    if not prompt:
        raise PromptError("prompt is a conversation without a message")
    for number, message in enumerate(prompt):
        _check_message(message, f"prompt[{number}]")
    return [dict(message) for message in prompt]


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is {type(message).__name__}, expected a message with 'role' and 'content'")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise PromptError(f"{where} has the role {role!r}, expected 'system', 'user', 'assistant' or 'tool'")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return
    if not isinstance(content, (list, tuple)):
        raise PromptError(f"{where} has the content {type(content).__name__}, expected text or a list of items")
    for number, item in enumerate(content):
        at = f"{where}, item {number} of its content,"
        if not isinstance(item, Mapping):
            raise PromptError(f"{at} is {type(item).__name__}, expected a mapping with 'type'")
        kind = item.get("type")
        fields = _ITEMS.get(kind) if isinstance(kind, str) else None
        if fields is None:
            raise PromptError(f"{at} has the type {kind!r}, expected one of {', '.join(_ITEMS)}")
        if not any(item.get(name) is not None for name in fields):
            raise PromptError(f"{at} is of type {kind!r} and has no {' or '.join(map(repr, fields))}")
        if kind == "text" and not isinstance(item["text"], str):
            raise PromptError(f"{at} has a text that is {type(item['text']).__name__}")


def check_tools(tools: Any) -> None:
    """Raises `OptionError` unless `tools` is None or a list of JSON schemas."""
    if tools is not None and not (
        isinstance(tools, (list, tuple)) and all(isinstance(tool, Mapping) for tool in tools)
    ):
        raise OptionError("tools must be a list of JSON schemas (mappings), or None")


def listed(images: Any) -> list[Any]:
    """The pictures of an `images` argument: several, one, or none."""
    return [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]


def checked_pictures(images: Any) -> list[Any]:
    """Those of an `images` argument. Raises `PromptError` for None among several."""
    pictures = listed(images)
    for number, picture in enumerate(pictures):
        if picture is None:
            raise PromptError(f"images[{number}] is None, expected a picture; leave it out")
    return pictures


def is_remote(prompt: Any, images: Any) -> bool:
    """Whether pictures of a question, which need not have been checked, are at http(s) addresses."""
    values = listed(images)
    for message in prompt if isinstance(prompt, (list, tuple)) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for item in content if isinstance(content, (list, tuple)) else ():
            values += item.values() if isinstance(item, Mapping) else ()
    values += [inner for value in values if isinstance(value, Mapping) for inner in value.values()]
    return any(is_remote_source(value) for value in values)


def user_content(text: str, images: Any = None) -> list[dict[str, Any]]:
    """A user's turn: pictures first, then the text. Raises `PromptError` if there is neither, or None for a picture."""
    if not isinstance(text, str):
        raise PromptError(f"the text is {type(text).__name__}, expected str")
    pictures = checked_pictures(images)
    if not text and not pictures:
        raise PromptError("prompt is empty and there is no picture; give one of them")
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    return [*content, {"type": "text", "text": text}] if text else content


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
