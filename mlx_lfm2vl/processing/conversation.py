"""Conversations as apps write them, in one spelling, with the pictures that stand in them.

A conversation is a list of messages {"role", "content"}; content is a string or a list of items. Pictures stand in
items {"type": "image"} under "image", "url", "path" or "base64", in the items of OpenAI and Anthropic, or under
"images" of the message; videos in items {"type": "video"}. What names a picture and is not read is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..config import parse_json
from ..errors import PromptError, did_you_mean
from .control_tokens import plain
from .picture_keys import another, holding, unread

BESIDE = ("images", "image")  # keys of a message, as Ollama has them; such pictures stand before its text
KEYS = ("role", "content", "name", "tool_calls", "tool_call_id")  # of a message, besides
PICTURE_TYPES = ("image", "image_url", "input_image")
SOURCES = ("image", "url", "path", "base64")
VIDEO_TYPES = ("video", "video_url")  # of items: transformers', and the one of servers that are called as OpenAI's
VIDEO_SOURCES = ("video", "url", "path")
SAMPLING = ("fps", "num_frames")  # of a video item, as `load_video` takes them
CALL_START, CALL_END = "<|tool_call_start|>", "<|tool_call_end|>"
NAMES, ARGUMENTS = ("name", "function"), ("arguments", "parameters", "args")  # keys of a tool call that is an object


def conversations_of(conversation: Any) -> tuple[list[list[dict[str, Any]]], bool]:
    """A list of conversations in the reference's spelling, and whether several were given."""
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise PromptError("the conversation must be a list of messages, with at least one")
    batched = isinstance(conversation[0], (list, tuple))
    several = conversation if batched else [conversation]
    if not all(isinstance(messages, (list, tuple)) and messages for messages in several):
        raise PromptError("each conversation must be a list of messages, with at least one")
    return [[normalised(message) for message in messages] for messages in several], batched


def normalised(message: Any, where: str = "a message") -> dict[str, Any]:
    """A copy without entries that are None, as templates expect it: pictures of every spelling as `image` items, tool
    calls by one name and with mappings of arguments. `where` begins what is said of it. Raises `PromptError`."""
    if not isinstance(message, Mapping):
        raise PromptError(f"a message must be a mapping with 'role' and 'content', got {type(message).__name__}")
    plain = {name: value for name, value in message.items() if value is not None}
    content = plain.get("content")
    if isinstance(content, (list, tuple)):
        plain["content"] = [_item(item, f"{where}, item {n} of its content,") for n, item in enumerate(content)]
    key = unread(plain, ("content", *BESIDE))
    if key is None and plain.get("role") != "assistant":
        items = plain["content"] if isinstance(content, (list, tuple)) else ()
        shown = any(isinstance(item, Mapping) and item.get("type") == "image" for item in items)
        shown = shown or any(name in plain for name in BESIDE)
        key = another(plain, (*KEYS, *BESIDE)) if shown else holding(plain, KEYS)
    if key is not None:
        raise PromptError(f"{where} has {key!r}, which is not read; put pictures into 'images' or into its content")
    beside: list[Any] = []
    for images in (plain.pop(name) for name in BESIDE if name in plain):
        beside += images if isinstance(images, (list, tuple)) else [images]
    if beside:
        text = [{"type": "text", "text": content}] if isinstance(content, str) and content else plain.get("content")
        items = text if isinstance(text, list) else []
        plain["content"] = [*({"type": "image", "image": image} for image in beside), *items]
    try:
        calls = _tool_calls(plain, where)
    except RecursionError:
        raise PromptError(f"{where} has tool calls that are nested too deeply") from None
    if plain.get("role") == "function":  # of the answer to a `function_call`
        plain["role"] = "tool"
    return {**plain, "tool_calls": calls} if calls else plain


def _tool_calls(message: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Takes a message's tool calls out of it: `tool_calls`, and `function_call`, which OpenAI had before."""
    calls, older = message.pop("tool_calls", None), message.pop("function_call", None)
    if older is not None:
        if calls or message.get("role") != "assistant":
            reason = "beside tool_calls" if calls else f"in a turn of the role {message.get('role')!r}"
            raise PromptError(f"{where} has 'function_call' {reason}; put the assistant's calls into its 'tool_calls'")
        return [{"type": "function", "function": _tool_call(older, f"{where}: function_call")}]
    if calls and not isinstance(calls, (list, tuple)):
        raise PromptError(f"{where} has tool_calls of type {type(calls).__name__}, expected a list of calls")
    return [_tool_call(call, f"tool_calls[{number}]") for number, call in enumerate(calls or ())]


def _item(item: Any, where: str) -> Any:
    """An item in transformers' spelling. Raises `PromptError` for a picture that would be passed over."""
    if not isinstance(item, Mapping):
        return item
    kind = item.get("type")
    if kind in ("input_text", "output_text"):
        kind, item = "text", {**item, "type": "text"}
    if kind in PICTURE_TYPES:
        return _picture(item, where)
    if kind in VIDEO_TYPES:
        return video_item(item, where)
    if key := unread(item, ("type", "text")) or holding(item, ("type", "text")):
        way = "it needs an item of type 'image' or 'video'"
        raise PromptError(f"{where} is of type {kind!r} and has {key!r}, which is not read; {way}")
    return item


def _picture(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A picture's item as {"type": "image", and under "image", "url", "path" or "base64" the picture if it has one}."""
    found = {name: item[name] for name in SOURCES if item.get(name) is not None}
    for name in ("image_url", "source"):
        given = item.get(name)
        if isinstance(given, Mapping):
            if given.get("url") is None and given.get("data") is None:
                raise PromptError(f"{where} has {name!r} without 'url' or 'data'; give the picture itself")
            found |= {"url": given["url"]} if given.get("url") is not None else {"base64": given["data"]}
        elif given is not None:
            found["url"] = given
    if item.get("file_id") is not None:
        raise PromptError(f"{where} has 'file_id', a file of another server; give the picture itself")
    known = ("type", "image_url", "source", *SOURCES)
    if key := unread(item, known) or (None if found else holding(item, known)):
        raise PromptError(f"{where} is of type {item['type']!r} and has {key!r}, which is not read; call it 'image'")
    return {"type": "image", **found}


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


def numbered(pictures: Iterable[Any]) -> list[dict[str, Any]]:
    """The items of several pictures, each behind its number as the models learnt it."""
    items: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        items += [{"type": "text", "text": f"Media-{number}: "}, {"type": "image", "image": picture}]
    return items


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """A call as {"name", "arguments"}, or with "function" around these as OpenAI has it; arguments that are text of
    JSON become what that says."""
    call = plain(call)
    if not isinstance(call, Mapping):
        raise PromptError(f"{where} is {type(call).__name__}, expected a mapping with 'function'")
    said = {key: value for key, value in call.items() if value is not None}
    inner = said.get("function")
    if isinstance(inner, Mapping):
        where = f"{where}.function"
        del said["function"]
        said |= {key: value for key, value in inner.items() if value is not None}
    name = next((said[key] for key in NAMES if key in said), None)
    if not isinstance(name, str) or not name:
        raise PromptError(f"{where} has the name {name!r}, expected the name of a function")
    given = [key for key in ARGUMENTS if key in said]
    if len(given) > 1:
        raise PromptError(f"{where} has both {given[0]!r} and {given[1]!r}; give the arguments once")
    key = given[0] if given else ARGUMENTS[0]
    arguments = said.get(key, {})
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise PromptError(f"{where}.{key} is no JSON ({error}), expected an object of arguments") from None
    arguments = {} if arguments is None else arguments  # JSON's null
    if not isinstance(arguments, Mapping):
        raise PromptError(f"{where}.{key} is {type(arguments).__name__}, expected an object of arguments")
    others = {key: value for key, value in call.items() if key not in (*NAMES, *ARGUMENTS)}
    made = {"name": name, "arguments": arguments}
    return others | ({"function": made} if isinstance(inner, Mapping) else made)
