"""One piece of work that waits for, or runs in, an engine's thread, seen from the threads that want its result."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real

from ..errors import OptionError
from .run import GenerationPiece, Statistics


@dataclass(frozen=True)
class Completion:
    """A whole answer. `finish_reason`: "stop", "length" or "cancelled" (then the text is what came until
    then). `tool_text` as in `GenerationPiece`."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    statistics: Statistics | None
    tool_text: str = ""


MOST_SECONDS = 1e9  # what the system's clocks and locks still take
Item = GenerationPiece | BaseException
Sink = Callable[[Item], None]


class Request:
    """A submitted question. Safe to use from any thread; its pieces go to one reader.

    Iterate over it for the pieces, or call `result` for all of them; both raise what went wrong. With a `sink` the
    pieces go there and nowhere else.
    """

    def __init__(self, deadline: float | None = None, sink: Sink | None = None):
        if sink is not None and not callable(sink):
            raise OptionError(f"sink is {sink!r}, expected a function")
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._sink = sink or self._items.put
        self._deadline = None if deadline is None else time.monotonic() + check_seconds("deadline", deadline)
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._ended = False
        self._completion: Completion | None = None
        self._error: BaseException | None = None
        self.started = False

    # For those who wait

    def cancel(self) -> None:
        """Ends the work within a token, also in prefill and vision. Harmless once it has ended."""
        self._cancelled.set()

    @property
    def done(self) -> bool:
        """Whether the last piece, or an error, has been delivered."""
        return self._ended

    def __iter__(self) -> Iterator[GenerationPiece]:
        """The pieces as they come. Dropping the iterator cancels the work."""
        return _Pieces(self)

    def take(self) -> Item:
        """Waits for the next piece or error."""
        return self._items.get()

    def result(self, timeout: float | None = None) -> Completion:
        """Waits for the whole answer. Raises `TimeoutError` after `timeout` seconds (the work goes on), or what went
        wrong. Not to be mixed with iterating."""
        end = None if timeout is None else time.monotonic() + timeout
        pieces: list[GenerationPiece] = []
        while self._completion is None and self._error is None:
            try:
                item = self._items.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except queue.Empty:
                for piece in pieces:  # for the next call
                    self._items.put(piece)
                raise TimeoutError(f"no whole answer after {timeout} s") from None
            if isinstance(item, BaseException):
                self._error = item
                break
            pieces.append(item)
            if item.finish_reason is not None:
                text = "".join(piece.text for piece in pieces)
                tokens = tuple(token for piece in pieces for token in piece.tokens)
                calls = "".join(piece.tool_text for piece in pieces)
                self._completion = Completion(text, tokens, item.finish_reason, item.statistics, calls)
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion

    # For the worker

    def stopped(self) -> bool:
        """Whether the work shall end: cancelled, or past its deadline."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        return late or self._cancelled.is_set()

    def deliver(self, item: Item) -> None:
        """Hands a piece or an error to the reader. Nothing follows a last piece or an error."""
        with self._lock:
            if self._ended:
                return
            self.started = True
            self._ended = isinstance(item, BaseException) or item.finish_reason is not None
            try:
                self._sink(item)
            except BaseException as error:  # the caller's own; it must not reach the neighbours in the batch
                self._ended = True
                self._cancelled.set()
                self._error = error
                with contextlib.suppress(Exception):  # a filter may make it an error, which `result` raises anyway
                    warnings.warn(
                        f"the sink of a request failed and gets no more ({error!r})", RuntimeWarning, stacklevel=2
                    )

    def give_up(self, statistics: Statistics | None = None) -> None:
        """Delivers the end of a cancelled request of which nothing has come; `statistics` if its prompt is known."""
        known = statistics if statistics is not None else Statistics(0, 0, 0, 0, 0.0, 0.0, 0.0, 0)
        self.deliver(GenerationPiece("", (), "cancelled", known))


def check_seconds(name: str, value: float) -> float:
    """A number of seconds from 0 to `MOST_SECONDS`. Raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= MOST_SECONDS:
        raise OptionError(f"{name} is {value!r}, expected a number of seconds of at least 0, at most {MOST_SECONDS:g}")
    return float(value)


class _Pieces(Iterator[GenerationPiece]):
    """A reader that cancels its request when nobody holds it any more, read or not."""

    def __init__(self, request: Request):
        self._request = request
        self._ended = False

    def __next__(self) -> GenerationPiece:
        if self._ended:
            raise StopIteration
        item = self._request.take()
        self._ended = isinstance(item, BaseException) or item.finish_reason is not None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Cancels the work, as dropping the reader does."""
        self._request.cancel()

    __del__ = close
