"""A model that lives in an app: one thread owns it and every MLX call; any other thread, or asyncio, asks.

Questions that wait together are answered together, and later ones join them. A question that fails, is cancelled or
runs out of time touches no other. `Engine.close` always returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx

from ..errors import EngineClosedError, NotFiniteError, OptionError, QueueFullError
from ..model.lfm2vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from . import features, prefix
from .batch import BATCH_SIZE
from .chat import Chat
from .engine_chat import EngineChat
from .features import FeatureCache
from .memory import MemoryLimits
from .options import GenerationOptions
from .prefix import PrefixCache
from .question import Prepared, Question, prepare
from .request import Request, Sink, check_seconds
from .run import GenerationPiece, Joining, prompt_statistics
from .start import RowsStart
from .stream import run_rows
from .watch import Progress, Stop

Loader = Callable[[], tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]]
T = TypeVar("T")
CLOSE_SECONDS = 30.0


@dataclass(eq=False)
class _Job:
    """What waits in the queue: a question (which may share a batch), or work of its own."""

    request: Request
    question: Question | None = None
    progress: Progress | None = None
    work: Callable[[Request], None] | None = None


class Engine:
    """`Engine(lambda: load("demo"))`. The loader runs in the engine's thread; use it as a context manager, or `close`.

    `max_queue`: requests that may wait; one more is `QueueFullError`, at once or after `wait` seconds. `max_batch`:
    questions answered together. `cache_limit`: bytes that MLX keeps for reuse (None: its default); what it keeps is
    given back after `idle_seconds` without work. `wired_limit`: bytes that macOS must not page out (None: what Metal
    recommends, 0: none; without effect elsewhere). Both limits are those of the process, and as before once the engine
    is closed. `feature_bytes`: encoded pictures that are remembered; `prefix_bytes`: beginnings of prompts that are.
    Raises `OptionError`.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        max_queue: int = 64,
        max_batch: int = BATCH_SIZE,
        cache_limit: int | None = None,
        wired_limit: int | None = None,
        idle_seconds: float = 5.0,
        feature_bytes: int = features.DEFAULT_BYTES,
        prefix_bytes: int = prefix.DEFAULT_BYTES,
    ):
        if not callable(loader):
            raise OptionError(f"loader is {loader!r}, expected a function such as `lambda: load('demo')`")
        for name, value in (("max_queue", max_queue), ("max_batch", max_batch)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} is {value!r}, expected an integer of at least 1")
        self._loader, self._max_queue, self._max_batch = loader, max_queue, max_batch
        self._limits = MemoryLimits(cache_limit, wired_limit)
        self._idle_seconds = check_seconds("idle_seconds", idle_seconds)
        self._features, self._prefixes = FeatureCache(feature_bytes), PrefixCache(prefix_bytes)
        self._jobs: deque[_Job] = deque()
        self._running: list[Request] = []
        self._changed = threading.Condition()
        self._closing = False
        self._ready = threading.Event()
        self._load_error: BaseException | None = None
        self._model: Lfm2VlForConditionalGeneration | None = None
        self._processor: Lfm2VlProcessor | None = None
        self._thread = threading.Thread(target=self._work, name="mlx-lfm2vl engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Asking

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Returns once the model is loaded. Raises what loading raised, or `TimeoutError`."""
        if not self._ready.wait(timeout):
            raise TimeoutError(f"the model is not loaded after {timeout} s")
        if self._load_error is not None:
            raise self._load_error

    def submit(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        images: Any = None,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: GenerationOptions | None = None,
        deadline: float | None = None,
        wait: float = 0.0,
        sink: Sink | None = None,
        progress: Progress | None = None,
        control_tokens: bool = False,
        **image_overrides: Any,
    ) -> Request:
        """Puts a question into the queue; arguments as for `stream_generate`.

        `deadline`: seconds from now after which the answer ends as "cancelled". `wait`: seconds to wait for a place in
        the queue. `sink` gets pieces and errors instead of the request's own reader, in the engine's thread, where
        `progress` is called too (with the tokens of all questions that are answered together). Raises `OptionError`,
        `QueueFullError` and `EngineClosedError`; what is wrong with the question itself is raised by the request.
        """
        chosen = options or GenerationOptions()
        question = Question(prompt, images, system, tools, chosen, image_overrides, control_tokens)
        request = Request(deadline, sink)
        self._put(_Job(request, question, progress), wait)
        return request

    def stream(self, *arguments: Any, **keywords: Any) -> Iterator[GenerationPiece]:
        """Pieces of `submit`'s answer. Dropping the iterator stops the work."""
        return iter(self.submit(*arguments, **keywords))

    def generate(self, *arguments: Any, timeout: float | None = None, **keywords: Any) -> str:
        """The text of `submit`'s answer; cancels it and raises `TimeoutError` after `timeout` seconds."""
        request = self.submit(*arguments, **keywords)
        try:
            return request.result(timeout).text
        finally:
            request.cancel()

    async def astream(self, *arguments: Any, **keywords: Any) -> AsyncIterator[GenerationPiece]:
        """`stream` for asyncio: the event loop is never blocked; leaving the loop, or cancelling the task, stops the
        work."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[GenerationPiece | BaseException] = asyncio.Queue()

        def sink(item: GenerationPiece | BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop was closed: nobody listens any more
                loop.call_soon_threadsafe(items.put_nowait, item)

        request = self.submit(*arguments, sink=sink, **keywords)
        try:
            while True:
                item = await items.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            request.cancel()

    def chat(self, **arguments: Any) -> EngineChat:
        """A conversation in this engine; arguments as for `Chat` without model and processor."""
        return EngineChat(self, self.call(lambda model, processor: Chat(model, processor, **arguments)))

    def call(self, function: Callable[[Lfm2VlForConditionalGeneration, Lfm2VlProcessor], T]) -> T:
        """Runs a function of model and processor in the engine's thread, after what waits there (at once, where that is
        the thread that calls), and returns its result or raises its error."""
        if threading.current_thread() is self._thread and self._model is not None and self._processor is not None:
            return function(self._model, self._processor)
        results: list[T] = []

        def work(request: Request) -> None:
            assert self._model is not None and self._processor is not None
            results.append(function(self._model, self._processor))
            request.deliver(GenerationPiece("", (), "stop"))

        self.enqueue(work).result()
        return results[0]

    def enqueue(
        self,
        work: Callable[[Request], None],
        deadline: float | None = None,
        wait: float = 0.0,
        sink: Sink | None = None,
    ) -> Request:
        """Puts work into the queue that delivers its own pieces to its request."""
        request = Request(deadline, sink)
        self._put(_Job(request, work=work), wait)
        return request

    def warm_up(self, text: str = "Hello.") -> None:
        """Makes the first real answer as fast as the next ones: loads, compiles and allocates by answering `text`."""
        self.submit(text, options=GenerationOptions(max_tokens=2)).result()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Cancels all requests and ends the thread. Returns after `timeout` seconds at the latest; may be repeated."""
        with self._changed:
            self._closing = True
            waiting, running = list(self._jobs), list(self._running)
            self._jobs.clear()
            self._changed.notify_all()
        for job in waiting:
            job.request.deliver(EngineClosedError("the engine was closed before the request began"))
        for request in running:
            request.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _put(self, job: _Job, wait: float) -> None:
        check_seconds("wait", wait)
        with self._changed:
            if not self._changed.wait_for(lambda: self._closing or len(self._jobs) < self._max_queue, wait):
                raise QueueFullError(f"{self._max_queue} requests wait already; try again later, or wait for a place")
            if self._closing:
                raise EngineClosedError("the engine is closed")
            self._jobs.append(job)
            self._changed.notify_all()

    # The thread

    def _work(self) -> None:
        with contextlib.ExitStack() as limits:
            try:
                limits.enter_context(self._limits)
                self._model, self._processor = self._loader()
            except BaseException as error:  # whoever waits must hear of it, whatever it is
                self._load_error = error
            self._ready.set()
            while (jobs := self._take()) is not None:
                if self._load_error is not None:
                    for job in jobs:
                        job.request.deliver(self._load_error)
                elif jobs[0].question is None:
                    self._alone(jobs[0])
                else:
                    self._together(jobs)
                del jobs  # what it holds may be large, and the next may be long in coming
                with self._changed:
                    self._running = []
            self._model = self._processor = None
            self._features.clear()
            self._prefixes.clear()
            mx.clear_cache()

    def _take(self) -> list[_Job] | None:
        """The next jobs that can be done together; None once the engine closes."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._closing or self._jobs, self._idle_seconds):
                mx.clear_cache()
                self._changed.wait_for(lambda: self._closing or self._jobs)
            if self._closing:
                return None
            jobs = [self._jobs.popleft()]
            while jobs[0].question and self._jobs and self._jobs[0].question and len(jobs) < self._max_batch:
                jobs.append(self._jobs.popleft())
            self._running = [job.request for job in jobs]
            self._changed.notify_all()
            return jobs

    def _alone(self, job: _Job) -> None:
        assert job.work is not None
        if job.request.stopped():
            job.request.give_up()
            return
        try:
            job.work(job.request)
        except BaseException as error:
            job.request.deliver(error)

    def _together(self, jobs: Sequence[_Job]) -> None:
        """Answers questions in one batch, which others may join."""
        started = time.perf_counter()
        present, rows = self._prepared(jobs)
        if present:
            self._run(present, rows, started)

    def _prepared(self, jobs: Sequence[_Job]) -> tuple[list[_Job], list[Prepared]]:
        """The jobs that can be answered, and their questions as arrays; the others hear of their end."""
        assert self._model is not None and self._processor is not None
        present: list[_Job] = []
        rows: list[Prepared] = []
        for job in jobs:
            assert job.question is not None
            if job.request.stopped():
                job.request.give_up()
            if job.request.done:
                continue
            try:
                rows.append(prepare(self._model, self._processor, job.question))
                present.append(job)
            except Exception as error:
                job.request.deliver(error)
        return present, rows

    def _run(self, jobs: list[_Job], rows: list[Prepared], started: float) -> None:
        assert self._model is not None and self._processor is not None

        def joining(present: int) -> Joining | None:
            assert self._model is not None
            begun = time.perf_counter()
            more, prepared = self._prepared(self._take_more(self._max_batch - present))
            if not more:
                return None
            jobs.extend(more)
            options = [row.options for row in prepared]
            stop = self._abandoned(more, prepared)
            start = RowsStart(self._model, prepared, self._features, self._prefixes)
            return Joining(start, options, begun, stop, _told(more))

        def failed(index: int, error: Exception) -> None:
            job = jobs[index]
            if isinstance(error, NotFiniteError) or job.request.started:
                job.request.deliver(error)
            else:
                failures.append(job)

        failures: list[_Job] = []
        try:
            mx.reset_peak_memory()
            for index, piece in run_rows(
                self._model,
                self._processor,
                rows,
                started=started,
                features=self._features,
                prefixes=self._prefixes,
                stop=self._abandoned(jobs, rows),
                row_stop=lambda index: jobs[index].request.stopped(),
                failed=failed,
                joining=joining,
                progress=_told(jobs),
            ):
                jobs[index].request.deliver(piece)
        except Exception as error:
            for job in jobs:
                if len(jobs) > 1 and not job.request.started:
                    failures.append(job)
                else:
                    job.request.deliver(error)
        # Whatever failed for all may be the fault of one: those who have heard nothing yet get a run of their own.
        for job in dict.fromkeys(failures):
            self._together([job])

    def _take_more(self, room: int) -> list[_Job]:
        """Questions that wait at the head of the queue, at most `room`."""
        with self._changed:
            jobs: list[_Job] = []
            while not self._closing and len(jobs) < room and self._jobs and self._jobs[0].question:
                jobs.append(self._jobs.popleft())
            if jobs:
                self._running += [job.request for job in jobs]
                self._changed.notify_all()
            return jobs

    def _abandoned(self, jobs: Sequence[_Job], rows: Sequence[Prepared]) -> Stop:
        """Asked before the first token: lets those go who have given up, and says whether all have."""
        asked = [(job.request, row.ids) for job, row in zip(jobs, rows, strict=True)]

        def abandoned() -> bool:
            assert self._model is not None
            for request, ids in asked:
                if request.stopped():
                    request.give_up(prompt_statistics(self._model, ids))
            return all(request.done for request, _ in asked)

        return abandoned


def _told(jobs: Sequence[_Job]) -> Progress | None:
    """Tells all who want to know."""
    told = [job.progress for job in jobs if job.progress is not None]

    def progress(done: int, total: int) -> None:
        for each in told:
            each(done, total)

    return progress if told else None
