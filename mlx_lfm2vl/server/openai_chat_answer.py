"""Answers as OpenAI's chat completions, and as the chunks of a stream of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..generation.response import Statistics
from ..processing.tokenizer import Tokenizer
from .answer import Answer, Piece
from .api_error import ApiError
from .api_request import ApiRequest
from .logprobs import entries
from .sending import Event
from .tool_calls import Call, CallDelta


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
    return {"id": f"call_{call.id}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _delta(call: CallDelta) -> dict[str, Any]:
    begin = {"id": f"call_{call.id}", "type": "function"} if call.first else {}
    name = {"name": call.name} if call.first else {}
    return {"index": call.index, **begin, "function": {**name, "arguments": call.arguments}}


def _logprobs(asked: ApiRequest, part: Answer | Piece, tokenizer: Tokenizer) -> dict[str, Any] | None:
    if not asked.options.logprobs or not part.tokens:
        return None
    return {"content": entries(part, tokenizer), "refusal": None}


async def events(
    id: str, created: int, asked: ApiRequest, pieces: AsyncIterator[Piece], tokenizer: Tokenizer
) -> AsyncIterator[Event]:
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
        logprobs = _logprobs(asked, piece, tokenizer)
        if piece.text or logprobs:
            yield chunk(piece, {"content": piece.text}, logprobs=logprobs)
        if piece.call is not None and (piece.call.first or piece.call.arguments):
            yield chunk(piece, {"tool_calls": [_delta(piece.call)]})
        if piece.finish_reason is not None:
            statistics.append(piece.statistics)
            yield chunk(piece, {}, piece.finish_reason)
    if asked.stream_usage:
        yield None, {**top, "choices": [], "usage": usage(statistics)}
    yield None, "[DONE]"


def error_event(error: ApiError, request_id: str, number: int) -> Event:
    """The last event of a stream that breaks off."""
    return None, error.body(False, request_id)
