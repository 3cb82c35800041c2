"""Answers of an engine as a server passes them on: pieces of text and of tool calls, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from ..engine.handle import Request
from ..errors import EngineClosedError
from ..generation.response import NOTHING, GenerationResponse, Statistics, TopLogprob
from ..processing.tokenizer import Tokenizer
from .api_error import ApiError
from .api_request import ApiRequest
from .text_tokens import TextTokens
from .tool_calls import Call, CallDelta, CallReader, joined_calls


@dataclass(frozen=True)
class Piece:
    """A part of one choice of a request, text or some of a call. `finish_reason` is None but on its last piece: "stop",
    "length" (no tokens, positions or seconds were left) or "tool_calls". `statistics` are those until then, on the
    first and the last piece. `stop_text`: the stop text that ended the answer, if one did."""

    choice: int
    text: str = ""
    call: CallDelta | None = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    finish_reason: str | None = None
    statistics: Statistics = NOTHING
    stop_text: str | None = None


async def pieces(requests: Sequence[Request], asked: ApiRequest, tokenizer: Tokenizer) -> AsyncIterator[Piece]:
    """The pieces of all choices as they come. Raises what the engine raises, `EngineClosedError` where an answer was
    cut by the engine, and `ApiError` where nothing came before the deadline."""
    if len(requests) == 1:
        async for piece in _pieces(requests[0], asked, tokenizer, 0):
            yield piece
        return
    queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    async def feed(choice: int, request: Request) -> None:
        try:
            async for piece in _pieces(request, asked, tokenizer, choice):
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


async def _pieces(request: Request, asked: ApiRequest, tokenizer: Tokenizer, choice: int) -> AsyncIterator[Piece]:
    calls, first = CallReader(asked), True
    tokens = TextTokens(tokenizer) if asked.options.logprobs and asked.options.stop else None
    async for response in request:
        if tokens is not None:
            response = tokens.read(response)
        parts = calls.read(response)
        if not (parts or response.tokens or response.finish_reason):
            continue
        made = [Piece(choice, part) if isinstance(part, str) else Piece(choice, call=part) for part in parts or [""]]
        logprobs, top = response.logprobs or (), response.top_logprobs or ()
        made[0] = replace(made[0], tokens=response.tokens, logprobs=logprobs, top_logprobs=top)
        if first:
            made[0], first = replace(made[0], statistics=statistics_of(request) or NOTHING), False
        if response.finish_reason is not None:
            statistics = response.statistics or NOTHING
            reason, stop = _reason(response, statistics, calls), response.stop_text
            made[-1] = replace(made[-1], finish_reason=reason, statistics=statistics, stop_text=stop)
        for piece in made:
            yield piece


def statistics_of(request: Request) -> Statistics | None:
    """The statistics of a request until now; None for one that waits, or has ended with an error."""
    so_far = request.so_far  # the engine takes it away as the request ends
    if so_far is not None:
        return so_far()
    with contextlib.suppress(Exception):  # which is raised where the answer is read
        return request.result(0).statistics
    return None


def _reason(response: GenerationResponse, statistics: Statistics, calls: CallReader) -> str:
    """OpenAI's word for the end of an answer."""
    if response.finish_reason == "cancelled":
        raise EngineClosedError("the engine let go of its model before the answer was whole")
    if response.finish_reason == "deadline" and not statistics.generated_tokens:
        raise ApiError(504, "nothing was answered before the deadline; give more time, or ask for less")
    if response.finish_reason == "stop":
        return "tool_calls" if calls.count and not calls.broken else "stop"
    return "length"


@dataclass(frozen=True)
class Answer:
    """The whole of one choice, and its `pieces`."""

    pieces: tuple[Piece, ...]
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
        tuple(own),
        "".join(piece.text for piece in own),
        joined_calls([piece.call for piece in own if piece.call is not None]),
        tuple(token for piece in own for token in piece.tokens),
        tuple(value for piece in own for value in piece.logprobs),
        tuple(value for piece in own for value in piece.top_logprobs),
        own[-1].finish_reason or "stop",
        own[-1].statistics,
        own[-1].stop_text,
    )
