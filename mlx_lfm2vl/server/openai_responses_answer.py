"""Answers as OpenAI's responses, and as the events of a stream of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from ..generation.response import Statistics
from ..processing.tokenizer import Tokenizer
from .answer import Answer, Piece
from .api_error import ApiError
from .api_request import ApiRequest
from .logprobs import entries
from .tool_calls import Call, CallDelta

Event = tuple[str | None, Any]


def head(id: str, created: int, asked: ApiRequest) -> dict[str, Any]:
    """A response that has not ended."""
    defaults: dict[str, Any] = {
        "instructions": None,
        "metadata": {},
        "temperature": None,
        "top_p": None,
        "max_output_tokens": None,
    }
    defaults |= {"tools": [], "tool_choice": "auto", "text": {"format": {"type": "text"}}}
    fixed: dict[str, Any] = {"error": None, "incomplete_details": None, "previous_response_id": None, "store": False}
    fixed |= {"truncation": "disabled", "background": False, "usage": None, "output": [], "status": "in_progress"}
    top = {"id": id, "object": "response", "created_at": created, "model": asked.model}
    return top | fixed | defaults | asked.echo


def usage(statistics: Statistics) -> dict[str, Any]:
    return {
        "input_tokens": statistics.prompt_tokens,
        "input_tokens_details": {"cached_tokens": statistics.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": statistics.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": statistics.prompt_tokens + statistics.generated_tokens,
    }


def ended(top: dict[str, Any], output: list[dict[str, Any]], part: Answer | Piece) -> dict[str, Any]:
    """The response with its output, once it has ended."""
    cut = part.finish_reason == "length"
    details = {"reason": "max_output_tokens"} if cut else None
    status = "incomplete" if cut else "completed"
    return top | {"output": output, "status": status, "incomplete_details": details, "usage": usage(part.statistics)}


def text_item(id: str, text: str, status: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": [part]}


def whole_call(call: Call) -> dict[str, Any]:
    """A call that has ended."""
    return call_item(call, "incomplete" if call.cut else "completed", call.arguments)


def call_item(call: Call | CallDelta, status: str, arguments: str) -> dict[str, Any]:
    ids = {"id": f"fc_{call.id}", "call_id": f"call_{call.id}"}
    return {"type": "function_call", **ids, "name": call.name, "arguments": arguments, "status": status}


def logprobs(asked: ApiRequest, part: Answer | Piece, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    return entries(part, tokenizer) if asked.options.logprobs else []


def response(id: str, created: int, asked: ApiRequest, answers: list[Answer], tokenizer: Tokenizer) -> dict[str, Any]:
    """The body of a whole answer."""
    (answer,) = answers
    status = "incomplete" if answer.finish_reason == "length" else "completed"
    output = [whole_call(call) for call in answer.calls]
    if answer.text or not output:
        output.insert(0, text_item(_message_id(id), answer.text, status, logprobs(asked, answer, tokenizer)))
    return ended(head(id, created, asked), output, answer)


def _message_id(id: str) -> str:
    return f"msg_{id.removeprefix('resp_')}"


class _Output:
    """The items of a stream, in the events that make them."""

    def __init__(self, id: str, asked: ApiRequest, tokenizer: Tokenizer):
        self._message, self._asked, self._tokenizer = _message_id(id), asked, tokenizer
        self.items: list[dict[str, Any]] = []
        self._number = 0
        self._text: list[str] | None = None  # of the item that is open
        self._logprobs: list[dict[str, Any]] = []
        self._call: list[str] | None = None  # the arguments of the item that is open

    @property
    def _id(self) -> str:
        """The id of the message that is, or would be, the next item: text behind calls is one of its own."""
        return f"{self._message}_{len(self.items)}" if self.items else self._message

    def event(self, kind: str, **data: Any) -> Event:
        self._number += 1
        return kind, {"type": kind, "sequence_number": self._number - 1, **data}

    def text(self, piece: Piece) -> Iterator[Event]:
        place = {"item_id": self._id, "output_index": len(self.items), "content_index": 0}
        if self._text is None:
            self._text, self._logprobs = [], []
            empty = text_item(self._id, "", "in_progress", [])
            (part,) = empty.pop("content")
            yield self.event("response.output_item.added", output_index=len(self.items), item={**empty, "content": []})
            yield self.event("response.content_part.added", **place, part=part)
        self._text.append(piece.text)
        found = logprobs(self._asked, piece, self._tokenizer)
        self._logprobs += found
        yield self.event("response.output_text.delta", **place, delta=piece.text, logprobs=found)

    def end_text(self, status: str) -> Iterator[Event]:
        if self._text is None:
            return
        place = {"item_id": self._id, "output_index": len(self.items), "content_index": 0}
        text, self._text = "".join(self._text), None
        item = text_item(self._id, text, status, self._logprobs)
        yield self.event("response.output_text.done", **place, text=text, logprobs=self._logprobs)
        yield self.event("response.content_part.done", **place, part=item["content"][0])
        yield self.event("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)

    def call(self, call: CallDelta) -> Iterator[Event]:
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
            item = whole_call(Call(call.id, call.name, arguments, call.cut))
            yield self.event("response.function_call_arguments.done", **place, name=call.name, arguments=arguments)
            yield self.event("response.output_item.done", output_index=index, item=item)
            self.items.append(item)


async def events(
    id: str, created: int, asked: ApiRequest, pieces: AsyncIterator[Piece], tokenizer: Tokenizer
) -> AsyncIterator[Event]:
    """The events of a stream."""
    top, output = head(id, created, asked), _Output(id, asked, tokenizer)
    yield output.event("response.created", response=top)
    yield output.event("response.in_progress", response=top)
    async for piece in pieces:
        last = piece.finish_reason is not None
        if piece.call is not None:
            for event in (*output.end_text("completed"), *output.call(piece.call)):
                yield event
        elif piece.text or (last and not output.items):
            for event in output.text(piece):
                yield event
        if last:
            for event in output.end_text("incomplete" if piece.finish_reason == "length" else "completed"):
                yield event
            whole = ended(top, output.items, piece)
            yield output.event(f"response.{whole['status']}", response=whole)


def error_event(error: ApiError, request_id: str, number: int) -> Event:
    """The last event of a stream that breaks off."""
    said = {"code": error.code, "message": error.message, "param": error.param}
    return "error", {"type": "error", "sequence_number": number, **said}
