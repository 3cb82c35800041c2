"""One piece of work that waits for, or runs in, an engine's thread, seen from the threads that want its result."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from numbers import Real

from ..errors import EngineThreadError, Lfm2VlError, OptionError
from ..generation.conversation import Turn
from ..generation.response import NOTHING, Completion, GenerationResponse, Statistics
from ..generation.watch import Stop, check_callable

MOST_SECONDS = 1e9  # what the system's clocks and locks still take
Item = GenerationResponse | BaseException
Sink = Callable[[Item], None]


class Request:
    """A submitted question. Safe to use from any thread, by several readers; what has come is kept.

    Iterate over it for the pieces, or call `result` for all of them, as often as you like; both raise what went wrong,
    and `EngineThreadError` in the engine's own thread while the answer is still to come. A `sink` gets each piece as it
    comes.
    """

    def __init__(self, deadline: float | None = None, sink: Sink | None = None, stop: Stop | None = None):
        check_callable("sink", sink)
        check_callable("stop", stop)
        self._sink, self._stop = sink, stop
        self.turn: Turn | None = None  # of the conversation that it belongs to
        self.deadline = None if deadline is None else time.monotonic() + check_seconds("deadline", deadline)
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._items: list[Item] = []
        self._news = threading.Condition()
        self._ended = False
        self.started = False
        self.maker: threading.Thread | None = None
        self.given_up: Callable[[], None] | None = None
        self.so_far: Callable[[], Statistics] | None = None  # known while the request is answered

    # For those who wait

    def cancel(self) -> None:
        """Ends the request at once; one with a sink, while it is answered, after the step that runs. Harmless once it
        has ended."""
        self._cancelled.set()
        if self.given_up is not None and not self._ended:
            self.given_up()

    @property
    def done(self) -> bool:
        """Whether the last piece, or an error, has been delivered."""
        return self._ended

    def __iter__(self) -> Iterator[GenerationResponse]:
        """The pieces from the first on, as they come. Dropping the iterator cancels the work."""
        return _Pieces(self)

    def take(self, number: int, timeout: float | None = None) -> Item:
        """Waits for a piece, or the error that came instead; they are numbered from 0. Raises `TimeoutError`,
        `EngineThreadError`, and `StopIteration` behind the last."""
        with self._news:
            if len(self._items) <= number and not self._ended and threading.current_thread() is self.maker:
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

    # For the worker

    @property
    def has_sink(self) -> bool:
        return self._sink is not None

    def stopped(self) -> bool:
        """Whether the request was cancelled, or is past its deadline."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or self._cancelled.is_set()

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
            self._deliver(item)

    def _deliver(self, item: Item) -> None:
        if self._ended:
            return
        self.started = True
        last = isinstance(item, BaseException) or item.finish_reason is not None
        if isinstance(item, Lfm2VlError):
            _drop_frames(item)
        if self.turn is not None:
            self.turn.fail() if isinstance(item, BaseException) else self.turn.hear(item)
        self._keep(item, last)
        if self._sink is None:
            return
        try:
            self._sink(item)
        except BaseException as error:  # the caller's own; it must not reach the neighbours in the batch
            self._cancelled.set()
            if self.turn is not None:
                self.turn.fail()
            self._keep(error, True, instead=last)
            with contextlib.suppress(Exception):  # a filter may make it an error, which `result` raises anyway
                warnings.warn(
                    f"the sink of a request failed and gets no more ({error!r})", RuntimeWarning, stacklevel=3
                )

    def _keep(self, item: Item, last: bool, instead: bool = False) -> None:
        with self._news:
            self._items[len(self._items) - instead :] = [item]
            self._ended = last
            if last:
                self.so_far = None  # it holds the states of the row
            self._news.notify_all()

    def end(self) -> None:
        """Delivers the end of a request whose work was ended without one, if it has none."""
        with self._lock:
            self._deliver(GenerationResponse("", (), "cancelled", NOTHING))

    def cut_off(self) -> None:
        """Delivers the end of a cancelled request that is being answered, without waiting for the step that runs. One
        with a sink waits for it: sinks are called in the engine's thread."""
        so_far = self.so_far
        if so_far is None or self._sink is not None:
            return
        statistics = so_far()
        with self._lock:
            tokens = sum(len(item.tokens) for item in self._items if isinstance(item, GenerationResponse))
            self._deliver(GenerationResponse("", (), "cancelled", replace(statistics, generated_tokens=tokens)))

    def give_up(self, statistics: Statistics | None = None) -> None:
        """Delivers the end of a cancelled request, if nothing has come of it; `statistics` if its prompt is known."""
        known = statistics if statistics is not None else NOTHING
        with self._lock:
            if not self.started:
                self._deliver(GenerationResponse("", (), "cancelled", known))


def _drop_frames(error: BaseException) -> None:
    """Takes away the frames behind an error, which hold the arrays of its batch for as long as the request is kept; the
    library's own errors say all that there is to know."""
    seen: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        seen.add(id(behind))
        behind.__traceback__ = None
        behind = behind.__cause__ or behind.__context__


def check_seconds(name: str, value: float) -> float:
    """A number of seconds from 0 to `MOST_SECONDS`. Raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= MOST_SECONDS:
        raise OptionError(f"{name} is {value!r}, expected a number of seconds of at least 0, at most {MOST_SECONDS:g}")
    return float(value)


class _Pieces(Iterator[GenerationResponse]):
    """A reader that cancels its request when nobody holds it any more, read or not."""

    def __init__(self, request: Request):
        self._request = request
        self._number = 0
        self._ended = False

    def __next__(self) -> GenerationResponse:
        if self._ended:
            raise StopIteration
        item = self._request.take(self._number)
        self._number += 1
        self._ended = isinstance(item, BaseException) or item.finish_reason is not None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Cancels the work, as dropping the reader does."""
        self._request.cancel()

    __del__ = close
