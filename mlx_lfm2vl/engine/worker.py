"""The thread that owns a model: loads it, answers what waits, and gives its memory back."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType

import mlx.core as mx

from ..backends.thread_state import check_fork, exit_end, forked, note_use
from ..errors import EngineClosedError, EngineThreadError, Lfm2VlError, OptionError, drop_frames
from ..generation.prompt_cache import PromptCache
from ..generation.vision_cache import VisionCache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from ..threads import cancellation
from .answers import Answers, answer_alone
from .handle import Request, SinkThreads, check_seconds
from .queue import Job, Loaded, Loader, Waiting

RETIRE_SECONDS = 0.2  # between looks whether an engine that nobody holds has anything to do
LONGEST_SLEEP = 3600.0
_workers: weakref.WeakKeyDictionary[Worker, int] = weakref.WeakKeyDictionary()  # with the process of each


class TimeoutThread:
    """Calls `expire`, while the engine's own thread works: after each `notify`, which may come from anywhere (while an
    object is deleted, too), and at the time (of `time.monotonic`) that it has returned, if any."""

    def __init__(self, expire: Callable[[], float | None]):
        self._expire = expire
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mlx-lfm2vl timeouts", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Asks for a look at who has given up."""
        self._news.put(None)

    def close(self, timeout: float | None = None) -> None:
        """Ends the thread, and waits for that for at most `timeout` seconds, if it is given."""
        self._closed = True
        self.notify()
        if timeout is not None and threading.current_thread() is not self._thread:
            self._thread.join(max(0.0, timeout))

    def _run(self) -> None:
        until: float | None = None
        while not self._closed:
            sleep = None if until is None else min(LONGEST_SLEEP, max(0.0, until - time.monotonic()))
            with contextlib.suppress(queue.Empty):  # it is time
                self._news.get(timeout=sleep)
                while True:
                    self._news.get_nowait()
            until = self._expire()


class Worker:
    """A thread, its queue of at most `max_queue` jobs, the model that it serves, and what it remembers. One thread for
    all models, since MLX never gives the streams of a thread back. Arguments are checked by `Engine`, which calls what
    stands first here from any thread."""

    def __init__(
        self,
        loader: Loader,
        max_queue: int,
        max_batch: int,
        limits: Sequence[contextlib.AbstractContextManager[None]],
        idle_seconds: float,
        vision_cache: VisionCache,
        prompt_cache: PromptCache,
    ):
        note_use()
        self.sinks = SinkThreads()
        self._loader, self._max_batch = loader, max_batch
        self._limits, self._idle_seconds = limits, idle_seconds
        self.vision_cache, self.prompt_cache = vision_cache, prompt_cache
        self.waiting = Waiting(max_queue, max_batch)
        self._retired = False
        self._changed = threading.Condition()  # of what follows
        self._wanted = True  # a model
        self._turn = 0  # how often it was decided which
        self.loaded: Loaded | None = None  # while it is
        self._holds, self._released = False, 0  # memory of a model; the last turn whose memory was given back
        self._load_error: BaseException | None = None
        self._load_traceback: TracebackType | None = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, name="mlx-lfm2vl engine", daemon=True)
        self._timeouts = TimeoutThread(self._expire)
        _workers[self] = os.getpid()
        self.thread.start()

    @property
    def closed(self) -> bool:
        return self.waiting.closed

    def wait_until_ready(self, timeout: float | None) -> Loaded:
        """Loads the model unless it is, and returns it. Raises what loading raised, `TimeoutError`,
        `EngineClosedError`, or `EngineThreadError` where it would wait for itself."""
        check_fork()
        with self._changed:
            known = self.loaded is not None or self._load_error is not None or self.closed
            if not known and threading.current_thread() is self.thread:
                raise EngineThreadError("the engine's own thread would wait for a model that it has to load itself")
            if self.loaded is None and self._load_error is None:
                self._wanted = True
                self.waiting.wake()
            if not self._changed.wait_for(lambda: self.loaded or self._load_error or self.closed, timeout):
                raise TimeoutError(f"the model is not loaded after {timeout} s")
            if self._load_error is not None:
                raise self._load_error.with_traceback(self._load_traceback)  # that of each raise is not added to it
            if self.loaded is None:
                raise self._closed()
            return self.loaded

    def put(self, job: Job, wait: float) -> None:
        """Queues a job, after at most `wait` seconds. Raises `QueueFullError`, `EngineClosedError` and `ForkError`."""
        check_fork()
        job.request.owner = self
        check_seconds("wait", wait)
        if job.request.deadline is not None:
            wait = max(0.0, min(wait, job.request.deadline - time.monotonic()))
        if threading.current_thread() is self.thread:  # no place would become free
            wait = 0.0
        try:
            if not self.waiting.put(job, wait):
                raise self._closed()
        except BaseException:  # Ctrl-C too: nobody would hold the request
            job.request.cancel()
            raise
        if job.request.deadline is not None or job.request.stopped():
            self.notify()

    def free(self, request: Request) -> None:
        self.waiting.free(request)

    def notify(self) -> None:
        self._timeouts.notify()

    def switch(self, loader: Loader | None, timeout: float) -> None:
        """Cancels all jobs and gives the model back: for one of `loader`, which is loaded at once, or until it is
        wanted again. Waits, at most `timeout` seconds, until its memory is free."""
        check_fork()
        with self._changed:
            if self.closed:
                raise self._closed()
            self._turn += 1
            self._loader = loader or self._loader
            self._wanted = loader is not None
            self.loaded = self._load_error = self._load_traceback = None
            for request in self.waiting.hold():
                request.abandon()
            self._changed.notify_all()
            if threading.current_thread() is not self.thread:
                turn = self._turn
                self._changed.wait_for(lambda: not self._holds or self._released >= turn or self.closed, timeout)

    def close(self, timeout: float) -> None:
        """Cancels all jobs, ends the thread and waits until sinks have been given all. Returns after `timeout` seconds
        at the latest."""
        if forked():
            return
        end = time.monotonic() + timeout
        self.begin_close()
        if threading.current_thread() is self.thread:
            return
        self.thread.join(max(0.0, timeout))
        if not self.thread.is_alive():
            self._timeouts.close(end - time.monotonic())
        self.sinks.wait(end)

    def retire(self) -> None:
        """Ends the thread once nothing waits and nothing runs. May be called while an object is deleted."""
        self._retired = True
        self.notify()

    def begin_close(self) -> None:
        """Cancels all jobs and takes no more."""
        waiting, running = self.waiting.close()
        for request in waiting:
            request.deliver(EngineClosedError("the engine was closed before the request began"))
        for request in running:
            request.abandon()
        self._expire()
        self._timeouts.close()
        with self._changed:
            self._changed.notify_all()

    def clear_caches(self) -> None:
        """Forgets what is remembered of pictures and prompts, and gives back what MLX keeps for reuse."""
        self.vision_cache.clear()
        self.prompt_cache.clear()
        mx.clear_cache()

    def _closed(self) -> EngineClosedError:
        if self._error is None:
            return EngineClosedError("the engine is closed")
        known = self._error if isinstance(self._error, Lfm2VlError) else repr(self._error)
        return EngineClosedError(f"the engine's thread has ended with an error: {known}")

    def _expire(self) -> float | None:
        """Ends the requests that were cancelled, or are past their deadline; the next deadline of the others."""
        gone, cut, deadline = self.waiting.take_stopped()
        for request in gone:
            request.give_up()
        for request in cut:
            request.cut_off()
        if cut:
            self.waiting.settle()
        if not self._retired or self.closed:
            return deadline
        if self.waiting.idle:
            self.begin_close()
        return time.monotonic() + RETIRE_SECONDS

    # In the thread

    def _work(self) -> None:
        try:
            with contextlib.ExitStack() as limits:
                for limit in self._limits:
                    limits.enter_context(limit)
                while self.waiting.wait_for(lambda: self._wanted):
                    self._load()
                    self._serve()
                    self._release()
        except BaseException as error:  # nobody may wait for a thread that is no more
            self._fail(error)

    def _load(self) -> None:
        turn, loaded, error = self._turn, None, None

        def check() -> None:
            if self.closed or turn != self._turn:
                raise EngineClosedError("the engine let go of a model while it loaded")

        with self._changed:
            self._holds, loader = True, self._loader
        try:
            with cancellation(check):
                loaded = _checked(loader())
        except BaseException as failure:  # whoever waits must hear of it, whatever it is
            error = failure
        with self._changed:
            if turn == self._turn and not self.closed:
                self.loaded, self._load_error = loaded, error
                self._load_traceback = None if error is None else error.__traceback__
                self.waiting.begin(loaded)
            elif error is not None:
                drop_frames(error)
            self._changed.notify_all()

    def _serve(self) -> None:
        """Answers what waits, until the queue is closed or held."""
        loaded, error = self.loaded, self._load_error
        if loaded is not None:
            self._answer(Answers(loaded, self.vision_cache, self.prompt_cache), loaded)
            return
        while error is not None and (jobs := self._take()):
            for job in jobs:
                job.request.deliver(error)
        if error is not None:
            drop_frames(error)

    def _answer(self, answers: Answers, loaded: Loaded) -> None:
        """Takes what waits and steps. A question joins those that are answered; work of its own waits until they
        are."""
        try:
            while True:
                jobs = self.waiting.take_more(self._max_batch - len(answers)) if answers else self._take()
                if jobs is None:
                    return
                if jobs and jobs[0].work is not None:
                    answer_alone(jobs[0], loaded)
                for job in jobs:
                    if job.work is None:
                        answers.add(job)
                del jobs  # what it holds may be large, and the next may be long in coming
                if answers.step() or not answers:
                    self.waiting.settle()
                    self.notify()
        finally:
            answers.close()

    def _take(self) -> list[Job] | None:
        return self.waiting.take(self._max_batch, self._idle_seconds, mx.clear_cache)

    def _release(self) -> None:
        """Gives the memory of a model back."""
        with self._changed:
            if self.closed:
                self.loaded = self._load_traceback = None
        self.clear_caches()
        with self._changed:
            self._holds, self._released = False, self._turn
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        """Tells all who ask, now and later, that the thread has ended with an error."""
        self._error, self.loaded = error, None
        waiting, running = self.waiting.close()
        self._timeouts.close()
        for request in running + waiting:
            request.deliver(self._closed())
        with self._changed:
            self._changed.notify_all()


def _checked(loaded: Loaded) -> Loaded:
    """The pair that a loader returned. Raises `OptionError` unless it is a model and its processor."""
    types = (Lfm2VlForConditionalGeneration, Lfm2VlProcessor)
    if not (isinstance(loaded, tuple) and len(loaded) == 2 and all(map(isinstance, loaded, types))):
        raise OptionError(f"the loader returned {loaded!r:.100}, expected (model, processor) as `load` returns them")
    return loaded


@atexit.register
def _close_all() -> None:
    """Closes the workers that are there still when the process exits, before the interpreter goes."""
    workers = [worker for worker, process in list(_workers.items()) if process == os.getpid()]
    for worker in workers:
        worker.begin_close()
    for worker in workers:
        worker.close(max(0.0, exit_end() - time.monotonic()))
    if behind := sum(worker.sinks.behind for worker in workers):
        warnings.warn(
            f"the process ends before {behind} sink{'s' * (behind > 1)} of an engine took all responses",
            RuntimeWarning,
            stacklevel=1,
        )
