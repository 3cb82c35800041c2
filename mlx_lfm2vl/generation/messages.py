"""Messages, tools and pictures of callers: their one spelling, whether they name addresses, and copies of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, ValuesView
from typing import Any

import numpy as np

from ..errors import OptionError, PromptError
from ..processing.arrays import is_array, to_numpy
from ..processing.conversation import PICTURE_TYPES, SOURCES, VIDEO_SOURCES, VIDEO_TYPES, normalised
from ..processing.open_file import is_remote as is_remote_source

_ITEMS = {"text": ("text",), "image": SOURCES, "video": VIDEO_SOURCES}
_TYPES = ("text", *PICTURE_TYPES, *VIDEO_TYPES)


def checked_message(message: Any, where: str) -> dict[str, Any]:
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
