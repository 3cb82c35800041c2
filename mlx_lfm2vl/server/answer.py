"""Answers of an engine as a server passes them on: pieces of text, tool calls that are read, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engine.handle import Request
from ..errors import EngineClosedError
from ..generation.response import NOTHING, GenerationResponse, Statistics, TopLogprob
from ..generation.tools import read_tool_calls
from ..processing.conversation import CALL_END, CALL_START
from .api_error import ApiError
from .api_request import ApiRequest

STRING = r'"(?:[^"\\]|\\.)*"'
MEMBER = re.compile(rf"\s*[{{,]\s*({STRING})\s*:\s*")  # of an object, up to its value
CUT = re.compile(rf'\{{"name": ({STRING}), "arguments": (\{{.*)', re.S)  # a call in JSON without its end
BETWEEN = re.compile(r"[\s,]*")  # two calls


@dataclass(frozen=True)
class Call:
    """A tool call; `id` lacks the prefix of the protocol, `arguments` is an object as JSON, of which the end is missing
    where the call is `cut`."""

    id: str
    name: str
    arguments: str
    cut: bool = False

    @property
    def members(self) -> dict[str, Any]:
        """The arguments that are whole."""
        if not self.cut:
            return dict(json.loads(self.arguments))
        found, at = {}, 0
        while name := MEMBER.match(self.arguments, at):
            try:
                value, at = json.JSONDecoder().raw_decode(self.arguments, name.end())
            except ValueError:
                break
            if not isinstance(value, (str, dict, list)) and self.arguments[at : at + 1] not in (",", "}"):
                break  # a number may go on
            found[json.loads(name[1])] = value
        return found


@dataclass(frozen=True)
class Piece:
    """A part of one choice of a request. `finish_reason` is None but on its last piece: "stop", "length" (no tokens,
    positions or seconds were left) or "tool_calls". `statistics` are those until then, on the first and the last piece.
    `stop_text`: the stop text that ended the answer, if one did."""

    choice: int
    text: str = ""
    calls: tuple[Call, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    finish_reason: str | None = None
    statistics: Statistics = NOTHING
    stop_text: str | None = None


async def pieces(requests: Sequence[Request], asked: ApiRequest) -> AsyncIterator[Piece]:
    """The pieces of all choices as they come. Raises what the engine raises, `EngineClosedError` where an answer was
    cut by the engine, and `ApiError` where nothing came before the deadline."""
    if len(requests) == 1:
        async for piece in _pieces(requests[0], asked, 0):
            yield piece
        return
    queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    async def feed(choice: int, request: Request) -> None:
        try:
            async for piece in _pieces(request, asked, choice):
                queue.put_nowait(piece)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(feed(choice, request)) for choice, request in enumerate(requests)]
    try:
        open_choices = len(tasks)
        while open_choices:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            open_choices -= item.finish_reason is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces(request: Request, asked: ApiRequest, choice: int) -> AsyncIterator[Piece]:
    called, first = False, True
    async for response in request:
        text, calls = _read(response, asked)
        if called and not asked.several_calls:
            calls = ()
        called = called or bool(calls)
        logprobs, top = response.logprobs or (), response.top_logprobs or ()
        piece = Piece(choice, text, calls, response.tokens, logprobs, top, stop_text=response.stop_text)
        if first:
            piece, first = replace(piece, statistics=statistics_of(request) or NOTHING), False
        if response.finish_reason is not None:
            statistics = response.statistics or NOTHING
            yield replace(piece, finish_reason=_reason(response, statistics, called), statistics=statistics)
        elif text or calls or response.tokens:
            yield piece


def statistics_of(request: Request) -> Statistics | None:
    """The statistics of a request until now; None for one that waits, or has ended with an error."""
    so_far = request.so_far  # the engine takes it away as the request ends
    if so_far is not None:
        return so_far()
    with contextlib.suppress(Exception):  # which is raised where the answer is read
        return request.result(0).statistics
    return None


def _reason(response: GenerationResponse, statistics: Statistics, called: bool) -> str:
    """OpenAI's word for the end of an answer."""
    if response.finish_reason == "cancelled":
        raise EngineClosedError("the engine let go of its model before the answer was whole")
    if response.finish_reason == "deadline" and not statistics.generated_tokens:
        raise ApiError(504, "nothing was answered before the deadline; give more time, or ask for less")
    if response.finish_reason == "stop":
        return "tool_calls" if called else "stop"
    return "length"


def _read(response: GenerationResponse, asked: ApiRequest) -> tuple[str, tuple[Call, ...]]:
    """The text and the calls of a response. A call that cannot be read, or that nobody asked for, is text. So is one
    that was cut off before its arguments began."""
    if not response.tool_text:
        return response.text, ()
    if not asked.tools:
        return response.text + response.tool_text, ()
    found, errors = read_tool_calls(response.tool_text)
    is_cut = response.finish_reason not in (None, "stop") and CALL_END not in response.tool_text
    cut = _cut_call(response.tool_text) if is_cut else None
    if (cut is None and not found) or (errors and not is_cut):
        return response.text + response.tool_text, ()
    made = [
        Call(secrets.token_hex(12), call.name, json.dumps(call.arguments, ensure_ascii=False))
        for call in (found if asked.several_calls else found[:1])
    ]
    return response.text, (*made, *([cut] if cut is not None and (asked.several_calls or not made) else ()))


def _cut_call(text: str) -> Call | None:
    """The last call of a block without an end, if its arguments have begun."""
    at = text.rfind(CALL_START) + len(CALL_START)
    at += text.startswith("[", at)
    with contextlib.suppress(ValueError):
        while True:
            _, end = json.JSONDecoder().raw_decode(text, at)
            at = BETWEEN.match(text, end).end()  # type: ignore[union-attr]  # matches nothing at least
    begun = CUT.match(text, at)
    return begun and Call(secrets.token_hex(12), json.loads(begun[1]), begun[2], cut=True)


@dataclass(frozen=True)
class Answer:
    """The whole of one choice."""

    text: str
    calls: tuple[Call, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[TopLogprob, ...], ...]
    finish_reason: str
    statistics: Statistics
    stop_text: str | None


def whole(found: Sequence[Piece], choice: int) -> Answer:
    """A choice from all the pieces of a request."""
    own = [piece for piece in found if piece.choice == choice]
    return Answer(
        "".join(piece.text for piece in own),
        tuple(call for piece in own for call in piece.calls),
        tuple(token for piece in own for token in piece.tokens),
        tuple(value for piece in own for value in piece.logprobs),
        tuple(value for piece in own for value in piece.top_logprobs),
        own[-1].finish_reason or "stop",
        own[-1].statistics,
        own[-1].stop_text,
    )
