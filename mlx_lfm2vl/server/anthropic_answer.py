"""Answers as Anthropic's messages, and as the events of a stream of one."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

from ..generation.response import Statistics
from .answer import Piece, calls_of
from .api_error import ApiError
from .api_request import ApiRequest
from .sending import Event
from .tool_calls import CallDelta

PREFIX, HEARTBEAT = "msg_", b'event: ping\ndata: {"type":"ping"}\n\n'
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def usage(statistics: Statistics) -> dict[str, int]:
    """Anthropic counts tokens that are read from a cache beside the others."""
    return {
        "input_tokens": statistics.prompt_tokens - statistics.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": statistics.cached_tokens,
        "output_tokens": statistics.generated_tokens,
    }


def message(id: str, asked: ApiRequest, statistics: Statistics) -> dict[str, Any]:
    """A message without content."""
    made = {"id": id, "type": "message", "role": "assistant", "model": asked.model, "content": []}
    return made | {"stop_reason": None, "stop_sequence": None, "usage": usage(statistics)}


def ending(last: Piece) -> dict[str, Any]:
    """Why an answer ended, in Anthropic's words."""
    if last.stop_text is not None and last.finish_reason == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop_text}
    return {"stop_reason": REASONS[last.finish_reason or "stop"], "stop_sequence": None}


def _tool_use(call: CallDelta) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": {}}


def response(id: str, created: int, asked: ApiRequest, answers: list[list[Piece]]) -> dict[str, Any]:
    """The body of a whole answer."""
    (answer,) = answers
    calls = iter(calls_of(answer))
    begun = [piece for piece in answer if piece.text or (piece.call is not None and piece.call.first)]
    content: list[dict[str, Any]] = []
    for is_text, some in itertools.groupby(begun, lambda piece: piece.call is None):
        if is_text:
            content.append({"type": "text", "text": "".join(piece.text for piece in some)})
        else:
            content += [_tool_use(call) | {"input": call.members} for _, call in zip(some, calls, strict=False)]
    content = content or [{"type": "text", "text": ""}]
    return message(id, asked, answer[-1].statistics) | {"content": content} | ending(answer[-1])


async def events(id: str, created: int, asked: ApiRequest, pieces: AsyncIterator[Piece]) -> AsyncIterator[Event]:
    """The events of a stream."""
    blocks, open_text, begun = 0, False, False

    def event(kind: str, **data: Any) -> Event:
        return kind, {"type": kind, **data}

    async for piece in pieces:
        if not begun:
            begun = True
            yield event("message_start", message=message(id, asked, piece.statistics))
        if piece.text and not open_text:
            open_text = True
            yield event("content_block_start", index=blocks, content_block={"type": "text", "text": ""})
        if piece.text:
            yield event("content_block_delta", index=blocks, delta={"type": "text_delta", "text": piece.text})
        call = piece.call
        if open_text and (call is not None or piece.finish_reason is not None):
            open_text = False
            yield event("content_block_stop", index=blocks)
            blocks += 1
        if call is not None and call.first:
            yield event("content_block_start", index=blocks, content_block=_tool_use(call))
        if call is not None and call.arguments:
            delta = {"type": "input_json_delta", "partial_json": call.arguments}
            yield event("content_block_delta", index=blocks, delta=delta)
        if call is not None and call.last:
            yield event("content_block_stop", index=blocks)
            blocks += 1
        if piece.finish_reason is not None:
            yield event("message_delta", delta=ending(piece), usage=usage(piece.statistics))
            yield event("message_stop")


def error_event(error: ApiError, request_id: str, number: int) -> Event:
    """The last event of a stream that breaks off."""
    return "error", error.body(True, request_id)
