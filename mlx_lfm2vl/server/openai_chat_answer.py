"""Answers as OpenAI's chat completions, and as the chunks of a stream of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..generation.response import Statistics
from .answer import Piece, calls_of
from .api_error import ApiError
from .api_request import ApiRequest
from .sending import COMMENT, Event
from .tool_calls import CallDelta

PREFIX, HEARTBEAT = "chatcmpl-", COMMENT


def head(kind: str, id: str, created: int, asked: ApiRequest) -> dict[str, Any]:
    return {"id": id, "object": kind, "created": created, "model": asked.model}


def usage(answers: list[Statistics], prompts: bool = False) -> dict[str, Any]:
    """Tokens of a request. Its prompt is counted once, however many choices it has, unless each has its own
    (`prompts`)."""
    asked = answers if prompts else answers[:1]
    prompt, made = sum(each.prompt_tokens for each in asked), sum(each.generated_tokens for each in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in asked)},
    }


def response(id: str, created: int, asked: ApiRequest, answers: list[list[Piece]]) -> dict[str, Any]:
    """The body of a whole answer."""
    choices = []
    for number, answer in enumerate(answers):
        text, calls = "".join(piece.text for piece in answer), calls_of(answer)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        logprobs, reason = _logprobs(answer), answer[-1].finish_reason
        choices.append({"index": number, "message": message, "logprobs": logprobs, "finish_reason": reason})
    made = head("chat.completion", id, created, asked)
    return made | {"choices": choices, "usage": usage([answer[-1].statistics for answer in answers])}


def _call(call: CallDelta) -> dict[str, Any]:
    begin = {"id": f"call_{call.id}", "type": "function"} if call.first else {}
    name = {"name": call.name} if call.first else {}
    return {**begin, "function": {**name, "arguments": call.arguments}}


def _logprobs(pieces: list[Piece]) -> dict[str, Any] | None:
    found = [entry for piece in pieces for entry in piece.logprobs]
    return {"content": found, "refusal": None} if found else None


async def events(id: str, created: int, asked: ApiRequest, pieces: AsyncIterator[Piece]) -> AsyncIterator[Event]:
    """The chunks of a stream: an event's name, if it has one, and its data."""
    top = head("chat.completion.chunk", id, created, asked)
    more = {"usage": None} if asked.stream_usage else {}
    begun: set[int] = set()
    statistics: list[Statistics] = []

    def chunk(piece: Piece, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> Any:
        choice = {"index": piece.choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return None, {**top, "choices": [choice], **more}

    async for piece in pieces:
        if piece.choice not in begun:
            begun.add(piece.choice)
            yield chunk(piece, {"role": "assistant", "content": "", "refusal": None})
        logprobs = _logprobs([piece])
        if piece.text or logprobs:
            yield chunk(piece, {"content": piece.text}, logprobs=logprobs)
        if piece.call is not None and (piece.call.first or piece.call.arguments):
            yield chunk(piece, {"tool_calls": [{"index": piece.call.index, **_call(piece.call)}]})
        if piece.finish_reason is not None:
            statistics.append(piece.statistics)
            yield chunk(piece, {}, piece.finish_reason)
    if asked.stream_usage:
        yield None, {**top, "choices": [], "usage": usage(statistics)}
    yield None, "[DONE]"


def error_event(error: ApiError, request_id: str, number: int) -> Event:
    """The last event of a stream that breaks off."""
    return None, error.body(False, request_id)
