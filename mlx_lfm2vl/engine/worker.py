"""The thread that owns a model: takes what waits, answers questions together, and lets later ones join them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType

import mlx.core as mx

from ..backends.memory import CacheLimit, WiredLimit
from ..errors import EngineClosedError, OptionError
from ..generation.prompt_cache import PromptCache
from ..generation.response import GenerationResponse
from ..generation.scheduler import Output, Scheduler
from ..generation.vision_cache import VisionCache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from ..threads import cancellation
from .handle import Request, check_seconds
from .queue import Job, Loaded, Waiting
from .shutdown import close_at_exit
from .timeouts import TimeoutThread

Loader = Callable[[], Loaded]


def _refuse(requests: Iterable[Request]) -> None:
    for request in requests:
        request.deliver(EngineClosedError("the engine was closed before the request began"))


class Worker:
    """A thread, its queue of at most `max_queue` jobs, and what it remembers. Arguments are checked by `Engine`, which
    calls what stands first here from any thread."""

    def __init__(
        self,
        loader: Loader,
        max_queue: int,
        max_batch: int,
        limits: Sequence[CacheLimit | WiredLimit],
        idle_seconds: float,
        vision_cache: VisionCache,
        prompt_cache: PromptCache,
    ):
        self._loader, self._max_batch = loader, max_batch
        self._limits, self._idle_seconds = limits, idle_seconds
        self.vision_cache, self.prompt_cache = vision_cache, prompt_cache
        self._waiting = Waiting(max_queue, max_batch)
        self._ready = threading.Event()
        self._load_error: BaseException | None = None
        self._load_traceback: TracebackType | None = None
        self._error: BaseException | None = None
        self._loaded: Loaded | None = None
        self.thread = threading.Thread(target=self._work, name="mlx-lfm2vl engine", daemon=True)
        self._timeouts = TimeoutThread(self._expire)
        close_at_exit(self)
        self.thread.start()

    def wait_until_ready(self, timeout: float | None) -> None:
        """Returns once the model is loaded. Raises what loading raised, or `TimeoutError`."""
        if not self._ready.wait(timeout):
            raise TimeoutError(f"the model is not loaded after {timeout} s")
        if self._load_error is not None:
            raise self._load_error.with_traceback(self._load_traceback)  # that of each raise is not added to it

    def put(self, job: Job, wait: float) -> None:
        """Queues a job, after at most `wait` seconds. Raises `QueueFullError` and `EngineClosedError`."""
        job.request.maker, job.request.given_up = self.thread, self._timeouts.notify
        check_seconds("wait", wait)
        if job.request.deadline is not None:
            wait = max(0.0, min(wait, job.request.deadline - time.monotonic()))
        if not self._waiting.put(job, wait):
            raise self._closed()
        if job.request.deadline is not None or job.request.stopped():
            self._timeouts.notify()

    def close(self, timeout: float) -> None:
        """Cancels all jobs and ends the thread. Returns after `timeout` seconds at the latest."""
        end = time.monotonic() + timeout
        self.begin_close()
        if threading.current_thread() is self.thread:
            return
        self.thread.join(max(0.0, timeout))
        if not self.thread.is_alive():
            self._timeouts.close(end - time.monotonic())

    def begin_close(self) -> None:
        """Cancels all jobs and takes no more."""
        waiting, running = self._waiting.close()
        listened = [request for request in waiting if request.has_sink]
        if listened:  # a sink may wait for the thread that closes
            threading.Thread(target=_refuse, args=(listened,), name="mlx-lfm2vl closing", daemon=True).start()
        _refuse(request for request in waiting if not request.has_sink)
        for request in running:
            request.cancel()
        self._timeouts.close()

    def _expire(self) -> float | None:
        """Ends the requests that were cancelled, or are past their deadline; the next deadline of the others."""
        gone, cut, deadline = self._waiting.take_stopped()
        for request in gone:
            if request.has_sink:  # it may take long, or wait for this thread
                threading.Thread(target=request.give_up, name="mlx-lfm2vl sink", daemon=True).start()
            else:
                request.give_up()
        for request in cut:
            request.cut_off()
        if cut:
            self._waiting.settle()
        return deadline

    # In the thread

    @property
    def loaded(self) -> Loaded:
        """Model and processor. Raises `EngineClosedError`."""
        if self._loaded is None:
            raise self._closed()
        return self._loaded

    def clear_caches(self) -> None:
        """Forgets what is remembered of pictures and prompts, and gives back what MLX keeps for reuse."""
        self.vision_cache.clear()
        self.prompt_cache.clear()
        mx.clear_cache()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            with contextlib.ExitStack() as limits:
                try:
                    for limit in self._limits:
                        limits.enter_context(limit)
                    self._loaded = _checked(self._loader())
                except BaseException as failure:  # whoever waits must hear of it, whatever it is
                    self._load_error, self._load_traceback = failure, failure.__traceback__
                self._waiting.begin(self._loaded)
                self._ready.set()
                self._serve()
                self._loaded = None
                self.clear_caches()
        except BaseException as failure:  # nobody may wait for a thread that is no more
            error = failure
        if error is not None:
            self._fail(error)

    def _serve(self) -> None:
        """Takes what waits and steps, until the queue is closed. A question joins those that are answered; work of its
        own waits until they are."""
        if self._loaded is None:
            while jobs := self._take():
                for job in jobs:
                    assert self._load_error is not None
                    job.request.deliver(self._load_error)
            return
        model, processor = self._loaded
        scheduler = Scheduler(
            model, processor.tokenizer, vision_cache=self.vision_cache, prompt_cache=self.prompt_cache
        )
        present: dict[int, Job] = {}
        while True:
            jobs = self._waiting.take_more(self._max_batch - len(present)) if present else self._take()
            if jobs is None:
                return
            if jobs and jobs[0].work is not None:
                self._alone(jobs[0])
            for job in jobs:
                if job.work is None:
                    self._add(scheduler, present, job)
            del jobs  # what it holds may be large, and the next may be long in coming
            before = len(present)
            for id, item in self._step(scheduler, present):
                present[id].request.deliver(item)
                if isinstance(item, Exception) or item.finish_reason is not None:
                    del present[id]
            if len(present) < before or not present:
                self._waiting.settle()

    def _step(self, scheduler: Scheduler, present: Mapping[int, Job]) -> list[Output]:
        """One step. Requests are asked before, and within a prompt's layers by a backend that computes when it is
        called, whether they have been cancelled."""

        def ask() -> None:
            for id, job in present.items():
                if job.request.ask_to_stop():
                    scheduler.cancel(id)

        ask()
        with cancellation(ask):
            outputs = scheduler.step()
        for job in present.values():
            job.tell_progress()
        return outputs

    def _take(self) -> list[Job] | None:
        return self._waiting.take(self._max_batch, self._idle_seconds, mx.clear_cache)

    def _fail(self, error: BaseException) -> None:
        """Tells all who ask, now and later, that the thread has ended with an error."""
        self._ready.set()
        self._error = error
        waiting, running = self._waiting.close()
        self._timeouts.close()
        for request in running + waiting:
            request.deliver(self._closed())

    def _closed(self) -> EngineClosedError:
        if self._error is None:
            return EngineClosedError("the engine is closed")
        return EngineClosedError(f"the engine's thread has ended with an error: {self._error!r}")

    def _alone(self, job: Job) -> None:
        assert job.work is not None
        if job.request.stopped():
            job.request.give_up()
            return
        try:
            job.work()
            job.request.deliver(GenerationResponse("", (), "stop"))
        except BaseException as error:
            job.request.deliver(error)

    def _add(self, scheduler: Scheduler, present: dict[int, Job], job: Job) -> None:
        """Begins to answer a request."""
        if job.request.stopped():
            job.request.give_up()
        if job.request.done:
            return
        started = time.perf_counter() - job.seconds  # it was read before its turn
        if len(scheduler) == 0:
            mx.reset_peak_memory()
        try:
            assert job.read is not None
            prompt = job.read(*self.loaded) if job.prompt is None else job.prompt
            row = scheduler.add(prompt, started=started)
        except BaseException as error:
            job.request.deliver(error)
            return
        job.prompt = job.read = None  # the row has it
        job.row, present[row.id] = row, job
        job.request.so_far = partial(row.statistics, self.loaded[0].config.image_token_id)


def _checked(loaded: Loaded) -> Loaded:
    """What a loader returned. Raises `OptionError` unless it is a model and its processor."""
    types = (Lfm2VlForConditionalGeneration, Lfm2VlProcessor)
    if not (isinstance(loaded, tuple) and len(loaded) == 2 and all(map(isinstance, loaded, types))):
        raise OptionError(f"the loader returned {loaded!r:.100}, expected (model, processor) as `load` returns them")
    return loaded
