"""A request from its body to its last byte: read, put to the engine of its model, passed on, cancelled if the client
goes away."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from ..engine.handle import Request
from ..errors import EngineClosedError
from ..generation.request import GenerationRequest
from ..generation.response import Completion
from ..processing.tokenizer import Tokenizer
from . import task_requests
from .answer import Piece, pieces, statistics_of
from .api_error import ApiError
from .api_request import ApiRequest, Rules
from .fields import Fields, parse_body
from .limits import BodyReader
from .log import RequestRecord
from .models import Model, Models
from .pictures import detail_overrides
from .sending import Event, event_stream, send_json
from .task_requests import TaskRequest

T = TypeVar("T")
Parse = Callable[[Fields, Rules], Any]  # of a body
Work = Callable[[Any, RequestRecord, Send], Coroutine[Any, Any, None]]
THREADS = 2  # that parse, as many that read the pictures of tasks, and as many that count tokens
SMALL, LARGE = 2**14, 2**18  # bytes of a body that is read at once: of any, and of one with few values
VALUES = 1000
FORMS = ("tools", "response_format", "text", "output_config", "schema")  # fields whose schemas may take seconds
GONE = 499  # the status of a request whose client went away


class Writer(Protocol):
    """A module that writes the answers of a protocol, and their streams. `PREFIX` is that of the ids of answers,
    `HEARTBEAT` a sign of life in a stream."""

    PREFIX: str
    HEARTBEAT: bytes

    def response(self, id: str, created: int, asked: ApiRequest, answers: list[list[Piece]]) -> dict[str, Any]: ...
    def events(
        self, id: str, created: int, asked: ApiRequest, pieces: AsyncIterator[Piece]
    ) -> AsyncIterator[Event]: ...
    def error_event(self, error: ApiError, request_id: str, number: int) -> Event: ...


@dataclass
class Answering:
    """Answers requests. `deadline`: seconds that an answer may take at most, whatever a request says. `draft`: as in
    `GenerationOptions`, for all answers."""

    models: Models
    rules: Rules
    deadline: float | None = None
    draft: Any = None

    def __post_init__(self) -> None:
        self._reader = BodyReader(self.rules.limits)
        # no body waits for a model, for slow addresses of pictures or for another one's count
        self._parsers = ThreadPoolExecutor(THREADS, "mlx-lfm2vl parser")
        self._tasks = ThreadPoolExecutor(THREADS, "mlx-lfm2vl task")
        self._counters = ThreadPoolExecutor(THREADS, "mlx-lfm2vl counter")

    def close(self) -> None:
        """Ends the threads."""
        for pool in (self._parsers, self._tasks, self._counters):
            pool.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def parsed(self, scope: Scope, receive: Receive, parse: Parse) -> AsyncIterator[Any]:
        """A body, read by `parse`; a large one, or one with schemas, beside the event loop. It counts against the limit
        of all bodies until the block ends. Raises `ApiError` and `ConnectionError`."""
        async with self._reader.body(scope, receive) as body:
            scope["record"].came = time.monotonic()
            beside = not is_light(body)
            if beside:
                work = functools.partial(_parse, body, parse, self.rules)
            else:
                given = parse_body(body)
                beside = any(name in given for name in FORMS)
                work = functools.partial(parse, given, self.rules)
                del given
            del body
            asked = await asyncio.get_running_loop().run_in_executor(self._parsers, work) if beside else work()
            del work  # the body is not kept beside what is read of it
            yield asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send, parse: Parse, work: Work) -> None:
        """Reads a body and does the work that it asks for, `answer`, `count_tokens` or `do_task`."""
        async with self.parsed(scope, receive, parse) as asked:
            await while_connected(work(asked, scope["record"], send), receive, scope["record"])

    async def count_tokens(self, asked: ApiRequest, record: RequestRecord, send: Send) -> None:
        """Sends the number of tokens of a prompt."""
        async with self.models.use(asked.model) as model:
            assert model.engine is not None
            count = functools.partial(
                model.engine.count_tokens, asked.messages, tools=asked.tools, **asked.image_overrides
            )
            tokens = await asyncio.get_running_loop().run_in_executor(self._counters, count)
        await send_json(send, {"input_tokens": tokens})

    async def do_task(self, asked: TaskRequest, record: RequestRecord, send: Send) -> None:
        """Sends the result of a task."""
        record.model = self.models.find(asked.model).id
        async with until(self._end(asked, record)) as limit, self.models.use(asked.model) as model:
            assert model.processor is not None and model.config is not None
            pictures = model.processor.image_processor
            make = functools.partial(asked.made, model.config, model.source, pictures.source_policy, pictures.config)
            task, requests = await asyncio.get_running_loop().run_in_executor(self._tasks, make)
            requests = [replace(each, options=replace(each.options, draft=self.draft)) for each in requests]
            async with submitted(model, requests, limit, record) as running:
                answers = [Completion.of([piece async for piece in heard(request, record)]) for request in running]
            if any(answer.finish_reason == "deadline" for answer in answers):
                raise ApiError(504, "the result was not whole before the deadline; give more time, or ask for less")
            if any(answer.finish_reason == "cancelled" for answer in answers):
                raise EngineClosedError("the engine let go of its model before the result was whole")
            await send_json(send, task_requests.response(asked, task, requests, answers))

    def _end(self, asked: ApiRequest | TaskRequest, record: RequestRecord) -> float | None:
        """The time.monotonic() of the first of the deadlines, which count from when the body was here."""
        given = [seconds for seconds in (asked.deadline, self.deadline) if seconds is not None]
        return record.came + min(given) if given else None

    @contextlib.asynccontextmanager
    async def _submitted(
        self, asked: ApiRequest, record: RequestRecord
    ) -> AsyncIterator[tuple[list[Request], Tokenizer]]:
        """The requests of the engine, one a choice, and the tokenizer of the model."""
        async with until(self._end(asked, record)) as limit, self.models.use(asked.model) as model:
            assert model.processor is not None
            overrides = {**detail_overrides(asked.detail, model.processor), **asked.image_overrides}
            options = asked.options if self.draft is None else replace(asked.options, draft=self.draft)
            question = GenerationRequest(asked.messages, tools=asked.tools, options=options, image_overrides=overrides)
            async with submitted(model, question.repeat(asked.choices), limit, record) as requests:
                yield requests, model.processor.tokenizer

    async def answer(self, writer: Writer, asked: ApiRequest, record: RequestRecord, send: Send) -> None:
        """Sends an answer, or its stream, in a protocol."""
        record.model = self.models.find(asked.model).id
        id, created = f"{writer.PREFIX}{secrets.token_hex(12)}", int(time.time())
        if asked.stream:
            await self._stream(asked, record, send, writer, (id, created))
            return
        async with self._submitted(asked, record) as (requests, tokenizer):
            listed = [piece async for piece in heard(pieces(requests, asked, tokenizer), record)]
            answers = [[piece for piece in listed if piece.choice == choice] for choice in range(asked.choices)]
            await send_json(send, writer.response(id, created, asked, answers))

    async def _stream(
        self, asked: ApiRequest, record: RequestRecord, send: Send, writer: Writer, head: tuple[str, int]
    ) -> None:
        def of_error(error: ApiError, number: int) -> Event:
            return writer.error_event(error, record.id, number)

        seconds = self.rules.limits.heartbeat_seconds
        async with (
            event_stream(send, seconds, writer.HEARTBEAT, of_error) as stream,
            self._submitted(asked, record) as (requests, tokenizer),
        ):
            found = heard(pieces(requests, asked, tokenizer), record)
            if not all([await request.wait_until_read() for request in requests]):
                found = chained(await anext(found), found)  # what is wrong with a request is told by its status
            await stream.begin()
            async for event in writer.events(*head, asked, found):
                await stream.add(event)


@contextlib.asynccontextmanager
async def until(end: float | None) -> AsyncIterator[asyncio.Timeout]:
    """Ends the block with error 504 at `end`, of time.monotonic(), unless its requests are `submitted` before."""
    limit = asyncio.timeout(None if end is None else end - time.monotonic())
    try:
        async with limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
        raise ApiError(504, "nothing was answered before the deadline; give more time, or ask for less") from None


@contextlib.asynccontextmanager
async def submitted(
    model: Model, questions: Sequence[GenerationRequest], limit: asyncio.Timeout, record: RequestRecord
) -> AsyncIterator[list[Request]]:
    """Questions as requests of the engine, which end with the block, and when the limit would; from here on the engine
    sees to it. What they took is noted, also of those that are cut. Raises `QueueFullError`."""
    assert model.engine is not None
    end = limit.when()
    deadline = None if end is None else max(end - asyncio.get_running_loop().time(), 1e-6)
    if not limit.expired():
        limit.reschedule(None)
    requests: list[Request] = []
    try:
        for question in questions:
            given = dict(vars(question))
            overrides = given.pop("image_overrides")
            requests.append(model.engine.submit(**given, deadline=deadline, **overrides))
        yield requests
    finally:
        record.answers += [taken for request in requests if (taken := statistics_of(request)) is not None]
        for request in requests:
            request.cancel()


def is_light(body: bytes) -> bool:
    """Whether a body is read sooner than another thread gets it: a small one, or one of few values, as of a picture."""
    size = len(body)
    return size <= SMALL or (size <= LARGE and sum(map(body.count, (b",", b"[", b"{"))) <= VALUES)


def _parse(body: bytes, parse: Parse, rules: Rules) -> Any:
    return parse(parse_body(body), rules)


async def while_connected(work: Coroutine[Any, Any, None], receive: Receive, record: RequestRecord) -> None:
    """Does the work, and cancels it as soon as the client goes away."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done() or record.complete:
            await task
        else:
            record.status = GONE
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def heard(found: AsyncIterable[T], record: RequestRecord) -> AsyncIterator[T]:
    """The same pieces; the time of the first is noted."""
    async for piece in found:
        record.hear()
        yield piece


async def chained(first: Piece, found: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in found:
        yield piece
