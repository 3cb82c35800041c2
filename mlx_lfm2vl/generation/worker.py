"""The thread that owns a model: takes what waits, answers questions together, and lets later ones join them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..errors import EngineClosedError, NotFiniteError, QueueFullError
from ..model.lfm2vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .attendant import Attendant
from .ending import close_at_exit, wait_until_gone
from .features import FeatureCache
from .memory import MemoryLimits
from .prefix import PrefixCache
from .question import Prepared, Question, prepare
from .request import Request, check_seconds
from .run import Joining, prompt_statistics
from .start import RowsStart
from .stream import run_rows
from .watch import Progress, Stop

Loader = Callable[[], tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]]


@dataclass(eq=False)
class Job:
    """What waits in the queue: a question (which may share a batch), or work of its own."""

    request: Request
    question: Question | None = None
    progress: Progress | None = None
    work: Callable[[Request], None] | None = None


class Worker:
    """A thread, its queue of at most `max_queue` jobs, and what it remembers. Arguments are checked by `Engine`, which
    calls what stands first here from any thread."""

    def __init__(
        self,
        loader: Loader,
        max_queue: int,
        max_batch: int,
        limits: MemoryLimits,
        idle_seconds: float,
        features: FeatureCache,
        prefixes: PrefixCache,
    ):
        self._loader, self._max_queue, self._max_batch = loader, max_queue, max_batch
        self._limits, self._idle_seconds = limits, idle_seconds
        self._features, self._prefixes = features, prefixes
        self._jobs: deque[Job] = deque()
        self._running: list[Request] = []
        self._preparing: list[Request] = []
        self._changed = threading.Condition()
        self._closing = False
        self._ready = threading.Event()
        self._load_error: BaseException | None = None
        self._error: BaseException | None = None
        self._model: Lfm2VlForConditionalGeneration | None = None
        self._processor: Lfm2VlProcessor | None = None
        self._gone = False
        self.thread = threading.Thread(target=self._work, name="mlx-lfm2vl engine", daemon=True)
        self._attendant = Attendant(self._let_go)
        close_at_exit(self)
        self.thread.start()

    def wait_until_ready(self, timeout: float | None) -> None:
        """Returns once the model is loaded. Raises what loading raised, or `TimeoutError`."""
        if not self._ready.wait(timeout):
            raise TimeoutError(f"the model is not loaded after {timeout} s")
        if self._load_error is not None:
            raise self._load_error

    def put(self, job: Job, wait: float) -> None:
        """Queues a job, after at most `wait` seconds. Raises `QueueFullError` and `EngineClosedError`."""
        check_seconds("wait", wait)
        with self._changed:
            if not self._changed.wait_for(lambda: self._closing or len(self._jobs) < self._max_queue, wait):
                raise QueueFullError(f"{self._max_queue} requests wait already; try again later, or wait for a place")
            if self._closing:
                raise self._closed()
            job.request.maker, job.request.given_up = self.thread, self._attendant.poke
            self._jobs.append(job)
            self._changed.notify_all()
        if job.request.deadline is not None or job.request.stopped():
            self._attendant.poke()

    def close(self, timeout: float) -> None:
        """Cancels all jobs and ends the thread. Returns after `timeout` seconds at the latest."""
        end = time.monotonic() + timeout
        self.begin_close()
        if threading.current_thread() is self.thread:
            return
        self.thread.join(max(0.0, timeout))
        if not self.thread.is_alive() and not self._gone:
            self._attendant.close(end - time.monotonic())
            wait_until_gone(self.thread, end - time.monotonic())
            self._gone = True

    def begin_close(self) -> None:
        """Cancels all jobs and takes no more."""
        with self._changed:
            self._closing = True
            waiting, running = list(self._jobs), list(self._running)
            self._jobs.clear()
            self._changed.notify_all()
        for job in waiting:
            job.request.deliver(EngineClosedError("the engine was closed before the request began"))
        for request in running:
            request.cancel()
        self._attendant.close()

    def _let_go(self) -> float | None:
        """Answers those who have given up before their turn and frees their places; the next deadline of the others."""
        with self._changed:
            gone = [job for job in self._jobs if job.request.stopped()]
            for job in gone:
                self._jobs.remove(job)
            if gone:
                self._changed.notify_all()
            requests = [job.request for job in gone] + [each for each in self._preparing if each.stopped()]
            staying = [*(job.request for job in self._jobs), *self._preparing]
        for request in requests:
            request.give_up()
        return min((each.deadline for each in staying if each.deadline is not None and not each.done), default=None)

    # In the thread

    @property
    def loaded(self) -> tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]:
        """Model and processor."""
        assert self._model is not None and self._processor is not None
        return self._model, self._processor

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            with contextlib.ExitStack() as limits:
                try:
                    limits.enter_context(self._limits)
                    self._model, self._processor = self._loader()
                except BaseException as failure:  # whoever waits must hear of it, whatever it is
                    self._load_error = failure
                self._ready.set()
                self._serve()
                self._model = self._processor = None
                self._features.clear()
                self._prefixes.clear()
                mx.clear_cache()
        except BaseException as failure:  # nobody may wait for a thread that is no more
            error = failure
        if error is not None:
            self._fail(error)

    def _serve(self) -> None:
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

    def _fail(self, error: BaseException) -> None:
        """Tells all who ask, now and later, that the thread has ended with an error."""
        self._ready.set()
        with self._changed:
            self._closing, self._error = True, error
            requests = [*self._running, *(job.request for job in self._jobs)]
            self._jobs.clear()
            self._changed.notify_all()
        self._attendant.close()
        for request in requests:
            request.deliver(self._closed())

    def _closed(self) -> EngineClosedError:
        if self._error is None:
            return EngineClosedError("the engine is closed")
        return EngineClosedError(f"the engine's thread has ended with an error: {self._error!r}")

    def _take(self) -> list[Job] | None:
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

    def _alone(self, job: Job) -> None:
        assert job.work is not None
        if job.request.stopped():
            job.request.give_up()
            return
        try:
            job.work(job.request)
        except BaseException as error:
            job.request.deliver(error)

    def _together(self, jobs: Sequence[Job]) -> None:
        """Answers questions in one batch, which others may join."""
        started = time.perf_counter()
        present, rows = self._prepared(jobs)
        if present:
            self._run(present, rows, started)

    def _prepared(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Prepared]]:
        """The jobs that can be answered, and their questions as arrays; the others hear of their end."""
        assert self._model is not None and self._processor is not None
        present: list[Job] = []
        rows: list[Prepared] = []
        with self._changed:
            self._preparing = [job.request for job in jobs]
        if any(job.request.deadline is not None for job in jobs):
            self._attendant.poke()
        for job in jobs:
            assert job.question is not None
            if job.request.stopped():
                job.request.give_up()
            if job.request.done:
                continue
            try:
                rows.append(prepare(self._model, self._processor, job.question))
                present.append(job)
            except BaseException as error:  # of a picture's own reader, too
                job.request.deliver(error)
        with self._changed:
            self._preparing = []
        return present, rows

    def _run(self, jobs: list[Job], rows: list[Prepared], started: float) -> None:
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

        failures: list[Job] = []
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
        except BaseException as error:
            for job in jobs:
                if len(jobs) > 1 and not job.request.started:
                    failures.append(job)
                else:
                    job.request.deliver(error)
        # Whatever failed for all may be the fault of one: those who have heard nothing yet get a run of their own.
        for job in dict.fromkeys(failures):
            self._together([job])

    def _take_more(self, room: int) -> list[Job]:
        """Questions that wait at the head of the queue, at most `room`."""
        with self._changed:
            jobs: list[Job] = []
            while not self._closing and len(jobs) < room and self._jobs and self._jobs[0].question:
                jobs.append(self._jobs.popleft())
            if jobs:
                self._running += [job.request for job in jobs]
                self._changed.notify_all()
            return jobs

    def _abandoned(self, jobs: Sequence[Job], rows: Sequence[Prepared]) -> Stop:
        """Asked before the first token: lets those go who have given up, and says whether all have."""
        asked = [(job.request, row.ids) for job, row in zip(jobs, rows, strict=True)]

        def abandoned() -> bool:
            assert self._model is not None
            for request, ids in asked:
                if request.stopped():
                    request.give_up(prompt_statistics(self._model, ids))
            return all(request.done for request, _ in asked)

        return abandoned


def _told(jobs: Sequence[Job]) -> Progress | None:
    """Tells all who want to know. One that fails ends its own request."""
    told = [job for job in jobs if job.progress is not None]

    def progress(done: int, total: int) -> None:
        for job in told:
            if job.progress is None or job.request.done:
                continue
            try:
                job.progress(done, total)
            except BaseException as error:
                job.request.deliver(error)
                job.request.cancel()

    return progress if told else None
