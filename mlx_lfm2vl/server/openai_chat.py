"""OpenAI's chat completions: bodies of `/v1/chat/completions` to requests, answers to completions and chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..generation.response import Statistics
from ..processing.tokenizer import Tokenizer
from .answer import Answer, Call, Piece
from .api_error import ApiError, unsupported
from .api_request import ApiRequest, Parts, Rules, deadline, max_tokens, options, sampling
from .fields import Fields
from .pictures import Pictures

ROLES = ("system", "developer", "user", "assistant", "tool")
NOT_OFFERED = ("audio", "function_call", "functions", "moderation", "prediction", "web_search_options")
TAGS = ("user", "safety_identifier", "prompt_cache_key")  # texts for the caller's own records
TEXT_TYPES = ("text", "input_text", "output_text")


def parse(fields: Fields, rules: Rules) -> ApiRequest:
    """The request of a body. Raises `ApiError`."""
    limits = rules.limits
    pictures = Pictures(limits, rules.allow_urls)
    model = fields.text("model", required=True)
    messages = _messages(fields, rules, pictures)
    logprobs = fields.flag("logprobs") or False
    if (fields.whole("top_logprobs", 0, 20) or 0) > 0:
        raise unsupported("top_logprobs", "logprobs gives the probability of each token")
    stream = fields.flag("stream") or False
    usage = _stream_usage(fields, stream)
    tools, several = tools_of(fields, rules, _function)
    given = sampling(fields) | {"logprobs": logprobs}
    for name in ("frequency_penalty", "presence_penalty"):
        fields.only(name, 0)
    fields.only("logit_bias", {})
    format = fields.object("response_format")
    if format is not None:
        format.only("type", "text")
        format.close()
    asked = ApiRequest(
        model,
        messages,
        tools,
        options(given, stops(fields, rules), max_tokens(fields, "max_completion_tokens", "max_tokens")),
        pictures.overrides(fields),
        pictures.detail,
        choices=fields.whole("n", 1, limits.choices) or 1,
        several_calls=several,
        deadline=deadline(fields),
        stream=stream,
        stream_usage=usage,
    )
    tags(fields, TAGS)
    fields.refuse(NOT_OFFERED, "leave it out")
    fields.only("modalities", ["text"])
    fields.only("reasoning_effort", "none")
    fields.only("service_tier", "auto", "default")
    fields.only("store", False)
    fields.only("verbosity", "medium")
    fields.only("prompt_cache_retention", "in_memory")
    fields.close()
    return asked


def stops(fields: Fields, rules: Rules) -> tuple[str, ...]:
    """The stop texts: one, or a list."""
    if isinstance(text := fields.take("stop"), str):
        text = [text]
    return Fields({"stop": text}).texts("stop", rules.limits.stops, 1000) if text is not None else ()


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
    return [_message(message, parts, pictures) for message in listed]


def _message(fields: Fields, parts: Parts, pictures: Pictures) -> dict[str, Any]:
    role = fields.choice("role", ROLES, required=True)
    made: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = _past_calls(fields) if role == "assistant" else None
    content = _content(fields, role, parts, pictures, required=not calls)
    if content is not None:
        made["content"] = content
    if calls:
        made["tool_calls"] = calls
    if role == "tool":
        fields.text("tool_call_id", required=True)  # results are told apart by their order
    if role == "assistant":
        fields.refuse(("audio", "function_call", "refusal", "annotations"), "leave it out")
    fields.refuse(("name",), "models know no names of speakers; put it into the text")
    fields.close()
    return made


def _content(fields: Fields, role: str, parts: Parts, pictures: Pictures, required: bool) -> Any:
    """A text, or a list of items where there are pictures."""
    content = fields.take("content")
    if isinstance(content, str) or (content is None and not required):
        return content
    listed = Fields({"content": content}, fields.where).objects("content", 10**9, required=True)
    parts.add(fields, "content", len(listed))
    items = [_item(item, role, pictures) for item in listed]
    if any(item["type"] == "image" for item in items):
        return items
    return "\n".join(item["text"] for item in items)


def _item(fields: Fields, role: str, pictures: Pictures) -> dict[str, Any]:
    kind = fields.text("type", required=True)
    if kind == "text":
        made: dict[str, Any] = {"type": "text", "text": fields.text("text", required=True)}
    elif kind == "image_url" and role == "user":
        picture = fields.object("image_url", required=True)
        made = pictures.from_url(picture, "url", picture.text("url", required=True))
        pictures.set_detail(picture)
        picture.close()
    else:
        fields.fail("type", f"is {kind!r:.60}; a message of role {role} may hold text{_and_pictures(role)}")
    fields.close()
    return made


def _and_pictures(role: str) -> str:
    return " and image_url" if role == "user" else ""


def _past_calls(fields: Fields) -> list[dict[str, Any]]:
    """The calls of an assistant's message, as templates know them."""
    calls = []
    for call in fields.objects("tool_calls", 10**6) or ():
        call.text("id", required=True)
        call.choice("type", ("function",))
        function = call.object("function", required=True)
        name, arguments = function.text("name", required=True), function.text("arguments") or "{}"
        function.close()
        call.close()
        calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})
    return calls


def tools_of(fields: Fields, rules: Rules, read: Any) -> tuple[list[dict[str, Any]] | None, bool]:
    """The tools that the model is told of, and whether it may call several at once."""
    listed = fields.objects("tools", rules.limits.tools)
    tools = [read(tool, rules) for tool in listed] if listed else None
    several = fields.flag("parallel_tool_calls")
    choice = fields.take("tool_choice")
    if choice not in (None, "none", "auto"):
        raise unsupported(f"tool_choice={choice!r:.60}", 'give "auto" or "none"')
    if choice is not None and not tools:
        fields.fail("tool_choice", "is given without tools")
    return (None if choice == "none" else tools), several is not False


def _function(fields: Fields, rules: Rules) -> dict[str, Any]:
    fields.choice("type", ("function",), required=True)
    function = fields.object("function", required=True)
    made = function_schema(function, rules)
    function.close()
    fields.close()
    return made


def function_schema(fields: Fields, rules: Rules, parameters: str = "parameters") -> dict[str, Any]:
    """A tool as a template gets it."""
    most = rules.limits.schema_characters
    made = {
        "name": fields.text("name", required=True, longest=256),
        "description": fields.text("description", longest=most),
        "parameters": fields.schema(parameters, most),
    }
    fields.only("strict", False)
    return {name: value for name, value in made.items() if value is not None}


# The answer


def head(kind: str, id: str, created: int, asked: ApiRequest) -> dict[str, Any]:
    return {"id": id, "object": kind, "created": created, "model": asked.model}


def usage(answers: list[Statistics]) -> dict[str, Any]:
    """Tokens of a request: its prompt is counted once, however many choices it has."""
    prompt, made = answers[0].prompt_tokens, sum(each.generated_tokens for each in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": answers[0].cached_tokens},
    }


def response(id: str, created: int, asked: ApiRequest, answers: list[Answer], tokenizer: Tokenizer) -> dict[str, Any]:
    """The body of a whole answer."""
    choices = [
        {
            "index": number,
            "message": {
                "role": "assistant",
                "content": answer.text if answer.text or not answer.calls else None,
                "refusal": None,
                **({"tool_calls": [_call(call) for call in answer.calls]} if answer.calls else {}),
            },
            "logprobs": _logprobs(asked, answer, tokenizer),
            "finish_reason": answer.finish_reason,
        }
        for number, answer in enumerate(answers)
    ]
    made = head("chat.completion", id, created, asked)
    return made | {"choices": choices, "usage": usage([answer.statistics for answer in answers])}


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(asked: ApiRequest, part: Answer | Piece, tokenizer: Tokenizer) -> dict[str, Any] | None:
    if not asked.options.logprobs or not part.tokens:
        return None
    content = [
        {"token": tokenizer.decode([token]), "logprob": value, "bytes": None, "top_logprobs": []}
        for token, value in zip(part.tokens, part.logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


async def events(
    id: str, created: int, asked: ApiRequest, pieces: AsyncIterator[Piece], tokenizer: Tokenizer
) -> AsyncIterator[tuple[str | None, Any]]:
    """The chunks of a stream: an event's name, if it has one, and its data."""
    top = head("chat.completion.chunk", id, created, asked)
    more = {"usage": None} if asked.stream_usage else {}
    begun: set[int] = set()
    calls = [0] * asked.choices
    statistics: list[Statistics] = []

    def chunk(piece: Piece, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> Any:
        choice = {"index": piece.choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return None, {**top, "choices": [choice], **more}

    async for piece in pieces:
        if piece.choice not in begun:
            begun.add(piece.choice)
            yield chunk(piece, {"role": "assistant", "content": "", "refusal": None})
        logprobs = _logprobs(asked, piece, tokenizer)
        if piece.text or logprobs:
            yield chunk(piece, {"content": piece.text}, logprobs=logprobs)
        for call in piece.calls:
            yield chunk(piece, {"tool_calls": [{"index": calls[piece.choice], **_call(call)}]})
            calls[piece.choice] += 1
        if piece.finish_reason is not None:
            statistics.append(piece.statistics)
            yield chunk(piece, {}, piece.finish_reason)
    if asked.stream_usage:
        yield None, {**top, "choices": [], "usage": usage(statistics)}
    yield None, "[DONE]"


def error_event(error: ApiError, request_id: str) -> tuple[str | None, Any]:
    """The last event of a stream that breaks off."""
    return None, error.body(False, request_id)
