"""A model that lives in an app: one thread owns it and every MLX call; any other thread, or asyncio, asks.

Questions that wait together are answered together, and later ones join them. Pictures and texts are read by further
threads meanwhile. A question that fails, is cancelled or runs out of time, or whose picture is slow to come, touches no
other. `Engine.close` always returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ..backends.memory import CacheLimit, WiredLimit, check_bytes
from ..errors import OptionError, QueueFullError
from ..generation import prompt_cache, vision_cache
from ..generation.batch import BATCH_SIZE
from ..generation.conversation import Conversation
from ..generation.messages import is_remote, snapshot
from ..generation.options import GenerationOptions
from ..generation.prompt_cache import PromptCache
from ..generation.request import EncodedPrompt, GenerationRequest, encode
from ..generation.response import GenerationResponse
from ..generation.vision_cache import VisionCache
from ..generation.watch import Progress, check_callable
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .chat import EngineChat
from .handle import Request, Sink, check_seconds
from .queue import Job
from .worker import Loader, Worker

T = TypeVar("T")
CLOSE_SECONDS = 30.0
PLACE_SECONDS = 0.02  # between looks for a place in the queue, in asyncio


def _read(
    model: Lfm2VlForConditionalGeneration, processor: Lfm2VlProcessor, request: GenerationRequest
) -> EncodedPrompt:
    """All of a request that needs no MLX."""
    prompt = encode(model, processor, request)
    _ = prompt.spans  # goes through all patches
    return prompt


class Engine:
    """`Engine(lambda: load("demo"))`. The loader runs in the engine's thread; use it as a context manager, or `close`.

    `max_queue`: requests that may wait; one more is `QueueFullError`, at once or after `wait` seconds. `max_batch`:
    questions answered together. `cache_limit`: bytes that MLX keeps for reuse (None: its default); what it keeps is
    given back after `idle_seconds` without work. `wired_limit`: bytes that macOS must not page out (None: what Metal
    recommends, 0: none; without effect elsewhere). Both limits are those of the process, and as before once the engine
    is closed. `vision_cache_bytes`: encoded pictures that are kept; `prompt_cache_bytes`: states of prompts and answers
    that are; `prompt_cache_folder`: where they are kept for the next process. Raises `OptionError`.
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
        vision_cache_bytes: int = vision_cache.DEFAULT_BYTES,
        prompt_cache_bytes: int = prompt_cache.DEFAULT_BYTES,
        prompt_cache_folder: str | os.PathLike[str] | None = None,
    ):
        if not callable(loader) or isinstance(loader, Lfm2VlForConditionalGeneration):
            given = type(loader).__name__ if callable(loader) else f"{loader!r:.60}"
            raise OptionError(f"loader is {given}, expected a function such as `lambda: load('demo')`")
        for name, value in (("max_queue", max_queue), ("max_batch", max_batch)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} is {value!r}, expected an integer of at least 1")
        self._worker = Worker(
            loader,
            max_queue,
            max_batch,
            (CacheLimit(cache_limit), WiredLimit(wired_limit)),
            check_seconds("idle_seconds", idle_seconds),
            VisionCache(check_bytes("vision_cache_bytes", vision_cache_bytes)),
            PromptCache(check_bytes("prompt_cache_bytes", prompt_cache_bytes), folder=prompt_cache_folder),
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Asking

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Returns once the model is loaded. Raises what loading raised, or `TimeoutError`."""
        self._worker.wait_until_ready(None if timeout is None else check_seconds("timeout", timeout))

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
        the queue. `sink` gets pieces and errors as they come, in the engine's thread (what is wrong with the question,
        and the end of a request that was cancelled before its turn, in another one of the engine's), where `progress`
        is called too, with the tokens of the prompt that are done, and all.

        Pictures are read and text is tokenised in other threads of the engine, a few questions at a time, while it
        answers; a question whose picture is slow to come is overtaken by others. Questions join those that are being
        answered, also before a `call` that waits, for the first 5 seconds. NumPy arrays, messages and tools are copied
        at once; leave PIL images and files as they are until the first response.

        Raises `OptionError`, `QueueFullError` and `EngineClosedError`; what is wrong with the question itself is raised
        by the request.
        """
        check_callable("progress", progress)
        chosen = GenerationOptions() if options is None else options
        question = GenerationRequest(
            snapshot(prompt), snapshot(images), system, snapshot(tools), chosen, image_overrides, control_tokens
        )
        request = Request(deadline, sink)
        read = functools.partial(_read, request=question)
        remote = is_remote(question.prompt, question.images)
        self._worker.put(Job(request, read, progress=progress, remote=remote), wait)
        return request

    def stream(self, *arguments: Any, **keywords: Any) -> Iterator[GenerationResponse]:
        """Pieces of `submit`'s answer. Dropping the iterator stops the work."""
        return iter(self.submit(*arguments, **keywords))

    def generate(self, *arguments: Any, timeout: float | None = None, **keywords: Any) -> str:
        """The text of `submit`'s answer; cancels it and raises `TimeoutError` after `timeout` seconds."""
        request = self.submit(*arguments, **keywords)
        try:
            return request.result(timeout).text
        finally:
            request.cancel()

    async def astream(
        self, *arguments: Any, wait: float = 0.0, deadline: float | None = None, **keywords: Any
    ) -> AsyncIterator[GenerationResponse]:
        """`stream` for asyncio: the event loop is never blocked; leaving the loop, or cancelling the task, stops the
        work."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[GenerationResponse | BaseException] = asyncio.Queue()

        def sink(item: GenerationResponse | BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop was closed: nobody listens any more
                loop.call_soon_threadsafe(items.put_nowait, item)

        begun = time.monotonic()
        end = begun + check_seconds("wait", wait)
        left = None if deadline is None else check_seconds("deadline", deadline)
        while True:
            try:
                request = self.submit(*arguments, sink=sink, deadline=left, **keywords)
                break
            except QueueFullError:
                if time.monotonic() >= end:
                    raise
                await asyncio.sleep(PLACE_SECONDS)
                left = None if deadline is None else max(0.0, begun + deadline - time.monotonic())
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
        """A conversation in this engine; arguments as for `Chat` without model, processor and caches, which are the
        engine's. Waits until the model is loaded, for nothing else."""
        self._worker.wait_until_ready(None)
        return EngineChat(self, Conversation(*self._worker.loaded, **arguments))

    def put(
        self,
        request: Request,
        read: Callable[[], EncodedPrompt],
        wait: float,
        *,
        progress: Progress | None,
        remote: bool,
        line: object,
    ) -> None:
        """Puts a request into the queue. `read` is called in another thread; `remote` says that it may wait for the
        network. Requests of one `line` are answered one after the other. Raises `QueueFullError` and
        `EngineClosedError`."""
        self._worker.put(Job(request, lambda *_: read(), progress=progress, remote=remote, line=line), wait)

    def call(self, function: Callable[[Lfm2VlForConditionalGeneration, Lfm2VlProcessor], T]) -> T:
        """Runs a function of model and processor in the engine's thread, after the answers that wait for it there (at
        once, where that is the thread that calls), and returns its result or raises its error."""
        if threading.current_thread() is self._worker.thread:
            return function(*self._worker.loaded)
        results: list[T] = []
        request = Request()
        self._worker.put(Job(request, work=lambda: results.append(function(*self._worker.loaded))), 0.0)
        request.result()
        return results[0]

    def clear_caches(self) -> None:
        """Forgets encoded pictures and beginnings of prompts, and gives back the memory that MLX keeps for reuse: for
        when the system is short of it. Done once what was asked before is answered; the answers after it are the same.
        Raises `QueueFullError` and `EngineClosedError`."""
        self.call(lambda *_: self._worker.clear_caches())

    def warm_up(self, text: str = "Hello.") -> None:
        """Makes the first real answer as fast as the next ones: loads, compiles and allocates by answering `text`."""
        self.submit(text, options=GenerationOptions(max_tokens=2)).result()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Cancels all requests and ends the thread. Returns after `timeout` seconds at the latest; may be repeated.
        Raises `OptionError`."""
        self._worker.close(check_seconds("timeout", timeout))
