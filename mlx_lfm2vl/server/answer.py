"""Answers of an engine as a server passes them on: pieces of text and of tool calls, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.handle import Request
from ..errors import EngineClosedError
from ..generation.detokenizer import Decoder
from ..generation.response import NOTHING, GenerationResponse, Statistics
from ..processing.conversation import CALL_END, CALL_START
from ..processing.tokenizer import Tokenizer
from .api_error import ApiError
from .api_request import ApiRequest
from .tool_calls import CallDelta, CallReader, joined_calls


@dataclass(frozen=True)
class Piece:
    """A part of one choice of a request, text or some of a call. `finish_reason` is None but on its last piece: "stop",
    "length" (no tokens, positions or seconds were left) or "tool_calls". `statistics` are those until then, on the
    first and the last piece. `stop_text`: the stop text that ended the answer, if one did. `logprobs`: `entries` of its
    tokens."""

    choice: int
    text: str = ""
    call: CallDelta | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)
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
    held = TextTokens(tokenizer) if asked.options.logprobs and asked.options.stop else None
    async for response in request:
        logprobs = entries(response, tokenizer)
        if held is not None:
            logprobs = held.read(response, logprobs)
        parts = calls.read(response)
        if not (parts or logprobs or response.finish_reason or (response.tokens and held is None)):
            continue
        made = [Piece(choice, part) if isinstance(part, str) else Piece(choice, call=part) for part in parts or [""]]
        made[0] = replace(made[0], logprobs=logprobs)
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


def entries(response: GenerationResponse, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """An entry for each token; none for an answer without logprobs."""
    if response.logprobs is None:
        return []
    found = []
    tops = response.top_logprobs or ((),) * len(response.tokens)
    for token, logprob, top in zip(response.tokens, response.logprobs, tops, strict=True):
        likely = [_entry(each.text, each.logprob) for each in top]
        found.append(_entry(tokenizer.decode([token]), logprob) | {"top_logprobs": likely})
    return found


def _entry(text: str, logprob: float) -> dict[str, Any]:
    """`bytes` is empty for a token that is a part of a character."""
    return {"token": text, "logprob": logprob, "bytes": [] if "\ufffd" in text else list(text.encode())}


def calls_of(answer: Sequence[Piece]) -> list[CallDelta]:
    """The tool calls of a whole choice."""
    return joined_calls(piece.call for piece in answer if piece.call is not None)


class TextTokens:
    """The tokens of one answer with stop texts and logprobs. Each comes with the response that tells its first
    character; at the end of an answer that no stop text ends, the rest comes, too."""

    def __init__(self, tokenizer: Tokenizer):
        self._decoder = Decoder(tokenizer, special=False)
        self._marks = tuple(map(tokenizer.backend.token_to_id, (CALL_START, CALL_END)))
        self._block = False  # whether calls are being written
        self._written = self._told = 0  # characters
        self._waiting: list[tuple[int | None, dict[str, Any]]] = []  # where a token's text begins, if it is text

    def read(self, response: GenerationResponse, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The `entries` of the tokens of its text. `found`: those of the response."""
        self._waiting += [(self._place(id), entry) for id, entry in zip(response.tokens, found, strict=True)]
        self._told += len(response.text)
        whole = response.finish_reason is not None and response.stop_text is None
        told = itertools.takewhile(lambda each: whole or each[0] is None or each[0] < self._told, self._waiting)
        ready = [entry for _, entry in told]
        self._waiting = self._waiting[len(ready) :]
        return ready

    def _place(self, token: int) -> int | None:
        start, end = self._marks
        if token == start and not self._block:
            self._block = True
            self._written += len(self._decoder.finish())
        if self._block:
            self._block = token != end
            return None
        place = self._written
        self._written += len(self._decoder.push(token))
        return place
