"""The threads in which an engine's sinks are called, and the wait for them when the engine is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..generation.response import GenerationResponse

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
        with self._changed:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._remove(thread)
            raise

    def wait(self, end: float) -> None:
        """Waits until all sinks but that of the thread which calls have been given all, until `end` of
        `time.monotonic` at the latest."""
        with self._changed:
            others = self._threads - {threading.current_thread()}
            self._changed.wait_for(lambda: not others & self._threads, max(0.0, end - time.monotonic()))

    def _remove(self, thread: threading.Thread) -> None:
        with self._changed:
            self._threads.discard(thread)
            self._changed.notify_all()
