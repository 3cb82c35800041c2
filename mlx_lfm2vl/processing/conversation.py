"""Conversations as apps write them, in one spelling, with the pictures that stand in them.

A conversation is a list of messages {"role", "content"}; content is a string or a list of items. Pictures stand in
items {"type": "image"} under "image", "url", "path" or "base64", or in OpenAI's {"type": "image_url"}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import parse_json
from ..errors import PromptError
from .addresses import decode_base64
from .fetch import SourcePolicy
from .image import flatten

CALL_START, CALL_END = "<|tool_call_start|>", "<|tool_call_end|>"


def conversations_of(conversation: Any) -> tuple[list[list[dict[str, Any]]], bool]:
    """A list of conversations in the reference's spelling, and whether several were given."""
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise PromptError("the conversation must be a list of messages, with at least one")
    batched = isinstance(conversation[0], (list, tuple))
    several = conversation if batched else [conversation]
    if not all(isinstance(messages, (list, tuple)) and messages for messages in several):
        raise PromptError("each conversation must be a list of messages, with at least one")
    return [[normalised(message) for message in messages] for messages in several], batched


def normalised(message: Any) -> dict[str, Any]:
    """A copy without entries that are None, as templates expect it: `image_url` items spelled as `image` items, the
    arguments of tool calls as mappings. Raises `PromptError`."""
    if not isinstance(message, Mapping):
        raise PromptError(f"a message must be a mapping with 'role' and 'content', got {type(message).__name__}")
    plain = {name: value for name, value in message.items() if value is not None}
    if isinstance(plain.get("content"), (list, tuple)):
        items = []
        for item in plain["content"]:
            if isinstance(item, Mapping) and item.get("type") == "image_url" and "image_url" in item:
                url = item["image_url"]
                item = {"type": "image", "url": url.get("url", "") if isinstance(url, Mapping) else url}
            items.append(item)
        plain["content"] = items
    calls = plain.pop("tool_calls", None)
    if isinstance(calls, (list, tuple)) and calls:
        plain["tool_calls"] = [_with_mapping(call, f"tool_calls[{number}]") for number, call in enumerate(calls)]
    return plain


def _with_mapping(call: Any, where: str) -> Any:
    """A tool call whose arguments are no text of JSON, as OpenAI's are, but what that says."""
    call = plain(call)
    if not isinstance(call, Mapping):
        raise PromptError(f"{where} is {type(call).__name__}, expected a mapping with 'function'")
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_mapping(call["function"], f"{where}.function")}
    arguments = call.get("arguments")
    if isinstance(arguments, str) or arguments is None:
        try:
            arguments = (parse_json(arguments) if arguments and arguments.strip() else None) or {}
        except ValueError as error:
            raise PromptError(f"{where}.arguments is no JSON ({error}), expected an object of arguments") from None
    if not isinstance(arguments, Mapping):
        raise PromptError(f"{where}.arguments is {type(arguments).__name__}, expected an object of arguments")
    return {**call, "arguments": arguments}


def pictures_of(conversations: Sequence[Sequence[Mapping[str, Any]]], images: Any, policy: SourcePolicy) -> Any:
    """The pictures of the conversations, a list each: those in their items, and in empty items those of `images`."""
    slots: list[list[Any]] = []
    for messages in conversations:
        contents = [message.get("content") for message in messages]
        items = [item for content in contents if isinstance(content, (list, tuple)) for item in content]
        pictured = [item for item in items if isinstance(item, Mapping) and item.get("type") == "image"]
        slots.append([source for item in pictured for source in _sources(item, policy)])
    empty = sum(source is None for own in slots for source in own)
    if images is None or empty == sum(map(len, slots)):
        return [[source for source in own if source is not None] for own in slots] if images is None else images
    given = flatten(images)
    if len(given) != empty:
        raise PromptError(f"{len(given)} pictures in images= for {empty} image items of the conversation without one")
    rest = iter(given)
    return [[next(rest) if source is None else source for source in own] for own in slots]


def _sources(item: Mapping[str, Any], policy: SourcePolicy) -> list[Any]:
    """What an image item holds, in the reference's order of names; [None] for an item that only marks a place."""
    found = [item[name] for name in ("image", "url", "path") if item.get(name) is not None]
    if item.get("base64") is not None:
        text = str(item["base64"])
        found.append(text if text.startswith("data:") else decode_base64(text, policy))
    return found or [None]


def plain(value: Any) -> Any:
    """Plain JSON types only, so that a template finds no methods to call; pictures and the like become "<type>"."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value] if isinstance(value, list) else tuple(plain(item) for item in value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):  # pydantic
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"
