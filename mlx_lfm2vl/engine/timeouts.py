"""The thread that ends requests which were cancelled or are past their deadline, while the engine's own thread works.

It computes nothing. `TimeoutThread.notify` may be called from anywhere, also while an object is being deleted.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

LONGEST_SLEEP = 3600.0


class TimeoutThread:
    """Calls `expire` after each `notify`, and at the time (of `time.monotonic`) that it has returned, if any."""

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
