"""Answers as OpenAI's responses, and as the events of a stream of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from ..generation.response import Statistics
from ..processing.conversation import CALL_END, CALL_START
from .answer import Piece
from .api_error import ApiError
from .api_request import ApiRequest
from .sending import COMMENT, Event
from .tool_calls import CallDelta

PREFIX, HEARTBEAT = "resp_", COMMENT


def head(id: str, created: int, asked: ApiRequest) -> dict[str, Any]:
    """A response that has not ended."""
    made: dict[str, Any] = {"id": id, "object": "response", "created_at": created, "model": asked.model}
    made |= {"error": None, "incomplete_details": None, "previous_response_id": None, "store": False}
    made |= {"truncation": "disabled", "background": False, "usage": None, "output": [], "status": "in_progress"}
    made |= {"instructions": None, "metadata": {}, "temperature": None, "top_p": None, "max_output_tokens": None}
    made |= {"tools": [], "tool_choice": "auto", "text": {"format": {"type": "text"}}}
    return made | asked.echo


def usage(statistics: Statistics) -> dict[str, Any]:
    return {
        "input_tokens": statistics.prompt_tokens,
        "input_tokens_details": {"cached_tokens": statistics.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": statistics.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": statistics.prompt_tokens + statistics.generated_tokens,
    }


def ended(top: dict[str, Any], output: list[dict[str, Any]], last: Piece) -> dict[str, Any]:
    """The response with its output, once it has ended."""
    cut = last.finish_reason == "length"
    details = {"reason": "max_output_tokens"} if cut else None
    status = "incomplete" if cut else "completed"
    return top | {"output": output, "status": status, "incomplete_details": details, "usage": usage(last.statistics)}


def text_item(id: str, text: str, status: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": [part]}


def call_item(call: CallDelta, status: str, arguments: str) -> dict[str, Any]:
    ids = {"id": f"fc_{call.id}", "call_id": f"call_{call.id}"}
    return {"type": "function_call", **ids, "name": call.name, "arguments": arguments, "status": status}


def response(id: str, created: int, asked: ApiRequest, answers: list[list[Piece]]) -> dict[str, Any]:
    """The body of a whole answer. It has the items of a stream."""
    (answer,) = answers
    output = _Output(id, asked)
    for piece in answer:
        for _ in output.read(piece):
            pass
    return ended(head(id, created, asked), output.items, answer[-1])


class _Output:
    """The items of a stream, in the events that make them."""

    def __init__(self, id: str, asked: ApiRequest):
        self._message, self._tools = f"msg_{id.removeprefix(PREFIX)}", bool(asked.tools)
        self.items: list[dict[str, Any]] = []
        self._number = 0
        self._text: list[str] | None = None  # of the item that is open
        self._logprobs: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []  # logprobs of tokens of which no text has come
        self._block = False  # whether calls are being written
        self._call: list[str] | None = None  # the arguments of the item that is open

    @property
    def _id(self) -> str:
        """The id of the message that is, or would be, the next item: text behind calls is one of its own."""
        return f"{self._message}_{len(self.items)}" if self.items else self._message

    def event(self, kind: str, **data: Any) -> Event:
        self._number += 1
        return kind, {"type": kind, "sequence_number": self._number - 1, **data}

    def read(self, piece: Piece) -> Iterator[Event]:
        """The events of a piece."""
        last = piece.finish_reason is not None
        self._waiting += self._of_text(piece)
        if piece.call is not None:
            yield from self._end_text("completed")
            yield from self._add_call(piece.call)
        elif piece.text or (self._waiting if self._text is not None else last and not self.items):
            yield from self._add_text(piece.text)
        if last:
            yield from self._end_text("incomplete" if piece.finish_reason == "length" else "completed")

    def _of_text(self, piece: Piece) -> list[dict[str, Any]]:
        """The logprobs of the tokens that are in no block of calls."""
        found: list[dict[str, Any]] = []
        for entry in piece.logprobs:
            self._block = self._block or (self._tools and entry["token"] == CALL_START)
            if not self._block:
                found.append(entry)
            self._block = self._block and entry["token"] != CALL_END
        return found

    def _add_text(self, text: str) -> Iterator[Event]:
        place = {"item_id": self._id, "output_index": len(self.items), "content_index": 0}
        if self._text is None:
            self._text, self._logprobs = [], []
            empty = text_item(self._id, "", "in_progress", [])
            (part,) = empty.pop("content")
            yield self.event("response.output_item.added", output_index=len(self.items), item={**empty, "content": []})
            yield self.event("response.content_part.added", **place, part=part)
        self._text.append(text)
        found, self._waiting = self._waiting, []
        self._logprobs += found
        yield self.event("response.output_text.delta", **place, delta=text, logprobs=found)

    def _end_text(self, status: str) -> Iterator[Event]:
        if self._text is None:
            return
        place = {"item_id": self._id, "output_index": len(self.items), "content_index": 0}
        text, self._text = "".join(self._text), None
        item = text_item(self._id, text, status, self._logprobs)
        yield self.event("response.output_text.done", **place, text=text, logprobs=self._logprobs)
        yield self.event("response.content_part.done", **place, part=item["content"][0])
        yield self.event("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)

    def _add_call(self, call: CallDelta) -> Iterator[Event]:
        index = len(self.items)
        begun = call_item(call, "in_progress", "")
        place = {"item_id": begun["id"], "output_index": index}
        if self._call is None:
            self._call = []
            yield self.event("response.output_item.added", output_index=index, item=begun)
        if call.arguments:
            self._call.append(call.arguments)
            yield self.event("response.function_call_arguments.delta", **place, delta=call.arguments)
        if call.last:
            arguments, self._call = "".join(self._call), None
            item = call_item(call, "incomplete" if call.cut else "completed", arguments)
            yield self.event("response.function_call_arguments.done", **place, name=call.name, arguments=arguments)
            yield self.event("response.output_item.done", output_index=index, item=item)
            self.items.append(item)


async def events(id: str, created: int, asked: ApiRequest, pieces: AsyncIterator[Piece]) -> AsyncIterator[Event]:
    """The events of a stream."""
    top, output = head(id, created, asked), _Output(id, asked)
    yield output.event("response.created", response=top)
    yield output.event("response.in_progress", response=top)
    async for piece in pieces:
        for event in output.read(piece):
            yield event
        if piece.finish_reason is not None:
            whole = ended(top, output.items, piece)
            yield output.event(f"response.{whole['status']}", response=whole)


def error_event(error: ApiError, request_id: str, number: int) -> Event:
    """The last event of a stream that breaks off."""
    said = {"code": error.code, "message": error.message, "param": error.param}
    return "error", {"type": "error", "sequence_number": number, **said}
