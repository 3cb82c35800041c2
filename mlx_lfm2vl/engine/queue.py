"""The jobs that wait for an engine's thread, and the threads that read their pictures and texts meanwhile.

A job is taken once it is read, in the order in which jobs came; one that takes long to read (an address that is slow to
answer) holds up none but those of its own line, and other addresses where `READERS` of them are slow at a time. No more
is read ahead than is soon needed, since pixels take room. The readers never call MLX, and none is there while there is
nothing to read.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import QueueFullError
from ..generation.request import EncodedPrompt
from ..generation.sequence import Sequence
from ..generation.watch import Progress
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .handle import Request

READERS = 4  # questions with addresses that are read at a time, and as many others
MOST_READERS = 32  # with those whose questions have been given up while an address was slow
PATIENCE = 5.0  # seconds that work of its own lets questions go before it, to join those that are being answered
Loaded = tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]
Loader = Callable[[], Loaded]
Read = Callable[[weakref.ref[Lfm2VlForConditionalGeneration], Lfm2VlProcessor], EncodedPrompt]


@dataclass(eq=False)
class Job:
    """A job in the queue: a request, or `work` that is done while none is answered.

    `read` is called with a weak reference to the model, which must not wait for slow pictures, and the processor in a
    reader's thread; None where there is nothing to read. Jobs of one `line` are done in their order.
    """

    request: Request
    read: Read | None = None
    work: Callable[[Loaded], None] | None = None
    progress: Progress | None = None
    line: object = None
    remote: bool = False  # `read` may wait for the network
    since: float = 0.0  # `time.monotonic()` when it came
    begun: bool = False  # to be read
    ready: bool = False
    prompt: EncodedPrompt | None = None  # what was read
    seconds: float = 0.0  # that it took
    row: Sequence | None = None  # while the request is answered
    told: int = 0  # tokens that `progress` knows of

    def tell_progress(self) -> None:
        """Tells `progress` what is done of the prompt. One that fails ends its own request."""
        if self.progress is None or self.row is None or self.request.done or self.row.prefilled == self.told:
            return
        self.told = self.row.prefilled
        try:
            self.progress(self.told, len(self.row.ids))
        except BaseException as error:
            self.request.deliver(error)
            self.request.cancel()


class Waiting:
    """At most `most` jobs, and the requests of those that were taken last. Safe to use from any thread.

    Up to `ahead` jobs are read before their turn.
    """

    def __init__(self, most: int, ahead: int):
        self._most, self._ahead = most, max(ahead, READERS)
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._gone: list[Request] = []  # cancelled before their turn, and not told so yet
        self._running: list[Job] = []
        self._loaded: Loaded | None = None
        self._reading: list[Job] = []  # what readers are at and somebody still wants
        self._readers = 0
        self._held = True  # until a model is there, or cannot be loaded
        self.closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def running(self) -> int:
        """Requests that were taken and have not ended."""
        return sum(not job.request.done for job in self._running)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        with self._changed:
            return not self._jobs and not self.running

    def put(self, job: Job, wait: float) -> bool:
        """Adds a job, after at most `wait` seconds; False where the queue is closed. Raises `QueueFullError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.closed or len(self._jobs) < self._most, wait):
                raise QueueFullError(f"{self._most} requests wait already; try again later, or wait for a place")
            if self.closed:
                return False
            job.ready, job.since = job.read is None, time.monotonic()
            self._jobs.append(job)
            self._news()
        return True

    def begin(self, loaded: Loaded | None) -> None:
        """Lets readers begin. With None, where no model is there, every job counts as ready."""
        with self._changed:
            self._loaded, self._held = loaded, False
            self._news()

    def hold(self) -> list[Request]:
        """Lets nothing be taken until `begin` is called; the requests that wait, and those that run."""
        with self._changed:
            self._held, self._loaded = True, None
            self._changed.notify_all()
            return [job.request for job in self._jobs + self._running]

    def wait_for(self, wanted: Callable[[], bool]) -> bool:
        """Waits until `wanted` says so (`wake` lets it be asked anew), or a job is there. False once the queue is
        closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or wanted() or self._jobs)
            return not self.closed

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def take(self, most: int, idle_seconds: float, idle: Callable[[], None]) -> list[Job] | None:
        """Waits for jobs that can be done together, at most `most`: one with work of its own, or questions. None once
        the queue is closed or held. Calls `idle` when nothing has come for `idle_seconds`."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._shut or self._next(1), idle_seconds):
                idle()
                self._changed.wait_for(lambda: self._shut or self._next(1))
            jobs = [] if self._shut else self._next(most)
            self._running = list(jobs)
            self._remove(jobs)
            return jobs or None

    def take_more(self, room: int) -> list[Job] | None:
        """Questions, at most `room`, to join those that were taken: those whose turn it is, and those behind work that
        has not waited for long. None once the queue is closed or held."""
        with self._changed:
            if self._shut:
                return None
            jobs = self._next(room, time.monotonic() - PATIENCE) if room else []
            self._running += jobs
            self._remove(jobs)
            return jobs

    def settle(self) -> None:
        """Takes note of those that have ended: the next of their lines may be read."""
        with self._changed:
            self._running = [job for job in self._running if not job.request.done]
            self._news()

    def take_stopped(self) -> tuple[list[Request], list[Request], float | None]:
        """Takes out the requests that were cancelled before their turn; also those that were cancelled while they are
        answered, and the next deadline of the others."""
        with self._changed:
            for job in [job for job in self._jobs if job.request.stopped()]:
                self.free(job.request)
            gone, self._gone = self._gone, []
            running = [job.request for job in self._running if not job.request.done]
            cut = [request for request in running if request.stopped()]
            others = [job.request for job in self._jobs] + [request for request in running if request not in cut]
            deadlines = [request.deadline for request in others if request.deadline is not None]
            return gone, cut, min(deadlines, default=None)

    def free(self, request: Request) -> None:
        """Takes a request that was cancelled out; `take_stopped` gives it."""
        with self._changed:
            jobs = [job for job in self._jobs if job.request is request]
            self._gone += [job.request for job in jobs]
            self._remove(jobs)

    def close(self) -> tuple[list[Request], list[Request]]:
        """Takes all out and no more in; the requests that waited, and those that run."""
        with self._changed:
            self.closed, self._loaded = True, None
            waiting, self._jobs = [job.request for job in self._jobs], []
            self._changed.notify_all()
            return waiting, [job.request for job in self._running]

    # With the lock held

    @property
    def _shut(self) -> bool:
        return self.closed or self._held

    def _next(self, most: int, before: float | None = None) -> list[Job]:
        """The first job that can be done, and as many questions as can be done with it before other work; or, with
        `before`, questions only, of which work that came after that time holds up none."""
        found: list[Job] = []
        for job in self._firsts():
            if not job.ready and self._loaded is not None:
                continue
            if job.work is not None and before is not None:
                if job.since < before:
                    break
                continue
            if job.work is not None:
                return found or [job]
            found.append(job)
            if len(found) == most:
                break
        return found

    def _firsts(self) -> Iterator[Job]:
        """The jobs that stand behind none of their line, be it waiting or being answered."""
        lines = [job.line for job in self._running if job.line is not None and not job.request.done]
        for job in self._jobs:
            if any(job.line is line for line in lines):
                continue
            if job.line is not None:
                lines.append(job.line)
            yield job

    def _remove(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._jobs.remove(job)
            if job in self._reading:
                self._reading.remove(job)
        if jobs:
            self._news()

    def _news(self) -> None:
        """Tells all who wait, and starts a reader if there is need of one."""
        self._changed.notify_all()
        if self._readers < MOST_READERS and self._unread() is not None:
            self._readers += 1
            try:
                threading.Thread(target=self._read, name="mlx-lfm2vl reader", daemon=True).start()
            except RuntimeError:  # the system gives no more threads: what waits is read when it is taken
                self._readers -= 1
                if not self._readers:
                    for job in self._jobs:
                        job.ready = job.ready or not job.begun

    def _unread(self) -> Job | None:
        """The next job to read, if one may be: of each line one ahead."""
        slow = sum(job.remote for job in self._reading)
        if self._loaded is None or sum(job.begun for job in self._jobs) - slow >= self._ahead:
            return None
        for job in self._firsts():
            alike = sum(other.remote == job.remote for other in self._reading)
            if job.read is not None and not job.begun and alike < READERS:
                return job
        return None

    # In a reader's thread

    def _read(self) -> None:
        while True:
            with self._changed:
                job = self._unread()
                if job is None or job.read is None or self._loaded is None:
                    self._readers -= 1
                    return
                job.begun, model, processor = True, weakref.ref(self._loaded[0]), self._loaded[1]
                self._reading.append(job)
                if self._unread() is not None:
                    self._news()
            started = time.perf_counter()
            try:
                job.prompt = job.read(model, processor)
            except BaseException as error:  # of a picture's own reader, too
                with self._changed:
                    if job in self._jobs:
                        self._remove([job])
                job.request.deliver(error)
                continue
            with self._changed:
                job.seconds, job.ready = time.perf_counter() - started, True
                if job in self._reading:
                    self._reading.remove(job)
                self._changed.notify_all()
            job.request.note_read()
