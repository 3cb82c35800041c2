"""One piece of work that waits for, or runs in, an engine's thread, seen from the threads that want its result; and the
threads in which sinks are given it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import replace
from numbers import Real
from typing import Any, Protocol

from ..backends.thread_state import check_fork, forked
from ..errors import EngineThreadError, Lfm2VlError, OptionError, drop_frames
from ..generation.conversation import Turn
from ..generation.response import NOTHING, Completion, GenerationResponse, Statistics
from ..generation.watch import Stop, check_callable

MOST_SECONDS = 1e9  # what the system's clocks and locks still take
Item = GenerationResponse | BaseException
Sink = Callable[[Item], None]


def is_last(item: Item) -> bool:
    """Whether nothing follows: an error, or a response with a finish reason."""
    return isinstance(item, BaseException) or item.finish_reason is not None


class SinkThreads:
    """Requests of one engine that have not given their sink all yet. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()

    @property
    def behind(self) -> int:
        """Sinks that have not been given all yet."""
        return len(self._threads)

    def start(self, sink: Sink, take: Callable[[int], Item], failed: Callable[[BaseException], None]) -> None:
        """Gives a sink what comes, in a thread of its own: what `take` returns for 0, 1 and so on to the last. `failed`
        is told what the sink raises, after which it gets no more. Raises `RuntimeError` where the system gives no more
        threads."""

        def feed() -> None:
            number, ended = 0, False
            try:
                while not ended:
                    item = take(number)
                    sink(item)
                    number, ended = number + 1, is_last(item)
            except BaseException as error:
                failed(error)
            finally:
                self._remove(thread)

        thread = threading.Thread(target=feed, name="mlx-lfm2vl sink", daemon=True)
        with self._changed:  # before it starts: a signal's handler that waits lets it end
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._remove(thread)
            raise

    def wait(self, end: float) -> None:
        """Waits until all sinks but that of the thread which calls have been given all, until `end` of
        `time.monotonic` at the latest. May be repeated."""
        with self._changed:  # `Thread.join` would take a thread for ended once Ctrl-C has interrupted it
            others = self._threads - {threading.current_thread()}
            self._changed.wait_for(lambda: not others & self._threads, max(0.0, end - time.monotonic()))

    def _remove(self, thread: threading.Thread) -> None:
        with self._changed:
            self._threads.discard(thread)
            self._changed.notify_all()


class Owner(Protocol):
    """The receiver of news of a request that gives up."""

    thread: threading.Thread
    sinks: SinkThreads

    def free(self, request: Request) -> None:
        """Takes a request out of the queue."""

    def notify(self) -> None:
        """Asks for the end of those that have given up. May be called from anywhere."""


class Request:
    """A submitted question. Safe to use from any thread, by several readers; what has come is kept.

    Iterate over it for the pieces, or call `result` for all of them, as often as you like; in asyncio `async for` and
    `await` do the same. All raise what went wrong, and `EngineThreadError` in the engine's own thread while the answer
    is still to come. A `sink` gets each piece as it comes, in a thread of its own.
    """

    def __init__(self, deadline: float | None = None, sink: Sink | None = None, stop: Stop | None = None):
        check_callable("sink", sink)
        check_callable("stop", stop)
        self._sink, self._stop = sink, stop
        self.turn: Turn | None = None  # of the conversation that it belongs to
        self.deadline = None if deadline is None else time.monotonic() + check_seconds("deadline", deadline)
        self._cancelled = threading.Event()
        self._lock = threading.RLock()  # a signal's handler may cancel in between
        self._items: list[Item] = []
        self._news = threading.Condition()
        self._listeners: list[Callable[[], None]] = []  # told of each item, of which they must make little
        self._ended = self._heard = self._read = False
        self.abandoned = False  # cancelled by the engine itself
        self.owner: Owner | None = None
        self.so_far: Callable[[], Statistics] | None = None  # known while the request is answered

    # For those who wait

    def cancel(self) -> None:
        """Ends the request at once; its place in the queue is free when this returns. Harmless once it has ended."""
        self._cancelled.set()
        if self.owner is not None and not self._ended and not forked():
            self.owner.free(self)
            self.owner.notify()

    @property
    def done(self) -> bool:
        """Whether the last piece, or an error, has been delivered."""
        return self._ended

    def __iter__(self) -> Generator[GenerationResponse, None, None]:
        """The pieces from the first on, as they come. Dropping the iterator cancels the work."""
        return _Pieces(self)

    def take(self, number: int, timeout: float | None = None) -> Item:
        """Waits for a piece, or the error that came instead; they are numbered from 0. Raises `TimeoutError`,
        `EngineThreadError`, `ForkError`, and `StopIteration` behind the last."""
        if len(self._items) <= number and not self._ended:
            check_fork()
        with self._news:
            own = self.owner is not None and threading.current_thread() is self.owner.thread
            if len(self._items) <= number and not self._ended and own:
                raise EngineThreadError("the engine's own thread would wait for an answer that it has to make itself")
            if not self._news.wait_for(lambda: len(self._items) > number or self._ended, timeout):
                raise TimeoutError
            if len(self._items) <= number:
                raise StopIteration
            return self._items[number]

    def result(self, timeout: float | None = None) -> Completion:
        """Waits for the whole answer. Raises `TimeoutError` after `timeout` seconds (the work goes on), or what went
        wrong, or `OptionError`."""
        end = None if timeout is None else time.monotonic() + check_seconds("timeout", timeout)
        pieces: list[GenerationResponse] = []
        while not pieces or pieces[-1].finish_reason is None:
            try:
                item = self.take(len(pieces), None if end is None else max(0.0, end - time.monotonic()))
            except TimeoutError:
                raise TimeoutError(f"no whole answer after {timeout} s") from None
            if isinstance(item, BaseException):
                raise item
            pieces.append(item)
        return Completion.of(pieces)

    def __aiter__(self) -> AsyncGenerator[GenerationResponse, None]:
        """The pieces in asyncio; leaving the loop, or cancelling the task, cancels the work."""
        return self._pieces()

    def __await__(self) -> Generator[Any, None, Completion]:
        """`result` in asyncio; cancelling the task cancels the work."""
        return self._result().__await__()

    async def _result(self) -> Completion:
        return Completion.of([piece async for piece in self._pieces()])

    async def wait_until_read(self) -> bool:
        """Waits in asyncio until the question has been read, or the request has ended. Whether it has been read."""
        with self._listening() as news:
            while not (self._read or self._ended):
                await news.wait()
                news.clear()
        return self._read

    @contextlib.contextmanager
    def _listening(self) -> Iterator[asyncio.Event]:
        """An event of asyncio that news set."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the event loop was closed: nobody listens any more
                loop.call_soon_threadsafe(news.set)

        self._listeners.append(tell)
        try:
            yield news
        finally:
            self._listeners.remove(tell)

    async def _pieces(self) -> AsyncGenerator[GenerationResponse, None]:
        check_fork()
        try:
            with self._listening() as news:
                number = 0
                while True:
                    while number >= len(self._items):
                        await news.wait()
                        news.clear()
                    item = self._items[number]
                    if isinstance(item, BaseException):
                        raise item
                    yield item
                    if item.finish_reason is not None:
                        return
                    number += 1
        finally:
            self.cancel()

    # For the worker

    def abandon(self) -> None:
        """`cancel`, for an engine that lets go of its model."""
        self.abandoned = True
        self.cancel()

    def drop(self) -> None:
        """As `cancel`, but the place in the queue is free a moment later. May be called while an object is deleted."""
        self._cancelled.set()
        if self.owner is not None and not self._ended:
            self.owner.notify()

    def note_read(self) -> None:
        """Takes note that the question has been read."""
        self._read = True
        self._tell()

    def _tell(self) -> None:
        for tell in list(self._listeners):
            tell()

    def stopped(self) -> bool:
        """Whether the request was cancelled, or is past its deadline."""
        return self._cancelled.is_set() or self._late()

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def ask_to_stop(self) -> bool:
        """Whether the request shall end: as `stopped`, or because its own `stop` says so, which may compute. One that
        fails ends its own request."""
        try:
            return self.stopped() or (self._stop is not None and bool(self._stop()))
        except BaseException as error:
            self.deliver(error)
            self._cancelled.set()
            return True

    def deliver(self, item: Item) -> None:
        """Hands a piece or an error to the readers. Nothing follows a last piece or an error."""
        with self._lock:
            if self._ended:
                return
            if isinstance(item, Lfm2VlError):
                drop_frames(item)
            if isinstance(item, GenerationResponse) and item.finish_reason == "cancelled" and self._late():
                item = item if self._cancelled.is_set() else replace(item, finish_reason="deadline")
            if self.turn is not None:
                self.turn.fail() if isinstance(item, BaseException) else self.turn.hear(item)
            self._keep(item)

    def _keep(self, item: Item) -> None:
        with self._news:
            self._items.append(item)
            self._ended = is_last(item)
            if self._ended:
                self.so_far = None  # it holds the states of the row
            self._news.notify_all()
        self._tell()
        if self._sink is not None and self.owner is not None and not self._heard:
            self._heard = True
            try:
                self.owner.sinks.start(self._sink, self.take, self._fail)
            except RuntimeError as error:  # the system gives no more threads
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The error is the sink's own: it must reach nobody but who asked."""
        with self._lock:
            if not self._ended:  # an answer that is whole may have been read
                self._cancelled.set()
                if self.turn is not None:
                    self.turn.fail()
                self._keep(error)
        with contextlib.suppress(Exception):  # a filter may make it an error, which `result` raises anyway
            warnings.warn(f"the sink of a request failed and gets no more ({error!r})", RuntimeWarning, stacklevel=2)

    def cut_off(self) -> None:
        """Delivers the end of a cancelled request that is being answered, without waiting for the step that runs."""
        so_far = self.so_far
        if so_far is None:
            return
        statistics = so_far()
        with self._lock:
            tokens = sum(len(item.tokens) for item in self._items if isinstance(item, GenerationResponse))
            self.deliver(GenerationResponse("", (), "cancelled", replace(statistics, generated_tokens=tokens)))

    def give_up(self) -> None:
        """Delivers the end of a cancelled request, if nothing has come of it."""
        with self._lock:
            if not self._items:
                self.deliver(GenerationResponse("", (), "cancelled", NOTHING))


def check_seconds(name: str, value: float) -> float:
    """A number of seconds from 0 to `MOST_SECONDS`. Raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= MOST_SECONDS:
        raise OptionError(f"{name} is {value!r}, expected a number of seconds of at least 0, at most {MOST_SECONDS:g}")
    return float(value)


class _Pieces(Generator[GenerationResponse, None, None]):
    """A reader that cancels its request when nobody holds it any more, read or not."""

    def __init__(self, request: Request):
        self._request = request
        self._number = 0
        self._ended = False

    def send(self, _: None) -> GenerationResponse:
        if self._ended:
            raise StopIteration
        item = self._request.take(self._number)
        self._number += 1
        self._ended = is_last(item)
        if isinstance(item, BaseException):
            raise item
        return item

    def throw(self, *error: Any) -> GenerationResponse:
        """Cancels the work, as dropping the reader does."""
        self._ended = True
        self._request.cancel()
        return super().throw(*error)

    def __del__(self) -> None:
        self._request.drop()
