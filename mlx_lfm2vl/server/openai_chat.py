"""OpenAI's chat completions: bodies of `/v1/chat/completions` to requests."""

from __future__ import annotations

from typing import Any

from ..generation.options import GenerationOptions
from .api_request import ApiRequest, Parts, Rules, deadline, max_tokens, past_call, response_format, sampling, stops
from .fields import Fields, shown
from .pictures import Pictures
from .tools import openai_tools

ROLES = ("system", "developer", "user", "assistant", "tool")
NOT_OFFERED = ("audio", "functions", "moderation", "prediction", "prompt_cache_options", "web_search_options")
MOST_LIKELIEST = 20  # tokens in each place
TAGS = ("user", "safety_identifier", "prompt_cache_key")  # texts for the caller's own records


def parse(fields: Fields, rules: Rules) -> ApiRequest:
    """The request of a body. Raises `ApiError`."""
    limits, parts = rules.limits, Parts(rules)
    model = fields.text("model", required=True)
    messages = parts.in_order([_message(message, parts) for message in parts.messages(fields)])
    logprobs = fields.flag("logprobs") or False
    top_logprobs = likeliest(fields, logprobs, "logprobs")
    stream = fields.flag("stream") or False
    usage = _stream_usage(fields, stream)
    tools = openai_tools(fields, rules, nested=True)
    given = sampling(fields) | {
        "stop": _stops(fields, rules),
        "max_tokens": max_tokens(fields, "max_completion_tokens", "max_tokens"),
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
        GenerationOptions(**given),
        parts.pictures.overrides(fields),
        parts.pictures.detail,
        choices=fields.whole("n", 1, limits.choices) or 1,
        several_calls=tools.several,
        deadline=deadline(fields),
        stream=stream,
        stream_usage=usage,
    )
    fields.refuse(NOT_OFFERED, "leave it out")
    fields.only("function_call", "none", "auto")  # of functions, which it cannot have
    fields.only("modalities", ["text"])
    fields.only("reasoning_effort", "none")
    fields.only("verbosity", "medium")
    close(fields)
    return asked


def likeliest(fields: Fields, asked: bool, flag: str) -> int:
    """The field `top_logprobs`, which is only for answers with logprobs. Raises `ApiError`."""
    count: int = fields.whole("top_logprobs", 0, MOST_LIKELIEST) or 0
    if count and not asked:
        fields.fail("top_logprobs", f"is given without {flag}")
    return count


def _stops(fields: Fields, rules: Rules) -> tuple[str, ...]:
    """The stop texts: one, or a list."""
    given = fields.take("stop")
    return stops(Fields({"stop": [given] if isinstance(given, str) else given}), "stop", rules.limits)


def _biases(fields: Fields) -> dict[int, float]:
    """Token ids, which are texts in JSON, and what is added to their logits."""
    given: Any = fields.inside("logit_bias")
    names = given.names()
    for name in names:
        if not name.isdecimal() or len(name) > 9:
            given.fail(name, "is no token id")
    return {int(name): given.number(name, -100, 100) for name in names}


def close(fields: Fields) -> None:
    """Takes what both protocols of OpenAI have for a caller's own records, and what changes no answer. Refuses the
    rest."""
    for name in TAGS:
        fields.text(name, longest=1000)
    metadata = fields.inside("metadata")
    for name in metadata.names():
        metadata.text(name, longest=1000)
    fields.only("service_tier", "auto", "default")
    fields.only("store", False)
    fields.only("prompt_cache_retention", "in_memory")
    fields.close()


def _stream_usage(fields: Fields, stream: bool) -> bool:
    if "stream_options" in fields and not stream:
        fields.fail("stream_options", "is for streams; set stream to true")
    given = fields.inside("stream_options")
    given.only("include_obfuscation", False)
    return given.flag("include_usage") or False


def _message(fields: Fields, parts: Parts) -> dict[str, Any]:
    role = fields.choice("role", ROLES, required=True)
    made: dict[str, Any] = {"role": system_role(role)}
    calls = _past_calls(fields, parts) if role == "assistant" else []
    content = parts.content(fields, "content", lambda item: _item(item, role, parts.pictures), required=not calls)
    if content is not None:
        made["content"] = content
    if calls:
        made["tool_calls"] = calls
    if role == "tool":
        parts.take_result(fields, "tool_call_id")
    if role == "assistant":
        fields.refuse(("audio", "function_call", "refusal", "annotations"), "leave it out")
    fields.text("name", longest=1000)  # of the speaker, which templates do not show
    return made


def system_role(role: str) -> str:
    """The role as templates know it: the developer's texts are the system's."""
    return "system" if role == "developer" else role


def _item(fields: Fields, role: str, pictures: Pictures) -> dict[str, Any]:
    kind = fields.type(("text", "image_url", "video_url", "file"))
    if kind == "text":
        return {"type": "text", "text": fields.text("text", required=True)}
    if role != "user":
        fields.fail("type", f"is {shown(kind)}; a message of role {role} may hold text")
    inner = fields.object(kind, required=True)
    if kind == "file":
        return pictures.from_file(inner, by_address=False)
    url = inner.text("url", required=True)
    if kind == "video_url":
        return pictures.from_url(inner, "url", url, "video") | {"fps": inner.number("fps", 0, 1000, above=True)}
    made = pictures.from_url(inner, "url", url)
    pictures.set_detail(inner)
    return made


def _past_calls(fields: Fields, parts: Parts) -> list[dict[str, Any]]:
    """The calls of an assistant's message."""
    calls = []
    for call in parts.objects(fields, "tool_calls", required=False):
        parts.take_call(call, "id")
        call.type(("function",), required=False)
        function = call.object("function", required=True)
        calls.append(past_call(function.text("name", required=True), function.arguments("arguments")))
    return calls
