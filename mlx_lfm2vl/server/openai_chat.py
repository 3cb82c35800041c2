"""OpenAI's chat completions: bodies of `/v1/chat/completions` to requests."""

from __future__ import annotations

from typing import Any

from .api_request import ApiRequest, Parts, Rules, deadline, joined, max_tokens, options, sampling, stops
from .fields import Fields, shown
from .logprobs import likeliest
from .pictures import Pictures
from .response_format import response_format
from .tools import openai_tools

ROLES = ("system", "developer", "user", "assistant", "tool")
NOT_OFFERED = ("audio", "functions", "moderation", "prediction", "prompt_cache_options", "web_search_options")
TAGS = ("user", "safety_identifier", "prompt_cache_key")  # texts for the caller's own records


def parse(fields: Fields, rules: Rules) -> ApiRequest:
    """The request of a body. Raises `ApiError`."""
    limits = rules.limits
    pictures = Pictures(limits, rules.allow_urls)
    model = fields.text("model", required=True)
    messages = _messages(fields, rules, pictures)
    logprobs = fields.flag("logprobs") or False
    top_logprobs = likeliest(fields, logprobs, "logprobs")
    stream = fields.flag("stream") or False
    usage = _stream_usage(fields, stream)
    tools = openai_tools(fields, rules, nested=True)
    given = sampling(fields) | {
        "logprobs": logprobs,
        "top_logprobs": top_logprobs,
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "logit_bias": _biases(fields),
        "response_format": tools.form(fields, response_format(fields, "response_format", rules)),
    }
    asked = ApiRequest(
        model,
        messages,
        tools.schemas,
        options(given, _stops(fields, rules), max_tokens(fields, "max_completion_tokens", "max_tokens")),
        pictures.overrides(fields),
        pictures.detail,
        choices=fields.whole("n", 1, limits.choices) or 1,
        several_calls=tools.several,
        deadline=deadline(fields),
        stream=stream,
        stream_usage=usage,
    )
    tags(fields, TAGS)
    fields.refuse(NOT_OFFERED, "leave it out")
    fields.only("function_call", "none", "auto")  # of functions, which it cannot have
    fields.only("modalities", ["text"])
    fields.only("reasoning_effort", "none")
    fields.only("service_tier", "auto", "default")
    fields.only("store", False)
    fields.only("verbosity", "medium")
    fields.only("prompt_cache_retention", "in_memory")
    fields.close()
    return asked


def _stops(fields: Fields, rules: Rules) -> tuple[str, ...]:
    """The stop texts: one, or a list."""
    given = fields.take("stop")
    return stops(Fields({"stop": [given] if isinstance(given, str) else given}), "stop", rules.limits)


def _biases(fields: Fields) -> dict[int, float]:
    """Token ids, which are texts in JSON, and what is added to their logits."""
    given = fields.object("logit_bias")
    names = [] if given is None else given.names()
    for name in names:
        if not name.isdecimal() or len(name) > 9:
            given.fail(name, "is no token id")
    return {int(name): given.number(name, -100, 100) for name in names}


def tags(fields: Fields, names: tuple[str, ...]) -> None:
    """Takes what a caller may send for its own records, and what changes no answer."""
    for name in names:
        fields.text(name, longest=1000)
    metadata = fields.object("metadata")
    for name in list(metadata.names()) if metadata is not None else ():
        metadata.text(name, longest=1000)


def _stream_usage(fields: Fields, stream: bool) -> bool:
    given = fields.object("stream_options")
    if given is None:
        return False
    if not stream:
        fields.fail("stream_options", "is for streams; set stream to true")
    usage = given.flag("include_usage") or False
    given.only("include_obfuscation", False)
    given.close()
    return usage


def _messages(fields: Fields, rules: Rules, pictures: Pictures) -> list[dict[str, Any]]:
    listed = fields.objects("messages", rules.limits.parts, required=True)
    if not listed:
        fields.fail("messages", "is empty, expected at least one message")
    parts = Parts(rules.limits)
    parts.add(fields, "messages", len(listed))
    return parts.in_order([_message(message, parts, pictures) for message in listed])


def _message(fields: Fields, parts: Parts, pictures: Pictures) -> dict[str, Any]:
    role = fields.choice("role", ROLES, required=True)
    made: dict[str, Any] = {"role": system_role(role)}
    calls = _past_calls(fields, parts) if role == "assistant" else None
    content = _content(fields, role, parts, pictures, required=not calls)
    if content is not None:
        made["content"] = content
    if calls:
        made["tool_calls"] = calls
    if role == "tool":
        parts.take_result(fields, "tool_call_id")
    if role == "assistant":
        fields.refuse(("audio", "function_call", "refusal", "annotations"), "leave it out")
    fields.text("name", longest=1000)  # of the speaker, which templates do not show
    fields.close()
    return made


def system_role(role: str) -> str:
    """The role as templates know it: the developer's texts are the system's."""
    return "system" if role == "developer" else role


def _content(fields: Fields, role: str, parts: Parts, pictures: Pictures, required: bool) -> Any:
    """A text, or a list of items where there are pictures or videos."""
    content = fields.take("content")
    if isinstance(content, str) or (content is None and not required):
        return content
    listed = Fields({"content": content}, fields.where).objects("content", 10**9, required=True)
    parts.add(fields, "content", len(listed))
    items = [_item(item, role, pictures) for item in listed]
    return joined(items)


def _item(fields: Fields, role: str, pictures: Pictures) -> dict[str, Any]:
    kind = fields.type(("text", "image_url", "video_url", "file"))
    if kind == "text":
        made: dict[str, Any] = {"type": "text", "text": fields.text("text", required=True)}
    elif kind == "image_url" and role == "user":
        picture = fields.object("image_url", required=True)
        made = pictures.from_url(picture, "url", picture.text("url", required=True))
        pictures.set_detail(picture)
        picture.close()
    elif kind == "video_url" and role == "user":
        video = fields.object("video_url", required=True)
        made = pictures.from_url(video, "url", video.text("url", required=True), "video")
        made["fps"] = video.number("fps", 0, 1000, above=True)
        video.close()
    elif kind == "file" and role == "user":
        file = fields.object("file", required=True)
        made = pictures.from_file(file, by_address=False)
        file.close()
    else:
        fields.fail("type", f"is {shown(kind)}; a message of role {role} may hold text{_and_pictures(role)}")
    fields.close()
    return made


def _and_pictures(role: str) -> str:
    return ", image_url, video_url and file" if role == "user" else ""


def _past_calls(fields: Fields, parts: Parts) -> list[dict[str, Any]]:
    """The calls of an assistant's message, as templates know them."""
    listed, calls = fields.objects("tool_calls", 10**6) or (), []
    parts.add(fields, "tool_calls", len(listed))
    for call in listed:
        parts.take_call(call, "id")
        call.type(("function",), required=False)
        function = call.object("function", required=True)
        name, arguments = function.text("name", required=True), function.arguments("arguments")
        function.close()
        call.close()
        calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})
    return calls
