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
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, Unpack

import mlx.core as mx

from ..backends import memory
from ..backends.memory import check_bytes
from ..backends.thread_state import check_fork
from ..errors import OptionError
from ..generation import prompt_cache, vision_cache
from ..generation.arguments import CallOverrides, ConversationArguments, PictureOverrides
from ..generation.batch import BATCH_SIZE
from ..generation.conversation import Conversation
from ..generation.messages import is_remote, snapshot
from ..generation.options import GenerationOptions
from ..generation.request import GenerationRequest, check_overrides, encode
from ..generation.response import GenerationResponse
from ..generation.watch import Progress, check_callable
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..pretrained import load
from ..processing.processor import Lfm2VlProcessor
from .chat import EngineChat
from .handle import Request, Sink, check_seconds
from .queue import Job, Loader
from .submit import SubmitArguments, placed, read_request, settings, whole
from .worker import Worker

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]
CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class MemoryUse:
    """Bytes. `active`, `cache` (kept for reuse) and `peak` are MLX's in the whole process; `vision_cache` and
    `prompt_cache` are parts of `active`; `free` is what may still be taken, None where that is not known."""

    active: int
    cache: int
    peak: int
    vision_cache: int
    prompt_cache: int
    free: int | None


class Engine:
    """`Engine("demo")`, or `Engine(lambda: load("demo", dtype="float16"))`. The model is loaded in the engine's thread.
    Use it as a context manager (`async with` too), or `close`. One that nobody holds closes itself, once its requests
    have ended.

    `loader`: a name as for `load`, or a function that returns model and processor. `max_queue`: requests that may wait;
    one more is `QueueFullError`, at once or after `wait` seconds. `max_batch`: questions answered together.
    `cache_limit`: bytes that MLX keeps for reuse (None: its default); what it keeps is given back after `idle_seconds`
    without work. `wired_limit`: bytes that macOS must not page out (None: what Metal recommends, 0: none; without
    effect elsewhere). Both limits are those of the process, and as before once the engine is closed.
    `vision_cache_bytes`: encoded pictures that are kept; `prompt_cache_bytes`: states of prompts and answers that are;
    `vision_cache_folder`, `prompt_cache_folder`: where they are kept for the next process. Raises `OptionError`, and
    `ForkError` in a process forked from one that had computed.
    """

    def __init__(
        self,
        loader: Loader | str | os.PathLike[str],
        *,
        max_queue: int = 64,
        max_batch: int = BATCH_SIZE,
        cache_limit: int | None = None,
        wired_limit: int | None = None,
        idle_seconds: float = 5.0,
        vision_cache_bytes: int = vision_cache.DEFAULT_BYTES,
        prompt_cache_bytes: int = prompt_cache.DEFAULT_BYTES,
        vision_cache_folder: str | os.PathLike[str] | None = None,
        prompt_cache_folder: str | os.PathLike[str] | None = None,
    ):
        function, self._name = _named_loader(loader)
        for name, value in (("max_queue", max_queue), ("max_batch", max_batch)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} is {value!r}, expected an integer of at least 1")
        for name, limit in (("cache_limit", cache_limit), ("wired_limit", wired_limit)):
            if limit is not None:
                check_bytes(name, limit)
        self._worker = Worker(
            function,
            max_queue,
            max_batch,
            (memory.cache_limit(cache_limit), memory.wired_limit(wired_limit)),
            check_seconds("idle_seconds", idle_seconds),
            vision_cache.VisionCache(check_bytes("vision_cache_bytes", vision_cache_bytes), folder=vision_cache_folder),
            prompt_cache.PromptCache(check_bytes("prompt_cache_bytes", prompt_cache_bytes), folder=prompt_cache_folder),
        )
        weakref.finalize(self, self._worker.retire).atexit = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Returns once the model is loaded. Raises what loading raised, or `TimeoutError`."""
        self._worker.wait_until_ready(None if timeout is None else check_seconds("timeout", timeout))

    def submit(
        self,
        prompt: str | Messages,
        images: Any = None,
        *,
        videos: Any = None,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: GenerationOptions | None = None,
        deadline: float | None = None,
        wait: float = 0.0,
        sink: Sink | None = None,
        progress: Progress | None = None,
        control_tokens: bool = False,
        **overrides: Unpack[CallOverrides],
    ) -> Request:
        """Puts a question into the queue; arguments as for `stream_generate`, without caches and `stop`.

        `deadline`: seconds from now after which the answer ends as "deadline". `wait`: seconds to wait for a place in
        the queue. `sink` gets pieces and errors as they come, in a thread of its own. `progress` is called in the
        engine's thread, with the tokens of the prompt that are done, and all.

        Pictures are read and text is tokenised in other threads of the engine, a few questions at a time, while it
        answers; a question whose picture is slow to come is overtaken by others. Questions join those that are being
        answered, also before a `call` that waits, for the first 5 seconds. NumPy arrays, messages and tools are copied
        at once; leave PIL images and files as they are until the first response.

        Raises `OptionError`, `QueueFullError` and `EngineClosedError`; what is wrong with the question itself is raised
        by the request, and so are unknown names of `overrides` while no model is loaded.
        """
        check_callable("progress", progress)
        loaded = self._worker.loaded
        named: dict[str, Any] = {**overrides}
        if "stop" in named:  # of `stream_generate` it is a function
            raise OptionError(
                "stop is no argument here: `Request.cancel` ends an answer, GenerationOptions(stop=) has texts"
            )
        chosen = GenerationOptions.of(options, named)
        if loaded is not None:
            check_overrides(loaded[1], named)
        given = (snapshot(prompt), snapshot(images), system, snapshot(tools))
        question = GenerationRequest(*given, chosen, named, control_tokens, snapshot(videos))
        request = Request(deadline, sink)
        read = functools.partial(read_request, request=question)
        remote = is_remote(question.prompt, [question.images, question.videos])
        self._worker.put(Job(request, read, progress=progress, remote=remote), wait)
        return request

    def stream(
        self, prompt: str | Messages, images: Any = None, **arguments: Unpack[SubmitArguments]
    ) -> Generator[GenerationResponse, None, None]:
        """Pieces of `submit`'s answer. Dropping the iterator, or closing it, stops the work."""
        return iter(self.submit(prompt, images, **arguments))

    def generate(
        self,
        prompt: str | Messages,
        images: Any = None,
        *,
        timeout: float | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> str:
        """The text of `submit`'s answer; cancels it and raises `TimeoutError` after `timeout` seconds.
        `EngineClosedError` where `close`, `unload` or `reload` comes first."""
        request = self.submit(prompt, images, **arguments)
        try:
            return whole(request, request.result(timeout)).text
        finally:
            request.cancel()

    async def astream(
        self, prompt: str | Messages, images: Any = None, **arguments: Unpack[SubmitArguments]
    ) -> AsyncGenerator[GenerationResponse, None]:
        """`stream` for asyncio: the event loop is never blocked; leaving the loop, or cancelling the task, stops the
        work."""
        request = await placed(functools.partial(self.submit, prompt, images), **arguments)
        async with contextlib.aclosing(aiter(request)) as responses:
            async for response in responses:
                yield response

    def chat(self, **arguments: Unpack[ConversationArguments]) -> EngineChat:
        """A conversation in this engine; arguments as for `Chat` without model, processor and caches, which are the
        engine's. Waits until the model is loaded, for nothing else."""
        return EngineChat(self._put, Conversation(*self._worker.wait_until_ready(None), **arguments))

    def _put(self, job: Job, wait: float) -> None:
        """Queues a job for a conversation, which keeps the engine by this. Raises as `submit`."""
        self._worker.put(job, wait)

    def call(self, function: Callable[[Lfm2VlForConditionalGeneration, Lfm2VlProcessor], T]) -> T:
        """Runs a function of model and processor in the engine's thread, after the answers that wait for it there (at
        once, where that is the thread that calls), and returns its result or raises its error.
        `EngineClosedError` where `close`, `unload` or `reload` comes first."""
        if threading.current_thread() is self._worker.thread:
            return function(*self._worker.wait_until_ready(0.0))
        results, request = list[T](), Request()
        self._worker.put(Job(request, work=lambda loaded: results.append(function(*loaded))), 0.0)
        whole(request, request.result())
        return results[0]

    def warm_up(self, text: str = "Hello.") -> None:
        """Makes the first real answer as fast as the next ones: loads, compiles and allocates by answering `text`.
        `EngineClosedError` where `close`, `unload` or `reload` comes first."""
        self.generate(text, max_tokens=2)

    @property
    def ready(self) -> bool:
        """Whether a model is loaded."""
        return self._worker.loaded is not None

    @property
    def closed(self) -> bool:
        """Whether the engine takes no more requests."""
        return self._worker.closed

    @property
    def queue_length(self) -> int:
        """Requests that wait for their turn."""
        return len(self._worker.waiting)

    @property
    def batch_length(self) -> int:
        """Requests that are being answered."""
        return self._worker.waiting.running

    @property
    def model_name(self) -> str | None:
        """The name that the engine, or `reload`, was given; None where that was a function."""
        return self._name

    @property
    def context_length(self) -> int | None:
        """Tokens of a prompt and its answer together, at most; None while no model is loaded."""
        loaded = self._worker.loaded
        return None if loaded is None else loaded[0].config.text_config.max_position_embeddings

    def count_tokens(
        self,
        prompt: str | Messages,
        images: Any = None,
        *,
        videos: Any = None,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        control_tokens: bool = False,
        **image_overrides: Unpack[PictureOverrides],
    ) -> int:
        """Tokens of a prompt, those of its pictures included, counted in the calling thread. Arguments and errors as
        for `submit`. Waits until the model is loaded."""
        options = GenerationOptions()
        request = GenerationRequest(prompt, images, system, tools, options, image_overrides, control_tokens, videos)
        model, processor = self._worker.wait_until_ready(None)
        known = weakref.ref(model)
        del model  # it may be let go of while a picture is slow
        return len(encode(settings(known), processor, request).ids)

    def memory(self) -> MemoryUse:
        """The memory that is held now."""
        check_fork()
        return MemoryUse(
            mx.get_active_memory(),
            mx.get_cache_memory(),
            mx.get_peak_memory(),
            self._worker.vision_cache.nbytes,
            self._worker.prompt_cache.nbytes,
            memory.free_memory(),
        )

    def clear_caches(self) -> None:
        """Forgets encoded pictures and beginnings of prompts, and gives back what MLX keeps for reuse. Waits for
        nothing but, where ranks share the model, the step that runs; answers stay the same."""
        check_fork()
        self._worker.clear_caches()

    def unload(self, timeout: float = CLOSE_SECONDS) -> None:
        """Cancels all requests and gives the model's memory back, at most `timeout` seconds later. The next request, or
        `wait_until_ready`, loads it again. Raises `EngineClosedError` and `OptionError`."""
        self._worker.switch(None, check_seconds("timeout", timeout))

    def reload(self, loader: Loader | str | os.PathLike[str]) -> None:
        """Cancels all requests, gives the model's memory back and loads another one. Returns at once: requests wait for
        the new model. Conversations go on with it. Raises `EngineClosedError` and `OptionError`."""
        function, name = _named_loader(loader)
        self._worker.switch(function, 0.0)
        self._name = name

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Cancels all requests, a load and a download, ends the thread and waits for sinks. Returns after `timeout`
        seconds at the latest; may be repeated. Sinks that are slower are called on, until the process ends, which
        waits for them as for engines that are open: a second, and a `RuntimeWarning` where that is too short.
        Conversations and requests stay readable, and hold no model. Raises `OptionError`."""
        self._worker.close(check_seconds("timeout", timeout))

    async def aclose(self, timeout: float = CLOSE_SECONDS) -> None:
        """`close` for asyncio."""
        check_seconds("timeout", timeout)
        self._worker.begin_close()  # here: the threads of asyncio may all wait for answers
        await asyncio.to_thread(self.close, timeout)


def _named_loader(model: Any) -> tuple[Loader, str | None]:
    """The function that loads a model, and the model's name if it has one. Raises `OptionError`."""
    if isinstance(model, (str, os.PathLike)):
        return functools.partial(load, model), os.fspath(model)
    if not callable(model) or isinstance(model, Lfm2VlForConditionalGeneration):
        given = type(model).__name__ if callable(model) else f"{model!r:.60}"
        raise OptionError(f"loader is {given}, expected a model's name, or a function such as `lambda: load('demo')`")
    return model, None
